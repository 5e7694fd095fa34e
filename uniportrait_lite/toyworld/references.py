"""The people of `data/faces`, on whom no network was trained: `python -m uniportrait_lite.toyworld.references`."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from .people import Person
from .scenes import Scene, portrait, reference
from .splits import HELD_OUT

SCALE = 2  # 256 x 256: a photo is larger than what the face is cut to
PEOPLE = {"ann": HELD_OUT[50_039], "bob": HELD_OUT[50_044], "cleo": HELD_OUT[50_021], "dan": HELD_OUT[50_041]}

FIRST_SEED = 17  # with it nobody wears glasses on the first picture, and the places differ


def reference_scene(name: str, number: int) -> Scene:
    """Picture `number` (0 or 1) of one of `PEOPLE`: a reference scene at twice the size."""
    return enlarged(reference(Person.random(PEOPLE[name]), PEOPLE[name] + FIRST_SEED + number), SCALE)


def enlarged(scene: Scene, scale: int, portrait: Callable[..., Scene] = portrait) -> Scene:
    """The same portrait, drawn by its world's `portrait` on `scale` times as many pixels a side."""
    face, place = scene.faces[0], {"background": scene.background, "style": scene.style, "light": scene.light}
    return portrait(face.person, scene.seed, scale=scale, **place, **face.attributes)


def write_reference_faces(folder: str | Path) -> list[Path]:
    """Write two pictures of each of `PEOPLE`, NAME.png and NAME_2.png; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in PEOPLE:
        for number, file in enumerate((f"{name}.png", f"{name}_2.png")):
            temporary = folder / f".{file}.tmp"
            reference_scene(name, number).image.save(temporary, format="PNG", optimize=True)
            os.replace(temporary, folder / file)
            paths.append(folder / file)
    return paths


def main() -> None:
    """Write them into the folder of the command line, `data/faces` where none is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="data/faces")
    for path in write_reference_faces(parser.parse_args().folder):
        print(path)


if __name__ == "__main__":
    main()
