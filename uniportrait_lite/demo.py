"""The demonstration: each person of a folder of faces in four portraits, then some together; how alike they are."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from uniportrait_lite.errors import PictureError
from uniportrait_lite.pictures import read_picture, save_picture, tinted
from uniportrait_lite.provenance import tell

PROMPTS = (
    "a portrait of a person, smiling, at the beach",
    "a portrait of a person, wearing a red beret and a blue suit, in the city",
    "a portrait of a person, looking surprised, wearing a green beanie, in the snow",
    "a portrait of a person, comic style",
)
TOGETHER = {2: "two people at the beach, all smiling", 3: "three friends in the park"}
CELL, GAP, HEADER, LABEL = 192, 8, 44, 18  # pixels of the picture that is saved


@dataclass
class Portrait:
    """One portrait and what was measured on it: without a face (`found`) it is as alike as strangers, 0.

    own: similarity to the reference; others: to the other people's, None where there is nobody else.
    """

    image: Image.Image
    own: float
    others: float | None
    seconds: float
    found: bool = True


@dataclass
class Together:
    """One picture of several people, who listened where (a tinted copy), and each person's own similarity."""

    names: list[str]
    image: Image.Image
    routing: Image.Image
    own: tuple[float, ...]
    seconds: float


def together(up: Any, judge: Any, identities: dict[str, Any], references: np.ndarray, seed: int) -> Together:
    """Draws the people in one picture; `references` (N, D) are the judge's embeddings of theirs."""
    from uniportrait_lite.assignment import assign

    began = time.perf_counter()
    out = up(TOGETHER[len(identities)], list(identities.values()), seed=seed, routing=True)
    seconds = time.perf_counter() - began
    faces = judge.detect(out.images[0])
    boxes, seen = np.array([face.box for face in faces]), np.array([face.embedding for face in faces])
    shares = out.routing.mean("up_blocks", out.routing.routed)[0].numpy()
    own = assign(boxes, seen, references).matched
    return Together(list(identities), out.images[0], tinted(out.images[0], shares), own, seconds)


def below(picture: Image.Image, groups: Sequence[Together]) -> Image.Image:
    """The picture with a row for each group under it: the picture of all, and who listened where."""
    height = sum(CELL + LABEL + GAP for _ in groups)
    sheet = Image.new("RGB", (picture.width, picture.height + height), "white")
    sheet.paste(picture, (0, 0))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    y = picture.height
    for each in groups:
        x = GAP
        alike = ", ".join(f"{name} {value:.2f}" for name, value in zip(each.names, each.own, strict=True))
        for image, label in ((each.image, alike), (each.routing, "routing, in the U-Net's way up")):
            large = image.resize((round(image.width * CELL / image.height), CELL), Image.Resampling.BICUBIC)
            sheet.paste(large, (x, y))
            draw.text((x, y + CELL + 2), label, "black", font)
            x += large.width + GAP
        y += CELL + LABEL + GAP
    return sheet


def people_in(folder: str | Path) -> dict[str, list[Path]]:
    """Name -> the person's pictures: NAME.png first, then NAME_2.png and so on. PictureError for an empty folder."""
    folder = Path(folder)
    people: dict[str, list[Path]] = {}
    suffixes = (".png", ".jpg", ".jpeg", ".webp")
    for path in folder.glob("*"):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            people.setdefault(re.sub(r"_\d+$", "", path.stem), []).append(path)
    if not people:
        raise PictureError(f"there are no pictures in {folder}: put one of each person there, as {folder / 'name.png'}")
    return {name: sorted(people[name], key=lambda path: (len(path.stem), path.name)) for name in sorted(people)}


