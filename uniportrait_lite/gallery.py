"""The gallery: what the shipped weights draw of people whom nobody trained on or chose, the bad with the good."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from uniportrait_lite import compose, controls
from uniportrait_lite.assignment import assign
from uniportrait_lite.evaluation import metrics
from uniportrait_lite.evaluation.composition import controlled
from uniportrait_lite.evaluation.report import check_folder, sheet, write_text
from uniportrait_lite.folders import data_folder
from uniportrait_lite.pictures import save_picture, tinted
from uniportrait_lite.quiet import no_advice
from uniportrait_lite.toyworld import Person, portrait, reference
from uniportrait_lite.toyworld.splits import HELD_OUT

PEOPLE = HELD_OUT[:12]  # the first ones: nobody chose them
PROMPTS = {  # by what stands above them
    "smiling, beach": "a portrait of a person, smiling, at the beach",
    "red beret, city": "a portrait of a person, wearing a red beret, in the city",
    "glasses, park": "a portrait of a person, wearing round glasses, in the park",
    "beanie, hoodie": "a portrait of a person, wearing a blue beanie and a green hoodie, in the snow",
    "sad, indoors": "a portrait of a person, looking sad, indoors",
}
STYLES = ("comic style", "as a sketch", "painted in watercolour", "in sepia", "in black and white")
TOGETHER = {2: "two people at the beach", 3: "three friends in the park"}
GROUPS = {2: 6, 3: 4}
MIXTURES = 4  # of neighbours
PLAIN, BESIDE = "a portrait of a person", 5  # the prompt beside other tools, and for how many people
EDGES, GLASS = 0.6, 0.7  # how much of the ControlNet and of the style LoRA: docs/experiments.md
LOOKS = ("comic", "watercolour", "photo", "noir", "sepia")  # of the pictures that somebody else gives
STEPS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)  # of mixtures
WORST = 10

TEXT = """\
# Gallery

What the weights in `data/tiny` draw, at their default settings, of the first {people} people whom no network was
trained on: nobody chose people, seeds or pictures. Under each picture stands how alike the judge finds it to the
reference at the left (two real pictures of one person have about 0.9, two people 0.0).

Made again by `make gallery`, in {seconds:.0f} seconds on {hardware}.

## Portraits

{prompts}

Mean similarity {portraits:.2f}, {found} of {count} with a face that the detector finds.

![A row a person: the reference, then five portraits](gallery/portraits.webp)

## Styles

The prompt is "a portrait of a person, STYLE", of every second person; mean similarity {styles:.2f}.

![A row a person: the reference, then five styles](gallery/styles.webp)

## Two and three people

A row: the references; what the routers draw by themselves, as the paper has it (`columns=0`); what is drawn by default,
where everyone keeps to a column until 0.8 of the denoising is done; who listened where after that, in the U-Net's way
up, red for the first of them, blue for the second, green for the third; and what `distinct=True` makes of it, with
the number of pictures that it drew again. Figures are those of the people in order. Everyone is there once in {alone}
of {groups} groups by the routers alone, in {once} by default, in {settled} with `distinct=True`.

![Pairs](gallery/pairs.webp)

![Triples](gallery/triples.webp)

## With other tools

"{plain}", and beside the identity what the field has for other ends, used as its own documentation says: a
ControlNet that is shown the edges of somebody else's picture (at a conditioning scale of {edges}); that picture itself
as a prompt (IP-Adapter, at 0.6), and its style by shared attention; a face put into a picture (inpainting); a style
LoRA (at {glass}). Figures are likenesses to the reference at the left.

