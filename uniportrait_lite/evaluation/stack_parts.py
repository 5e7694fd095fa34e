"""What is measured of the stack below the base model: judge, detector, autoencoder, ID features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from uniportrait_lite.backbone import IRResNet, verification
from uniportrait_lite.checkpoints import CallDefaults
from uniportrait_lite.evaluation import metrics
from uniportrait_lite.evaluation.portraits import autoencoder, decoded
from uniportrait_lite.evaluation.report import sheet
from uniportrait_lite.evaluation.witnesses import Witnesses
from uniportrait_lite.pictures import save_picture
from uniportrait_lite.provenance import origin, tell
from uniportrait_lite.toyworld import Person, Scene
from uniportrait_lite.toyworld.pretrain import detector
from uniportrait_lite.toyworld.pretrain.recognition import as_input, twice_resampled
from uniportrait_lite.toyworld.splits import HELD_OUT
from uniportrait_lite.toyworld.worlds import World

PEOPLE = HELD_OUT[30_000:40_000]  # apart from those of other measurements and of pictures that are shown


@dataclass(frozen=True)
class Figure:
    """A measured number, the goal that the project set for it (in words, or none), and what it is of."""

    name: str
    value: float
    goal: str | None
    of: str


@dataclass(frozen=True)
class Lab:
    """What the measurements share. `share` of the usual number of scenes is taken."""

    folder: Path
    witnesses: Witnesses
    out: Path
    seed: int
    share: float
    knobs: CallDefaults
    batch: int

    def count(self, usual: int) -> int:
        """How many to take where `usual` are usual: at least four."""
        return max(4, round(usual * self.share))

    @property
    def world(self) -> World:
        """Whose pictures the networks know."""
        return self.witnesses.world

    def people(self, start: int, count: int) -> list[Person]:
        """People that only this measurement uses."""
        return [self.world.Person.random(seed) for seed in PEOPLE[start : start + count]]

    def scene_seed(self, *numbers: int) -> int:
        """A seed of its own for each combination of small numbers."""
        return (self.seed * 100_000 + numbers[0]) * 1000 + sum(n * 100**k for k, n in enumerate(numbers[1:]))


def judge(lab: Lab) -> list[Figure]:
    """Verification over all pairs of pictures of 300 people, 10 scenes each; unfound faces are like strangers."""
    people, scenes = lab.people(0, lab.count(300)), 10 if lab.share == 1 else 4
    drawn = [lab.world.portrait(p, lab.scene_seed(n, k)) for n, p in enumerate(people) for k in range(scenes)]
    who = np.repeat(np.arange(len(people)), scenes)
    embeddings = lab.witnesses.embeddings([scene.image for scene in drawn])
    found = verification(np.nan_to_num(embeddings), who)
    truth = verification(lab.witnesses.embed_at(*arrays(drawn)), who)
    of = f"{len(people)} people in {scenes} scenes of any kind"
    return [
        Figure("judge: AUC", found["auc"], "at least 0.995", f"{of}, by the detector's landmarks"),
        Figure("judge: AUC, true landmarks", truth["auc"], None, of),
        Figure("judge: same person", found["same"], None, f"mean cosine, {of}"),
        Figure("judge: two people", found["different"], None, f"mean cosine, {of}"),
        Figure("judge: faces to judge", float(1 - np.isnan(embeddings[:, 0]).mean()), None, f"share found, {of}"),
    ]


def detection(lab: Lab) -> list[Figure]:
    """The recipe's own measurement, by insightface."""
    scenes = lab.count(300)
    found = detector.evaluate(lab.folder / "face", scenes, lab.world)
    figures = [
        Figure(f"detector: every face found, {n} in a scene", found[f"found_{n}"], "at least 0.98", f"{scenes} scenes")
        for n in (1, 2, 3)
    ]
    return [
        *figures,
        Figure("detector: found where there is none", found["false_positives"], None, f"a scene, of {3 * scenes}"),
        Figure("detector: landmark error", found["landmark_error"], "at most 0.03", "mean, in face widths"),
        Figure("detector: landmark error, 95th percentile", found["landmark_error_95"], None, "in face widths"),
    ]


