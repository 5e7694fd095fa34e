"""The people protocol: several people nobody trained on in one picture, who is there, and who is like whom."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

from uniportrait_lite.adapter import UniPortrait
from uniportrait_lite.checkpoints import MULTI, single_digest
from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.evaluation.groups import PARTS, ROWS, SAID, Ask, Drawn, Painter, among, figures, seen
from uniportrait_lite.evaluation.portraits import pipeline, settings
from uniportrait_lite.evaluation.report import check_folder, markdown, sheet, shown, write_json, write_text
from uniportrait_lite.evaluation.subjects import UNSAID, Prompt, Subject, read_prompts, subjects
from uniportrait_lite.evaluation.witnesses import Witnesses
from uniportrait_lite.folders import data_folder, prompts_file, runs_folder
from uniportrait_lite.pictures import save_picture
from uniportrait_lite.provenance import tell
from uniportrait_lite.toyworld.pretrain.record import hardware

NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
TRAINED = ("no_route", "control")  # rows with weights of their own
ASIDE = (
    "run_folder", "out", "hours", "workers", "samples_every", "log_every", "checkpoint_every", "compile", "graphs"
)  # fmt: skip  # settings that say nothing of what is learned
TRIPLES, LARGER = 40, 20
FULL = 15  # people, for figures to be quoted

_DESCRIPTION = f"""\
Draws held-out people in pairs, triples, fours and fives, from one reference picture each. Networks that had no part in
it match the faces they find one to one with the references. Writes people.md, people.json and a contact sheet for each
row into --out, and prints the tables, with what each figure means.

Rows: alone is each person by themselves; text_only is the base model without identities; averaged and concatenated
give the ID tokens of all as those of one, without a router; router is the profile's own, at its defaults, columns for a
first part of the steps. In no_columns the routers decide from the first step on, as in the paper, and in columns in no
step at all. no_route and control, without columns as well, are routers that you have trained without the routing loss,
and for as long with it; they are absent unless there are such weights:
  python -m uniportrait_lite train multi_id --steps 2200 --trios 0.4 --larger 0 --route-weight 0
  python -m uniportrait_lite train multi_id --steps 2200 --trios 0.4 --larger 0 \\
      --run-folder runs/multi_id_control --out runs/multi_id_control/weights
said is router with "{SAID}" said of the first person; distinct draws again where someone is doubled or
missing; masks tells each location who is nearest in a real picture.
"""
_EPILOG = """\
examples:
  python -m uniportrait_lite evaluate people --quick                  a few groups of each: a look, not a result
  python -m uniportrait_lite evaluate people --rows averaged,router --prompts-each 1
"""
NOTES = """\
- Similarities are the judge's. Faces and references are matched one to one for the largest sum; whoever has no face
  counts 0. lowest: the mean over pictures of the lowest matched similarity; matched: of their mean. / alone: lowest,
  as a share of the mean that people reach by themselves, as the paper compares them. A lowest of several is lower
  than a mean by its nature, so / lowest alone: lowest, as a share of the mean of the lowest that these same people
  reach by themselves with this prompt. At 1 company costs nothing; single groups lie on both sides of it.
- missing, doubled: pictures with a person to whom no face is nearest, or several are. once: every person has exactly
  one face nearest. Where likeness is weak that is half chance: see text_only. faces: as many found as people asked for.
- blending, our own score: how alike the faces of a picture are to each other (cosine), less the same in a real picture
  of those people for that prompt, over pictures with two faces or more: 0 is no blending; doubling counts as blending.
- beret: share of the first-named people, and of all other faces, in whose window the reader sees a red beret.
- followed: share of the prompts' attributes that the reader finds around a picture's faces; 0 without faces.
- routed: share of locations inside matched faces' boxes that listened to the face's own person, in the U-Net's way
  down, middle and way up, over all steps in which routers or masks decided: columns do not count,
  so where there are none the first and hardest steps do.
- seconds: for a picture, drawn in batches; distinct draws those that it draws again one by one, `tries` for each.
- alone, text_only, averaged and concatenated use the LoRA of the single-ID stage, as all pictures of one identity do;
  the others that of the multi-ID stage, which has also seen groups.
"""


def people_prompts(path: Path) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts for several people, with {number} in them, and the same for one; `ConfigError` where they are not."""
    several = read_prompts(path)
    entries = json.loads(path.read_text(encoding="utf-8"))
    for prompt, entry in zip(several, entries, strict=True):
        if "{number}" not in prompt.text or not isinstance(entry.get("alone"), str):
            raise ConfigError(
                f"prompt {prompt.name!r} of {path} needs {{number}} in its text, and a text for one: alone"
            )
    return several, [Prompt(p.name, e["alone"], p.attributes) for p, e in zip(several, entries, strict=True)]


