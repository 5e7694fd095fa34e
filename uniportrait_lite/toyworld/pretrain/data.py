"""Rendered scenes on disk, so that trainings read pictures instead of drawing them again every epoch.

A set is named by what it holds and by a digest of the drawing code: after a change of the world its old pictures are
never used by mistake. Sets grow by whole chunks, each written atomically, so a killed rendering goes on where it was.
"""

import hashlib
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from uniportrait_lite.toyworld import captions, factors, splits
from uniportrait_lite.toyworld.worlds import world as world_of

CACHE = Path("runs/cache")
CHUNK = 1000
FACE_KEYS, SCENE_KEYS = tuple(factors.FACE_SCENE), tuple(factors.SCENE)


@dataclass(frozen=True)
class SceneSet:
    """What a set draws: scene i shows `faces` of `people`, walking through them so that any prefix is balanced."""

    name: str
    people: range
    faces: int = 1

    @property
    def width(self) -> int:
        """The canvas in pixels: faces keep their size, so groups get wider pictures."""
        return 64 * (self.faces + 1)

    def who(self, index: int) -> list[int]:
        """The seeds of the people in scene `index`."""
        if self.faces == 1:
            return [self.people[index % len(self.people)]]
        rng = np.random.Generator(np.random.PCG64([len(self.name), index]))
        return [self.people[k] for k in rng.choice(len(self.people), self.faces, replace=False)]


SETS = {
    s.name: s
    for s in (
        SceneSet("portraits", splits.TRAIN[:4000]),
        SceneSet("pairs", splits.TRAIN[:4000], 2),
        SceneSet("trios", splits.TRAIN[:4000], 3),
        SceneSet("quartets", splits.TRAIN[:4000], 4),
        SceneSet("quintets", splits.TRAIN[:4000], 5),
        SceneSet("judge", splits.JUDGE[:3000]),
        SceneSet("unseen", splits.HELD_OUT[1000:1300]),
        SceneSet("unseen_trios", splits.HELD_OUT[1000:1300], 3),
    )
}


@dataclass
class Scenes:
    """A rendered set. N scenes of n faces.

    images uint8 (N,128,W,3); person int (N,n), seeds of people; landmarks float32 (N,n,5,2) and boxes (N,n,4) in
    pixels; face int (N,n,7) and scene int (N,3), positions in the tables of `factors`.
    """

    spec: SceneSet
    chunks: list[Path]
    world: str = ""  # the file of another world than the toy world, see `worlds.world`

    def _field(self, name: str) -> np.ndarray:
        return np.concatenate([np.load(c / f"{name}.npy") for c in self.chunks])

    def __len__(self) -> int:
        return CHUNK * len(self.chunks)

    @cached_property
    def _images(self) -> list[np.ndarray]:
        return [np.load(c / "images.npy", mmap_mode="r") for c in self.chunks]

    def images(self, indices) -> np.ndarray:
        """The pictures at `indices`, uint8 (B,128,W,3)."""
        return np.stack([self._images[i // CHUNK][i % CHUNK] for i in map(int, indices)])

    person = cached_property(lambda self: self._field("person"))
    landmarks = cached_property(lambda self: self._field("landmarks"))
    boxes = cached_property(lambda self: self._field("boxes"))
    face = cached_property(lambda self: self._field("face"))
    scene = cached_property(lambda self: self._field("scene"))

    def description(self, index: int) -> dict:
        """The scene's people and attributes by name, as `captions.caption` takes them."""
        faces = [
            {key: factors.FACE_SCENE[key][v] for key, v in zip(FACE_KEYS, row, strict=True)} for row in self.face[index]
        ]
        scene = {k: factors.SCENE[k][v] for k, v in zip(SCENE_KEYS, self.scene[index], strict=True)}
        return {"people": [_person(self.world, int(s)) for s in self.person[index]], "faces": faces, **scene}

    def caption(self, index: int, seed: int, detail: str | None = None) -> str:
        """A caption of scene `index`; another seed words it otherwise."""
        return captions.caption(**self.description(int(index)), seed=seed, detail=detail)


@lru_cache(maxsize=20_000)
def _person(world: str, seed: int):
    return world_of(world).Person.random(seed)


def load_scenes(name: str, count: int, world: str = "", workers: int | None = None) -> Scenes:
    """The first `count` scenes of the set `name` (rounded up to whole chunks), rendered where they are not yet.

    `world` is the file of another world than the toy world, see `worlds.world`.
    """
    spec = SETS[name]
    folder = CACHE / f"{name}-{set_digest(spec, world)}"
    chunks = [folder / f"{k:03d}" for k in range(-(-count // CHUNK))]
    missing = [k for k, chunk in enumerate(chunks) if not chunk.exists()]
    if missing:
        from tqdm import tqdm

        folder.mkdir(parents=True, exist_ok=True)
        draw = partial(_render, spec, world, folder, CHUNK)
        with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
            results = pool.map(draw, missing) if len(missing) > 1 else map(draw, missing)
            list(tqdm(results, total=len(missing), desc=f"drawing {name}"))
    return Scenes(spec, chunks, world)


@lru_cache
def world_digest(world: str = "") -> str:
    """Eight hex digits that change when the drawing code does (as it was when this process began)."""
    digest = hashlib.sha256()
    for path in world_of(world).source:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def set_digest(spec: SceneSet, world: str = "") -> str:
    """Eight hex digits that change when the drawing code or whom the set shows does."""
    return hashlib.sha256(f"{spec} {world_digest(world)}".encode()).hexdigest()[:8]


def _render(spec: SceneSet, world: str, folder: Path, size: int, chunk: int):
    fields: dict[str, list] = {k: [] for k in ("images", "person", "landmarks", "boxes", "face", "scene")}
    for index in range(chunk * size, (chunk + 1) * size):
        scene = world_of(world).group([_person(world, s) for s in spec.who(index)], seed=index)
        fields["images"].append(scene.pixels)
        fields["person"].append([face.person.seed for face in scene.faces])
        fields["landmarks"].append([face.landmarks for face in scene.faces])
        fields["boxes"].append([face.box for face in scene.faces])
        fields["face"].append([[factors.FACE_SCENE[k].index(f.attributes[k]) for k in FACE_KEYS] for f in scene.faces])
        fields["scene"].append([factors.SCENE[k].index(getattr(scene, k)) for k in SCENE_KEYS])
    kinds = {"images": np.uint8, "landmarks": np.float32, "boxes": np.float32}
    temporary = folder / f"{chunk:03d}.tmp{os.getpid()}"
    temporary.mkdir(exist_ok=True)
    for name, values in fields.items():
        np.save(temporary / f"{name}.npy", np.asarray(values, kinds.get(name, np.int32)))
    if not (folder / f"{chunk:03d}").exists():
        os.replace(temporary, folder / f"{chunk:03d}")


world_digest()  # now, while the files are what was imported
