"""Condition images for ControlNets, from any picture."""

import os

from PIL import Image

from uniportrait_lite import controls
from uniportrait_lite.errors import NoFaceError
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
