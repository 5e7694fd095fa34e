"""The recipe of the attribute reader: it looks at a picture and says each factor of it, so that prompts can be checked.

It serves evaluation only. Without boxes it reads portraits; in groups it reads the window around each face's box.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from uniportrait_lite.backbone import load_network, save_network
from uniportrait_lite.errors import ConfigError
from uniportrait_lite.loop import LoopConfig, train
from uniportrait_lite.toyworld import Person
from uniportrait_lite.toyworld.factors import FACE_SCENE, IDENTITY, SCENE
from uniportrait_lite.toyworld.pretrain import recognition
from uniportrait_lite.toyworld.pretrain.data import Scenes, load_scenes
from uniportrait_lite.toyworld.pretrain.record import depends, record
from uniportrait_lite.toyworld.wording import COLORLESS_STYLES

SIDE = 128  # of the window that is read
CHOICES = FACE_SCENE | SCENE | IDENTITY
COLORS = ("hat_color", "clothes_color", "skin", "hair_color", "eye_color")


@dataclass
class ReaderConfig:
    """Portraits and windows from pairs and trios, half and half."""

    out: str = "runs/reader"
    folder: str = "data/tiny/reader"
    world: str = ""  # the file of another world than the toy world, see worlds.py
    portraits: int = 40_000
    groups: int = 10_000  # of pairs, and as many of trios
    unseen: int = 3000  # portraits of people outside all trainings, for the metrics
    unseen_trios: int = 1000
    batch: int = 96
    steps: int | None = 1000
    hours: float | None = None
    lr: float = 2e-3
    muon_lr: float | None = 0.04
    weight_decay: float = 0.02
    warmup: int = 50
    precision: str = "bf16"
    workers: int | None = None  # processes that make batches ahead; none: on CUDA what cores there are to spare
    seed: int = 3
    evaluate_every: int = 300
    checkpoint_every: float = 60.0


def shows(key: str, values: dict[str, str]) -> bool:
    """Whether the picture shows a factor: no hat has no colour, a bald head no hair's, sunglasses hide the eyes."""
    if key in COLORS and values["style"] in COLORLESS_STYLES:
        return False
    if key == "hat_color":
        return values["hat"] not in ("none", "flower crown")
    if key in ("eye_color", "eye_shape"):
        return values["glasses"] != "sunglasses"
    if key == "hair_style":
        return values["hat"] in ("none", "flower crown")
    if key == "hair_color":
        return values["hair_style"] != "bald"
    return True


