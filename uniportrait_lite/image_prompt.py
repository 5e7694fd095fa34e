"""The image prompt: a picture that a U-Net reads beside the text (IP-Adapter, arXiv 2308.06721).

Like ID tokens it enters by decoupled cross-attention, each layer having keys and values of its own for it:

    out = Attention(Q, K_text, V_text) + image_scale * Attention(Q, K_image, V_image) [+ identities, see attention.py]

It knows nothing of identities, and goes with any number of them, also none. Keys and values are made once a call and
travel with it (`cross_attention_kwargs={"image_prompt": ImagePrompt(...)}`), so the U-Net holds none of these weights.
`UniPortrait.using(image_prompt=picture)` does all that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import ImageProjection
from PIL import Image, ImageOps
from torch import Tensor, nn

from uniportrait_lite.conditions import Conditions, row_weight
from uniportrait_lite.id_routing import layer_size


@dataclass(frozen=True)
class ImagePrompt(Conditions):
    """The image prompt of one U-Net call; made by `ImageAdapter.prompt`.

    `keys_values`: for each cross-attention layer two tensors (B, T, inner), or (1, T, inner) for all rows.
    `image_scale`: one number, or one a row (B,). `active` (B,), bool: rows without it have no image prompt. `mask`
    (B or 1, H, W), 0 to 1 and of the latents' size: where it is heeded, everywhere without one.
    """

    keys_values: Mapping[str, tuple[Tensor, Tensor]]
    image_scale: float | Tensor = 1.0
    active: Tensor | None = None
    mask: Tensor | None = None

    def weight(self, dtype: torch.dtype, length: int) -> float | Tensor:
        """What the branch is multiplied with at `length` locations: the image scale, 0 in rows that are not active."""
        weight = row_weight(self.image_scale, self.active, dtype)
        if self.mask is None:
            return weight
        size = layer_size(tuple(self.mask.shape[-2:]), length)
        here = F.interpolate(self.mask.float().unsqueeze(1), size=size, mode="area")
        return weight * here.flatten(2).transpose(1, 2).to(dtype)


class _Layer(nn.Module):
    """The projections of image tokens to keys and values of one cross-attention layer."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.to_k, self.to_v = (nn.Linear(width, inner, bias=False) for _ in range(2))


class ImageAdapter(nn.Module):
    """IP-Adapter's weights for one U-Net: CLIP's image embedding -> image tokens -> keys and values of every layer.

    `embed_dim`: width of CLIP's projected image embedding. `tokens`: how many each picture becomes, 4 in the published
    files. Keys of `layers` are the U-Net's names of its cross-attention layers, with `/` for `.`.
    """

    def __init__(self, unet: UNet2DConditionModel, embed_dim: int, tokens: int = 4):
        super().__init__()
        width = unet.config.cross_attention_dim
        self.projection = ImageProjection(embed_dim, width, tokens)
        names = [name for name, _ in unet.named_modules() if name.endswith(".attn2")]
        self.layers = nn.ModuleDict(
            {name.replace(".", "/"): _Layer(width, unet.get_submodule(name).inner_dim) for name in names}
        )

    def forward(self, embeds: Tensor) -> Tensor:
        """CLIP image embeddings (B, embed_dim) -> image tokens (B, T, D); for no picture give zeros, as published."""
        return self.projection(embeds)

    def prompt(self, tokens: Tensor, image_scale: float | Tensor = 1.0, active: Tensor | None = None) -> ImagePrompt:
        """Image tokens (B, T, D) -> what a U-Net call takes."""
        keys_values = {
            name.replace("/", "."): (layer.to_k(tokens), layer.to_v(tokens)) for name, layer in self.layers.items()
        }
        return ImagePrompt(keys_values, image_scale, active)


def clip_view(image: Image.Image, size: int = 224) -> np.ndarray:
    """A picture as CLIP is shown it: its largest square in the middle, uint8 (size, size, 3)."""
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC))
