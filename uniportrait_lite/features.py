"""From aligned face crops to intrinsic ID features and face structure features (paper: ID embedding module)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from uniportrait_lite.errors import WeightsError
from uniportrait_lite.quiet import no_progress_bars

# The normalisation that CLIP's image towers are trained with, from the CLIP release.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BACKBONE_SIZE = 112


class IDFeatures(NamedTuple):
    """The features of a batch of faces: `intrinsic` F_r (B, L_r, C_r) and `structure` F_s (B, L_s, C_s)."""

    intrinsic: Tensor
    structure: Tensor

    def to(self, *args, **kwargs) -> IDFeatures:
        """The same features on another device or in another dtype."""
        return IDFeatures(self.intrinsic.to(*args, **kwargs), self.structure.to(*args, **kwargs))

    @staticmethod
    def of_references(references: list[IDFeatures]) -> IDFeatures:
        """Several references of one identity: their features concatenated along the sequence (paper: ID embedding)."""
        return IDFeatures(*(torch.cat(parts, dim=1) for parts in zip(*references, strict=True)))


def load_clip_vision(folder: str | os.PathLike) -> CLIPVisionModelWithProjection:
    """The image tower of a CLIP model on disk, float32; raises `WeightsError` where it is missing or damaged."""
    if not (Path(folder) / "config.json").is_file():
        raise WeightsError(f"{folder} holds no CLIP model (config.json): fetch it again, or give its right folder")
    try:
        with no_progress_bars():
            model, found = CLIPVisionModelWithProjection.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise WeightsError(f"the CLIP model in {folder} is cut short or damaged ({error}): fetch it again") from error
    if found["missing_keys"]:
        raise WeightsError(f"the CLIP model in {folder} lacks {len(found['missing_keys'])} weights: fetch it again")
    return model


class FaceFeatures(nn.Module):
    """The frozen encoders: a face backbone and a CLIP image tower, read at the depths the paper reads them.

    `backbone.features(x)` gives the four stage maps (56, 28, 14 and 7 wide) of faces (B, 3, 112, 112) in [-1, 1].
    Intrinsic ID features are the last map, one token a position. Face structure features are the three shallow
    maps resized to CLIP's grid of patches, in stage order, then CLIP's second-to-last hidden states without the class
    token. `intrinsic="global"` takes the backbone's embedding for F_r instead, a single token: the paper's ablation.
    """

    def __init__(
        self, backbone: nn.Module, clip_vision: nn.Module, intrinsic: Literal["spatial", "global"] = "spatial"
    ):
        super().__init__()
        if intrinsic not in ("spatial", "global"):
            raise ValueError(f"intrinsic features are 'spatial' or 'global', not {intrinsic!r}")
        self.backbone = backbone
        self.clip_vision = clip_vision
        self.intrinsic = intrinsic
        self.register_buffer("clip_mean", torch.tensor(CLIP_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("clip_std", torch.tensor(CLIP_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FaceFeatures:
        """Stays in evaluation mode: the batch statistics of the backbone are frozen too."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> IDFeatures:
        """Aligned crops (B, 3, 224, 224) in [0, 1] -> features of each."""
        faces = self._faces(pixels)
        *shallow, deep = self.backbone.features(faces)
        if self.intrinsic == "spatial":
            intrinsic = deep.flatten(2).transpose(1, 2)
        else:
            intrinsic = self.backbone(faces).unsqueeze(1)
        clip = self._clip((pixels - self.clip_mean) / self.clip_std)
        side = round(clip.shape[1] ** 0.5)
        maps = [F.interpolate(m, size=(side, side), mode="bilinear", align_corners=False) for m in shallow]
        structure = torch.cat([torch.cat(maps, dim=1).flatten(2).transpose(1, 2), clip], dim=-1)
        return IDFeatures(intrinsic, structure)

    @torch.no_grad()
    def embedding(self, pixels: Tensor) -> Tensor:
        """Aligned crops (B, 3, 224, 224) in [0, 1] -> the backbone's embeddings (B, D), of length 1: who it sees."""
        return F.normalize(self.backbone(self._faces(pixels)), dim=-1)

    @torch.no_grad()
    def image_embedding(self, pixels: Tensor) -> Tensor:
        """Pictures of any kind (B, 3, 224, 224) in [0, 1] -> CLIP's projected embeddings (B, D): for image prompts."""
        return self.clip_vision(pixel_values=(pixels - self.clip_mean) / self.clip_std).image_embeds

    @torch.no_grad()
    def unconditional(self, batch: int = 1) -> IDFeatures:
        """The features that stand for nobody, for guidance: zeros, and CLIP of an all-zero normalised image."""
        like = self.forward(self.clip_mean.expand(1, 3, 224, 224))
        clip = self._clip(torch.zeros_like(self.clip_mean).expand(1, 3, 224, 224))
        structure = torch.zeros_like(like.structure)
        structure[..., -clip.shape[-1] :] = clip
        return IDFeatures(torch.zeros_like(like.intrinsic).expand(batch, -1, -1), structure.expand(batch, -1, -1))

    def _faces(self, pixels: Tensor) -> Tensor:
        """What the backbone reads: (B, 3, 112, 112) in [-1, 1]."""
        return F.interpolate(pixels, size=(BACKBONE_SIZE, BACKBONE_SIZE), mode="bilinear", align_corners=False) * 2 - 1

    def _clip(self, normalised: Tensor) -> Tensor:
        hidden = self.clip_vision(pixel_values=normalised, output_hidden_states=True).hidden_states[-2]
        return hidden[:, 1:]
