"""A pipeline of ours as one file with Stable Diffusion's own keys, as community checkpoints have them."""

import re
from pathlib import Path

from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}  # the VAE's
TOP = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2", "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip


def unet_key(key: str, layers: int, with_attention: set[int]) -> str:
    """diffusers' key -> Stable Diffusion's; `with_attention`: the blocks of the way up that have some."""
    if block := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(conv\.)?", key):
        way, number, kind, layer = block[1], int(block[2]), block[3], int(block[4])
        if way == "down":
            at = 1 + number * (layers + 1) + (layers if kind == "downsamplers" else layer)
            place = {"resnets": "0.", "attentions": "1.", "downsamplers": "0.op."}[kind]
        else:
            at = number * (layers + 1) + (layers if kind == "upsamplers" else layer)
            last = 2 if number in with_attention else 1
            place = {"resnets": "0.", "attentions": "1.", "upsamplers": f"{last}.conv."}[kind]
        key = f"{'input' if way == 'down' else 'output'}_blocks.{at}.{place}{key[block.end() :]}"
    for theirs, ours in TOP.items():
        key = re.sub(rf"^{re.escape(theirs)}\.", f"{ours}.", key)
    if "transformer_blocks" not in key:
        for theirs, ours in RESNET.items():
            key = key.replace(f".{theirs}.", f".{ours}.")
    return f"model.diffusion_model.{key}"


def vae_key(key: str, levels: int) -> str:
    """diffusers' key -> Stable Diffusion's."""
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    up = re.compile(r"up_blocks\.(\d)\.(resnets\.(\d)|upsamplers\.0)")
    key = up.sub(lambda m: f"up.{levels - 1 - int(m[1])}.{'upsample' if m[3] is None else f'block.{m[3]}'}", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    if "mid_block.attentions.0" in key:
        key = key.replace("mid_block.attentions.0", "mid.attn_1")
        for theirs, ours in ATTENTION.items():
            key = key.replace(f".{theirs}.", f".{ours}.")
    return "first_stage_model." + key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def write(pipe: StableDiffusionPipeline, path: Path) -> Path:
    """Writes U-Net, VAE and text encoder into one `.safetensors`."""
    unet, tensors = pipe.unet, {}
    up = {number for number, kind in enumerate(unet.config.up_block_types) if "CrossAttn" in kind}
    for key, tensor in unet.state_dict().items():
        tensors[unet_key(key, unet.config.layers_per_block, up)] = tensor
    for key, tensor in pipe.vae.state_dict().items():
        square = "attentions" in key and key.endswith("weight") and tensor.ndim == 2
        tensors[vae_key(key, len(pipe.vae.config.block_out_channels))] = tensor[..., None, None] if square else tensor
    for key, tensor in pipe.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{key}"] = tensor
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path)
    return path
