"""Portraits by the hundred: many people and prompts in one batch, each row of it with its own identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from uniportrait_lite.adapter import UniPortrait
from uniportrait_lite.attention import IDConditions
from uniportrait_lite.checkpoints import CallDefaults
from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.pipelines import load_pipeline


@dataclass(frozen=True)
class Wish:
    """One picture to draw: its prompt, the seed of its noise, and who (a number into the tokens) should be in it."""

    prompt: str
    seed: int
    who: int = 0


def pipeline(folder: str | Path) -> StableDiffusionPipeline:
    """The text-to-image pipeline of a folder in float32, on a GPU if there is one; WeightsError if it is not whole."""
    return load_pipeline(folder).to("cuda" if torch.cuda.is_available() else "cpu")


def autoencoder(folder: str | Path) -> AutoencoderKL:
    """The autoencoder of a pipeline's folder by itself, in float32; WeightsError if it is not whole."""
    folder = Path(folder) / "vae"
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder} holds no autoencoder (config.json): fetch the data again, or pretrain the vae")
    try:
        vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{folder} is damaged or incomplete ({error}): fetch it again") from error
    return vae.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def settings(defaults: CallDefaults, **given: float | None) -> CallDefaults:
    """The defaults with what is given (not None) in their place; ConfigError for numbers that cannot work."""
    for name, value in given.items():
        if value is not None and not (1 if name == "steps" else 0) <= value < float("inf"):
            raise ConfigError(f"{name} cannot be {value}")
    return CallDefaults(**{**vars(defaults), **{name: value for name, value in given.items() if value is not None}})


def without_identity(
    pipe: DiffusionPipeline,
    wishes: Sequence[Wish],
    knobs: CallDefaults,
    batch: int,
    progress: Callable[[int], None],
    **given,
) -> list[Image.Image]:
    """Pictures of the prompts alone, with what is `given` to the pipeline (`height` and `width`, for instance).

    `progress` is told how many more are done.
    """
    return _draw(pipe, wishes, knobs, batch, progress, lambda part: given)


@torch.no_grad()
def with_identities(
    up: UniPortrait,
    tokens: Tensor,
    wishes: Sequence[Wish],
    knobs: CallDefaults,
    batch: int,
    progress: Callable[[int], None],
) -> list[Image.Image]:
    """Pictures of people, by their ID tokens (P, 16, D); what `up(prompt, [identity], seed=seed)` draws, in batches."""
    nobody = up.tokens(None, knobs.structure_scale)

    def conditions(part: Sequence[Wish]) -> dict:
        people = tokens[[wish.who for wish in part]]
        rows = torch.cat([nobody.expand_as(people), people]) if knobs.guidance > 1 else people
        given = IDConditions(rows.unsqueeze(1), knobs.id_scale).projected(up.id_attention)
        return {"cross_attention_kwargs": {"identities": given}}

    return _draw(up.pipe, wishes, knobs, batch, progress, conditions)


def _draw(
    pipe: DiffusionPipeline,
    wishes: Sequence[Wish],
    knobs: CallDefaults,
    batch: int,
    progress: Callable[[int], None],
    more: Callable[[Sequence[Wish]], dict],
) -> list[Image.Image]:
    images = []
    for start in range(0, len(wishes), batch):
        part = wishes[start : start + batch]
        images += pipe(
            prompt=[wish.prompt for wish in part],
            generator=[torch.Generator("cpu").manual_seed(wish.seed) for wish in part],
            num_inference_steps=knobs.steps,
            guidance_scale=knobs.guidance,
            **more(part),
        ).images
        progress(len(part))
    return images


@torch.no_grad()
def decoded(vae: AutoencoderKL, images: Sequence[Image.Image], batch: int, noise: float = 0.0) -> list[Image.Image]:
    """The pictures encoded and decoded by a pipeline's autoencoder: the best that its latents can hold.

    With `noise`, a deviation in shares of that of the latents, between the two: the same noise for the same pictures.
    """
    processor, found, generator = VaeImageProcessor(), [], torch.Generator().manual_seed(0)
    for start in range(0, len(images), batch):
        pixels = processor.preprocess(list(images[start : start + batch])).to(vae.device, vae.dtype)
        latents = vae.encode(pixels).latent_dist.mode()
        if noise:
            drawn = torch.randn(latents.shape, generator=generator).to(latents)
            latents = latents + noise / vae.config.scaling_factor * drawn
        restored = vae.decode(latents).sample
        found += processor.postprocess(restored, output_type="pil")
    return found
