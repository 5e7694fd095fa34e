"""The geometry of one head in one picture: where everything is, before anything is drawn.

Local coordinates are pixels of the 128-pixel canvas around the middle of the face: x to the right, y down, the chin
at about +30, the top of the forehead at -30. A turn moves what lies in front of the skull's axis by its depth.
"""

from __future__ import annotations

import math

import numpy as np
import skia

from .pen import Color, darker, lighter, mix, rgb, smooth
from .people import Person

SKIN = {
    "pale": rgb(255, 229, 214),
    "fair": rgb(247, 202, 166),
    "tan": rgb(222, 164, 112),
    "brown": rgb(158, 102, 66),
    "dark": rgb(98, 62, 46),
}
HAIR = {
    "black": rgb(36, 32, 40),
    "brown": rgb(108, 66, 40),
    "blond": rgb(240, 200, 98),
    "red": rgb(198, 82, 32),
    "grey": rgb(146, 150, 158),
    "white": rgb(240, 238, 232),
    "pink": rgb(242, 122, 172),
    "blue": rgb(70, 116, 222),
}
# temple, cheek, jaw and chin half-widths as shares of the head's; the chin's y; how square the chin is
SHAPE = {
    "oval": (0.93, 1.0, 0.80, 0.38, 30.0),
    "round": (0.98, 1.09, 0.99, 0.58, 28.0),
    "square": (1.0, 1.01, 0.95, 0.7, 29.5),
    "long": (0.86, 0.90, 0.79, 0.44, 34.0),
    "heart": (1.08, 1.01, 0.64, 0.14, 31.5),
}
# mouth: corner dy, middle dy, opening, width; brows: inner dy, outer dy; eyes: opening
EXPRESSION = {
    "neutral": ((0.0, 0.5, 0.0, 1.0), (0.0, 0.0), 1.0),
    "smile": ((-2.8, 1.0, 2.3, 1.18), (-0.6, -0.4), 0.9),
    "laugh": ((-3.0, -0.6, 5.2, 1.15), (-1.8, -1.2), 0.5),
    "sad": ((2.8, -1.6, 0.0, 0.88), (-2.8, 1.6), 0.82),
    "angry": ((1.8, -0.8, 0.0, 0.95), (3.0, -2.0), 0.78),
    "surprised": ((0.8, -2.2, 5.6, 0.56), (-3.8, -3.2), 1.28),
}
EYE = {"round": (6.5, 6.3), "almond": (7.7, 5.0), "narrow": (7.8, 3.6)}
NOSE_Y = {"small": 9.5, "long": 14.0, "wide": 11.0, "pointed": 12.0}


