"""Drawing a face: head, ears, eyes, brows, nose, mouth, beard, and what age and light do to them."""

from __future__ import annotations

import skia

from .head import Head
from .pen import BLACK, WHITE, Pen, alpha, arc, box, darker, lighter, mix, oval, rgb, smooth

IRIS = {
    "brown": rgb(110, 62, 28),
    "blue": rgb(44, 134, 232),
    "green": rgb(48, 168, 84),
    "amber": rgb(232, 156, 20),
    "grey": rgb(136, 150, 166),
    "violet": rgb(150, 80, 220),
}


def draw_ears(pen: Pen, head: Head) -> None:
    """Both ears; drawn before the face, which covers their inner halves."""
    for side in (-1, 1):
        x, y = head.ear(side)
        pen.fill(oval(x, y, head.ear_rx, head.ear_ry), mix(head.skin, head.skin_shade, 0.25))
        pen.line(
            arc(x - side * 1.0, y - head.ear_ry * 0.55, x + side * 2.2, y - 1, x - side * 0.4, y + head.ear_ry * 0.4),
            head.skin_shade,
            1.1,
        )


def draw_face(pen: Pen, head: Head) -> None:
    """The skin: outline, blush, freckles, mole, stubble or beard, side light, wrinkles."""
    person = head.person
    pen.fill(head.outline, head.skin, ramp=(0, -34, 0, 46))
    if pen.flat is not None:
        return
    with pen.inside(head.outline):
        if pen.soft:
            for side in (-1, 1):
                pen.glow(
                    head.x(side * 14.5, 12), 11, 8, alpha(rgb(240, 88, 92), 0.28 if person.skin != "dark" else 0.16)
                )
            pen.glow(head.x(0, 14), -18, 14, alpha(lighter(head.skin, 0.5), 0.4))
        if person.freckles:
            _freckles(pen, head)
        _beard_area(pen, head)
        if head.light != "front":
            _side_shadow(pen, head)
        if head.values["age"] == "old":
            _wrinkles(pen, head)
    if person.mole != "none":
        x, y = {"left cheek": (-13.5, 13.5), "right cheek": (13.5, 13.5), "chin": (4.8, head.bottom - 5.0)}[person.mole]
        pen.fill(oval(head.x(x, 15), y, 1.6, 1.6), rgb(66, 30, 24), outline=False)


def _side_shadow(pen: Pen, head: Head) -> None:
    """Light from one side leaves the other in shade; a sketch hatches it."""
    side = 1 if head.light == "left" else -1
    x = head.x(side * 7.5, 12)
    shade = smooth(
        [
            (x, -36),
            (x + side * 3, -14),
            (x - side * 1.5, 4),
            (x + side * 2.5, 16),
            (x - side * 3, 36),
            (side * 40, 36),
            (side * 40, -36),
        ]
    )
    if pen.style == "sketch":
        hatch = skia.Path()
        for i in range(-8, 14):
            hatch.moveTo(side * 5, i * 5.0)
            hatch.lineTo(side * 34, i * 5.0 - 16)
        with pen.inside(shade):
            pen.stroke(hatch, 0.8, rgb(90, 86, 94, 84))
        return
    strength = {"noir": 0.42, "comic": 0.3}.get(pen.style, 0.26)
    pen.fill(shade, alpha(mix(darker(head.skin, 0.75), rgb(70, 20, 60), 0.4), strength), outline=False)


def _freckles(pen: Pen, head: Head) -> None:
    path = skia.Path()
    for x, y in (
        (-16, 7.5),
        (-12.5, 9.5),
        (-9, 7.8),
        (-14.5, 11.5),
        (-10.5, 12.2),
        (-6.5, 10),
        (-2, 5.5),
        (2.4, 6),
        (6.5, 10),
        (9, 7.8),
        (12.5, 9.5),
        (16, 7.5),
        (10.5, 12.2),
        (14.5, 11.5),
    ):
        path.addCircle(head.x(x, 15), y, 0.85)
    pen.fill(path, mix(head.skin, rgb(150, 62, 20), 0.62), outline=False)


