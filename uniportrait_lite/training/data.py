"""Samples of both stages: latents, face features and captions of drawn scenes, kept on disk."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from uniportrait_lite.features import FaceFeatures
from uniportrait_lite.toyworld import captions, sentences, wording
from uniportrait_lite.toyworld.pretrain import data as world
from uniportrait_lite.toyworld.pretrain.latents import load_latents
from uniportrait_lite.toyworld.pretrain.noisy import feature_boxes
from uniportrait_lite.toyworld.pretrain.recognition import crop, numpy_rng
from uniportrait_lite.training.store import Store, digest

CROP = 224  # pixels of an aligned face
JITTER = 0.01  # of the face's width: how far landmarks are moved before a crop, as a detector would miss them
CAPTIONS = 4  # different captions kept of each scene
DETAILS = {"scene": 0.70, "short": 0.15, "full": 0.15}  # identity has to come from the ID tokens, text gives the rest


@dataclass
class Batch:
    """One training batch of B samples with N identities each, in any order.

    latents and noise float32 (B,c,h,w); timesteps int64 (B,); text token ids int64 (B,48); F_r (B,N,L_r,C_r) and F_s
    (B,N,L_s,C_s), nearly all of a batch, float16 as they are stored; boxes float32 (B,N,4), left, top, right and bottom
    of the faces in shares of the picture, and features (B,N,4), of what lies around brows, eyes, nose and mouth; active
    bool (B,), whether the ID branch is on; temperature (), that of the routing's noise; sentences token ids (B,N,48),
    what is said of each identity alone, and said bool (B,N), of whom something is.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    text: Tensor
    intrinsic: Tensor
    structure: Tensor
    boxes: Tensor
    features: Tensor
    active: Tensor
    temperature: Tensor | None = None
    sentences: Tensor | None = None
    said: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in tensors.items() if v is not None})

    def pin_memory(self) -> "Batch":
        """The same batch where CUDA copies from without waiting; torch's loader calls this."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.pin_memory() for k, v in tensors.items() if v is not None})


class SceneData:
    """What the frozen networks make of a rendered set of scenes with n faces each, and draws from it.

    `folders` are those of `vae`, `backbone`, `clip` and `tokenizer`, `drawn_by` the file of another world than the toy
    world. Latents depend on the VAE's encoder, the store
    `faces` on backbone and CLIP, the store `captions` on the tokenizer and the wording, each by a digest of its own:
    new weights of one leave the others' arrays in use, and no stale array is ever read.
    """

    def __init__(
        self, name: str, count: int, features: FaceFeatures, tokenizer, folders: dict[str, Path], drawn_by: str = ""
    ):
        self.scenes = world.load_scenes(name, count, drawn_by)
        self.features, self.tokenizer, self.folders = features, tokenizer, folders
        self.latents = load_latents(self.scenes, folders["vae"])
        drawn = [world.set_digest(self.scenes.spec, drawn_by), world.CHUNK, "(scene, face)"]
        worded = [*(Path(module.__file__) for module in (captions, sentences, wording)), CAPTIONS, DETAILS]
        faces = digest(*drawn, CROP, JITTER, *weights(folders["backbone"]), *weights(folders["clip"]))
        texts = digest(*drawn, *worded, *sorted(folders["tokenizer"].glob("*.json")))
        self.faces = Store(world.CACHE / f"faces-{name}-{faces}", self._faces, world.CHUNK).fill(len(self))
        self.texts = Store(world.CACHE / f"captions-{name}-{texts}", self._texts, world.CHUNK).fill(len(self))
        self.people = self.scenes.person.ravel()  # of face k of scene i at i * n + k: a face's number
        self._order = np.argsort(self.people, kind="stable")

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def per_scene(self) -> int:
        """n, the faces of a scene."""
        return self.scenes.spec.faces

    def draw(self, generator: torch.Generator, size: int, swap: float) -> dict[str, np.ndarray]:
        """Which scenes (B,) a batch shows, the numbers (B,n) of their faces in some order, whose F_r each of these gets
        (with probability `swap` that of another picture of the person), and which caption (B,)."""
        rng = numpy_rng(generator)
        scene = rng.integers(len(self), size=size)
        order = rng.permuted(np.tile(np.arange(self.per_scene), (size, 1)), axis=1)
        face = scene[:, None] * self.per_scene + order
        source = face.copy()
        for place in np.argwhere(rng.random(face.shape) < swap):
            others = self.pictures_of(self.people[face[*place]])
            others = others[others != face[*place]]
            if len(others):
                source[*place] = rng.choice(others)
        return {"scene": scene, "face": face, "source": source, "caption": rng.integers(CAPTIONS, size=size)}

    def pictures_of(self, person: int) -> np.ndarray:
        """The numbers of the faces that show the person of that seed."""
        start, end = np.searchsorted(self.people, [person, person + 1], sorter=self._order)
        return self._order[start:end]

    def read(self, drawn: dict[str, np.ndarray], cached: bool = True) -> dict[str, Tensor]:
        """The arrays of a draw by their names in `Batch`; without `cached` made anew, to see what storing brings."""
        scene, face, source = drawn["scene"], drawn["face"], drawn["source"]
        if cached:
            parts = {
                "latents": self.latents[scene],
                "intrinsic": self._stored("intrinsic", source),
                "structure": self._stored("structure", face),
                "text": self.texts.rows("text", scene),
            }
        else:
            parts = {**self._encode(scene), **self._texts(scene), **self._features(self.crops(face.ravel()))}
            if (source != face).any():
                parts["intrinsic"] = self._features(self.crops(source.ravel()))["intrinsic"]
            for name in ("intrinsic", "structure"):
                parts[name] = parts[name].reshape(*face.shape, *parts[name].shape[1:])
        parts["text"] = parts["text"][np.arange(len(scene)), drawn["caption"]]
        size = np.float32([self.scenes.spec.width, 128] * 2)
        parts["boxes"] = self.scenes.boxes.reshape(-1, 4)[face] / size
        parts["features"] = feature_boxes(self.scenes.landmarks.reshape(-1, 5, 2)[face]) / size
        kinds = {"text": np.int64, "intrinsic": np.float16, "structure": np.float16}
        return {k: torch.from_numpy(v.astype(kinds.get(k, np.float32), copy=False)) for k, v in parts.items()}

    def sentences(self, drawn: dict[str, np.ndarray]) -> Tensor:
        """Token ids (B,n,48) of what may be said of each face's person alone; scenes of several have such words."""
        scene, order = drawn["scene"], drawn["face"] - drawn["scene"][:, None] * self.per_scene
        rows = self.texts.rows("sentences", scene)[np.arange(len(scene)), drawn["caption"]]  # (B,n,48), left to right
        return torch.from_numpy(np.take_along_axis(rows, order[..., None], axis=1).astype(np.int64))

    def intrinsic(self, faces: np.ndarray) -> np.ndarray:
        """Stored F_r (B,L_r,C_r) of faces by their numbers (B,)."""
        return self._stored("intrinsic", faces[:, None])[:, 0]

    def _stored(self, name: str, faces: np.ndarray) -> np.ndarray:
        """Stored features (B,n,L,C) of faces by their numbers (B,n)."""
        scenes, places = np.divmod(faces.ravel(), self.per_scene)
        rows = self.faces.rows(name, scenes, places)
        return rows.reshape(*faces.shape, *rows.shape[1:])

    def crops(self, faces: Sequence[int]) -> np.ndarray:
        """Aligned faces uint8 (B,224,224,3) by the true landmarks, moved a little: always the same for a face."""
        faces = np.asarray(faces)
        boxes, landmarks = self.scenes.boxes.reshape(-1, 4)[faces], self.scenes.landmarks.reshape(-1, 5, 2)[faces]
        width = (boxes[:, 2] - boxes[:, 0])[:, None, None]
        moved = [np.random.Generator(np.random.PCG64([int(i), 5])).normal(0, JITTER, (5, 2)) for i in faces]
        return crop(self.scenes.images(faces // self.per_scene), landmarks + width * np.stack(moved), CROP)

    # --- what is stored ------------------------------------------------------------------------------------------
    def _faces(self, scenes: Sequence[int]) -> dict[str, np.ndarray]:
        """F_r and F_s (B,n,L,C) of all faces of some scenes."""
        faces = np.asarray(scenes)[:, None] * self.per_scene + np.arange(self.per_scene)
        found = self._features(self.crops(faces.ravel()))
        return {name: values.reshape(*faces.shape, *values.shape[1:]) for name, values in found.items()}

    def _features(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        """F_r and F_s (B,L,C) of crops."""
        found = self.features(self._pixels(crops))
        return {"intrinsic": _half(found.intrinsic), "structure": _half(found.structure)}

    def _texts(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """The token ids of `CAPTIONS` captions of each scene, and of several people's, as often, a sentence on each."""
        texts, sentences = [], []
        for index in map(int, indices):
            rng = np.random.Generator(np.random.PCG64([index, 7]))
            for detail in rng.choice(list(DETAILS), CAPTIONS, p=list(DETAILS.values())):
                texts.append(self.scenes.caption(index, int(rng.integers(2**31)), str(detail)))
            shown = self.scenes.description(index)
            for _ in range(CAPTIONS if self.per_scene > 1 else 0):
                for person, face in zip(shown["people"], shown["faces"], strict=True):
                    sentences.append(captions.sentence(person, face, shown["style"], int(rng.integers(2**31))))
        found = {"text": self._ids(texts).reshape(len(indices), CAPTIONS, -1)}
        if sentences:
            found["sentences"] = self._ids(sentences).reshape(len(indices), CAPTIONS, self.per_scene, -1)
        return found

    def _ids(self, texts: list[str]) -> np.ndarray:
        return tokenize(self.tokenizer, texts).numpy().astype(np.int32)

    @torch.no_grad()
    def _encode(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        latents = self._vae.encode(self._pixels(self.scenes.images(indices)) * 2 - 1).latent_dist.mean
        return {"latents": _half(latents * self._vae.config.scaling_factor)}

    @cached_property
    def _vae(self) -> AutoencoderKL:
        vae = AutoencoderKL.from_pretrained(self.folders["vae"], torch_dtype=torch.float32)
        return vae.to(next(self.features.parameters()).device)

    def _pixels(self, images: np.ndarray) -> Tensor:
        device = next(self.features.parameters()).device
        return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255


def tokenize(tokenizer, texts: list[str]) -> Tensor:
    """Texts -> token ids (B, model_max_length), padded and cut as diffusers' pipelines do it."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def weights(folder: Path) -> list[Path]:
    """The files of a model's folder that decide what it computes."""
    return sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")])


def _half(x: Tensor) -> np.ndarray:
    return x.to(torch.float16).cpu().numpy()