def decoding(lab: Lab) -> list[Figure]:
    """Portraits, then trios: (decoded picture to another real scene) / (the picture itself to that scene).

    Then portraits whose latents were noised in between: what goes with little noise hardly moves the latents, and a
    U-Net must be the more exact to draw it.
    """
    vae, figures, shown_pairs = autoencoder(lab.folder / "sd"), [], []
    for name, size, usual in (("portraits", 1, 300), ("three people", 3, 100)):
        people = lab.people(1000 + 1000 * size, size * lab.count(usual))
        groups = [people[i : i + size] for i in range(0, len(people), size)]
        first, second = (
            [lab.world.group(g, lab.scene_seed(n, size, k)) for n, g in enumerate(groups)] for k in range(2)
        )
        restored = decoded(vae, [scene.image for scene in first], max(1, lab.batch // size))
        other = lab.witnesses.embed_at(*arrays(second))
        _, landmarks = pictures = arrays(first)
        copies = np.repeat(np.stack([np.asarray(image) for image in restored]), size, axis=0)
        real = (lab.witnesses.embed_at(*pictures) * other).sum(1).mean()
        kept = (lab.witnesses.embed_at(copies, landmarks) * other).sum(1).mean()
        of = f"{len(groups)} pairs of scenes of any kind, true landmarks"
        figures += [
            Figure(f"vae: identity kept, {name}", float(kept / real), "at least 0.9", of),
            Figure(f"vae: real pairs, {name}", float(real), None, f"mean cosine, {of}"),
        ]
        for noise in (0.2, 0.5) if size == 1 else ():
            again = decoded(vae, [scene.image for scene in first], lab.batch, noise)
            alike = lab.witnesses.embed_at(np.stack([np.asarray(image) for image in again]), landmarks)
            share = float((alike * other).sum(1).mean() / real)
            figures.append(Figure(f"vae: identity kept, latents noised by {noise}", share, None, of))
        shown_pairs += [
            [(scene.image, "real"), (image, "decoded")] for scene, image in zip(first[:6], restored, strict=False)
        ]
    rows = [a + b for a, b in zip(shown_pairs[::2], shown_pairs[1::2], strict=True)]
    shown = sheet(["", "", "", ""], rows)
    tell(shown, base=origin(lab.folder / "sd"))
    save_picture(shown, lab.out / "stack_vae.png")
    return figures


def features(lab: Lab) -> list[Figure]:
    """How much of the judge's embedding of a person can be read, by ridge regression, off intrinsic ID features F_r.

    The regression learns from pictures of some people, and is asked about a picture of each of others: what it says is
    compared with another picture of the person. At least so much of who one is reaches the ID embedding.
    """
    backbone = IRResNet.from_pretrained(lab.folder / "recogniser")
    people, known = lab.people(6500, lab.count(1500)), lab.count(1400)
    scenes = [[lab.world.portrait(p, lab.scene_seed(n, 5, k)) for n, p in enumerate(people)] for k in range(2)]
    found, judged = [], []
    for drawn in scenes:
        pictures, landmarks = arrays(drawn)
        faces = as_input(twice_resampled(pictures, landmarks))
        with torch.no_grad():
            found.append(np.concatenate([backbone.features(part)[-1].flatten(1).numpy() for part in faces.split(50)]))
        judged.append(lab.witnesses.embed_at(pictures, landmarks))
    learned = [np.concatenate([each[:known] for each in both]) for both in (found, judged)]
    read = metrics.readable(*learned, found[0][known:])
    read /= np.linalg.norm(read, axis=1, keepdims=True)
    real = float((judged[0][known:] * judged[1][known:]).sum(1).mean())
    reached = float((read * judged[1][known:]).sum(1).mean())
    of = f"{len(people) - known} people; learned from {2 * known} pictures of {known} others; real pair {real:.3f}"
    return [Figure("ID features: identity that can be read off them", reached / real, None, of)]


def arrays(scenes: Sequence[Scene]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N,H,W,3) and landmarks (N,5,2) of all faces of scenes of one size, scene by scene."""
    faces = [(scene.pixels, face.landmarks) for scene in scenes for face in scene.faces]
    return np.stack([pixels for pixels, _ in faces]), np.stack([landmarks for _, landmarks in faces])
