"""A world whose faces are discs with dots, quick to draw: what a `world.py` of one's own looks like."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from uniportrait_lite.toyworld.factors import FACE_SCENE, SCENE

SKINS = {"pale": (250, 225, 205), "fair": (240, 200, 170), "tan": (205, 160, 120), "brown": (150, 105, 75),
         "dark": (95, 65, 50)}  # fmt: skip


@dataclass(frozen=True)
class Face:
    person: object
    box: tuple
    landmarks: np.ndarray
    attributes: dict


class Scene:
    def __init__(self, pixels, faces, place, seed):
        self.pixels, self.image, self.faces, self.seed = pixels, Image.fromarray(pixels), faces, seed
        self.background, self.style, self.light = (place[name] for name in ("background", "style", "light"))


def group(people, seed=0, *, scale=1, **fixed):
    rng = np.random.default_rng([seed, len(people)])
    place = {name: str(rng.choice(table)) for name, table in SCENE.items()} | {k: fixed[k] for k in SCENE if k in fixed}
    height, width = 128 * scale, 64 * (len(people) + 1) * scale
    shade = 40 + 25 * SCENE["background"].index(place["background"])
    pixels = np.full((height, width, 3), shade, np.uint8)
    y, x = np.mgrid[:height, :width]
    faces = []
    for number, person in enumerate(people):
        values = {name: str(rng.choice(table)) for name, table in FACE_SCENE.items()}
        values |= {name: fixed[name] for name in FACE_SCENE if name in fixed}
        middle = scale * np.array([64 * (number + 1), 64]) + scale * rng.uniform(-3, 3, 2)
        radius = scale * (26 + 4 * person.face_width)
        pixels[(x - middle[0]) ** 2 + (y - middle[1]) ** 2 < radius**2] = SKINS[person.skin]
        mouth = radius * (0.3 + 0.1 * person.mouth_width)
        points = [(-0.4, -0.25), (0.4, -0.25), (0, 0.1), (-mouth / radius, 0.45), (mouth / radius, 0.45)]
        landmarks = (middle + radius * np.array(points)).astype(np.float32)
        for at, color in zip(landmarks, [(40, 60, 160)] * 2 + [(120, 80, 60)] + [(170, 40, 50)] * 2, strict=True):
            pixels[(x - at[0]) ** 2 + (y - at[1]) ** 2 < (0.12 * radius) ** 2] = color
        box = (*(middle - radius), *(middle + radius))
        faces.append(Face(person, tuple(map(float, box)), landmarks, values))
    return Scene(pixels, faces, place, seed)
