"""Drawing hair: twelve styles with silhouettes of their own, each a part behind the head and a part before it."""

from __future__ import annotations

import math
from functools import lru_cache

import skia

from .head import Head
from .pen import Pen, alpha, arc, darker, lighter, mix, oval, polygon, rgb, smooth

Points = list[tuple[float, float]]


def _cap(w: float, out: float, top: float, ear: float, line: Points) -> skia.Path:
    """Hair on the skull: the outside from ear to ear over the top, then the hairline back (right to left)."""
    return smooth(
        [
            (-w - out * 0.7, ear),
            (-w - out, -11),
            (-w * 0.82 - out, -25),
            (-w * 0.42, top + 1.5),
            (0, top),
            (w * 0.42, top + 1.5),
            (w * 0.82 + out, -25),
            (w + out, -11),
            (w + out * 0.7, ear),
            *line,
        ],
        0.9,
    )


@lru_cache(maxsize=64)
def _cloud(radius: float, bumps: int, size: float) -> tuple[tuple[float, float], ...]:
    """Points of a bumpy circle around (0, 0)."""
    points = []
    for i in range(bumps * 2):
        angle, r = math.pi * i / bumps, radius if i % 2 else radius - size
        points.append((r * math.sin(angle), -r * math.cos(angle)))
    return tuple(points)


def _strands(pen: Pen, head: Head, lines: list[tuple]) -> None:
    """A few lighter and darker strands that give the hair its sheen."""
    for i, line in enumerate(lines):
        color = head.highlight() if i % 2 == 0 else darker(head.hair, 0.3)
        pen.line(arc(*line), alpha(color, 0.8), 1.6 if i % 2 == 0 else 1.1)


def draw_hair_back(pen: Pen, head: Head) -> None:
    """What hangs behind head and neck."""
    w, style, color = head.w, head.person.hair_style, darker(head.hair, 0.24)
    s, flip = -2.0 * head.turn, 1
    ramp = (0, -36, 0, 54)
    if style == "bob":
        pen.fill(
            smooth(
                [
                    (s - w - 8, -12),
                    (s - w + 2, -34),
                    (s, -41),
                    (s + w - 2, -34),
                    (s + w + 8, -12),
                    (s + w + 10.5, 14),
                    (s + w + 4, 28),
                    (s, 31),
                    (s - w - 4, 28),
                    (s - w - 10.5, 14),
                ]
            ),
            color,
            ramp,
        )
    elif style == "straight":
        pen.fill(
            smooth(
                [
                    (s - w - 7, -8),
                    (s - w + 2, -33),
                    (s, -40),
                    (s + w - 2, -33),
                    (s + w + 7, -8),
                    (s + w + 9, 36),
                    (s + w + 8, 70),
                    (s - w - 8, 70),
                    (s - w - 9, 36),
                ],
                0.8,
            ),
            color,
            ramp,
        )
    elif style == "wavy":
        pen.fill(smooth(_waves(w, s)), color, ramp)
    elif style == "afro":
        top = -8 if not head.capped else -2
        pen.fill(
            smooth(
                [
                    (s + x * (w + 18.5) / 40, top + y * (0.95 if not head.capped else 0.78))
                    for x, y in _cloud(40, 15, 3.6)
                ]
            ),
            color,
            ramp,
        )
    elif style == "bun":
        y = -43 if not head.capped else 24
        x = s * 1.5 if not head.capped else s + w * 0.75
        pen.fill(oval(x, y, 12.5, 11.5), head.hair, (x - 8, y - 12, x + 8, y + 12))
        pen.line(arc(x - 7, y + 2, x - 2, y - 9, x + 7, y - 3), alpha(head.highlight(), 0.8), 1.8)
        pen.line(arc(x - 8, y + 6, x + 3, y + 9, x + 9, y), alpha(darker(head.hair, 0.4), 0.7), 1.2)
    elif style == "ponytail":
        x = s + w - 5
        pen.fill(
            smooth(
                [
                    (x, -26),
                    (x + 11, -32),
                    (x + 22, -20),
                    (x + 24, 4),
                    (x + 17, 34),
                    (x + 12, 43),
                    (x + 10, 24),
                    (x + 11, 2),
                    (x + 6, -12),
                ]
            ),
            head.hair,
            (x, -30, x + 22, 34),
        )
        pen.line(arc(x + 12, -26, x + 22, -6, x + 15, 28), alpha(head.highlight(), 0.8), 1.8)
        pen.line(arc(x + 9, -20, x + 17, -2, x + 13, 24), alpha(darker(head.hair, 0.4), 0.7), 1.2)
    elif style == "pigtails":
        for flip in (-1, 1):
            x = s + flip * (w + 1)
            pen.fill(
                smooth(
                    [
                        (x, -10),
                        (x + flip * 9, -14),
                        (x + flip * 18, 0),
                        (x + flip * 19, 20),
                        (x + flip * 13, 38),
                        (x + flip * 8, 24),
                        (x + flip * 5, 6),
                    ]
                ),
                head.hair,
                (x, -14, x + flip * 10, 40),
            )
            pen.line(arc(x + flip * 8, -8, x + flip * 16, 6, x + flip * 13, 28), alpha(head.highlight(), 0.8), 1.7)
            pen.fill(
                oval(x + flip * 3.5, -8.5, 3.6, 4.6),
                rgb(238, 70, 96) if head.person.hair_color != "red" else rgb(60, 150, 160),
            )


