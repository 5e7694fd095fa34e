"""Several pictures that belong together: stories in panels, and people who turn into each other."""

from __future__ import annotations

import os
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from uniportrait_lite.adapter import Identity, UniPortrait
from uniportrait_lite.assignment import Assignment
from uniportrait_lite.checks import number, whole
from uniportrait_lite.errors import ConfigError, PictureError
from uniportrait_lite.provenance import gathered, tell

GAP, LINE, FONT = 8, 16, 13  # pixels of a strip: between panels, of a line of caption, of its letters


@dataclass(frozen=True)
class Story:
    """The panels of a story, in order: prompts, pictures, and who is where in them (None where nobody should be)."""

    prompts: tuple[str, ...]
    images: tuple[Image.Image, ...]
    assignments: tuple[Assignment | None, ...]

    @property
    def everyone_once(self) -> tuple[bool, ...]:
        """Of each panel, whether everyone who should be there is, once, and nobody else."""
        return tuple(found is None or found.distinct for found in self.assignments)

    def strip(self, height: int = 256, captions: Sequence[str] | None = None) -> Image.Image:
        """The panels side by side, `height` pixels high, with a caption below each: the prompts, or those given."""
        height, captions = whole("height", height, 16), self.prompts if captions is None else tuple(captions)
        if len(captions) != len(self.images):
            raise ConfigError(f"{len(captions)} captions for {len(self.images)} panels: give each panel one")
        panels = [image.resize((image.width * height // image.height, height)) for image in self.images]
        font = ImageFont.load_default(FONT)
        letter = font.getlength("a portrait of somebody") / 22
        texts = [textwrap.wrap(text, max(8, int(p.width / letter))) for text, p in zip(captions, panels, strict=True)]
        lines = max(map(len, texts))
        size = (sum(p.width for p in panels) + GAP * (len(panels) + 1), height + 2 * GAP + lines * LINE)
        sheet = Image.new("RGB", size, "white")
        draw, left = ImageDraw.Draw(sheet), GAP
        for panel, text in zip(panels, texts, strict=True):
            sheet.paste(panel, (left, GAP))
            draw.multiline_text((left, height + GAP + 2), "\n".join(text), fill="black", font=font, spacing=LINE - FONT)
            left += panel.width + GAP
        tell(sheet, **gathered(self.images))
        return sheet


def story(
    up: UniPortrait,
    panels: Sequence[tuple[str, Sequence[Identity]]],
    *,
    seed: int = 0,
    distinct: bool = True,
    **settings: Any,
) -> Story:
    """The same people through a list of panels, each a prompt and the people in it, and a look at who is there.

    With `distinct` a panel is drawn again, a few times at most, where someone is missing or there twice. Panel k is
    drawn from `seed` + k; further settings are those of `UniPortrait.__call__`. Raises `ConfigError` for panels that
    are none.
    """
    panels = list(panels)
    if not panels or not all(isinstance(p, list | tuple) and len(p) == 2 and isinstance(p[0], str) for p in panels):
        raise ConfigError(
            'a story is a list of panels, each a prompt and its people: [("ann in the park", [ann]), ...]'
        )
    images, found = [], []
    for place, (prompt, people) in enumerate(panels):
        people = [people] if isinstance(people, Identity) else list(people or [])
        out = up(prompt, people, seed=seed + place, distinct=distinct and bool(people), **settings)
        images.append(out.images[0])
        if not people:
            found.append(None)
        else:
            found.append(out.assignment[0] if distinct else up.assignment(out.images[0], people))
    return Story(tuple(prompt for prompt, _ in panels), tuple(images), tuple(found))


def morph(
    up: UniPortrait,
    prompts: str | Sequence[str],
    people: Identity | Sequence[Identity],
    *,
    frames: int = 9,
    seed: int = 0,
    **settings: Any,
) -> list[Image.Image]:
    """Frames of one person turning into the next, or of one person through several prompts; all from the same noise.

    One prompt and people: on the way from each to the next the identity is mixed in equal steps (paper: ID
    interpolation), `frames` pictures in all, the first of the first person and the last of the last. One person and
    several prompts: a frame for each, an expression or an age, and `frames` says nothing. Further settings are those
    of `UniPortrait.__call__`.
    """
    people = [people] if isinstance(people, Identity) else list(people)
    if not isinstance(prompts, str):
        if len(people) != 1 or not prompts:
            raise ConfigError("several prompts are for one person, several people for one prompt")
        return [up(prompt, people[0], seed=seed, **settings).images[0] for prompt in prompts]
    if len(people) < 2 or whole("frames", frames, 2) < len(people):
        raise ConfigError("a way from person to person needs two of them, and a frame for each at least")
    images = []
    for frame in range(frames):
        at = frame * (len(people) - 1) / (frames - 1)
        first = min(int(at), len(people) - 2)
        between = people[first].mix(people[first + 1], at - first)
        images.append(up(prompts, between, seed=seed, **settings).images[0])
    return images


def save_animation(frames: Sequence[Image.Image], path: str | os.PathLike, seconds: float = 2.0) -> Path:
    """Frames of one size, there and back in `seconds`, over and over, as .gif or .webp, whole or not at all.

    Raises `PictureError` for another suffix or place, `ConfigError` for frames that cannot be animated.
    """
    path = Path(path).expanduser()
    kind = {".gif": "GIF", ".webp": "WEBP"}.get(path.suffix.lower())
    if kind is None:
        raise PictureError(f"{path.name!r} cannot move: give a name that ends in .gif or .webp")
    frames = [frame.convert("RGB") for frame in frames]
    if len(frames) < 2 or len({frame.size for frame in frames}) > 1:
        raise ConfigError("an animation has two frames at least, all of one size")
    loop = [*frames, *frames[-2:0:-1]]
    each = max(20, round(1000 * number("seconds", seconds, 0.1) / len(loop)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            quality = {"quality": 80, "method": 4} if kind == "WEBP" else {"disposal": 2}
            loop[0].save(temporary, kind, save_all=True, append_images=loop[1:], duration=each, loop=0, **quality)
            os.replace(temporary, path)
    except OSError as error:
        raise PictureError(f"{path} cannot be written ({error}): choose another place") from error
    return path
