"""The compose protocol: identities beside the field's other tools, and what each costs the other."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import ControlNetModel, DiffusionPipeline, StableDiffusionControlNetPipeline
from PIL import Image
from tqdm import tqdm

from uniportrait_lite import compose, controls
from uniportrait_lite.adapter import Identity, UniPortrait
from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.evaluation import metrics
from uniportrait_lite.evaluation.portraits import pipeline
from uniportrait_lite.evaluation.report import check_folder, markdown, sheet, write_json, write_text
from uniportrait_lite.evaluation.subjects import Prompt, Subject, read_prompts, subjects
from uniportrait_lite.evaluation.witnesses import Witnesses
from uniportrait_lite.folders import data_folder, prompts_file
from uniportrait_lite.image_prompt import clip_view
from uniportrait_lite.pictures import save_picture
from uniportrait_lite.provenance import gathered, tell
from uniportrait_lite.quiet import no_advice
from uniportrait_lite.toyworld.factors import STYLES
from uniportrait_lite.toyworld.pretrain.record import hardware
from uniportrait_lite.toyworld.worlds import world

TOOLS = {  # ControlNets, and the `controlnet_conditioning_scale` of each
    "none": ((), 1.0), "pose": (("pose",), 1.0), "pose, at 0.5": (("pose",), 0.5),
    "edges": (("edges",), 1.0), "edges, at 0.6": (("edges",), 0.6),
    "pose and edges": (("pose", "edges"), 1.0), "pose and edges, at 0.4": (("pose", "edges"), 0.4),
}  # fmt: skip
LOOKS = {  # the way to a look -> what draws the pictures that have it; None: the profile's own world
    "image prompt": None, "style transfer": None, "style LoRA": "glass.py", "style LoRA, at 0.7": "glass.py",
    "another base": "dusk.py",
}  # fmt: skip
LORAS = {"style LoRA": 1.0, "style LoRA, at 0.7": 0.7}  # the weight for `set_adapters`
TOLD = ("masks", "columns", "routers")  # who is where: halves of the picture; the default; routers from the first step
PLAIN = "a person"
IMAGE_SCALE = 0.6  # of image prompts here
ASKED = ("place", "style")  # prompts of data/prompts/identity.json
_DESCRIPTION = """\
Draws people whom no network was trained on, each with conditions taken from a scene of somebody else, with and without
identity, and measures:
  similar    the judge's similarity to the person's reference; "kept" is the share of it that is left beside the tool
  pose       mean distance of the found landmarks from the condition's, in widths of the condition's face
  edges      agreement of the picture's edges with the condition's: F1, one pixel off is no mistake
  in place   of two people with a pose each: pictures in which each pose has the person who was asked for there, by
             masks, by columns and then routers (the default), by routers alone
of pictures in the look of another one (by an image prompt, style transfer, a style LoRA, another base model):
  look       cosine of CLIP's embeddings of the picture and of the one with the look; "plain" is the same for a picture
             of that person by the same prompt and noise without the look, and "kept" what is left of its similarity
  seconds    for a picture, drawn one by one: the median; "seconds without" is that without the look
and, of faces swapped in real pictures, similarity to the new person, and the largest change outside the mask. Writes
compose.md, compose.json and contact sheets into --out.
"""


@dataclass(frozen=True)
class Wanted:
    """A picture to draw: its prompt, who should be in it, and the scene of somebody else that gives the conditions."""

    prompt: Prompt
    who: int
    scene: object
    seed: int


def edge_agreement(a: np.ndarray, b: np.ndarray) -> float:
    """F1 of two edge maps (H,W), bool: shares of each that lie within a pixel of the other."""
    near = [cv2.dilate(x.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0 for x in (a, b)]
    precision, recall = (x[y].mean() if y.any() else 0.0 for x, y in ((near[1], a), (near[0], b)))
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def pose_errors(found: Sequence, scene) -> list[float]:
    """Of each face of the scene the distance, in its widths, of the nearest found face's landmarks from its own."""
    errors = []
    for face in scene.faces if found else ():
        away = [np.linalg.norm(other.landmarks - face.landmarks, axis=1).mean() for other in found]
        errors.append(min(away) / (face.box[2] - face.box[0]))
    return errors