def _waves(w: float, s: float) -> Points:
    right = [
        (w + 5, -22),
        (w + 10.5, -10),
        (w + 8.5, 2),
        (w + 15, 13),
        (w + 10.5, 25),
        (w + 17, 37),
        (w + 11, 50),
        (w + 15, 66),
    ]
    return [(s, -41), *((s + x, y) for x, y in right), *((s - x, y) for x, y in reversed(right))]


def draw_hair_side(pen: Pen, head: Head) -> None:
    """Locks that fall over the shoulders, beside the face; drawn before the head."""
    style, w, s = head.person.hair_style, head.w, -2.0 * head.turn
    if style not in ("straight", "wavy"):
        return
    for side in (-1, 1):
        if style == "straight":
            lock = [
                (s + side * (w + 7), -6),
                (s + side * (w + 9), 34),
                (s + side * (w + 7), 66),
                (s + side * (w - 5), 66),
                (s + side * (w - 7), 30),
                (s + side * (w - 4), 0),
            ]
        else:
            lock = [
                (s + side * x, y)
                for x, y in (
                    (w + 9, -6),
                    (w + 8.5, 2),
                    (w + 15, 13),
                    (w + 10.5, 25),
                    (w + 17, 37),
                    (w + 11, 50),
                    (w + 9, 62),
                    (w - 2, 58),
                    (w - 6, 44),
                    (w - 1, 34),
                    (w - 7, 22),
                    (w - 4, 4),
                )
            ]
        pen.fill(smooth(lock), mix(head.hair, darker(head.hair, 0.24), 0.5), (0, -20, 0, 62))
        for dx, tint in ((1.5, head.highlight()), (-3.0, darker(head.hair, 0.35))):
            x = s + side * (w + dx)
            bend = 5 if style == "wavy" else 0
            path = skia.Path()
            path.moveTo(x + side * 3, 2)
            path.cubicTo(x + side * (4 + bend), 16, x - side * bend, 30, x + side * (2 + bend * 0.6), 50)
            pen.line(path, alpha(tint, 0.7), 1.5)


