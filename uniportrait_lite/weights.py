"""Every network of a profile, from nothing to the last stage, in the order in which they need each other."""

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from uniportrait_lite.errors import ConfigError
from uniportrait_lite.folders import SETTINGS, data_folder, profile_settings
from uniportrait_lite.toyworld import pretrain
from uniportrait_lite.toyworld.pretrain import report
from uniportrait_lite.toyworld.pretrain.flags import of_profile
from uniportrait_lite.toyworld.worlds import world, world_file

STAGES = ("single_id", "multi_id")
SHARES = {  # of the hours that are given: what each part's learning curve asked for
    "recogniser": 0.04, "vae": 0.14, "clip": 0.05, "judge": 0.03, "reader": 0.02, "detector": 0.02,
    "unet": 0.39, "pose": 0.03, "edges": 0.03, "image": 0.02, "style": 0.01, "single_id": 0.14, "multi_id": 0.08,
}  # fmt: skip
PAGE = """\
# A profile

`python -m uniportrait_lite weights --profile FOLDER` made these weights, by the settings of `profile.yaml`, and wrote
this page. `load("FOLDER")` loads them.
"""


def run(profile: str = "tiny", hours: float | None = None) -> Path:
    """Trains all networks of a profile, "tiny" or a folder, and writes the README about them; returns the folder.

    Each part has its settings (`folders.profile_settings`), or, where `hours` are given, its share of these in place of
    a number of steps. Called again it goes on where it was stopped: at the last checkpoint of the part, in `runs`.
    Raises `ConfigError` for settings or a world that cannot be, before anything is trained.
    """
    folder = data_folder(profile)
    world(world_file(folder))
    parts = plan(profile, hours)
    for number, (name, train) in enumerate(parts.items(), start=1):
        print(f"--- {name} ({number} of {len(parts)})", flush=True)
        train()
    report.write(*((folder.parent, report.HEAD) if profile == "tiny" else (folder, PAGE)))
    return folder


def plan(profile: str, hours: float | None) -> dict[str, Callable[[], object]]:
    """What trains each part, in order, its settings read and checked."""
    folder = data_folder(profile)
    if unknown := profile_settings(folder).keys() - SHARES.keys():
        raise ConfigError(f"{folder / SETTINGS}: there is no part {', '.join(unknown)}; there are {', '.join(SHARES)}")
    if hours is not None and not hours > 0:
        raise ConfigError(f"hours are above 0, not {hours}")
    parts = {}
    for name, share in SHARES.items():
        if profile != "tiny" and name in pretrain.TOY:
            continue
        budget = {} if hours is None else {"steps": None, "hours": hours * share}
        if name in STAGES:
            stage = importlib.import_module(f"uniportrait_lite.training.{name}")
            flags = [word for key, value in budget.items() for word in (f"--{key}", str(value).lower())]
            parts[name] = partial(stage.run, stage.settings(["--profile", profile, *flags]))
        else:
            parts[name] = partial(pretrain.run, name, profile, **budget)
            of_profile(name, profile)
    return parts
