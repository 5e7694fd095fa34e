"""What the recogniser's and the judge's trainings share: aligned faces, their variation, batches and scores."""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from insightface.utils.face_align import arcface_dst
from torch import Tensor, nn
from torch.nn import functional as F

from uniportrait_lite.backbone import verification
from uniportrait_lite.loop import LoopConfig, train
from uniportrait_lite.toyworld.pretrain.data import Scenes
from uniportrait_lite.toyworld.pretrain.record import depends

SIDE = 112


def align(landmarks: np.ndarray, side: int = SIDE) -> np.ndarray:
    """The maps (B,2,3) that bring landmarks (B,5,2) nearest to insightface's face template, for crops of `side`.

    Least squares over rotations with one scale and a shift, in closed form: points as complex numbers.
    """
    source = landmarks[..., 0] + 1j * landmarks[..., 1]
    target = (arcface_dst[:, 0] + 1j * arcface_dst[:, 1]) * (side / 112)
    centre = source.mean(1, keepdims=True)
    spread = source - centre
    turn = (spread.conj() * (target - target.mean())).sum(1) / (np.abs(spread) ** 2).sum(1)
    shift = target.mean() - turn * centre[:, 0]
    rows = [[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]]
    return np.transpose(np.asarray(rows), (2, 0, 1))


def crop(images: np.ndarray, landmarks: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Aligned faces, uint8 (B,side,side,3), of pictures (B,H,W,3) with landmarks (B,5,2), as `norm_crop` makes them."""
    maps = align(landmarks, side)
    return np.stack([cv2.warpAffine(image, m, (side, side)) for image, m in zip(images, maps, strict=True)])


def twice_resampled(images: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Aligned faces by the way that the ID embedding takes: a crop of 224 pixels, halved for the backbone."""
    return np.stack([cv2.resize(face, (SIDE, SIDE)) for face in crop(images, landmarks, 2 * SIDE)])


def as_input(faces: np.ndarray) -> Tensor:
    """uint8 (B,H,W,3) -> float32 (B,3,H,W) in [-1, 1], channels last in memory: faster convolutions on the CPU."""
    return torch.from_numpy(np.ascontiguousarray(faces)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def numpy_rng(generator: torch.Generator) -> np.random.Generator:
    """numpy's generator for what a training step draws, seeded by the step's own."""
    return np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))


class FaceBatches:
    """Batches of aligned faces with their people's class numbers, varied as a detector and a decoder vary them.

    Landmarks move by `jitter` pixels (standard deviation), brightness and contrast by up to a fifth, and `blurred` of
    the faces lose detail, as decoded and small ones do. No mirroring: a mole on the left cheek is who one is.
    """

    def __init__(self, scenes: Scenes, batch: int, cropper: Callable = crop, jitter: float = 1.5, blurred: float = 0.3):
        self.scenes, self.batch, self.cropper, self.jitter, self.blurred = scenes, batch, cropper, jitter, blurred
        self.labels = scenes.person[:, 0].astype(np.int64) - scenes.spec.people[0]

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """faces (B,3,112,112) in [-1, 1] and labels (B,)."""
        rng = numpy_rng(generator)
        chosen = rng.integers(len(self.scenes), size=self.batch)
        landmarks = self.scenes.landmarks[chosen, 0] + rng.normal(0, self.jitter, (self.batch, 5, 2))
        faces = self.cropper(self.scenes.images(chosen), landmarks)
        for i in np.flatnonzero(rng.random(self.batch) < self.blurred):
            small = int(SIDE * rng.uniform(0.35, 0.8))
            faces[i] = cv2.resize(cv2.resize(faces[i], (small, small), interpolation=cv2.INTER_AREA), (SIDE, SIDE))
        x = as_input(faces)
        contrast, brightness = (rng.uniform(-0.2, 0.2, (self.batch, 1, 1, 1)).astype(np.float32) for _ in range(2))
        x.mul_(torch.from_numpy(1 + contrast)).add_(torch.from_numpy(brightness)).clamp_(-1, 1)
        return {"faces": x, "labels": torch.from_numpy(self.labels[chosen])}


def layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A 3x3 convolution, batch norm and SiLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU(inplace=True)
    )


class Classifier(nn.Module):
    """A recogniser with the head that trains it: faces, labels, margin -> scaled logits."""

    def __init__(self, network: nn.Module, head: nn.Module):
        super().__init__()
        self.network, self.head = network.to(memory_format=torch.channels_last), head

    def forward(self, faces: Tensor, labels: Tensor, margin: float) -> Tensor:
        return self.head(self.network(faces), labels, margin)


def classification_loss(model: nn.Module, batch: dict) -> dict[str, Tensor]:
    """Cross-entropy of the head's logits, and how often the right person comes first in spite of the margin."""
    labels = batch["labels"]
    logits = model(batch["faces"], labels, batch["margin"])
    return {"loss": F.cross_entropy(logits.float(), labels), "right": (logits.argmax(1) == labels).float().mean()}


def ramp(step: int, margin: float, steps: int) -> float:
    """The margin at a step: up from 0 to `margin` in a line over `steps`, since a full one at first stops learning."""
    return margin * min(1.0, step / steps)


def fit(config, network: nn.Module, head: nn.Module, batches: FaceBatches, evaluate: Callable) -> list[dict]:
    """Trains network and head by a recipe's settings through the project's loop; returns the log.

    Class centres and the last matrix stay with AdamW: Muon is for what lies between.
    """
    model = Classifier(network, head)
    loop = LoopConfig(
        out=config.out, steps=config.steps, hours=config.hours, lr=config.lr, muon_lr=config.muon_lr,
        weight_decay=config.weight_decay, warmup=config.warmup, precision=config.precision, seed=config.seed,
        checkpoint_every=config.checkpoint_every, workers=config.workers,
    )  # fmt: skip

    def batch(step: int, generator: torch.Generator) -> dict:
        return {**batches(generator), "margin": ramp(step, config.margin, config.margin_steps)}

    return train(
        loop, model, batch, classification_loss, evaluate=evaluate, evaluate_every=config.evaluate_every,
        no_muon=lambda name: name.startswith(("head.", "network.head.", "network.stem.")),
        depends_on=depends(config),
    )  # fmt: skip


@torch.no_grad()
def embed(network: nn.Module, scenes: Scenes, count: int, cropper: Callable = crop) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N,D) and people (N,) of the first `count` portraits, cropped by their true landmarks."""
    device = next(network.parameters()).device
    found = []
    for start in range(0, count, 100):
        chosen = np.arange(start, min(start + 100, count))
        faces = cropper(scenes.images(chosen), scenes.landmarks[chosen, 0])
        found.append(network(as_input(faces).to(device)).float().cpu().numpy())
    return np.concatenate(found), scenes.person[:count, 0]


def evaluator(unseen: Scenes, count: int, cropper: Callable = crop) -> Callable[[Classifier, int], dict[str, float]]:
    """For the loop: verification of people nobody trained on, over `count` portraits."""
    return lambda model, step: verification(*embed(model.network, unseen, count, cropper))
