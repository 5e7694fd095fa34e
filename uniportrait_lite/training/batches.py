"""The batches of both stages: what of a sample is dropped, swapped and hidden in noise."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from uniportrait_lite.toyworld.pretrain.noisy import draw_timesteps
from uniportrait_lite.training.data import Batch, SceneData, tokenize
from uniportrait_lite.training.settings import MultiIDConfig, StageConfig


class Batches:
    """The batch of a step: samples of `data`, some of them without caption, without face, or with another's F_r.

    With probability `no_caption` the caption is empty. A share `nobody` of these gets the unconditional features too,
    and so the unconditional ID tokens: that is the row which guidance compares with. The paper does not say how these
    tokens are trained. Independently, with probability `no_face` the ID branch is off. In a share `sentences` of steps
    something is said of half of the people alone, in samples with a caption and the ID branch on.
    """

    def __init__(self, config: StageConfig, data: SceneData, timesteps: int, intrinsic: str = "spatial"):
        self.config, self.data, self.timesteps, self.intrinsic = config, data, timesteps, intrinsic
        self.sentences = getattr(config, "sentences", 0.0)  # the single-ID stage has none
        self.no_text = tokenize(data.tokenizer, [""])[0]
        self.no_structure = data.features.unconditional().structure.half().cpu()
        if intrinsic == "global":  # on the CPU, where batches are made
            self.head = copy.deepcopy(data.features.backbone.head).cpu()

    def __call__(self, step: int, generator: torch.Generator, cached: bool = True) -> Batch:
        config, size = self.config, self.size
        drawn = self.data.draw(generator, size, config.swap)
        parts = self.read(drawn, cached)
        silent = torch.rand(size, generator=generator) < config.no_caption
        nobody = silent & (torch.rand(size, generator=generator) < config.nobody)
        parts["text"][silent] = self.no_text
        parts["intrinsic"][nobody] = 0
        parts["structure"][nobody] = self.no_structure
        if self.sentences and float(torch.rand(1, generator=generator)) < self.sentences:
            parts["said"] = (torch.rand(drawn["face"].shape, generator=generator) < 0.5) & ~silent[:, None]
            parts["sentences"] = self.data.sentences(drawn)
        timesteps = draw_timesteps(size, generator, config.timesteps, self.timesteps)
        noise = torch.randn(parts["latents"].shape, generator=generator)
        active = torch.rand(size, generator=generator) >= config.no_face
        if "said" in parts:
            parts["said"] &= active[:, None]
        return Batch(**parts, noise=noise, timesteps=timesteps, active=active)

    @property
    def size(self) -> int:
        """Samples of a batch: fewer of wide pictures, so that all batches cost about the same."""
        return max(1, self.config.batch * 128 // self.data.scenes.spec.width)

    def read(self, drawn: dict[str, np.ndarray], cached: bool = True) -> dict[str, Tensor]:
        """What `SceneData.read` gives, with the F_r, spatial or global, that the weights are for."""
        parts = self.data.read(drawn, cached)
        if self.intrinsic == "global":
            parts["intrinsic"] = self.as_vector(parts["intrinsic"])
        return parts

    @torch.no_grad()
    def as_vector(self, intrinsic: Tensor) -> Tensor:
        """The face's one vector (B,N,1,D), float16, from the stored map (B,N,49,C): the rest of the backbone."""
        batch, people, length, _ = intrinsic.shape
        side = round(length**0.5)
        maps = intrinsic.float().flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))
        return self.head(maps).view(batch, people, 1, -1).half()


class GroupBatches:
    """The batch of a step of the multi-ID stage: pictures of one number of people, drawn by `MultiIDConfig.shares`.

    `kinds`: the batches of each number that is ever drawn, by the name of its set. The temperature of the routing's
    noise falls linearly from its first to its last value over `cooling` steps.
    """

    def __init__(self, config: MultiIDConfig, kinds: Mapping[str, Batches]):
        self.config, self.kinds = config, kinds

    def __call__(self, step: int, generator: torch.Generator) -> Batch:
        config, left = self.config, float(torch.rand(1, generator=generator))
        for name in self.kinds:  # the last is what is left
            if left < config.shares[name]:
                break
            left -= config.shares[name]
        done = min(1.0, step / config.cooling) if config.cooling else 1.0
        temperature = config.temperature + (config.last_temperature - config.temperature) * done
        return replace(self.kinds[name](step, generator), temperature=torch.tensor(temperature))
