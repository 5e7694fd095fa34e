"""The face backbone (an improved residual network), its CurricularFace head, and how face recognition is scored.

One class serves both scales: `IRConfig()` is the tiny one, `IRConfig.ir101()` has the sizes of the published backbone.
"""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from uniportrait_lite.errors import ConfigError, WeightsError


@dataclass(frozen=True)
class IRConfig:
    """Sizes of an `IRResNet`; the picture is 112x112, the stages come out at 56, 28, 14 and 7 whatever is set here.

    `stem_stride` 2 halves the picture in the first convolution, where 1 (the published one) leaves that to stage 1.
    """

    channels: tuple[int, int, int, int] = (16, 32, 64, 128)
    blocks: tuple[int, int, int, int] = (1, 1, 2, 1)
    stem_stride: int = 2
    embedding: int = 128
    input_size: int = 112
    dropout: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if len(self.channels) != 4 or len(self.blocks) != 4 or min(self.channels) < 1 or min(self.blocks) < 1:
            raise ConfigError(f"a backbone has four stages: channels {self.channels}, blocks {self.blocks}")
        if self.stem_stride not in (1, 2):
            raise ConfigError(f"stem_stride is 1 or 2, not {self.stem_stride}")
        if self.input_size % 16:
            raise ConfigError(f"input_size is a multiple of 16, not {self.input_size}")

    @classmethod
    def ir101(cls) -> "IRConfig":
        """The published backbone: 64 to 512 channels, 49 blocks, a 512-vector."""
        return cls((64, 128, 256, 512), (3, 13, 30, 3), stem_stride=1, embedding=512, dropout=0.4)


class PReLU(nn.PReLU):
    """`nn.PReLU`, as a difference of two rectifiers: its own backward pass takes a third of a training step on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        positive = x.relu()
        return torch.addcmul(positive, x - positive, self.weight[:, None, None].to(x.dtype))


class IRBlock(nn.Module):
    """Batch norm, convolution, batch norm, PReLU, convolution (with the stride), batch norm; plus a shortcut.

    "Improved residual" of Deng et al. 2019 (ArcFace, section 3.1): no activation after the sum. Where the width stays
    the same the shortcut only picks every stride-th position; elsewhere a 1x1 convolution and a norm map it.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        if inputs == outputs:
            self.shortcut = nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity()
        else:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + self.shortcut(x)


