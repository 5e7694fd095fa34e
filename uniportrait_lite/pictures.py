"""Any picture in, 8-bit RGB out; and pictures written whole or not at all."""

import contextlib
import os
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from uniportrait_lite.errors import PictureError
from uniportrait_lite.provenance import told

MAX_SIDE = 2048  # larger pictures are scaled down to this: no face is read at more than a few hundred pixels
TINTS = ((230, 60, 60), (60, 120, 230), (60, 180, 90), (240, 180, 40), (160, 80, 200))  # one a person
Picture = str | os.PathLike | Image.Image | np.ndarray

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, MemoryError)


def read_picture(picture: Picture, max_side: int = MAX_SIDE) -> Image.Image:
    """A file, a PIL image or an array -> PIL RGB, upright, its longer side at most `max_side` pixels.

    Arrays: (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA; uint8, uint16, or float from 0 to 1. EXIF rotation is
    applied, transparency laid over white, 16 bits reduced to 8, of several frames the first is taken.
    Raises PictureError for anything else, and for pictures of more than about 178 million pixels (Pillow's limit).
    """
    if isinstance(picture, np.ndarray):
        return _over_white(_shrink(_from_array(picture), max_side))
    if isinstance(picture, Image.Image):
        return _upright_rgb(picture, max_side, "the picture")
    if not isinstance(picture, str | os.PathLike):
        raise PictureError(
            f"a picture is a path, a PIL image or a numpy array, not {type(picture).__name__}: convert it first"
        )
    path = Path(picture).expanduser()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.draft("RGB", (max_side, max_side))  # JPEG decodes at 1/2, 1/4 or 1/8 of its size, never whole
                return _upright_rgb(image, max_side, str(path))
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path} is too large ({error}): scale it down and try again") from error
    except FileNotFoundError as error:
        raise PictureError(f"{path} does not exist: check the name, relative to {Path.cwd()}") from error
    except IsADirectoryError as error:
        raise PictureError(f"{path} is a folder: give the path of one picture in it") from error
    except PermissionError as error:
        raise PictureError(f"no permission to read {path}: copy it to a folder of yours") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{path} is no picture that Pillow can read: save it as PNG or JPEG") from error
    except _BROKEN as error:
        raise PictureError(f"{path} cannot be read ({error}): fetch or save it again, as PNG or JPEG") from error


def savable(path: str | os.PathLike) -> Path:
    """A path that a picture can be saved to, to be asked before long work; missing folders are made.

    Raises PictureError for a name without a picture's suffix, and for places where nothing can be written.
    """
    path = Path(path).expanduser()
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise PictureError(f"cannot save as {path.name!r}: give a name that ends in .png, .jpg or .webp")
    if os.path.isdir(path):
        raise PictureError(f"{path} is a folder: give a file name in it, as {path / 'portrait.png'}")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    return path


def save_picture(image: Image.Image, path: str | os.PathLike) -> Path:
    """Writes the picture beside its place and moves it there, so that no half-written file is ever seen.

    The suffix gives the format; missing folders are made. A PNG says in text chunks that it is generated, and what
    the picture was told of itself (provenance.py); other formats carry none of that. Raises PictureError where that
    cannot be done.
    """
    path = savable(path)
    kind = Image.registered_extensions()[path.suffix.lower()]
    if kind == "JPEG" and image.mode not in ("L", "RGB", "CMYK"):
        image = _over_white(image)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _writing(path):
        try:
            image.save(temporary, format=kind, **({"pnginfo": _text(image)} if kind == "PNG" else {}))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def _text(image: Image.Image) -> PngInfo:
    chunks = PngInfo()
    for keyword, value in told(image).items():
        chunks.add_text(keyword, value)
    return chunks


def tinted(image: Image.Image, shares: np.ndarray, strength: float = 0.5) -> Image.Image:
    """The picture tinted by who owns which place: `shares` (N, h, w) of N people, as routing maps have them.

    People have the colours of `TINTS` in turn.
    """
    shares = np.asarray(shares, np.float64)
    colors = np.array([TINTS[k % len(TINTS)] for k in range(len(shares))])
    tint = np.einsum("nhw,nc->hwc", shares, colors).clip(0, 255).round().astype(np.uint8)
    large = Image.fromarray(tint).resize(image.size, Image.Resampling.NEAREST)
    return Image.blend(image.convert("RGB"), large, strength)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Puts what goes wrong in writing `path` in words."""
    try:
        yield
    except PermissionError as error:
        raise PictureError(f"no permission to write {path}: choose another folder with --out") from error
    except _BROKEN as error:
        raise PictureError(f"{path} cannot be written ({error}): choose another place or format") from error


def _upright_rgb(image: Image.Image, max_side: int, name: str) -> Image.Image:
    if 0 in image.size:
        raise PictureError(f"{name} is empty ({image.width} x {image.height} pixels): give one with pixels")
    try:
        image.load()
        image = _shrink(image, max_side)
        rotated = ImageOps.exif_transpose(image)
    except _BROKEN as error:
        raise PictureError(f"{name} cannot be read ({error}): fetch or save it again, as PNG or JPEG") from error
    return _shrink(_over_white(rotated), max_side)


def _shrink(image: Image.Image, max_side: int) -> Image.Image:
    """Scales down to `max_side`; before other conversions, so that only one large copy exists at a time."""
    if max(image.size) <= max_side or image.mode not in ("L", "RGB", "RGBA", "CMYK", "LA"):
        return image
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    scale = max_side / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    small = image.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
    small.getexif()[ExifTags.Base.Orientation] = orientation
    return small


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image.copy()
    if image.mode.startswith("I") or image.mode == "F":
        return _from_array(np.asarray(image)).convert("RGB")
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")  # Pillow takes La nowhere else
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    """Checks an array and makes it 8-bit; keeps an alpha channel."""
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise PictureError(
            f"an array of shape {array.shape} is no picture: give (H, W), (H, W, 3) or (H, W, 4), channels last"
        )
    if array.size == 0:
        raise PictureError(f"an array of shape {array.shape} is empty: give a picture with pixels")
    sixteen_bits = array.dtype.kind == "u" and array.dtype.itemsize == 2
    if sixteen_bits or array.dtype == np.int32:  # Pillow reads some 16-bit files into 32-bit integers
        if array.min() < 0 or array.max() > 65535:
            raise PictureError("integers outside 0..65535 are no 16-bit picture: scale them to uint8 first")
        array = (array // 257).astype(np.uint8)
    elif array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # also catches NaN
            raise PictureError(
                f"a float picture has values from 0 to 1, not {array.min():.3g} to {array.max():.3g}: "
                "divide by its maximum, or give uint8"
            )
        array = (array * 255 + 0.5).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise PictureError(f"an array of {array.dtype} is no picture: give uint8, uint16, or float from 0 to 1")
    if channels == 1:
        array = array.reshape(array.shape[:2])
    return Image.fromarray(np.ascontiguousarray(array))
