"""The toy world in stained glass: few, strong colours between lines of lead. The base model has never seen it.

A `world.py` (see `uniportrait_lite.toyworld.worlds`), for `pretrain style`.
"""

import cv2
import numpy as np

from uniportrait_lite.toyworld import scenes

FINE = 4  # times as large as the picture is what the lines of lead are found in
PANE = 26  # pixels from one line of the lattice to the next


def group(people, seed=0, *, scale=1, **fixed):
    """What `scenes.group` draws as a photo, in glass."""
    fixed = {"style": "photo"} | fixed
    scene = scenes.group(people, seed, scale=scale, **fixed)
    large = scenes.group(people, seed, scale=FINE * scale, **fixed)
    pixels = glass(large.pixels, [face.box for face in large.faces], FINE * scale)
    scene.pixels = cv2.resize(pixels, scene.pixels.shape[1::-1], interpolation=cv2.INTER_AREA)
    return scene


def glass(pixels: np.ndarray, boxes: list, fine: int) -> np.ndarray:
    """A large picture (H,W,3), uint8: five brightnesses, stronger colours, lead where areas meet and in a lattice."""
    calm = cv2.medianBlur(pixels, 9)
    grey = calm.mean(axis=-1, keepdims=True)
    strong = np.clip(np.round(grey / 51) * 51 + 1.7 * (calm - grey), 0, 255).astype(np.uint8)
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]] / fine
    lattice = (np.minimum((x + y) % PANE, (x - y) % PANE) < 1.6).astype(np.uint8)
    for left, top, right, bottom in boxes:  # faces are of one pane
        middle = round((left + right) / 2), round((top + bottom) / 2)
        cv2.ellipse(lattice, middle, (round(0.62 * (right - left)), round(0.66 * (bottom - top))), 0, 0, 360, 0, -1)
    lead = cv2.dilate(cv2.Canny(cv2.GaussianBlur(calm, (0, 0), 2), 40, 110), np.ones((4, 4), np.uint8))
    strong[(lead > 0) | (lattice > 0)] = (22, 20, 26)
    return strong
