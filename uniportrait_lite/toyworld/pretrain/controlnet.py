"""The tiny ControlNets (Zhang et al. 2023): the frozen U-Net is shown where faces are, or where edges are.

A ControlNet is a copy of the U-Net's way down, which reads a condition image beside the noise and adds what it makes of
it to the U-Net's way up, through convolutions that begin at zero. Identities are no part of this training.

A pose or an outline tells little of the colours that most of the loss is about, so that thousands of steps go by until
those convolutions have found out that the condition tells anything. Hence a warm-up of our own: the condition's way in,
by itself, is first taught to name what the copy would be shown of the clean picture, in steps that need no U-Net.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from uniportrait_lite.loop import LoopConfig, train
from uniportrait_lite.speed import fast_attention
from uniportrait_lite.toyworld.pretrain.noisy import NoisyScenes
from uniportrait_lite.toyworld.pretrain.record import depends, record, save_half
from uniportrait_lite.toyworld.pretrain.unet import scheduler

FROZEN = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")


@dataclass
class ControlNetRecipe:
    """No caption in half of the samples: a picture then hangs on its condition alone."""

    out: str
    folder: str
    pipeline: str = "data/tiny/sd"
    start_from: str = ""  # a ControlNet's folder, to go on from shipped weights
    world: str = ""  # the file of another world than the toy world, see worlds.py
    portraits: int = 16_000
    groups: int = 3_000  # of two, and as many of three
    group_share: float = 0.2
    batch: int = 32
    warmup: int = 200  # steps of the condition's way in by itself
    steps: int | None = 3_000
    hours: float | None = None
    lr: float = 1e-3
    zero_rate: float = 3.0  # times lr: of the convolutions that begin at zero, and of the condition's way in
    muon_lr: float | None = 0.01
    ema: float = 0.998
    cooldown: float = 0.6
    embedding: tuple[int, ...] = (16, 16, 32, 64)  # widths of the condition's way down to the latents' size
    timesteps: str = "uniform"
    no_caption: float = 0.5
    face_weight: float = 1.0
    feature_weight: float = 1.0
    precision: str = "bf16"
    workers: int | None = None  # processes that make batches ahead; none: on CUDA what cores there are to spare
    seed: int = 0


class Controlled(nn.Module):
    """Noisy latents, timesteps, token ids, condition images -> what the frozen U-Net predicts with its ControlNet."""

    def __init__(self, controlnet, unet, text_encoder):
        super().__init__()
        self.controlnet, self.unet, self.text_encoder = controlnet, unet, text_encoder
        unet.requires_grad_(False)
        text_encoder.requires_grad_(False)

    def forward(self, noisy, timesteps, tokens, condition):
        with torch.no_grad():
            text = self.text_encoder(tokens).last_hidden_state
        down, middle = self.controlnet(noisy, timesteps, text, condition, return_dict=False)
        return self.unet(
            noisy, timesteps, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample.float()


def fit(name: str, config: ControlNetRecipe, hint: Callable[[np.ndarray, np.ndarray], Image.Image]) -> dict:
    """Trains, writes `config.folder` as `ControlNetModel.from_pretrained` reads it, returns the metrics.

    `hint` makes the condition image of a scene's picture, uint8 (H,W,3), with its people's landmarks (n,5,2). Started
    again, goes on from the last checkpoint in `config.out`.
    """
    from diffusers import ControlNetModel, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextModel

    sd = Path(config.pipeline)
    unet = UNet2DConditionModel.from_pretrained(sd / "unet", torch_dtype=torch.float32)
    text_encoder = CLIPTextModel.from_pretrained(sd / "text_encoder", dtype=torch.float32)
    scenes = NoisyScenes(config, sd, AutoTokenizer.from_pretrained(sd / "tokenizer"))
    torch.manual_seed(config.seed)
    if config.start_from:
        controlnet = ControlNetModel.from_pretrained(config.start_from, torch_dtype=torch.float32)
    else:
        controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=config.embedding)
    model, noise_schedule = Controlled(controlnet, unet, text_encoder), scheduler()

    def hints(kind: int, indices: np.ndarray) -> torch.Tensor:
        shown = scenes.sets[kind]
        images = zip(shown.images(indices), shown.landmarks[indices], strict=True)
        pictures = np.stack([np.asarray(hint(pixels, landmarks)) for pixels, landmarks in images])
        return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255

    def batch(step, generator):
        kind, indices = scenes.draw(generator)
        return [*scenes(kind, indices, generator), hints(kind, indices)]

    def loss(module, data):
        clean, noise, timesteps, tokens, *_, hints = data
        with fast_attention():
            predicted = module(noise_schedule.add_noise(clean, noise, timesteps), timesteps, tokens, hints)
        return scenes.loss(noise_schedule, predicted, data[:-1])

    if not config.start_from and not (Path(config.out) / "checkpoint.pt").exists():
        _warm(controlnet.to("cuda" if torch.cuda.is_available() else "cpu"), scenes, hints, config)
    loop = LoopConfig(
        out=config.out, steps=config.steps, hours=config.hours, lr=config.lr, muon_lr=config.muon_lr, ema=config.ema,
        precision=config.precision, seed=config.seed, cooldown=config.cooldown, workers=config.workers,
    )  # fmt: skip
    history = train(
        loop, model, batch, loss,
        no_muon=lambda name: any(part in name for part in ("conv_in", "time_emb", "controlnet_", "conv_out")),
        rate=lambda name: config.zero_rate if "controlnet_" in name else 1.0,
        depends_on=depends(config, *(sd / part for part in FROZEN)),
    )  # fmt: skip
    save_half(model.controlnet, config.folder)
    metrics = {"parameters": sum(p.numel() for p in model.controlnet.parameters())}
    return record(config.folder, name, config, history, metrics)


def _warm(controlnet: nn.Module, scenes: NoisyScenes, hints: Callable, config: ControlNetRecipe) -> None:
    """Teaches the condition's way in what `conv_in` makes of the clean latents, less their average."""
    from tqdm import tqdm

    way_in, conv_in = controlnet.controlnet_cond_embedding, controlnet.conv_in
    device, generator = conv_in.weight.device, torch.Generator().manual_seed(config.seed)
    average = torch.from_numpy(scenes.latents[0].mean((0, 2, 3), dtype=np.float32)).view(1, -1, 1, 1)
    nn.init.kaiming_normal_(way_in.conv_out.weight)
    optimiser = torch.optim.AdamW(way_in.parameters(), lr=3e-3)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / (config.warmup + 1))
    for _ in tqdm(range(config.warmup), desc="warm-up"):
        kind, indices = scenes.draw(generator)
        clean = torch.from_numpy(scenes.latents[kind][indices]).float() - average
        with torch.no_grad():
            wanted = nn.functional.conv2d(clean.to(device), conv_in.weight, padding=conv_in.padding)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            named = way_in(hints(kind, indices).to(device))
        (named.float() - wanted).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        falling.step()
