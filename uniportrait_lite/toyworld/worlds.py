"""Whose drawings a stack learns from: the toy world's own, or those of a `world.py` of yours."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from uniportrait_lite.errors import ConfigError
from uniportrait_lite.toyworld import people, scenes

QUIET = {"style": "photo", "hat": "none", "glasses": "none", "expression": "neutral", "age": "young"}  # of references
NOT_DRAWN = ("captions", "sentences", "wording", "tokenizer", "references", "worlds", "__init__")  # words, and this


@dataclass(frozen=True)
class World:
    """People and pictures of them.

    `Person.random(seed)` makes the person of a seed. `group(people, seed, **fixed)` draws some of them as a
    `scenes.Scene` does, `portrait(person, seed, **fixed)` one, `reference(person, seed)` one to know them by. `source`
    are the files that decide what is drawn.
    """

    Person: Any
    group: Callable[..., Any]
    portrait: Callable[..., Any]
    reference: Callable[..., Any]
    source: tuple[Path, ...]


@lru_cache
def world(path: str = "") -> World:
    """The world of a `world.py`, or the toy world where no path is given.

    Such a file has `group(people, seed=0, **fixed)`, which returns what `scenes.group` does (pixels and image of
    64 * (people + 1) x 128; `faces` with person, box, landmarks and attributes; background, style, light), takes what
    that takes, and draws the same for the same arguments. It may have a `Person` as well, with at least the fields of
    `people.Person`. Captions, and the reader of attributes, speak of people and scenes in the words of `factors`: a
    world draws them its own way, and draws nothing that has no word there. Raises `ConfigError` for a file that is not
    such a world.
    """
    if not path:
        drawing = sorted(file for file in Path(__file__).parent.glob("*.py") if file.stem not in NOT_DRAWN)
        return World(people.Person, scenes.group, scenes.portrait, scenes.reference, tuple(drawing))
    module = _read(Path(path))
    if not callable(getattr(module, "group", None)):
        raise ConfigError(f"{path} has no function group(people, seed, **fixed): a world draws people by it")
    person, group = getattr(module, "Person", people.Person), module.group
    return World(person, group, partial(_portrait, group), partial(_reference, group), (Path(path), *world().source))


def world_file(folder: str | Path) -> str:
    """The `world.py` of a profile's folder, as `world` takes it: empty where the folder is of the toy world."""
    path = Path(folder) / "world.py"
    return str(path) if path.is_file() else ""


def _portrait(group: Callable[..., Any], person: Any, seed: int = 0, **fixed: Any) -> Any:
    return group([person], seed, **fixed)


def _reference(group: Callable[..., Any], person: Any, seed: int = 0) -> Any:
    return group([person], seed, **QUIET)


def _read(path: Path) -> Any:
    """The file as a module, under a name of its own, so that worlds don't take each other's place."""
    if not path.is_file():
        raise ConfigError(f"there is no {path}: give the file of a world, or none for the toy world")
    name = f"world_{abs(hash(path.resolve()))}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{path} cannot be read as a world ({type(error).__name__}: {error})") from error
    return module