def window(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """The square of full height, uint8 (H,H,3), around a face's box (x0,y0,x1,y1) in a picture (H,W,3) of a group."""
    height, width = image.shape[:2]
    start = int(np.clip(round((box[0] + box[2]) / 2 - height / 2), 0, width - height))
    return image[:, start : start + height]


class AttributeReader(nn.Module):
    """(B,3,128,128) RGB in [-1, 1] -> scores (B,K) of all choices of all factors, one factor after another."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96, 128), hidden: int = 256):
        super().__init__()
        self.config = {"widths": list(widths), "hidden": hidden, "choices": {k: list(v) for k, v in CHOICES.items()}}
        self.stem = recognition.layer(3, widths[0], 2)
        pairs = zip(widths, widths[1:], strict=False)
        self.body = nn.Sequential(
            *(nn.Sequential(recognition.layer(a, b, 2), recognition.layer(b, b, 1)) for a, b in pairs)
        )
        self.head = nn.Sequential(  # where something is counts here, so the map is not averaged
            nn.Conv2d(widths[-1], 64, 1, bias=False), nn.BatchNorm2d(64), nn.SiLU(), nn.Flatten(),
            nn.Linear(64 * 8 * 8, hidden, bias=False), nn.BatchNorm1d(hidden), nn.SiLU(),
            nn.Linear(hidden, sum(map(len, CHOICES.values()))),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))

    @torch.no_grad()
    def read(self, images: Sequence, boxes: Sequence | None = None) -> list[dict[str, str]]:
        """A value for each factor of each picture: PIL or uint8 (H,W,3), square, or wider with the box of one face."""
        windows = []
        for i, image in enumerate(images):
            pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
            pixels = pixels if boxes is None else window(pixels, boxes[i])
            if pixels.shape[0] != pixels.shape[1]:
                raise ConfigError(f"a picture of {pixels.shape[1]}x{pixels.shape[0]} is not square: give a face's box")
            windows.append(cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
        device = next(self.parameters()).device
        scores = [
            self(recognition.as_input(np.stack(windows[i : i + 100])).to(device)) for i in range(0, len(windows), 100)
        ]
        return [read_scores(row) for row in torch.cat(scores).cpu()] if windows else []

    def save(self, folder: str | Path):
        """Writes config.json and model.safetensors into `folder`."""
        save_network(self, self.config, folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "AttributeReader":
        """Reads what `save` wrote; WeightsError where that is missing, cut short or of other factors."""

        def build(config: dict) -> AttributeReader:
            if config["choices"] != {k: list(v) for k, v in CHOICES.items()}:
                raise ConfigError("it reads other factors than the toy world has now: train it again")
            return cls(tuple(config["widths"]), config["hidden"])

        return load_network(build, folder)


def split(scores: Tensor) -> dict[str, Tensor]:
    """Scores (..., K) by factor."""
    return dict(zip(CHOICES, scores.split([len(v) for v in CHOICES.values()], dim=-1), strict=True))


def read_scores(scores: Tensor) -> dict[str, str]:
    """The likeliest value of each factor, from scores (K,)."""
    return {key: CHOICES[key][int(part.argmax())] for key, part in split(scores).items()}


@lru_cache(maxsize=50_000)
def _identity(seed: int) -> dict[str, str]:
    person = Person.random(seed)
    return {key: getattr(person, key) for key in IDENTITY}


def truth(scenes: Scenes, index: int, face: int) -> dict[str, str]:
    """The values of all factors of one face of a scene."""
    described = {k: FACE_SCENE[k][v] for k, v in zip(FACE_SCENE, scenes.face[index, face], strict=True)}
    described |= {k: SCENE[k][v] for k, v in zip(SCENE, scenes.scene[index], strict=True)}
    return described | _identity(int(scenes.person[index, face]))


class ReaderBatches:
    """Windows with the numbers of their factors' values, -1 where the picture does not show them."""

    def __init__(self, sets: Sequence[Scenes], batch: int):
        self.sets, self.batch = sets, batch

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """pictures (B,3,128,128) in [-1, 1] and labels (B, factors)."""
        rng = recognition.numpy_rng(generator)
        pictures, labels = [], []
        portraits, *groups = self.sets
        for k in range(self.batch):
            scenes = portraits if k % 2 or not groups else groups[k // 2 % len(groups)]
            index, face = int(rng.integers(len(scenes))), int(rng.integers(scenes.spec.faces))
            pictures.append(varied(window(scenes.images([index])[0], scenes.boxes[index, face]), rng))
            values = truth(scenes, index, face)
            labels.append([CHOICES[key].index(values[key]) if shows(key, values) else -1 for key in CHOICES])
        return {"pictures": recognition.as_input(np.stack(pictures)), "labels": torch.tensor(labels)}


def varied(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture moved by up to 6 pixels, up to 8% larger or smaller, and three times in ten with less detail."""
    scale = rng.uniform(0.92, 1.08)
    shift = (1 - scale) * SIDE / 2 + rng.uniform(-6, 6, 2)
    move = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    picture = cv2.warpAffine(picture, move, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)
    if rng.random() < 0.3:
        small = int(SIDE * rng.uniform(0.5, 0.9))
        picture = cv2.resize(cv2.resize(picture, (small, small), interpolation=cv2.INTER_AREA), (SIDE, SIDE))
    return picture


def reading_loss(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cross-entropy over the factors that each picture shows, and the share read rightly."""
    parts = split(model(batch["pictures"]).float())
    labels = batch["labels"]
    losses = [F.cross_entropy(part, y, ignore_index=-1) for part, y in zip(parts.values(), labels.T, strict=True)]
    right = torch.stack([part.argmax(-1) == y for part, y in zip(parts.values(), labels.T, strict=True)])
    # a batch may show a factor nowhere: its mean over nothing is no number, and must not become the loss
    known = torch.stack([loss for loss, y in zip(losses, labels.T, strict=True) if (y >= 0).any()])
    return {"loss": known.mean(), "right": right.float().sum() / (labels >= 0).sum()}


def accuracy(reader: AttributeReader, scenes: Scenes, count: int) -> dict[str, float]:
    """The share of faces read rightly, by factor, over those faces of `count` scenes that show it; and their mean."""
    faces = [(i, f) for i in range(count) for f in range(scenes.spec.faces)]
    hits: dict[str, list[bool]] = {key: [] for key in CHOICES}
    for start in range(0, len(faces), 100):
        part = faces[start : start + 100]
        found = reader.read(scenes.images([i for i, _ in part]), [scenes.boxes[i, f] for i, f in part])
        for (i, f), read in zip(part, found, strict=True):
            values = truth(scenes, i, f)
            for key in CHOICES:
                if shows(key, values):
                    hits[key].append(read[key] == values[key])
    scores = {key: float(np.mean(h)) for key, h in hits.items() if h}
    return {"mean": float(np.mean(list(scores.values()))), **scores}


def run(**overrides) -> dict:
    """Trains the reader; writes config.json, model.safetensors and reader.recipe.json to `folder`; returns the report.

    Overrides are the fields of `ReaderConfig`. Started again, goes on from the last checkpoint in `out`.
    """
    config = ReaderConfig(**overrides)
    sets = [load_scenes("portraits", config.portraits, config.world)]
    if config.groups:
        sets += [load_scenes(name, config.groups, config.world) for name in ("pairs", "trios")]
    unseen = load_scenes("unseen", config.unseen, config.world)
    trios = load_scenes("unseen_trios", config.unseen_trios, config.world)
    torch.manual_seed(config.seed)
    reader = AttributeReader().to(memory_format=torch.channels_last)
    batches = ReaderBatches(sets, config.batch)
    history = train(
        LoopConfig(
            out=config.out, steps=config.steps, hours=config.hours, lr=config.lr, muon_lr=config.muon_lr,
            weight_decay=config.weight_decay, warmup=config.warmup, precision=config.precision, seed=config.seed,
            checkpoint_every=config.checkpoint_every, workers=config.workers,
        ),
        reader, lambda step, generator: batches(generator), reading_loss,
        evaluate=lambda model, step: {"unseen": accuracy(model, unseen, min(500, config.unseen))["mean"]},
        evaluate_every=config.evaluate_every, no_muon=lambda name: name.startswith(("stem.", "head.7")),
        depends_on=depends(config),
    )  # fmt: skip
    reader.cpu().save(config.folder)
    shipped = AttributeReader.from_pretrained(config.folder)
    metrics = {
        "portraits": accuracy(shipped, unseen, config.unseen),
        "trios": accuracy(shipped, trios, config.unseen_trios),
    }
    return record(config.folder, "reader", config, history, metrics)