def plan(people: int, several: Sequence[Prompt], alone: Sequence[Prompt], each: int, triples: int, seed: int,
         larger: int = 0) -> dict:  # fmt: skip
    """The asks for one person, all pairs, some triples and `larger` groups of four and of five; `each` prompts in turn
    for a group."""
    groups = {2: list(combinations(range(people), 2))}
    rng = np.random.default_rng(seed)
    for number, wanted in ((3, triples), (4, larger), (5, larger)):
        all_of_them = list(combinations(range(people), number))
        chosen = rng.choice(len(all_of_them), min(wanted, len(all_of_them)), replace=False) if all_of_them else []
        groups[number] = [all_of_them[k] for k in sorted(chosen)]
    asks = {1: [Ask((k,), p, p.text, seed * 10_000 + k) for k in range(people) for p in alone]}
    for number, members in groups.items():
        asks[number] = []
        for place, who in enumerate(members):
            who = tuple(rng.permutation(who).tolist())
            for k in range(each):
                prompt = several[(place * each + k) % len(several)]
                text = prompt.text.format(number=NUMBERS[number])
                asks[number].append(Ask(who, prompt, text, seed * 10_000 + number * 1000 + place * each + k))
    return asks


def evaluate(folder: Path, rows: Sequence[str], asks: dict, people: Sequence[Subject], witnesses: Witnesses, out: Path,
             batch: int = 16, columns: float | None = None, runs: Path = Path("runs")) -> dict:  # fmt: skip
    """Runs the protocol with the networks of `folder`, a profile's; writes what is known after each row; returns it.

    `runs`: where the trainings of `TRAINED` are.
    """
    pipe = pipeline(folder / "sd")
    trained = {row: runs / f"multi_id_{row}" / "weights" for row in rows if row in TRAINED}
    absent = {row: why for row, place in trained.items() if (why := _unfit(place, folder / "uniportrait"))}
    if len(fit := [place for row, place in trained.items() if row not in absent]) == len(TRAINED):
        absent |= dict.fromkeys(trained, why) if (why := _unlike(*fit)) else {}
    real = {
        number: [among(seen(_real(ask, people), [people[k] for k in ask.who], witnesses).embeddings) for ask in part]
        for number, part in asks.items()
    }
    result = {"people": len(people), "hardware": hardware(), "absent": absent, "rows": []}
    jobs = [
        ("alone", 1),
        *((row, number) for row in rows if row not in absent for number in asks if number > 1 and asks[number]),
    ]
    with tqdm(total=sum(len(asks[number]) for _, number in jobs), unit="picture") as bar:
        for row, number in jobs:
            bar.set_description(f"{row} {number}")
            up = UniPortrait.attach(pipe, trained.get(row, folder / "uniportrait"))
            try:
                painter = Painter(up, people, settings(up.config.defaults, columns=columns), batch, bar.update)
                drawn = painter.draw(row, asks[number])
            finally:
                up.detach()
            found = figures(row, drawn, asks[number], people, witnesses, real[number])
            if number == 1:
                reached = zip(asks[1], found["lowest_each"], strict=True)
                alone = {(ask.who[0], ask.prompt.name): own for ask, own in reached}
            lowest = [min(alone[person, ask.prompt.name] for person in ask.who) for ask in asks[number]]
            result["rows"].append({"number": number, **found, "lowest_alone": float(np.mean(lowest))})
            write_json(result, out / "people.json")
            write_text(people_markdown(result), out / "people.md")
            drawing = _sheet(drawn, asks[number], people, found)
            tell(drawing, prompt="; ".join(dict.fromkeys(ask.text for ask in asks[number])), seed=asks[number][0].seed)
            save_picture(drawing, out / f"people_{number}_{row}.png")
    return result


def _unfit(folder: Path, full: Path) -> str | None:
    """Why the weights of an ablation cannot be compared with the full ones, None where they can."""
    if not (folder / MULTI).is_file():
        return f"no {MULTI} in {folder}"
    if single_digest(folder) != single_digest(full):
        return f"{folder} was trained on other single-ID weights than {full}"
    return None


def _unlike(*folders: Path) -> str | None:
    """Why ablations cannot be compared with each other, None where their trainings differ in lambda and place alone."""
    files = [folder / "multi_id.recipe.json" for folder in folders]
    if lacking := [str(file) for file in files if not file.is_file()]:
        return f"there is no {' and no '.join(lacking)} to tell how they were trained"
    recipes = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    settings = [{**recipe["config"], "steps": recipe["steps"]} for recipe in recipes]
    apart = {name for name in set().union(*settings) if len({str(each.get(name)) for each in settings}) > 1}
    if apart := apart - {"route_weight", *ASIDE}:
        return f"{' and '.join(map(str, folders))} were trained with another {', '.join(sorted(apart))}"
    return None


def _real(ask: Ask, people: Sequence[Subject]):
    """The people as a perfect model would draw them for the prompt."""
    shown = [people[k].person for k in ask.who]
    return people[0].world.group(shown, seed=ask.seed, **(UNSAID | ask.prompt.attributes)).image


