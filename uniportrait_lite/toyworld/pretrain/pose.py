"""The ControlNet that is shown where each person's face is and which way it looks (`controls.pose`)."""

from dataclasses import dataclass

from uniportrait_lite.controls import pose
from uniportrait_lite.toyworld.pretrain import controlnet


@dataclass
class PoseRecipe(controlnet.ControlNetRecipe):
    """A ControlNet's settings."""

    out: str = "runs/pose"
    folder: str = "data/tiny/controlnet/pose"


def run(**overrides) -> dict:
    """Trains it and writes `folder`; overrides are the fields of `PoseRecipe`."""
    return controlnet.fit("pose", PoseRecipe(**overrides), lambda pixels, at: pose(at, pixels.shape[1::-1]))
