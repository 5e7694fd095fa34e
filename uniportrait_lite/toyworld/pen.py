"""The pen that draws every shape: it knows the art style, so that the shapes need not."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import skia

Color = int  # 0xAARRGGBB


def rgb(r: float, g: float, b: float, a: float = 255) -> Color:
    """Pack channels of 0..255 into the library's colour number."""
    return int(a) << 24 | int(r) << 16 | int(g) << 8 | int(b)


WHITE, BLACK = rgb(255, 255, 255), rgb(20, 18, 24)
_SKETCHBOOK, _WASH = (252, 249, 242), (255, 252, 246)  # the papers


def channels(color: Color) -> tuple[int, int, int, int]:
    """Red, green, blue and alpha of a colour number."""
    return color >> 16 & 255, color >> 8 & 255, color & 255, color >> 24 & 255


@lru_cache(maxsize=65536)
def mix(a: Color, b: Color, share: float) -> Color:
    """Blend `share` of colour `b` into `a`; alpha stays that of `a`."""
    first, second = channels(a), channels(b)
    return rgb(*(x + (y - x) * share for x, y in zip(first[:3], second[:3], strict=True)), first[3])


def lighter(color: Color, share: float) -> Color:
    """The colour with a share of white."""
    return mix(color, WHITE, share)


def darker(color: Color, share: float) -> Color:
    """The colour with a share of a warm near-black."""
    return mix(color, rgb(38, 14, 26), share)


def alpha(color: Color, a: float) -> Color:
    """The colour at an opacity of 0..1."""
    return color & 0xFFFFFF | int(a * 255) << 24


@lru_cache(maxsize=65536)
def tone(style: str, color: Color) -> Color:
    """What a paint looks like in an art style: saturated, washed out, brown, or grey."""
    r, g, b, a = channels(color)
    grey = 0.3 * r + 0.59 * g + 0.11 * b
    if style == "comic":
        out = [grey + (c - grey) * 1.26 for c in (r, g, b)]
        out = [(c - 128) * 1.08 + 134 for c in out]
    elif style == "sketch":
        out = [(grey + (c - grey) * 0.85) * 0.42 + p * 0.58 for c, p in zip((r, g, b), _SKETCHBOOK, strict=True)]
    elif style == "watercolour":
        out = [(grey + (c - grey) * 1.15) * 0.68 + p * 0.32 for c, p in zip((r, g, b), _WASH, strict=True)]
    elif style == "sepia":
        out = [38 + grey * 0.84, 23 + grey * 0.78, 11 + grey * 0.64]
    elif style == "noir":
        out = [(grey - 118) * 1.35 + 118] * 3
    else:
        return color
    return rgb(*(min(255, max(0, c)) for c in out), a)


def smooth(points: list[tuple[float, float]], tension: float = 1.0) -> skia.Path:
    """A closed curve through the points (a cardinal spline)."""
    path = skia.Path()
    n, k = len(points), tension / 6
    path.moveTo(*points[0])
    for i in range(n):
        (ax, ay), (bx, by) = points[i - 1], points[i]
        (cx, cy), (dx, dy) = points[(i + 1) % n], points[(i + 2) % n]
        path.cubicTo(bx + (cx - ax) * k, by + (cy - ay) * k, cx - (dx - bx) * k, cy - (dy - by) * k, cx, cy)
    path.close()
    return path


def polygon(points: list[tuple[float, float]], close: bool = True) -> skia.Path:
    """Straight lines through the points."""
    return skia.Path.Polygon(points, close)


def oval(x: float, y: float, rx: float, ry: float) -> skia.Path:
    """An ellipse around a point."""
    return skia.Path.Oval(skia.Rect(x - rx, y - ry, x + rx, y + ry))


def box(x0: float, y0: float, x1: float, y1: float, radius: float = 0) -> skia.Path:
    """A rectangle, its corners rounded if wanted."""
    return skia.Path.RRect(skia.Rect(x0, y0, x1, y1), radius, radius)


def arc(x0: float, y0: float, cx: float, cy: float, x1: float, y1: float) -> skia.Path:
    """A bent line from one point to another, pulled towards a third."""
    path = skia.Path()
    path.moveTo(x0, y0)
    path.quadTo(cx, cy, x1, y1)
    return path


_OUTLINE = {"comic": (1.9, rgb(28, 20, 32)), "sketch": (1.1, rgb(74, 70, 78))}
_SOFT = ("photo", "sepia", "noir", "watercolour")


