"""Settings of the recipes as flags of the command line: any field of a recipe's dataclass, under its name."""

import ast
import importlib
from dataclasses import fields, is_dataclass
from pathlib import Path

from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.folders import SETTINGS, data_folder, profile_settings
from uniportrait_lite.toyworld.pretrain import NAMES
from uniportrait_lite.toyworld.worlds import world_file

HOME = "data/tiny"  # where the recipes' own settings put the networks


def defaults(recipe: str) -> dict[str, object]:
    """The settings of a recipe: the fields of its module's dataclass that says for how many steps to train."""
    module = importlib.import_module(f"uniportrait_lite.toyworld.pretrain.{recipe}")
    for value in vars(module).values():
        if is_dataclass(value) and value.__module__ == module.__name__:
            settings = {field.name: field.default for field in fields(value)}
            if "steps" in settings:
                return settings
    raise TypeError(f"{module.__name__} has no dataclass of its settings")


def of_profile(recipe: str, profile: str) -> dict[str, object]:
    """What a profile sets for a recipe: its `profile.yaml`, and where its networks, runs and world lie."""
    known, settings = defaults(recipe), {}
    try:
        folder = data_folder(profile)
    except WeightsError:
        if profile != "tiny":
            raise
        return {}  # all of it is still to be made
    if profile != "tiny":
        settings = {
            name: str(folder / Path(value).relative_to(HOME))
            for name, value in known.items()
            if isinstance(value, str) and Path(value).is_relative_to(HOME)
        }
        settings |= {"out": f"runs/{folder.resolve().name}/{recipe}", "world": world_file(folder)}
    for name, value in profile_settings(folder, recipe).items():
        if name not in known:
            raise ConfigError(f"{folder / SETTINGS}: {recipe} has no setting {name!r}; it has {', '.join(known)}")
        settings[name] = _value(name, str(value), known[name])
    return settings


def listing(recipe: str) -> str:
    """The settings of one recipe, or of "all", with their defaults, one a line."""
    lines = []
    for name in _recipes(recipe):
        settings = defaults(name) | of_profile(name, "tiny")
        lines += [name, *(f"  --{key.replace('_', '-')} {value}" for key, value in settings.items())]
    return "\n".join(lines)


def read(recipe: str, words: list[str]) -> dict[str, object]:
    """`--key value` and `--key=value` as settings of a recipe or of "all"; ConfigError where they cannot be."""
    settings = {}
    words = list(words)
    while words:
        name, equals, text = words.pop(0).partition("=")
        if not name.startswith("--") or not name[2:]:
            raise ConfigError(f"expected --setting value, not {name!r}")
        if not equals:
            if not words or words[0].startswith("--"):
                raise ConfigError(f"{name} needs a value, as in {name} 3")
            text = words.pop(0)
        settings[name[2:].replace("-", "_")] = text
    if recipe == "all" and {"out", "folder"} & set(settings):
        raise ConfigError("`pretrain all` keeps each network in its own folder: give --out and --folder to one recipe")
    values = {}
    for each in _recipes(recipe):
        known = defaults(each)
        for name, text in settings.items():
            if name not in known:
                raise ConfigError(f"{each} has no setting {name!r}; it has {', '.join(known)}")
            values[name] = _value(name, text, known[name])
    return values


def _recipes(recipe: str) -> tuple[str, ...]:
    return NAMES if recipe == "all" else (recipe,)


def _value(name: str, text: str, default: object) -> object:
    """A flag's text as the kind of value that its setting has."""
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval({"none": "None", "true": "True", "false": "False"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        value = text
    value = tuple(value) if isinstance(value, list) else value
    number = (int, float, type(None))
    if type(value) is not type(default) and not (isinstance(value, number) and isinstance(default, number)):
        raise ConfigError(f"{name} cannot be {text!r}; its default is {default!r}")
    return value
