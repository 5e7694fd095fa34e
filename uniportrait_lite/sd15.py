"""`load("sd15")`: Stable Diffusion 1.5 and the published UniPortrait, from the Hub or from places of the user's."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors import SafetensorError, safe_open

from uniportrait_lite import hardware, places
from uniportrait_lite.adapter import UniPortrait
from uniportrait_lite.errors import WeightsError
from uniportrait_lite.parts import PARTS, is_ours
from uniportrait_lite.places import Place
from uniportrait_lite.quiet import no_progress_bars

_FIRST = "model.diffusion_model.input_blocks.0.0.weight"  # of a single file's U-Net: the convolution of the latents


def load(
    given: Mapping[str, str | os.PathLike | None] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    offload: bool | None = None,
    tiling: bool | None = None,
) -> UniPortrait:
    """The published UniPortrait on a Stable Diffusion 1.5 checkpoint, with the paper's scheduler (DDIM).

    `given`: the places of parts (places.py); the others come from the Hub, downloaded the first time. `base` is a
    pipeline in diffusers' layout or a single `.safetensors` file; its safety checker stays as it has it. Says on stderr
    how it runs, and the licences. Raises `WeightsError`, `ConfigError`.
    """
    plan = hardware.plan(hardware.find(device), dtype, offload, tiling)
    found = places.fetch(given)
    print(f"sd15 on {plan}", file=sys.stderr)
    print(f"licences: {'; '.join(f'{name} {place.licence}' for name, place in found.items())}", file=sys.stderr)
    pipe = base_pipeline(found, plan.dtype)
    plan.apply(pipe)
    return UniPortrait.attach(pipe, found["weights"].path, **_encoders(found))


def base_pipeline(found: Mapping[str, Place], dtype: torch.dtype) -> StableDiffusionPipeline:
    """The base's pipeline on the CPU; `WeightsError` where it is damaged or of another family."""
    path = found["base"].path
    problem = _other_file(path) if path.is_file() else _other_folder(path)
    if problem:
        raise WeightsError(f"{path} is {problem}: give a text-to-image checkpoint of Stable Diffusion 1.5's family")
    try:
        with no_progress_bars():
            if path.is_file():
                settings = found["settings"].path
                pipe = StableDiffusionPipeline.from_single_file(str(path), config=str(settings), dtype=dtype)
                pipe.register_to_config(_name_or_path=str(path))  # as the other way notes it
            else:
                variant = _variant(path, dtype)
                pipe = StableDiffusionPipeline.from_pretrained(path, dtype=dtype, variant=variant)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{path} is damaged or incomplete ({line}): fetch it again") from error
    if not isinstance(pipe.scheduler, DDIMScheduler):
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return pipe


def _encoders(found: Mapping[str, Place]) -> dict[str, Path | str]:
    """Where `UniPortrait.attach` finds what belongs to the weights."""
    encoders: dict[str, Path | str] = {}
    if "faces" in found:
        encoders["faces"] = found["faces"].path
    if "ip_adapter" in found:
        path = found["ip_adapter"].path
        folder = path if path.is_dir() else path.parent
        file, clip = (need.within(folder) for need in PARTS["ip_adapter"].needs)
        encoders["ip_adapter"] = path if path.is_file() else folder / file
        if not is_ours(found["weights"].path):  # which name a CLIP of their own
            encoders["clip"] = (folder / clip).parent
    return encoders


def _variant(folder: Path, dtype: torch.dtype) -> str | None:
    """`fp16` where only such weights are there, or where they say all that the dtype can."""
    files = PARTS["base"].needs[0].names
    half, *whole = ((folder / name).is_file() for name in files)
    return "fp16" if half and (dtype != torch.float32 or not any(whole)) else None


# Checkpoints of other kinds: what they are, in words, "" for what fits


def _other_folder(folder: Path) -> str:
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
        kind = str(index.get("_class_name"))
        return _oddity("XL" in kind or bool(unet.get("addition_embed_type")), unet.get("in_channels", 4))
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(f"{folder} is no pipeline in diffusers' layout ({error}): fetch it again") from error


def _other_file(path: Path) -> str:
    try:
        with safe_open(path, "pt") as file:
            keys = set(file.keys())
            channels = file.get_slice(_FIRST).get_shape()[1] if _FIRST in keys else 0
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is cut short or damaged ({error}): fetch it again") from error
    sdxl = any(key.startswith("conditioner.") for key in keys)
    if not channels and not sdxl:
        return "a LoRA" if any("lora" in key for key in keys) else "no Stable Diffusion checkpoint"
    if any(key.startswith("cond_stage_model.model.") for key in keys):
        return "a Stable Diffusion 2 checkpoint"
    return _oddity(sdxl, channels)


def _oddity(sdxl: bool, channels: int) -> str:
    if sdxl:
        return "an SDXL checkpoint"
    return "" if channels == 4 else f"a checkpoint whose U-Net reads {channels} channels (inpainting, depth), not 4"
