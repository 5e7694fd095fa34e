"""Pictures in notebooks: all at one size, small in the file, and readable where nothing runs.

Grids of pictures are drawn with Pillow, curves and diagrams with matplotlib. Needs Jupyter (the `dev` extra). Each
figure carries plain text, which nbval compares: the number and size of its pictures, or what a plot shows; and titles
as alternative text, which it does not compare.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ipywidgets import VBox, Widget
from PIL import Image, ImageDraw, ImageFont

from uniportrait_lite.errors import ConfigError
from uniportrait_lite.faces import DetectedFace
from uniportrait_lite.pictures import Picture, read_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it tells of its cache, the first time
CELL, GAP, FONT = 128, 8, 11  # pixels: a picture's height (that of the tiny profile's), between pictures, of letters
COLUMNS = 5  # what a page is wide enough for
WIDTH, DPI = 7.2, 92  # of plots: inches, and pixels an inch
LETTERS = 9  # points: of a plot's titles and labels
STYLE = {"font.size": 8.5, "axes.spines.top": False, "axes.spines.right": False}
TONES = 64  # of a plot: a fifth of the bytes of all colours, and nobody sees it
QUALITY = 50  # of JPEG: less than 4 KB a picture, so that a notebook of sixty stays below 300 KB


def show(images: Picture | Sequence[Picture], titles: Sequence[str] | None = None, columns: int | None = None) -> None:
    """Shows pictures in a grid below the cell, with a title above each.

    images: paths, PIL images or arrays; `columns`: as many as there are pictures, at most 5. Raises `ConfigError` where
    the titles are not as many as the pictures.
    """
    from IPython.display import display

    data, metadata = _bundle(images, titles, columns)
    display(data, metadata=metadata, raw=True)


def animated(frames: Sequence[Picture], seconds: float = 2.0, height: int = 96) -> None:
    """Shows frames of one size one after another below the cell, there and back in `seconds`, over and over."""
    from IPython.display import display

    small = [read_picture(frame) for frame in frames]
    small = [frame.resize((round(frame.width * height / frame.height), height)) for frame in small]
    strip = np.concatenate([np.asarray(frame) for frame in small], axis=1)
    tones = Image.fromarray(strip).quantize(TONES)  # one palette for all, or colours would flicker
    loop = [frame.quantize(palette=tones, dither=Image.Dither.NONE) for frame in (*small, *small[-2:0:-1])]
    buffer, each = io.BytesIO(), round(1000 * seconds / len(loop))
    loop[0].save(buffer, "PNG", save_all=True, append_images=loop[1:], duration=each, loop=0, optimize=True)
    text = f"an animation of {len(loop)} frames, {small[0].width} x {height} pixels"
    data = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": text}
    display(data, metadata={"image/png": {"alt": text}}, raw=True)


def axes(columns: int = 1, rows: int = 1, height: float = 2.6, **settings: Any) -> tuple[Figure, Any]:
    """A matplotlib figure as wide as a page, `height` inches a row, and its axes; to be shown with `plot`.

    `settings` go to `Figure.subplots`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        drawing = Figure(figsize=(WIDTH, height * rows), dpi=DPI, layout="constrained")
        return drawing, drawing.subplots(rows, columns, **settings)


def plot(drawing: Figure, says: str) -> None:
    """Shows a matplotlib figure below the cell; `says` stands in its place where pictures are not shown."""
    from IPython.display import display

    data, metadata = plotted(drawing, says)
    display(data, metadata=metadata, raw=True)


