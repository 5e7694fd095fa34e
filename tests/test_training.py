"""The single-ID stage, on a random stack of toy size: what it learns from, what it trains, and that it resumes exactly."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextModel

from uniportrait_lite import checkpoints
from uniportrait_lite.adapter import UniPortrait
from uniportrait_lite.backbone import IRConfig, IRResNet
from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.toyworld.pretrain import data as world
from uniportrait_lite.toyworld.pretrain import latents as world_latents
from uniportrait_lite.toyworld.pretrain.unet import scheduler, write_index
from uniportrait_lite.toyworld.tokenizer import build_tokenizer
from uniportrait_lite.training import network, single_id
from uniportrait_lite.training.config import load
from uniportrait_lite.training.data import PortraitData
from uniportrait_lite.training.settings import SingleIDConfig
from uniportrait_lite.training.speed import fast_attention
from uniportrait_lite.training.store import Store, digest

CHUNK = 20  # scenes: five people in four portraits each

# What a process of its own runs: the command, on a world of that size.
SCRIPT = f"""
import sys, torch
torch.set_num_threads(1)
from uniportrait_lite.toyworld.pretrain import data, latents
data.CHUNK = latents.CHUNK = {CHUNK}
data.SETS["portraits"] = data.SceneSet("portraits", range(5))
from uniportrait_lite.training import single_id
single_id.main(sys.argv[1:])
"""


@pytest.fixture(scope="session")
def stack(tmp_path_factory) -> Path:
    """A `data` folder whose `tiny` has every network of the profile, smaller still and random."""
    tiny = tmp_path_factory.mktemp("data") / "tiny"
    torch.manual_seed(0)
    sd = tiny / "sd"
    tokenizer = build_tokenizer(sd / "tokenizer")
    size = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16}
    text = {
        **size, "hidden_size": 32, "intermediate_size": 32, "vocab_size": len(tokenizer), "max_position_embeddings": 48,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {**size, "hidden_size": 16, "intermediate_size": 16, "image_size": 224, "patch_size": 14}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(tiny / "clip")
    text_encoder = CLIPTextModel.from_pretrained(tiny / "clip")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4, mid_block_add_attention=False,
        sample_size=128,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32, attention_head_dim=(1, 2), norm_num_groups=8,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler(), None, None, requires_safety_checker=False
    )
    pipe.save_pretrained(sd)
    IRResNet(IRConfig(channels=(4, 4, 8, 8), blocks=(1, 1, 1, 1), embedding=12)).save(tiny / "recogniser")
    return tiny.parent


@pytest.fixture
def place(stack, tmp_path, monkeypatch) -> Path:
    """A working folder of its own, with the random stack as the profile's and the small world."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UPL_DATA", str(stack))
    for module in (world, world_latents):
        monkeypatch.setattr(module, "CHUNK", CHUNK)
    monkeypatch.setitem(world.SETS, "portraits", world.SceneSet("portraits", range(5)))
    return tmp_path


QUICK = ["--portraits", "20", "--batch", "4", "--precision", "fp32", "--out", "out", "--samples-every", "1000"]


def test_smoke(place):
    single_id.main([*QUICK, "--steps", "2"])
