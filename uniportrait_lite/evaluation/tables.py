"""The identity protocol on paper: its tables with what each figure means, and its contact sheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from uniportrait_lite.evaluation.report import markdown, sheet, shown, write_json, write_text
from uniportrait_lite.evaluation.rows import BASE, Row
from uniportrait_lite.evaluation.subjects import Prompt, Subject

ENOUGH = 50  # people, for figures to be quoted
SHEET_PEOPLE = 12

NOTES = """\
- Similarity: cosine of the judge's embeddings (a network that conditions nothing and was trained on other people) of
  the largest face that the detector finds; where it finds none, 0.
- own: portraits to the reference that they were made from. others: to the other people's references. AUC: the chance
  that an own similarity is above one to another person's reference.
- s = (own - floor) / (ceiling - floor), with its 95% interval over people (bootstrap). Ceiling: the real pictures to
  their own references. Floor: the real pictures to other people's references.
- Real pictures: the person as a perfect model would draw them for each prompt: the prompt's attributes and, where it is
  silent, a young, neutral, bare face in photo style; in another place, pose, light and clothes than the reference.
- Real, decoded: the same through the autoencoder, which no portrait can surpass.
- followed: share of the attributes that prompts ask for and the reader finds. CLIP-T: cosine of the tiny CLIP's
  embeddings of picture and prompt. Both are to be read beside those of the real pictures.
- seconds: for a picture, drawn in batches.
"""


def identity_markdown(result: Mapping) -> str:
    """The report of the identity protocol: figures by row, by attribute and by prompt, and how they are defined."""
    rows = result["rows"]
    base = next((row["followed"]["all"] for row in rows if row["name"] == BASE), None)
    lines = [
        f"# Identity: {result['people']} people, {len(result['prompts'])} prompts, seed {result['seed']}",
        f"On {result['hardware']}. Each person's one reference has {' x '.join(map(str, result['reference_size']))} "
        "pixels.",
    ]
    if result["people"] < ENOUGH:
        lines.append(f"Fewer than {ENOUGH} people: a look, not a result.")
    header = ("", "own", "others", "AUC", "s", "95%", "followed", f"/ {BASE}", "CLIP-T", "face found", "seconds")
    table = [
        (
            row["name"], row["own"], row["others"], row["auc"], row["s"],
            "{:.2f} to {:.2f}".format(*row["s_interval"]), row["followed"]["all"],
            row["followed"]["all"] / base if base else None, row["clip_t"], row["found"], shown(row["seconds"], 2),
        )
        for row in rows
    ]  # fmt: skip
    table += [(name, "absent", *[None] * (len(header) - 2)) for name in result["absent"]]
    lines.append(markdown(header, table))
    if result["absent"]:
        lines.append("\n".join(f"- {name}: {why}" for name, why in result["absent"].items()))
    lines.append("## Two real pictures of one person")
    kinds = [(kind, f["same"], f["different"], f["auc"]) for kind, f in result["real_pairs"].items()]
    lines.append(markdown(("", "same person", "other people", "AUC"), kinds))
    attributes = [name for name in rows[0]["followed"] if name != "all"]
    lines.append("## Attributes that the reader finds")
    lines.append(markdown(("", *attributes), [(r["name"], *(r["followed"][a] for a in attributes)) for r in rows]))
    for title, key in (("s", "s"), ("Attributes followed", "followed")):
        lines.append(f"## {title} by prompt")
        names = list(rows[0]["prompts"])
        lines.append(markdown(("", *names), [(r["name"], *(r["prompts"][n][key] for n in names)) for r in rows]))
    lines += ["## Prompts", "\n".join(f"- {p['name']}: {p['text']}" for p in result["prompts"])]
    lines += ["## What the figures mean", NOTES.rstrip()]
    refused = result["references_without_face"]
    lines.append(f"- Reference pictures on which no face was found, and which were drawn anew: {refused}.")
    return "\n\n".join(lines[:-1]) + "\n" + lines[-1] + "\n"


def publish(result: Mapping, out: Path) -> None:
    """Writes identity.json and identity.md."""
    write_json(result, out / "identity.json")
    write_text(identity_markdown(result), out / "identity.md")


def contact_sheet(row: Row, measured: Mapping, people: Sequence[Subject], prompts: Sequence[Prompt]) -> Image.Image:
    """The first people's references at the left, then their portraits by prompt, with the own similarities."""
    lines = []
    for number, subject in enumerate(people[:SHEET_PEOPLE]):
        line = [(subject.reference.resize(row.images[0].size), f"person {subject.person.seed}")]
        for k, similarity in enumerate(measured["similarities"][number]):
            place = number * len(prompts) + k
            line.append((row.images[place], f"{similarity:.2f}" if row.seen.found[place] else "no face found"))
        lines.append(line)
    return sheet(["reference", *(prompt.name for prompt in prompts)], lines)
