"""The exercises as an nbgrader course: `python -m uniportrait_lite.learn.grading COURSE [NAME ...]`.

Writes `COURSE/nbgrader_config.py` and `COURSE/source/NN_name/NN_name.ipynb`, made of the same sources as the readers'
notebooks. In each, an exercise is three cells: the task; the solution, between nbgrader's markers, which `nbgrader
generate_assignment` takes out; and a locked cell whose check gives the points, or says what is wrong. Needs the `dev`
extra. notebooks/TEACHING.md shows the way from here to grades.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from uniportrait_lite.errors import ConfigError, UniPortraitError
from uniportrait_lite.learn import exercises, notebooks
from uniportrait_lite.learn.exercises import Exercise

POINTS = {"easy": 1, "medium": 2, "hard": 3}
SECONDS = 600  # for one cell of a submission
CONFIG = """\
c = get_config()  # noqa: F821 - nbgrader gives it
c.CourseDirectory.course_id = "uniportrait_lite"
c.ClearSolutions.code_stub = {{"python": "{stub}"}}
c.Execute.timeout = {seconds}
"""


def assignment(source: str | os.PathLike) -> NotebookNode:
    """A source -> the instructor's notebook of its nbgrader assignment; ConfigError where it has no exercises."""
    made = notebooks.generate(source)
    tasks = {task.task_cell(solved=False): task for task in exercises.exercises_of(source)}
    if not tasks:
        raise ConfigError(f"{Path(source).name} has no exercises to grade")
    cells: list[NotebookNode] = []
    task = None
    for cell in made.cells:
        if task is not None:  # its stub, right after it
            cells += _graded(task, cell.id)
        else:
            cells.append(cell)
        task = tasks.get(cell.source)
        if task is not None:
            cell.source = task.task_cell(solved=True)  # the hint alone is folded below it
    made.cells = cells
    return made


def _graded(task: Exercise, cell_id: str) -> list[NotebookNode]:
    """The two cells that nbgrader knows: the answer's, which the student edits, and the check's, which counts."""
    answer = nbformat.v4.new_code_cell(f"{task.marked}{task.check}", id=cell_id)
    answer.metadata["nbgrader"] = _nbgrader(task.name, solution=True)
    judged = f"verdict = {task.check}\nassert verdict, verdict"
    check = nbformat.v4.new_code_cell(judged, id=f"{cell_id}-check")
    check.metadata["nbgrader"] = _nbgrader(f"{task.name}-check", grade=True) | {"points": POINTS[task.level]}
    return [answer, check]


def _nbgrader(grade_id: str, solution: bool = False, grade: bool = False) -> dict:
    return {
        "schema_version": 3, "grade_id": grade_id, "solution": solution, "grade": grade, "locked": grade, "task": False,
    }  # fmt: skip


def course(folder: str | os.PathLike, names: Sequence[str], notebooks_folder: Path = notebooks.FOLDER) -> list[Path]:
    """Writes an nbgrader course with an assignment for each notebook; returns what it wrote.

    A config that is there is kept. ConfigError for a notebook that is not there, or has no exercises.
    """
    folder, made = Path(folder), {}
    for name in names:
        source = notebooks_folder / "src" / f"{name}.py"
        if not source.is_file():
            there = ", ".join(notebooks.names_in(notebooks_folder))
            raise ConfigError(f"there is no notebook {name}: there are {there}")
        made[folder / "source" / name / f"{name}.ipynb"] = nbformat.writes(assignment(source)) + "\n"
    config = folder / "nbgrader_config.py"
    if not config.exists():
        made[config] = CONFIG.format(stub=exercises.STUB, seconds=SECONDS)
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(made)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the course, of all notebooks with exercises without names; returns 1 where that is not possible."""
    parser = argparse.ArgumentParser(prog="python -m uniportrait_lite.learn.grading", description=__doc__)
    parser.add_argument("course", type=Path, metavar="COURSE", help="the folder of the nbgrader course")
    parser.add_argument("names", nargs="*", metavar="NAME", help="as 02_id_embedding; all with exercises without")
    parser.add_argument("--folder", type=Path, default=notebooks.FOLDER, help="where src/ is")
    args = parser.parse_args(argv)
    with_exercises = [
        name for name in notebooks.names_in(args.folder) if exercises.exercises_of(args.folder / "src" / f"{name}.py")
    ]
    try:
        written = course(args.course, args.names or with_exercises, args.folder)
    except UniPortraitError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(f"wrote {path}" for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
