"""Notebooks are what their sources generate, run in order, small, and readable where nothing runs."""

import base64
import io
import json
import re
import shutil
import sys
import warnings

import nbformat
import numpy as np
import pytest
import torch
from diffusers.utils import logging
from PIL import Image

from uniportrait_lite.errors import ConfigError
from uniportrait_lite.learn import notebooks, viz
from uniportrait_lite.learn.address import CLONE, UNKNOWN, address, stamped
from uniportrait_lite.learn.progress import progress
from uniportrait_lite.quiet import no_advice

SOURCE = """\
# %% [markdown]
# A small notebook

# %%
import ipywidgets as widgets
import numpy as np

from uniportrait_lite.learn import viz

# %%
slider = widgets.IntSlider(1, min=1, max=5, description="how many")
viz.live(lambda count: [np.zeros((32, 32, 3), np.uint8)] * count, count=slider)

# %%
viz.show(np.zeros((32, 48, 3), np.uint8), ["night"])
print("one")
print("two")

# %%
slider.value = 3
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with a small source and its notebook, built as by `make notebooks`."""
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "src").mkdir()
    (folder / "src" / "00_small.py").write_text(SOURCE)
    assert notebooks.main(["build", "--folder", str(folder)]) == 0
    return folder


@pytest.fixture
def copy(built, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(built, tmp_path / "copy")


def _spoil(folder, change):
    path = folder / "00_small.ipynb"
    notebook = json.loads(path.read_text())
    change(notebook)
    path.write_text(json.dumps(notebook))
    return notebooks.check("00_small", folder)


def _outputs(folder):
    return [cell.outputs for cell in nbformat.read(folder / "00_small.ipynb", 4).cells if cell.cell_type == "code"]


# --- the project's own ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", notebooks.names_in())
def test_committed_notebooks_are_what_their_sources_generate(name):
    assert notebooks.check(name) == []


def test_every_committed_notebook_has_a_source():
    made = {path for name in notebooks.names_in() for path in notebooks.targets(name)}
    assert {*notebooks.FOLDER.glob("*.ipynb"), *notebooks.FOLDER.glob("solutions/*.ipynb")} == made


def test_the_syllabus_names_every_notebook():
    syllabus = (notebooks.FOLDER / "README.md").read_text()
    assert [name for name in notebooks.names_in() if f"({name}.ipynb)" not in syllabus] == []


# --- addresses and links ----------------------------------------------------------------------------------------------
def test_pages_have_the_address_of_pyproject():
    for page in notebooks.pages():
        text = page.read_text()
        assert text == stamped(text, address(), notebooks.names_in()), f"{page.name}: ... notebooks stamp"
        assert "<!-- badges" in text and "<!-- /badges -->" in text
    assert f"git clone --depth 1 {address()} {CLONE}" in (notebooks.FOLDER.parent / "README.md").read_text()


def test_a_new_address_is_stamped_on_pages_and_stored_notebooks_without_running_them(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    (folder / "src").mkdir(parents=True)
    shutil.copy(notebooks.FOLDER / "src" / "02_id_embedding.py", folder / "src")
    for path in ("02_id_embedding.ipynb", "solutions/02_id_embedding.ipynb", "README.md", "../README.md"):
        (folder / path).parent.mkdir(exist_ok=True)
        shutil.copy(notebooks.FOLDER / path, folder / path)
    elsewhere = "https://github.com/somebody/faces"
    monkeypatch.setattr(notebooks, "address", lambda: elsewhere)
    assert notebooks.check("02_id_embedding", folder) != []
    assert len(notebooks.stamp(folder)) == 4 and notebooks.stamp(folder) == []
    assert notebooks.check("02_id_embedding", folder) == []
    title, setup = notebooks.generate(folder / "src" / "02_id_embedding.py").cells[:2]
    for link in ("colab.research.google.com/github", "mybinder.org/v2/gh", "nbviewer.org/github"):
        assert f"https://{link}/somebody/faces/" in title.source
    assert f"git clone --depth 1 {elsewhere} {CLONE}" in setup.source
    pages = [(folder / path).read_text() for path in ("README.md", "../README.md")]
    assert not any(UNKNOWN in text for text in pages) and elsewhere in pages[1]


@pytest.mark.parametrize("urls", ["", "[project.urls]\nRepository = 'https://example.org/faces'"])
def test_an_address_that_no_badge_can_have_is_refused(tmp_path, urls):
    (tmp_path / "pyproject.toml").write_text(f"[project]\nname = 'faces'\n{urls}\n")
    with pytest.raises(ConfigError, match="as https://github.com/OWNER/NAME"):
        address(tmp_path)


def test_a_title_gets_badges_and_the_setup_below_it(copy):
    source = copy / "src" / "00_small.py"
    plain = notebooks.generate(source)
    source.write_text(SOURCE.replace("# A small notebook", "# # A small notebook\n#\n# About it."))
    title, setup, *others = notebooks.generate(source).cells
    assert title.source.startswith("# A small notebook\n\n[![Open in Colab]")
    assert title.source.endswith("\n\nAbout it.")
    assert "PROFILE = setup.ready()" in setup.source and others == plain.cells[1:]


def test_links_lead_somewhere():
    """Of the pages and the notebooks; in the solutions, to notebooks that have none, one folder up."""
    texts = {page: page.read_text() for page in (*notebooks.pages(), notebooks.FOLDER / "TEACHING.md")}
    for name in notebooks.names_in():
        for target, solved in notebooks.targets(name).items():
            cells = notebooks.generate(notebooks.FOLDER / "src" / f"{name}.py", solved).cells
            texts[target] = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    links = [(page, link) for page, text in texts.items() for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)]
    assert len(links) > 10
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []


# --- building ---------------------------------------------------------------------------------------------------------
def test_building_runs_every_cell_in_order_and_keeps_what_it_shows(built):
    assert notebooks.check("00_small", built) == []
    _, _, third, _ = _outputs(built)
    assert [output.output_type for output in third] == ["display_data", "stream"]
    assert third[0].data["text/plain"] == "1 picture of 48 x 32 pixels"
    assert third[0].metadata["image/jpeg"]["alt"] == "1 picture of 48 x 32 pixels: night"
    assert third[1].text == "one\ntwo\n"


def test_building_again_gives_the_same_file(built, copy):
    notebooks.build("00_small", copy)
    assert (copy / "00_small.ipynb").read_bytes() == (built / "00_small.ipynb").read_bytes()


def test_controls_redraw_their_picture_and_are_stored_in_words(built):
    controls, picture = _outputs(built)[1]
    assert dict(controls.data) == {"text/plain": "Controls, where a kernel runs: how many"}
    assert picture.data["text/plain"] == "3 pictures of 32 x 32 pixels"  # after the last cell moved the slider


def test_progress_shows_what_is_said_last_and_is_stored_as_what_it_was_for(copy, capsys):
    source = "# %%\nfrom uniportrait_lite.learn.progress import progress\n\nimport sys\n\nwith progress('ten drawn'):\n"
    (copy / "src" / "00_small.py").write_text(source + "    print('3 of 10', file=sys.stderr)\n")
    notebooks.build("00_small", copy)
    assert [dict(output.data) for output in _outputs(copy)[0]] == [{"text/plain": "ten drawn"}]
    shown = []
    with progress("ten drawn"):
        line = sys.stderr
        for text in ("1 of 10\r2 of 10\r", "\n", "3 of 10"):
            print(text, file=sys.stderr, end="")
            shown.append(line.label.value)
    assert shown == ["2 of 10", "2 of 10", "3 of 10"] and line.label.value == "ten drawn"


@pytest.mark.parametrize(
    "cell, said",
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import sys\nprint('careful', file=sys.stderr)", "writes to stderr: careful"),
        ("import warnings\nwarnings.warn('old')", "writes to stderr"),
        ("print('/home/somebody/faces')", "shows a path of one machine"),
    ],
)
def test_a_notebook_that_fails_or_breaks_a_habit_is_not_written(copy, cell, said):
    before = (copy / "00_small.ipynb").read_bytes()
    (copy / "src" / "00_small.py").write_text(f"# %%\n{cell}\n")
    with pytest.raises(ConfigError, match=said):
        notebooks.build("00_small", copy)
    assert (copy / "00_small.ipynb").read_bytes() == before
    assert sorted(path.name for path in copy.iterdir()) == ["00_small.ipynb", "src"]


