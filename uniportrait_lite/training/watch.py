"""What can be said of a training beside its loss: on people it has not seen, on its cache, on itself."""

import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from uniportrait_lite.toyworld.pretrain.record import before, command, hardware
from uniportrait_lite.training.batches import Batches
from uniportrait_lite.training.data import Batch
from uniportrait_lite.training.network import SingleID
from uniportrait_lite.training.settings import StageConfig


class Validation:
    """The loss inside the face's box on people nobody trained on, the same portraits and the same noise every time.

    Beside it the same with another person's features, and with the ID branch off: identity is learned where the first
    falls below both, long before a portrait shows it.
    """

    def __init__(self, batches: Batches, count: int):
        indices = np.arange(min(count, len(batches.data)))
        faces = indices[:, None]
        drawn = {"scene": indices, "face": faces, "source": faces, "caption": np.zeros(len(indices), int)}
        parts = batches.read(drawn)
        self.batch = Batch(
            **parts,
            noise=torch.randn(parts["latents"].shape, generator=torch.Generator().manual_seed(0)),
            timesteps=torch.linspace(0, batches.timesteps - 1, len(indices)).long().flip(0),
            active=torch.ones(len(indices), dtype=torch.bool),
        )

    @torch.no_grad()
    def __call__(self, model: SingleID) -> dict[str, float]:
        device = next(model.parameters()).device
        batch = self.batch.to(device)
        nobody = torch.zeros_like(batch.active)
        cases = {
            "unseen_face": batch,
            "unseen_face_with_another": replace(
                batch, intrinsic=batch.intrinsic.roll(1, 0), structure=batch.structure.roll(1, 0)
            ),
            "unseen_face_without_id": replace(batch, active=nobody),
        }
        with torch.autocast(device.type, torch.bfloat16, enabled=model.bf16):
            return {name: float(model(case)["face"]) for name, case in cases.items()}


def measure_cache(model: SingleID, batches: Batches, repeats: int = 5) -> dict[str, float]:
    """Mean seconds of a training step without its data, of reading a batch, and of computing what is read.

    `speedup`: how many times as long a step takes that computes latents, features and captions itself.
    """
    device = next(model.parameters()).device

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=model.bf16):
            loss = model(batch)["loss"]
        loss.backward()
        model.zero_grad(set_to_none=True)

    def seconds(work) -> float:
        work()
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / repeats

    generator = torch.Generator().manual_seed(0)
    batch = batches(0, generator).to(device)
    found = {
        "step": seconds(step),
        "reading": seconds(lambda: batches(0, generator)),
        "computing": seconds(lambda: batches(0, generator, cached=False)),
    }
    speedup = (found["step"] + found["computing"]) / (found["step"] + found["reading"])
    return {**{name: round(value, 4) for name, value in found.items()}, "speedup": round(speedup, 2)}


def recipe(stage: str, config: StageConfig, history: list[dict], sign: str) -> dict:
    """What was run to get the weights: settings, steps, seconds, hardware, and the curve in some sixty points.

    `metrics` are the last of each that was logged; a line with `sign` is one of those measured now and then.
    """
    metrics = {name: value for line in history for name, value in line.items()}
    steps, seconds = (metrics.pop(name, 0) for name in ("step", "seconds"))
    start = getattr(config, "start_from", None)
    measured = [line for line in history if sign in line]
    return {
        "recipe": command(stage, config, "train"),
        "config": asdict(config),
        "steps": steps,
        "seconds": seconds,
        "hardware": hardware(),
        "metrics": {name: round(value, 4) for name, value in metrics.items()},
        "curve": history[:: max(1, len(history) // 60)],
        "measured": measured[:: max(1, len(measured) // 30)],
        "before": before(Path(start), name=stage) if start else [],
    }
