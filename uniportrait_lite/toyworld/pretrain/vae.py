"""The tiny autoencoder: diffusers' `AutoencoderKL`, 128x128 pixels to 8 channels of 16x16."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from uniportrait_lite.loop import LoopConfig, train
from uniportrait_lite.toyworld.pretrain.data import load_scenes
from uniportrait_lite.toyworld.pretrain.record import depends, record, save_half
from uniportrait_lite.toyworld.pretrain.seen import FeatureDifference

CROP = 64


@dataclass
class VAEConfig:
    """Half of the crops are centred on a face, where the detail that makes a person is."""

    out: str = "runs/vae"
    folder: str = "data/tiny/sd/vae"
    start_from: str = ""  # an autoencoder's folder, to go on from shipped weights
    decoder_only: bool = False  # keeps the latents, and with them all that was trained on latents, as they are
    world: str = ""  # the file of another world than the toy world, see worlds.py
    scenes: int = 8000
    batch: int = 16
    steps: int | None = 4000
    hours: float | None = None
    lr: float = 8e-4
    muon_lr: float | None = 0.02
    ema: float = 0.998
    widths: tuple[int, ...] = (16, 48, 96, 160)
    latents: int = 8
    cooldown: float = 0.7
    kl: float = 1e-5
    edges: float = 1.0  # weight of the difference of neighbouring pixels beside that of the pixels
    perceptual: float = 0.3  # weight of the difference of a face recogniser's feature maps
    recogniser: str = "data/tiny/recogniser"  # that recogniser; the judge, which scores, is another
    noise: float = 0.5  # up to so much of their deviation latents are noised by before they are decoded
    precision: str = "bf16"
    workers: int | None = None  # processes that make batches ahead; none: on CUDA what cores there are to spare
    seed: int = 0


def build(config: VAEConfig):
    """An untrained autoencoder of eight times reduction."""
    from diffusers import AutoencoderKL
    from diffusers.models.resnet import ResnetBlock2D

    torch.manual_seed(config.seed)
    levels = len(config.widths)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.widths,
        layers_per_block=1,
        latent_channels=config.latents,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=128,
    )
    for module in vae.modules():  # start as a chain of plain convolutions: residual blocks come in as they learn
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
    return vae


class Reconstruct(nn.Module):
    """Crops (B,3,h,w) in [-1,1] -> reconstruction, KL divergence per latent number.

    Each crop's latents get noise of up to `noise` of the latents' deviation. What hardly moves the latents drowns in
    it, as it will when the U-Net has to tell latents from noise: so the encoder learns to give the small things that
    the loss is about, the colour of an eye, a larger share of the latents.
    """

    def __init__(self, vae, noise: float = 0.0):
        super().__init__()
        self.vae, self.noise = vae, noise

    def forward(self, pixels):
        posterior = self.vae.encode(pixels).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        latents = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        if self.noise:
            share = self.noise * torch.rand(len(mean), 1, 1, 1, device=mean.device)
            latents = latents + share * mean.std() * torch.randn_like(mean)
        return self.vae.decode(latents.to(pixels.dtype)).sample.float(), kl


def edge_difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the horizontal and vertical steps between pixels of a and b (B,3,h,w)."""
    return F.l1_loss(a.diff(dim=-1), b.diff(dim=-1)) + F.l1_loss(a.diff(dim=-2), b.diff(dim=-2))


def run(**overrides) -> dict:
    """Trains, writes `folder`, returns the metrics."""
    config = VAEConfig(**overrides)
    sets = [
        load_scenes(name, count, config.world)
        for name, count in (("portraits", config.scenes), ("trios", max(1000, config.scenes // 4)))
    ]
    vae = build(config)
    if config.start_from:
        vae = type(vae).from_pretrained(config.start_from, torch_dtype=torch.float32)
    if config.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    model, seen = Reconstruct(vae, config.noise), FeatureDifference(config.recogniser) if config.perceptual else None

    def batch(step, generator):
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        crops = []
        for _ in range(config.batch):
            scenes = sets[int(rng.random() < 0.3)]
            index = int(rng.integers(len(scenes)))
            picture = scenes.images([index])[0]
            if rng.random() < 0.6:
                box = scenes.boxes[index][rng.integers(scenes.spec.faces)]
                x = (box[0] + box[2]) / 2 - CROP / 2 + rng.integers(-16, 17)
                y = (box[1] + box[3]) / 2 - CROP / 2 + rng.integers(-16, 17)
            else:
                x, y = rng.integers(picture.shape[1] - CROP + 1), rng.integers(128 - CROP + 1)
            x = int(np.clip(x, 0, picture.shape[1] - CROP))
            y = int(np.clip(y, 0, 128 - CROP))
            crops.append(picture[y : y + CROP, x : x + CROP])
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1

    def loss(module, pixels):
        restored, kl = module(pixels)
        l1, edges = F.l1_loss(restored, pixels), edge_difference(restored, pixels)
        parts = {"l1": l1, "edges": edges, "kl": kl}
        if seen is not None:
            parts["perceptual"] = seen.to(pixels.device)(restored, pixels).mean()
        total = l1 + config.edges * edges + config.kl * kl + config.perceptual * parts.get("perceptual", 0.0)
        return {"loss": total, **parts}

    loop = LoopConfig(
        out=config.out, steps=config.steps, hours=config.hours, lr=config.lr, muon_lr=config.muon_lr, ema=config.ema,
        precision=config.precision, seed=config.seed, cooldown=config.cooldown, weight_decay=0.0,
        workers=config.workers,
    )  # fmt: skip
    from uniportrait_lite.toyworld.pretrain.latents import encoder_digest  # which takes `to_pixels` from here

    frozen = {"encoder": encoder_digest(config.start_from)} if config.decoder_only and config.start_from else {}
    edge_layers = ("conv_in", "encoder.conv_out", "decoder.conv_out", "quant_conv")
    history = train(
        loop, model, batch, loss, no_muon=lambda name: any(part in name for part in edge_layers),
        depends_on=frozen | depends(config, *([f"{config.recogniser}/model.safetensors"] if config.perceptual else [])),
    )  # fmt: skip
    return export(model.vae, config, history)


@torch.no_grad()
def export(vae, config: VAEConfig, history: list[dict]) -> dict:
    """Measures the latents' scale and the error on unseen people, and writes the weights."""
    vae = vae.float().cpu().eval()
    train_images = load_scenes("portraits", 1000, config.world).images(range(0, 512))
    latents = torch.cat([vae.encode(p).latent_dist.mean for p in to_pixels(train_images).split(32)])
    if not config.decoder_only:
        vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 4))
    metrics = {"scaling_factor": vae.config.scaling_factor}
    for name in ("unseen", "unseen_trios"):
        pixels = to_pixels(load_scenes(name, 1000, config.world).images(range(0, 128)))
        restored = torch.cat([vae.decode(vae.encode(p).latent_dist.mean).sample for p in pixels.split(16)]).clamp(-1, 1)
        metrics[f"psnr_{name}"] = round(float(-10 * torch.log10(((restored - pixels) / 2).square().mean())), 2)
        metrics[f"l1_{name}"] = round(float((restored - pixels).abs().mean() / 2), 4)
    save_half(vae, config.folder)
    return record(config.folder, "vae", config, history, metrics, "_decoder" if config.decoder_only else "")


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 (B,h,w,3) -> float (B,3,h,w) in [-1,1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
