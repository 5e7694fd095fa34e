"""Whom and what is asked for: people outside all trainings, their real pictures, and the prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.evaluation.witnesses import Witnesses
from uniportrait_lite.faces import DetectedFace
from uniportrait_lite.toyworld import Person
from uniportrait_lite.toyworld.factors import FACE_SCENE, SCENE
from uniportrait_lite.toyworld.references import enlarged
from uniportrait_lite.toyworld.splits import HELD_OUT
from uniportrait_lite.toyworld.worlds import World

# What captions leave unsaid is mostly so: a picture without a word on its style is a photo, without one on a hat bare.
UNSAID = {"style": "photo", "expression": "neutral", "glasses": "none", "hat": "none", "age": "young"}
TRIES = 5  # reference pictures of a person, until a face is found on one


@dataclass(frozen=True)
class Prompt:
    """A text and what it asks for: values by name of `factors.FACE_SCENE` and `SCENE`."""

    name: str
    text: str
    attributes: dict[str, str]


def read_prompts(path: str | Path) -> list[Prompt]:
    """Prompts from a JSON list of name, text and attributes; ConfigError for another, or for unknown attributes."""
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
        prompts = [Prompt(str(e["name"]), str(e["text"]), dict(e["attributes"])) for e in entries]
    except OSError as error:
        raise ConfigError(f"the prompts in {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is no list of prompts with name, text and attributes ({error!r})") from error
    if not prompts or len({p.name for p in prompts}) < len(prompts):
        raise ConfigError(f"{path} must hold at least one prompt, each under a name of its own")
    known = FACE_SCENE | SCENE
    for prompt in prompts:
        for name, value in prompt.attributes.items():
            if value not in known.get(name, ()):
                raise ConfigError(f"prompt {prompt.name!r}: {name}={value!r} is nothing that a scene has; see factors")
        if not prompt.attributes:
            raise ConfigError(f"prompt {prompt.name!r} asks for no attribute: nothing of it could be checked")
    return prompts


@dataclass(frozen=True)
class Subject:
    """A person of a world, with the real pictures of them.

    `reference`: the picture that portraits are made from, `face` what was found on it. `real`: one for each prompt, as
    a perfect model would answer it. `second`: another reference picture; `other`: one with everything left to chance.
    `refused`: pictures on which no face was found before `reference`.
    """

    person: Person
    world: World
    reference: Image.Image
    face: DetectedFace
    real: list[Image.Image]
    second: Image.Image
    other: Image.Image
    refused: int


def subjects(
    count: int, prompts: Sequence[Prompt], witnesses: Witnesses, seed: int = 0, scale: int = 1
) -> list[Subject]:
    """The first `count` held-out people. Scenes have `seed` in theirs; no two people share one's poses and places.

    References, and nothing else, are `scale` times as large as portraits.
    """
    if not 1 <= scale <= 8:
        raise ConfigError(f"--reference-scale is a whole number from 1 to 8, not {scale}")
    if not 2 <= count <= 1000:
        raise ConfigError(f"--people is a number from 2 to 1000, not {count}")  # beyond, the seeds watch trainings
    found, world = [], witnesses.world
    for number in range(count):
        person = world.Person.random(HELD_OUT[number])
        first = (seed * 1000 + number) * 1000
        for attempt in range(TRIES):
            scene = enlarged(world.reference(person, first + attempt), scale, world.portrait)
            if (face := witnesses.face(scene.image)) is not None:
                break
        else:
            raise WeightsError(f"no face found on any of {TRIES} reference pictures: train the detector for longer")
        real = [world.portrait(person, first + 100 + k, **(UNSAID | p.attributes)).image for k, p in enumerate(prompts)]
        second = enlarged(world.reference(person, first + 50), scale, world.portrait).image
        other = world.portrait(person, first + 51).image
        found.append(Subject(person, world, scene.image, face, real, second, other, attempt))
    return found
