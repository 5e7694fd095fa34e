"""People into existing pictures: only what a mask covers is drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image, ImageFilter

from uniportrait_lite.adapter import Identity, UniPortrait
from uniportrait_lite.checks import number, whole
from uniportrait_lite.compose.canvas import multiple, own_height, pipeline
from uniportrait_lite.errors import ConfigError
from uniportrait_lite.faces import face_of
from uniportrait_lite.pictures import Picture, read_picture
from uniportrait_lite.provenance import tell

HEAD = (0.3, 0.5, 0.12)  # of the face's box: to the sides, up, down: hair and ears, and some of the neck


def face_mask(picture: Picture, face: Any = "largest", faces: Any = None) -> Image.Image:
    """White around one head of a picture, black elsewhere ("L", of the picture's size): what a face swap draws anew.

    `face` as in `UniPortrait.identity`; `faces` is the detector's folder, the tiny profile's where not given. An
    ellipse around the face's box, larger by `HEAD`. Raises `NoFaceError`, `SeveralFacesError`.
    """
    image = read_picture(picture)
    left, top, right, bottom = face_of(image, face, faces).box
    sides, up, down = (
        share * size for share, size in zip(HEAD, (right - left, bottom - top, bottom - top), strict=True)
    )
    middle = (left + right) / 2, (top - up + bottom + down) / 2
    radii = (right - left) / 2 + sides, (bottom - top + up + down) / 2
    rows, columns = np.mgrid[: image.height, : image.width] + 0.5
    inside = ((columns - middle[0]) / radii[0]) ** 2 + ((rows - middle[1]) / radii[1]) ** 2 <= 1
    return Image.fromarray(np.uint8(255 * inside))


def clothes_mask(picture: Picture, face: Any = "largest", faces: Any = None) -> Image.Image:
    """White below one face of a picture, as wide as its shoulders: what trying on other clothes draws anew.

    Arguments and errors as in `face_mask`.
    """
    image = read_picture(picture)
    left, _, right, bottom = face_of(image, face, faces).box
    rows, columns = np.mgrid[: image.height, : image.width] + 0.5
    inside = (rows > bottom) & (abs(columns - (left + right) / 2) < 0.9 * (right - left))
    return Image.fromarray(np.uint8(255 * inside))


def inpaint(
    up: UniPortrait,
    prompt: str,
    picture: Picture,
    mask: Any,
    identities: Identity | Sequence[Identity] = (),
    *,
    seed: int = 0,
    strength: float = 1.0,
    steps: int | None = None,
    guidance: float | None = None,
    id_scale: float | None = None,
    structure_scale: float | None = None,
    columns: float = 0.0,
    feather: float = 2.0,
    height: int | None = None,
) -> Image.Image:
    """The picture with what `mask` covers drawn anew, showing these people.

    `mask`: an array or a picture of the picture's shape, white (or True) where something new belongs: see `face_mask`
    and `clothes_mask`. In every step what lies outside is put back, noised as the step has it, as diffusers' own
    inpainting does for U-Nets without inputs for a mask; that pipeline takes latents of four channels only, this those
    of any autoencoder. `strength`: the last share of the steps, which are drawn, from as much noise as there is then; 1
    forgets what lies inside. `columns` are those of the whole picture (see `UniPortrait.using`), none by default, as
    the mask may lie anywhere in it. At the end the picture's own pixels are laid around what was drawn, blended over
    `feather` pixels within the mask, so that outside of it nothing changes at all. `height`: the picture is drawn so
    high, and what was drawn is scaled to the picture's size; the model's own height where not given, as larger ones
    hold more than one face of the size that it knows.
    Raises `ConfigError` for a mask that is empty or of another shape, `PictureError`.
    """
    image = read_picture(picture)
    inside = _inside(mask, image)
    people = [identities] if isinstance(identities, Identity) else list(identities)
    defaults = up.config.defaults
    steps = defaults.steps if steps is None else whole("steps", steps, 1)
    guidance = defaults.guidance if guidance is None else number("guidance", guidance, 0)
    strength = number("strength", strength, 0, 1)
    if round(steps * strength) < 1:
        raise ConfigError(f"a strength of {strength} leaves none of {steps} steps: give a larger one")
    unit = multiple(up)
    height = own_height(up) if height is None else whole("height", height, unit)
    size = max(unit, round(image.width * height / image.height)), height
    small = image.resize(size, Image.Resampling.LANCZOS) if size != image.size else image
    area = Image.fromarray(np.uint8(255 * inside)).resize(size, Image.Resampling.BOX)
    padded, area = _padded(small, unit), _padded(area, unit)
    pipe = pipeline(up, StableDiffusionImg2ImgPipeline)
    keep = _Outside(pipe, padded, np.asarray(area) > 0, seed)
    with up.using(*people, id_scale=id_scale, structure_scale=structure_scale, columns=columns):
        drawn = pipe(
            prompt, image=padded, strength=strength, num_inference_steps=steps, guidance_scale=guidance,
            generator=torch.Generator().manual_seed(whole("seed", seed, 0)), callback_on_step_end=keep,
        ).images[0]  # fmt: skip
    soft = Image.fromarray(np.uint8(255 * inside)).filter(ImageFilter.GaussianBlur(feather)) if feather else None
    share = inside if soft is None else np.minimum(np.asarray(soft) / 255 * 2 - 1, inside).clip(0, 1)
    drawn = drawn.crop((0, 0, *size)).resize(image.size, Image.Resampling.LANCZOS)
    new, old = (np.asarray(x).astype(np.float32) for x in (drawn, image))
    made = Image.fromarray(np.uint8(np.round(old + share[..., None] * (new - old))))
    facts = up.facts(len(people), id_scale, structure_scale, columns)
    tell(made, prompt=prompt, seed=seed, steps=steps, guidance=guidance, **facts)
    return made


class _Outside:
    """A callback of diffusers' pipelines: after each step the latents outside the mask are the picture's again."""

    def __init__(self, pipe: StableDiffusionImg2ImgPipeline, picture: Image.Image, inside: np.ndarray, seed: int):
        generator = torch.Generator().manual_seed(seed)
        pixels = pipe.image_processor.preprocess(picture).to(pipe.device, pipe.vae.dtype)
        with torch.no_grad():
            latents = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
        self.clean = latents.to(pipe.unet.dtype)
        self.noise = torch.randn(latents.shape, generator=generator).to(self.clean)
        area = torch.from_numpy(inside).float()[None, None].to(self.clean)
        self.area = (torch.nn.functional.adaptive_max_pool2d(area, latents.shape[-2:]) > 0).to(self.clean)

    def __call__(self, pipe: Any, step: int, timestep: Any, given: dict) -> dict:
        """The latents of a step, with what lies outside as noisy as the next step wants it."""
        later = pipe.scheduler.timesteps[pipe.scheduler.timesteps < timestep]
        outside = self.clean if len(later) == 0 else pipe.scheduler.add_noise(self.clean, self.noise, later[:1])
        return {"latents": self.area * given["latents"] + (1 - self.area) * outside}


def _inside(mask: Any, image: Image.Image) -> np.ndarray:
    """The mask as bool (H, W)."""
    values = np.asarray(mask.convert("L") if isinstance(mask, Image.Image) else mask)
    if values.shape != (image.height, image.width) or values.dtype.kind not in "biuf":
        raise ConfigError(
            f"the mask is {values.shape}, the picture {(image.height, image.width)}: they are of one shape"
        )
    inside = values > (0.5 if values.dtype.kind == "b" or values.max(initial=0) <= 1 else 127)
    if not inside.any():
        raise ConfigError("the mask is empty: mark what should be drawn anew, as face_mask(picture) does")
    return inside


def _padded(image: Image.Image, unit: int) -> Image.Image:
    """The picture with its last row and column repeated until its sides are multiples."""
    rows, columns = -image.height % unit, -image.width % unit
    values = np.asarray(image)
    return Image.fromarray(np.pad(values, ((0, rows), (0, columns), *((0, 0),) * (values.ndim - 2)), mode="edge"))
