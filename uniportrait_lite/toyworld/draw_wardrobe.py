"""Drawing what people wear: shoulders with clothes, glasses, hats."""

from __future__ import annotations

import skia

from .head import Head
from .pen import BLACK, WHITE, Pen, alpha, arc, box, darker, lighter, mix, oval, polygon, rgb, smooth

COLOR = {
    "red": rgb(222, 48, 52),
    "orange": rgb(244, 134, 36),
    "yellow": rgb(248, 208, 54),
    "green": rgb(48, 152, 84),
    "blue": rgb(42, 98, 202),
    "purple": rgb(130, 68, 174),
    "pink": rgb(244, 136, 178),
    "white": rgb(244, 244, 246),
    "black": rgb(42, 42, 50),
}


def _accent(name: str) -> int:
    """A colour that stands off a garment of the named colour: for stripes, bands and ties."""
    return rgb(60, 62, 84) if name in ("white", "yellow") else WHITE


def draw_body(pen: Pen, head: Head) -> None:
    """Neck and clothed shoulders, in coordinates around the face's middle, which do not tilt with the head."""
    man = head.person.presentation == "man"
    half, neck, slope = (37.0, 10.8, 46.0) if man else (33.0, 8.6, 47.5)
    lean = head.tilt * 0.06
    kind, name = head.values["clothes"], head.values["clothes_color"]
    color = COLOR[name]
    deep = darker(color, 0.28) if name != "black" else lighter(color, 0.16)
    body = smooth(
        [
            (-neck - 4, 38),
            (-half + 9, slope - 2),
            (-half, slope + 7),
            (-half - 2.5, 84),
            (half + 2.5, 84),
            (half, slope + 7),
            (half - 9, slope - 2),
            (neck + 4, 38),
        ],
        0.8,
    )
    skin_neck = polygon(
        [(-neck + lean, 18), (neck + lean, 18), (neck, 36), (neck + 4, 43), (-neck - 4, 43), (-neck, 36)]
    )
    ramp = (0, 34, 0, 80)
    if kind == "hoodie":
        pen.fill(smooth([(-neck - 15, 43), (-neck - 8, 31), (0, 26), (neck + 8, 31), (neck + 15, 43), (0, 54)]), deep)
    if kind == "dress":
        pen.fill(body, head.skin, ramp)
        pen.fill(skin_neck, head.skin, outline=False)
        _neck_shadow(pen, head, neck, lean)
        gown = smooth(
            [
                (-half + 9, slope + 3),
                (-half + 12, slope + 2),
                (-14, 57),
                (0, 61),
                (14, 57),
                (half - 12, slope + 2),
                (half - 9, slope + 3),
                (half - 3, 86),
                (-half + 3, 86),
            ],
            0.5,
        )
        pen.fill(gown, color, ramp)
        pen.line(arc(-14, 59.5, 0, 66, 14, 59.5), deep, 1.6)
        beads = skia.Path()
        for i in range(-4, 5):
            beads.addCircle(i * 3.3, 47.5 - abs(i) ** 1.6 * 0.75 + 3, 1.25)
        pen.fill(beads, rgb(250, 246, 232), outline=False)
        return
    pen.fill(body, color, ramp)
    if kind == "striped shirt" and pen.flat is None:
        with pen.inside(body):
            for y in (46.5, 55.0, 63.5, 72.0):
                pen.line(arc(-half - 4, y + 3, 0, y + 5, half + 4, y + 3), _accent(name), 3.6)
    pen.fill(skin_neck, head.skin, outline=pen.style in ("comic", "sketch"))
    _neck_shadow(pen, head, neck, lean)
    scoop = smooth(
        [
            (-neck - 5, 37.5),
            (-neck - 1, 44),
            (0, 48.5),
            (neck + 1, 44),
            (neck + 5, 37.5),
            (neck, 36),
            (0, 34),
            (-neck, 36),
        ]
    )
    if kind in ("t-shirt", "striped shirt"):
        pen.fill(scoop, head.skin, outline=False)
        _neck_shadow(pen, head, neck, lean)
        pen.line(arc(-neck - 5, 38, 0, 59.5, neck + 5, 38), deep, 2.8)
        if kind == "t-shirt":
            for s in (-1, 1):
                pen.line(arc(s * (half - 8), 66, s * (half - 9), 60, s * (half - 5.5), 56), deep, 1.5)
    elif kind == "hoodie":
        for s in (-1, 1):
            pen.fill(
                smooth([(s * (neck + 3), 33), (s * (neck + 12), 39), (s * 9, 56), (0, 60), (0, 52), (s * 6.5, 46)]),
                mix(color, deep, 0.55),
            )
            pen.line(arc(s * 5, 53, s * 6, 60, s * 5, 68), _accent(name), 1.7)
    elif kind == "sweater":
        pen.fill(
            smooth([(-neck - 4, 33), (-neck - 5.5, 43), (0, 47), (neck + 5.5, 43), (neck + 4, 33), (0, 37.5)]), deep
        )
        for s in (-2, -1, 0, 1, 2):
            pen.line(arc(s * 5.2, 37.5, s * 5.4, 41, s * 5.6, 44.5), mix(deep, color, 0.7), 1.2)
        for y in (56, 62):
            zig = polygon([(x, y + (2.2 if i % 2 else -2.2)) for i, x in enumerate(range(-36, 37, 6))], close=False)
            with pen.inside(body):
                pen.line(zig, mix(color, _accent(name), 0.6), 1.8)
    elif kind == "suit":
        pen.fill(
            polygon([(-neck - 5, 37), (0, 68), (neck + 5, 37), (0, 44)]),
            rgb(250, 250, 252) if name != "white" else rgb(150, 190, 232),
        )
        tie = rgb(206, 36, 52) if name not in ("red", "orange", "pink") else rgb(44, 60, 132)
        pen.fill(polygon([(-3.2, 45.5), (3.2, 45.5), (2, 50), (4.4, 64), (0, 70), (-4.4, 64), (-2, 50)]), tie)
        for s in (-1, 1):
            pen.fill(
                polygon([(0, 46), (s * neck, 35), (s * (neck + 1), 41), (s * 5, 50)]),
                rgb(255, 255, 255) if name != "white" else rgb(178, 208, 240),
            )
            pen.fill(
                polygon(
                    [
                        (s * (neck + 4.5), 36),
                        (s * (neck + 11.5), 48),
                        (s * (neck + 8), 51),
                        (s * (neck + 9.5), 54.5),
                        (0, 76),
                        (0, 70),
                    ]
                ),
                mix(color, deep, 0.75),
            )


