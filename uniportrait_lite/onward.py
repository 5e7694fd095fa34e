"""What a profile draws with, trained on from the weights it has: an evening, or a few minutes of a GPU, for all of it.

Detector, recognisers, CLIP and the autoencoder's encoder stay: with them latents and face features keep their meaning,
and every network goes on from where it was.
"""

import importlib
import os
import shutil
from pathlib import Path

from uniportrait_lite import checkpoints
from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.folders import data_folder
from uniportrait_lite.toyworld import pretrain
from uniportrait_lite.toyworld.pretrain import report
from uniportrait_lite.toyworld.pretrain.image import FILE
from uniportrait_lite.weights import DECODER, PAGE, STAGES, batches

SHARES = {  # of the hours, in the order in which they need each other; the style LoRA is so short that it begins anew
    "vae": 0.07, "unet": 0.46, "pose": 0.04, "edges": 0.05, "image": 0.02, "style": 0.01, "single_id": 0.19,
    "multi_id": 0.16,
}  # fmt: skip


def run(profile: str, hours: float | None) -> Path:
    """Trains the profile, "tiny" or a folder, on for so many hours in all; returns its folder.

    Stopped and called again it goes on, in `runs/onward` (`runs/NAME/onward`), which is gone when all is done: another
    call then goes further. Drawing scenes comes on top of the hours. Raises `ConfigError` for hours that are none, and
    `WeightsError` where there are no weights to go on from, before anything is trained.
    """
    if not hours or hours <= 0:
        raise ConfigError("--onward needs --hours, above 0: how long to train on, all networks together")
    folder = data_folder(profile)
    place = Path("runs") / ("" if profile == "tiny" else folder.resolve().name) / "onward"
    kept = place / "uniportrait"  # a copy, as the single-ID stage removes the routers' weights
    begin = {
        "vae": folder / "sd" / "vae", "unet": folder / "sd", "pose": folder / "controlnet" / "pose",
        "edges": folder / "controlnet" / "edges", "image": folder / "ip_adapter" / FILE,
        "single_id": kept, "multi_id": kept,
    }  # fmt: skip
    stages = [
        (kept if kept.exists() else folder / "uniportrait") / name for name in (checkpoints.MODEL, checkpoints.MULTI)
    ]
    needed = [*stages, *(path for path in begin.values() if path != kept)]
    if missing := [str(path) for path in needed if not path.exists()]:
        raise WeightsError(f"{', '.join(missing)}: not there to go on from; train all of it first, without --onward")
    _copy(folder / "uniportrait", kept)
    sizes = batches(folder, place / "batches.json")
    parts = [name for name in SHARES if profile == "tiny" or name not in pretrain.TOY]
    for number, name in enumerate(parts, start=1):
        print(f"--- {name} ({number} of {len(parts)})", flush=True)
        if not (place / name / "done").exists():
            settings = {"steps": None, "hours": hours * SHARES[name], "cooldown": 0.9, **sizes.get(name, {})}
            if name in begin:
                settings["start_from"] = str(begin[name])
            _train(name, profile, place / name, settings)
            (place / name / "done").touch()
    report.write(*((folder.parent, report.HEAD) if profile == "tiny" else (folder, PAGE)))
    shutil.rmtree(place)
    return folder


def _train(name: str, profile: str, out: Path, settings: dict) -> None:
    if name == "vae":
        settings |= DECODER
    if name not in STAGES:
        pretrain.run(name, profile, out=str(out), **settings)
        return
    settings |= {"profile": profile, "run_folder": str(out), "warmup": 30}
    if name == "single_id":
        settings["distil"] = 0  # which is for weights from nothing
    stage = importlib.import_module(f"uniportrait_lite.training.{name}")
    stage.run(stage.settings([f"--{key.replace('_', '-')}={'none' if value is None else value}"
                              for key, value in settings.items()]))  # fmt: skip


def _copy(source: Path, target: Path) -> None:
    """A copy that is there whole or not at all, once made not made again."""
    if not target.exists():
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        os.replace(temporary, target)