def draw_hair_front(pen: Pen, head: Head) -> None:
    """What lies over the forehead and on the skull; drawn after the face."""
    style, w, color = head.person.hair_style, max(head.temple, head.cheek * 0.97), head.hair
    f = head.x(0, 10)  # the hairline follows the turn
    ramp = (0, -42, 0, 8)
    if style == "bald":
        if not head.capped:
            pen.line(arc(f - 12, -19, f - 9, -26, f - 1, -27), alpha(rgb(255, 255, 255), 0.55), 2.2)
        return
    if style == "buzz":
        line = [
            (w - 1.6, -5),
            (w - 4.5, -12),
            (f * 0.6 + w * 0.62, -19.0),
            (f, -20.5),
            (f * 0.6 - w * 0.62, -19.0),
            (-w + 4.5, -12),
            (-w + 1.6, -5),
        ]
        pen.fill(_cap(w, 0.9, -32.5, -3, line), mix(color, head.skin, 0.22), ramp)
        if pen.flat is None:
            dots = skia.Path()
            for i in range(14):
                dots.addCircle(-w * 0.7 + i * w * 0.108, -24.5 + (i % 3) * 2.2 - (i % 2) * 3, 0.7)
            pen.fill(dots, alpha(darker(color, 0.35), 0.55), outline=False)
    elif style == "short":
        line = [
            (w - 1.0, 3),
            (w - 3.6, -7),
            (w * 0.72 + f * 0.5, -15),
            (f + w * 0.2, -18.5),
            (f - w * 0.35, -15.2),
            (f * 0.6 - w * 0.72, -13),
            (-w + 3.6, -7),
            (-w + 1.0, 3),
        ]
        pen.fill(_cap(w, 2.6, -40, 2, line), color, ramp)
        _strands(
            pen,
            head,
            [
                (f - 15, -21, f - 6, -33, f + 12, -33),
                (f - 12, -18, f - 2, -27, f + 14, -25),
                (f - 2, -20, f + 8, -24, f + 17, -19),
            ],
        )
    elif style == "spiky":
        tips: Points = [(-w - 2, 1)]
        if head.capped:
            tips += [
                (-w - 8, -9),
                (-w - 2.4, -11),
                (-w - 8, -20),
                (-w - 1, -22),
                (0, -27),
                (w + 1, -22),
                (w + 8, -20),
                (w + 2.4, -11),
                (w + 8, -9),
            ]
        else:
            tips += [
                (-w - 9, -13),
                (-w - 1, -15),
                (-w - 7, -29),
                (-w * 0.62, -27),
                (-w * 0.66, -45),
                (-w * 0.24, -32),
                (1, -50),
                (w * 0.3, -32),
                (w * 0.74, -44),
                (w * 0.68, -27),
                (w + 8, -28),
                (w + 1, -15),
                (w + 9, -12),
            ]
        tips += [
            (w + 2, 1),
            (w - 2.5, -3),
            (w - 4, -13),
            (f + w * 0.55, -19),
            (f + w * 0.36, -13.5),
            (f + w * 0.12, -20),
            (f - w * 0.1, -13),
            (f - w * 0.34, -20),
            (f - w * 0.56, -14),
            (f * 0.5 - w * 0.7, -18),
            (-w + 4, -12),
            (-w + 2.5, -3),
        ]
        pen.fill(polygon(tips), color, ramp)
        _strands(
            pen,
            head,
            [
                (f - 9, -22, f - 10, -28, f - 12, -35),
                (f + 8, -22, f + 6, -30, f + 12, -36),
                (f, -22, f - 1, -32, f + 1, -40),
            ],
        )
    elif style == "parted":
        p = f - w * 0.3
        line = [
            (w - 1.5, 12),
            (w - 4.5, -2),
            (w * 0.62 + f * 0.5, -13.5),
            (p + w * 0.5, -19.5),
            (p, -27),
            (p - w * 0.3, -18),
            (-w * 0.76, -10),
            (-w + 3.5, -1),
            (-w + 1.5, 12),
        ]
        pen.fill(_cap(w, 5.6, -41, 11, line), color, ramp)
        pen.line(arc(p, -26, p - 0.5, -34, p - 3, -39.5), darker(color, 0.45), 1.5)
        _strands(
            pen,
            head,
            [
                (p + 3, -30, f + 14, -30, w + 1, -6),
                (p + 2, -27, f + 12, -24, w - 1, -2),
                (p - 4, -31, -w * 0.8, -26, -w - 1, -6),
            ],
        )
    elif style == "bob":
        line = [
            (w - 2.5, 25),
            (w - 3.2, 4),
            (w - 3.0, -8),
            (w * 0.78, -13),
            (f + w * 0.3, -13.5),
            (f - w * 0.3, -13.5),
            (-w * 0.78, -13),
            (-w + 3.0, -8),
            (-w + 3.2, 4),
            (-w + 2.5, 25),
        ]
        pen.fill(_cap(w, 8.0, -42, 26, line), color, ramp=(0, -42, 0, 34))
        _strands(
            pen,
            head,
            [
                (-w - 2, -20, -6, -36, w - 2, -24),
                (f - 8, -15, f - 7, -24, f - 3, -32),
                (f + 8, -15, f + 8, -24, f + 4, -31),
            ],
        )
    elif style == "straight":
        line = [
            (w - 0.5, 26),
            (w - 3.8, 0),
            (w * 0.72 + f * 0.4, -13),
            (f + w * 0.32, -20),
            (f, -28),
            (f - w * 0.32, -20),
            (f * 0.4 - w * 0.72, -13),
            (-w + 3.8, 0),
            (-w + 0.5, 26),
        ]
        pen.fill(_cap(w, 6.0, -40, 28, line), color, ramp=(0, -42, 0, 44))
        pen.line(arc(f, -27, f - 0.4, -34, f - 1, -38.5), darker(color, 0.45), 1.5)
        _strands(
            pen,
            head,
            [
                (f + 4, -32, w + 1, -28, w + 1.5, 6),
                (f + 3, -28, w - 3, -24, w - 1, 0),
                (f - 4, -32, -w - 1, -28, -w - 1.5, 6),
                (f - 3, -28, -w + 3, -24, -w + 1, 0),
            ],
        )
    elif style == "wavy":
        p = f + w * 0.34
        line = [
            (w - 0.5, 22),
            (w - 4.5, 4),
            (w * 0.8, -10),
            (p + w * 0.14, -20),
            (p, -26),
            (p - w * 0.4, -17.5),
            (f - w * 0.62, -11),
            (-w + 5.4, 0),
            (-w + 5.0, 10),
            (-w + 0.5, 22),
        ]
        pen.fill(_cap(w, 7.6, -42, 22, line), color, ramp=(0, -42, 0, 44))
        _strands(
            pen,
            head,
            [
                (p - 2, -31, -w * 0.6, -32, -w - 2, -2),
                (p - 2, -27, -w * 0.5, -25, -w + 2, 0),
                (p + 3, -33, w + 3, -26, w + 2, 0),
            ],
        )
    elif style == "afro":
        line = [
            (w + 2, 4),
            (w - 3.5, -6),
            (w * 0.74 + f * 0.4, -15),
            (f + w * 0.3, -19.5),
            (f - w * 0.3, -19.5),
            (f * 0.4 - w * 0.74, -15),
            (-w + 3.5, -6),
            (-w - 2, 4),
        ]
        pen.fill(_cap(w, 5.0, -36, 2, line), mix(color, darker(color, 0.24), 0.5), outline=False)
        for x, y in ((-22, -28), (-8, -38), (8, -30), (21, -33), (30, -16), (-31, -14), (-17, -20 - 14), (16, -41)):
            if not head.capped or abs(x) > 24:
                pen.line(arc(x - 3, y, x, y - 4, x + 3, y), alpha(head.highlight(), 0.6), 1.5)
    else:  # pulled back: bun, ponytail, pigtails
        part = {"bun": f, "ponytail": f - w * 0.4, "pigtails": f}[style]
        line = [
            (w - 0.8, -2),
            (w - 4.5, -10),
            (w * 0.62 + f * 0.6, -17.5),
            (part + w * 0.22, -21),
            (part, -23.5 if style == "pigtails" else -20.5),
            (part - w * 0.22, -21),
            (f * 0.6 - w * 0.62, -17.5),
            (-w + 4.5, -10),
            (-w + 0.8, -2),
        ]
        pen.fill(_cap(w, 1.8, -37, -3, line), color, ramp)
        if style == "pigtails":
            pen.line(arc(f, -23, f, -30, f, -36), lighter(head.skin, 0.05), 1.3)
            _strands(
                pen,
                head,
                [
                    (f + 3, -30, w - 4, -26, w - 1, -11),
                    (f + 2, -26, w - 8, -22, w - 3, -12),
                    (f - 3, -30, -w + 4, -26, -w + 1, -11),
                ],
            )
        elif style == "ponytail":
            _strands(
                pen,
                head,
                [
                    (-w + 3, -13, f - 6, -34, w - 4, -27),
                    (-w + 9, -18, f, -29, w - 4, -23),
                    (f + 6, -21, f + 12, -24, w - 4, -20),
                ],
            )
            pen.fill(
                oval(w - 3.5 - 2 * head.turn, -28.5, 3.2, 4.2),
                rgb(250, 196, 60) if head.person.hair_color != "blond" else rgb(214, 70, 110),
            )
        else:
            _strands(
                pen,
                head,
                [
                    (-w + 3, -12, -w * 0.5, -28, -2, -35),
                    (-w * 0.5, -19, -w * 0.3, -27, -1, -34),
                    (w - 3, -12, w * 0.5, -28, 2, -35),
                    (w * 0.5, -19, w * 0.3, -27, 1, -34),
                ],
            )
