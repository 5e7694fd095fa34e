"""The batches of the single-ID stage: what of a sample is dropped, swapped and hidden in noise."""

import numpy as np
import torch
from torch import Tensor

from uniportrait_lite.toyworld.pretrain.unet import draw_timesteps
from uniportrait_lite.training.data import Batch, PortraitData, tokenize
from uniportrait_lite.training.settings import SingleIDConfig


class Batches:
    """The batch of a step: samples of `data`, some of them without caption, without face, or with another's F_r.

    With probability `no_caption` the caption is empty. A share `nobody` of these gets the unconditional features too,
    and so the unconditional ID tokens: that is the row which guidance compares with. The paper does not say how these
    tokens are trained. Independently, with probability `no_face` the ID branch is off.
    """

    def __init__(self, config: SingleIDConfig, data: PortraitData, timesteps: int):
        self.config, self.data, self.timesteps = config, data, timesteps
        self.no_text = tokenize(data.tokenizer, [""])[0]
        self.no_structure = data.features.unconditional().structure.cpu()

    def __call__(self, step: int, generator: torch.Generator, cached: bool = True) -> Batch:
        config, size = self.config, self.config.batch
        parts = self.read(self.data.draw(generator, size, config.swap), cached)
        silent = torch.rand(size, generator=generator) < config.no_caption
        nobody = silent & (torch.rand(size, generator=generator) < config.nobody)
        parts["text"][silent] = self.no_text
        parts["intrinsic"][nobody] = 0
        parts["structure"][nobody] = self.no_structure
        if config.timesteps == "middle":
            timesteps = draw_timesteps(size, generator, self.timesteps)
        else:
            timesteps = torch.randint(self.timesteps, (size,), generator=generator)
        return Batch(
            **parts,
            noise=torch.randn(parts["latents"].shape, generator=generator),
            timesteps=timesteps,
            active=torch.rand(size, generator=generator) >= config.no_face,
        )

    def read(self, drawn: dict[str, np.ndarray], cached: bool = True) -> dict[str, Tensor]:
        """What `PortraitData.read` gives, with the F_r that the settings ask for."""
        parts = self.data.read(drawn, cached)
        if self.config.intrinsic == "global":
            parts["intrinsic"] = self.as_vector(parts["intrinsic"])
        return parts

    @torch.no_grad()
    def as_vector(self, intrinsic: Tensor) -> Tensor:
        """The face's one vector (B,1,D) from the stored map (B,49,C): the rest of the backbone."""
        backbone = self.data.features.backbone
        side = round(intrinsic.shape[1] ** 0.5)
        maps = intrinsic.transpose(1, 2).unflatten(2, (side, side))
        device = next(backbone.parameters()).device
        return backbone.head(maps.to(device)).cpu().unsqueeze(1)
