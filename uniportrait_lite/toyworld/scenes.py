"""Scenes: people drawn together in one picture, with the exact truth about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .drawing import head_masks, render
from .factors import FACE_SCENE, SCENE
from .head import Head
from .people import Person, check_seed, pick, uniforms

if TYPE_CHECKING:
    from PIL import Image

HEIGHT = 128  # of every canvas; 64 * (people + 1) wide, so that faces keep their size in groups
MAX_PEOPLE = 5
_SCENE_STREAM = 23
_WEIGHTS = {  # by position in the tables of `factors`; the others are even
    "expression": (22, 23, 14, 14, 13, 14),
    "glasses": (60, 14, 14, 12),
    "hat": (55, 9, 9, 9, 9, 9),
    "age": (85, 15),
    "style": (50, 10, 10, 10, 10, 10),
}
_MEN = {"clothes": (18, 18, 18, 18, 2, 18)}  # a man in a dress is drawn when asked for, and now and then
_MOTION = ("turn", "tilt", "gaze")


@dataclass(frozen=True, eq=False)
class Face:
    """One person in one scene, with the truth in pixels of the picture.

    box: (x0, y0, x1, y1), from the top of the forehead to the chin and from ear to ear. landmarks: float32 (5, 2),
    left eye, right eye, nose tip, left and right mouth corner, as seen in the picture. attributes: `FACE_SCENE`'s keys
    with turn (-1..1), tilt (degrees, clockwise) and gaze (dx, dy in -1..1). mask: bool (H, W), what is visible of the
    head with hair and hat; drawn when first asked for.
    """

    person: Person
    box: tuple[float, float, float, float]
    landmarks: np.ndarray
    attributes: dict
    scene: Scene
    index: int

    @property
    def mask(self) -> np.ndarray:
        """What is visible of the head, bool (H, W)."""
        return self.scene.masks[self.index]


class Scene:
    """A drawn picture (`.image`, `.pixels`) and the truth about it (`.faces` left to right, `.caption`, ...)."""

    def __init__(
        self, heads: list[Head], background: str, style: str, light: str, variation: list[float], seed: int, scale: int
    ) -> None:
        self.background, self.style, self.light, self.seed, self.scale = background, style, light, seed, scale
        self._heads, self._width = heads, 64 * (len(heads) + 1)
        self.pixels = render(heads, background, style, variation, self._width, scale)
        self.faces = [
            Face(
                head.person,
                tuple(v * scale for v in head.box()),
                head.landmarks() * np.float32(scale),
                head.values,
                self,
                i,
            )
            for i, head in enumerate(heads)
        ]

    @cached_property
    def image(self) -> Image.Image:
        """The picture, PIL RGB."""
        from PIL import Image

        return Image.fromarray(self.pixels)

    @cached_property
    def masks(self) -> np.ndarray:
        """(people, H, W) bool, what is visible of each head."""
        return head_masks(self._heads, self._width, self.scale)

    @cached_property
    def caption(self) -> str:
        """A sentence in plain English about the picture; the same for the same seed."""
        from .captions import caption

        return caption(
            [face.person for face in self.faces],
            [face.attributes for face in self.faces],
            self.background,
            self.style,
            self.light,
            seed=self.seed,
        )

    def __repr__(self) -> str:
        return f"Scene({len(self.faces)} people, {self.background}, {self.style}, seed={self.seed})"


def _number(name: str, value: object, low: float, high: float) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, np.integer, np.floating))
        or not low <= value <= high
    ):
        raise ValueError(f"{name} is a number from {low:g} to {high:g}, not {value!r}")
    return float(value)


def _checked(name: str, value: object):
    """The value of a named knob, or a ValueError that names the choices."""
    table = FACE_SCENE.get(name) or SCENE.get(name)
    if table is not None:
        if value not in table:
            raise ValueError(f"{name} is one of {', '.join(table)}; not {value!r}")
        return value
    if name == "gaze":
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
            raise ValueError(f"gaze is a pair (dx, dy) of numbers from -1 to 1, not {value!r}")
        return tuple(_number("gaze", v, -1, 1) for v in value)
    return _number(name, value, *((-1, 1) if name == "turn" else (-15, 15)))


def _each(name: str, value: object, count: int) -> list:
    """One checked value for each person: the same for all, or a list with one each."""
    numbers = isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value)
    listed = isinstance(value, (list, tuple)) and not (name == "gaze" and numbers)
    if not listed:
        return [_checked(name, value)] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} values for {count} people; give one value, or one for each")
    return [_checked(name, v) for v in value]


def _normal(u: float, v: float, spread: float, limit: float) -> float:
    """A normal number from two uniform ones (Box and Muller), clipped."""
    return float(np.clip(spread * np.sqrt(-2 * np.log(1 - u)) * np.cos(2 * np.pi * v), -limit, limit))


def group(people: Sequence[Person], seed: int = 0, *, scale: int = 1, **fixed) -> Scene:
    """Draw one to five people side by side, left to right.

    The canvas is 64 * (people + 1) x 128 pixels, times `scale` (the same scene, larger). `fixed` sets any of
    `factors.FACE_SCENE` and `factors.SCENE`, `turn` (-1..1), `tilt` (-15..15 degrees), `gaze` (dx, dy in -1..1); what
    belongs to a face may be a list, one for each. All else comes from the seed. Raises ValueError for what does not
    exist.
    """
    people = list(people)
    if not 1 <= len(people) <= MAX_PEOPLE or not all(isinstance(p, Person) for p in people):
        raise ValueError(f"a scene holds 1 to {MAX_PEOPLE} people (Person objects), not {len(people)}: {people!r:.80}")
    seed = check_seed(seed)
    if isinstance(scale, bool) or not isinstance(scale, int) or not 1 <= scale <= 16:
        raise ValueError(f"scale is a whole number from 1 to 16, not {scale!r}")
    names = (*FACE_SCENE, *_MOTION, *SCENE)
    for name in fixed:
        if name not in names:
            raise ValueError(f"there is no {name!r} to set; there are {', '.join(names)}, scale")
    given = {
        name: _each(name, value, len(people)) if name not in SCENE else _checked(name, value)
        for name, value in fixed.items()
    }
    u = iter(uniforms(seed, _SCENE_STREAM, 12 + 24 * len(people)))
    place = {name: pick(table, next(u), _WEIGHTS.get(name)) for name, table in SCENE.items()}
    place |= {name: given[name] for name in SCENE if name in given}
    variation = [next(u) for _ in range(9)]
    heads = []
    for i, person in enumerate(people):
        weights = _WEIGHTS | (_MEN if person.presentation == "man" else {})
        values = {name: pick(table, next(u), weights.get(name)) for name, table in FACE_SCENE.items()}
        values["turn"] = _normal(next(u), next(u), 0.4, 1)
        values["tilt"] = _normal(next(u), next(u), 5, 15)
        values["gaze"] = (_normal(next(u), next(u), 0.4, 1), _normal(next(u), next(u), 0.3, 1))
        center = (64 * (i + 1) + 6 * next(u) - 3, 62 + 6 * next(u) - 3)
        for _ in range(24 - len(FACE_SCENE) - 10):
            next(u)
        values |= {name: each[i] for name, each in given.items() if name not in SCENE}
        heads.append(Head(person, values, center, place["light"]))
    return Scene(heads, **place, variation=variation, seed=seed, scale=scale)


def portrait(person: Person, seed: int = 0, **fixed) -> Scene:
    """Draw one person on a 128 x 128 canvas; see `group` for what can be fixed."""
    return group([person], seed, **fixed)


def reference(person: Person, seed: int = 0) -> Scene:
    """A picture to know a person by: photo style, eyes and hair uncovered, a quiet expression, hardly turned."""
    u = uniforms(check_seed(seed), _SCENE_STREAM + 1, 8)
    return portrait(
        person,
        seed,
        style="photo",
        hat="none",
        expression=pick(("neutral", "smile"), u[0]),
        age="young",
        glasses=pick(("none", "round", "square"), u[1], (80, 10, 10)),
        turn=0.5 * u[2] - 0.25,
        tilt=8 * u[3] - 4,
    )
