"""Pictures in notebooks: all at one size, small in the file, and readable where nothing runs.

Drawn with Pillow: no fonts are searched for, so that nothing is printed the first time, and every machine gets the
same figure. Needs Jupyter (the `dev` extra); each figure carries its number and size of pictures as plain text, which
nbval compares, and its titles as alternative text, which it does not.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

from ipywidgets import VBox, Widget
from PIL import Image, ImageDraw, ImageFont

from uniportrait_lite.errors import ConfigError
from uniportrait_lite.faces import DetectedFace
from uniportrait_lite.pictures import Picture, read_picture

CELL, GAP, FONT = 128, 8, 11  # pixels: a picture's height (that of the tiny profile's), between pictures, of letters
COLUMNS = 5  # what a page is wide enough for
QUALITY = 62  # of JPEG: about 4 KB a picture, so that a notebook of sixty stays below 300 KB


def show(images: Picture | Sequence[Picture], titles: Sequence[str] | None = None, columns: int | None = None) -> None:
    """Shows pictures in a grid below the cell, with a title above each.

    images: paths, PIL images or arrays; `columns`: as many as there are pictures, at most 5. Raises `ConfigError` where
    the titles are not as many as the pictures.
    """
    from IPython.display import display

    data, metadata = _bundle(images, titles, columns)
    display(data, metadata=metadata, raw=True)


def marked(picture: Picture, faces: Sequence[DetectedFace]) -> Image.Image:
    """The picture with each face's box and five landmarks drawn into it."""
    image = read_picture(picture)
    draw, radius = ImageDraw.Draw(image), max(1, round(max(image.size) / 100))
    for face in faces:
        draw.rectangle([float(v) for v in face.box], outline=(255, 60, 60), width=radius)
        for x, y in face.landmarks.tolist():
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(60, 255, 60), outline=(0, 0, 0))
    return image


def live(draw: Callable[..., Picture | Sequence[Picture]], **controls: Widget) -> None:
    """Controls above the pictures that `draw` makes of their values: drawn at once, and again at each change.

    `controls`: ipywidgets by the argument of `draw` whose value they give. The pictures are an ordinary output, so that
    they stay where no kernel runs. Give sliders `continuous_update=False`.
    """
    from IPython.display import display

    def drawn() -> tuple[dict[str, str], dict]:
        return _bundle(draw(**{name: control.value for name, control in controls.items()}))

    data, metadata = drawn()
    display(_Controls(list(controls.values())))
    handle = display(data, metadata=metadata, raw=True, display_id=True)

    def redraw(_: Any) -> None:
        data, metadata = drawn()
        handle.update(data, metadata=metadata, raw=True)

    for control in controls.values():
        control.observe(redraw, "value")


def figure(images: Sequence[Image.Image], titles: Sequence[str] | None = None, columns: int | None = None):
    """The grid itself, PIL RGB: every picture CELL pixels high, wide ones wider, titles cut into lines above them."""
    if not images:
        raise ConfigError("there is no picture to show: give at least one")
    if titles is not None and len(titles) != len(images):
        raise ConfigError(f"{len(images)} pictures with {len(titles)} titles: give one for each")
    columns = min(columns or COLUMNS, len(images))
    small = [_fitted(image) for image in images]
    width = max(image.width for image in small)
    font = ImageFont.load_default(FONT)
    texts = [_wrapped(title, width, font) for title in titles] if titles else [""] * len(small)
    header = (FONT + 4) * max(text.count("\n") + 1 for text in texts) + 2 if titles else 0
    rows = -(-len(small) // columns)
    size = (columns * (width + GAP) - GAP, rows * (header + CELL + GAP) - GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for index, (image, text) in enumerate(zip(small, texts, strict=True)):
        x, y = (index % columns) * (width + GAP), (index // columns) * (header + CELL + GAP)
        pen.multiline_text((x, y), text, "black", font, spacing=3)
        sheet.paste(image, (x + (width - image.width) // 2, y + header))
    return sheet


class _Controls(VBox):
    """Controls that say in words what they are, for pages that cannot show them."""

    def __repr__(self) -> str:
        return "Controls, where a kernel runs: " + ", ".join(child.description for child in self.children)


def _bundle(images, titles=None, columns=None) -> tuple[dict[str, str], dict]:
    """What Jupyter displays (by MIME type), and its metadata."""
    several = isinstance(images, list | tuple)
    pictures = [read_picture(image) for image in (images if several else [images])]
    buffer = io.BytesIO()
    figure(pictures, titles, columns).save(buffer, format="JPEG", quality=QUALITY, optimize=True, progressive=True)
    sizes = " and ".join(sorted({f"{image.width} x {image.height}" for image in pictures}))
    text = f"{len(pictures)} picture{'s' if len(pictures) > 1 else ''} of {sizes} pixels"
    data = {"image/jpeg": base64.b64encode(buffer.getvalue()).decode(), "text/plain": text}
    alt = f"{text}: {'; '.join(titles)}" if titles else text
    return data, {"image/jpeg": {"alt": alt}}


def _fitted(image: Image.Image) -> Image.Image:
    return image.resize((max(1, round(image.width * CELL / image.height)), CELL), Image.Resampling.LANCZOS)


def _wrapped(title: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    lines = [""]
    for word in str(title).split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
