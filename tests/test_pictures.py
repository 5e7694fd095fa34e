"""Every kind of picture becomes upright 8-bit RGB, or an error that says what to do; saving is whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from uniportrait_lite import provenance
from uniportrait_lite.errors import PictureError, UniPortraitError
from uniportrait_lite.pictures import MAX_SIDE, TINTS, read_picture, savable, save_picture, tinted


@pytest.fixture
def quarters() -> np.ndarray:
    """Red, green over blue, white: 30 high, 40 wide."""
    array = np.zeros((30, 40, 3), np.uint8)
    array[:15, :20, 0] = array[:15, 20:, 1] = array[15:, :20, 2] = 255
    array[15:, 20:] = 255
    return array


def corners(image: Image.Image) -> list[tuple[int, int, int]]:
    w, h = image.size
    return [image.getpixel(at) for at in ((2, 2), (w - 3, 2), (2, h - 3), (w - 3, h - 3))]


LAB = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def test_array_image_and_file_give_the_same_picture(quarters, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(quarters).save(path)
    for picture in (quarters, Image.fromarray(quarters), path, str(path)):
        image = read_picture(picture)
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), quarters)


@pytest.mark.parametrize(
    "array",
    [
        np.full((8, 9), 51, np.uint8),
        np.full((8, 9, 1), 51, np.uint8),
        np.full((8, 9), 51 * 257, np.uint16),
        np.full((8, 9), 51 * 257, ">u2"),
        np.full((8, 9, 3), 0.2, np.float32),
        np.full((8, 9, 3), 0.2, np.float16),
    ],
)
def test_arrays_of_any_depth_become_eight_bits(array):
    image = read_picture(array)
    assert image.mode == "RGB" and image.size == (9, 8)
    assert set(np.asarray(image).reshape(-1).tolist()) == {51}


def test_transparency_is_laid_over_white(quarters):
    alpha = np.full((30, 40, 1), 255, np.uint8)
    alpha[:15, :20] = 0
    rgba = np.concatenate([quarters, alpha], 2)
    for picture in (rgba, rgba / 255.0, Image.fromarray(rgba)):
        assert corners(read_picture(picture)) == [WHITE, GREEN, BLUE, WHITE]


MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
    "I;16B",
)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode, quarters):
    grey = Image.fromarray(quarters).convert("L")
    if mode == "F":
        image = Image.fromarray(np.asarray(grey, np.float32) / 255)
    elif mode in ("I", "I;16"):
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).convert(mode)
    elif mode == "I;16B":
        image = Image.frombytes(mode, grey.size, (np.asarray(grey).astype(">u2") * 257).tobytes())
    elif mode in ("PA", "La", "RGBa"):  # made by way of another
        image = Image.fromarray(quarters).convert({"PA": "P", "La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    elif mode == "LAB":
        image = ImageCms.profileToProfile(Image.fromarray(quarters), *LAB, outputMode="LAB")
    else:
        image = Image.fromarray(quarters).convert(mode)
    assert image.mode == mode
    got = read_picture(image)
    assert got.mode == "RGB" and got.size == (40, 30)
    assert np.abs(np.subtract(got.getpixel((38, 28)), WHITE)).max() <= 1
    if mode in ("CMYK", "P", "PA", "RGBA", "RGBa", "RGBX"):
        assert got.getpixel((2, 2)) == RED


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_an_animation_the_first_picture_is_taken(tmp_path, quarters, suffix):
    frames = [Image.fromarray(quarters), Image.new("RGB", (40, 30), BLUE), Image.new("RGB", (40, 30), GREEN)]
    lossless = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **lossless)
    assert corners(read_picture(tmp_path / f"a.{suffix}")) == [RED, GREEN, BLUE, WHITE]


def test_sixteen_bit_and_palette_files(tmp_path, quarters):
    grey = np.asarray(Image.fromarray(quarters).convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(read_picture(tmp_path / "deep.png"))[..., 0], grey)
    palette = Image.fromarray(quarters).convert("P", palette=Image.Palette.ADAPTIVE)
    index = palette.getpixel((2, 2))
    palette.save(tmp_path / "palette.gif", transparency=index)
    assert corners(read_picture(tmp_path / "palette.gif")) == [WHITE, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("max_side", [MAX_SIDE, 20])
def test_exif_rotation_is_applied_once(tmp_path, quarters, suffix, max_side):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn right by 90 degrees
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(quarters).resize((160, 120), Image.Resampling.NEAREST).save(path, exif=exif)
    image = read_picture(path, max_side=max_side)
    assert image.height > image.width and image.height == min(max_side, 160)
    got = np.array(corners(image))
    assert np.abs(got - np.array([BLUE, RED, WHITE, GREEN])).max() < 30


def test_ten_by_ten_stays_ten_by_ten():
    assert read_picture(np.zeros((10, 10, 3), np.uint8)).size == (10, 10)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux's /proc")
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_ten_thousand_by_ten_thousand_is_scaled_down_in_little_memory(tmp_path, suffix):
    path = tmp_path / f"huge.{suffix}"
    Image.new("RGB", (10_000, 10_000), (10, 200, 30)).save(path, compress_level=1)
    code = (
        "import re, sys; from uniportrait_lite.pictures import read_picture; i = read_picture(sys.argv[1]);"
        "peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read());"
        "print(*i.size, *i.getpixel((5, 5)), int(peak[1]) // 1024)"
    )  # not ru_maxrss: a child's begins with what its parent had
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, path], capture_output=True, text=True, check=True)
    *size, red, green, blue, megabytes = map(int, done.stdout.split())
    assert size == [MAX_SIDE, MAX_SIDE] and max(abs(red - 10), abs(green - 200), abs(blue - 30)) < 4
    assert megabytes < 700


def test_a_picture_beyond_pillows_limit_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(PictureError, match="too large.*scale it down"):
        read_picture(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif"])
def test_truncated_files_are_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PictureError, match=f"cut.{suffix}"):
        read_picture(path)


def test_files_that_are_no_pictures(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    for name, says in [("text.png", "no picture"), ("empty.png", "no picture"), ("none.png", "does not exist")]:
        with pytest.raises(PictureError, match=says):
            read_picture(tmp_path / name)
    with pytest.raises(PictureError, match="is a folder"):
        read_picture(tmp_path)
    assert issubclass(PictureError, UniPortraitError)


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (np.zeros((0, 5, 3), np.uint8), "empty"),
        (np.zeros((5,), np.uint8), "shape"),
        (np.zeros((3, 8, 8), np.uint8), "channels last"),
        (np.zeros((2, 8, 8, 3), np.uint8), "shape"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        (np.zeros((8, 8, 3), bool), "bool"),
        (np.full((8, 8, 3), 200.0), "from 0 to 1"),
        (np.full((8, 8, 3), np.nan), "from 0 to 1"),
        (np.full((8, 8), -1, np.int32), "0..65535"),
        (Image.new("RGB", (0, 4)), "empty"),
        (None, "NoneType"),
        ([[1, 2], [3, 4]], "list"),
    ],
)
def test_what_is_no_picture_says_what_would_be(picture, says):
    with pytest.raises(PictureError, match=says):
        read_picture(picture)


def test_saving_makes_folders_and_leaves_only_the_picture(tmp_path, quarters):
    path = save_picture(Image.fromarray(quarters), tmp_path / "new" / "deep" / "a.png")
    assert np.array_equal(np.asarray(Image.open(path)), quarters)
    assert os.listdir(path.parent) == ["a.png"]
    save_picture(Image.fromarray(quarters).convert("RGBA"), tmp_path / "a.jpg")
    assert Image.open(tmp_path / "a.jpg").mode == "RGB"


def test_a_png_says_that_it_is_generated_and_how(tmp_path, quarters):
    image = Image.fromarray(quarters)
    provenance.tell(image, prompt="a man in the snow, 雪", seed=3, weights="Junjie96/UniPortrait@0123456", base=None)
    text = Image.open(save_picture(image, tmp_path / "a.png")).text
    assert text["Comment"].startswith("generated by a diffusion model")
    assert text["Software"].startswith("uniportrait-lite ") and "torch " in text["Software"]
    facts = {"prompt": "a man in the snow, 雪", "seed": "3", "weights": "Junjie96/UniPortrait@0123456"}
    assert {name: value for name, value in text.items() if name in provenance.FACTS} == facts
    save_picture(image, tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="a picture tells prompt, .* not colour"):
        provenance.tell(image, colour="red")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("/home/alice/.cache/hub/models--some--base/snapshots/0123456789abcdef", "some/base@0123456789ab"),
        ("/home/alice/models/uniportrait", "models/uniportrait"),
        ("./mine", "./mine"),
        ("some/base", "some/base"),
    ],
)
def test_where_weights_are_from_says_nothing_of_the_machine(place, words):
    assert provenance.origin(place) == words


def test_a_failed_save_leaves_the_old_picture_and_nothing_else(tmp_path, quarters):
    path = save_picture(Image.fromarray(quarters), tmp_path / "a.jpg")
    before = path.read_bytes()
    with pytest.raises(PictureError, match="cannot be written"):
        save_picture(Image.new("RGB", (70_000, 1)), path)  # JPEG ends at 65,535
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.jpg"]


def test_places_one_cannot_save_to(tmp_path, quarters):
    image = Image.fromarray(quarters)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for name, says in [("a.xyz", ".png"), ("a", ".png"), ("folder.png", "folder"), ("file/a.png", "cannot be written")]:
        for attempt in (lambda path: save_picture(image, path), savable):
            with pytest.raises(PictureError, match=says):
                attempt(tmp_path / name)


def test_asking_whether_a_picture_can_be_saved_leaves_no_file(tmp_path):
    assert savable(tmp_path / "new" / "a.png") == tmp_path / "new" / "a.png"
    assert os.listdir(tmp_path / "new") == []


def test_no_permission_to_write_is_said(tmp_path, quarters):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    save_picture(Image.fromarray(quarters), tmp_path / "a.png").chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may write everywhere: try as nobody
    try:
        with pytest.raises(PictureError, match="no permission"):
            save_picture(Image.fromarray(quarters), locked / "a.png")
        with pytest.raises(PictureError, match="no permission"):
            savable(locked / "a.png")
        with pytest.raises(PictureError, match="no permission"):
            read_picture(locked.parent / "a.png")
    finally:
        os.seteuid(user)
    assert os.listdir(locked) == []


def test_a_tinted_picture_shows_who_owns_which_place():
    grey = Image.new("RGB", (16, 8), (100, 100, 100))
    shares = np.zeros((2, 1, 2))
    shares[0, 0, 0] = shares[1, 0, 1] = 1
    pixels = np.asarray(tinted(grey, shares, strength=1.0))
    assert (pixels[:, :8] == TINTS[0]).all() and (pixels[:, 8:] == TINTS[1]).all()
    assert (np.asarray(tinted(grey, shares, strength=0.0)) == 100).all()
