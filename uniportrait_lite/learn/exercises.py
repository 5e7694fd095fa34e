"""Exercises in a notebook's source: the reference solution is written once, the reader's stub is made of it.

An exercise is two cells of `notebooks/src/NN_name.py`. The first is the task; what it is stands in its metadata. The
second holds the solution between nbgrader's markers, and ends with the check:

    # %% [markdown] exercise="as_tokens" level="easy" minutes=5 teaches="a feature map is a sequence of tokens"
    # ### A map is a sequence
    #
    # Write `as_tokens(features)` ...
    #
    # **Hint.** Which dimension comes last?

    # %%
    def as_tokens(features):
        ### BEGIN SOLUTION
        return features.flatten(2).transpose(1, 2)
        ### END SOLUTION


    checks.as_tokens(as_tokens)

Readers get `raise NotImplementedError` in the solution's place, and hint and solution folded below the task; the
solutions' notebook has the solution where it belongs. Numbers are counted here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import jupytext
from nbformat import NotebookNode

from uniportrait_lite.errors import ConfigError

LEVELS = ("easy", "medium", "hard")
HINT = "**Hint.**"
STUB = "raise NotImplementedError  # your code, in place of this line"
_SOLUTION = re.compile(
    r"^(?P<indent> *)### BEGIN SOLUTION\n(?P<body>.*?)^ *### END SOLUTION\n", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Exercise:
    """One exercise of a notebook. `solution` and `stub` are the code cell without its check, as the two have it."""

    name: str
    number: int
    title: str
    level: str
    minutes: int
    teaches: str
    task: str  # Markdown, without title and hint
    hint: str
    solution: str
    stub: str
    check: str  # the line of code that checks it
    marked: str  # the solution with nbgrader's markers around what is the student's to write

    def task_cell(self, solved: bool) -> str:
        """The Markdown above the code: the task, hint and solution folded; no solution where it is solved."""
        facts = f"*{self.level}, about {self.minutes} minutes. You practise: {self.teaches}.*"
        parts = [f"### Exercise {self.number}: {self.title}", facts, self.task, _folded("Hint", self.hint)]
        if not solved:
            parts.append(_folded("Solution", f"```python\n{self.solution.strip()}\n```"))
        return "\n\n".join(parts)


def read(source: str | os.PathLike) -> list[NotebookNode | Exercise]:
    """The cells of a source in order, with an `Exercise` in place of each pair of cells that is one.

    Raises ConfigError, naming the exercise, where its cells are not as the module says.
    """
    cells, found, number = iter(jupytext.read(source, fmt="py:percent").cells), [], 0
    for cell in cells:
        if "exercise" in cell.metadata:
            number += 1
            found.append(_exercise(cell, next(cells, None), number))
        elif "### BEGIN SOLUTION" in cell.source:
            raise ConfigError(f"a solution without a task: put the task's cell before\n{cell.source[:200]}")
        else:
            found.append(cell)
    names = [item.name for item in found if isinstance(item, Exercise)]
    if len(set(names)) < len(names):
        raise ConfigError(f"two exercises have one name: {', '.join(names)}")
    return found


def exercises_of(source: str | os.PathLike) -> list[Exercise]:
    """The exercises of a source alone."""
    return [item for item in read(source) if isinstance(item, Exercise)]


def cells(source: str | os.PathLike, solved: bool) -> Iterator[tuple[str, str, str, list[str]]]:
    """A notebook's cells for readers, or solved: kind, text, a key that stays when the text is edited, tags."""
    for item in read(source):
        if not isinstance(item, Exercise):
            yield item.cell_type, item.source, item.source.partition("\n")[0], list(item.metadata.get("tags", ()))
            continue
        yield "markdown", item.task_cell(solved), f"exercise {item.name}", []
        yield "code", (item.solution if solved else item.stub) + item.check, f"exercise {item.name}", []


def _exercise(task: NotebookNode, code: NotebookNode | None, number: int) -> Exercise:
    """An exercise of its two cells; ConfigError where something is missing."""
    facts, name = task.metadata, task.metadata["exercise"]

    def wanted(fulfilled: object, what: str) -> None:
        if not fulfilled:
            raise ConfigError(f"exercise {name}: {what}")

    wanted(facts.get("level") in LEVELS, f"its level is one of {', '.join(LEVELS)}")
    wanted(isinstance(facts.get("minutes"), int), "minutes=... says how long it takes")
    wanted(facts.get("teaches"), 'teaches="..." says what one practises')
    title, _, text = task.source.partition("\n")
    text, _, hint = text.partition(HINT)
    wanted(title.startswith("### ") and text.strip(), "its first cell is Markdown: ### and a title, then the task")
    wanted(hint.strip(), f"a paragraph that begins with {HINT} ends the task")
    wanted(code is not None and code.cell_type == "code", "a cell of code follows the task")
    body, _, check = code.source.rstrip().rpartition("\n")
    wanted(re.fullmatch(rf"checks\.{name}\(.*\)", check), f"the last line of its code is checks.{name}(...)")
    wanted(len(_SOLUTION.findall(body + "\n")) == 1, "one solution stands between ### BEGIN and ### END SOLUTION")
    body += "\n"
    return Exercise(
        name, number, title.removeprefix("### ").strip(), facts["level"], facts["minutes"], facts["teaches"],
        text.strip(), hint.strip(), _SOLUTION.sub(lambda m: m["body"], body),
        _SOLUTION.sub(lambda m: f"{m['indent']}{STUB}\n", body), check, body,
    )  # fmt: skip


def _folded(summary: str, text: str) -> str:
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"
