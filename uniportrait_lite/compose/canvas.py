"""Another pipeline on the same networks, and the sizes at which these draw."""

from __future__ import annotations

import inspect
from typing import TypeVar

from diffusers import DiffusionPipeline

from uniportrait_lite.adapter import UniPortrait

P = TypeVar("P", bound=DiffusionPipeline)


def pipeline(up: UniPortrait, kind: type[P]) -> P:
    """A pipeline of this kind made of the parts of the one attached to, without those that it has no use for.

    diffusers' `from_pipe` would turn all of them to float32.
    """
    known = inspect.signature(kind.__init__).parameters
    parts = {name: part for name, part in up.pipe.components.items() if name in known}
    made = kind(**parts, requires_safety_checker=parts.get("safety_checker") is not None)
    made.set_progress_bar_config(disable=True)
    return made


def own_height(up: UniPortrait) -> int:
    """The height in pixels of the pictures that the U-Net was trained on."""
    return up.unet.config.sample_size * up.pipe.vae_scale_factor


def multiple(up: UniPortrait) -> int:
    """What the sides of a picture are multiples of, so that the U-Net can halve its latents at every level."""
    return 2 ** (len(up.unet.config.down_block_types) - 1) * up.pipe.vae_scale_factor
