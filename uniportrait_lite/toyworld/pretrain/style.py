"""A style LoRA (Hu et al. 2021) as users of Stable Diffusion share them: of a look that the base model has never seen.

Written by diffusers, read by its `load_lora_weights`. Identities are no part of this training.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft.utils import get_peft_model_state_dict

from uniportrait_lite.loop import LoopConfig, train
from uniportrait_lite.lora import add_lora
from uniportrait_lite.speed import fast_attention
from uniportrait_lite.toyworld.pretrain.controlnet import FROZEN
from uniportrait_lite.toyworld.pretrain.noisy import NoisyScenes
from uniportrait_lite.toyworld.pretrain.record import depends, record
from uniportrait_lite.toyworld.pretrain.unet import Denoise, scheduler

FILE = "glass.safetensors"


@dataclass
class StyleRecipe:
    out: str = "runs/style"
    folder: str = "data/tiny/lora"
    pipeline: str = "data/tiny/sd"
    world: str = "data/looks/glass.py"  # draws the look, see worlds.py
    rank: int = 8
    portraits: int = 2_000
    groups: int = 0  # of two, and as many of three
    group_share: float = 0.0
    batch: int = 16
    steps: int | None = 1_000
    hours: float | None = None
    lr: float = 2e-3
    ema: float = 0.99
    cooldown: float = 0.5
    timesteps: str = "uniform"
    no_caption: float = 0.1
    face_weight: float = 1.0
    feature_weight: float = 1.0
    precision: str = "bf16"
    workers: int | None = None  # processes that make batches ahead; none: on CUDA what cores there are to spare
    seed: int = 0


def run(**overrides) -> dict:
    """Trains it and writes `folder`; overrides are the fields of `StyleRecipe`."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.utils import convert_state_dict_to_diffusers
    from transformers import AutoTokenizer, CLIPTextModel

    config = StyleRecipe(**overrides)
    sd = Path(config.pipeline)
    unet = UNet2DConditionModel.from_pretrained(sd / "unet", torch_dtype=torch.float32).requires_grad_(False)
    text_encoder = CLIPTextModel.from_pretrained(sd / "text_encoder", dtype=torch.float32).requires_grad_(False)
    scenes = NoisyScenes(config, sd, AutoTokenizer.from_pretrained(sd / "tokenizer"))
    torch.manual_seed(config.seed)
    add_lora(unet, config.rank, "style")
    model, noise_schedule = Denoise(unet, text_encoder), scheduler()

    def batch(step, generator):
        return scenes(*scenes.draw(generator), generator)

    def loss(module, data):
        clean, noise, timesteps, tokens = data[:4]
        with fast_attention():
            predicted = module(noise_schedule.add_noise(clean, noise, timesteps), timesteps, tokens)
        return scenes.loss(noise_schedule, predicted, data)

    loop = LoopConfig(
        out=config.out, steps=config.steps, hours=config.hours, lr=config.lr, muon_lr=None, ema=config.ema,
        precision=config.precision, seed=config.seed, cooldown=config.cooldown, workers=config.workers,
    )  # fmt: skip
    history = train(loop, model, batch, loss, depends_on=depends(config, *(sd / part for part in FROZEN)))
    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet, adapter_name="style"))
    StableDiffusionPipeline.save_lora_weights(
        config.folder, unet_lora_layers={name: x.half() for name, x in weights.items()}, weight_name=FILE
    )
    return record(config.folder, "style", config, history, {"parameters": sum(x.numel() for x in weights.values())})