![A row a person: reference, somebody else's picture, its edges, and what each tool makes of them](gallery/tools.webp)

## Between two people

`ann.mix(bob, amount)`, amount from 0 to 1; figures: how alike to the one at the left, and to the one at the right.

![A row a pair of people: from one to the other](gallery/mixtures.webp)

## Failures

The {worst} portraits above that the judge finds least like their reference. (Of groups, see what the routers draw by
themselves.)

![Reference and portrait, side by side](gallery/failures.webp)
"""


@dataclass
class Shown:
    """A portrait of a person (a number), what stands over its column, and its similarity; NaN without a face."""

    person: int
    words: str
    image: Image.Image
    similarity: float

    @property
    def label(self) -> str:
        """What stands under it."""
        return "no face found" if np.isnan(self.similarity) else f"{self.similarity:.2f}"


class Studio:
    """Draws the gallery's people; `up` is a UniPortrait, `judge` a detector with the judge's embeddings."""

    def __init__(self, up: Any, judge: Any, people: Sequence[int]):
        self.up, self.judge = up, judge
        self.references = [reference(Person.random(seed), seed=seed).image for seed in people]
        self.identities = [up.identity(picture) for picture in self.references]
        self.known = judge.embeddings(self.references)

    def portraits(self, prompts: Mapping[str, str], people: Sequence[int]) -> list[list[Shown]]:
        """A row a person, a column a prompt; prompts by what stands over them."""
        rows = []
        for n in people:
            images = self.up(list(prompts.values()), [self.identities[n]], seed=100 * n).images
            alike = map(float, self.judge.embeddings(images) @ self.known[n])
            rows.append([Shown(n, *each) for each in zip(prompts, images, alike, strict=True)])
        return rows

    def group(self, who: Sequence[int], seed: int) -> tuple[list[tuple[Image.Image, str]], list[bool]]:
        """A row of the sheet, and whether everyone is there once: by routers alone, by default, and with `distinct`."""
        people, prompt = [self.identities[n] for n in who], TOGETHER[len(who)]
        alone = self.up(prompt, people, seed=seed, columns=0)
        plain = self.up(prompt, people, seed=seed, routing=True)
        mended = self.up(prompt, people, seed=seed, distinct=True)
        found = [self._assign(out.images[0], who) for out in (alone, plain, mended)]
        alike = [", ".join(f"{value:.2f}" for value in each.matched) for each in found]
        maps = tinted(plain.images[0], plain.routing.mean("up_blocks", plain.routing.routed)[0].numpy())
        row = [(self.references[n], f"person {n}") for n in who]
        row += [(alone.images[0], alike[0]), (plain.images[0], alike[1]), (maps, "who listened where")]
        row.append((mended.images[0], f"{alike[2]}  drawn again: {mended.tries[0]}"))
        return row, [each.distinct for each in found]

    def mixture(self, first: int, second: int, seed: int) -> list[tuple[Image.Image, str]]:
        """A row from one person to the other."""
        people = [self.identities[first].mix(self.identities[second], amount) for amount in STEPS]
        images = [self.up("a portrait of a person", [person], seed=seed).images[0] for person in people]
        seen = self.judge.embeddings(images)
        alike = metrics.cosines(seen, self.known[[first, second]])
        ends = [(self.references[n], f"person {n}") for n in (first, second)]
        labels = [f"{a:.2f}  {b:.2f}" for a, b in alike]
        labels = ["no face found" if np.isnan(e).any() else label for e, label in zip(seen, labels, strict=True)]
        between = list(zip(images, labels, strict=True))
        return [ends[0], *between, ends[1]]

    def beside(self, count: int) -> list[list[tuple[Image.Image, str]]]:
        """A row a person: what other tools make of them and of somebody else's picture."""
        size = self.up.unet.config.sample_size * self.up.pipe.vae_scale_factor
        edged = controlled(self.up.pipe, data_folder(), ["edges"])
        steps, guidance = self.up.config.defaults.steps, self.up.config.defaults.guidance
        rows = []
        for n, person in enumerate(self.identities[:count]):
            given = portrait(Person.random(PEOPLE[(n + 1) % len(PEOPLE)]), seed=n, style=LOOKS[n % len(LOOKS)]).image
            outline = controls.edges(given)
            with self.up.using(person):
                noise = torch.Generator().manual_seed(n)
                call = {"num_inference_steps": steps, "guidance_scale": guidance, "height": size, "width": size}
                call["controlnet_conditioning_scale"] = EDGES
                steered = edged(PLAIN, image=outline, generator=noise, **call).images[0]
            images = [
                steered,
                self.up(PLAIN, person, seed=n, image_prompt=given, image_scale=0.6).images[0],
                compose.in_style(self.up, PLAIN, given, person, seed=n),
                compose.inpaint(self.up, PLAIN, given, compose.face_mask(given), person, seed=n),
            ]
            rows.append([self.references[n], given, outline, *images])
        with no_advice():
            self.up.pipe.load_lora_weights(
                str(data_folder() / "lora"), weight_name="glass.safetensors", adapter_name="glass"
            )
        try:
            self.up.pipe.set_adapters("glass", GLASS)
            for n, row in enumerate(rows):
                row.append(self.up(PLAIN, self.identities[n], seed=n).images[0])
        finally:
            self.up.pipe.delete_adapters("glass")
        return [[*((x, "") for x in row[:3]), *self._alike(n, row[3:])] for n, row in enumerate(rows)]

    def _alike(self, n: int, images: Sequence[Image.Image]) -> list[tuple[Image.Image, str]]:
        alike = map(float, self.judge.embeddings(images) @ self.known[n])
        return [(image, Shown(n, "", image, value).label) for image, value in zip(images, alike, strict=True)]

    def _assign(self, image: Image.Image, who: Sequence[int]):
        faces = self.judge.detect(image)
        return assign([face.box for face in faces], [face.embedding for face in faces], self.known[list(who)])


def run(out: str | Path = "outputs") -> Path:
    """Draws it all into OUT/gallery, with OUT/gallery.md around it; returns the latter's path."""
    import uniportrait_lite
    from uniportrait_lite.faces import detector_of
    from uniportrait_lite.toyworld.pretrain.record import hardware

    began = time.perf_counter()
    out = check_folder(out)
    folder = check_folder(out / "gallery")
    studio = Studio(uniportrait_lite.load("tiny"), detector_of(embed=True), PEOPLE)
    rows = studio.portraits(PROMPTS, range(len(PEOPLE)))
    _keep(studio, rows, folder / "portraits.webp")
    styles = {style: f"a portrait of a person, {style}" for style in STYLES}
    styles = studio.portraits(styles, range(0, len(PEOPLE), 2))
    _keep(studio, styles, folder / "styles.webp")
    right: list[list[bool]] = []
    for name, count in {"pairs": 2, "triples": 3}.items():
        made = [studio.group([(2 * k + n) % len(PEOPLE) for n in range(count)], seed=k) for k in range(GROUPS[count])]
        right += [each for _, each in made]
        titles = [*([""] * count), "columns=0", "default", "", "distinct=True"]
        _save(sheet(titles, [row for row, *_ in made]), folder / f"{name}.webp")
    titles = ["", "somebody else", "edges", "ControlNet", "image prompt", "its style", "face put in", "style LoRA"]
    _save(sheet(titles, studio.beside(BESIDE)), folder / "tools.webp")
    mixed = [studio.mixture(2 * k, 2 * k + 1, seed=k) for k in range(MIXTURES)]
    titles = ["", *(f"{amount:.1f}" for amount in STEPS), ""]
    _save(sheet(titles, mixed), folder / "mixtures.webp")
    drawn = [shown for row in rows + styles for shown in row]
    worst = sorted(drawn, key=lambda shown: np.nan_to_num(shown.similarity, nan=-1))[:WORST]
    pairs = [[(studio.references[s.person], f"person {s.person}"), (s.image, f"{s.label} {s.words}")] for s in worst]
    half = WORST // 2
    lines = [sum((pairs[k] for k in range(start, start + half)), []) for start in (0, half)]
    _save(sheet([""] * (2 * half), lines), folder / "failures.webp")
    alone, once, settled = (sum(each) for each in zip(*right, strict=True))
    write_text(
        TEXT.format(
            people=len(PEOPLE), seconds=time.perf_counter() - began, hardware=hardware(),
            prompts=_quoted(PROMPTS.values()), portraits=_mean(rows), styles=_mean(styles),
            found=sum(not np.isnan(s.similarity) for row in rows for s in row), count=len(PEOPLE) * len(PROMPTS),
            alone=alone, once=once, settled=settled, groups=len(right), worst=WORST,
            plain=PLAIN,
            edges=EDGES,
            glass=GLASS,
        ),
        out / "gallery.md",
    )  # fmt: skip
    return out / "gallery.md"


def _keep(studio: Studio, rows: Sequence[Sequence[Shown]], path: Path) -> None:
    lines = [
        [(studio.references[row[0].person], f"person {row[0].person}"), *((shown.image, shown.label) for shown in row)]
        for row in rows
    ]
    _save(sheet(["reference", *(shown.words for shown in rows[0])], lines), path)


def _save(picture: Image.Image, path: Path) -> None:
    print(save_picture(picture, path), flush=True)


def _quoted(texts: Iterable[str]) -> str:
    """A markdown list."""
    return "\n".join(f"* {text}" for text in texts)


def _mean(rows: Sequence[Sequence[Shown]]) -> float:
    """As in evaluation, portraits without a face count as 0."""
    return float(np.nan_to_num([shown.similarity for row in rows for shown in row]).mean())