def run(faces: str | Path = "data/faces", out: str | Path = "outputs/portraits.png", seed: int = 0) -> Path:
    """Draw everyone in `faces` four times, save all as one picture, print a table; returns the picture's path."""
    started = time.perf_counter()
    people = people_in(faces)
    references = {name: read_picture(paths[0]) for name, paths in people.items()}

    import uniportrait_lite
    from uniportrait_lite.evaluation import metrics
    from uniportrait_lite.faces import detector_of

    up = uniportrait_lite.load("tiny")
    print(f"loaded in {time.perf_counter() - started:.1f} s")
    judge = detector_of(embed=True)
    known = judge.embeddings(list(references.values()))
    identities = {name: up.identity(reference) for name, reference in references.items()}
    rows: dict[str, list[Portrait]] = {}
    for number, name in enumerate(references):
        identity = identities[name]
        rows[name] = []
        for prompt in PROMPTS:
            began = time.perf_counter()
            image = up(prompt, [identity], seed=seed).images[0]
            seconds = time.perf_counter() - began
            seen = judge.embeddings([image])
            alike = metrics.cosines(seen, known)[0]
            others = _mean(np.delete(alike, number))
            rows[name].append(Portrait(image, float(alike[number]), others, seconds, not np.isnan(seen).any()))
    groups = [
        together(up, judge, dict(list(identities.items())[:count]), known[:count], seed)
        for count in TOGETHER
        if count <= len(identities)
    ]
    sheet = below(grid(references, rows), groups)
    asked = "; ".join([*PROMPTS, *(TOGETHER[len(each.names)] for each in groups)])
    tell(sheet, prompt=asked, seed=seed, weights=up.weights, people=len(references))
    path = save_picture(sheet, out)
    print(table(rows))
    for each in groups:
        alike = ", ".join(f"{name} {value:.2f}" for name, value in zip(each.names, each.own, strict=True))
        print(f"{' and '.join(each.names)} in one picture, {each.seconds:.1f} s: similarities {alike}")
    again = [
        metrics.cosines(judge.embeddings(paths[1:]), known[[n]]).ravel()
        for n, paths in enumerate(people.values())
        if paths[1:]
    ]
    if (real := _mean([value for values in again for value in values])) is not None:
        print(f"two real pictures of one person: {real:.2f}")
    print(f"{path}: {sum(map(len, rows.values()))} portraits, {time.perf_counter() - started:.0f} s in all")
    return path


def table(rows: dict[str, list[Portrait]]) -> str:
    """The measurements as text: a line for each portrait, and the means."""
    lines = [f"{'person':10} {'to its reference':>16} {'to other people':>15} {'seconds':>8}  prompt"]

    def line(name: str, portraits: Sequence[Portrait], prompt: str) -> str:
        own, others = _mean([p.own for p in portraits]), _mean([p.others for p in portraits])
        seconds = sum(p.seconds for p in portraits) / len(portraits)
        lost = sum(not p.found for p in portraits)
        note = f"  ({'no face found' if len(portraits) == 1 else f'{lost} without a face count as 0'})" if lost else ""
        shown = "-" if others is None else f"{others:.2f}"
        return f"{name:10} {own:16.2f} {shown:>15} {seconds:8.1f}  {prompt}{note}".rstrip()

    for name, portraits in rows.items():
        lines += [line(name, [portrait], prompt) for portrait, prompt in zip(portraits, PROMPTS, strict=True)]
    lines.append(line("mean", [portrait for portraits in rows.values() for portrait in portraits], ""))
    return "\n".join(lines)


def grid(references: dict[str, Image.Image], rows: dict[str, list[Portrait]]) -> Image.Image:
    """A row for each person: the reference, then the portraits, with prompts above and similarities below."""
    columns = len(PROMPTS) + 1
    width, height = columns * (CELL + GAP) + GAP, HEADER + len(rows) * (CELL + LABEL + GAP) + GAP
    picture = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    titles = ["reference", *(prompt.removeprefix("a portrait of a person, ") for prompt in PROMPTS)]
    for column, title in enumerate(titles):
        text = _wrapped(title, lambda words: draw.textlength(words, font) <= CELL)
        draw.multiline_text((GAP + column * (CELL + GAP), GAP), text, "black", font, spacing=2)
    for row, (name, portraits) in enumerate(rows.items()):
        labels = [name, *(f"similarity {p.own:.2f}" if p.found else "no face found" for p in portraits)]
        y = HEADER + row * (CELL + LABEL + GAP)
        for column, (image, label) in enumerate(
            zip([references[name], *(p.image for p in portraits)], labels, strict=True)
        ):
            x = GAP + column * (CELL + GAP)
            small = (
                image.copy() if max(image.size) > CELL else image.resize(_fitted(image.size), Image.Resampling.BICUBIC)
            )
            small.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
            picture.paste(small, (x + (CELL - small.width) // 2, y + (CELL - small.height) // 2))
            draw.text((x, y + CELL + 2), label, "black", font)
    return picture


def _fitted(size: tuple[int, int]) -> tuple[int, int]:
    scale = CELL / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _wrapped(text: str, fits: Callable[[str], bool]) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if fits(longer):
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def _mean(values: Sequence[float | None]) -> float | None:
    """None where there is nothing to take the mean of."""
    known = [value for value in values if value is not None]
    return float(sum(known) / len(known)) if known else None
