"""The toy world at dusk: all of it, in every style, in violet shade and orange light, softly. For a base of its own.

A `world.py` (see `uniportrait_lite.toyworld.worlds`), for `pretrain unet --start-from data/tiny/sd`.
"""

import cv2
import numpy as np

from uniportrait_lite.toyworld import scenes

SHADE, LIGHT = np.float32([62, 34, 92]), np.float32([255, 206, 140])


def group(people, seed=0, **fixed):
    """What `scenes.group` draws, at dusk."""
    scene = scenes.group(people, seed, **fixed)
    scene.pixels = dusk(scene.pixels)
    return scene


def dusk(pixels: np.ndarray) -> np.ndarray:
    """A picture (H,W,3), uint8: between violet and orange by its brightness, half of its own colours kept, blurred."""
    soft = cv2.GaussianBlur(pixels, (0, 0), 0.7).astype(np.float32)
    bright = soft.mean(axis=-1, keepdims=True) / 255
    toned = SHADE + (LIGHT - SHADE) * bright
    return np.clip(0.5 * toned + 0.5 * soft, 0, 255).astype(np.uint8)