class IRResNet(nn.Module):
    """Face recognition network: (B, 3, 112, 112) RGB in [-1, 1] -> (B, embedding), not normalised."""

    def __init__(self, config: IRConfig | None = None):
        super().__init__()
        self.config = config = config or IRConfig()
        width = config.channels[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, config.stem_stride, 1, bias=False), nn.BatchNorm2d(width), PReLU(width)
        )
        self.stages = nn.ModuleList()
        for number, (channels, blocks) in enumerate(zip(config.channels, config.blocks, strict=True)):
            stride = 2 if number else 2 // config.stem_stride
            first = IRBlock(width, channels, stride)
            self.stages.append(nn.Sequential(first, *(IRBlock(channels, channels, 1) for _ in range(blocks - 1))))
            width = channels
        self.head = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Dropout(config.dropout),
            nn.Flatten(),
            nn.Linear(width * (config.input_size // 16) ** 2, config.embedding),
            nn.BatchNorm1d(config.embedding, affine=False),
        )

    def features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four stages' maps, (B, channels[i], s, s) with s = 56, 28, 14, 7: shallow structure first, identity last.

        The last one, before the head, is what the paper takes as intrinsic ID features (section 3.2).
        """
        maps = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)[-1])

    def save(self, folder: str | Path):
        """Writes config.json and model.safetensors (matrices in half precision) into `folder`."""
        save_network(self, asdict(self.config), folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "IRResNet":
        """Reads what `save` wrote, as float32 and in evaluation mode; raises WeightsError where that cannot work."""
        return load_network(lambda config: cls(IRConfig(**config)), folder)


class CurricularFace(nn.Module):
    """Classification head whose hard negatives count more as training goes on (Huang et al. 2020, arXiv 2004.00288).

    With cosines cos(theta_j) between embedding and class centres, scale s and margin m, the loss is
    -log( e^{s T} / (e^{s T} + sum_{j != y} e^{s N_j}) ) where (section 3.2 of that paper)
    T = cos(theta_y + m), N_j = cos(theta_j) where T >= cos(theta_j), else cos(theta_j) * (t + cos(theta_j)).
    t is the moving average of the batch's mean positive cosine (equation 9): near 0 at first, so that hard negatives
    are softened, and larger later. The average keeps 99% of its past a step, as the authors' own training does.
    """

    def __init__(self, embedding: int, classes: int, scale: float = 64.0, margin: float = 0.5):
        super().__init__()
        self.scale, self.margin = scale, margin
        self.centres = nn.Parameter(F.normalize(torch.randn(classes, embedding), dim=1))
        self.register_buffer("t", torch.zeros(()))

    def forward(self, embeddings: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
        """The scaled logits (B, classes) for cross-entropy; `margin` replaces the head's own, for a ramp."""
        margin = self.margin if margin is None else margin
        with torch.autocast(embeddings.device.type, enabled=False):  # margins of 0.01 are lost in half precision
            cosines = F.linear(F.normalize(embeddings.float()), F.normalize(self.centres.float())).clamp(-1, 1)
        positive = cosines.gather(1, labels[:, None])
        target = with_margin(positive, margin)
        if self.training:
            with torch.no_grad():
                self.t.lerp_(positive.mean(), 0.01)
        logits = torch.where(cosines > target, cosines * (self.t + cosines), cosines)
        return self.scale * logits.scatter(1, labels[:, None], target)


def with_margin(cosine: Tensor, margin: float) -> Tensor:
    """cos(theta + margin) from cos(theta); beyond theta = pi - margin, where that would rise again, a falling line."""
    sine = (1 - cosine.square()).clamp_min(1e-6).sqrt()
    shifted = cosine * math.cos(margin) - sine * math.sin(margin)
    return torch.where(cosine > -math.cos(margin), shifted, cosine - margin * math.sin(margin))


def verification(embeddings: Tensor | np.ndarray, people: Tensor | np.ndarray) -> dict[str, float]:
    """How well embeddings (N, D) tell people (N,) apart, over all pairs of pictures.

    `auc`: the chance that a pair of one person is closer than a pair of two; `same`, `different`: mean cosines;
    `accuracy`: share of right verdicts at the best threshold, with both kinds of pairs weighing the same.
    """
    x = torch.as_tensor(np.asarray(embeddings), dtype=torch.float32)
    people = torch.as_tensor(np.asarray(people))
    rows, columns = torch.triu_indices(len(x), len(x), offset=1)
    x = F.normalize(x, dim=1)
    cosines, same = (x @ x.T)[rows, columns], people[rows] == people[columns]
    positive, negative = int(same.sum()), int((~same).sum())
    if not positive or not negative:
        raise ConfigError("verification needs two pictures of one person and pictures of two people")
    order = cosines.argsort(descending=True)
    hits = torch.cat([torch.zeros(1), same[order].double().cumsum(0) / positive])
    alarms = torch.cat([torch.zeros(1), (~same[order]).double().cumsum(0) / negative])
    return {
        "auc": float(torch.trapezoid(hits, alarms)),
        "same": float(cosines[same].mean()),
        "different": float(cosines[~same].mean()),
        "accuracy": float(((hits + 1 - alarms) / 2).max()),
    }


def save_network(network: nn.Module, config: dict, folder: str | Path):
    """Writes `config` to config.json and the network to model.safetensors, each of them whole or not at all.

    Matrices and convolutions in half precision; vectors, among them the norms' statistics, as they are: they are
    small, and their range is wide.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: (tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor).cpu().contiguous()
        for name, tensor in network.state_dict().items()
    }
    save_file(state, folder / "model.safetensors.tmp")
    (folder / "config.json.tmp").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("model.safetensors", "config.json"):
        os.replace(folder / f"{name}.tmp", folder / name)


def load_network(build, folder: str | Path) -> nn.Module:
    """The network `build(config)` with the weights of `folder`, float32, in evaluation mode; WeightsError if amiss."""
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise WeightsError(f"no {name} in {folder}: give a folder that holds config.json and model.safetensors")
    try:
        network = build(json.loads((folder / "config.json").read_text()))
        state = {
            k: v.float() if v.is_floating_point() else v for k, v in load_file(folder / "model.safetensors").items()
        }
        network.load_state_dict(state)
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{folder} is cut short or damaged ({error}): fetch or train it again") from error
    except (RuntimeError, TypeError, ConfigError) as error:
        raise WeightsError(f"the weights in {folder} are of another network than its config says: {error}") from error
    return network.eval()
