"""Every network of a profile, from nothing to the last stage, in the order in which they need each other."""

import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from uniportrait_lite.errors import ConfigError
from uniportrait_lite.folders import SETTINGS, data_folder, profile_settings
from uniportrait_lite.toyworld import pretrain
from uniportrait_lite.toyworld.pretrain import report
from uniportrait_lite.toyworld.pretrain.data import world_digest
from uniportrait_lite.toyworld.pretrain.flags import defaults, of_profile
from uniportrait_lite.toyworld.pretrain.record import write_json
from uniportrait_lite.toyworld.worlds import world, world_file

STAGES = ("single_id", "multi_id")
SHARES = {  # of the hours that are given: what each part's learning curve asked for
    "recogniser": 0.04, "vae": 0.12, "vae_decoder": 0.02, "clip": 0.05, "judge": 0.03, "reader": 0.02,
    "detector": 0.02, "unet": 0.39, "pose": 0.03, "edges": 0.03, "image": 0.02, "style": 0.01, "single_id": 0.14,
    "multi_id": 0.08,
}  # fmt: skip
DECODER = {"decoder_only": True, "noise": 0.2, "muon_lr": 0.01}  # of the second pass over the autoencoder, a fifth
DISTIL = 5000  # steps with which the single-ID stage begins: nine minutes of a core
BATCHES = {  # on a GPU with 141 GB, as docs/experiments.md has them; for routers small ones, as they need steps
    "vae": 256, "vae_decoder": 256, "unet": 1024, "pose": 256, "edges": 256, "image": 128, "style": 64,
    "single_id": 512, "multi_id": 96,
}  # fmt: skip
MEMORY = 141e9
PAGE = """\
# A profile

`python -m uniportrait_lite weights --profile FOLDER` made these weights, by the settings of `profile.yaml`, and wrote
this page. `load("FOLDER")` loads them.
"""


def run(profile: str = "tiny", hours: float | None = None) -> Path:
    """Trains all networks of a profile, "tiny" or a folder, and writes the README about them; returns the folder.

    Each part has its settings (`folders.profile_settings`), or, where `hours` are given, its share of these in place of
    a number of steps. Called again it goes on where it was stopped, at the last checkpoint of the part, in `runs`, on
    another machine as well, and leaves alone what was done with these settings, for however long, and is still there:
    its weights may have been trained on since. Raises `ConfigError` for settings or a world that cannot be, before
    anything is trained.
    """
    folder = data_folder(profile)
    world(world_file(folder))
    runs = Path("runs") / ("" if profile == "tiny" else folder.resolve().name)
    sizes = runs / "batches.json"
    if not any((runs / name).exists() for name in plan(profile, hours)):
        sizes.unlink(missing_ok=True)  # of another beginning
    parts = plan(profile, hours, batches(folder, sizes))
    marks = {name: runs / name / "done" for name in parts}
    for number, (name, train) in enumerate(parts.items(), start=1):
        print(f"--- {name} ({number} of {len(parts)})", flush=True)
        made_by = _settings(name, profile, train)
        if marks[name].exists() and marks[name].read_text() == made_by and any(folder.rglob(f"{name}.recipe.json")):
            print(
                f"done before; to begin anew with it, delete {marks[name].parent} and those of what follows", flush=True
            )
            continue
        for later in list(marks)[number:]:  # what follows was made with another
            marks[later].unlink(missing_ok=True)
        train()
        marks[name].parent.mkdir(parents=True, exist_ok=True)
        marks[name].write_text(made_by)
    report.write(*((folder.parent, report.HEAD) if profile == "tiny" else (folder, PAGE)))
    return folder


def plan(profile: str, hours: float | None, sizes: dict[str, dict] | None = None) -> dict[str, Callable[[], object]]:
    """What trains each part, in order, its settings read and checked; `sizes` as `batches` has them.

    The decoder's second pass has the settings of the first, but for `DECODER`, and a fifth of its length.
    """
    folder = data_folder(profile)
    known = [name for name in SHARES if name != "vae_decoder"]
    if unknown := profile_settings(folder).keys() - {*known}:
        raise ConfigError(f"{folder / SETTINGS}: there is no part {', '.join(unknown)}; there are {', '.join(known)}")
    if hours is not None and not hours > 0:
        raise ConfigError(f"hours are above 0, not {hours}")
    parts = {}
    for name, share in SHARES.items():
        if profile != "tiny" and name in pretrain.TOY:
            continue
        given = {} if hours is None else {"steps": None, "hours": hours * share}
        given |= (sizes or {}).get(name, {})
        if name in STAGES:
            if (
                name == "single_id"
                and not {"distil", "intrinsic", "start_from"} & profile_settings(folder, name).keys()
            ):
                given["distil"] = DISTIL
            stage = importlib.import_module(f"uniportrait_lite.training.{name}")
            flags = [word for key, value in given.items() for word in (f"--{key}", str(value).lower())]
            parts[name] = partial(stage.run, stage.settings(["--profile", profile, *flags]))
        elif name == "vae_decoder":
            vae = defaults("vae") | of_profile("vae", profile)
            steps = None if vae["steps"] is None else -(-vae["steps"] // 5)
            length = {"steps": steps, "hours": None if vae["hours"] is None else vae["hours"] / 5}
            given = DECODER | length | {"start_from": vae["folder"], "out": f"{vae['out']}_decoder"} | given
            parts[name] = partial(pretrain.run, "vae", profile, **given)
        else:
            parts[name] = partial(pretrain.run, name, profile, **given)
            of_profile(name, profile)
    return parts


def batches(folder: Path, file: Path) -> dict[str, dict]:
    """The batch of each part for this machine's GPU, by its memory, kept in `file` for another machine that goes on.

    None on a CPU, nor where the profile in `folder` has its own (the decoder's second pass has the autoencoder's).
    """
    if not file.exists():
        share = 0.0
        if torch.cuda.is_available():
            share = min(1.0, torch.cuda.get_device_properties(0).total_memory / MEMORY)
        found = {name: {"batch": max(32, round(size * share / 16) * 16)} for name, size in BATCHES.items() if share}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, found)
    own = {name for name, settings in profile_settings(folder).items() if "batch" in settings}
    own |= {"vae_decoder"} if "vae" in own else set()
    return {name: size for name, size in json.loads(file.read_text()).items() if name not in own}


def _settings(name: str, profile: str, train: partial) -> str:
    """A digest of a part's settings and of the world, but for places and for how long it trains."""
    if name in STAGES:
        settings = asdict(train.args[0])
    else:
        recipe = "vae" if name == "vae_decoder" else name
        settings = defaults(recipe) | of_profile(recipe, profile) | train.keywords
    aside = (
        "out", "folder", "run_folder", "profile", "steps", "hours", "workers", "compile", "graphs", "measure_cache",
    )  # fmt: skip
    kept = {k: v for k, v in settings.items() if k not in aside and not (isinstance(v, str) and "/" in v)}
    drawn = world_digest(world_file(data_folder(profile)))
    return hashlib.sha256(json.dumps([kept, drawn], sort_keys=True).encode()).hexdigest()[:16]