def _wrinkles(pen: Pen, head: Head) -> None:
    ink, x = alpha(head.skin_line, 0.75), head.x
    forehead = -15.5 - 1.4 * head.person.brow_height
    for dy in (0.0, -3.6):
        pen.line(arc(x(-9, 14), forehead + dy, x(0, 17), forehead + dy - 2.4, x(9, 14), forehead + dy), ink, 1.0)
    for side in (-1, 1):
        ex, ey = head.eye(side)
        pen.line(arc(ex - side * 3.5, ey + 7.6, ex + side * 1, ey + 9.2, ex + side * 5.4, ey + 6.6), ink, 1.0)
        out = ex + side * (head.eye_rx * head.far(side) + 1.2)
        for dy in (-2.4, 0.6):
            pen.line(arc(out, ey + dy * 0.6, out + side * 1.5, ey + dy, out + side * 3.4, ey + dy * 1.8), ink, 0.9)
        pen.line(arc(x(side * 6.5, 18), 11.5, x(side * 11.5, 16), 14.5, x(side * 11.8, 15), 21.5), ink, 1.2)


def _beard_area(pen: Pen, head: Head) -> None:
    """Stubble and the full beard, which follow the jaw; the mouth is drawn over them later."""
    beard = head.person.beard
    if beard not in ("stubble", "full"):
        return
    x, m = head.x, head.mouth_y
    top = 4.5 if beard == "full" else 7.0
    area = smooth(
        [
            (-40, top - 4),
            (-head.cheek * 0.86 + 2 * head.turn, top),
            (x(-head.jaw * 0.74, 12), m - 7.5),
            (x(-7.5, 17), m - 7.2),
            (x(0, 18), m - 5.4),
            (x(7.5, 17), m - 7.2),
            (x(head.jaw * 0.74, 12), m - 7.5),
            (head.cheek * 0.86 + 2 * head.turn, top),
            (40, top - 4),
            (40, 44),
            (-40, 44),
        ],
        0.8,
    )
    if beard == "stubble":
        pen.fill(area, alpha(mix(head.beard_color, head.skin_line, 0.4), 0.36), outline=False)
    else:
        pen.fill(area, head.beard_color, outline=pen.style in ("comic", "sketch"))


def draw_beard_tip(pen: Pen, head: Head) -> None:
    """What grows beyond the chin; drawn before the face so that it only shows below it."""
    if head.person.beard == "full":
        w, b = head.jaw, head.bottom
        shift = 1.6 * head.turn
        pen.fill(
            smooth(
                [
                    (-w * 0.99, b - 17),
                    (-w * 0.9 + shift, b - 4),
                    (-w * 0.45 + shift, b + 4.5),
                    (shift, b + 6.5),
                    (w * 0.45 + shift, b + 4.5),
                    (w * 0.9 + shift, b - 4),
                    (w * 0.99, b - 17),
                    (0, b - 20),
                ]
            ),
            head.beard_color,
        )


def draw_eyes(pen: Pen, head: Head) -> None:
    """Both eyes with lids and lashes, then the brows."""
    person, values = head.person, head.values
    lashes = person.presentation == "woman"
    ink = rgb(36, 22, 26)
    for side in (-1, 1):
        x, y = head.eye(side)
        rx, ry = head.eye_rx * head.far(side), head.eye_ry * head.eye_open
        outer, slant = side, {"round": 0.0, "almond": 1.2, "narrow": 0.9}[person.eye_shape]
        a, b = (x - outer * rx, y + slant * 0.4), (x + outer * rx, y - slant)
        fat = 0.62 if person.eye_shape == "round" else 0.5
        white = skia.Path()
        white.moveTo(*a)
        white.cubicTo(x - outer * rx * fat * 1.1, y - ry * 1.34, x + outer * rx * fat, y - ry * 1.36, *b)
        white.cubicTo(x + outer * rx * fat, y + ry * 1.3, x - outer * rx * fat * 1.1, y + ry * 1.3, *a)
        pen.fill(white, rgb(252, 252, 255), outline=False)
        with pen.inside(white):
            dx, dy = values["gaze"]
            ix, iy, r = x + dx * rx * 0.42, y + dy * ry * 0.34, 4.4 * (1 + 0.15 * person.eye_size)
            iris = IRIS[person.eye_color]
            pen.fill(oval(ix, iy, r * (0.5 + 0.5 * head.far(side)), r), darker(iris, 0.38), outline=False)
            pen.fill(oval(ix, iy + 0.3, r * 0.8 * (0.5 + 0.5 * head.far(side)), r * 0.8), iris, outline=False)
            pen.fill(oval(ix, iy, r * 0.45, r * 0.45), rgb(14, 10, 16), outline=False)
            pen.fill(oval(ix - r * 0.34, iy - r * 0.36, r * 0.25, r * 0.25), WHITE, outline=False)
            if ry > 3:
                pen.line(arc(a[0], a[1] - 0.4, x, y - ry * 1.7, b[0], b[1] - 0.4), alpha(rgb(40, 30, 60), 0.25), 2.0)
        lid = skia.Path()
        lid.moveTo(*a)
        lid.cubicTo(x - outer * rx * fat * 1.1, y - ry * 1.34, x + outer * rx * fat, y - ry * 1.36, *b)
        if lashes:
            lid.lineTo(b[0] + outer * 2.2 * head.far(side), b[1] - 2.0)
        pen.line(lid, ink, 1.9 if lashes else 1.4)
        pen.line(arc(b[0], b[1], x, y + ry * 1.95, *a), alpha(head.skin_line, 0.8), 0.8)
        if person.eye_shape != "narrow":
            pen.line(
                arc(
                    x - outer * rx * 0.8,
                    y - ry * 0.9 - 2.0,
                    x,
                    y - ry * 1.3 - 3.0,
                    x + outer * rx * 0.95,
                    y - ry * 0.8 - 2.0,
                ),
                alpha(head.skin_line, 0.45),
                0.9,
            )
    _brows(pen, head)


