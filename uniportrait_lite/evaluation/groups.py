"""Pictures of several people, row by row: how each row's are made, and what is measured on them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from uniportrait_lite.adapter import UniPortrait
from uniportrait_lite.assignment import Assignment, assign
from uniportrait_lite.attention import IDConditions
from uniportrait_lite.checkpoints import CallDefaults
from uniportrait_lite.distinct import ANOTHER, one_region_each, settle
from uniportrait_lite.evaluation.portraits import Wish, without_identity
from uniportrait_lite.evaluation.subjects import Prompt, Subject
from uniportrait_lite.evaluation.witnesses import Witnesses
from uniportrait_lite.id_routing import Routing, RoutingMaps, box_masks

ROWS = (
    "text_only", "averaged", "concatenated", "no_route", "control", "no_columns", "columns", "router", "said",
    "distinct", "masks",
)  # fmt: skip
SAID, ASKED = "wearing a red beret", {"hat": "beret", "hat_color": "red"}  # of the first person, in the row said
PARTS = ("down_blocks", "mid_block", "up_blocks")


@dataclass(frozen=True)
class Ask:
    """One picture to draw: the people in it (numbers of subjects), what it should show, the seed of its noise."""

    who: tuple[int, ...]
    prompt: Prompt
    text: str
    seed: int


@dataclass
class Drawn:
    """A row's pictures of as many asks, mean routing maps by layer (N,h,w) for each where there are some, seconds."""

    images: list[Image.Image] = field(repr=False)
    maps: list[dict[str, Tensor]] = field(repr=False)
    seconds: float  # for a picture
    tries: float | None = None  # of the row distinct: pictures drawn again, for each