def test_an_unknown_notebook_is_refused_with_those_there_are(built, capsys):
    assert notebooks.main(["build", "07_missing", "--folder", str(built)]) == 1
    assert "00_small" in capsys.readouterr().err


# --- checking ---------------------------------------------------------------------------------------------------------
def test_check_sees_a_source_that_was_edited(copy, capsys):
    source = copy / "src" / "00_small.py"
    source.write_text(SOURCE.replace('print("two")', 'print("three")'))
    assert notebooks.main(["check", "--folder", str(copy)]) == 1
    assert "cell 4 differs from its source in source" in capsys.readouterr().out
    source.write_text(SOURCE + "\n# %%\nprint(4)\n")
    assert "it has 5 cells and its source 6" in notebooks.check("00_small", copy)[0]


def test_check_sees_a_notebook_that_is_missing(copy):
    (copy / "00_small.ipynb").unlink()
    assert notebooks.check("00_small", copy) == ["00_small.ipynb is missing: make notebooks"]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda n: n["cells"][2].update(execution_count=None), "not run once each, in order"),
        (lambda n: n["cells"][2].update(execution_count=7), "not run once each, in order"),
        (lambda n: n["cells"][0].update(id="another"), "cell 1 differs from its source in id"),
        (lambda n: n["cells"][3].update(source="pass"), "cell 4 differs from its source in source"),
        (lambda n: n["cells"][3]["metadata"].update(tags=["nbval-skip"]), "cell 4 differs from its source in metadata"),
        (lambda n: n["metadata"].update(widgets={}), "metadata are not those of a generated notebook"),
        (lambda n: n["cells"][3]["outputs"][1].update(name="stderr"), "cell 4 writes to stderr"),
        (lambda n: n["cells"][3]["outputs"][0]["data"].update({"text/html": "x" * 300_000}), "KB, and 300 are enough"),
        (lambda n: n["cells"][3]["outputs"][1].update(text="C:\\faces"), "shows a path of one machine"),
    ],
)
def test_check_sees_a_notebook_that_was_tampered_with(copy, change, said):
    assert said in "\n".join(_spoil(copy, change))


