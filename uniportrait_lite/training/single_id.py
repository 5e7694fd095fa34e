"""The single-ID stage: trains the ID embedding, the ID keys and values and the LoRA on portraits of one person each."""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState
from filelock import FileLock
from torch import Tensor, nn

from uniportrait_lite import checkpoints
from uniportrait_lite.errors import ConfigError
from uniportrait_lite.loop import train
from uniportrait_lite.profiles import data_folder
from uniportrait_lite.toyworld.pretrain import data as world
from uniportrait_lite.toyworld.pretrain.unet import draw_timesteps
from uniportrait_lite.training.config import load
from uniportrait_lite.training.data import Batch, PortraitData, tokenize
from uniportrait_lite.training.network import SingleID, Stack, method_config, save
from uniportrait_lite.training.samples import Samples
from uniportrait_lite.training.settings import DESCRIPTION, EPILOG, SingleIDConfig

MAY_CHANGE = (
    "run_folder", "out", "start_from", "steps", "hours",
    "log_every", "checkpoint_every", "samples_every", "measure_cache",
)  # fmt: skip


class Batches:
    """The batch of a step: samples of `data`, some of them without caption, without face, or with another's F_r.

    With probability `no_caption` the caption is empty. A share `nobody` of these gets the unconditional features too,
    and so the unconditional ID tokens: that is the row which guidance compares with. The paper does not say how these
    tokens are trained. Independently, with probability `no_face` the ID branch is off.
    """

    def __init__(self, config: SingleIDConfig, data: PortraitData, timesteps: int):
        self.config, self.data, self.timesteps = config, data, timesteps
        self.no_text = tokenize(data.tokenizer, [""])[0]
        self.no_structure = data.features.unconditional().structure.cpu()

    def __call__(self, step: int, generator: torch.Generator, cached: bool = True) -> Batch:
        config, size = self.config, self.config.batch
        parts = self.data.read(self.data.draw(generator, size, config.swap), cached)
        if config.intrinsic == "global":
            parts["intrinsic"] = self.as_vector(parts["intrinsic"])
        silent = torch.rand(size, generator=generator) < config.no_caption
        nobody = silent & (torch.rand(size, generator=generator) < config.nobody)
        parts["text"][silent] = self.no_text
        parts["intrinsic"][nobody] = 0
        parts["structure"][nobody] = self.no_structure
        if config.timesteps == "middle":
            timesteps = draw_timesteps(size, generator, self.timesteps)
        else:
            timesteps = torch.randint(self.timesteps, (size,), generator=generator)
        return Batch(
            **parts,
            noise=torch.randn(parts["latents"].shape, generator=generator),
            timesteps=timesteps,
            active=torch.rand(size, generator=generator) >= config.no_face,
        )

    @torch.no_grad()
    def as_vector(self, intrinsic: Tensor) -> Tensor:
        """The face's one vector (B,1,D) from the stored map (B,49,C): the rest of the backbone."""
        backbone = self.data.features.backbone
        side = round(intrinsic.shape[1] ** 0.5)
        maps = intrinsic.transpose(1, 2).unflatten(2, (side, side))
        device = next(backbone.parameters()).device
        return backbone.head(maps.to(device)).cpu().unsqueeze(1)


def build(config: SingleIDConfig, stack: Stack) -> SingleID:
    """The network to train: new weights drawn from the seed, or those of `start_from`."""
    torch.manual_seed(config.seed)
    method = method_config(config, stack)
    model = SingleID(stack.unet, stack.text_encoder, stack.scheduler, method, config.precision, config.face_weight)
    if config.start_from:
        checkpoints.fill(model.weights(), checkpoints.load(config.start_from)[1], origin=config.start_from)
    return model


def keep_settings(config: SingleIDConfig, stack: Stack) -> None:
    """Writes RUN_FOLDER/settings.json; where a checkpoint was made with other settings, says so instead of going on."""
    path = Path(config.run_folder) / "settings.json"
    now = {"settings": asdict(config), "frozen": stack.digests()}
    if path.exists() and (path.parent / "checkpoint.pt").exists():
        before = json.loads(path.read_text())
        changed = [
            f"{name} was {before[part].get(name)!r} and is {value!r}"
            for part, values in now.items()
            for name, value in values.items()
            if before[part].get(name) != value and name not in MAY_CHANGE
        ]
        if changed:
            raise ConfigError(
                f"{config.run_folder} holds a training with other settings ({'; '.join(changed)}): give them back, or "
                f"another --run-folder (and --start-from {config.run_folder}/weights to build on what it learned)"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(now, indent=1) + "\n")
    os.replace(temporary, path)


def measure_cache(model: SingleID, batches: Batches, repeats: int = 5) -> dict[str, float]:
    """Mean seconds of a training step without its data, of reading a batch, and of computing what is read.

    `speedup`: how many times as long a step takes that computes latents, features and captions itself.
    """
    device = next(model.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=model.bf16)

    def step() -> None:
        with autocast:
            model(batch)["loss"].backward()
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


def run(config: SingleIDConfig) -> list[dict]:
    """Trains, or goes on with a training, and writes the weights; returns the log."""
    state = PartialState(cpu=not torch.cuda.is_available())
    folder = data_folder(config.profile)
    weights_folder = Path(config.run_folder) / "weights"
    out = Path(config.out) if config.out else weights_folder if config.variant else folder / "uniportrait"
    stack = Stack(folder)
    if state.is_main_process:
        keep_settings(config, stack)
    model = build(config, stack).to(state.device)
    stack.features.to(state.device)
    world.CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(world.CACHE / "single_id.lock"):  # one process draws and computes, the others read
        data = PortraitData("portraits", config.portraits, stack.features, stack.tokenizer, stack.folders)
    batches = Batches(config, data, stack.scheduler.config.num_train_timesteps)
    samples = None

    def loss(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return module(batch.to(state.device))

    def evaluate(module: SingleID, step: int) -> dict[str, float]:
        nonlocal samples
        save(weights_folder, module, stack)
        samples = samples or Samples(stack.pipeline, weights_folder, stack.folders["faces"])
        return samples(Path(config.run_folder) / "samples" / f"{step:06d}.png")

    if config.measure_cache and state.is_main_process:
        found = measure_cache(model, batches)
        print("what the cache brings, in seconds a step:", found, flush=True)
        (Path(config.run_folder) / "cache.json").write_text(json.dumps(found) + "\n")
    history = train(
        config.loop(), model, batches, loss, evaluate=evaluate, evaluate_every=config.samples_every,
        no_muon=lambda name: "lora_" in name or name.endswith("queries"),
    )  # fmt: skip
    if state.is_main_process:
        save(weights_folder, model, stack)
        if out != weights_folder:
            save(out, model, stack)
        print(f"weights in {out}", flush=True)
    return history


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m uniportrait_lite train single_id`."""
    prog = "python -m uniportrait_lite train single_id"
    arguments = sys.argv[1:] if argv is None else list(argv)
    run(load(SingleIDConfig, arguments, prog=prog, description=DESCRIPTION, epilog=EPILOG))
