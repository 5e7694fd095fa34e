"""A person of the toy world: the factors that stay the same from picture to picture."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from . import factors

CONTINUOUS = ("face_width", "jaw", "eye_size", "eye_spacing", "brow_height", "nose_size", "mouth_width", "ear_size")
_PERSON_STREAM = 11  # keeps the draws of a person apart from those of a scene with the same seed

# Weights by position in the tables of `factors`; hair styles that read as everyday ones per presentation.
_HAIR_COLOR = (20, 22, 18, 14, 6, 5, 8, 7)
_HAIR_STYLE = {
    "woman": (1.5, 3, 5, 5, 9, 14, 14, 14, 10, 11, 10, 10),
    "man": (11, 12, 16, 15, 13, 3, 5, 5, 11, 4, 5, 1),
}
_BEARD = (45, 14, 14, 13, 14)
_MOLE = (62, 13, 13, 12)


def check_seed(seed: object) -> int:
    """Return `seed` as a plain int; ValueError when it is not a whole number of at least 0."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"a seed is a whole number of at least 0, not {seed!r}")
    return int(seed)


def uniforms(seed: int, stream: int, count: int) -> list[float]:
    """`count` numbers in [0, 1) that depend on nothing but the seed and the stream (PCG64)."""
    return np.random.Generator(np.random.PCG64([stream, seed])).random(count).tolist()


def pick(table: tuple, u: float, weights: tuple | None = None):
    """The entry of `table` that the number `u` in [0, 1) points at, evenly or by weights."""
    if weights is None:
        return table[int(u * len(table))]
    u *= sum(weights)
    for value, weight in zip(table, weights, strict=False):
        u -= weight
        if u < 0:
            return value
    return table[len(weights) - 1]


@dataclass(frozen=True)
class Person:
    """One drawn person: a value of each table in `factors.IDENTITY`, eight sliders in [-1, 1], freckles, a seed.

    Raises ValueError, naming the choices, for values that the tables do not have.
    """

    presentation: str
    skin: str
    face_shape: str
    hair_color: str
    hair_style: str
    eye_color: str
    eye_shape: str
    brows: str
    nose: str
    lips: str
    beard: str = "none"
    mole: str = "none"
    face_width: float = 0.0
    jaw: float = 0.0
    eye_size: float = 0.0
    eye_spacing: float = 0.0
    brow_height: float = 0.0
    nose_size: float = 0.0
    mouth_width: float = 0.0
    ear_size: float = 0.0
    freckles: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, table in factors.IDENTITY.items():
            if getattr(self, name) not in table:
                raise ValueError(f"{name} is one of {', '.join(table)}; not {getattr(self, name)!r}")
        for name in CONTINUOUS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1 <= value <= 1:
                raise ValueError(f"{name} is a number from -1 to 1, not {value!r}")

    @classmethod
    def random(cls, seed: int) -> Person:
        """The person of that seed: always the same one, different from (nearly) all others."""
        seed = check_seed(seed)
        u = iter(uniforms(seed, _PERSON_STREAM, 32))
        values: dict = {name: pick(table, next(u)) for name, table in factors.IDENTITY.items()}
        dye = next(u)
        values["hair_style"] = pick(factors.HAIR_STYLES, next(u), _HAIR_STYLE[values["presentation"]])
        bald = values["hair_style"] == "bald"  # who has only brows and a beard does not dye them
        values["hair_color"] = pick(factors.HAIR_COLORS, dye, _HAIR_COLOR[:6] if bald else _HAIR_COLOR)
        beard, mole, freckles = pick(factors.BEARDS, next(u), _BEARD), pick(factors.MOLES, next(u), _MOLE), next(u)
        values["beard"] = beard if values["presentation"] == "man" else "none"
        values["mole"] = mole
        values["freckles"] = freckles < (0.08 if values["skin"] in ("brown", "dark") else 0.3)
        for name in CONTINUOUS:
            values[name] = 2 * next(u) - 1
        return cls(seed=seed, **values)


FIELDS = tuple(field.name for field in fields(Person))
