"""The tiny IP-Adapter (arXiv 2308.06721): the frozen U-Net is shown the picture itself, as CLIP sees it.

Trained are the projection of CLIP's embedding to 4 image tokens, and keys and values of every cross-attention layer for
them, which start as those of text. Identities are no part of this training.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from uniportrait_lite import official
from uniportrait_lite.attention import attach_id_attention
from uniportrait_lite.errors import ConfigError
from uniportrait_lite.features import load_clip_vision
from uniportrait_lite.image_prompt import ImageAdapter, clip_view
from uniportrait_lite.loop import LoopConfig, train
from uniportrait_lite.speed import fast_attention
from uniportrait_lite.toyworld.pretrain.clip import clip_pixels
from uniportrait_lite.toyworld.pretrain.controlnet import FROZEN
from uniportrait_lite.toyworld.pretrain.noisy import NoisyScenes
from uniportrait_lite.toyworld.pretrain.record import depends, record
from uniportrait_lite.toyworld.pretrain.unet import scheduler

FILE = "ip-adapter.safetensors"  # in the published layout, see official.py


@dataclass
class ImageRecipe:
    """No caption in half of the samples: a picture then hangs on the image prompt alone."""

    out: str = "runs/image"
    folder: str = "data/tiny/ip_adapter"
    pipeline: str = "data/tiny/sd"
    clip: str = "data/tiny/clip"
    start_from: str = ""  # a file like the one this writes, to go on from
    world: str = ""  # the file of another world than the toy world, see worlds.py
    tokens: int = 4
    portraits: int = 16_000
    groups: int = 3_000  # of two, and as many of three
    group_share: float = 0.1
    batch: int = 32
    steps: int | None = 3_000
    hours: float | None = None
    lr: float = 1e-3
    muon_lr: float | None = 0.01
    ema: float = 0.998
    cooldown: float = 0.6
    timesteps: str = "uniform"
    no_caption: float = 0.5
    no_image: float = 0.05
    face_weight: float = 1.0
    feature_weight: float = 1.0
    precision: str = "bf16"
    workers: int | None = None  # processes that make batches ahead; none: on CUDA what cores there are to spare
    seed: int = 0


class Shown(nn.Module):
    """Noisy latents, timesteps, token ids, CLIP's pixels, bool (B,) -> what the frozen U-Net predicts with the adapter.

    Rows of which the last says no see no picture: the adapter gets zeros, as published.
    """

    def __init__(self, adapter: ImageAdapter, unet: nn.Module, text_encoder: nn.Module, clip: nn.Module):
        super().__init__()
        self.adapter, self.unet, self.text_encoder, self.clip = adapter, unet, text_encoder, clip
        for frozen in (unet, text_encoder, clip):
            frozen.requires_grad_(False)

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, pixels: Tensor, shown: Tensor) -> Tensor:
        with torch.no_grad():
            text = self.text_encoder(tokens).last_hidden_state
            embeds = self.clip(pixel_values=pixels).image_embeds * shown.unsqueeze(1)
        prompt = self.adapter.prompt(self.adapter(embeds))
        return self.unet(noisy, timesteps, text, cross_attention_kwargs={"image_prompt": prompt}).sample.float()


def run(**overrides) -> dict:
    """Trains it and writes `folder`; overrides are the fields of `ImageRecipe`."""
    from diffusers import UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextModel

    config = ImageRecipe(**overrides)
    if not 0 <= config.no_image <= 1:
        raise ConfigError(f"no_image is a share from 0 to 1, not {config.no_image}")
    sd, folder = Path(config.pipeline), Path(config.folder)
    unet = UNet2DConditionModel.from_pretrained(sd / "unet", torch_dtype=torch.float32)
    text_encoder = CLIPTextModel.from_pretrained(sd / "text_encoder", dtype=torch.float32)
    clip = load_clip_vision(config.clip)
    scenes = NoisyScenes(config, sd, AutoTokenizer.from_pretrained(sd / "tokenizer"))
    if config.start_from:
        adapter = official.load_ip_adapter(config.start_from, unet).train().requires_grad_(True)
    else:
        torch.manual_seed(config.seed)
        adapter = ImageAdapter(unet, clip.config.projection_dim, config.tokens)
        for name, layer in adapter.layers.items():
            attn = unet.get_submodule(name.replace("/", "."))
            layer.to_k.load_state_dict(attn.to_k.state_dict())
            layer.to_v.load_state_dict(attn.to_v.state_dict())
    names = official.names(unet)
    attach_id_attention(unet).requires_grad_(False)
    model, noise_schedule = Shown(adapter, unet, text_encoder, clip), scheduler()

    def batch(step: int, generator: torch.Generator) -> list[Tensor]:
        kind, indices = scenes.draw(generator)
        views = [clip_view(Image.fromarray(picture)) for picture in scenes.sets[kind].images(indices)]
        shown = torch.rand(len(indices), generator=generator) >= config.no_image
        return [*scenes(kind, indices, generator), clip_pixels(np.stack(views)), shown]

    def loss(module: nn.Module, data: list[Tensor]) -> dict[str, Tensor]:
        clean, noise, timesteps, tokens, *_, pixels, shown = data
        with fast_attention():
            noisy = noise_schedule.add_noise(clean, noise, timesteps)
            predicted = module(noisy, timesteps, tokens, pixels, shown)
        return scenes.loss(noise_schedule, predicted, data[:-2])

    loop = LoopConfig(
        out=config.out, steps=config.steps, hours=config.hours, lr=config.lr, muon_lr=config.muon_lr, ema=config.ema,
        precision=config.precision, seed=config.seed, cooldown=config.cooldown, workers=config.workers,
    )  # fmt: skip
    frozen = [*(sd / part for part in FROZEN), Path(config.clip) / "model.safetensors"]
    history = train(loop, model, batch, loss, depends_on=depends(config, *frozen))
    folder.mkdir(parents=True, exist_ok=True)
    official.save(folder / FILE, {name: x.half() for name, x in adapter.state_dict().items()}, names)
    metrics = {"parameters": sum(p.numel() for p in adapter.parameters())}
    return record(folder, "image", config, history, metrics)
