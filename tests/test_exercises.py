"""Exercises: written once, solved; readers get stubs, hints and solutions folded; checks name what is wrong."""

import nbformat
import pytest
import torch

from uniportrait_lite.errors import ConfigError
from uniportrait_lite.learn import exercises, notebooks
from uniportrait_lite.learn.checks.verdict import OPEN, check, demand, equal

SOURCE = '''\
# %%
from uniportrait_lite.learn.checks.verdict import check, demand


class checks:
    @check("Twice is two times.")
    def twice(answer):
        demand(answer(3) == 6, "that is not twice")


# %% [markdown] exercise="twice" level="easy" minutes=2 teaches="multiplying"
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


@pytest.fixture
def source(tmp_path):
    (tmp_path / "src").mkdir()
    path = tmp_path / "src" / "01_small.py"
    path.write_text(SOURCE)
    return path


# --- the two notebooks ------------------------------------------------------------------------------------------------
def test_a_source_with_exercises_makes_two_notebooks_that_run(source, tmp_path):
    paths = notebooks.build("01_small", tmp_path)
    assert paths == [tmp_path / "01_small.ipynb", tmp_path / "solutions" / "01_small.ipynb"]
    assert notebooks.check("01_small", tmp_path) == []
    verdicts = []
    for path in paths:
        code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == [1, 2, 3]
        assert code[-1].outputs[0].text == "goes on\n"
        verdicts.append(code[1].outputs[0].data["text/plain"])
    assert verdicts == [OPEN, "Right. Twice is two times."]
    paths[1].unlink()
    assert notebooks.check("01_small", tmp_path) == ["solutions/01_small.ipynb is missing: make notebooks"]


def test_a_solution_that_leaked_into_the_readers_notebook_is_seen(source, tmp_path):
    target, _ = notebooks.build("01_small", tmp_path)
    target.write_text(target.read_text().replace("raise NotImplementedError  # your code, in place of", "return 2 *"))
    assert "cell 3 differs from its source in source" in notebooks.check("01_small", tmp_path)[0]


def test_readers_get_the_stub_and_everything_else_folded(source):
    cells = notebooks.generate(source).cells
    task, stub = cells[1:3]
    assert task.source.startswith("### Exercise 1: Twice\n\n*easy, about 2 minutes. You practise: multiplying.*")
    assert "<summary>Hint</summary>\n\nOnce more." in task.source and "**Hint.**" not in task.source
    assert "raise NotImplementedError" in stub.source and "2 * x" not in stub.source
    assert stub.source.endswith("\n\n\nchecks.twice(twice)")
    solution = task.source.split("<summary>Solution</summary>")[1]
    assert "return 2 * x" in solution and "checks" not in solution
    assert not any("SOLUTION" in cell.source for cell in cells)


def test_the_solutions_hold_the_solution_in_the_stubs_place_and_keep_its_id(source):
    cells, solved = notebooks.generate(source).cells, notebooks.generate(source, solved=True).cells
    assert [cell.id for cell in solved] == [cell.id for cell in cells]
    assert "Hint" in solved[1].source and "Solution" not in solved[1].source
    assert '"""Twice x."""\n    return 2 * x\n\n\nchecks.twice(twice)' in solved[2].source


def test_ids_stay_when_an_exercise_is_put_before(source):
    before = {cell.id for cell in notebooks.generate(source).cells}
    first, rest = SOURCE.split("# %% [markdown]", 1)
    another = rest.replace("twice", "more").split("# %%\nprint")[0]
    source.write_text(f"{first}# %% [markdown]{another}# %% [markdown]{rest}")
    assert [item.number for item in exercises.exercises_of(source)] == [1, 2]
    assert before <= {cell.id for cell in notebooks.generate(source).cells}


@pytest.mark.parametrize(
    "old, new, said",
    [
        ('level="easy"', 'level="trivial"', "twice: its level is one of easy, medium, hard"),
        (" minutes=2", "", "minutes"),
        ('teaches="multiplying"', 'teaches=""', "what one practises"),
        ("# **Hint.** Once more.\n", "", "ends the task"),
        ("# ### Twice", "# Twice", "### and a title"),
        ("checks.twice(twice)\n\n", "print(twice(1))\n\n", "the last line of its code is checks.twice"),
        ("    ### END SOLUTION\n", "", "### BEGIN and ### END SOLUTION"),
        ("# %% [markdown] exercise", "# %% [markdown] excercise", "a solution without a task"),
    ],
)
def test_an_exercise_that_lacks_something_is_refused(source, old, new, said):
    assert old in SOURCE
    source.write_text(SOURCE.replace(old, new))
    with pytest.raises(ConfigError, match=said):
        exercises.read(source)


def test_two_exercises_of_one_name_are_refused(source):
    source.write_text(SOURCE + "\n" + SOURCE[SOURCE.index("# %% [markdown]") :])
    with pytest.raises(ConfigError, match="one name"):
        exercises.read(source)


# --- the package's code -----------------------------------------------------------------------------------------------
SHOWS = """\
# %%
from uniportrait_lite.features import IDFeatures
from uniportrait_lite.learn.source import show_source

show_source(IDFeatures.of_references)
"""


def test_source_is_shown_as_it_stands_with_its_place(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "00_shows.py").write_text(SHOWS)
    (path,) = notebooks.build("00_shows", tmp_path)
    text = nbformat.read(path, 4).cells[0].outputs[0].data["text/markdown"]
    assert text.startswith(
        "`IDFeatures.of_references` in `uniportrait_lite/features.py`:\n\n```python\n@staticmethod\n"
    )
    assert text.endswith("\n```")


# --- verdicts ---------------------------------------------------------------------------------------------------------
@check("Doubled.")
def doubled(answer):
    x = torch.arange(6.0).view(2, 3)
    equal(answer(x), 2 * x, {"that is the square": x.square(), "that is the sum": (2 * x).sum(0)})


@pytest.mark.parametrize(
    "answer, said",
    [
        (lambda x: x.square(), "that is the square"),
        (lambda x: (2 * x).sum(0), "that is the sum"),
        (lambda x: None, "is there a `return`?"),
        (lambda x: (2 * x).numpy(), "returns a ndarray"),
        (lambda x: (2 * x).T, r"shape \(3, 2\), and \(2, 3\) is wanted: two dimensions are swapped"),
        (lambda x: 2 * x[:1], r"shape \(1, 3\), and \(2, 3\) is wanted$"),
        (lambda x: 2 * x.double(), "float64, and torch.float32 is wanted"),
        (lambda x: (2 * x).to("meta"), "on meta, and its input is on cpu"),
        (lambda x: 2 * x / 0, "infinite or NaN"),
        (lambda x: 2 * x + 0.5, "differ by up to 0.5"),
        (lambda x: x @ x, "stops with RuntimeError"),
        (lambda x, y: 2 * x, "missing 1 required positional argument: 'y'"),
        (lambda x: [2 * x], "returns a list"),
        (lambda x: 2 * (x > 0), "int64, and torch.float32 is wanted|values are not"),
        (lambda x: 2 * never_made * x, "'never_made' is not defined .*by a cell that has not run yet"),  # noqa: F821
        (lambda x: x.mul_(2).add_(1), "overwrites its argument x: write x = x \\+ y, not x \\+= y$"),
        (lambda x: x.mul_(3), "overwrites its argument x"),
        (3, "give the function itself, not int"),
    ],
)
def test_a_wrong_answer_is_told_what_is_wrong(answer, said):
    verdict = doubled(answer)
    assert not verdict
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(repr(verdict))


def test_a_right_answer_and_an_untouched_stub():
    def stub(x):
        raise NotImplementedError

    assert doubled(lambda x: x + x) and repr(doubled(lambda x: x + x)) == "Right. Doubled."
    assert not doubled(stub) and repr(doubled(stub)) == OPEN


def test_an_answer_that_stops_is_shown_the_line():
    def answer(x):
        y = x + 1
        return y.no_such_thing

    assert repr(doubled(answer)).endswith("in `return y.no_such_thing`")


def test_demand_needs_what_it_names():
    @check("")
    def judge(answer):
        demand(answer() == 1, "one is wanted")

    assert judge(lambda: 1) and repr(judge(lambda: 2)) == "Not yet: one is wanted"
