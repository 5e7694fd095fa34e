"""Recipes that train every network of the tiny stack from nothing, each a resumable command."""

import importlib
import os

from uniportrait_lite.errors import ConfigError

NAMES = ("vae", "clip", "recogniser", "judge", "reader", "detector", "unet")  # in the order they need each other


def run(name: str, **overrides) -> dict:
    """Runs the recipe `name` (or "all" in order) with its settings overridden; returns what it recorded."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("the recipes run in one process: start them without a launcher (the stages take several)")
    if name == "all":
        return {each: run(each, **overrides) for each in NAMES}
    if name not in NAMES:
        raise ConfigError(f"there is no recipe {name!r}; there are {', '.join(NAMES)} and all")
    return importlib.import_module(f"{__name__}.{name}").run(**overrides)