def test_check_sees_habits_that_a_source_breaks(copy):
    long = "\n".join(f"x{i} = {i}" for i in range(26))
    ignored = '# %% tags=["nbval-ignore-output"]\nprint(1)\n'
    (copy / "src" / "00_small.py").write_text(f"# %%\n{long}\n\n{ignored}\n# %%\nopen('/tmp/faces')\n")
    notebook = notebooks.generate(copy / "src" / "00_small.py")
    problems = "\n".join(notebooks.habits(notebook, 1))
    assert "cell 1 has 26 lines of code, and 25 are enough" in problems
    assert "1 of 3 cells are not compared, more than a tenth" in problems
    assert "cell 3 names a path of one machine" in problems


def test_links_and_relative_paths_are_no_paths_of_one_machine(copy):
    text = "# %% [markdown]\n# [paper](https://arxiv.org/abs/2408.05939), https://a.org/home/x, data/tmp/x, ~/work/x\n"
    (copy / "src" / "00_small.py").write_text(text)
    assert list(notebooks.habits(notebooks.generate(copy / "src" / "00_small.py"), 1)) == []


def test_cell_ids_stay_when_other_cells_or_their_own_body_change(copy):
    source = copy / "src" / "00_small.py"
    before = [cell.id for cell in notebooks.generate(source).cells]
    assert len(set(before)) == len(before)
    source.write_text(SOURCE.replace("# %%\nslider.value", "# %%\nprint(1)\n\n# %%\nslider.value").replace("two", "2"))
    after = [cell.id for cell in notebooks.generate(source).cells]
    assert [*after[:4], after[5]] == before


def test_cells_that_begin_alike_have_ids_of_their_own(copy):
    (copy / "src" / "00_small.py").write_text("# %%\nx = 1\n\n# %%\nx = 1\n")
    first, second = (cell.id for cell in notebooks.generate(copy / "src" / "00_small.py").cells)
    assert second == f"{first}-2"


