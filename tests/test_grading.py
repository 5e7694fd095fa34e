"""The exercises as an nbgrader course: what students get holds no solution, and answers get the points they earn."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from uniportrait_lite.errors import ConfigError
from uniportrait_lite.learn import exercises, grading, notebooks

SOURCE = '''\
# %%
from uniportrait_lite.learn.checks.verdict import check, demand


class checks:
    @check("Twice is two times.")
    def twice(answer):
        demand(answer(3) == 6, "that is not twice")


# %% [markdown] exercise="twice" level="medium" minutes=2 teaches="multiplying"
# ### Twice
#
# Write `twice(x)`.
#
# **Hint.** Once more.

# %%
def twice(x):
    """Twice x."""
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION


checks.twice(twice)

# %%
print("goes on")
'''
NAMED = [name for name in notebooks.names_in() if exercises.exercises_of(notebooks.FOLDER / "src" / f"{name}.py")]


def nbgrader(course, *arguments):
    """nbgrader's own command line, in a course; nothing of the user's settings is read."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # nbgrader calls alembic
    settings = os.environ | {
        "JUPYTER_CONFIG_DIR": str(course / "settings"), "JUPYTER_NO_CONFIG": "1", "PATH": programs
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments], cwd=course, env=settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def code_cells(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A course with one small assignment, released by nbgrader."""
    folder = tmp_path_factory.mktemp("grading")
    (folder / "src").mkdir()
    (folder / "src" / "01_small.py").write_text(SOURCE)
    assert grading.main([str(folder / "course"), "--folder", str(folder)]) == 0
    nbgrader(folder / "course", "generate_assignment", "01_small")
    return folder / "course"


def test_students_get_the_stub_and_a_locked_check(released):
    _, answer, check, _ = code_cells(released / "release" / "01_small" / "01_small.ipynb")
    assert exercises.STUB in answer.source and "2 * x" not in answer.source
    assert answer.source.endswith("checks.twice(twice)")
    assert check.source == "verdict = checks.twice(twice)\nassert verdict, verdict"
    assert check.metadata.nbgrader.locked and check.metadata.nbgrader.points == 2
    assert not check.metadata.get("editable", True)


def test_right_wrong_and_no_answers_get_what_they_earn(released):
    """Three students hand in; the wrong one has also softened the check, which nbgrader puts back."""
    release = nbformat.read(released / "release" / "01_small" / "01_small.ipynb", 4)
    answers = {"ann": "return x + x", "bob": "return x ** 2", "cleo": exercises.STUB}
    for student, answer in answers.items():
        submission = nbformat.from_dict(release)
        code = [cell for cell in submission.cells if cell.cell_type == "code"]
        before = code[1].source
        code[1].source = before.replace(exercises.STUB, answer)
        if student == "bob":
            code[2].source = "assert True"
        folder = released / "submitted" / student / "01_small"
        folder.mkdir(parents=True)
        nbformat.write(submission, folder / "01_small.ipynb")
        code[1].source, code[2].source = before, "verdict = checks.twice(twice)\nassert verdict, verdict"
    nbgrader(released, "autograde", "01_small")
    nbgrader(released, "generate_feedback", "01_small")
    nbgrader(released, "export")
    with (released / "grades.csv").open() as file:
        grades = {row["student_id"]: (float(row["score"]), float(row["max_score"])) for row in csv.DictReader(file)}
    assert grades == {"ann": (2, 2), "bob": (0, 2), "cleo": (0, 2)}
    said = {
        student: "".join(str(cell.outputs) for cell in code_cells(path))
        for student in answers
        for path in [released / "autograded" / student / "01_small" / "01_small.ipynb"]
    }
    assert "Right. Twice is two times." in said["ann"]
    assert "Not yet: that is not twice" in said["bob"] and "Not solved yet" in said["cleo"]
    assert all("goes on" in text for text in said.values())
    page = released / "feedback" / "bob" / "01_small" / "01_small.html"
    assert "Not yet: that is not twice" in page.read_text()


@pytest.mark.parametrize("name", NAMED)
def test_every_exercise_of_the_course_can_be_graded(name):
    source = notebooks.FOLDER / "src" / f"{name}.py"
    made, tasks = grading.assignment(source), exercises.exercises_of(source)
    nbformat.validate(made)
    known = {cell.metadata.nbgrader.grade_id: cell for cell in made.cells if "nbgrader" in cell.metadata}
    assert list(known) == [part for task in tasks for part in (task.name, f"{task.name}-check")]
    assert all("### BEGIN SOLUTION" in known[task.name].source for task in tasks)
    assert all(known[f"{task.name}-check"].metadata.nbgrader.points >= 1 for task in tasks)
    text = "".join(cell.source for cell in made.cells if cell.cell_type == "markdown")
    assert "<summary>Hint" in text and "<summary>Solution" not in text


def test_a_course_is_of_notebooks_with_exercises(tmp_path, capsys):
    with pytest.raises(ConfigError, match="no exercises"):
        grading.course(tmp_path, ["00_quickstart"])
    assert grading.main([str(tmp_path), "07_missing"]) == 1
    assert "there is no notebook 07_missing" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_teachers_config_is_kept(tmp_path):
    (tmp_path / "nbgrader_config.py").write_text("# mine\n")
    written = grading.course(tmp_path, NAMED[:1])
    assert (tmp_path / "nbgrader_config.py").read_text() == "# mine\n" and len(written) == 1
