"""Where each identity may be, as users have it: masks of the picture's shape or boxes, made the U-Net's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from uniportrait_lite.errors import ConfigError


def regions(masks: Sequence[Any], size: tuple[int, int], cell: int) -> Tensor:
    """One region for each identity, float32 (1, N, h, w) in 0..1, at the latents' `size`, of `cell` pixels a latent.

    A mask is an array, a PIL picture or a tensor (H, W) of the picture's shape, at any scale: bool, 0..1 or 0..255; or
    a box of four numbers in pixels, left, top, right, bottom. Raises `ConfigError` for one that is neither, that is of
    another shape, or that leaves its identity nothing.
    """
    found = [_region(mask, number, size, cell) for number, mask in enumerate(masks)]
    for number, region in enumerate(found):
        if region.max() < 0.01:
            raise ConfigError(f"mask {number} leaves its person nothing of the picture: give a larger one")
    return torch.stack(found).unsqueeze(0)


def _region(mask: Any, number: int, size: tuple[int, int], cell: int) -> Tensor:
    if isinstance(mask, Image.Image):
        if mask.has_transparency_data and mask.convert("RGBA").getextrema()[3][0] < 255:
            raise ConfigError(f"mask {number} is partly transparent: make it black and white, without transparency")
        mask = mask if len(mask.getbands()) == 1 and mask.mode != "P" else mask.convert("L")
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu()
        mask = mask.float() if mask.is_floating_point() else mask
    try:
        values = np.asarray(mask)
    except ValueError:  # rows of different lengths
        values = np.asarray(None)
    if values.dtype.kind not in "biuf":
        raise ConfigError(f"mask {number} is neither an array (height, width) nor a box of four numbers: {mask!r:.80}")
    if values.shape == (4,):
        return _box(values.astype(np.float64), number, size, cell)
    if values.ndim != 2:
        raise ConfigError(f"mask {number} has the shape {values.shape}, not (height, width), nor is it a box of four")
    height, width = values.shape
    if abs(height * size[1] - width * size[0]) > max(size) * 0.01 * max(height, width):
        raise ConfigError(
            f"mask {number} is {width}x{height} and the picture {size[1] * cell}x{size[0] * cell}: "
            "a mask has the picture's shape"
        )
    grey = torch.from_numpy(values.astype(np.float32))
    if values.dtype.kind in "iu" and values.max(initial=0) > 1:
        grey = grey / 255
    if not grey.isfinite().all() or grey.min() < 0 or grey.max() > 1:
        raise ConfigError(f"mask {number} has values outside 0..1 (0..255 where they are whole numbers)")
    return F.interpolate(grey[None, None], size=size, mode="area")[0, 0]


def _box(box: np.ndarray, number: int, size: tuple[int, int], cell: int) -> Tensor:
    """The share of each latent that the box covers."""
    left, top, right, bottom = box / cell
    if np.isfinite(box).all() and 0 <= box.min() and 0 < box.max() <= 1:
        raise ConfigError(f"mask {number} seems to be in shares of the picture, and a box is in pixels: {box.tolist()}")
    if not (np.isfinite(box).all() and left < right and top < bottom):
        raise ConfigError(f"mask {number} is no box: left, top, right, bottom in pixels, not {box.tolist()}")

    def covered(low: float, high: float, count: int) -> np.ndarray:
        edges = np.arange(count)
        return np.clip(np.minimum(edges + 1, high) - np.maximum(edges, low), 0, None)

    cover = np.outer(covered(top, bottom, size[0]), covered(left, right, size[1]))
    return torch.from_numpy(cover.astype(np.float32))
