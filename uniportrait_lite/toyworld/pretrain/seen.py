"""What a frozen recogniser sees in a picture: a loss on how faces look, beside that on pixels."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniportrait_lite.backbone import IRResNet


class FeatureDifference(nn.Module):
    """How differently a frozen recogniser sees crops (B,3,h,w) in [-1,1] and the same restored.

    As LPIPS (Zhang et al. 2018), without its learned weights: at each place of a stage's maps the squared distance of
    the two feature vectors, each scaled to length one; the mean over places, summed over the first three stages (the
    last knows who it is and no longer where). Returns one number a crop (B,).
    """

    def __init__(self, folder: str | Path):
        super().__init__()
        self.recogniser = IRResNet.from_pretrained(folder).requires_grad_(False).eval()

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
        return [F.normalize(x.float(), dim=1) for x in maps[:3]]
