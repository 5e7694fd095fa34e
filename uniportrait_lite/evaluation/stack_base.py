"""What is measured of the base model: what it does with noise, with words, and with the number of people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionImg2ImgPipeline
from PIL import Image
from tqdm import tqdm

from uniportrait_lite.evaluation import metrics
from uniportrait_lite.evaluation.portraits import Wish, pipeline, without_identity
from uniportrait_lite.evaluation.report import sheet, verdicts
from uniportrait_lite.evaluation.stack_parts import Figure, Lab, arrays
from uniportrait_lite.pictures import save_picture
from uniportrait_lite.pipelines import untempered
from uniportrait_lite.provenance import origin, tell
from uniportrait_lite.toyworld import Scene, captions
from uniportrait_lite.toyworld.factors import IDENTITY, SCENE
from uniportrait_lite.toyworld.pretrain.reader import CHOICES, shows

SMALL = ("eye_color", "eye_shape", "brows", "expression")  # factors that few pixels of a face show
NOISE_GUIDANCE = 2.0
UNSPOKEN = ("none", "neutral", "young")  # values that captions seldom say


def noise(lab: Lab) -> list[Figure]:
    """Real portraits, noised up to some timestep and drawn again from there, told all that a caption can say.

    Says in which part of denoising what is decided, and how well the model does that part.
    """
    pipe = StableDiffusionImg2ImgPipeline.from_pipe(pipeline(lab.folder / "sd"))
    pipe.scheduler = DDPMScheduler.from_config(untempered(pipe.scheduler.config))  # steps of one size: shares of noise
    people = lab.people(9400, lab.count(60))
    bare = {"style": "photo", "hat": "none", "glasses": "none"}
    scenes = [lab.world.portrait(p, lab.scene_seed(n, 4), **bare) for n, p in enumerate(people)]
    prompts = [
        captions.caption(**description(scene), seed=lab.scene_seed(n, 3), detail="full")
        for n, scene in enumerate(scenes)
    ]
    asked = [{name: value for name, value in facts(scene).items() if name in SMALL} for scene in scenes]
    pictures, landmarks = arrays(scenes)
    real, figures = lab.witnesses.embed_at(pictures, landmarks), []
    for share in (0.1, 0.3, 0.5, 1.0):
        images = []
        for start in range(0, len(scenes), lab.batch):
            part = slice(start, start + lab.batch)
            seeds = [torch.Generator().manual_seed(lab.seed * 100_000 + n) for n in range(len(scenes))[part]]
            images += pipe(
                prompts[part], image=[scene.image for scene in scenes[part]], strength=share, generator=seeds,
                num_inference_steps=lab.knobs.steps, guidance_scale=NOISE_GUIDANCE,
            ).images  # fmt: skip
        again = lab.witnesses.embed_at(np.stack([np.asarray(image) for image in images]), landmarks)
        small = metrics.followed(lab.witnesses.reader.read(images), asked)
        each = ", ".join(f"{name} {small[name]:.2f}" for name in SMALL)
        figures += [
            Figure(f"noise {share:.0%}: like the picture", float((again * real).sum(1).mean()), None, "mean cosine"),
            Figure(f"noise {share:.0%}: small things kept", small["all"], None, f"{len(scenes)} pictures; {each}"),
        ]
    return figures


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
    shown = verdicts(rows[:24])
    tell(shown, prompt="; ".join(prompts[:24]), base=origin(lab.folder / "sd"))
    save_picture(shown, lab.out / "stack_text.png")
    return figures + _groups(lab, pipe)


def _told(lab: Lab, scenes: Sequence[Scene], images: Sequence[Image.Image]) -> list[Figure]:
    """How near pictures made from descriptions are to the real ones described: one by one, and all together."""
    described = lab.witnesses.embed_at(*arrays(scenes))
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
        shown = sheet(["", ""], rows[:12])
        tell(shown, base=origin(lab.folder / "sd"))
        save_picture(shown, lab.out / f"stack_groups_{size}.png")
    return figures


def _drawn(lab: Lab, pipe: DiffusionPipeline, prompts: Sequence[str], width: int = 128) -> list[Image.Image]:
    wishes = [Wish(prompt, lab.seed * 100_000 + n) for n, prompt in enumerate(prompts)]
    batch = max(1, lab.batch * 128 // width)
    with tqdm(total=len(wishes), unit="picture") as bar:
        return without_identity(pipe, wishes, lab.knobs, batch, bar.update, height=128, width=width)


def description(scene: Scene) -> dict:
    """A scene as `captions.caption` takes it."""
    around = {name: getattr(scene, name) for name in SCENE}
    return {"people": [f.person for f in scene.faces], "faces": [f.attributes for f in scene.faces], **around}


def facts(scene: Scene) -> dict[str, str]:
    """All that is true of a portrait: values by factor."""
    face = scene.faces[0]
    values = {name: getattr(face.person, name) for name in IDENTITY} | face.attributes
    return values | {name: getattr(scene, name) for name in SCENE}


def spoken(scene: Scene, seed: int) -> dict[str, str]:
    """What a prompt of full length says of a portrait: values by factor, drawn from all that the picture shows.

    Factors are taken in a random order until the next would make the prompt longer than the text encoder reads.
    """
    values = facts(scene)
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
