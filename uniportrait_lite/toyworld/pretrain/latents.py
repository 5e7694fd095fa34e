"""Latents of a scene set, encoded once by the tiny autoencoder and read from memory-mapped files after that."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from uniportrait_lite.toyworld.pretrain.data import CACHE, CHUNK, Scenes, set_digest
from uniportrait_lite.toyworld.pretrain.vae import to_pixels


@torch.no_grad()
def load_latents(scenes: Scenes, vae_folder: str | Path = "data/tiny/sd/vae") -> np.ndarray:
    """Scaled mean latents of all scenes, float16 (N,8,16,W/8), encoded where they are not on disk yet."""
    from diffusers import AutoencoderKL
    from tqdm import tqdm

    folder = CACHE / f"latents-{scenes.spec.name}-{set_digest(scenes.spec, scenes.world)}-{encoder_digest(vae_folder)}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{k:03d}.npy" for k in range(len(scenes.chunks))]
    missing = [k for k, file in enumerate(files) if not file.exists()]
    if missing:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        vae = AutoencoderKL.from_pretrained(vae_folder, torch_dtype=torch.float32).eval()
        vae = vae.to(device, memory_format=torch.channels_last)  # a quarter faster on a CPU
        size = 250 if device == "cuda" else 20
        for k in tqdm(missing, desc=f"encoding {scenes.spec.name}"):
            images = scenes.images(range(k * CHUNK, (k + 1) * CHUNK))
            with torch.autocast(device, torch.bfloat16):
                parts = [
                    vae.encode(to_pixels(part).to(device, memory_format=torch.channels_last))
                    .latent_dist.mean.float()
                    .cpu()
                    for part in np.array_split(images, -(-CHUNK // size))
                ]
            latents = (torch.cat(parts) * vae.config.scaling_factor).half().numpy()
            temporary = folder / f"{k:03d}.tmp{os.getpid()}.npy"
            np.save(temporary, latents)
            os.replace(temporary, files[k])
    return np.concatenate([np.load(file) for file in files])


def encoder_digest(vae_folder: str | Path) -> str:
    """Eight hex digits of what latents depend on, an autoencoder's encoder and scale: they outlive its decoder."""
    folder, total = Path(vae_folder), hashlib.sha256()
    total.update(str(json.loads((folder / "config.json").read_text())["scaling_factor"]).encode())
    with safe_open(folder / "diffusion_pytorch_model.safetensors", "np") as tensors:
        for name in sorted(tensors.keys()):
            if name.startswith(("encoder.", "quant_conv.")):
                total.update(name.encode() + tensors.get_tensor(name).tobytes())
    return total.hexdigest()[:8]
