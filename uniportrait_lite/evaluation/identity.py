"""The identity protocol: portraits of people nobody trained on, measured between floor and ceiling."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from uniportrait_lite import checkpoints
from uniportrait_lite.checkpoints import CallDefaults
from uniportrait_lite.errors import ConfigError
from uniportrait_lite.evaluation import metrics
from uniportrait_lite.evaluation.portraits import decoded, pipeline
from uniportrait_lite.evaluation.report import check_folder
from uniportrait_lite.evaluation.rows import ABLATIONS, ROWS, Row, check_absent, draw, figures, find_rows, wishes
from uniportrait_lite.evaluation.subjects import Prompt, Subject, read_prompts, subjects
from uniportrait_lite.evaluation.tables import contact_sheet, identity_markdown, publish
from uniportrait_lite.evaluation.witnesses import Witnesses
from uniportrait_lite.folders import data_folder, prompts_file
from uniportrait_lite.pictures import save_picture
from uniportrait_lite.provenance import origin, tell
from uniportrait_lite.toyworld.pretrain.record import hardware

KNOBS = ("steps", "guidance", "id_scale", "structure_scale")
REAL, DECODED = "real pictures", "real, decoded"
QUICK_PEOPLE, QUICK_PROMPTS = 8, 2

_DESCRIPTION = f"""\
Draws each of --people held-out people with each prompt, from one reference picture. Networks that had no part in it
say how alike the portraits are to the references, and how well they follow the prompts. Writes identity.md,
identity.json and a contact sheet for each row into --out, and prints the tables, with what each figure means.

Rows: text_only is the base model alone, without identity; global takes the face's one vector in place of spatial
intrinsic features; no_structure has no structure branch; no_drop was trained without DropToken and DropPath; full is
the profile's own. Ablations are read from {" or ".join(place.format("ROW") for place in ABLATIONS)}, as
`train single_id` writes them; rows without weights are listed as absent. The exit code is 1 where full, or a row that
--rows names, is absent.
"""
_EPILOG = f"""\
examples:
  python -m uniportrait_lite evaluate identity --quick
      {QUICK_PEOPLE} people, {QUICK_PROMPTS} prompts: a look, not a result
  python -m uniportrait_lite evaluate identity --rows full,text_only
  python -m uniportrait_lite evaluate identity --rows full --row longer=runs/longer/weights
  python -m uniportrait_lite evaluate identity --rows full,text_only --reference-scale 2 --out outputs/references_256
  python -m uniportrait_lite evaluate identity --rows full --id-scale 0.8 --out outputs/id_scale_0.8