def curves(
    log: Sequence[dict[str, float]],
    steps: int,
    panels: dict[str, dict[str, str]],
    marks: dict[str, dict[str, float]] | None = None,
) -> Figure:
    """A training's log, as far as it has come, drawn against its `steps`: a panel for each title.

    log: dicts with "step" and any other numbers, as `log.jsonl` holds them. `panels`: by title, the names of what is
    drawn in it and their labels; `marks`: by title, labels of horizontal lines and where they lie.
    """
    drawing, columns = axes(len(panels), height=2.5, squeeze=False)
    for axis, (title, names) in zip(columns[0], panels.items(), strict=True):
        axis.set(xlim=(0, 1.03 * steps), xlabel="step", title=title)
        for name, label in names.items():
            points = [(entry["step"], entry[name]) for entry in log if name in entry]
            few = len(points) * 10 < len(log)
            axis.plot([x for x, _ in points], [y for _, y in points], marker="o" if few else "", ms=4, label=label)
        for (label, height), style in zip((marks or {}).get(title, {}).items(), ("-", "--", ":"), strict=False):
            axis.axhline(height, color="#444444", lw=1, ls=style, label=label)
        axis.legend(fontsize=7, frameon=False)
    step, seconds = (max((entry.get(name, 0) for entry in log), default=0) for name in ("step", "seconds"))
    drawing.suptitle(f"step {step} of {steps}, {seconds:.0f} seconds", fontsize=LETTERS)
    return drawing


def heat(values: Any, picture: Picture | None = None, highest: float | None = None) -> Image.Image:
    """A map (h, w), array or tensor, in colours: dark for 0, bright for `highest` (its largest value, if not given).

    With a picture the map lies on it, in the colour of fire, where it is not 0.
    """
    from matplotlib import colormaps

    values = values.detach().cpu() if hasattr(values, "detach") else values
    values = np.asarray(values, np.float64)
    shares = np.clip(values / max(highest or values.max(), 1e-12), 0, 1)
    small = Image.fromarray((colormaps["inferno"](shares)[..., :3] * 255).astype(np.uint8))
    if picture is None:
        return small.resize((CELL, CELL), Image.Resampling.NEAREST)
    image = read_picture(picture)
    cover = Image.fromarray((shares * 215).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    image = Image.blend(image, image.convert("L").convert("RGB"), 0.6)
    return Image.composite(small.resize(image.size, Image.Resampling.BICUBIC), image, cover)


def marked(picture: Picture, faces: Sequence[DetectedFace]) -> Image.Image:
    """The picture with each face's box and five landmarks drawn into it."""
    image = read_picture(picture)
    draw, radius = ImageDraw.Draw(image), max(1, round(max(image.size) / 100))
    for face in faces:
        draw.rectangle([float(v) for v in face.box], outline=(255, 60, 60), width=radius)
        for x, y in face.landmarks.tolist():
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(60, 255, 60), outline=(0, 0, 0))
    return image


def live(
    draw: Callable[..., Picture | Sequence[Picture] | dict[str, Picture] | Figure],
    says: str | None = None,
    **controls: Widget,
) -> None:
    """Controls above the pictures, or the plot, that `draw` makes of their values: at once, and again at each change.

    `draw` returns a picture, several, a dictionary of pictures by their titles, or a matplotlib figure. `controls` are
    ipywidgets by the argument of `draw` whose value they give. What is drawn is an ordinary output, so that it stays
    where no kernel runs: `says` is a plot's text there. Give sliders `continuous_update=False`.
    """
    from IPython.display import display

    def drawn() -> tuple[dict[str, str], dict]:
        made = draw(**{name: control.value for name, control in controls.items()})
        if hasattr(made, "savefig"):
            return plotted(made, says or "a plot")
        return _bundle(list(made.values()), list(made)) if isinstance(made, dict) else _bundle(made)

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


def plotted(drawing: Figure, says: str) -> tuple[dict[str, str], dict]:
    """What Jupyter displays of a matplotlib figure (by MIME type), and its metadata."""
    for axis in drawing.axes:
        for text in (axis.title, axis.xaxis.label, axis.yaxis.label):
            text.set_fontsize(LETTERS)
    buffer, small = io.BytesIO(), io.BytesIO()
    drawing.savefig(buffer, format="png", metadata={"Software": None})
    Image.open(buffer).convert("RGB").quantize(TONES, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    data = {"image/png": base64.b64encode(small.getvalue()).decode(), "text/plain": says}
    return data, {"image/png": {"alt": says}}


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
