"""What a profile draws with, trained on from the weights it has: an evening, or a few minutes of a GPU, for all of it.

Detector, recognisers, CLIP and the autoencoder's encoder stay: with them latents and face features keep their meaning,
and every network goes on from where it was.
"""

import importlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from uniportrait_lite.errors import ConfigError
from uniportrait_lite.folders import data_folder
from uniportrait_lite.toyworld import pretrain
from uniportrait_lite.toyworld.pretrain import report
from uniportrait_lite.toyworld.pretrain.image import FILE
from uniportrait_lite.weights import PAGE, STAGES

SHARES = {  # of the hours, in the order in which they need each other
    "vae": 0.07, "unet": 0.46, "pose": 0.04, "edges": 0.05, "image": 0.02, "style": 0.01, "single_id": 0.19,
    "multi_id": 0.16,
}  # fmt: skip
BATCHES = {  # that 141 GB hold: a GPU takes as long for few samples, waiting for its orders (docs/experiments.md)
    "vae": 256, "unet": 1536, "pose": 256, "edges": 256, "image": 128, "style": 64, "single_id": 768, "multi_id": 1024,
}  # fmt: skip
MEMORY = 141e9


def run(profile: str, hours: float) -> Path:
    """Trains the profile, "tiny" or a folder, on for so many hours in all; returns its folder.

    Stopped and called again it goes on, in `runs/onward` (`runs/NAME/onward`), which is gone when all is done: another
    call then goes further. Drawing scenes comes on top of the hours. Raises `ConfigError` for hours that are none.
    """
    if not hours or hours <= 0:
        raise ConfigError("--onward needs --hours, above 0: how long to train on, all networks together")
    folder = data_folder(profile)
    place = Path("runs") / ("" if profile == "tiny" else folder.resolve().name) / "onward"
    started = _copy(folder / "uniportrait", place / "uniportrait")  # the single-ID stage removes the routers' weights
    parts = [name for name in SHARES if profile == "tiny" or name not in pretrain.TOY]
    for number, name in enumerate(parts, start=1):
        print(f"--- {name} ({number} of {len(parts)})", flush=True)
        if not (place / name / "done").exists():
            _training(name, profile, folder, place / name, started, hours * SHARES[name])()
            (place / name / "done").touch()
    report.write(*((folder.parent, report.HEAD) if profile == "tiny" else (folder, PAGE)))
    shutil.rmtree(place)
    return folder


def _training(name: str, profile: str, folder: Path, out: Path, started: Path, hours: float) -> Callable[[], object]:
    """What trains one part on."""
    begin = {
        "vae": folder / "sd" / "vae", "unet": folder / "sd", "pose": folder / "controlnet" / "pose",
        "edges": folder / "controlnet" / "edges", "image": folder / "ip_adapter" / FILE,
        "single_id": folder / "uniportrait", "multi_id": started,
    }  # fmt: skip
    settings = {"steps": None, "hours": round(hours, 5), "cooldown": 0.9}
    if name in begin:  # a style LoRA is as short as new
        settings["start_from"] = str(begin[name])
    if name == "vae":
        settings |= {"decoder_only": True, "noise": 0.2, "muon_lr": 0.01}
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        settings["batch"] = max(16, round(BATCHES[name] * min(1.0, memory / MEMORY) / 16) * 16)
    if name not in STAGES:
        return lambda: pretrain.run(name, profile, out=str(out), **settings)
    settings |= {"profile": profile, "run_folder": str(out), "warmup": 30}
    stage = importlib.import_module(f"uniportrait_lite.training.{name}")
    flags = [f"--{key.replace('_', '-')}={str(value).lower() if value is None else value}"
             for key, value in settings.items()]  # fmt: skip
    return lambda: stage.run(stage.settings(flags))


def _copy(source: Path, target: Path) -> Path:
    """A copy that is there whole or not at all, once made not made again."""
    if not target.exists():
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        os.replace(temporary, target)
    return target
