"""Drawing where a scene takes place: eight simple places of few, flat shapes."""

from __future__ import annotations

import skia

from .pen import Pen, alpha, arc, box, darker, lighter, oval, polygon, rgb, smooth, tone

STUDIO = (
    rgb(246, 196, 208),
    rgb(176, 214, 240),
    rgb(190, 228, 196),
    rgb(250, 224, 170),
    rgb(208, 196, 240),
    rgb(228, 228, 232),
    rgb(248, 186, 160),
    rgb(160, 214, 214),
)
WALL = (rgb(240, 226, 204), rgb(214, 226, 222), rgb(236, 210, 200), rgb(214, 214, 234))


def draw_background(pen: Pen, kind: str, width: float, u: list[float]) -> None:
    """Fill a canvas of width x 128; `u` are five numbers in [0, 1) that vary the place."""
    _PLACES[kind](pen, width, u)


def _sheet(pen: Pen, width: float, top: int, bottom: int, y0: float = 0, y1: float = 128) -> None:
    """A smooth vertical blend over part of the canvas."""
    paint = skia.Paint(
        Shader=skia.GradientShader.MakeLinear([(0, y0), (0, y1)], [tone(pen.style, top), tone(pen.style, bottom)])
    )
    pen.canvas.drawRect(skia.Rect(0, y0, width, y1), paint)


def _studio(pen: Pen, width: float, u: list[float]) -> None:
    color = STUDIO[int(u[0] * len(STUDIO))]
    _sheet(pen, width, lighter(color, 0.25), darker(color, 0.16))
    pen.glow(width * (0.3 + 0.4 * u[1]), 48, 74, rgb(255, 255, 255, 120))


def _beach(pen: Pen, width: float, u: list[float]) -> None:
    _sheet(pen, width, rgb(104, 196, 240), rgb(214, 240, 248), 0, 74)
    pen.fill(oval(width * (0.12 + 0.76 * u[0]), 18, 10, 10), rgb(255, 226, 96), outline=False)
    pen.fill(box(0, 66, width, 100), rgb(36, 150, 200), outline=False)
    for i in range(4):
        x = (u[1] + i * 0.27) % 1 * width
        pen.line(arc(x, 75 + i % 3 * 6, x + 7, 72 + i % 3 * 6, x + 14, 75 + i % 3 * 6), rgb(190, 230, 244), 1.4)
    pen.fill(
        smooth([(-20, 96), (width * 0.3, 93), (width * 0.7, 98), (width + 20, 94), (width + 20, 150), (-20, 150)], 0.8),
        rgb(248, 222, 160),
    )


def _towers(pen: Pen, width: float, u: list[float], wall: tuple, window: int, lit: int) -> None:
    x, i = -10.0 - 14 * u[1], 0
    shift = int(u[2] * 7)
    panes = skia.Path()
    while x < width:
        w, h = 20 + (i + shift) * 7 % 11, 44 + (i + shift) * 37 % 50
        pen.fill(box(x, 128 - h - 14, x + w, 130), wall[(i + shift) % len(wall)])
        for row in range(int(h / 10)):
            for col in range(int(w / 7)):
                if (row * 5 + col * 3 + i * 2 + shift) % lit:
                    panes.addRect(
                        skia.Rect(
                            x + 3.4 + col * 6.6, 128 - h - 9 + row * 10, x + 6.8 + col * 6.6, 128 - h - 3.6 + row * 10
                        )
                    )
        x, i = x + w + 1, i + 1
    pen.fill(panes, window, outline=False)


def _city(pen: Pen, width: float, u: list[float]) -> None:
    _sheet(pen, width, rgb(150, 204, 238), rgb(250, 236, 214))
    pen.fill(_cloud_path(width * (0.15 + 0.7 * u[0]), 18), rgb(255, 255, 255), outline=False)
    _towers(
        pen,
        width,
        u,
        (rgb(136, 152, 178), rgb(166, 152, 160), rgb(112, 134, 164), rgb(184, 172, 170)),
        rgb(232, 240, 248),
        9,
    )


def _night_city(pen: Pen, width: float, u: list[float]) -> None:
    _sheet(pen, width, rgb(18, 20, 66), rgb(76, 50, 116))
    x = width * (0.1 + 0.8 * u[0])
    pen.glow(x, 17, 24, rgb(255, 250, 214, 110))
    pen.fill(oval(x, 17, 8, 8), rgb(255, 248, 214), outline=False)
    stars = skia.Path()
    for i in range(int(width / 8)):
        stars.addCircle((i * 53 + u[3] * 40) % width, (i * 29) % 58 + 2, 0.6 + 0.3 * (i % 2))
    pen.fill(stars, rgb(255, 255, 255, 220), outline=False)
    _towers(pen, width, u, (rgb(38, 36, 78), rgb(50, 44, 92), rgb(30, 32, 66)), rgb(255, 208, 84), 3)


def _cloud_path(x: float, y: float) -> skia.Path:
    return smooth(
        [(x - 15, y + 4), (x - 12, y - 3), (x - 5, y - 4), (x, y - 8), (x + 7, y - 5), (x + 13, y - 2), (x + 15, y + 4)]
    )