class Head:
    """Everything that the drawing of one head needs, from a person and one picture's values.

    Args: `values` has the keys of `factors.FACE_SCENE`, `turn` (-1..1), `tilt` (degrees), `gaze` (dx, dy);
    `center` is the middle of the face on the canvas; `light` is "front", "left" or "right".
    """

    def __init__(self, person: Person, values: dict, center: tuple[float, float], light: str) -> None:
        self.person, self.values, self.center, self.light = person, values, center, light
        self.turn, self.tilt = values["turn"], values["tilt"]
        angle = math.radians(24 * self.turn)
        self._sin, self._cos = math.sin(angle), math.cos(angle)
        self.skin, self.hair = SKIN[person.skin], HAIR[person.hair_color]
        self.skin_shade = mix(self.skin, rgb(96, 30, 34), 0.26)
        self.skin_line = mix(self.skin, rgb(52, 18, 22), 0.52)
        self.hat = values["hat"]
        self.capped = self.hat not in ("none", "flower crown")  # the top of the hair is under a hat
        temple, cheek, jaw, chin, bottom = SHAPE[person.face_shape]
        w = self.w = 22.6 + 2.3 * person.face_width
        self.cheek = w * cheek
        self.jaw = w * (jaw + 0.06 * person.jaw)
        self.chin, self.bottom, self.temple = w * chin, bottom, w * temple
        (self.corner, self.middle, self.open, stretch), self.brow_shift, self.eye_open = EXPRESSION[
            values["expression"]
        ]
        size, room = 1 + 0.2 * person.eye_size, self.cheek / 22.6
        self.eye_x, self.eye_y = 11.1 * room + 1.4 * person.eye_spacing, 0.0
        self.eye_rx = min(EYE[person.eye_shape][0] * size * (0.5 + 0.5 * room), self.eye_x - 1.2)
        self.eye_ry = EYE[person.eye_shape][1] * size
        self.nose_y, self.mouth_y = NOSE_Y[person.nose] + 0.8 * person.nose_size, 19.5 + (bottom - 30) * 0.35
        self.mouth = (7.4 + 1.7 * person.mouth_width + (1.9 if person.lips == "wide" else 0)) * stretch
        self.ear_rx, self.ear_ry = 3.9 + 1.1 * person.ear_size, 6.2 + 1.9 * person.ear_size
        self.outline = self._outline()

    def x(self, x: float, depth: float) -> float:
        """Where a feature at x, so far in front of the skull's axis, lands after the turn."""
        return x * self._cos + depth * self._sin

    def far(self, side: int) -> float:
        """How much narrower things on this side (-1 left, 1 right) look: 1 on the near side."""
        return 1 - 0.3 * abs(self.turn) if side * self.turn > 0 else 1.0

    def edge(self, side: int) -> float:
        """Share of the outline's half-width on a side after the turn."""
        return (1 - 0.05 * abs(self.turn)) if side * self.turn > 0 else 1.0

    def _outline(self) -> skia.Path:
        half = [
            (self.temple * 0.55, -27.5),
            (self.temple * 0.93, -18.0),
            (self.cheek, -1.0),
            (self.jaw, self.bottom - 14),
            (self.chin + (self.jaw - self.chin) * 0.42, self.bottom - 4.2),
            (self.chin * 0.55, self.bottom - 0.5),
        ]
        shift = 1.6 * self.turn
        right = [(x * self.edge(1) + shift * (y + 30) / 60, y) for x, y in half]
        left = [(-x * self.edge(-1) + shift * (y + 30) / 60, y) for x, y in reversed(half)]
        return smooth([(0, -30.0), *right, (shift, self.bottom), *left])

    def ear(self, side: int) -> tuple[float, float]:
        """The middle of an ear; the far one hides behind the head as it turns."""
        hidden = 5 * abs(self.turn) if side * self.turn > 0 else -0.5 * abs(self.turn)
        return side * (self.cheek + self.ear_rx * 0.35 - hidden), 2.5

    def eye(self, side: int) -> tuple[float, float]:
        """The middle of an eye."""
        return self.x(side * self.eye_x, 15), self.eye_y

    def nose_tip(self) -> tuple[float, float]:
        """The tip of the nose."""
        return self.x(0, 21), self.nose_y

    def mouth_corner(self, side: int) -> tuple[float, float]:
        """A corner of the mouth."""
        return self.x(side * self.mouth, 16), self.mouth_y + self.corner

    def smile_line(self) -> tuple[float, float]:
        """The middle of the line between the lips."""
        return self.x(0, 18), self.mouth_y + self.middle

    def matrix(self) -> skia.Matrix:
        """From local coordinates to the canvas: tilted about the neck, moved to the centre."""
        out = skia.Matrix.Translate(*self.center)
        out.preRotate(self.tilt, 0, 34)
        return out

    def landmarks(self) -> np.ndarray:
        """(5, 2) float32 on the unscaled canvas: eyes, nose tip, mouth corners, left before right in the picture."""
        local = [self.eye(-1), self.eye(1), self.nose_tip(), self.mouth_corner(-1), self.mouth_corner(1)]
        return np.array([(p.x(), p.y()) for p in self.matrix().mapPoints([skia.Point(*q) for q in local])], np.float32)

    def box(self) -> tuple[float, float, float, float]:
        """The face from hairline to chin and ear to ear, on the unscaled canvas."""
        (lx, ly), (rx, ry) = self.ear(-1), self.ear(1)
        path = skia.Path(self.outline)
        for x, y in ((lx, ly), (rx, ry)):
            path.addOval(skia.Rect(x - self.ear_rx, y - self.ear_ry, x + self.ear_rx, y + self.ear_ry))
        path.transform(self.matrix())
        bounds = path.computeTightBounds()
        return bounds.left(), bounds.top(), bounds.right(), bounds.bottom()

    @property
    def brow_color(self) -> Color:
        """Brows follow the hair, a little darker, so that they stay visible on the skin."""
        if self.person.hair_color in ("white", "grey"):
            return mix(darker(self.hair, 0.35), self.skin_line, 0.25)
        if self.person.hair_color == "black" and self.person.skin == "dark":
            return rgb(22, 16, 18)
        return darker(self.hair, 0.38)

    @property
    def beard_color(self) -> Color:
        """Beards are a little darker than the hair, and nobody dyes them: pink ones would look like lips."""
        if self.person.hair_color in ("pink", "blue"):
            return mix(self.hair, rgb(54, 34, 36), 0.78)
        return darker(self.hair, 0.17)

    @property
    def lip_color(self) -> Color:
        """The colour of the lips: made up for women, near the skin for men."""
        if self.person.presentation == "woman":
            return mix(self.skin, rgb(196, 24, 58), 0.68)
        return mix(self.skin, rgb(140, 36, 44), 0.56)

    def highlight(self) -> Color:
        """A light tint of the hair for strands."""
        return lighter(self.hair, 0.28 if self.person.hair_color == "black" else 0.34)
