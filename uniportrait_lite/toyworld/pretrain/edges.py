"""The ControlNet that is shown the edges of a picture (`controls.edges`)."""

from dataclasses import dataclass

from uniportrait_lite.controls import edges
from uniportrait_lite.toyworld.pretrain import controlnet


@dataclass
class EdgesRecipe(controlnet.ControlNetRecipe):
    """A ControlNet's settings."""

    out: str = "runs/edges"
    folder: str = "data/tiny/controlnet/edges"


def run(**overrides) -> dict:
    """Trains it and writes `folder`; overrides are the fields of `EdgesRecipe`."""
    return controlnet.fit("edges", EdgesRecipe(**overrides), lambda pixels, landmarks: edges(pixels))
