"""Pictures of people in the style of a given picture, without a word about it (paper: style transfer)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, SchedulerMixin, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from uniportrait_lite.adapter import Identity, UniPortrait
from uniportrait_lite.attention import IDConditions
from uniportrait_lite.checks import number, whole
from uniportrait_lite.compose.canvas import multiple, own_height, pipeline
from uniportrait_lite.errors import ConfigError
from uniportrait_lite.id_routing import Routing
from uniportrait_lite.pictures import Picture, read_picture
from uniportrait_lite.pipelines import untempered
from uniportrait_lite.provenance import tell
from uniportrait_lite.style_alignment import StyleAlignment


def in_style(
    up: UniPortrait,
    prompt: str,
    style: Picture,
    identities: Identity | Sequence[Identity] = (),
    *,
    seed: int = 0,
    shift: float = 1.0,
    adain: bool = True,
    steps: int | None = None,
    guidance: float | None = None,
    id_scale: float | None = None,
    structure_scale: float | None = None,
    columns: float | None = None,
) -> Image.Image:
    """A picture of these people that looks as `style` does.

    The style picture is inverted to noise step by step (`invert`), and goes the same way back beside the new one, whose
    self-attention reads it too (StyleAligned, see style_alignment.py): `shift` above 0 reads more of it, below 0 less,
    `adain` also gives the new one its contrasts. The style picture itself knows of no identities. Both are of its
    proportions, at the model's own height. A prompt pulls towards the style that its words usually have, the more the
    higher `guidance` is; an empty one leaves style to the picture. Several people need weights with routers;
    `columns` as in `UniPortrait.using`.
    """
    people = [identities] if isinstance(identities, Identity) else list(identities)
    if len(people) > 1 and not up.routes:
        raise ConfigError(f"{len(people)} people in one picture need ID routing: give one, or train the multi-ID stage")
    defaults = up.config.defaults
    steps = defaults.steps if steps is None else whole("steps", steps, 2)
    guidance = defaults.guidance if guidance is None else number("guidance", guidance, 1)
    pipe = pipeline(up, StableDiffusionPipeline)
    pipe.scheduler = DDIMScheduler.from_config(untempered(up.pipe.scheduler.config))
    image = _at_home(read_picture(style), up)
    conditions = _conditions(up, people, image, id_scale, structure_scale, columns)
    way = invert(pipe, image, steps, _rows(conditions, [0], [False]))
    source = way[-1]
    noise = torch.randn(source.shape, generator=torch.Generator().manual_seed(whole("seed", seed, 0))).to(source)
    guided = guidance > 1
    align = StyleAlignment.to_first(
        4 if guided else 2, guided, source.device, shift=number("shift", shift, -20, 20), adain=adain
    )
    given = {"style": align, **_rows(conditions, [0, 0, 0, 1] if guided else [0, 1], align.followers.tolist())}

    def go_back(pipe: StableDiffusionPipeline, step: int, timestep: Tensor, latents: dict) -> dict:
        return {"latents": torch.cat([way[-2 - step], latents["latents"][1:]])}

    drawn = pipe(
        ["", prompt], latents=torch.cat([source, noise]), height=image.height, width=image.width,
        num_inference_steps=steps, guidance_scale=guidance, cross_attention_kwargs=given,
        callback_on_step_end=go_back,
    ).images[1]  # fmt: skip
    facts = up.facts(len(people), id_scale, structure_scale, columns)
    tell(drawn, prompt=prompt, seed=seed, steps=steps, guidance=guidance, **facts)
    return drawn


def backwards(scheduler: SchedulerMixin) -> DDIMInverseScheduler:
    """DDIM's steps towards noise, on the noise schedule of another scheduler."""
    unknown = "variance_type"  # which the backward one would warn of
    shared = {name: value for name, value in untempered(scheduler.config).items() if name != unknown}
    return DDIMInverseScheduler.from_config(shared)


@torch.no_grad()
def invert(pipe: StableDiffusionPipeline, image: Image.Image, steps: int, given: dict | None = None) -> list[Tensor]:
    """A picture's latents (1, c, h, w), then these after each of so many steps to noise by DDIM (Song et al. 2020).

    The U-Net is told nothing; `given` are its `cross_attention_kwargs`. From the last of them DDIM draws a picture of
    the same shapes, not always as bright: a schedule that ends in pure noise forgets that.
    """
    pixels = pipe.image_processor.preprocess(image).to(pipe.device, pipe.vae.dtype)
    latents = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    text = pipe.encode_prompt("", pipe.device, 1, False)[0]
    scheduler = backwards(pipe.scheduler)
    scheduler.set_timesteps(steps, device=pipe.device)
    way = [latents.to(text.dtype)]
    for timestep in scheduler.timesteps:
        predicted = pipe.unet(way[-1], timestep, text, cross_attention_kwargs=given).sample
        way.append(scheduler.step(predicted, timestep, way[-1]).prev_sample)
    return way


def _at_home(image: Image.Image, up: UniPortrait) -> Image.Image:
    """The picture at the model's own height, its width a multiple of what the U-Net halves."""
    height, unit = own_height(up), multiple(up)
    width = max(unit, round(image.width * height / image.height / unit) * unit)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _conditions(
    up: UniPortrait,
    people: list[Identity],
    image: Image.Image,
    id_scale: float | None,
    structure_scale: float | None,
    columns: float | None,
) -> IDConditions | None:
    if not people:
        return None
    found = up.conditions(*people, id_scale=id_scale, structure_scale=structure_scale)
    size = tuple(side // up.pipe.vae_scale_factor for side in (image.height, image.width))
    columns = up.config.defaults.columns if columns is None else number("columns", columns, 0, 1)
    return replace(found, routing=Routing(size, columns=columns)) if len(people) > 1 else found


def _rows(conditions: IDConditions | None, rows: list[int], active: list[bool]) -> dict:
    """The identities of a U-Net call: nobody (0) or the people (1) in each row, and in which rows they count."""
    if conditions is None:
        return {}
    device = conditions.tokens.device
    chosen = conditions.rows(torch.tensor(rows, device=device))
    return {"identities": replace(chosen, active=torch.tensor(active, device=device))}
