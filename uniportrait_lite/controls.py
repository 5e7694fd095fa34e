"""Condition images for ControlNets: a figure for each person's landmarks, and the edges of a picture."""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from uniportrait_lite.errors import ConfigError

# Pairs of landmarks (left eye, right eye, nose, left and right mouth corner) that a figure joins, with their colours.
LIMBS = (
    ((0, 1), (255, 60, 60)), ((0, 2), (255, 190, 40)), ((1, 2), (120, 230, 60)), ((2, 3), (40, 200, 230)),
    ((2, 4), (90, 100, 255)), ((3, 4), (230, 80, 220)),
)  # fmt: skip


def pose(landmarks: Sequence[np.ndarray], size: tuple[int, int]) -> Image.Image:
    """People's landmarks as figures on black, as OpenPose draws bodies: one figure a person, each limb in its colour.

    `landmarks`: (5, 2) in pixels for each person, as insightface and the toy world have them: left eye, right eye,
    nose, left and right mouth corner, as seen in the picture. `size`: width and height. Returns RGB. Raises
    `ConfigError` for other shapes.
    """
    width, height = size
    canvas = np.zeros((height, width, 3), np.uint8)
    for number, points in enumerate(landmarks):
        points = np.asarray(points, np.float32)
        if points.shape != (5, 2) or not np.isfinite(points).all():
            raise ConfigError(f"person {number}: landmarks are five points (5, 2) in pixels, not {points.shape}")
        at = [tuple(map(int, np.round(16 * point))) for point in points]  # in sixteenths of a pixel
        thick = max(1, round(float(np.linalg.norm(points[1] - points[0])) / 10))
        for (first, second), color in LIMBS:
            cv2.line(canvas, at[first], at[second], color, thick, cv2.LINE_AA, shift=4)
        for point in at:
            cv2.circle(canvas, point, 16 * thick, (255, 255, 255), cv2.FILLED, cv2.LINE_AA, shift=4)
    return Image.fromarray(canvas)


def edges(picture: Image.Image | np.ndarray, low: float = 100, high: float = 200) -> Image.Image:
    """The edges of an RGB picture, white on black, as RGB: OpenCV's Canny with its two thresholds."""
    if not 0 <= low <= high:
        raise ConfigError(f"Canny's thresholds are 0 <= low <= high, not {low} and {high}")
    found = cv2.Canny(np.asarray(picture), low, high)
    return Image.fromarray(np.repeat(found[..., None], 3, axis=2))