class Pen:
    """Draws on a skia canvas in one art style.

    With `flat` set to a number, every shape becomes a solid, hard-edged patch of that number (in the red channel):
    this is how masks are made from the very shapes of the picture.
    """

    def __init__(self, canvas: skia.Canvas, style: str, flat: int | None = None) -> None:
        self.canvas, self.style, self.flat = canvas, style, flat
        self.soft = style in _SOFT and flat is None
        self._fill = skia.Paint(AntiAlias=flat is None)
        self._shaded = skia.Paint(AntiAlias=True)
        self._line = skia.Paint(
            AntiAlias=flat is None,
            Style=skia.Paint.kStroke_Style,
            StrokeCap=skia.Paint.kRound_Cap,
            StrokeJoin=skia.Paint.kRound_Join,
        )

    def fill(self, path: skia.Path, color: Color, ramp: tuple | None = None, outline: bool = True) -> None:
        """Fill a shape; `ramp` (x0, y0, x1, y1) shades it from lighter to darker where the style is soft."""
        paint = self._fill
        if self.flat is not None:
            paint.setColor(rgb(self.flat, 0, 0))
            self.canvas.drawPath(path, paint)
            return
        paint.setColor(tone(self.style, color))
        if ramp is not None and self.soft:
            light, dark = tone(self.style, lighter(color, 0.13)), tone(self.style, darker(color, 0.17))
            self._shaded.setShader(skia.GradientShader.MakeLinear([ramp[:2], ramp[2:]], [light, dark]))
            self.canvas.drawPath(path, self._shaded)
        else:
            self.canvas.drawPath(path, paint)
        if outline:
            if self.style in _OUTLINE:
                width, ink = _OUTLINE[self.style]
                self.stroke(path, width, ink)
            elif self.style == "watercolour":  # pigment gathers at the edge of a wash
                self.stroke(path, 1.3, alpha(tone(self.style, darker(color, 0.4)), 0.45))

    def line(self, path: skia.Path, color: Color, width: float) -> None:
        """Draw along a path, in the style's tone."""
        if self.flat is None:
            self.stroke(path, width, tone(self.style, color))

    def stroke(self, path: skia.Path, width: float, color: Color) -> None:
        """Draw along a path in exactly this colour."""
        self._line.setColor(color)
        self._line.setStrokeWidth(width)
        self.canvas.drawPath(path, self._line)

    def glow(self, x: float, y: float, radius: float, color: Color) -> None:
        """A spot of colour that fades out: blush, moonlight, soft shadows."""
        if self.flat is not None:
            return
        color = tone(self.style, color)
        self._shaded.setShader(skia.GradientShader.MakeRadial((x, y), radius, [color, color & 0xFFFFFF]))
        self.canvas.drawCircle(x, y, radius, self._shaded)

    def inside(self, path: skia.Path) -> skia.AutoCanvasRestore:
        """A context in which only the inside of a shape is drawn on."""
        guard = skia.AutoCanvasRestore(self.canvas)
        self.canvas.clipPath(path, doAntiAlias=True)
        return guard


@lru_cache(maxsize=16)
def paper(style: str, width: int, height: int) -> np.ndarray:
    """The grain of the style's paper: (height, width, 1) uint32 factors around 256, from a fixed seed."""
    rng = np.random.Generator(np.random.PCG64([17, len(style)]))
    out = np.full((height, width), 250.0)
    grains = ((16, 26.0), (5, 10.0)) if style == "watercolour" else ((2, 4.0),)
    for cell, strength in grains:
        cell = cell * height // 128 or 1
        coarse = rng.random((height // cell + 3, width // cell + 3)) - 0.5
        y, x = np.arange(height) / cell, np.arange(width) / cell
        iy, ix = y.astype(int), x.astype(int)
        fy, fx = (y - iy)[:, None], (x - ix)[None, :]
        rows = coarse[iy] * (1 - fy) + coarse[iy + 1] * fy
        out += 2 * strength * (rows[:, ix] * (1 - fx) + rows[:, ix + 1] * fx)
    return np.clip(out, 200, 285).astype(np.uint32)[..., None]


def on_paper(pixels: np.ndarray, style: str) -> np.ndarray:
    """Let the paper show through a finished (H, W, 3) uint8 picture."""
    if style not in ("watercolour", "sketch"):
        return pixels
    grain = paper(style, pixels.shape[1], pixels.shape[0])
    return np.minimum((pixels * grain) >> 8, 255).astype(np.uint8)