class Painter:
    """Draws the asks of one number of people in each row's way."""

    def __init__(
        self,
        up: UniPortrait,
        people: Sequence[Subject],
        knobs: CallDefaults,
        batch: int,
        progress: Callable[[int], None],
    ):
        self.up, self.people, self.knobs, self.batch, self.progress = up, people, knobs, batch, progress
        self.identities = [up.identity_of_crops([subject.face.crop]) for subject in people]
        self.tokens = torch.cat([up.tokens(identity, knobs.structure_scale) for identity in self.identities])
        self.nobody = up.tokens(None, knobs.structure_scale)

    def draw(self, row: str, asks: Sequence[Ask]) -> Drawn:
        """The pictures of one row; all asks are of the same number of people."""
        started = time.perf_counter()
        self.maps: list[dict[str, Tensor]] = []
        self.tries = self.record = None
        images = self._distinct(asks) if row == "distinct" else self._images(row, asks)
        return Drawn(images, self.maps, (time.perf_counter() - started) / len(asks), self.tries)

    def _images(self, row: str, asks: Sequence[Ask]) -> list[Image.Image]:
        width, images = 64 * (len(asks[0].who) + 1), []
        size = {"height": 128, "width": width}
        batch = max(1, self.batch * 128 // width)
        for start in range(0, len(asks), batch):
            part = asks[start : start + batch]
            wishes = [Wish(ask.text, ask.seed) for ask in part]
            given = (
                {} if row == "text_only" else {"cross_attention_kwargs": {"identities": self._conditions(row, part)}}
            )
            images += without_identity(self.up.pipe, wishes, self.knobs, batch, self.progress, **size, **given)
            self._keep_maps(len(part))
        return images

    def _conditions(self, row: str, part: Sequence[Ask]) -> IDConditions:
        """With guidance unconditional rows and then as many with these people, as diffusers stacks them."""
        people = self.tokens[torch.tensor([ask.who for ask in part])]
        guided = self.knobs.guidance > 1
        rows = torch.cat([self.nobody.unsqueeze(1).expand_as(people), people]) if guided else people
        if row == "averaged":
            return self._ready(rows.mean(1, keepdim=True))
        if row == "concatenated":
            return self._ready(rows.flatten(1, 2).unsqueeze(1))
        if people.shape[1] == 1:
            return self._ready(rows)
        latents, masks = (16, people.shape[1] * 8 + 8), None
        if row == "masks":
            found = [torch.from_numpy(np.stack(self.regions(ask))).float() for ask in part]
            masks = torch.nn.functional.interpolate(torch.stack(found), size=latents, mode="area")
            masks = (torch.cat([masks, masks]) if guided else masks).to(rows)
        self.record = record = RoutingMaps()

        def add(name: str, psi: Tensor, logits: Tensor | None) -> None:
            if masks is not None or logits is not None:  # a router's choice, not a column's
                record.add(name, psi[-len(part) :])

        columns = 0.0 if row in ("no_route", "control", "no_columns") else self.knobs.columns
        columns = 1.0 if row == "columns" else columns
        given = {"routing": Routing(latents, masks, columns=columns, record=add)}
        if row == "said":
            first = [self.identities[part[0].who[0]].saying(SAID), *(self.identities[k] for k in part[0].who[1:])]
            about = self.up.conditions(*first)  # rows of nobody and of the people: the words are the same for all asks
            index = torch.tensor([0, 1] if guided else [1]).repeat_interleave(len(part))
            given |= {"sentences": about.sentences[index], "said": about.said[index]}
        return self._ready(rows, **given)

    def _ready(self, rows: Tensor, **given) -> IDConditions:
        return IDConditions(rows, self.knobs.id_scale, **given).projected(self.up.id_attention)

    def regions(self, ask: Ask) -> list[np.ndarray]:
        """What is nearest to each face of a real picture of these people: the truth that the row masks is told."""
        scene = self.people[0].world.group([self.people[k].person for k in ask.who], seed=ask.seed)
        boxes = np.array([face.box for face in scene.faces])
        who = np.eye(len(boxes), dtype=np.float32)
        return one_region_each(assign(boxes, who, who), scene.image.size)

    def _keep_maps(self, count: int) -> None:
        if self.record is None or not self.record.steps:
            return
        layers = {name: torch.stack([step[name] for step in self.record.steps]).mean(0) for name in self.record.layers}
        self.maps += [{name: psi[k] for name, psi in layers.items()} for k in range(count)]
        self.record = None

    def _distinct(self, asks: Sequence[Ask]) -> list[Image.Image]:
        """As `up(..., distinct=True)`: what the router drew, and where someone is doubled or missing, another."""
        images, settled = self._images("router", asks), []
        names = ("steps", "guidance", "id_scale", "structure_scale", "columns")
        given = {name: getattr(self.knobs, name) for name in names}
        given |= {"height": images[0].height, "width": images[0].width}
        for image, ask in zip(images, asks, strict=True):
            people = [self.identities[n] for n in ask.who]

            def again(noise: int, masks: list | None, ask: Ask = ask, people: list = people) -> Image.Image:
                return self.up(ask.text, people, seed=ask.seed + noise * ANOTHER, masks=masks, **given).images[0]

            settled.append(settle(image, functools.partial(self.up.assignment, identities=people), again))
        self.maps, self.tries = [], float(np.mean([tries for _, _, tries in settled]))
        return [image for image, _, _ in settled]


def figures(
    row: str,
    drawn: Drawn,
    asks: Sequence[Ask],
    people: Sequence[Subject],
    witnesses: Witnesses,
    real: Sequence[float | None],
) -> dict:
    """What the judge, the detector and the reader find on a row's pictures of one number of people.

    `real`: how alike the faces are in a real picture of the same people, for each ask; None where it shows fewer than
    two.
    """
    found = [
        seen(image, [people[k] for k in ask.who], witnesses) for image, ask in zip(drawn.images, asks, strict=True)
    ]
    followed, wears, right = [], {"first": [], "others": []}, {part: [] for part in PARTS}
    for image, ask, one in zip(drawn.images, asks, found, strict=True):
        read = witnesses.reader.read([image] * len(one.boxes), list(one.boxes)) if len(one.boxes) else []
        hits = [face[name] == value for face in read for name, value in ask.prompt.attributes.items()]
        followed.append(np.mean(hits) if hits else 0.0)
        worn = [all(face[name] == value for name, value in ASKED.items()) for face in read]
        first, *others = one.assignment.face_of
        wears["first"].append(first is not None and worn[first])
        further = set(range(len(worn))) - {first, *others}
        wears["others"] += [face is not None and worn[face] for face in others] + [worn[face] for face in further]
    for maps, one in zip(drawn.maps, found, strict=True) if drawn.maps else ():
        for part, share in routed_right(maps, one).items():
            right[part].append(share)
    alike = [among(one.embeddings) for one in found]
    both = [(a, b) for a, b in zip(alike, real, strict=True) if None not in (a, b)]
    return {
        "row": row,
        "pictures": len(asks),
        "lowest": float(np.mean([min(one.assignment.matched) for one in found])),
        "matched": float(np.mean([np.mean(one.assignment.matched) for one in found])),
        "lowest_each": [round(min(one.assignment.matched), 4) for one in found],
        "missing": float(np.mean([bool(one.assignment.missing) for one in found])),
        "doubled": float(np.mean([bool(one.assignment.doubled) for one in found])),
        "once": float(np.mean([one.assignment.distinct for one in found])),
        "faces": float(np.mean([len(one.boxes) == len(ask.who) for one, ask in zip(found, asks, strict=True)])),
        "blending": float(np.mean([a - b for a, b in both])) if both else None,
        "blending_of": len(both),
        "followed": float(np.mean(followed)),
        "wears": {who: float(np.mean(has)) for who, has in wears.items() if has},
        "routed": {part: float(np.nanmean(shares)) for part, shares in right.items() if shares},
        "seconds": drawn.seconds,
        "tries": drawn.tries,
    }


@dataclass
class Found:
    """A picture's faces by the judge, and whose they are."""

    boxes: np.ndarray
    embeddings: np.ndarray
    assignment: Assignment
    size: tuple[int, int]


def seen(image: Image.Image, people: Sequence[Subject], witnesses: Witnesses) -> Found:
    """All faces of a picture, matched one to one with the people's references by the judge."""
    faces = witnesses.faces.detect(image)
    references = np.stack([subject.face.embedding for subject in people])
    boxes = np.array([face.box for face in faces], np.float32).reshape(-1, 4)
    embeddings = np.array([face.embedding for face in faces], np.float32).reshape(-1, references.shape[1])
    return Found(boxes, embeddings, assign(boxes, embeddings, references), image.size)


def among(embeddings: np.ndarray) -> float | None:
    """The mean cosine between the faces (F,D) of one picture; None of fewer than two."""
    if len(embeddings) < 2:
        return None
    upper = np.triu_indices(len(embeddings), 1)
    return float((embeddings @ embeddings.T)[upper].mean())


def routed_right(maps: dict[str, Tensor], found: Found) -> dict[str, float]:
    """The share of locations in the matched faces' boxes, over steps, that listened to the face's own person."""
    owned = [(person, face) for person, face in enumerate(found.assignment.face_of) if face is not None]
    if not owned:
        return {}
    width, height = found.size
    boxes = torch.from_numpy(found.boxes[[face for _, face in owned]] / np.float32([width, height, width, height]))
    shares: dict[str, list[float]] = {}
    for name, psi in maps.items():
        inside = box_masks(boxes, psi.shape[-2:])
        alone = inside * (inside.sum(0) == 1)
        own = psi[[person for person, _ in owned]]
        if alone.sum():
            part = next(part for part in PARTS if name.startswith(part))
            shares.setdefault(part, []).append(float((own * alone).sum() / alone.sum()))
    return {part: float(np.mean(values)) for part, values in shares.items()}