def _brows(pen: Pen, head: Head) -> None:
    kind = head.person.brows
    base = -10.2 - 1.9 * head.person.brow_height
    inner_dy, outer_dy = head.brow_shift
    width, bend, rise = {
        "thin": (1.7, 2.2, 0.2),
        "thick": (4.4, 1.8, 0.4),
        "arched": (2.7, 6.4, 0.8),
        "straight": (3.0, 0.0, -0.2),
    }[kind]
    for side in (-1, 1):
        mid = head.eye_x
        x0, x1 = head.x(side * (mid - 6.4), 17), head.x(side * (mid + 7.2), 12)
        xm = x0 + (x1 - x0) * 0.55
        pen.line(
            arc(x0, base + inner_dy + rise, xm, base + (inner_dy + outer_dy) / 2 - bend, x1, base + outer_dy + rise),
            head.brow_color,
            width,
        )


def draw_nose(pen: Pen, head: Head) -> None:
    """One of four noses; its size is the person's."""
    k, kind = 1.08 + 0.3 * head.person.nose_size, head.person.nose
    x, y = head.nose_tip()
    bridge, side = head.x(0, 15), -1 if head.turn < 0 else 1
    shade, ink = head.skin_shade, mix(head.skin, rgb(56, 14, 18), 0.58)
    if pen.soft:
        pen.glow(x, y - 1, 4.5 * k, alpha(lighter(head.skin, 0.6), 0.6))
    if kind == "small":
        pen.line(arc(x - 3.0 * k, y - 0.6, x, y + 3.4 * k, x + 3.0 * k, y - 0.6), ink, 1.6)
    elif kind == "long":
        nose = smooth(
            [
                (bridge + side * 1.4, -3),
                (x + side * 3.4 * k, y - 1.5),
                (x, y + 1.6),
                (x - side * 1.0, y - 2),
                (bridge + side * 0.2, -3),
            ],
            0.7,
        )
        pen.fill(nose, alpha(shade, 0.85), outline=False)
        pen.line(arc(bridge + side * 1.8, -2, x + side * 2.4, y - 6, x + side * 3.6 * k, y - 0.6), ink, 1.4)
        pen.line(arc(x + side * 3.6 * k, y - 0.6, x + side * 1.5, y + 3.4, x - side * 3.2 * k, y + 0.4), ink, 1.6)
    elif kind == "wide":
        pen.fill(oval(x, y, 6.4 * k, 3.5 * k), alpha(shade, 0.85), outline=False)
        pen.fill(oval(x, y - 1.2, 3.6 * k, 2.8 * k), lighter(head.skin, 0.12), outline=False)
        for s in (-1, 1):
            pen.fill(oval(x + s * 2.7 * k, y + 1.6 * k, 1.4, 0.95), ink, outline=False)
            pen.line(
                arc(x + s * 5.2 * k, y - 2.6 * k, x + s * 7.8 * k, y + 0.6, x + s * 4.6 * k, y + 2.6 * k), ink, 1.3
            )
    else:
        nose = skia.Path.Polygon([(bridge, -3), (x + side * 5.2 * k, y + 0.6), (x - side * 1.0, y + 2.4)], True)
        pen.fill(nose, alpha(shade, 0.9), outline=False)
        pen.line(
            skia.Path.Polygon(
                [(bridge + side * 0.6, -2), (x + side * 5.4 * k, y + 0.6), (x - side * 1.6 * k, y + 2.6)], False
            ),
            ink,
            1.4,
        )


