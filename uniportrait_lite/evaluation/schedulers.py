"""The schedulers protocol: identity and prompt following against denoising steps, for the usual samplers."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from uniportrait_lite.adapter import UniPortrait
from uniportrait_lite.errors import ConfigError
from uniportrait_lite.evaluation import metrics
from uniportrait_lite.evaluation.portraits import pipeline, settings, with_identities
from uniportrait_lite.evaluation.report import check_folder, markdown, write_json, write_text
from uniportrait_lite.evaluation.rows import wishes
from uniportrait_lite.evaluation.subjects import read_prompts, subjects
from uniportrait_lite.evaluation.witnesses import Witnesses
from uniportrait_lite.folders import data_folder, prompts_file
from uniportrait_lite.pipelines import untempered
from uniportrait_lite.toyworld.pretrain.record import hardware

SCHEDULERS = {
    "own": None,  # the pipeline's: tiny's is DDPM, tempered (pipelines.py)
    "DDPM": "DDPMScheduler",
    "DDIM": "DDIMScheduler",
    "DPM-Solver++": "DPMSolverMultistepScheduler",
    "UniPC": "UniPCMultistepScheduler",
    "Euler": "EulerDiscreteScheduler",
    "LCM": "LCMScheduler",  # for base models distilled for it, as tiny's is not
}
_DESCRIPTION = """\
Draws the same people, prompts and first noise with the pipeline's scheduler replaced by others of diffusers, made from
its configuration, at several numbers of steps: where does quality saturate? Writes schedulers.md and schedulers.json.
"""


def use(pipe: DiffusionPipeline, name: str) -> None:
    """Replaces the pipeline's scheduler by another of `SCHEDULERS`, with the same betas and prediction type."""
    if SCHEDULERS[name] is None:
        return
    with warnings.catch_warnings():  # settings that only the former one has
        warnings.simplefilter("ignore")
        pipe.scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(untempered(pipe.scheduler.config))


def evaluate(folder: Path, names: Sequence[str], steps: Sequence[int], count: int, out: Path, batch: int) -> dict:
    """Runs the protocol with the networks of `folder`; writes what is known after each row; returns it."""
    prompts, witnesses = read_prompts(prompts_file("identity.json")), Witnesses(folder)
    people, pipe = subjects(count, prompts, witnesses), pipeline(folder / "sd")
    asked, own = wishes(people, prompts, seed=0), pipe.scheduler
    references = np.stack([subject.face.embedding for subject in people])
    result = {"people": count, "prompts": len(prompts), "hardware": hardware(), "rows": []}
    up = UniPortrait.attach(pipe, folder / "uniportrait")
    identities = [up.identity_of_crops([subject.face.crop]) for subject in people]
    tokens = torch.cat([up.tokens(identity) for identity in identities])
    with tqdm(total=len(names) * len(steps) * len(asked), unit="picture") as bar:
        for name in names:
            for number in steps:
                bar.set_description(f"{name} {number}")
                pipe.scheduler = own
                use(pipe, name)
                knobs, started = settings(up.config.defaults, steps=number), time.perf_counter()
                images = with_identities(up, tokens, asked, knobs, batch, bar.update)
                seconds = (time.perf_counter() - started) / len(asked)
                embeddings = witnesses.embeddings(images).reshape(len(people), len(prompts), -1)
                similar, _ = metrics.similarities(embeddings, references)
                wanted = [prompt.attributes for _ in people for prompt in prompts]
                result["rows"].append({
                    "scheduler": name, "steps": number, "similar": float(similar.mean()),
                    "followed": metrics.followed(witnesses.reader.read(images), wanted)["all"],
                    "found": float(1 - np.isnan(embeddings[..., 0]).mean()), "seconds": seconds,
                })  # fmt: skip
                write_json(result, out / "schedulers.json")
                write_text(schedulers_markdown(result), out / "schedulers.md")
    return result


def schedulers_markdown(result: dict) -> str:
    """The report."""
    header = ("scheduler", "steps", "similar", "followed", "faces found", "seconds a picture")
    rows = [
        (row["scheduler"], str(row["steps"]), row["similar"], row["followed"], row["found"], row["seconds"])
        for row in result["rows"]
    ]
    of = f"{result['people']} held-out people, {result['prompts']} prompts, on {result['hardware']}."
    return f"# Schedulers and steps\n\n{of}\n\n{markdown(header, rows)}\n"


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m uniportrait_lite evaluate schedulers`."""
    args = _parser().parse_args(argv)
    names = args.schedulers.split(",")
    for name in names:
        if name not in SCHEDULERS:
            raise ConfigError(f"there is no scheduler {name!r} here: there are {', '.join(SCHEDULERS)}")
    if not all(text.isdecimal() and int(text) > 1 for text in args.steps.split(",")) or args.batch < 1:
        raise ConfigError(f"--steps are numbers from 2, as 10,20, not {args.steps!r}, and --batch is at least 1")
    if "LCM" in names and max(map(int, args.steps.split(","))) > 50:
        raise ConfigError("LCM takes at most 50 steps: give fewer --steps, or other --schedulers")
    steps, out = [int(text) for text in args.steps.split(",")], check_folder(args.out)
    print(schedulers_markdown(evaluate(data_folder(args.profile), names, steps, args.people, out, args.batch)))
    print(f"written to {out}: schedulers.md, schedulers.json")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m uniportrait_lite evaluate schedulers",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--profile", default="tiny", help="tiny, or the folder of a profile of yours (default: tiny)")
    parser.add_argument("--people", type=int, default=12, metavar="N", help="how many people (default: 12)")
    parser.add_argument("--schedulers", default=",".join(SCHEDULERS), metavar="A,B", help="(default: %(default)s)")
    parser.add_argument("--steps", default="5,10,15,20,30", metavar="N,M", help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=25, metavar="N", help="pictures drawn at once (default: 25)")
    parser.add_argument("--out", default="outputs/schedulers", metavar="FOLDER", help="(default: %(default)s)")
    return parser
