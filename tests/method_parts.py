"""Small random networks of the real classes, for tests of the method."""

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from uniportrait_lite import checkpoints
from uniportrait_lite.attention import add_routers, attach_id_attention
from uniportrait_lite.backbone import IRConfig, IRResNet
from uniportrait_lite.checkpoints import CallDefaults, UniPortraitConfig
from uniportrait_lite.id_embedding import IDEmbedding, IDEmbeddingConfig
from uniportrait_lite.lora import SEVERAL, add_lora
from uniportrait_lite.toyworld.tokenizer import MAX_LENGTH, build_tokenizer

WIDTH = 24  # of text and ID tokens
BACKBONE = IRConfig(channels=(4, 4, 8, 8), blocks=(1, 1, 1, 1), embedding=12)
CLIP = 16
EMBEDDING = IDEmbeddingConfig(
    intrinsic_dim=8, structure_dim=16 + CLIP, width=16, layers=2, heads=2, head_dim=8, out_dim=WIDTH
)


def small_unet(seed: int = 0) -> UNet2DConditionModel:
    """Two levels, one of them without attention, as SD 1.5 has it; latents (4, 16, 16), text of WIDTH."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


def small_pipe(folder, seed: int = 0) -> StableDiffusionPipeline:
    """A whole pipeline for pictures of 32x32; `folder` takes the tokenizer's files."""
    tokenizer = build_tokenizer(folder)
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=small_unet(seed),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def small_clip_vision() -> CLIPVisionModelWithProjection:
    """A CLIP image tower: 256 patches of 14x14, width CLIP."""
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=CLIP, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, projection_dim=8,
        image_size=224, patch_size=14,
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config).eval()


def small_backbone() -> IRResNet:
    """A face backbone of BACKBONE's sizes."""
    torch.manual_seed(2)
    return IRResNet(BACKBONE).eval()


def write_weights(folder, intrinsic: str = "spatial", seed: int = 3, several: bool = False):
    """A checkpoint for `small_unet` in `folder/uniportrait`, with its encoders beside it; its LoRA has an effect.

    With `several` those of the multi-ID stage as well: routers, and a LoRA of other weights.
    """
    small_backbone().save(folder / "recogniser")
    small_clip_vision().save_pretrained(folder / "clip")
    unet = small_unet()
    torch.manual_seed(seed)
    dims = {"intrinsic_dim": BACKBONE.embedding} if intrinsic == "global" else {}
    config = UniPortraitConfig(
        id_embedding=IDEmbeddingConfig(**{**vars(EMBEDDING), **dims}),
        intrinsic=intrinsic,
        lora_rank=2,
        defaults=CallDefaults(steps=2, guidance=3.0, id_scale=0.8, structure_scale=0.5),
    )
    id_attention = attach_id_attention(unet)
    add_lora(unet, config.lora_rank)
    tensors = checkpoints.weights(IDEmbedding(config.id_embedding), id_attention, unet)
    for name, tensor in tensors.items():
        if name.endswith(".up") or name.startswith("id_attention"):
            torch.nn.init.normal_(tensor, std=0.3)
    place = checkpoints.save(folder / "uniportrait", config, tensors)
    if several:
        add_lora(unet, config.lora_rank, SEVERAL)
        add_routers(id_attention)
        tensors = checkpoints.multi_weights(id_attention, unet)
        for tensor in tensors.values():
            torch.nn.init.normal_(tensor, std=0.3)
        checkpoints.save_multi(place, tensors)
    return place


def crop(seed: int) -> Image.Image:
    """A picture of 224x224 that differs with the seed, smooth as faces are."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((224, 224), Image.Resampling.BICUBIC)
