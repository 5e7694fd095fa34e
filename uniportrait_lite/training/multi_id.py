"""The multi-ID stage: trains the routers and a second LoRA on pictures of several people."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from filelock import FileLock
from torch import Tensor, nn

from uniportrait_lite import checkpoints
from uniportrait_lite.checkpoints import UniPortraitConfig
from uniportrait_lite.errors import WeightsError
from uniportrait_lite.folders import data_folder, writable_folder
from uniportrait_lite.graphs import wanted
from uniportrait_lite.loop import train
from uniportrait_lite.toyworld.pretrain import data as world
from uniportrait_lite.toyworld.pretrain.record import write_json
from uniportrait_lite.training.batches import Batches, GroupBatches
from uniportrait_lite.training.config import keep_settings, load
from uniportrait_lite.training.data import Batch, SceneData
from uniportrait_lite.training.network import MultiID, Stack, save_single
from uniportrait_lite.training.samples import GroupSamples
from uniportrait_lite.training.settings import MULTI_ID, MULTI_ID_EPILOG, MultiIDConfig
from uniportrait_lite.training.watch import recipe


def build(config: MultiIDConfig, stack: Stack, method: UniPortraitConfig, tensors: dict[str, Tensor]) -> MultiID:
    """The network to train: routers, around single-ID weights as `checkpoints.load` reads them.

    The routers are drawn from the seed, or are those of `start_from`; the LoRA begins as the single-ID weights', with
    `start_from` moved by what the one there, if it has their rank, had learned beyond the single-ID weights beside it.
    """
    torch.manual_seed(config.seed)
    model = MultiID(
        stack.unet, stack.text_encoder, stack.scheduler, method, tensors, config.precision, config.face_weight,
        config.feature_weight, config.route_weight, config.soft,
    )  # fmt: skip
    if config.start_from:
        trained = checkpoints.load_multi(config.start_from)
        if trained is None:
            raise WeightsError(f"{config.start_from} holds no multi-ID weights: give a folder with {checkpoints.MULTI}")
        before, theirs = checkpoints.load(config.start_from)[1], dict(trained)
        for name in theirs.keys() & tensors.keys():  # the LoRA's
            same = theirs[name].shape == tensors[name].shape  # one of another rank begins as the single-ID weights'
            theirs[name] = theirs[name] + (tensors[name] - before[name]) if same else tensors[name]
        checkpoints.fill(model.weights(), theirs, origin=config.start_from)
    return model


def run(config: MultiIDConfig) -> list[dict]:
    """Trains, or goes on with a training, and writes the weights; returns the log."""
    state = PartialState(cpu=not torch.cuda.is_available())
    folder = data_folder(config.profile)
    single = Path(config.single_id) if config.single_id else folder / "uniportrait"
    weights_folder = Path(config.run_folder) / "weights"
    out = Path(config.out) if config.out else weights_folder if config.variant else single
    stack = Stack(folder)
    first = checkpoints.load(single)
    trained_on = checkpoints.single_digest(single)
    if state.is_main_process:
        keep_settings(config, {**stack.digests(), "single_id": trained_on})
        writable_folder(out, "choose another with --out")  # now, not after hours
    cache = writable_folder(world.CACHE, "run this from a folder of yours")
    model = build(config, stack, *first).to(state.device)
    if config.compile:
        model.unet.compile(dynamic=False)
    stack.features.to(state.device)
    with FileLock(cache / "multi_id.lock"):  # one process draws and computes, the others read
        sets = {
            name: SceneData(name, config.groups, stack.features, stack.tokenizer, stack.folders, stack.world)
            for name, share in config.shares.items()
            if share  # what no step reads is not drawn
        }
    timesteps = stack.scheduler.config.num_train_timesteps
    kinds = {name: Batches(config, data, timesteps, model.config.intrinsic) for name, data in sets.items()}
    batches = GroupBatches(config, kinds)
    samples = GroupSamples(stack.pipeline, weights_folder, stack.folders["faces"], stack.world)

    def loss(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return module(batch)

    def save(place: Path, module: MultiID) -> None:
        if place.resolve() != single.resolve():
            save_single(place, *first, stack)
        checkpoints.save_multi(place, module.weights(), trained_on)

    def evaluate(module: MultiID, step: int) -> dict[str, float]:
        save(weights_folder, module)
        return samples(Path(config.run_folder) / "samples" / f"{step:06d}.png")

    history = train(
        config.loop(), model, batches, loss, evaluate=evaluate, evaluate_every=config.samples_every,
        no_muon=lambda name: "lora_" in name or name.endswith("aggregate.weight"),
        rate=lambda name: config.lora_rate if "lora_" in name else 1.0, graphs=wanted(config.graphs, config.compile),
    )  # fmt: skip
    if state.is_main_process:
        for place in dict.fromkeys((weights_folder, out)):
            save(place, model)
            write_json(place / "multi_id.recipe.json", recipe("multi_id", config, history, "facesim_lowest"))
        print(f"weights in {out}", flush=True)
    return history


def settings(argv: Sequence[str]) -> MultiIDConfig:
    """The settings of a command line, over those of its profile."""
    prog = "python -m uniportrait_lite train multi_id"
    return load(MultiIDConfig, list(argv), part="multi_id", prog=prog, description=MULTI_ID, epilog=MULTI_ID_EPILOG)


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m uniportrait_lite train multi_id`."""
    run(settings(sys.argv[1:] if argv is None else argv))
