"""Notebooks are tests: a bug planted in a copy of the package turns one red, in the cell that speaks of it.

`BUGS` is the table: one row a bug, and a notebook that has to see it. A row names the sections that are run, so that it
takes seconds and not a minute; the cells above the first section, with the imports, always are. For each such choice of
sections the unspoiled package is run as well, and has to stay green: so it is the bug that is seen.

`pytest -m "not planted"` leaves these tests out.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

import uniportrait_lite
from uniportrait_lite.learn import notebooks

pytestmark = pytest.mark.planted
PACKAGE = Path(uniportrait_lite.__file__).parent


@dataclass(frozen=True)
class Bug:
    """`right` in a module of the package becomes `wrong`; then `red`, a line of the notebook, is in the failing cell.

    `right` stands in no function that the notebook shows (`show_source`): its text alone would turn it red.
    """

    notebook: str
    sections: tuple[str, ...]  # the beginnings of their headings
    module: str
    right: str
    wrong: str
    red: str


QUICK = ("Faces in", "From a face", "Portraits out", "Is it Ann?", "The knobs")
TOKENS, PEOPLE = ("2. Keys", "3. The Q-Former"), ("5. Sixteen", "7. Several", "8. From one")
BUGS = {
    "the ID scale is not heeded": Bug(
        "00_quickstart", QUICK, "attention.py",
        "return row_weight(self.id_scale, self.active, dtype)",
        "return row_weight(1.0, self.active, dtype)",
        'turn("id_scale"',
    ),
    "the first mask is the last person's": Bug(
        "00_quickstart", ("Faces in", "From a face", "Two and three"), "regions.py",
        "for number, mask in enumerate(masks)]", "for number, mask in enumerate(masks[::-1])]",
        "ann has the left half",
    ),
    "faces are turned the wrong way": Bug(
        "01_face_features", ("1. From a picture",), "toyworld/pretrain/recognition.py",
        "[[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]]",
        "[[turn.real, turn.imag, shift.real], [-turn.imag, turn.real, shift.imag]]",
        "largest difference of a pixel at most 2",
    ),
    "DropToken and DropPath are left on": Bug(
        "02_id_embedding", TOKENS, "id_embedding.py", "if not self.training:",
        "if not torch.manual_seed(0):",  # never so, and a draw that drops something: most do, not all
        "torch.testing.assert_close(q_former(ann, beta=0.3)",
    ),
    "the structure scale is not heeded": Bug(
        "02_id_embedding", TOKENS, "id_embedding.py",
        "structure, structure_scale, drop)", "structure, 1.0, drop)",
        "torch.testing.assert_close(q_former(ann, beta=0.3)",
    ),
    "references are averaged": Bug(
        "02_id_embedding", PEOPLE, "features.py",
        "torch.cat(parts, dim=1) for parts in zip", "torch.stack(parts).mean(0) for parts in zip",
        "both = up.identity([folder /",
    ),
    "mixtures are the other way round": Bug(
        "02_id_embedding", PEOPLE, "adapter.py", 'amount = number("amount", amount, 0, 1)',
        'amount = 1 - number("amount", amount, 0, 1)',
        "first.mix(second, 0.3)",
    ),
}  # fmt: skip
RUNS = sorted({(bug.notebook, bug.sections) for bug in BUGS.values()})


@pytest.fixture
def copy(tmp_path):
    """The package's code, to spoil, beside the project's weights."""
    shutil.copytree(PACKAGE, tmp_path / "uniportrait_lite", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "data").symlink_to(PACKAGE.parent / "data", target_is_directory=True)
    return tmp_path


def run(copy, name, sections):
    """nbval's verdict on some sections of a stored notebook, with the package of the copy."""
    notebook = nbformat.read(notebooks.FOLDER / f"{name}.ipynb", 4)
    kept, keeping, found = [], True, set()
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (headings := re.findall("^## (.*)", cell.source, re.MULTILINE)):
            began = [section for section in sections if headings[-1].startswith(section)]
            keeping, found = bool(began), found | {*began}
        if keeping:
            kept.append(cell)
    assert found == {*sections}, f"{name} has no section {set(sections) - found}"
    notebook.cells = kept
    path = copy / "notebook.ipynb"
    nbformat.write(notebook, path)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env"]
    environment = os.environ | {"PYTHONPATH": str(copy)}
    return subprocess.run([*command, str(path)], cwd=copy, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name, sections", RUNS, ids=[f"{name}: {sections[-1]}" for name, sections in RUNS])
def test_without_a_bug_these_sections_are_green(copy, name, sections):
    done = run(copy, name, sections)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_a_planted_bug_turns_a_notebook_red(copy, bug):
    module = copy / "uniportrait_lite" / bug.module
    text = module.read_text()
    assert text.count(bug.right) == 1, "the package has changed: plant the bug anew"
    module.write_text(text.replace(bug.right, bug.wrong))
    done = run(copy, bug.notebook, bug.sections)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-1000:]
    assert "1 failed" in done.stdout and bug.red in done.stdout, done.stdout[-3000:]
