"""The demonstration's parts that need no weights: whose pictures are whose, the picture, the table, the references."""

import numpy as np
import pytest
from PIL import Image

from uniportrait_lite.demo import CELL, PROMPTS, TOGETHER, Portrait, Together, below, grid, people_in, table
from uniportrait_lite.errors import PictureError
from uniportrait_lite.toyworld import factors
from uniportrait_lite.toyworld.references import PEOPLE, reference_scene, write_reference_faces
from uniportrait_lite.toyworld.splits import HELD_OUT
from uniportrait_lite.toyworld.wording import WORDS, tokens


def test_numbered_pictures_belong_to_one_person(tmp_path):
    for name in ("bob.png", "ann.jpg", "ann_2.png", "ann_10.png", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    found = {name: [path.name for path in paths] for name, paths in people_in(tmp_path).items()}
    assert found == {"ann": ["ann.jpg", "ann_2.png", "ann_10.png"], "bob": ["bob.png"]}


def test_a_folder_without_pictures_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(PictureError, match="put one of each person there"):
        people_in(tmp_path / "nowhere")


def test_the_prompts_are_words_of_the_world():
    assert set(tokens(" ".join([*PROMPTS, *TOGETHER.values()]))) <= set(WORDS)


def rows(own: float = 0.75, found: bool = True) -> dict[str, list[Portrait]]:
    image = Image.new("RGB", (128, 128), "red")
    return {name: [Portrait(image, own, 0.25, 2.0, found) for _ in PROMPTS] for name in ("ann", "bob")}


def test_the_grid_shows_each_reference_and_its_portraits():
    references = {"ann": Image.new("RGB", (256, 256), "blue"), "bob": Image.new("RGB", (100, 50), "blue")}
    picture = np.asarray(grid(references, rows()))
    blue = (picture == (0, 0, 255)).all(-1).sum()
    red = (picture == (255, 0, 0)).all(-1).sum()
    assert red == 2 * len(PROMPTS) * CELL**2  # each portrait whole
    assert blue == CELL**2 + CELL * CELL // 2  # one square reference, and one half as high as wide


def test_groups_stand_below_with_their_routing():
    above = Image.new("RGB", (1000, 50), "blue")
    pair = Together(
        ["ann", "bob"], Image.new("RGB", (192, 128), "red"), Image.new("RGB", (192, 128), "lime"), (1, 0), 1.0
    )
    picture = np.asarray(below(above, [pair]))
    wide = round(192 * CELL / 128) * CELL
    assert [(picture == color).all(-1).sum() for color in ((255, 0, 0), (0, 255, 0))] == [wide, wide]
    assert (picture[:50] == (0, 0, 255)).all() and np.array_equal(np.asarray(below(above, [])), np.asarray(above))


def test_the_table_has_a_line_for_each_portrait_and_the_means():
    lines = table(rows()).splitlines()
    assert len(lines) == 1 + 2 * len(PROMPTS) + 1
    assert lines[1].split()[:4] == ["ann", "0.75", "0.25", "2.0"] and lines[1].endswith(PROMPTS[0])
    assert lines[-1].split() == ["mean", "0.75", "0.25", "2.0"]


def test_portraits_without_a_face_count_as_0():
    found, lost = rows()["ann"], rows(own=0.0, found=False)["bob"]
    lines = table({"ann": found, "bob": lost}).splitlines()
    assert "no face found" in lines[5] and "no face" not in lines[1]
    assert lines[-1].split()[:2] == ["mean", "0.38"] and "4 without a face count as 0" in lines[-1]


def test_reference_people_are_held_out_and_the_files_are_their_scenes(tmp_path):
    assert all(seed in HELD_OUT for seed in PEOPLE.values())
    paths = write_reference_faces(tmp_path)
    assert [path.name for path in paths[:2]] == ["ann.png", "ann_2.png"] and len(paths) == 2 * len(PEOPLE)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}
    with Image.open(tmp_path / "bob_2.png") as image:
        assert image.size == (256, 256)
        assert np.array_equal(np.asarray(image), reference_scene("bob", 1).pixels)
    first = [reference_scene(name, 0).faces[0].attributes for name in PEOPLE]
    assert all(face["hat"] == "none" and face["glasses"] == factors.GLASSES[0] for face in first)
