"""Files in the published layout: which there are, where they lie, reading, writing.

Each is a `.bin` (pickled by torch, with tensors in groups) or a `.safetensors` (the group's name in front of each key).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from uniportrait_lite.checkpoints import MODEL, writing
from uniportrait_lite.errors import WeightsError
from uniportrait_lite.parts import BACKBONE, FACEID, IP_ADAPTER, PARTS, ROUTER

ENDINGS = (".safetensors", ".bin")
_GROUPS = ("faceid_proj", "faceid_adapter", "image_proj", "ip_adapter")
_SIGNS = {  # what some key has in each kind of file, the most telling first
    "faceid_proj.": FACEID,
    "_router.": ROUTER,
    "faceid_adapter.": FACEID,
    "image_proj.latents": "an IP-Adapter Plus",
    "ip_adapter.": IP_ADAPTER,
    "res_layer.": BACKBONE,
    "id_embedding.": f"a {MODEL} of this package, which is given by its folder",
    "conditioner.": "an SDXL checkpoint",
    "model.diffusion_model.": "a Stable Diffusion checkpoint",
    "down_blocks.": "a U-Net",
    "lora": "a LoRA",
}


def holds(place: str | os.PathLike) -> bool:
    """Whether these are published weights, a file or a folder with such files in it, and no folder of ours."""
    place = Path(place).expanduser()
    if place.is_dir():
        return not (place / MODEL).is_file() and any(inside(place, kind) for kind in (FACEID, ROUTER))
    return place.suffix in ENDINGS


def folder_of(place: str | os.PathLike) -> Path:
    """The folder of weights that are given by it or by a file in it."""
    place = Path(place).expanduser()
    return place.parent if place.suffix in ENDINGS else place


def inside(folder: Path, name: str) -> Path | None:
    """The file of that name and either ending in a folder, None if there is none."""
    return next((folder / (name + ending) for ending in ENDINGS if (folder / (name + ending)).is_file()), None)


def file_of(place: str | os.PathLike, kind: str) -> Path:
    """The file of this kind, `place` itself or in that folder; `WeightsError` if there is none."""
    place = Path(place).expanduser()
    found = inside(place, kind) if place.is_dir() else place
    if found is None or not found.is_file():
        raise WeightsError(f"there is no {found or place / (kind + '.bin')}: {_fetch(kind)}")
    return found


def read(path: Path, kind: str) -> dict[str, Tensor]:
    """The tensors of a file, groups in front of the keys; `WeightsError` if it is damaged or of another kind.

    Of a `.bin` nothing but tensors is unpickled, and that once: from then on a copy as safetensors serves as long as
    the file stays as it is. It lies next to the Hub's cache, in `HF_HOME/assets/uniportrait_lite`.
    """
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else _cached(path)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged, or holds other things than tensors, which are never unpickled: {_fetch(kind)}"
        ) from error
    except Exception as error:  # what torch raises depends on where the damage is
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{path} is cut short or damaged ({line}): {_fetch(kind)}") from error
    found = next((what for sign, what in _SIGNS.items() if any(sign in key for key in tensors)), "something else")
    if found != kind:
        raise WeightsError(f"{path} is no {kind}, it is probably {found}: {_fetch(kind)}")
    return tensors


def _fetch(kind: str) -> str:
    return f"fetch {kind} from {PARTS['ip_adapter' if kind == IP_ADAPTER else 'weights'].origin}"


def _cached(path: Path) -> dict[str, Tensor]:
    state, place = path.stat(), hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    source = f"{state.st_size} {state.st_mtime_ns}"
    copy = Path(constants.HF_ASSETS_CACHE) / "uniportrait_lite" / f"{path.stem}-{place[:16]}.safetensors"
    with contextlib.suppress(OSError, SafetensorError):  # there is none yet, or it is damaged
        with safe_open(copy, "pt") as file:
            fresh = (file.metadata() or {}).get("source") == source
        if fresh:
            return load_file(copy)
    nested = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    tensors = dict(_flat(nested))
    with contextlib.suppress(WeightsError):  # nothing can be written there: then without
        _save(copy, tensors, source=source)
    return tensors


def _flat(nested: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if not isinstance(nested, Mapping):
        raise ValueError(f"{prefix or 'it'} is a {type(nested).__name__} in place of tensors by name")
    for key, value in nested.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value.clone(memory_format=torch.contiguous_format)  # some may share their memory
        else:
            yield from _flat(value, f"{prefix}{key}.")


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as `read` gives them, whole or not at all; `WeightsError` where that cannot work."""
    if path.suffix == ".safetensors":
        _save(path, tensors)
    elif path.suffix == ".bin":
        nested: dict = {}
        for key, tensor in tensors.items():
            group, rest = key.split(".", 1)
            (nested.setdefault(group, {}) if group in _GROUPS else nested)[rest if group in _GROUPS else key] = tensor
        with writing(path.parent) as temporary:
            torch.save(nested, temporary / path.name)
            os.replace(temporary / path.name, path)
    else:
        raise WeightsError(f"a published file ends in {' or '.join(ENDINGS)}, not as {path.name} does")


def _save(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    with writing(path.parent) as temporary:
        save_file(dict(tensors), temporary / path.name, metadata={"format": "pt", **metadata})
        os.replace(temporary / path.name, path)
