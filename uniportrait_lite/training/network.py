"""The networks of both stages: what is trained, around what is frozen."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel

from uniportrait_lite import checkpoints
from uniportrait_lite.attention import IDConditions, add_routers, attach_id_attention
from uniportrait_lite.backbone import IRResNet
from uniportrait_lite.checkpoints import CallDefaults, UniPortraitConfig
from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.features import FaceFeatures, load_clip_vision
from uniportrait_lite.id_embedding import IDEmbedding, IDEmbeddingConfig
from uniportrait_lite.id_routing import LAMBDA, Routing, box_masks, routing_accuracy, routing_loss
from uniportrait_lite.lora import SEVERAL, SINGLE, add_lora, lora_parameters
from uniportrait_lite.pipelines import TemperedDDPMScheduler
from uniportrait_lite.quiet import no_progress_bars
from uniportrait_lite.speed import fast_attention
from uniportrait_lite.toyworld.pretrain import data as world
from uniportrait_lite.toyworld.pretrain.latents import encoder_digest
from uniportrait_lite.toyworld.scenes import MAX_PEOPLE
from uniportrait_lite.toyworld.worlds import world_file
from uniportrait_lite.training.data import Batch, weights
from uniportrait_lite.training.settings import SingleIDConfig
from uniportrait_lite.training.store import digest

STEPS = 8  # of denoising: more bring nothing (docs/experiments.md)
GUIDANCE = 3.0  # chosen on people outside the evaluations, as the steps (docs/experiments.md)
COLUMNS = 0.8  # of the denoising: until then each of several people keeps to a column (docs/experiments.md)


class SingleID(nn.Module):
    """What is trained, around the frozen U-Net and text encoder; `forward` gives the losses of a batch."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, scheduler: DDPMScheduler,
                 config: UniPortraitConfig, precision: str = "fp32", face_weight: float = 1.0,
                 feature_weight: float = 1.0):  # fmt: skip
        super().__init__()
        unet.requires_grad_(False)
        text_encoder.requires_grad_(False)
        self.unet, self.text_encoder, self.scheduler = unet, text_encoder, scheduler
        self.config, self.bf16 = config, precision == "bf16"
        self.face_weight, self.feature_weight = face_weight, feature_weight
        self.id_embedding = IDEmbedding(config.id_embedding)
        self.id_attention = attach_id_attention(unet)
        add_lora(unet, config.lora_rank, self.lora)
        if self.bf16:  # as autocast would cast them, but once, not in every step
            for layer in [*unet.modules(), *text_encoder.modules()]:
                if isinstance(layer, nn.Linear | nn.Conv2d) and not layer.weight.requires_grad:
                    layer.to(torch.bfloat16)

    lora = SINGLE

    def weights(self) -> dict[str, Tensor]:
        """All that is trained, under the names that a checkpoint has for it."""
        return checkpoints.weights(self.id_embedding, self.id_attention, self.unet)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """What is minimised ("loss") and the error inside the faces' boxes ("face")."""
        return self.diffusion_loss(batch, routing=None)

    def tokens(self, batch: Batch) -> Tensor:
        """The ID tokens (B,N,16,D) of a batch."""
        people = batch.intrinsic.shape[:2]
        features = (x.flatten(0, 1).float() for x in (batch.intrinsic, batch.structure))
        return self.id_embedding(*features).unflatten(0, people)

    def diffusion_loss(self, batch: Batch, routing: Routing | None) -> dict[str, Tensor]:
        """The error of the U-Net's prediction, in the picture and in faces' boxes."""
        with fast_attention(), disable_input_dtype_casting(self.unet, active=self.bf16):
            with torch.no_grad():
                text = self.text_encoder(batch.text).last_hidden_state
                sentences = None
                if batch.sentences is not None:
                    sentences = self.text_encoder(batch.sentences.flatten(0, 1)).last_hidden_state
                    sentences = sentences.unflatten(0, batch.said.shape)
            noisy = self.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
            identities = IDConditions(
                self.tokens(batch), active=batch.active, routing=routing, sentences=sentences, said=batch.said
            )
            given = {"identities": identities}
            predicted = self.unet(noisy, batch.timesteps, text, cross_attention_kwargs=given).sample.float()
        error = (predicted - self._target(batch)).square().mean(dim=1)
        inside = box_masks(batch.boxes, error.shape[1:]).amax(dim=1)
        weight = 1 + (self.face_weight - 1) * inside
        weight = torch.where(box_masks(batch.features, error.shape[1:]).amax(dim=1) > 0, self.feature_weight, weight)
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


