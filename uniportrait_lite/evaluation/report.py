"""Figures on paper: markdown tables, JSON and contact sheets, each written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from uniportrait_lite.errors import ConfigError

GAP, LABEL = 6, 16  # pixels


def check_folder(folder: str | Path) -> Path:
    """Makes the folder for results; ConfigError where nothing can be written, before hours of work are spent."""
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write to {folder} ({error.strerror}): choose another folder with --out") from error
    return folder


def shown(value: float | str | None, digits: int = 3) -> str:
    """A cell's text: a dash for what was not measured."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.{digits}f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[float | str | None]]) -> str:
    """A table whose columns are aligned as text, too."""
    cells = [list(header), *([shown(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("| " + " | ".join([row[0].ljust(widths[0]), *padded[1:]]) + " |")
    rule = "|" + "|".join(":" + "-" * (w + 1) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def write_text(text: str, path: Path) -> None:
    """Writes a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(value: object, path: Path) -> None:
    """Writes JSON, as `write_text` does."""
    write_text(json.dumps(value, indent=1) + "\n", path)


def sheet(titles: Sequence[str], rows: Sequence[Sequence[tuple[Image.Image, str]]]) -> Image.Image:
    """Pictures in rows, each over its label, with the columns' titles above; as large as the largest is."""
    width, height = (max(size) for size in zip(*(image.size for row in rows for image, _ in row), strict=True))
    step_x, step_y = width + GAP, height + LABEL + GAP
    picture = Image.new("RGB", (GAP + len(titles) * step_x, LABEL + GAP + len(rows) * step_y), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for column, title in enumerate(titles):
        draw.text((GAP + column * step_x, 2), title, "black", font)
    for number, row in enumerate(rows):
        for column, (image, label) in enumerate(row):
            x, y = GAP + column * step_x, LABEL + GAP + number * step_y
            picture.paste(image, (x, y))
            draw.text((x, y + height + 1), label, "black", font)
    return picture


def verdicts(rows: Sequence[tuple[Image.Image, Image.Image, str, str]], side: int = 128) -> Image.Image:
    """Two pictures a row, scaled to squares, with two texts beside them: a prompt and what became of it."""
    words = 90  # letters in a line
    picture = Image.new("RGB", (2 * (side + GAP) + 7 * words, len(rows) * (side + GAP)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for number, (first, second, prompt, verdict) in enumerate(rows):
        y = number * (side + GAP)
        for column, image in enumerate((first, second)):
            picture.paste(image.resize((side, side)), (column * (side + GAP), y))
        lines = [line for text in (prompt, verdict) for line in (*textwrap.wrap(text, words), "")]
        draw.multiline_text((2 * (side + GAP) + GAP, y + GAP), "\n".join(lines), "black", font)
    return picture