"""


def evaluate(
    folder: Path,
    found: dict[str, Path | None],
    absent: dict[str, str],
    prompts: Sequence[Prompt],
    out: Path,
    count: int = 50,
    seed: int = 0,
    knobs: dict[str, float | None] | None = None,
    defaults: CallDefaults | None = None,
    batch: int = 25,
    reference_scale: int = 1,
) -> dict:
    """Runs the protocol with the networks of `folder` (a profile's); writes what is known after each row; returns it.

    `found` maps rows to their weights (None: the base model alone, with `defaults`), `absent` rows to why they are.
    """
    witnesses, pipe = Witnesses(folder), pipeline(folder / "sd")
    people = subjects(count, prompts, witnesses, seed, reference_scale)
    asked = wishes(people, prompts, seed)
    texts = [wish.prompt for wish in asked]
    pictures = [image for subject in people for image in subject.real]
    restored = decoded(pipe.vae, pictures, batch)
    real = Row(REAL, witnesses.look(pictures, texts), pictures)
    through = Row(DECODED, witnesses.look(restored, texts), restored)
    result = {
        "people": count,
        "prompts": [vars(prompt) for prompt in prompts],
        "seed": seed,
        "reference_size": list(people[0].reference.size),
        "hardware": hardware(),
        "references_without_face": sum(subject.refused for subject in people),
        "real_pairs": real_pairs(people, witnesses),
        "rows": [figures(row, real, people, prompts) for row in (real, through)],
        "absent": absent,
    }
    publish(result, out)
    save_picture(contact_sheet(real, result["rows"][0], people, prompts), out / "identity_real.png")
    with tqdm(total=len(asked) * len(found), unit="picture") as bar:
        for name, weights in found.items():
            bar.set_description(name)
            images, seconds, used = draw(
                pipe, weights, people, asked, knobs or {}, defaults or CallDefaults(), batch, bar.update
            )
            place = None if weights is None else str(weights)
            row = Row(name, witnesses.look(images, texts), images, seconds, place, used)
            result["rows"].append(figures(row, real, people, prompts))
            publish(result, out)
            shown = contact_sheet(row, result["rows"][-1], people, prompts)
            tell(
                shown,
                prompt="; ".join(prompt.text for prompt in prompts),
                seed=seed,
                weights=weights and origin(weights),
            )
            save_picture(shown, out / f"identity_{name}.png")
    return result


def real_pairs(people: Sequence[Subject], witnesses: Witnesses) -> dict[str, dict[str, float]]:
    """Similarities to the references of other real pictures: a second reference, and one with all left to chance."""
    references = np.stack([subject.face.embedding for subject in people])
    kinds = {"two references": [s.second for s in people], "a reference and any picture": [s.other for s in people]}
    found = {}
    for kind, pictures in kinds.items():
        own, others = metrics.similarities(witnesses.embeddings(pictures)[:, None], references)
        found[kind] = {"same": float(own.mean()), "different": float(others.mean()), "auc": metrics.auc(own, others)}
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m uniportrait_lite evaluate identity`."""
    args = _parser().parse_args(argv)
    folder = data_folder(args.profile)
    full = Path(args.weights) if args.weights else folder / "uniportrait"
    names = ROWS if args.rows is None else args.rows.split(",")
    found, absent = find_rows(names, dict(args.row), full, bool(args.weights))
    prompts = read_prompts(args.prompts or prompts_file("identity.json"))
    count = QUICK_PEOPLE if args.quick else args.people
    prompts = prompts[:QUICK_PROMPTS] if args.quick else prompts
    if args.batch < 1:
        raise ConfigError(f"--batch is at least 1, not {args.batch}")
    out = check_folder(args.out)
    defaults = checkpoints.load(found["full"])[0].defaults if "full" in found else CallDefaults()
    knobs = {name: getattr(args, name) for name in KNOBS}
    result = evaluate(
        folder, found, absent, prompts, out, count, args.seed, knobs, defaults, args.batch, args.reference_scale
    )
    print(identity_markdown(result))
    print(f"written to {out}: identity.md, identity.json, identity_ROW.png")
    check_absent(absent, args.rows and args.rows.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m uniportrait_lite evaluate identity",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--profile", default="tiny", help="tiny, or the folder of a profile of yours (default: tiny)")
    parser.add_argument("--people", type=int, default=50, metavar="N", help="how many people (default: 50)")
    parser.add_argument("--prompts", metavar="FILE", help="JSON (default: data/prompts/identity.json)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes and noise (default: 0)")
    parser.add_argument("--rows", metavar="A,B", help=f"which rows (default: {','.join(ROWS)})")
    parser.add_argument(
        "--row", action="append", default=[], type=_named, metavar="NAME=FOLDER", help="a row with weights of yours"
    )
    parser.add_argument("--weights", metavar="FOLDER", help="weights of the row full (default: the profile's)")
    parser.add_argument("--steps", type=int, help="denoising steps (this and the next: default as the weights say)")
    parser.add_argument("--guidance", type=float, help="how strongly prompt and face are followed")
    parser.add_argument("--id-scale", type=float, help="how strongly the face is followed")
    parser.add_argument("--structure-scale", type=float, help="how much of the reference's structure comes along")
    parser.add_argument(
        "--reference-scale", type=int, default=1, metavar="N",
        help="references of N x 128 pixels a side; those in data/faces are of 256 (default: 1)",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=25, metavar="N", help="pictures drawn at once (default: 25)")
    parser.add_argument("--out", default="outputs/evaluation", metavar="FOLDER", help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PEOPLE} people and {QUICK_PROMPTS} prompts")
    return parser


def _named(text: str) -> tuple[str, str]:
    name, _, folder = text.partition("=")
    if not name.isidentifier() or not folder:
        raise argparse.ArgumentTypeError(f"NAME=FOLDER, as longer=runs/longer/weights, not {text!r}")
    return name, folder
