"""Distillation of words into ID tokens: they learn to tell the U-Net of a face what a caption would (our addition).

A base model knows words for faces. Where a caption goes on to describe the face, the text attention's answer to a
location's question changes, and that change is what the ID attention, which is added to it, should answer from F_r
alone. So questions and changes are recorded once, in one pass of the U-Net, and learned without it, after which
the diffusion loss need not find out from noise what a face is (docs/experiments.md has how far and how long).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from tqdm import tqdm

from uniportrait_lite.attention import IDConditions, attend, merge, split
from uniportrait_lite.errors import ConfigError
from uniportrait_lite.muon import Muon
from uniportrait_lite.toyworld.pretrain.noisy import draw_timesteps
from uniportrait_lite.training.data import SceneData, tokenize
from uniportrait_lite.training.network import SingleID
from uniportrait_lite.training.settings import SingleIDConfig

PLACES = 32  # locations of each picture whose questions are kept, of each layer
PICTURES = 4000  # of the training's, at most: more take minutes to record (2,000 had done as well)
CHUNK = 50  # pictures in a pass
WORDINGS = 8  # captions of each kind whose answers are averaged: most of what one changes is how it happens to be put
BATCH = 24  # faces in a step
SILENT = 1e-3  # a layer whose text attention changes by less (its variance) has nothing to teach

Answers = tuple[Tensor, Tensor]  # of a layer: questions, and by how much the answer to each changes


def distil(model: SingleID, data: SceneData, config: SingleIDConfig) -> float:
    """Trains the ID embedding and the ID keys and values for `config.distil` steps, in place.

    Returns the mean error of the last tenth of them, as a share of what answering nothing would have. Raises
    `ConfigError` where the text attention of no layer minds what a caption says of a face.
    """
    generator = torch.Generator().manual_seed(config.seed)
    for layer in model.id_embedding.layers if model.id_embedding.config.structure else ():
        nn.init.zeros_(layer.structure.to_out.weight)  # not learned here, so without a say in the beginning
    count = min(len(data), PICTURES)
    with torch.compiler.set_stance("force_eager"):
        answers = _record(model, data, count, generator)
    scales = {layer: change.float().var() for layer, (_, change) in answers.items()}
    answers = {layer: answer for layer, answer in answers.items() if scales[layer] > SILENT}
    if not answers:
        raise ConfigError(
            "distil: to this base model words for faces mean nothing, so none can be learned from them: give 0 steps"
        )
    layers = [(layer, model.unet.get_submodule(layer.name), *answers[layer.name], scales[layer.name])
              for layer in model.id_attention.values() if layer.name in answers]  # fmt: skip
    intrinsic = torch.from_numpy(data.intrinsic(np.arange(count)))
    optimisers, device, errors = _optimisers(model), next(model.id_embedding.parameters()).device, []
    model.train()
    for step in tqdm(range(config.distil), desc="distilling", unit="step"):
        for optimiser, rate in optimisers:
            optimiser.param_groups[0]["lr"] = rate * min(1, (step + 1) / 20, (1 - step / config.distil) / 0.8)
        faces = torch.randint(count, (BATCH,), generator=generator)
        tokens = model.id_embedding(intrinsic[faces].to(device).float(), None, structure_scale=0)
        given, error = IDConditions(tokens.unsqueeze(1)), 0
        for layer, attention, questions, changes, scale in layers:
            question, change = (x[faces].to(device).float() for x in (questions, changes))
            answer = merge(layer.identity_branch(split(question, attention.heads), given, None))
            error = error + F.mse_loss(answer, change) / scale / len(layers)
        error.backward()
        for optimiser, _ in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        errors.append(error.item())
    return float(np.mean(errors[-max(1, len(errors) // 10) :]))


def _optimisers(model: SingleID) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for matrices, AdamW for the rest, each with its highest rate."""
    named = [*model.id_embedding.named_parameters(), *model.id_attention.named_parameters()]
    matrices = [p for name, p in named if p.ndim > 1 and name != "queries"]
    others = [p for name, p in named if p.ndim == 1 or name == "queries"]
    return [(Muon(matrices, lr=0.01), 0.01), (torch.optim.AdamW(others, lr=1e-3), 1e-3)]


@torch.no_grad()
def _record(model: SingleID, data: SceneData, count: int, generator: torch.Generator) -> dict[str, Answers]:
    """By layer: questions (S, P, inner) of locations of S noised pictures, and by how much the text attention's answer
    to each changes, when the caption describes the face: in the mean of some captions that do and as many that do not.
    """
    device, found = next(model.unet.parameters()).device, {}
    for start in tqdm(range(0, count, CHUNK), desc="recording what words say", unit="chunk"):
        scenes = np.arange(start, min(start + CHUNK, count))
        clean = torch.from_numpy(data.latents[scenes].astype(np.float32))
        timesteps = draw_timesteps(len(scenes), generator, "coarse", model.scheduler.config.num_train_timesteps)
        noisy = model.scheduler.add_noise(clean, torch.randn(clean.shape, generator=generator), timesteps)
        mixed = torch.autocast(device.type, torch.bfloat16, enabled=model.bf16)
        with mixed, disable_input_dtype_casting(model.unet, active=model.bf16):
            full, plain = (
                [_text(model, data, scenes, detail, seed) for seed in range(WORDINGS)] for detail in ("full", "scene")
            )
            with _listening(model, full, plain, generator) as heard:
                model.unet(noisy.to(device), timesteps.to(device), full[0])
        for layer, answer in heard.items():
            found.setdefault(layer, []).append(answer)
    return {layer: tuple(torch.cat(part) for part in zip(*parts, strict=True)) for layer, parts in found.items()}


@contextmanager
def _listening(
    model: SingleID, full: list[Tensor], plain: list[Tensor], generator: torch.Generator
) -> Iterator[dict[str, Answers]]:
    """Inside it, passes of the U-Net leave here what `_record` keeps, of the texts that describe the face and those
    that do not."""
    heard: dict[str, Answers] = {}

    def listen(layer: str, attn: nn.Module, hidden: Tensor) -> None:
        places = torch.randperm(hidden.shape[1], generator=generator)[:PLACES].to(hidden.device)
        question = attn.to_q(hidden[:, places])
        described, said = (
            sum(attend(attn, question, attn.to_k(text), attn.to_v(text)) for text in texts) / len(texts)
            for texts in (full, plain)
        )
        heard[layer] = (question.half().cpu(), (described - said).half().cpu())

    def hook(layer: str):
        return lambda attn, args: listen(layer, attn, args[0])

    hooks = [
        model.unet.get_submodule(layer.name).register_forward_pre_hook(hook(layer.name))
        for layer in model.id_attention.values()
    ]
    try:
        yield heard
    finally:
        for handle in hooks:
            handle.remove()


def _text(model: SingleID, data: SceneData, scenes: np.ndarray, detail: str, seed: int) -> Tensor:
    captions = [data.scenes.caption(int(scene), seed, detail) for scene in scenes]
    return model.text_encoder(tokenize(data.tokenizer, captions).to(model.text_encoder.device)).last_hidden_state