def _neck_shadow(pen: Pen, head: Head, neck: float, lean: float) -> None:
    """The shade of the chin on the neck."""
    if pen.flat is None:
        y = head.bottom
        shade = smooth([(-neck + lean, 18), (neck + lean, 18), (neck, y + 3), (lean, y + 8.5), (-neck, y + 3)], 0.6)
        pen.fill(shade, alpha(mix(head.skin, rgb(70, 16, 40), 0.5), 0.6), outline=False)


def draw_glasses(pen: Pen, head: Head) -> None:
    """Round or square frames, or dark lenses that hide the eyes."""
    kind = head.values["glasses"]
    if kind == "none":
        return
    frame = rgb(34, 30, 40) if kind != "round" else rgb(150, 92, 30)
    lenses = []
    for side in (-1, 1):
        x, y = head.eye(side)
        k = head.far(side)
        if kind == "round":
            lenses.append(oval(x, y + 0.6, 9.3 * k, 8.8))
        elif kind == "square":
            lenses.append(box(x - 9.2 * k, y - 6.6, x + 9.2 * k, y + 7.4, 2.0))
        else:
            lenses.append(
                smooth(
                    [
                        (x - 9.6 * k, y - 5.6),
                        (x, y - 6.6),
                        (x + 9.6 * k, y - 5.6),
                        (x + 8.8 * k, y + 4.0),
                        (x, y + 8.0),
                        (x - 8.8 * k, y + 4.0),
                    ],
                    0.8,
                )
            )
        ear = head.ear(side)
        pen.line(arc(x + side * 9 * k, y - 1.5, x + side * 11, y - 2, ear[0], ear[1] - 4.5), frame, 1.5)
    (lx, ly), (rx, ry) = head.eye(-1), head.eye(1)
    pen.line(
        arc(lx + 8.2 * head.far(-1), ly - 1.5, (lx + rx) / 2, ly - 4.2, rx - 8.2 * head.far(1), ry - 1.5), frame, 1.9
    )
    for lens, side in zip(lenses, (-1, 1), strict=True):
        if kind == "sunglasses":
            pen.fill(lens, rgb(24, 24, 32))
            x, y = head.eye(side)
            pen.line(arc(x - 5, y + 2.5, x - 3.4, y - 1.5, x - 0.6, y - 3.6), rgb(255, 255, 255, 110), 1.8)
        else:
            pen.fill(lens, rgb(255, 255, 255, 36), outline=False)
        pen.line(lens, frame, 1.9)


