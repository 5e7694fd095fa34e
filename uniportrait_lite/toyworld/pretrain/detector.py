"""The tiny face detector: a network with SCRFD's outputs, trained on the toy world's exact boxes and landmarks.

Layout (Guo et al. 2021, "Sample and Computation Redistribution for Efficient Face Detection", as insightface reads it):
at strides 8, 16 and 32, two anchors a location, each with a score, four distances to the box's sides and five landmark
offsets, both in strides and from the location (column * stride, row * stride). Both anchors learn the same targets.
"""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from uniportrait_lite.loop import LoopConfig, train
from uniportrait_lite.toyworld import splits
from uniportrait_lite.toyworld.pretrain.detector_data import ViewSampler
from uniportrait_lite.toyworld.pretrain.record import depends, record
from uniportrait_lite.toyworld.worlds import World, world

STRIDES = (8, 16, 32)
SIZES = ((0, 64), (48, 128), (96, 10_000))  # the longer side of the faces each stride answers for, in pixels
ANCHORS = 2


@dataclass
class DetectorConfig:
    """Settings of the recipe; the learning rates are those of `LoopConfig`."""

    out: str = "runs/detector"
    folder: str = "data/tiny/face"  # receives detector.onnx and detector.recipe.json
    world: str = ""  # the file of another world than the toy world, see worlds.py
    scenes: int = 4000  # of one person, of two and of three, each
    batch: float = 8.0  # pictures of 256 x 256 a step, or as many more as they are smaller
    steps: int | None = 2400
    hours: float | None = None
    lr: float = 2e-3
    muon_lr: float | None = 0.02
    width: int = 16
    precision: str = "bf16"
    workers: int | None = None  # processes that make batches ahead; none: on CUDA what cores there are to spare
    seed: int = 0
    checkpoint_every: float = 120.0
    evaluated: int = 300  # scenes of unseen people, of each number of faces


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution 3x3, batch norm (folded into the convolution by the export), ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    """x + two convolutions of x."""

    def __init__(self, width: int):
        super().__init__()
        self.first = block(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        return F.relu(x + self.second(self.first(x)))


class Detector(nn.Module):
    """Pictures (B, 3, H, W), RGB as (value - 127.5) / 128, H and W multiples of 32 -> nine maps.

    Returns, for each stride s, raw scores (B, 2, H/s, W/s), box distances (B, 8, H/s, W/s), landmarks
    (B, 20, H/s, W/s): a backbone whose features meet top-down (a feature pyramid), then one head for all strides.
    """

    def __init__(self, width: int = 16):
        super().__init__()
        w8, w16, w32 = 3 * width, 4 * width, 6 * width
        self.stem = nn.Sequential(block(3, width, 2), block(width, 2 * width, 2))
        self.down8 = nn.Sequential(block(2 * width, w8, 2), Residual(w8))
        self.down16 = nn.Sequential(block(w8, w16, 2), Residual(w16))
        self.down32 = nn.Sequential(block(w16, w32, 2), Residual(w32), Residual(w32))
        self.lateral = nn.ModuleList(nn.Conv2d(w, w8, 1) for w in (w8, w16, w32))
        self.smooth = nn.ModuleList(block(w8, w8) for _ in STRIDES)
        self.tower = block(w8, w8)
        self.score = nn.Conv2d(w8, ANCHORS, 1)
        self.box = nn.Conv2d(w8, ANCHORS * 4, 1)
        self.landmarks = nn.Conv2d(w8, ANCHORS * 10, 1)
        nn.init.constant_(self.score.bias, -4.0)  # faces are rare: start from "none"
        nn.init.constant_(self.box.bias, 3.0)

    def forward(self, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        c8 = self.down8(self.stem(x))
        c16 = self.down16(c8)
        p32 = self.lateral[2](self.down32(c16))
        p16 = self.lateral[1](c16) + F.interpolate(p32, scale_factor=2.0, mode="nearest")
        p8 = self.lateral[0](c8) + F.interpolate(p16, scale_factor=2.0, mode="nearest")
        features = [self.tower(smooth(p)) for smooth, p in zip(self.smooth, (p8, p16, p32), strict=True)]
        return [(self.score(f), self.box(f), self.landmarks(f)) for f in features]


class InsightfaceOutputs(nn.Module):
    """One picture -> the nine outputs that insightface's SCRFD reads: scores, boxes, landmarks, each at 8, 16, 32."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector

    def forward(self, picture):
        scores, boxes, landmarks = zip(*self.detector(picture), strict=True)
        scores = [s.sigmoid() for s in scores]
        return tuple(
            m.permute(0, 2, 3, 1).reshape(-1, k) for ms, k in ((scores, 1), (boxes, 4), (landmarks, 10)) for m in ms
        )


def centres(rows: int, columns: int, stride: int) -> torch.Tensor:
    """The pixel (x, y) of each location, row by row: (rows * columns, 2)."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2).float() * stride


def assign(boxes: torch.Tensor, shown: torch.Tensor, points: torch.Tensor, level: int):
    """Which face each location answers for at one stride.

    boxes (B, G, 4) in pixels, shown (B, G) 1 a face, 0 one cut off by the edge (neither face nor background), -1 no
    entry; points (P, 2). Returns the face's index (B, P), positive (B, P) and ignored (B, P) as bools. Positive are
    the locations within one stride of the centre of a face of the stride's size; a ring around them, and faces just
    outside the stride's sizes, count neither way.
    """
    stride, (low, high) = STRIDES[level], SIZES[level]
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    side = (boxes[..., 2:] - boxes[..., :2]).amax(-1)
    away = (points[None, :, None] - middle[:, None]).abs().amax(-1)  # (B, P, G)
    here = (shown == 1) & (side >= low) & (side <= high)
    near = (shown >= 0) & (side >= low / 1.4) & (side <= high * 1.4)
    far = torch.full_like(away, 1e6)
    distance, index = torch.where(here[:, None], away, far).min(-1)
    positive = distance <= stride
    ignored = ((away <= 2 * stride) & near[:, None]).any(-1) & ~positive
    return index, positive, ignored


def detector_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Focal loss of the scores, 1 - GIoU of the boxes, landmark distances in face widths; means over positives.

    batch: pictures (B, 3, H, W), boxes (B, G, 4), landmarks (B, G, 5, 2) in pixels, shown (B, G).
    """
    boxes, landmarks, shown = batch["boxes"], batch["landmarks"], batch["shown"]
    focal, ious, errors, count = 0.0, [], [], 0
    for level, (score, box, points) in enumerate(model(batch["pictures"])):
        stride, (rows, columns) = STRIDES[level], score.shape[-2:]
        at = centres(rows, columns, stride).to(boxes)
        index, positive, ignored = assign(boxes, shown, at, level)
        score, box, points = score.float().flatten(2), box.float().flatten(2), points.float().flatten(2)  # (B, ., P)
        truth = positive[:, None].expand_as(score).float()
        wrong = (truth - score.sigmoid()).abs()  # the focal weight: what is settled no longer counts
        cost = wrong.square() * F.binary_cross_entropy_with_logits(score, truth, reduction="none")
        focal = focal + (cost * ~ignored[:, None]).sum()
        b, p = positive.nonzero(as_tuple=True)
        count += len(b) * ANCHORS
        if len(b) == 0:
            continue
        face = index[b, p]
        start = at[p][:, None]  # (K, 1, 2)
        true_box, true_points = boxes[b, face], landmarks[b, face]
        distances = box[b, :, p].view(-1, ANCHORS, 4) * stride
        guess = torch.cat([start - distances[..., :2], start + distances[..., 2:]], -1)
        ious.append(1 - giou(guess, true_box[:, None].expand_as(guess)))
        offsets = points[b, :, p].view(-1, ANCHORS, 5, 2) * stride + start[:, None]
        width = (true_box[:, 2] - true_box[:, 0]).clamp(min=4)[:, None, None]
        errors.append((offsets - true_points[:, None]).square().sum(-1).add(1e-4).sqrt() / width)
    focal = focal / max(1, count)
    if not ious:
        return {"loss": focal, "score": focal}
    box_loss, error = torch.cat(ious).mean(), torch.cat(errors).mean()
    return {"loss": focal + box_loss + 12 * error, "score": focal, "box": box_loss, "landmarks": error}


def giou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Generalised intersection over union (Rezatofighi et al. 2019) of boxes (..., 4) as x0, y0, x1, y1."""
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=1e-3).prod(-1)
    union = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - overlap
    return overlap / union.clamp(min=1e-3) - (hull - union) / hull


def export(model: Detector, path: str | Path) -> None:
    """Writes the ONNX file that insightface loads, of any input size (multiples of 32); replaces it at once."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    names = [f"{kind}_{stride}" for kind in ("score", "box", "landmarks") for stride in STRIDES]
    axes = {"picture": {2: "height", 3: "width"}} | {name: {0: f"locations_{name}"} for name in names}
    with warnings.catch_warnings():  # the newer exporter would need onnxscript, and folds no batch norms
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            InsightfaceOutputs(model).cpu().eval(), (torch.zeros(1, 3, 64, 64),), str(temporary),
            input_names=["picture"], output_names=names, dynamic_axes=axes, dynamo=False, opset_version=17,
        )  # fmt: skip
    os.replace(temporary, path)


def evaluate(folder: str | Path, scenes: int, drawn: World, det_size: int = 256) -> dict[str, float]:
    """What insightface finds with the folder's detector.onnx in scenes of one to three unseen people.

    found_N: share of scenes of N in which every face is found (its true box overlapped by half or more);
    false_positives: found faces a scene that are none; landmark_error: mean distance in widths of the true box, and
    its 95th percentile over faces.
    """
    from insightface.app import FaceAnalysis

    metrics, errors, wrong = {}, [], 0
    app = FaceAnalysis(name=str(folder), allowed_modules=["detection"], providers=["CPUExecutionProvider"])
    app.prepare(ctx_id=-1, det_size=(det_size, det_size))
    for count in (1, 2, 3):
        complete = 0
        for k in range(scenes):
            seeds = [splits.HELD_OUT[10_000 + 3 * k + j] for j in range(count)]
            scene = drawn.group([drawn.Person.random(seed) for seed in seeds], seed=seeds[0])
            found = app.get(np.ascontiguousarray(np.asarray(scene.image)[..., ::-1]))
            overlaps = np.array([[iou(np.array(face.box), f.bbox) for f in found] for face in scene.faces])
            overlaps = overlaps.reshape(count, len(found))
            wrong += int((overlaps < 0.5).all(0).sum())
            complete += bool(len(found) and (overlaps.max(1) >= 0.5).all())
            for face, row in zip(scene.faces, overlaps, strict=True):
                if len(row) and row.max() >= 0.5:
                    away = np.linalg.norm(found[row.argmax()].kps - face.landmarks, axis=1).mean()
                    errors.append(away / (face.box[2] - face.box[0]))
        metrics[f"found_{count}"] = complete / scenes
    metrics["false_positives"] = wrong / (3 * scenes)
    metrics["landmark_error"] = float(np.mean(errors)) if errors else 1.0
    metrics["landmark_error_95"] = float(np.quantile(errors, 0.95)) if errors else 1.0
    return metrics


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (4,)."""
    overlap = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(overlap / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - overlap))