class MultiID(SingleID):
    """Routers and a second LoRA are trained, around what the single-ID stage left: `tensors`, under its names.

    The second LoRA begins as the first, and takes its place.
    """

    lora = SEVERAL

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, scheduler: DDPMScheduler,
                 config: UniPortraitConfig, tensors: Mapping[str, Tensor], precision: str = "fp32",
                 face_weight: float = 1.0, feature_weight: float = 1.0, route_weight: float = LAMBDA,
                 soft: bool = False):  # fmt: skip
        super().__init__(unet, text_encoder, scheduler, config, precision, face_weight, feature_weight)
        self.route_weight, self.soft = route_weight, soft
        first = super().weights() | {f"lora.{name}": p for name, p in lora_parameters(unet, SEVERAL).items()}
        checkpoints.fill(first, tensors, origin="the single-ID weights")
        self.id_embedding.requires_grad_(False).eval()
        self.id_attention.requires_grad_(False)
        add_routers(self.id_attention, config.id_embedding.queries)

    def train(self, mode: bool = True) -> "MultiID":
        """The ID embedding stays in evaluation mode: frozen, it drops nothing."""
        super().train(mode)
        self.id_embedding.eval()
        return self

    def weights(self) -> dict[str, Tensor]:
        """All that is trained, under the names that a checkpoint has for it."""
        return checkpoints.multi_weights(self.id_attention, self.unet)

    @torch.no_grad()
    def tokens(self, batch: Batch) -> Tensor:
        """The ID tokens (B,N,16,D) of a batch."""
        return super().tokens(batch)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss, its parts, and where the routers are right.

        "loss" is "diffusion" plus lambda times "route", the routing regularization loss. Its psi is the softmax of the
        logits as they are, where the paper's may have the noise and the step to one-hot: so it speaks of what the
        routers will choose, and the noise serves the diffusion loss alone (our choice). "right_down", "right_mid" and
        "right_up" are the shares of locations inside exactly one face's box whose router names that face.
        """
        logits: dict[str, Tensor] = {}

        def record(name: str, psi: Tensor, scores: Tensor) -> None:
            logits[name] = scores.float()

        routing = Routing(batch.latents.shape[-2:], temperature=batch.temperature, soft=self.soft, record=record)
        found = self.diffusion_loss(batch, routing)
        somebody = batch.active & batch.intrinsic.flatten(1).any(dim=1)
        boxes = torch.where(somebody[:, None, None], batch.boxes, -1.0)  # nobody's faces, not to be told apart: nowhere
        route = routing_loss({name: scores.softmax(dim=1) for name, scores in logits.items()}, boxes)
        right: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            for name, share in routing_accuracy(logits, boxes).items():
                right.setdefault(f"right_{name.split('_')[0]}", []).append(share)
        return {
            **found,
            "loss": found["loss"] + self.route_weight * route,
            "diffusion": found["loss"],
            "route": route,
            **{name: torch.stack(shares).nanmean() for name, shares in right.items()},
        }


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
        self.pipeline, self.world = sd, world_file(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folders["tokenizer"])
        self.scheduler = TemperedDDPMScheduler.from_pretrained(self.folders["scheduler"])
        with no_progress_bars():
            self.text_encoder = CLIPTextModel.from_pretrained(self.folders["text_encoder"], dtype=torch.float32)
            self.unet = UNet2DConditionModel.from_pretrained(self.folders["unet"], torch_dtype=torch.float32)
        backbone, clip = IRResNet.from_pretrained(self.folders["backbone"]), load_clip_vision(self.folders["clip"])
        self.features = FaceFeatures(backbone, clip)

    def digests(self) -> dict[str, str]:
        """What tells these weights from others, by network."""
        names = ("text_encoder", "unet", "clip", "backbone")
        found = {name: digest(*weights(self.folders[name])) for name in names}
        return {"vae": encoder_digest(self.folders["vae"]), **found, "scheduler": digest(self._noise())}

    def _noise(self) -> dict[str, object]:
        """What of the scheduler a training depends on, whatever pictures are drawn with."""
        names = ("num_train_timesteps", "prediction_type", "rescale_betas_zero_snr", "trained_betas")
        return {k: v for k, v in self.scheduler.config.items() if k in names or k.startswith("beta_")}


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
    widths = tuple(world.SceneSet("", range(1), people + 1).width for people in range(MAX_PEOPLE))
    return UniPortraitConfig(
        id_embedding=embedding, intrinsic=config.intrinsic, lora_rank=config.lora_rank,
        defaults=CallDefaults(steps=STEPS, guidance=GUIDANCE, widths=widths, columns=COLUMNS),
    )  # fmt: skip


def save(folder: Path, model: SingleID, stack: Stack) -> Path:
    """Writes the weights as `UniPortrait.attach` reads them, with the way from there to the encoders."""
    return checkpoints.save(folder, _at(folder, model.config, stack), model.weights())


def save_single(folder: Path, config: UniPortraitConfig, tensors: Mapping[str, Tensor], stack: Stack) -> None:
    """Writes single-ID weights as they were read, where those of the multi-ID stage need them beside them."""
    checkpoints.save(folder, _at(folder, config, stack), tensors)


def _at(folder: Path, config: UniPortraitConfig, stack: Stack) -> UniPortraitConfig:
    """The config with the way from `folder` to the encoders."""
    names = ("backbone", "clip", "faces")
    encoders = {name: Path(os.path.relpath(stack.folders[name], folder)).as_posix() for name in names}
    return replace(config, encoders=encoders)
