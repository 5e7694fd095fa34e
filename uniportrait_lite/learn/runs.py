"""A training in a process of its own, watched from a notebook while it goes on."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uniportrait_lite.errors import ConfigError
from uniportrait_lite.learn.progress import LivePlot, progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOK = 3.0  # seconds from one look at a run to the next
PROGRAM = "uniportrait_lite"  # what `python -m` runs
WORDS = re.compile(r"[^\r\n]*\S[^\r\n]*")  # a line with something in it; progress bars end theirs with \r


def watch(arguments: Sequence[str | Path], folder: Path, draw: Callable[[list[dict]], Figure], says: str) -> list[dict]:
    """Runs `python -m uniportrait_lite ARGUMENTS`, a training with the run folder `folder`, and returns its log.

    Meanwhile the plot `draw(log)` is drawn again whenever the log grows, with what the command said last below; `says`
    is the plot's text. A run that was stopped goes on, one that is finished shows at once: the command sees to it.
    Interrupting the cell stops the run. Raises `ConfigError` with the command's last words where it fails.
    """
    plot, shown, ended = LivePlot(draw([]), says), [], False
    with tempfile.TemporaryDirectory() as folder_of_words:
        words = Path(folder_of_words) / "words"
        with progress("the run is finished"), _running(arguments, words) as process:
            while not ended:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK)
                ended = process.poll() is not None
                if (log := read_log(folder)) != shown:
                    plot.show(draw(log))
                    shown = log
                print(*WORDS.findall(words.read_text("utf-8", "replace"))[-1:])
        said = WORDS.findall(words.read_text("utf-8", "replace"))
    if process.returncode:
        raise ConfigError("the run stopped: " + " ".join(said[-3:]))
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