def draw_hat(pen: Pen, head: Head) -> None:
    """A hat on the head, over the hair."""
    kind, name = head.hat, head.values["hat_color"]
    if kind == "none":
        return
    color, w, s = COLOR[name], head.temple + 1.5, 2.5 * head.turn
    deep = darker(color, 0.3) if name != "black" else lighter(color, 0.2)
    look = -1 if head.turn < 0 else 1
    if kind == "cap":
        pen.fill(
            smooth(
                [
                    (s - w - 3, -16),
                    (s - w - 1, -32),
                    (s - w * 0.55, -43),
                    (s, -46),
                    (s + w * 0.55, -43),
                    (s + w + 1, -32),
                    (s + w + 3, -16),
                    (s, -21),
                ],
                0.9,
            ),
            color,
            (0, -46, 0, -8),
        )
        pen.line(arc(s + look * 1, -45.5, s + look * 9, -33, s + look * 5, -21), deep, 1.3)
        pen.fill(oval(s, -46, 2.6, 1.8), deep)
        pen.fill(
            smooth(
                [
                    (s - w * 0.9 + look * 4, -20.5),
                    (s + look * 4, -24),
                    (s + w * 0.9 + look * 4, -20.5),
                    (s + w * 0.8 + look * 14, -13.5),
                    (s + look * 13, -15),
                    (s - w * 0.8 + look * 4, -14.5),
                ],
                0.9,
            ),
            deep,
        )
    elif kind == "beanie":
        pen.fill(
            smooth(
                [
                    (s - w - 2, -18),
                    (s - w - 2, -34),
                    (s - w * 0.5, -47),
                    (s, -49.5),
                    (s + w * 0.5, -47),
                    (s + w + 2, -34),
                    (s + w + 2, -18),
                ],
                0.9,
            ),
            color,
            (0, -50, 0, -8),
        )
        with pen.inside(box(s - w - 4, -52, s + w + 4, -27)):
            for i in (-1.4, -0.5, 0.5, 1.4):
                pen.line(arc(s + i * w * 0.56, -26, s + i * w * 0.5, -40, s + i * 4, -48), alpha(deep, 0.8), 1.3)
        pen.fill(box(s - w - 4, -28.5, s + w + 4, -16.5, 5), deep, (0, -28, 0, -10))
        pen.fill(oval(s, -51, 6.2, 5.8), lighter(color, 0.45) if name != "white" else rgb(170, 186, 210))
    elif kind == "top hat":
        pen.fill(
            polygon([(s - 17, -26), (s - 18.5, -58), (s + 18.5, -58), (s + 17, -26)]), color, (s - 26, 0, s + 24, 0)
        )
        pen.fill(oval(s, -58, 18.5, 2.6), mix(color, deep, 0.4))
        pen.fill(
            polygon([(s - 17.2, -28), (s - 17.5, -35.5), (s + 17.5, -35.5), (s + 17.2, -28)]),
            rgb(214, 44, 60) if name not in ("red", "pink", "orange") else rgb(40, 40, 52),
        )
        pen.fill(
            smooth(
                [
                    (s - w - 11, -25.5),
                    (s - w, -22),
                    (s, -19),
                    (s + w, -22),
                    (s + w + 11, -25.5),
                    (s + w, -28),
                    (s, -27),
                    (s - w, -28),
                ]
            ),
            mix(color, deep, 0.3),
        )
    elif kind == "beret":
        pen.fill(
            smooth(
                [
                    (s - w + 1, -19),
                    (s - w - 9, -26),
                    (s - w - 5, -37),
                    (s - 6, -46),
                    (s + w * 0.6, -42),
                    (s + w + 3, -29),
                    (s + w, -19),
                    (s, -23.5),
                ]
            ),
            color,
            (s - 20, -44, s + 18, -12),
        )
        pen.line(arc(s - w + 2, -19.5, s, -26, s + w - 1, -19.5), deep, 3.0)
        pen.line(arc(s - 6, -45, s - 7, -49, s - 4, -50.5), deep, 2.4)
        pen.line(arc(s - w - 3, -31, s - w + 4, -38, s - 8, -41.5), alpha(WHITE, 0.35), 2.0)
    else:
        pen.line(arc(s - w + 0.5, -15, s, -31, s + w - 0.5, -15), rgb(66, 134, 66), 3.4)
        for i, t in enumerate((-1.0, -0.66, -0.33, 0.0, 0.33, 0.66, 1.0)):
            x, y = s + t * (w - 1), -23.6 + 8.2 * t * t
            petal = (
                color
                if i % 2 == 0
                else mix(color, WHITE if name not in ("white", "yellow") else rgb(250, 170, 190), 0.6)
            )
            r = 5.0 if i % 2 == 0 else 3.9
            flower = skia.Path()
            for dx, dy in ((0, -1), (0.95, -0.31), (0.59, 0.81), (-0.59, 0.81), (-0.95, -0.31)):
                flower.addCircle(x + dx * r * 0.52, y + dy * r * 0.52, r * 0.52)
            flower.setFillType(skia.PathFillType.kWinding)
            pen.fill(flower, petal, outline=False)
            pen.fill(oval(x, y, r * 0.34, r * 0.34), rgb(252, 200, 50) if name != "yellow" else BLACK, outline=False)