def _sheet(drawn: Drawn, asks: Sequence[Ask], people: Sequence[Subject], found: dict):
    lines = []
    for k in range(0, len(asks), max(1, len(asks) // 12)):
        references = [(people[n].reference.resize((128, 128)), f"person {n}") for n in asks[k].who]
        lines.append([*references, (drawn.images[k], f"{found['lowest_each'][k]:.2f} {asks[k].text}")])
    return sheet([""] * len(lines[0]), lines[:12])


def people_markdown(result: dict) -> str:
    """The report: a table for pairs, one for triples, and what the figures mean."""
    alone = next((row["lowest"] for row in result["rows"] if row["row"] == "alone"), None)
    lines = [f"# Several people: {result['people']} held-out people", f"On {result['hardware']}."]
    if result["people"] < FULL:
        lines.append(f"Fewer than {FULL} people: a look, not a result.")
    header = ("", "pictures", "lowest", "/ alone", "/ lowest alone", "matched", "missing", "doubled", "once",
              "faces", "blending", "beret: first", "others", "followed", "routed down", "mid", "up", "seconds",
              "tries")  # fmt: skip
    for number, title in ((1, "One person"), (2, "Pairs"), (3, "Triples"), (4, "Fours"), (5, "Fives")):
        table = [
            (
                row["row"], str(row["pictures"]), row["lowest"], row["lowest"] / alone if alone else None,
                row["lowest"] / row["lowest_alone"] if number > 1 and row["lowest_alone"] > 0 else None,
                row["matched"], row["missing"], row["doubled"], row["once"], row["faces"], row["blending"],
                row["wears"].get("first"), row["wears"].get("others"), row["followed"],
                *(row["routed"].get(part) for part in PARTS),
                shown(row["seconds"], 2), shown(row["tries"], 2),
            )
            for row in result["rows"]
            if row["number"] == number
        ]  # fmt: skip
        if table:
            lines += [f"## {title}", markdown(header, table)]
    lines += [f"- {name}: absent, {why}" for name, why in result["absent"].items()]
    return "\n\n".join([*lines, "## What the figures mean", NOTES.rstrip()]) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m uniportrait_lite evaluate people`."""
    args = _parser().parse_args(argv)
    folder = data_folder(args.profile)
    rows = list(ROWS) if args.rows is None else args.rows.split(",")
    for row in rows:
        if row not in ROWS:
            raise ConfigError(f"there is no row {row!r}: there are {', '.join(ROWS)}")
    if not (folder / "uniportrait" / MULTI).is_file() and {
        "no_columns",
        "columns",
        "router",
        "said",
        "distinct",
        "masks",
    } & set(rows):
        raise WeightsError(f"{folder / 'uniportrait'} holds no {MULTI}: run `train multi_id` first")
    given = (args.people, args.prompts_each, args.triples, args.larger)
    count, each, triples, larger = (6, 1, 8, 3) if args.quick else given
    if count < 3 or each < 1 or min(triples, larger) < 0 or args.batch < 1:
        raise ConfigError("people are 3 at least, prompts for each group and batch 1, triples and larger groups 0")
    several, alone = people_prompts(Path(args.prompts or prompts_file("people.json")))
    out, witnesses = check_folder(args.out), Witnesses(folder)
    people = subjects(count, alone, witnesses, args.seed)
    asks = plan(count, several, alone, each, triples, args.seed, larger)
    place = runs_folder(args.profile)
    result = evaluate(folder, rows, asks, people, witnesses, out, args.batch, args.columns, place)
    print(people_markdown(result))
    print(f"written to {out}: people.md, people.json, people_NUMBER_ROW.png")
    if result["absent"] and args.rows:
        raise WeightsError("; ".join(f"row {name} is absent: {why}" for name, why in result["absent"].items()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m uniportrait_lite evaluate people",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--profile", default="tiny", help="tiny, or the folder of a profile of yours (default: tiny)")
    parser.add_argument(
        "--people", type=int, default=15, metavar="N", help="all pairs of so many (default: 15, so 105)"
    )
    parser.add_argument("--triples", type=int, default=TRIPLES, metavar="N", help="and so many triples (default: 40)")
    parser.add_argument(
        "--larger", type=int, default=LARGER, metavar="N", help="and so many groups of four, and of five (default: 20)"
    )
    parser.add_argument("--prompts-each", type=int, default=2, metavar="N", help="prompts for each group (default: 2)")
    parser.add_argument("--prompts", metavar="FILE", help="JSON (default: data/prompts/people.json)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes and noise (default: 0)")
    parser.add_argument("--columns", type=float, help="of router, said and distinct (default: as the weights say)")
    parser.add_argument("--rows", metavar="A,B", help=f"which rows (default: {','.join(ROWS)})")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="portraits, or as many pixels, at once")
    parser.add_argument("--out", default="outputs/people", metavar="FOLDER", help="(default: %(default)s)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="6 people in 15 pairs, 8 triples and 3 of each larger group, one prompt each",
    )
    return parser