def _park(pen: Pen, width: float, u: list[float]) -> None:
    _sheet(pen, width, rgb(138, 208, 244), rgb(222, 244, 242), 0, 100)
    pen.fill(_cloud_path(width * (0.2 + 0.6 * u[0]), 15), rgb(255, 255, 255), outline=False)
    pen.fill(
        smooth(
            [(-30, 92), (width * 0.25, 80), (width * 0.6, 90), (width + 30, 78), (width + 30, 150), (-30, 150)], 0.8
        ),
        rgb(124, 196, 96),
    )
    count = max(2, int(width / 60))
    for i in range(count):
        x, r = width * (i + 0.5) / count + (u[1] - 0.5) * 26 + (-18 if i % 2 == 0 else 18), 15 + 5 * ((i + u[2]) % 1)
        pen.fill(box(x - 2.5, 66, x + 2.5, 96, 1), rgb(132, 88, 52))
        pen.fill(
            smooth(
                [
                    (x - r, 62),
                    (x - r * 0.95, 46),
                    (x - r * 0.3, 36),
                    (x + r * 0.5, 37),
                    (x + r, 49),
                    (x + r * 0.9, 63),
                    (x, 69),
                ]
            ),
            rgb(56, 148, 78),
            (x - r, 36, x + r, 74),
        )
    pen.fill(
        smooth([(-30, 112), (width * 0.4, 104), (width + 30, 112), (width + 30, 150), (-30, 150)], 0.8),
        rgb(92, 172, 78),
    )


def _mountains(pen: Pen, width: float, u: list[float]) -> None:
    _sheet(pen, width, rgb(250, 178, 128), rgb(254, 232, 190), 0, 110)
    pen.fill(oval(width * (0.15 + 0.7 * u[0]), 30, 12, 12), rgb(255, 244, 206), outline=False)
    count = max(2, int(width / 52)) + 1
    for i in range(-1, count + 1):
        x, h = (i + u[1]) * width / (count - 1), 52 + 16 * ((i * 3 + u[2] * 4) % 2)
        top = 108 - h
        pen.fill(polygon([(x - 44, 112), (x, top), (x + 44, 112)]), rgb(122, 96, 146))
        pen.fill(
            polygon(
                [
                    (x - 10.5, top + 15),
                    (x, top),
                    (x + 10.5, top + 15),
                    (x + 4, top + 11),
                    (x, top + 17),
                    (x - 5, top + 12),
                ]
            ),
            rgb(252, 246, 250),
            outline=False,
        )
    pen.fill(
        smooth(
            [(-30, 100), (width * 0.3, 92), (width * 0.7, 100), (width + 30, 92), (width + 30, 150), (-30, 150)], 0.8
        ),
        rgb(82, 66, 112),
    )


def _room(pen: Pen, width: float, u: list[float]) -> None:
    wall = WALL[int(u[0] * len(WALL))]
    _sheet(pen, width, wall, darker(wall, 0.06), 0, 104)
    pen.fill(box(-4, 102, width + 4, 134), rgb(166, 116, 76))
    pen.line(arc(0, 102, width / 2, 102, width, 102), rgb(252, 246, 238), 2.4)
    x = width * (0.06 if u[1] < 0.5 else 0.94) + (14 if u[1] < 0.5 else -14)
    pen.fill(box(x - 16, 14, x + 16, 58), rgb(252, 250, 244))
    pen.fill(box(x - 13, 17, x - 1.2, 55), rgb(150, 212, 244), outline=False)
    pen.fill(box(x + 1.2, 17, x + 13, 55), rgb(150, 212, 244), outline=False)
    y = width - x
    pen.fill(box(y - 12, 24, y + 12, 50), rgb(120, 84, 60))
    pen.fill(box(y - 9, 27, y + 9, 47), rgb(252, 222, 140), outline=False)
    pen.fill(
        polygon([(y - 9, 47), (y - 3, 35), (y + 2, 42), (y + 5, 38), (y + 9, 47)]), rgb(86, 158, 120), outline=False
    )


def _snow(pen: Pen, width: float, u: list[float]) -> None:
    _sheet(pen, width, rgb(150, 184, 220), rgb(226, 238, 248), 0, 104)
    count = max(3, int(width / 40)) + 1
    for i in range(count):
        x, h = (i + u[0] - 0.3) * width / (count - 1.5), 34 + 14 * ((i * 2 + u[1] * 3) % 2)
        for k in range(3):
            y = 100 - h * (k * 0.3)
            pen.fill(
                polygon([(x - 15 + 3.5 * k, y), (x, y - h * 0.45), (x + 15 - 3.5 * k, y)]),
                rgb(72, 122, 124),
                outline=k == 2,
            )
        pen.fill(
            polygon([(x - 5, 100 - h * 0.82), (x, 100 - h * 1.05), (x + 5, 100 - h * 0.82)]),
            rgb(246, 250, 255),
            outline=False,
        )
    pen.fill(
        smooth(
            [(-30, 100), (width * 0.35, 93), (width * 0.7, 99), (width + 30, 93), (width + 30, 150), (-30, 150)], 0.8
        ),
        rgb(248, 251, 255),
    )
    flakes = skia.Path()
    for i in range(int(width / 5)):
        flakes.addCircle((i * 47 + u[2] * 60) % width, (i * 31 + u[3] * 80) % 112, 0.9 + 0.5 * (i % 3))
    pen.fill(flakes, alpha(rgb(255, 255, 255), 0.9), outline=False)


_PLACES = {
    "studio": _studio,
    "beach": _beach,
    "city": _city,
    "night city": _night_city,
    "park": _park,
    "mountains": _mountains,
    "room": _room,
    "snow": _snow,
}