# --- pictures ---------------------------------------------------------------------------------------------------------
def test_a_figure_shows_pictures_of_any_size_at_one_height():
    pictures = [Image.new("RGB", (256, 256), "red"), Image.new("RGB", (192, 128), "blue")]
    sheet = viz.figure(pictures)
    assert sheet.size == (2 * 192 + viz.GAP, viz.CELL)
    assert sheet.getpixel((96, 64)) == (255, 0, 0) and sheet.getpixel((192 + viz.GAP + 96, 64)) == (0, 0, 255)


def test_a_figure_breaks_rows_and_long_titles():
    pictures = [Image.new("RGB", (128, 128))] * 3
    short, long = (viz.figure(pictures, [title] * 3, columns=2) for title in ("a", "quite a long title for a picture"))
    assert short.width == 2 * viz.CELL + viz.GAP
    assert short.height > 2 * viz.CELL + viz.GAP
    assert long.width == short.width and long.height > short.height


def test_a_figure_wants_a_title_for_each_picture():
    with pytest.raises(ConfigError, match="2 pictures with 1 titles"):
        viz.figure([Image.new("RGB", (8, 8))] * 2, ["one"])
    with pytest.raises(ConfigError, match="no picture"):
        viz.figure([])


def test_a_plot_is_small_and_says_what_it_shows():
    drawing, (left, right) = viz.axes(2, height=2)
    left.plot([0, 1], [0, 1])
    right.imshow(np.random.default_rng(0).random((16, 16)))
    data, metadata = viz.plotted(drawing, "a line beside noise")
    assert data["text/plain"] == metadata["image/png"]["alt"] == "a line beside noise"
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert picture.size == (int(viz.WIDTH * viz.DPI), 2 * viz.DPI) and len(data["image/png"]) < 30_000


def test_heat_is_bright_where_the_map_is_high():
    values = np.zeros((4, 4))
    values[0, 0] = 2
    alone, on_picture = viz.heat(values), viz.heat(values, Image.new("RGB", (64, 64), (0, 0, 200)))
    assert sum(alone.getpixel((2, 2))) > 500 > 100 > sum(alone.getpixel((100, 100)))
    assert on_picture.size == (64, 64) and sum(on_picture.getpixel((4, 4))) > 500
    assert sum(viz.heat(values, highest=4).getpixel((2, 2))) < sum(alone.getpixel((2, 2)))


def test_heat_takes_tensors_of_any_kind():
    values = np.eye(3)
    assert viz.heat(torch.tensor(values, requires_grad=True)).tobytes() == viz.heat(values).tobytes()


def test_marked_draws_box_and_landmarks_on_a_copy():
    from uniportrait_lite.faces import DetectedFace

    picture = Image.new("RGB", (64, 64))
    box, landmarks = np.array([10, 10, 50, 50], np.float32), np.full((5, 2), 30, np.float32)
    marked = viz.marked(picture, [DetectedFace(box, landmarks, 0.9, picture)])
    assert marked.getpixel((10, 30)) == (255, 60, 60) and marked.getpixel((30, 30)) == (60, 255, 60)
    assert picture.getpixel((10, 30)) == (0, 0, 0)


def test_frames_move_there_and_back_in_a_page(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **kinds: shown.append((data, kinds["metadata"])))
    viz.animated([Image.new("RGB", (64, 128), color) for color in ("red", "green", "blue")], seconds=2, height=32)
    (data, metadata), says = shown[0], "an animation of 4 frames, 16 x 32 pixels"
    assert data["text/plain"] == says == metadata["image/png"]["alt"]
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert picture.n_frames == 4 and picture.size == (16, 32) and picture.info["loop"] == 0


def test_advice_is_left_out_while_a_lora_is_loaded_and_not_later(recwarn):
    before = logging.get_verbosity()
    with no_advice():
        warnings.warn("another adapter is there", stacklevel=1)
        assert logging.get_verbosity() == logging.ERROR
    assert not recwarn.list and logging.get_verbosity() == before
