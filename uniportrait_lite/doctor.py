"""What is there, what is missing, on what hardware, and what will run: `python -m uniportrait_lite doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path

from uniportrait_lite import __version__, hardware, places
from uniportrait_lite.errors import UniPortraitError
from uniportrait_lite.folders import data_folder

LIBRARIES = (
    "torch", "diffusers", "transformers", "peft", "accelerate", "huggingface_hub", "insightface", "onnxruntime",
)  # fmt: skip
TINY = {  # what draws, and the file that each part cannot be without
    "pipeline": "sd/model_index.json",
    "U-Net": "sd/unet/diffusion_pytorch_model.safetensors",
    "VAE": "sd/vae/diffusion_pytorch_model.safetensors",
    "text encoder": "sd/text_encoder/model.safetensors",
    "CLIP": "clip/model.safetensors",
    "face backbone": "recogniser/model.safetensors",
    "face models": "face/detector.onnx",
    "UniPortrait": "uniportrait/model.safetensors",
}
GIT_LFS = b"version https://git-lfs"  # what stands in a file that git has not fetched


def report(given: Mapping[str, str | os.PathLike | None] | None = None) -> Iterator[str]:
    """The findings, line by line; `given` are places of sd15's parts, see places.py."""
    yield f"uniportrait-lite {__version__}, Python {platform.python_version()} on {platform.platform(terse=True)}"
    yield ", ".join(f"{name} {_version(name)}" for name in LIBRARIES)
    yield from _faces()
    found = hardware.find()
    yield f"device: {found.name}, {found.memory / 1e9:.1f} GB"
    yield ""
    yield from _tiny()
    yield ""
    yield from _sd15(given, found)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "MISSING"


def _faces() -> Iterator[str]:
    try:
        import cv2  # noqa: F401 - whether its system libraries are there
    except ImportError as error:
        yield f"MISSING: OpenCV cannot be loaded ({error}): apt-get install libgl1 libglib2.0-0 libegl1"


def _tiny() -> Iterator[str]:
    try:
        folder = data_folder("tiny")
    except UniPortraitError as error:
        yield f"tiny: MISSING: {error}"
        return
    files = lacking(folder)
    for part, file in TINY.items():
        if file in files:
            yield f"  MISSING: {part}, {folder / file}: git checkout -- data"
    several = "" if (folder / "uniportrait" / "multi_id.safetensors").is_file() else ", one person a picture"
    yield f'tiny: {"will not run" if files else f"will run{several}"}: load("tiny"), {folder}, Apache-2.0'


def lacking(folder: Path) -> list[str]:
    """The files that the tiny profile's folder, or one like it, cannot be without and does not have."""
    return [file for file in TINY.values() if not _is_there(folder / file)]


def _is_there(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(GIT_LFS)) != GIT_LFS


def _sd15(given: Mapping[str, str | os.PathLike | None] | None, found: hardware.Hardware) -> Iterator[str]:
    found_places = places.find(given)
    for name, place in found_places.items():
        for need in place.missing:
            size = f", {places.megabytes(need.megabytes)}" if place.published else ""
            yield f"  MISSING: {name}: {need.names[0]}{size}; from {place.given}; licence: {place.licence}"
        if not place.missing:
            yield f"  {name}: {place.path}; licence: {place.licence}"
    missing = [need.megabytes for place in found_places.values() for need in place.missing]
    if missing:
        yield f"sd15: will not run: `python -m uniportrait_lite fetch sd15` downloads {places.megabytes(sum(missing))}"
    else:
        yield f'sd15: will run: load("sd15") on {hardware.plan(found)}'
