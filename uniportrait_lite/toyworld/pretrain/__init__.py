"""Recipes that train every network of the tiny stack from nothing, each a resumable command."""

import importlib
import os

from uniportrait_lite.errors import ConfigError

# In the order in which they need each other.
NAMES = ("recogniser", "vae", "clip", "judge", "reader", "detector", "unet", "pose", "edges", "image", "style")
SEVERAL = ("unet",)  # what a launcher may start in several processes, each with its own batches
TOY = ("style",)  # what teaches a look of the toy world, and no world of one's own


def run(name: str, profile: str = "tiny", **overrides) -> dict:
    """Runs the recipe `name` (or "all" in order) for a profile, with settings overridden; returns what it recorded.

    `profile` is "tiny" or a folder: what its `profile.yaml` sets for the recipe stands in place of the recipe's own
    settings, and what `overrides` has in place of both. A folder's networks are written into it, its runs go to
    `runs/NAME`, its pictures are those of its `world.py` where it has one.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and name not in SEVERAL:
        raise ConfigError(
            f"this recipe runs in one process: start it without a launcher ({', '.join(SEVERAL)} and the stages take "
            "several)"
        )
    if name == "all":
        return {each: run(each, profile, **overrides) for each in NAMES if profile == "tiny" or each not in TOY}
    if name not in NAMES:
        raise ConfigError(f"there is no recipe {name!r}; there are {', '.join(NAMES)} and all")
    from uniportrait_lite.toyworld.pretrain import flags

    settings = flags.of_profile(name, profile) | overrides
    return importlib.import_module(f"{__name__}.{name}").run(**settings)
