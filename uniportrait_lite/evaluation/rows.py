"""The rows of the identity protocol: where their weights are, how their pictures are made, and their figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from uniportrait_lite import checkpoints
from uniportrait_lite.adapter import UniPortrait
from uniportrait_lite.checkpoints import CallDefaults
from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.evaluation import metrics
from uniportrait_lite.evaluation.portraits import Wish, settings, with_identities, without_identity
from uniportrait_lite.evaluation.subjects import Prompt, Subject
from uniportrait_lite.evaluation.witnesses import Seen

BASE = "text_only"
ROWS = (BASE, "global", "no_structure", "no_drop", "full")
ABLATIONS = ("runs/single_id_{}/weights", "runs/ablations/{}")  # where their weights are looked for, in this order


@dataclass
class Row:
    """One way to make the pictures of the protocol, and what was seen on them: P people x Q prompts, people first."""

    name: str
    seen: Seen
    images: list[Image.Image] = field(repr=False)
    seconds: float | None = None  # for a picture
    folder: str | None = None
    knobs: CallDefaults | None = None


def find_rows(
    names: Sequence[str], given: dict[str, str], full: Path, full_given: bool
) -> tuple[dict[str, Path | None], dict[str, str]]:
    """The folder of weights of each row (None: it needs none), and the rows that are absent with the reason.

    `given`: folders of further rows, or of known ones in place of the usual. ConfigError for unknown names,
    WeightsError for a folder that the user gave and that holds no weights.
    """
    for name in names:
        if name not in (*ROWS, *given):
            raise ConfigError(f"there is no row {name!r}: there are {', '.join(ROWS)}; others need --row NAME=FOLDER")
    if BASE in given:
        raise ConfigError(f"{BASE} has no weights: it is the base model alone")
    found: dict[str, Path | None] = {}
    absent: dict[str, str] = {}
    for name in [*names, *(name for name in given if name not in names)]:
        if name == BASE:
            found[name] = None
            continue
        places = [full] if name == "full" else [Path(place.format(name)) for place in ABLATIONS]
        places = [Path(given[name])] if name in given else places
        there = [place for place in places if (place / checkpoints.MODEL).is_file()]
        if there:
            found[name] = there[0]
        elif name in given or (name == "full" and full_given):
            raise WeightsError(f"{places[0]} holds no {checkpoints.MODEL}: give a folder of weights")
        else:
            absent[name] = f"no weights in {' or '.join(map(str, places))}"
    return found, absent


def check_absent(absent: dict[str, str], named: Sequence[str] | None) -> None:
    """WeightsError for absent rows (with their reasons) that the user named, and for `full`: ablations are extras."""
    if missed := [name for name in absent if name == "full" or name in (named or ())]:
        raise WeightsError("; ".join(f"row {name} is absent: {absent[name]}" for name in missed))


def wishes(people: Sequence[Subject], prompts: Sequence[Prompt], seed: int) -> list[Wish]:
    """What every row draws: each person with each prompt, the noise the same in all rows, and another in each picture.

    ConfigError for a seed that generators cannot take.
    """
    if not 0 <= seed < 1000:
        raise ConfigError(f"--seed is a number from 0 to 999, not {seed}")
    return [
        Wish(prompt.text, (seed * 1000 + number) * 1000 + k, number)
        for number in range(len(people))
        for k, prompt in enumerate(prompts)
    ]


@torch.no_grad()
def draw(
    pipe: DiffusionPipeline,
    folder: Path | None,
    people: Sequence[Subject],
    asked: Sequence[Wish],
    knobs: dict[str, float | None],
    defaults: CallDefaults,
    batch: int,
    progress: Callable[[int], None],
) -> tuple[list[Image.Image], float, CallDefaults]:
    """A row's pictures, seconds for one, and its settings: what is given in `knobs`, else those of the weights.

    `defaults` serve the row without weights. Reading the references is counted; loading is not.
    """
    if folder is None:
        used = settings(defaults, **knobs)
        started = time.perf_counter()
        images = without_identity(pipe, asked, used, batch, progress)
        return images, (time.perf_counter() - started) / len(asked), used
    up = UniPortrait.attach(pipe, folder)
    try:
        used = settings(up.config.defaults, **knobs)
        up.tokens(None)  # loads the encoders
        started = time.perf_counter()
        identities = [up.identity_of_crops([subject.face.crop]) for subject in people]
        tokens = torch.cat([up.tokens(identity, used.structure_scale) for identity in identities])
        images = with_identities(up, tokens, asked, used, batch, progress)
        return images, (time.perf_counter() - started) / len(asked), used
    finally:
        up.detach()


def figures(row: Row, real: Row, people: Sequence[Subject], prompts: Sequence[Prompt]) -> dict:
    """A row's figures. Ceiling and floor are the real pictures' similarities to their own and to others' references."""
    references = np.stack([subject.face.embedding for subject in people])
    shape = (len(people), len(prompts))
    own, others = metrics.similarities(row.seen.embeddings.reshape(*shape, -1), references)
    ceiling, floor = metrics.similarities(real.seen.embeddings.reshape(*shape, -1), references)
    found = row.seen.found.reshape(shape)

    def of_prompt(k: int) -> dict:
        read = row.seen.read[k :: len(prompts)]
        return {
            "own": float(own[:, k].mean()),
            "s": metrics.scaled(own[:, k].mean(), floor[:, k].mean(), ceiling[:, k].mean()),
            "followed": metrics.followed(read, [prompts[k].attributes] * len(read))["all"],
            "found": float(found[:, k].mean()),
        }

    return {
        "name": row.name,
        "folder": row.folder,
        "settings": None if row.knobs is None else dict(vars(row.knobs)),
        "own": float(own.mean()),
        "others": float(others.mean()),
        "auc": metrics.auc(own, others),
        "s": metrics.scaled(own.mean(), floor.mean(), ceiling.mean()),
        "s_interval": metrics.interval(own.mean(1), floor.mean((1, 2)), ceiling.mean(1)),
        "followed": metrics.followed(row.seen.read, [prompt.attributes for _ in people for prompt in prompts]),
        "clip_t": float(row.seen.clip.mean()),
        "found": float(found.mean()),
        "seconds": row.seconds,
        "prompts": {prompt.name: of_prompt(k) for k, prompt in enumerate(prompts)},
        "similarities": np.round(own, 4).tolist(),
    }