def run(**overrides) -> dict:
    """Trains the detector, writes detector.onnx and detector.recipe.json into `folder`; returns the report.

    Overrides are the fields of `DetectorConfig`. Started again, goes on from the last checkpoint in `out`.
    """
    config = DetectorConfig(**overrides)
    views = ViewSampler(config.scenes, config.world)
    torch.manual_seed(config.seed)
    model = Detector(config.width)
    loop = LoopConfig(
        out=config.out, steps=config.steps, hours=config.hours, lr=config.lr, muon_lr=config.muon_lr, warmup=50,
        precision=config.precision, seed=config.seed, checkpoint_every=config.checkpoint_every,
        workers=config.workers,
    )  # fmt: skip

    def batch(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return views.batch(generator, config.batch)

    history = train(
        loop, model, batch, detector_loss,
        no_muon=lambda name: name.startswith(("stem.0", "score", "box", "landmarks")),
        depends_on=depends(config),
    )  # fmt: skip
    path = Path(config.folder) / "detector.onnx"
    plain = Detector(config.width)  # accelerate has wrapped the other one's forward in its autocast
    plain.load_state_dict(model.state_dict())
    export(plain, path)
    return record(
        config.folder, "detector", config, history, evaluate(config.folder, config.evaluated, world(config.world))
    )
