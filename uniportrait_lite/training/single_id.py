"""The single-ID stage: trains the ID embedding, the ID keys and values and the LoRA on portraits of one person each."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from filelock import FileLock
from torch import Tensor, nn

from uniportrait_lite import checkpoints
from uniportrait_lite.folders import data_folder, writable_folder
from uniportrait_lite.graphs import wanted
from uniportrait_lite.loop import train
from uniportrait_lite.toyworld.pretrain import data as world
from uniportrait_lite.toyworld.pretrain.record import write_json
from uniportrait_lite.training.batches import Batches
from uniportrait_lite.training.config import keep_settings, load
from uniportrait_lite.training.data import Batch, SceneData
from uniportrait_lite.training.distillation import distil
from uniportrait_lite.training.network import SingleID, Stack, method_config, save
from uniportrait_lite.training.samples import Samples
from uniportrait_lite.training.settings import SINGLE_ID, SINGLE_ID_EPILOG, SingleIDConfig
from uniportrait_lite.training.watch import Validation, measure_cache, recipe

VALIDATION = 64  # portraits of people outside training


def build(config: SingleIDConfig, stack: Stack) -> SingleID:
    """The network to train: new weights drawn from the seed, or those of `start_from`."""
    torch.manual_seed(config.seed)
    method = method_config(config, stack)
    model = SingleID(
        stack.unet, stack.text_encoder, stack.scheduler, method, config.precision, config.face_weight,
        config.feature_weight,
    )  # fmt: skip
    if config.start_from:
        checkpoints.fill(model.weights(), checkpoints.load(config.start_from)[1], origin=config.start_from)
    return model


def run(config: SingleIDConfig) -> list[dict]:
    """Trains, or goes on with a training, and writes the weights; returns the log."""
    state = PartialState(cpu=not torch.cuda.is_available())
    folder = data_folder(config.profile)
    weights_folder = Path(config.run_folder) / "weights"
    out = Path(config.out) if config.out else weights_folder if config.variant else folder / "uniportrait"
    stack = Stack(folder)
    if state.is_main_process:
        keep_settings(config, stack.digests())
        writable_folder(out, "choose another with --out")  # now, not after hours
    cache = writable_folder(world.CACHE, "run this from a folder of yours")
    model = build(config, stack).to(state.device)
    if config.compile:
        model.unet.compile(dynamic=False)
    stack.features.to(state.device)
    with FileLock(cache / "single_id.lock"):  # one process draws and computes, the others read
        data, unseen = (
            SceneData(name, count, stack.features, stack.tokenizer, stack.folders, stack.world)
            for name, count in (("portraits", config.portraits), ("unseen", VALIDATION))
        )
    batches = Batches(config, data, stack.scheduler.config.num_train_timesteps, config.intrinsic)
    validation = Validation(Batches(config, unseen, batches.timesteps, config.intrinsic), VALIDATION)
    samples = Samples(stack.pipeline, weights_folder, stack.folders["faces"], stack.world)

    def loss(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return module(batch)

    def evaluate(module: SingleID, step: int) -> dict[str, float]:
        save(weights_folder, module, stack)
        return {**validation(module), **samples(Path(config.run_folder) / "samples" / f"{step:06d}.png")}

    if config.distil and not (Path(config.run_folder) / "checkpoint.pt").exists():
        started, left = time.perf_counter(), distil(model, data, config)
        if state.is_main_process:
            seconds = time.perf_counter() - started
            print(f"distilled: ID tokens leave {left:.2f} of what captions say of these faces unsaid, {seconds:.0f} s")
    if config.measure_cache and state.is_main_process:
        found = measure_cache(model, batches)
        print("what the cache brings, in seconds a step:", found, flush=True)
        write_json(Path(config.run_folder) / "cache.json", found)
    history = train(
        config.loop(), model, batches, loss, evaluate=evaluate, evaluate_every=config.samples_every,
        evaluate_first=config.distil > 0,  # what it brought
        no_muon=lambda name: "lora_" in name or name.endswith("queries"), graphs=wanted(config.graphs, config.compile),
    )  # fmt: skip
    if state.is_main_process:
        report = recipe("single_id", config, history, "unseen_face")
        for place in dict.fromkeys((weights_folder, out)):
            save(place, model, stack)
            write_json(place / "single_id.recipe.json", report)
        print(f"weights in {out}", flush=True)
    return history


def settings(argv: Sequence[str]) -> SingleIDConfig:
    """The settings of a command line, over those of its profile."""
    prog = "python -m uniportrait_lite train single_id"
    return load(SingleIDConfig, list(argv), part="single_id", prog=prog, description=SINGLE_ID, epilog=SINGLE_ID_EPILOG)


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m uniportrait_lite train single_id`."""
    run(settings(sys.argv[1:] if argv is None else argv))
