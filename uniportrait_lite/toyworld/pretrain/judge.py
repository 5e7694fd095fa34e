"""The recipe of the judge: a second face recogniser, which conditions nothing and scores everything.

To be a fair witness it shares with the recogniser neither architecture (no residuals, no flattened map but one weighted
sum a channel), nor loss, nor seed, nor people. insightface loads it as the recognition model of `data/tiny/face`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from insightface.model_zoo.arcface_onnx import ArcFaceONNX
from torch import Tensor, nn
from torch.nn import functional as F

from uniportrait_lite.backbone import verification
from uniportrait_lite.toyworld.pretrain import recognition
from uniportrait_lite.toyworld.pretrain.data import Scenes, load_scenes
from uniportrait_lite.toyworld.pretrain.onnx_export import export_onnx
from uniportrait_lite.toyworld.pretrain.record import record


@dataclass
class JudgeConfig:
    """As the recogniser's, but for other people, another seed and another loss."""

    out: str = "runs/judge"
    folder: str = "data/tiny/face"  # receives judge.onnx and judge.recipe.json
    world: str = ""  # the file of another world than the toy world, see worlds.py
    scenes: int = 30_000
    unseen: int = 3000
    batch: int = 96
    steps: int | None = 1200
    hours: float | None = None
    lr: float = 2e-3
    muon_lr: float | None = 0.04
    weight_decay: float = 0.02
    warmup: int = 50
    scale: float = 28.0
    margin: float = 0.3
    margin_steps: int = 400
    jitter: float = 1.5  # pixels
    precision: str = "bf16"
    workers: int | None = None  # processes that make batches ahead; none: on CUDA what cores there are to spare
    seed: int = 2
    evaluate_every: int = 300
    checkpoint_every: float = 60.0


class Judge(nn.Module):
    """A plain convolutional network, (B,3,112,112) RGB in [-1, 1] -> (B,128), not normalised: 0.9 million weights."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 192), embedding: int = 128):
        super().__init__()
        self.stem = recognition.layer(3, widths[0], 2)
        pairs = zip(widths, widths[1:], strict=False)
        self.body = nn.Sequential(
            *(nn.Sequential(recognition.layer(a, b, 2), recognition.layer(b, b, 1)) for a, b in pairs)
        )
        self.head = nn.Sequential(
            nn.Conv2d(widths[-1], widths[-1], 7, groups=widths[-1], bias=False), nn.Flatten(),
            nn.BatchNorm1d(widths[-1]), nn.Linear(widths[-1], embedding, bias=False), nn.BatchNorm1d(embedding),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))


class CosFace(nn.Module):
    """Classification head that takes a margin from the right person's cosine (Wang et al. 2018, arXiv 1801.09414)."""

    def __init__(self, embedding: int, classes: int, scale: float):
        super().__init__()
        self.scale = scale
        self.centres = nn.Parameter(F.normalize(torch.randn(classes, embedding), dim=1))

    def forward(self, embeddings: Tensor, labels: Tensor, margin: float) -> Tensor:
        """The scaled logits (B, classes) for cross-entropy."""
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = F.linear(F.normalize(embeddings.float()), F.normalize(self.centres.float()))
        return self.scale * (cosines - margin * F.one_hot(labels, len(self.centres)))


def judge_embeddings(path: str | Path, scenes: Scenes, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N,D) and people (N,) as insightface computes them from the ONNX file, by true landmarks."""
    judge = ArcFaceONNX(str(path))
    found = []
    for start in range(0, count, 100):
        chosen = np.arange(start, min(start + 100, count))
        faces = recognition.crop(scenes.images(chosen), scenes.landmarks[chosen, 0])
        found.append(judge.get_feat([face[..., ::-1] for face in faces]))  # insightface reads BGR
    return np.concatenate(found), scenes.person[:count, 0]


def run(**overrides) -> dict:
    """Trains the judge and writes judge.onnx and judge.recipe.json (the report) into `folder`; returns the report.

    Overrides are the fields of `JudgeConfig`. Started again, goes on from the last checkpoint in `out`.
    """
    config = JudgeConfig(**overrides)
    scenes = load_scenes("judge", config.scenes, config.world)
    unseen = load_scenes("unseen", config.unseen, config.world)
    torch.manual_seed(config.seed)
    network = Judge()
    head = CosFace(128, len(scenes.spec.people), config.scale)
    batches = recognition.FaceBatches(scenes, config.batch, recognition.crop, config.jitter)
    history = recognition.fit(config, network, head, batches, recognition.evaluator(unseen, min(900, config.unseen)))
    path = Path(config.folder) / "judge.onnx"
    export_onnx(network, torch.zeros(1, 3, recognition.SIDE, recognition.SIDE), path)
    metrics = verification(*judge_embeddings(path, unseen, config.unseen))
    return record(config.folder, "judge", config, history, metrics)
