"""Condition images for ControlNets, from any picture."""

import functools
import os

from PIL import Image

from uniportrait_lite import controls
from uniportrait_lite.errors import ConfigError, NoFaceError, WeightsError
from uniportrait_lite.faces import detect
from uniportrait_lite.pictures import Picture, read_picture


def pose_of(picture: Picture, faces: str | os.PathLike | None = None) -> Image.Image:
    """Figures of the landmarks that insightface finds in a picture, one a face, of the picture's size: `controls.pose`.

    `faces` is the detector's folder, the tiny profile's where not given. Raises `NoFaceError` where there is none.
    """
    image = read_picture(picture)
    found = detect(image, faces)
    if not found:
        raise NoFaceError("no face found to take a pose from: give a picture with one, or landmarks to controls.pose")
    return controls.pose([face.landmarks for face in found], image.size)


def edges_of(picture: Picture, low: float = 100, high: float = 200) -> Image.Image:
    """The edges of any picture, of its size: `controls.edges`."""
    return controls.edges(read_picture(picture), low, high)


def annotated(picture: Picture, annotator: str = "openpose") -> Image.Image:
    """What one of the field's annotators makes of a picture, of its size, for ControlNets of Stable Diffusion 1.5.

    `annotator`: a name that `controlnet_aux` knows, such as "openpose", "depth_midas", "lineart_realistic" or
    "softedge_hed". That library is an optional extra (`annotators`), and fetches its networks from the Hub on first use
    (lllyasviel/Annotators; they have licences of their own). Raises `ConfigError` where it is not installed or does not
    know the name, `WeightsError` where its networks can't be fetched.
    """
    image = read_picture(picture)
    try:
        seen = _annotator(annotator)(image, to_pil=True)
    except OSError as error:
        raise WeightsError(
            f"the networks of {annotator} can't be fetched ({error}): go online once, or put lllyasviel/Annotators "
            "into the Hub's cache"
        ) from error
    except (AttributeError, ImportError, NameError) as error:  # what it takes for granted is not there
        raise ConfigError(f"controlnet_aux can't run {annotator} here ({error}): it needs further libraries") from error
    return seen.convert("RGB").resize(image.size, Image.Resampling.LANCZOS)


@functools.lru_cache(maxsize=2)
def _annotator(name: str):
    try:
        from controlnet_aux import processor
    except ImportError as error:
        raise ConfigError(
            f"annotators are controlnet_aux's, which can't be imported ({error}): pip install controlnet-aux; without "
            "it there are compose.edges_of, and compose.pose_of for the tiny profile's figures"
        ) from error
    if name not in processor.MODELS:
        raise ConfigError(f"there is no annotator {name!r}: controlnet_aux has {', '.join(sorted(processor.MODELS))}")
    return processor.Processor(name)
