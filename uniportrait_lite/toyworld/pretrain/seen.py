"""What a frozen recogniser sees in a picture: losses on how faces look, beside those on pixels and latents."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from uniportrait_lite.backbone import IRResNet

CELLS = 8  # width and height, in latents, of what is decoded around a face: all of it, at this world's size


class FeatureDifference(nn.Module):
    """How differently a frozen recogniser sees crops (B,3,h,w) in [-1,1] and the same restored.

    As LPIPS (Zhang et al. 2018), without its learned weights: at each place of a stage's maps the squared distance of
    the two feature vectors, each scaled to length one; the mean over places, summed over the first three stages. The
    last stage knows who it is and no longer where: with `identity`, the squared distance of the two faces' embeddings,
    of length one as well, is added. Returns one number a crop (B,).
    """

    def __init__(self, folder: str | Path, identity: bool = False):
        super().__init__()
        self.recogniser = IRResNet.from_pretrained(folder).requires_grad_(False).eval()
        self.identity = identity

    def train(self, mode: bool = True):
        """Stays as it is: the recogniser's norms are frozen with it."""
        return self

    def forward(self, restored: Tensor, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            known = self._maps(pixels)
        return sum((a - b).square().sum(1).mean((1, 2)) for a, b in zip(self._maps(restored), known, strict=True))

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        size = (self.recogniser.config.input_size,) * 2  # a face is then about as large as those that it knows
        maps = self.recogniser.features(F.interpolate(pixels, size=size, mode="bilinear", align_corners=False))
        seen = [F.normalize(x.float(), dim=1) for x in maps[:3]]
        if self.identity:
            seen.append(F.normalize(self.recogniser.head(maps[3]).float(), dim=1)[..., None, None])
        return seen


class FaceDifference(nn.Module):
    """How differently the recogniser sees the faces of pictures, decoded from latents, and the same as predicted.

    For training on noise (Berrada et al. 2024, arXiv 2411.04873, have the decoder's features for it; PuLID, arXiv
    2404.16022, the identity): the clean picture that a prediction stands for is decoded around one face of a sample,
    and seen beside the true one. Of noise there is only so much that a single prediction can see through, so the rows
    count as what is left of the picture in them, `share` (B,): alpha-bar; and at most `most` rows are looked at, the
    first of those where that is above a quarter.
    """

    def __init__(self, vae: str | Path, recogniser: str | Path, most: int = 8):
        super().__init__()
        self.vae = AutoencoderKL.from_pretrained(vae, torch_dtype=torch.float32).requires_grad_(False).eval()
        self.vae.encoder = None
        self.difference = FeatureDifference(recogniser, identity=True)
        self.most = most

    def train(self, mode: bool = True):
        """Stays as it is, frozen."""
        return self

    def forward(self, predicted: Tensor, clean: Tensor, boxes: Tensor, share: Tensor) -> Tensor:
        """Latents (B,c,h,w), as predicted and as they are; boxes (B,4) of a face, in shares of the picture."""
        rows = (share > 0.25).nonzero()[: self.most, 0]
        if not len(rows):
            return predicted.sum() * 0
        with torch.no_grad():
            real = self.faces(clean[rows], boxes[rows])
        return (self.difference(self.faces(predicted[rows], boxes[rows]), real) * share[rows]).sum() / self.most

    def faces(self, latents: Tensor, boxes: Tensor) -> Tensor:
        """What the pictures with these latents (B,c,h,w) show around boxes (B,4): (B,3,64,64) in [-1,1]."""
        return self.vae.decode(_around(latents, boxes) / self.vae.config.scaling_factor).sample.float()


def predicted_clean(noisy: Tensor, predicted: Tensor, alphas: Tensor, kind: str) -> Tensor:
    """The clean latents that a network's answer to noisy ones (B,c,h,w) stands for; alphas (B,): alpha-bar."""
    signal, noise = (x.sqrt().view(-1, 1, 1, 1) for x in (alphas, 1 - alphas))
    return signal * noisy - noise * predicted if kind == "v_prediction" else (noisy - noise * predicted) / signal


def _around(latents: Tensor, boxes: Tensor) -> Tensor:
    """The `CELLS` x `CELLS` latents around the middle of each box."""
    height, width = latents.shape[-2:]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2 * torch.tensor([width, height], device=boxes.device)
    corners = (middle - CELLS / 2).round().long()
    found = []
    for picture, (x, y) in zip(latents, corners.tolist(), strict=True):
        x, y = min(max(x, 0), width - CELLS), min(max(y, 0), height - CELLS)
        found.append(picture[:, y : y + CELLS, x : x + CELLS])
    return torch.stack(found)
