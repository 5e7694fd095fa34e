"""Putting a scene on canvas: background, then everyone layer by layer, in one art style; and the masks of the heads."""

from __future__ import annotations

import numpy as np
import skia

from .draw_background import draw_background
from .draw_face import draw_beard_tip, draw_ears, draw_eyes, draw_face, draw_mouth, draw_nose
from .draw_hair import draw_hair_back, draw_hair_front, draw_hair_side
from .draw_wardrobe import draw_body, draw_glasses, draw_hat
from .head import Head
from .pen import Pen, on_paper


def _people(pen: Pen, heads: list[Head], masks: bool) -> None:
    """Everyone's hair and shoulders first, then the heads, so that no neighbour's hair covers a face."""
    canvas = pen.canvas

    def layer(head: Head, number: int, tilted: bool, *parts) -> None:
        if masks:
            pen.flat = number
        canvas.save()
        if tilted:
            canvas.concat(head.matrix())
        else:
            canvas.translate(*head.center)
        for part in parts:
            part(pen, head)
        canvas.restore()

    for i, head in enumerate(heads):
        layer(head, i + 1, True, draw_hair_back)
    for i, head in enumerate(heads):
        layer(head, 0, False, draw_body)
        layer(head, i + 1, True, draw_hair_side)
    for i, head in enumerate(heads):
        layer(
            head,
            i + 1,
            True,
            draw_ears,
            draw_beard_tip,
            draw_face,
            draw_nose,
            draw_mouth,
            draw_eyes,
            draw_hair_front,
            draw_glasses,
            draw_hat,
        )


def render(
    heads: list[Head], background: str, style: str, variation: list[float], width: int, scale: int
) -> np.ndarray:
    """Draw a scene: (128 * scale, width * scale, 3) uint8."""
    pixels = np.empty((128 * scale, width * scale, 4), np.uint8)
    canvas = skia.Surface(pixels, skia.kRGBA_8888_ColorType).getCanvas()
    canvas.scale(scale, scale)
    pen = Pen(canvas, style)
    draw_background(pen, background, width, variation)
    _people(pen, heads, masks=False)
    return on_paper(np.ascontiguousarray(pixels[..., :3]), style)


def head_masks(heads: list[Head], width: int, scale: int) -> np.ndarray:
    """What is visible of each head, with hair and hat: (people, 128 * scale, width * scale) bool."""
    pixels = np.zeros((128 * scale, width * scale, 4), np.uint8)
    canvas = skia.Surface(pixels, skia.kRGBA_8888_ColorType).getCanvas()
    canvas.scale(scale, scale)
    _people(Pen(canvas, "photo", flat=0), heads, masks=True)
    return pixels[None, ..., 0] == np.arange(1, len(heads) + 1, dtype=np.uint8)[:, None, None]
