"""What takes a notebook minutes: watched while it goes on, and a word that is the same everywhere afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uniportrait_lite.errors import ConfigError
from uniportrait_lite.learn import viz

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOK = 3.0  # seconds from one look at a run to the next
PROGRAM = "uniportrait_lite"  # what `python -m` runs
WORDS = re.compile(r"[^\r\n]*\S[^\r\n]*")  # a line with something in it; progress bars end theirs with \r


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
    """Inside it, the last line written to the standard error, as by tqdm's bars, shows below the cell.

    Afterwards `what` stands there, done.
    """
    line = _Line()
    with contextlib.redirect_stderr(line):
        yield
    line.show(f"{what}: done")


def watch(arguments: Sequence[str | Path], folder: Path, draw: Callable[[list[dict]], Figure], says: str) -> list[dict]:
    """Runs `python -m uniportrait_lite ARGUMENTS`, a training with the run folder `folder`, and returns its log.

    Meanwhile the plot `draw(log)` is drawn again whenever the log grows, with what the command said last below; `says`
    is the plot's text. A run that was stopped goes on, one that is finished shows at once: the command sees to it.
    Interrupting the cell stops the run. Raises `ConfigError` with the command's last words where it fails.
    """
    from IPython.display import display

    data, metadata = viz.plotted(draw([]), says)
    plot, line, shown, ended = display(data, metadata=metadata, raw=True, display_id=True), _Line(), [], False
    with tempfile.TemporaryDirectory() as folder_of_words:
        words = Path(folder_of_words) / "words"
        with _running(arguments, words) as process:
            while not ended:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK)
                ended = process.poll() is not None
                if (log := read_log(folder)) != shown:
                    data, metadata = viz.plotted(draw(log), says)
                    plot.update(data, metadata=metadata, raw=True)
                    shown = log
                line.write(words.read_text("utf-8", "replace"))
        said = WORDS.findall(words.read_text("utf-8", "replace"))
    if process.returncode:
        raise ConfigError("the run stopped: " + " ".join(said[-3:]))
    line.show(f"the run: {max(entry['step'] for entry in log)} steps done")
    return log


def read_log(folder: Path) -> list[dict]:
    """The lines of a run's log so far; none before it began."""
    path = Path(folder) / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


@contextlib.contextmanager
def _running(arguments: Sequence[str | Path], words: Path) -> Iterator[subprocess.Popen]:
    """The package's command in a process that ends at the latest with the block, and writes what it says to a file."""
    command = [sys.executable, "-m", PROGRAM, *map(str, arguments)]
    with open(words, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


class _Line(io.TextIOBase):
    """A line of text below the cell, which shows the last one written to it."""

    def __init__(self):
        from IPython.display import display

        self._shown = " "
        self._handle = display({"text/plain": self._shown}, raw=True, display_id=True)

    def write(self, text: str) -> int:
        if words := WORDS.findall(text):
            self.show(words[-1].strip())
        return len(text)

    def show(self, text: str) -> None:
        """Puts the text in the line's place."""
        if text != self._shown:
            self._handle.update({"text/plain": text}, raw=True)
            self._shown = text
