"""The recipe of the tiny face recogniser: an IR-ResNet, trained with CurricularFace on drawn people."""

from dataclasses import dataclass

import torch

from uniportrait_lite.backbone import CurricularFace, IRConfig, IRResNet, verification
from uniportrait_lite.toyworld.pretrain import recognition
from uniportrait_lite.toyworld.pretrain.data import load_scenes
from uniportrait_lite.toyworld.pretrain.record import record


@dataclass
class RecogniserConfig:
    """Five scenes of each person; the margin rises from 0 over the first `margin_steps`."""

    out: str = "runs/recogniser"
    folder: str = "data/tiny/recogniser"
    world: str = ""  # the file of another world than the toy world, see worlds.py
    scenes: int = 20_000
    unseen: int = 3000  # portraits of 300 people outside all trainings, for the metrics
    batch: int = 96
    steps: int | None = 1500
    hours: float | None = None
    lr: float = 2e-3
    muon_lr: float | None = 0.04
    weight_decay: float = 0.02
    warmup: int = 50
    scale: float = 28.0
    margin: float = 0.35
    margin_steps: int = 400
    jitter: float = 1.5  # pixels
    precision: str = "bf16"
    workers: int | None = None  # processes that make batches ahead; none: on CUDA what cores there are to spare
    seed: int = 1
    evaluate_every: int = 300
    checkpoint_every: float = 60.0


def run(**overrides) -> dict:
    """Trains the recogniser and writes config.json, model.safetensors and recogniser.recipe.json into `folder`.

    Overrides are the fields of `RecogniserConfig`. Started again, goes on from the last checkpoint in `out`.
    """
    config = RecogniserConfig(**overrides)
    scenes = load_scenes("portraits", config.scenes, config.world)
    unseen = load_scenes("unseen", config.unseen, config.world)
    torch.manual_seed(config.seed)
    network = IRResNet(IRConfig())
    head = CurricularFace(network.config.embedding, len(scenes.spec.people), config.scale, config.margin)
    batches = recognition.FaceBatches(scenes, config.batch, recognition.twice_resampled, config.jitter)
    history = recognition.fit(
        config, network, head, batches, recognition.evaluator(unseen, min(900, config.unseen), batches.cropper)
    )
    network.cpu().save(config.folder)
    shipped = IRResNet.from_pretrained(config.folder)
    metrics = verification(*recognition.embed(shipped, unseen, config.unseen, batches.cropper))
    return record(config.folder, "recogniser", config, history, metrics)
