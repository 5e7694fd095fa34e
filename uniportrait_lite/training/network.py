"""The network of the single-ID stage: what is trained, around what is frozen."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel

from uniportrait_lite import checkpoints
from uniportrait_lite.attention import IDConditions, add_lora, attach_id_attention
from uniportrait_lite.backbone import IRResNet
from uniportrait_lite.checkpoints import UniPortraitConfig
from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.features import FaceFeatures, load_clip_vision
from uniportrait_lite.id_embedding import IDEmbedding, IDEmbeddingConfig
from uniportrait_lite.quiet import no_progress_bars
from uniportrait_lite.speed import fast_attention
from uniportrait_lite.training.data import Batch, weights
from uniportrait_lite.training.settings import SingleIDConfig
from uniportrait_lite.training.store import digest


class SingleID(nn.Module):
    """What is trained, around the frozen U-Net and text encoder; `forward` gives the losses of a batch."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, scheduler: DDPMScheduler,
                 config: UniPortraitConfig, precision: str = "fp32", face_weight: float = 1.0):  # fmt: skip
        super().__init__()
        unet.requires_grad_(False)
        text_encoder.requires_grad_(False)
        self.unet, self.text_encoder, self.scheduler = unet, text_encoder, scheduler
        self.config, self.bf16, self.face_weight = config, precision == "bf16", face_weight
        self.id_embedding = IDEmbedding(config.id_embedding)
        self.id_attention = attach_id_attention(unet)
        add_lora(unet, config.lora_rank)
        if self.bf16:  # as autocast would cast them, but once, not in every step
            for layer in [*unet.modules(), *text_encoder.modules()]:
                if isinstance(layer, nn.Linear | nn.Conv2d) and not layer.weight.requires_grad:
                    layer.to(torch.bfloat16)

    def weights(self) -> dict[str, Tensor]:
        """All that is trained, under the names that a checkpoint has for it."""
        return checkpoints.weights(self.id_embedding, self.id_attention, self.unet)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The diffusion loss ("loss"), and its part inside the face's box ("face")."""
        with fast_attention(), disable_input_dtype_casting(self.unet, active=self.bf16):
            with torch.no_grad():
                text = self.text_encoder(batch.text).last_hidden_state
            tokens = self.id_embedding(batch.intrinsic, batch.structure).unsqueeze(1)
            noisy = self.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
            identities = {"identities": IDConditions(tokens, active=batch.active)}
            predicted = self.unet(noisy, batch.timesteps, text, cross_attention_kwargs=identities).sample.float()
        error = (predicted - self._target(batch)).square().mean(dim=1)
        inside = face_mask(batch.box, error.shape[1:])
        weight = 1 + (self.face_weight - 1) * inside
        return {
            "loss": (error * weight).sum() / weight.sum(),
            "face": (error * inside).sum() / inside.sum().clamp_min(1),
        }

    def _target(self, batch: Batch) -> Tensor:
        kind = self.scheduler.config.prediction_type
        if kind == "v_prediction":
            return self.scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
        if kind == "epsilon":
            return batch.noise
        raise ConfigError(f"the base model predicts {kind!r}: this stage knows epsilon and v_prediction")


def face_mask(box: Tensor, size: Sequence[int]) -> Tensor:
    """1 where a latent's centre is inside the face's box (B,4), given in shares of the picture; (B,h,w)."""
    height, width = size
    x = (torch.arange(width, device=box.device) + 0.5) / width
    y = (torch.arange(height, device=box.device) + 0.5) / height
    left, top, right, bottom = (edge[:, None] for edge in box.unbind(1))
    across, down = (x >= left) & (x <= right), (y >= top) & (y <= bottom)
    return (down[:, :, None] & across[:, None, :]).float()


class Stack:
    """The frozen networks of a profile's folder."""

    def __init__(self, folder: Path):
        if not (folder / "sd" / "unet").is_dir():
            raise WeightsError(f"{folder / 'sd'} holds no U-Net: this stage trains on top of a pretrained pipeline")
        sd = folder / "sd"
        self.folders = {
            "vae": sd / "vae", "tokenizer": sd / "tokenizer", "text_encoder": sd / "text_encoder", "unet": sd / "unet",
            "scheduler": sd / "scheduler", "clip": folder / "clip", "backbone": folder / "recogniser",
            "faces": folder / "face",
        }  # fmt: skip
        self.pipeline = sd
        self.tokenizer = AutoTokenizer.from_pretrained(self.folders["tokenizer"])
        self.scheduler = DDPMScheduler.from_pretrained(self.folders["scheduler"])
        with no_progress_bars():
            self.text_encoder = CLIPTextModel.from_pretrained(self.folders["text_encoder"], dtype=torch.float32)
            self.unet = UNet2DConditionModel.from_pretrained(self.folders["unet"], torch_dtype=torch.float32)
        backbone, clip = IRResNet.from_pretrained(self.folders["backbone"]), load_clip_vision(self.folders["clip"])
        self.features = FaceFeatures(backbone, clip)

    def digests(self) -> dict[str, str]:
        """What tells these weights from others, by network."""
        names = ("vae", "text_encoder", "unet", "clip", "backbone")
        found = {name: digest(*weights(self.folders[name])) for name in names}
        return {**found, "scheduler": digest(self.folders["scheduler"])}


def method_config(config: SingleIDConfig, stack: Stack) -> UniPortraitConfig:
    """The sizes of the modules that fit the frozen networks."""
    backbone, clip = stack.features.backbone.config, stack.features.clip_vision.config
    drops = {} if config.drop else {"drop_path": 0.0, "drop_token": 0.0}
    embedding = IDEmbeddingConfig(
        intrinsic_dim=backbone.channels[-1] if config.intrinsic == "spatial" else backbone.embedding,
        structure_dim=sum(backbone.channels[:-1]) + clip.hidden_size,
        out_dim=stack.unet.config.cross_attention_dim,
        structure=config.structure,
        **drops,
    )
    return UniPortraitConfig(id_embedding=embedding, intrinsic=config.intrinsic, lora_rank=config.lora_rank)


def save(folder: Path, model: SingleID, stack: Stack) -> Path:
    """Writes the weights as `UniPortrait.attach` reads them, with the way from there to the encoders."""
    names = ("backbone", "clip", "faces")
    encoders = {name: Path(os.path.relpath(stack.folders[name], folder)).as_posix() for name in names}
    values = {**vars(model.config), "encoders": encoders}
    return checkpoints.save(folder, UniPortraitConfig(**values), model.weights())
