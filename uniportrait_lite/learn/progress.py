"""Something to look at while a cell takes its time: the last line that is said, and a plot that grows."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ipywidgets import Label

from uniportrait_lite.learn import viz

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
    """Inside it, the last line that is printed, or written to the standard error as by tqdm, shows below the cell.

    Afterwards, and where no kernel runs, `what` stands there.
    """
    from IPython.display import display

    line = _Line(what)
    display(line.label)
    with contextlib.redirect_stderr(line), contextlib.redirect_stdout(line):
        yield
    line.label.value = what


class LivePlot:
    """A plot below the cell that can be drawn again; `says` is its text where pictures are not shown."""

    def __init__(self, drawing: Figure, says: str):
        from IPython.display import display

        self.says = says
        data, metadata = viz.plotted(drawing, says)
        self._handle = display(data, metadata=metadata, raw=True, display_id=True)

    def show(self, drawing: Figure) -> None:
        """Puts another figure in its place."""
        data, metadata = viz.plotted(drawing, self.says)
        self._handle.update(data, metadata=metadata, raw=True)


class _Label(Label):
    """A line of text that says the same on every page that cannot show it."""

    def __init__(self, what: str):
        super().__init__("...")
        self.what = what

    def __repr__(self) -> str:
        return self.what


class _Line(io.TextIOBase):
    """What is written to it shows in `label`, line by line; \\r begins one anew, as for tqdm."""

    def __init__(self, what: str):
        self.label = _Label(what)

    def write(self, text: str) -> int:
        if words := [part.strip() for part in text.replace("\r", "\n").splitlines() if part.strip()]:
            self.label.value = words[-1]
        return len(text)