def conditions(scene, kinds: Sequence[str]) -> list[Image.Image]:
    """The condition images of a scene, by kind."""
    made = {
        "pose": lambda: controls.pose([face.landmarks for face in scene.faces], scene.image.size),
        "edges": lambda: controls.edges(scene.pixels),
    }
    return [made[kind]() for kind in kinds]


def controlled(pipe: DiffusionPipeline, folder: Path, kinds: Sequence[str]) -> DiffusionPipeline:
    """The pipeline with the ControlNets of these kinds; `WeightsError` where they are missing."""
    if not kinds:
        return pipe
    for kind in kinds:
        if not (folder / "controlnet" / kind / "config.json").is_file():
            raise WeightsError(f"no {folder / 'controlnet' / kind}: train it with `pretrain {kind}`")
    nets = [ControlNetModel.from_pretrained(folder / "controlnet" / kind).to(pipe.device) for kind in kinds]
    found = StableDiffusionControlNetPipeline(
        **pipe.components, controlnet=nets if len(nets) > 1 else nets[0], requires_safety_checker=False
    )
    found.set_progress_bar_config(disable=True)
    return found


class Protocol:
    """One run: people, what is wanted of them, and who looks at it."""

    def __init__(self, folder: Path, people: Sequence[Subject], prompts: Sequence[Prompt], witnesses: Witnesses):
        self.folder, self.people, self.witnesses = folder, people, witnesses
        self.pipe = pipeline(folder / "sd")

        def posed(who: Sequence[int], seed: int):
            """Some people, heads turned and tilted as far as one seldom sees them, one by one the other way."""
            turn = [0.8 * (-1) ** (seed // 2 + k) for k in range(len(who))]
            tilt = [12.0 * (-1) ** (seed + k) for k in range(len(who))]
            drawn = [people[n % len(people)].person for n in who]
            return witnesses.world.group(drawn, seed, style="photo", hat="none", glasses="none", turn=turn, tilt=tilt)

        self.wanted = [
            Wanted(prompt, n, posed([n + 1 + k], 7000 + 10 * n + k), n + k)
            for n in range(len(people))
            for k, prompt in enumerate(prompts)
        ]
        self.pairs = [((n, (n + 1) % len(people)), posed([n + 2, n + 3], 8000 + n)) for n in range(len(people))]
        self.references = np.stack([subject.face.embedding for subject in people])

    def identities(self, up: UniPortrait) -> list[Identity]:
        """The people, from their references."""
        return [up.identity_of_crops([subject.face.crop]) for subject in self.people]

    def tool(self, kinds: Sequence[str], scale: float, with_identity: bool) -> tuple[dict, list[Image.Image]]:
        """Figures and pictures of single people beside some ControlNets, each at that conditioning scale."""
        up = UniPortrait.attach(controlled(self.pipe, self.folder, kinds), self.folder / "uniportrait")
        try:
            known = self.identities(up)

            def draw(want: Wanted) -> Image.Image:
                given = {}
                if hints := conditions(want.scene, kinds):
                    given = {"image": hints, "controlnet_conditioning_scale": [scale] * len(hints)}
                if len(hints) == 1:  # as diffusers wants it of a single ControlNet
                    given = {name: each[0] for name, each in given.items()}
                who = [known[want.who]] if with_identity else []
                return up(want.prompt.text, who, seed=want.seed, height=128, width=128, **given).images[0]

            images, seconds = _timed(draw, self.wanted, " and ".join(kinds) or "none")
        finally:
            up.detach()
        own = metrics.cosines(self.witnesses.embeddings(images), self.references)
        errors = [
            pose_errors(self.witnesses.faces.detect(i), w.scene) for i, w in zip(images, self.wanted, strict=True)
        ]
        agreement = [
            edge_agreement(_edges(image), _edges(want.scene.image))
            for image, want in zip(images, self.wanted, strict=True)
        ]
        asked = [want.prompt.attributes for want in self.wanted]
        figures = {
            "similar": float(own[np.arange(len(images)), [w.who for w in self.wanted]].mean())
            if with_identity
            else None,
            "faces": float(np.mean([bool(e) for e in errors])),
            "pose": float(np.mean([e for each in errors for e in each])) if any(errors) else None,
            "edges": float(np.mean(agreement)),
            "followed": metrics.followed(self.witnesses.reader.read(images), asked)["all"],
            "seconds": seconds,
        }
        return figures, images

    def in_place(self, told: str) -> tuple[dict, list[Image.Image]]:
        """Two people with a pose each, the first of them to the left; `told`, one of `TOLD`, says who is where."""
        up = UniPortrait.attach(controlled(self.pipe, self.folder, ["pose"]), self.folder / "uniportrait")
        try:
            known, images, right = self.identities(up), [], []
            for seed, (who, scene) in enumerate(tqdm(self.pairs, unit="picture", desc="two")):
                width = scene.image.width
                halves = [(0, 0, width // 2, 128), (width // 2, 0, width, 128)]
                given = {"image": conditions(scene, ["pose"])[0], "masks": halves if told == "masks" else None}
                given["columns"] = 0 if told == "routers" else None
                people = [known[n] for n in who]
                images.append(up("two people", people, seed=seed, height=128, width=width, **given).images[0])
                found = self.witnesses.faces.detect(images[-1])
                at = [_nearest(found, face) for face in scene.faces]
                alike = [None if f is None else self.references[list(who)] @ f.embedding for f in at]
                right.append(all(a is not None and a.argmax() == k for k, a in enumerate(alike)))
        finally:
            up.detach()
        return {"in_place": float(np.mean(right))}, images

    def look(self, way: str, other_base: Path) -> tuple[dict, list[Image.Image], list[Image.Image]]:
        """Figures of people in the look of a picture, these pictures, and those that have the look."""
        adapter, lora = (
            self.folder / "ip_adapter" / "ip-adapter.safetensors",
            self.folder / "lora" / "glass.safetensors",
        )
        files = {"image prompt": adapter, "another base": other_base / "model_index.json"}
        needed = lora if way in LORAS else files.get(way)
        if needed is not None and not needed.is_file():
            raise WeightsError(f"there is no {needed}")
        artist = self.witnesses.world if LOOKS[way] is None else world(str(data_folder().parent / "looks" / LOOKS[way]))
        known, shown = range(len(self.people)), []
        for n in known:
            style = STYLES[1:][n % 5] if LOOKS[way] is None else "photo"
            person = self.people[(n + 1) % len(known)].person
            shown.append(artist.portrait(person, 9000 + n, style=style).image)
        up = UniPortrait.attach(
            self.pipe, self.folder / "uniportrait", ip_adapter=needed if needed == adapter else None
        )
        try:
            people = self.identities(up)
            plain, without = _timed(lambda n: up(PLAIN, people[n], seed=n).images[0], known, f"before {way}")
            if way in LORAS:
                with no_advice():
                    up.pipe.load_lora_weights(str(lora.parent), weight_name=lora.name, adapter_name="look")
                up.pipe.set_adapters("look", LORAS[way])
            elif way == "another base":
                up.detach()
                up = UniPortrait.attach(pipeline(other_base), self.folder / "uniportrait")
            draw = {
                "style transfer": lambda n: compose.in_style(up, PLAIN, shown[n], people[n], seed=n),
                "image prompt": lambda n: up(
                    PLAIN, people[n], seed=n, image_prompt=shown[n], image_scale=IMAGE_SCALE
                ).images[0],
            }.get(way, lambda n: up(PLAIN, people[n], seed=n).images[0])
            images, seconds = _timed(draw, known, way)
            seen = [_seen(up, pictures) for pictures in (images, plain, shown)]
        finally:
            up.detach()
            if "look" in getattr(self.pipe.unet, "peft_config", {}):
                self.pipe.delete_adapters("look")
        alike = [metrics.cosines(self.witnesses.embeddings(x), self.references).diagonal() for x in (images, plain)]
        similar, alone = (float(x.mean()) for x in alike)
        found, before = (float((x * seen[2]).sum(-1).mean()) for x in seen[:2])
        figures = {"similar": similar, "kept": similar / alone, "look": found, "plain": before}
        return {**figures, "seconds": seconds, "without": without}, images, shown

    def swapped(self) -> tuple[dict, list[Image.Image]]:
        """Faces of real pictures replaced by other people's, by inpainting."""
        up = UniPortrait.attach(self.pipe, self.folder / "uniportrait")
        try:
            known, images, changed = self.identities(up), [], []
            for number, subject in enumerate(tqdm(self.people, unit="picture", desc="swapped")):
                new = known[(number + 1) % len(known)]
                mask = compose.face_mask(subject.reference, faces=self.folder / "face")
                images.append(compose.inpaint(up, "a photo of a person", subject.reference, mask, new, seed=number))
                away = np.abs(np.asarray(images[-1]).astype(int) - np.asarray(subject.reference))
                changed.append(int(away[np.asarray(mask) == 0].max()))
        finally:
            up.detach()
        alike = metrics.cosines(self.witnesses.embeddings(images), self.references)
        new, old = (np.roll(alike, shift, axis=1).diagonal().mean() for shift in (-1, 0))
        return {"similar": float(new), "to_the_old": float(old), "changed_outside": max(changed)}, images


def _timed(draw: Callable[[Any], Image.Image], wishes: Sequence, name: str) -> tuple[list[Image.Image], float]:
    """A picture for each wish, and the median of the seconds that one took."""
    images, seconds = [], []
    for wish in tqdm(wishes, unit="picture", desc=name):
        started = time.perf_counter()
        images.append(draw(wish))
        seconds.append(time.perf_counter() - started)
    return images, float(np.median(seconds))


def _seen(up: UniPortrait, images: Sequence[Image.Image]) -> np.ndarray:
    """CLIP's embeddings of pictures, of length 1: (N,D)."""
    pixels = torch.from_numpy(np.stack([clip_view(image) for image in images])).permute(0, 3, 1, 2)
    return torch.nn.functional.normalize(up.features.image_embedding(pixels / 255), dim=-1).numpy()


def _edges(image: Image.Image) -> np.ndarray:
    return np.asarray(controls.edges(image))[..., 0] > 0


def _nearest(found: Sequence, face):
    """The found face whose middle lies in the box of a scene's face, None where there is none."""
    left, top, right, bottom = face.box
    inside = [
        f for f in found
        if left <= (f.box[0] + f.box[2]) / 2 <= right and top <= (f.box[1] + f.box[3]) / 2 <= bottom
    ]  # fmt: skip
    return inside[0] if inside else None


def evaluate(protocol: Protocol, out: Path, other_base: Path) -> dict:
    """Runs all of it; writes what is known after each row; returns it."""
    result = {"people": len(protocol.people), "hardware": hardware(), "tools": [], "two": [], "looks": [], "absent": {}}

    def keep(name: str, images: Sequence[Image.Image], hints: Sequence[Image.Image]) -> None:
        shown = _sheet(images, hints)
        tell(shown, **gathered(images))
        save_picture(shown, out / f"compose_{name.replace(',', '').replace(' ', '_')}.png")
        write_json(result, out / "compose.json")
        write_text(compose_markdown(result), out / "compose.md")

    for name, (kinds, scale) in TOOLS.items():
        for identity in (False, True):
            try:
                figures, images = protocol.tool(kinds, scale, identity)
            except WeightsError as error:
                result["absent"][name] = str(error)
                break
            result["tools"].append({"tool": name, "identity": identity, **figures})
            shown = [conditions(w.scene, kinds)[-1] if kinds else w.scene.image for w in protocol.wanted]
            keep(f"{name}_{'identity' if identity else 'text'}", images, shown)
    for told in TOLD:
        try:
            figures, images = protocol.in_place(told)
        except WeightsError as error:
            result["absent"]["two people"] = str(error)
            break
        result["two"].append({"who": told, **figures})
        keep(f"two_{told}", images, [conditions(scene, ["pose"])[0] for _, scene in protocol.pairs])
    for way in LOOKS:
        try:
            figures, images, shown = protocol.look(way, other_base)
        except WeightsError as error:
            result["absent"][way] = str(error)
            continue
        result["looks"].append({"way": way, **figures})
        keep(way, images, shown)
    result["swapped"], images = protocol.swapped()
    keep("swapped", images, [subject.reference for subject in protocol.people])
    return result


def _sheet(images: Sequence[Image.Image], hints: Sequence[Image.Image]) -> Image.Image:
    """Six rows at most of four conditions, each with its picture; a last row that would not be full is left out."""
    shown = [cell for pair in zip(hints, images, strict=True) for cell in pair]
    rows = [[(image, "") for image in shown[k : k + 8]] for k in range(0, min(48, len(shown) // 8 * 8), 8)]
    return sheet([""] * 8, rows)


def compose_markdown(result: dict) -> str:
    """The report."""
    alone = next((row["similar"] for row in result["tools"] if row["tool"] == "none" and row["identity"]), None)
    rows = [
        (
            row["tool"], "yes" if row["identity"] else "no", row["similar"],
            row["similar"] / alone if row["similar"] is not None and alone else None,
            row["faces"], row["pose"], row["edges"], row["followed"], row["seconds"],
        )
        for row in result["tools"]
    ]  # fmt: skip
    header = ("ControlNet", "identity", "similar", "kept", "faces found", "pose", "edges", "followed", "seconds")
    lines = [f"# Composition: {result['people']} held-out people", f"On {result['hardware']}.", markdown(header, rows)]
    if result["looks"]:
        names = ("similar", "kept", "look", "plain", "seconds", "without")
        rows = [tuple(row[name] for name in ("way", *names)) for row in result["looks"]]
        header = ("in the look of a picture, by", *names[:-1], "seconds without")
        lines.append(markdown(header, rows))
    tables = len(lines)
    lines += [
        f"- two people, a pose each, who is where by {row['who']}: in place {row['in_place']:.3f}"
        for row in result["two"]
    ]
    if "swapped" in result:
        found = result["swapped"]
        lines.append(
            f"- faces swapped: similar to the new person {found['similar']:.3f}, to the old {found['to_the_old']:.3f}; "
            f"largest change outside the mask {found['changed_outside']} of 255"
        )
    lines += [f"- {name}: not measured, {why}" for name, why in result["absent"].items()]
    return "\n\n".join([*lines[:tables], "\n".join(lines[tables:])]) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m uniportrait_lite evaluate compose`."""
    args = _parser().parse_args(argv)
    folder = data_folder(args.profile)
    if not 4 <= args.people <= 500:
        raise ConfigError(f"--people is a number from 4 to 500, not {args.people}")
    prompts = [prompt for prompt in read_prompts(prompts_file("identity.json")) if prompt.name in ASKED]
    out, witnesses = check_folder(args.out), Witnesses(folder)
    protocol = Protocol(folder, subjects(args.people, prompts, witnesses), prompts, witnesses)
    result = evaluate(protocol, out, Path(args.other_base))
    print(compose_markdown(result))
    print(f"written to {out}: compose.md, compose.json, compose_*.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m uniportrait_lite evaluate compose",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--profile", default="tiny", help="tiny, or the folder of a profile of yours (default: tiny)")
    parser.add_argument("--people", type=int, default=20, metavar="N", help="how many people (default: 20)")
    parser.add_argument(
        "--other-base",
        default="runs/dusk/sd",
        metavar="FOLDER",
        help="another base model of the same kind (default: %(default)s, of data/looks/dusk.py)",
    )
    parser.add_argument("--out", default="outputs/compose", metavar="FOLDER", help="(default: %(default)s)")
    return parser
