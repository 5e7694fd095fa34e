"""What is measured of the stack: judge, detector, autoencoder, text to image, each on people of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm import tqdm

from uniportrait_lite.backbone import IRResNet, verification
from uniportrait_lite.checkpoints import CallDefaults
from uniportrait_lite.evaluation import metrics
from uniportrait_lite.evaluation.portraits import Wish, autoencoder, decoded, pipeline, without_identity
from uniportrait_lite.evaluation.report import sheet, verdicts
from uniportrait_lite.evaluation.witnesses import Witnesses
from uniportrait_lite.pictures import save_picture
from uniportrait_lite.toyworld import Person, Scene, captions
from uniportrait_lite.toyworld.factors import IDENTITY, SCENE
from uniportrait_lite.toyworld.pretrain import detector
from uniportrait_lite.toyworld.pretrain.reader import CHOICES, shows
from uniportrait_lite.toyworld.pretrain.recognition import as_input, twice_resampled
from uniportrait_lite.toyworld.splits import HELD_OUT
from uniportrait_lite.toyworld.worlds import World

PEOPLE = HELD_OUT[30_000:40_000]  # apart from those of other measurements and of pictures that are shown
UNSPOKEN = ("none", "neutral", "young")  # values that captions seldom say


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
    truth = verification(lab.witnesses.embed_at(*_arrays(drawn)), who)
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
    """Portraits, then trios: (decoded picture to another real scene) / (the picture itself to that scene)."""
    vae, figures, shown_pairs = autoencoder(lab.folder / "sd"), [], []
    for name, size, usual in (("portraits", 1, 300), ("three people", 3, 100)):
        people = lab.people(1000 + 1000 * size, size * lab.count(usual))
        groups = [people[i : i + size] for i in range(0, len(people), size)]
        first, second = (
            [lab.world.group(g, lab.scene_seed(n, size, k)) for n, g in enumerate(groups)] for k in range(2)
        )
        restored = decoded(vae, [scene.image for scene in first], max(1, lab.batch // size))
        other = lab.witnesses.embed_at(*_arrays(second))
        _, landmarks = pictures = _arrays(first)
        copies = np.repeat(np.stack([np.asarray(image) for image in restored]), size, axis=0)
        real = (lab.witnesses.embed_at(*pictures) * other).sum(1).mean()
        kept = (lab.witnesses.embed_at(copies, landmarks) * other).sum(1).mean()
        of = f"{len(groups)} pairs of scenes of any kind, true landmarks"
        figures += [
            Figure(f"vae: identity kept, {name}", float(kept / real), "at least 0.9", of),
            Figure(f"vae: real pairs, {name}", float(real), None, f"mean cosine, {of}"),
        ]
        shown_pairs += [
            [(scene.image, "real"), (image, "decoded")] for scene, image in zip(first[:6], restored, strict=False)
        ]
    rows = [a + b for a, b in zip(shown_pairs[::2], shown_pairs[1::2], strict=True)]
    save_picture(sheet(["", "", "", ""], rows), lab.out / "stack_vae.png")
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
        pictures, landmarks = _arrays(drawn)
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


def text(lab: Lab) -> list[Figure]:
    """Prompts that name what is to be seen on scenes of any kind, for portraits; then counts of faces in groups.

    The reader errs, too: what it makes of the real pictures of the same prompts is what can be reached. Some of a
    person can be told in words: how alike the pictures are to the person described says how well the model draws one.
    """
    pipe = pipeline(lab.folder / "sd")
    scenes = [lab.world.portrait(p, lab.scene_seed(n, 7)) for n, p in enumerate(lab.people(6000, lab.count(200)))]
    asked = [spoken(scene, lab.scene_seed(n, 9)) for n, scene in enumerate(scenes)]
    prompts = [captions.prompt_for(attributes) for attributes in asked]
    real = metrics.followed(lab.witnesses.reader.read([scene.image for scene in scenes]), asked)
    images = _drawn(lab, pipe, prompts)
    read = lab.witnesses.reader.read(images)
    made = metrics.followed(read, asked)
    of = f"mean over {sum(map(len, asked))} factors stated in {len(scenes)} prompts, seen by the reader"
    figures = [
        Figure("text: attributes followed", made["all"], "at least 0.9", of),
        Figure("text: the reader, on real pictures", real["all"], None, "of the same prompts"),
    ]
    figures += _told(lab, scenes, images)
    for name in (name for name in CHOICES if name in made):
        count = sum(name in attributes for attributes in asked)
        figures.append(Figure(f"text: {name}", made[name], None, f"{count} prompts; in real pictures {real[name]:.3f}"))
    missed = [
        [f"{name} {value}" for name, value in attributes.items() if seen[name] != value]
        for seen, attributes in zip(read, asked, strict=True)
    ]
    wrong = [f"not seen: {', '.join(names)}" if names else "all there" for names in missed]
    rows = list(zip([scene.image for scene in scenes], images, prompts, wrong, strict=True))
    save_picture(verdicts(rows[:24]), lab.out / "stack_text.png")
    return figures + _groups(lab, pipe)


def _told(lab: Lab, scenes: Sequence[Scene], images: Sequence[Image.Image]) -> list[Figure]:
    """How near pictures made from descriptions are to the real ones described: one by one, and all together."""
    described = lab.witnesses.embed_at(*_arrays(scenes))
    own, others = metrics.similarities(lab.witnesses.embeddings(images)[:, None], described)
    more = [lab.world.portrait(scene.faces[0].person, lab.scene_seed(n, 6)).image for n, scene in enumerate(scenes)]
    real, made, again = (lab.witnesses.clip_image(x) for x in ([s.image for s in scenes], images, more))
    of, apart = f"{len(scenes)} pictures", metrics.frechet(again, real)
    return [
        Figure("text: like the person described", float(own.mean()), None, f"{of}; others {others.mean():.3f}"),
        Figure(
            "text: FID by the tiny CLIP",
            metrics.frechet(again, made),
            None,
            f"{of} to real ones; real ones {apart:.3f}",
        ),
    ]


def _groups(lab: Lab, pipe: DiffusionPipeline) -> list[Figure]:
    figures = []
    for size in (2, 3):
        people = lab.people(8000 + 500 * size, size * lab.count(40))
        groups = [people[i : i + size] for i in range(0, len(people), size)]
        scenes = [lab.world.group(g, lab.scene_seed(n, 8, size), style="photo") for n, g in enumerate(groups)]
        images = _drawn(lab, pipe, [scene.caption for scene in scenes], scenes[0].image.width)
        share = [
            float(np.mean([len(lab.witnesses.faces.detect(image)) == size for image in pictures]))
            for pictures in (images, [scene.image for scene in scenes])
        ]
        of = f"share of {len(scenes)} pictures; of the real ones {share[1]:.3f}"
        figures.append(Figure(f"text: {size} people, {size} faces", share[0], None, of))
        rows = [
            [(scene.image, "real"), (image, "from its caption")] for scene, image in zip(scenes, images, strict=True)
        ]
        save_picture(sheet(["", ""], rows[:12]), lab.out / f"stack_groups_{size}.png")
    return figures


def _drawn(lab: Lab, pipe: DiffusionPipeline, prompts: Sequence[str], width: int = 128) -> list[Image.Image]:
    wishes = [Wish(prompt, lab.seed * 100_000 + n) for n, prompt in enumerate(prompts)]
    batch = max(1, lab.batch * 128 // width)
    with tqdm(total=len(wishes), unit="picture") as bar:
        return without_identity(pipe, wishes, lab.knobs, batch, bar.update, height=128, width=width)


def spoken(scene: Scene, seed: int) -> dict[str, str]:
    """What a prompt of full length says of a portrait: values by factor, drawn from all that the picture shows.

    Factors are taken in a random order until the next would make the prompt longer than the text encoder reads.
    """
    face = scene.faces[0]
    values = {name: getattr(face.person, name) for name in IDENTITY} | face.attributes
    values |= {name: getattr(scene, name) for name in SCENE}
    names = [name for name in CHOICES if values[name] not in UNSPOKEN and shows(name, values)]
    said: dict[str, str] = {}
    for name in np.random.Generator(np.random.PCG64(seed)).permutation(names).tolist():
        owner = name.removesuffix("_color")
        wanted = (owner, name) if owner in ("hat", "clothes") else (name,)  # no colour without the thing
        longer = said | {key: values[key] for key in wanted}
        try:
            captions.prompt_for(longer)
        except ValueError:  # too many words
            break
        said = longer
    return said


def _arrays(scenes: Sequence[Scene]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N,H,W,3) and landmarks (N,5,2) of all faces of scenes of one size, scene by scene."""
    faces = [(scene.pixels, face.landmarks) for scene in scenes for face in scene.faces]
    return np.stack([pixels for pixels, _ in faces]), np.stack([landmarks for _, landmarks in faces])


PARTS: dict[str, Callable[[Lab], list[Figure]]] = {
    "judge": judge, "detector": detection, "vae": decoding, "features": features, "text": text,
}  # fmt: skip
