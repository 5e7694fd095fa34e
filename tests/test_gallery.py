"""The gallery, at its smallest, with the shipped weights."""

import pytest
from PIL import Image

from uniportrait_lite import cli, gallery
from uniportrait_lite.toyworld.wording import WORDS, tokens


def test_the_gallery_asks_with_words_of_the_world():
    styles = [f"a portrait of a person, {style}" for style in gallery.STYLES]
    assert set(tokens(" ".join([*gallery.PROMPTS.values(), *styles, *gallery.TOGETHER.values()]))) <= set(WORDS)


def test_the_gallery_is_drawn_with_its_page(tmp_path, monkeypatch, capsys):
    small = {"PEOPLE": gallery.PEOPLE[:3], "PROMPTS": dict(list(gallery.PROMPTS.items())[:1]), "STYLES": ("in sepia",),
             "GROUPS": {2: 1, 3: 1}, "STEPS": (0.0, 1.0), "MIXTURES": 1, "WORST": 4,
             "BESIDE": 1}  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(gallery, name, value)
    assert cli.main(["gallery", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out.split()
    assert told[-1] == str(tmp_path / "gallery.md") and str(tmp_path / "gallery" / "pairs.webp") in told
    page = (tmp_path / "gallery.md").read_text()
    pictures = sorted((tmp_path / "gallery").glob("*.webp"))
    drawn = "failures mixtures pairs portraits styles tools triples"
    assert [path.stem for path in pictures] == drawn.split()
    assert all(f"gallery/{path.name}" in page for path in pictures)
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.width > 250 and path.stat().st_size < 200_000


def test_a_portrait_without_a_face_says_so():
    nothing = gallery.Shown(0, "", Image.new("RGB", (8, 8)), float("nan"))
    one = gallery.Shown(0, "", Image.new("RGB", (8, 8)), 0.5)
    assert (nothing.label, one.label) == ("no face found", "0.50")
    assert gallery._mean([[nothing, one]]) == pytest.approx(0.25)
