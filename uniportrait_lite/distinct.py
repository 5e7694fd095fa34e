"""Nobody twice, nobody missing: looks who is in a picture, and draws it again where someone is doubled or missing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from uniportrait_lite.assignment import Assignment
from uniportrait_lite.id_routing import columns

TRIES = 3  # pictures drawn again, at most
ANOTHER = 1_000_003  # from the seed of one attempt to that of the next


def settle(
    image: Image.Image,
    look: Callable[[Image.Image], Assignment],
    again: Callable[[int, list[np.ndarray] | None], Image.Image],
    tries: int = TRIES,
) -> tuple[Image.Image, Assignment, int]:
    """The picture with everyone in it once, or the best of those drawn; who is where; how many were drawn again.

    `look(image)` says who is where; `again(noise, masks)` draws once more, from the first noise (0) or another, with a
    region for each person. The first attempt keeps noise and composition: the regions are those around the faces that
    are there. If a face is lacking, and from the second attempt on, they are columns. One person needs no region,
    but other noise.
    """
    found = look(image)
    best, attempt = (image, found), 0
    while not best[1].distinct and attempt < tries:
        if len(found.face_of) == 1:
            image = again(attempt + 1, None)
        else:
            image = again(attempt, one_region_each(found, image.size, around_faces=attempt == 0))
        attempt += 1
        found = look(image)
        best = max(best, (image, found), key=lambda pair: _rank(pair[1]))
    return *best, attempt


def one_region_each(found: Assignment, size: tuple[int, int], around_faces: bool = True) -> list[np.ndarray]:
    """A bool array (height, width) for each person: what is nearest to the face that is theirs.

    Where faces are lacking, or without `around_faces`: columns (`id_routing.columns`), in the order of the faces, and
    of those without one after the others.
    """
    width, height = size
    if around_faces and None not in found.face_of:
        boxes = found.boxes[list(found.face_of)]
        x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
        down, across = np.mgrid[:height, :width] + 0.5
        nearest = ((across - x[:, None, None]) ** 2 + (down - y[:, None, None]) ** 2).argmin(axis=0)
    else:
        last = len(found.boxes)
        order = np.argsort([last if face is None else face for face in found.face_of], kind="stable")
        nearest = order[columns(len(order), (height, width))[0].argmax(0).numpy()]
    return [nearest == person for person in range(len(found.face_of))]


def _rank(found: Assignment) -> tuple[int, float]:
    """Better is: fewer people missing and faces too many; then the least alike of the matched more alike."""
    return -sum(abs(count - 1) for count in found.counts), min(found.matched)
