"""The stack protocol: how good the networks are on which portraits stand, beside the project's goals for them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from uniportrait_lite.checkpoints import CallDefaults
from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.evaluation.portraits import settings
from uniportrait_lite.evaluation.report import check_folder, markdown, write_json, write_text
from uniportrait_lite.evaluation.stack_base import noise, text
from uniportrait_lite.evaluation.stack_parts import Figure, Lab, decoding, detection, features, judge
from uniportrait_lite.evaluation.witnesses import Witnesses
from uniportrait_lite.folders import data_folder
from uniportrait_lite.toyworld.pretrain.record import hardware

_DESCRIPTION = """\
Measures, on people and scenes that no network was trained on:
  judge      how well it tells people apart, over all variations, by insightface: detector, alignment, embedding
  detector   in how many scenes of one to three people every face is found, and how far its landmarks are off
  vae        the judge's similarity of decoded pictures to another scene of the person, as a share of the real pair's
  features   how much of the judge's embedding can be read off the ID features that pictures are made from
  noise      in which part of denoising what is decided, and how well the base model does it: real portraits noised by
             some share of the steps and drawn again from there, with all that a caption can say of them
  text       prompts of full length, from all factors of a person and a scene: how many of these the reader finds in the
             pictures made from them, beside how many it finds in real pictures of the same; how alike these are to the
             person described; their FID by the tiny CLIP; whether pictures of two and three show as many faces
Writes stack.md, stack.json and contact sheets into --out, with the project's goal beside each figure. The exit code is
1 where a part could not be measured.
"""
_EPILOG = """\
examples:
  python -m uniportrait_lite evaluate stack
  python -m uniportrait_lite evaluate stack --parts judge,detector
  python -m uniportrait_lite evaluate stack --quick                        a tenth of everything: a look, not a result
"""


PARTS: dict[str, Callable[[Lab], list[Figure]]] = {
    "judge": judge, "detector": detection, "vae": decoding, "features": features, "noise": noise, "text": text,
}  # fmt: skip


def evaluate(lab: Lab, parts: Sequence[str]) -> tuple[list[Figure], dict[str, str]]:
    """The figures of some parts, and those that could not be measured as their networks are missing, with the reason.

    What is known is written after each part.
    """
    figures: list[Figure] = []
    absent: dict[str, str] = {}
    for part in parts:
        try:
            figures += PARTS[part](lab)
        except WeightsError as error:
            absent[part] = str(error)
        result = {"figures": [asdict(figure) for figure in figures], "absent": absent, "hardware": hardware()}
        write_json(result, lab.out / "stack.json")
        write_text(stack_markdown(figures, absent), lab.out / "stack.md")
    return figures, absent


def stack_markdown(figures: Sequence[Figure], absent: Mapping[str, str]) -> str:
    """The table of figures with their goals, and what could not be measured."""
    table = markdown(("figure", "measured", "goal", "of"), [(f.name, f.value, f.goal, f.of) for f in figures])
    missing = [f"- {part}: not measured: {why}" for part, why in absent.items()]
    return "\n\n".join(["# The stack", f"On {hardware()}.", table, *missing]) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m uniportrait_lite evaluate stack`."""
    args = _parser().parse_args(argv)
    parts = args.parts.split(",")
    for part in parts:
        if part not in PARTS:
            raise ConfigError(f"there is no part {part!r}: the parts are {', '.join(PARTS)}")
    if args.batch < 1 or not 0 <= args.seed < 1000:
        raise ConfigError("--batch is at least 1, and --seed from 0 to 999")
    folder, out = data_folder(args.profile), check_folder(args.out)
    knobs = settings(CallDefaults(), steps=args.steps, guidance=args.guidance)
    lab = Lab(folder, Witnesses(folder), out, args.seed, 0.1 if args.quick else 1.0, knobs, args.batch)
    figures, absent = evaluate(lab, parts)
    print(stack_markdown(figures, absent))
    print(f"written to {out}: stack.md, stack.json, stack_*.png")
    if absent:
        raise WeightsError("; ".join(f"{part} could not be measured: {why}" for part, why in absent.items()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m uniportrait_lite evaluate stack",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--profile", default="tiny", help="tiny, or the folder of a profile of yours (default: tiny)")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="A,B", help="which parts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes and noise (default: 0)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: 20)")
    parser.add_argument("--guidance", type=float, help="how strongly prompts are followed (default: 4)")
    parser.add_argument("--batch", type=int, default=25, metavar="N", help="pictures drawn at once (default: 25)")
    parser.add_argument("--out", default="outputs/evaluation", metavar="FOLDER", help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the scenes")
    return parser