def draw_mouth(pen: Pen, head: Head) -> None:
    """Lips of one of three kinds, bent and opened by the expression; goatee and moustache with them."""
    (x0, y0), (x1, y1), (xm, ym) = head.mouth_corner(-1), head.mouth_corner(1), head.smile_line()
    upper, lower = {"thin": (1.0, 1.2), "full": (3.0, 3.9), "wide": (1.9, 2.3)}[head.person.lips]
    if head.person.beard == "goatee":
        b = head.bottom
        pen.fill(
            smooth(
                [
                    (xm - 6.5, b - 6.5),
                    (xm - 5.4, b + 0.5),
                    (xm, b + 5.0),
                    (xm + 5.4, b + 0.5),
                    (xm + 6.5, b - 6.5),
                    (xm, b - 4.6),
                ]
            ),
            head.beard_color,
        )
    bottom = ym + head.open * 1.5
    lips = skia.Path()
    lips.moveTo(x0, y0)
    lips.cubicTo(
        xm + (x0 - xm) * 0.55,
        2 * ym - y0 - upper * 0.6 - (ym - y0) * 0.6,
        xm + (x0 - xm) * 0.22,
        ym - upper * 1.5,
        xm,
        ym - upper * 0.8,
    )
    lips.cubicTo(
        xm + (x1 - xm) * 0.22,
        ym - upper * 1.5,
        xm + (x1 - xm) * 0.55,
        2 * ym - y1 - upper * 0.6 - (ym - y1) * 0.6,
        x1,
        y1,
    )
    depth = bottom + lower
    reach = y0 + (depth - y0) * 1.33
    lips.cubicTo(xm + (x1 - xm) * 0.6, reach, xm + (x0 - xm) * 0.6, reach, x0, y0)
    pen.fill(lips, head.lip_color, outline=pen.style == "comic" and head.open > 0)
    middle, floor = 2 * ym - y0, y0 + (bottom - y0) * 1.33
    if head.open:
        inner = skia.Path()
        inner.moveTo(x0, y0)
        inner.quadTo(xm, middle, x1, y1)
        inner.cubicTo(xm + (x1 - xm) * 0.62, floor, xm + (x0 - xm) * 0.62, floor, x0, y0)
        teeth, throat = rgb(255, 254, 250), rgb(86, 14, 28)
        smile = head.values["expression"] == "smile"
        pen.fill(inner, teeth if smile else throat, outline=False)
        if not smile:
            with pen.inside(inner):
                pen.fill(oval(xm, bottom + 0.8, (x1 - x0) * 0.28, 3.4), rgb(232, 92, 100), outline=False)
                if head.values["expression"] == "laugh":
                    pen.fill(box(x0, y0 - 1, x1, ym + 2.6, 1), teeth, outline=False)
    pen.line(arc(x0, y0, xm, middle, x1, y1), mix(head.lip_color, BLACK, 0.62), 1.5)
    for x, y, s in ((x0, y0, -1), (x1, y1, 1)):
        pen.line(
            arc(x, y, x + s * 0.8, y - head.middle * 0.2, x + s * 1.2, y - head.middle * 0.35), head.skin_line, 1.2
        )
    if head.person.lips == "full":
        pen.line(
            arc(xm - 2.4, bottom + lower * 0.6, xm, bottom + lower * 0.8, xm + 2.4, bottom + lower * 0.6),
            alpha(lighter(head.lip_color, 0.6), 0.8),
            1.1,
        )
    if head.person.beard in ("moustache", "full", "goatee"):
        big = 1.0 if head.person.beard == "moustache" else 0.72
        w, top = max(9.0, head.mouth * 1.1), min(head.nose_y + 2.2, ym - upper - 3)
        left, right = head.x(-w * (0.6 + 0.5 * big), 15), head.x(w * (0.6 + 0.5 * big), 15)
        low = ym - upper * 0.7
        pen.fill(
            smooth(
                [
                    (xm, top + 0.8),
                    (xm + (right - xm) * 0.5, top - 0.2),
                    (right, low + 2.4 * big),
                    (xm + (right - xm) * 0.45, low + 0.4),
                    (xm, low - 0.8),
                    (xm + (left - xm) * 0.45, low + 0.4),
                    (left, low + 2.4 * big),
                    (xm + (left - xm) * 0.5, top - 0.2),
                ],
                0.8,
            ),
            head.beard_color,
        )
