"""What frozen networks make of a rendered set, computed once and kept on disk.

A store's folder is named by a digest of everything its arrays depend on (weights, drawing code, settings), so arrays
of other weights are never read by mistake. It grows by whole chunks, each moved into place when it is complete: a
killed run goes on where it was, and several processes share the work without meeting.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm


class Store:
    """Arrays by name, one row a scene; `compute(indices)` makes the rows of some scenes."""

    def __init__(self, folder: Path, compute: Callable[[Sequence[int]], dict[str, np.ndarray]], chunk: int):
        self.folder, self.compute, self.chunk = folder, compute, chunk
        self._open: dict[tuple[str, int], np.ndarray] = {}

    def fill(self, count: int, batch: int = 50) -> "Store":
        """Makes sure that the first `count` rows are there (rounded up to whole chunks)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        chunks = range(-(-count // self.chunk))
        with tqdm(total=len(chunks), desc=self.folder.name) as bar:
            while missing := [k for k in chunks if not self._path(k).exists()]:
                bar.update(len(chunks) - len(missing) - bar.n)
                if not any([self._claim(k, batch, wait=False) for k in missing]):
                    self._claim(missing[0], batch, wait=True)  # others are at all that is left, or were killed at it
            bar.update(len(chunks) - bar.n)
        return self

    def rows(self, name: str, indices: Sequence[int], places: Sequence[int] | None = None) -> np.ndarray:
        """The rows of the array `name` at `indices`, stacked; with `places` only that part of each, row[place]."""
        rows = [self._memory(name, i // self.chunk)[i % self.chunk] for i in map(int, indices)]
        return np.stack(rows if places is None else [row[k] for row, k in zip(rows, map(int, places), strict=True)])

    def _path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:03d}"

    def _memory(self, name: str, chunk: int) -> np.ndarray:
        if (name, chunk) not in self._open:
            self._open[name, chunk] = np.asarray(np.load(self._path(chunk) / f"{name}.npy", mmap_mode="r"))
        return self._open[name, chunk]

    def _claim(self, chunk: int, batch: int, wait: bool) -> bool:
        """Writes a chunk that is not there, unless another process is at it (then waits for it); whether it did."""
        path, temporary = self._path(chunk), self.folder / f"{chunk:03d}.tmp"
        try:
            with FileLock(self.folder / f"{chunk:03d}.lock", timeout=-1 if wait else 0):
                if path.exists():
                    return False
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                rows = range(chunk * self.chunk, (chunk + 1) * self.chunk)
                parts = [self.compute(rows[start : start + batch]) for start in range(0, len(rows), batch)]
                for name in parts[0]:
                    np.save(temporary / f"{name}.npy", np.concatenate([part[name] for part in parts]))
                os.replace(temporary, path)
                return True
        except Timeout:
            return False


def digest(*parts: Any) -> str:
    """Ten hex digits from settings (anything JSON can hold) and the contents of files and folders (`Path`s)."""
    total = hashlib.sha256()
    for part in parts:
        if not isinstance(part, Path):
            total.update(json.dumps(part, sort_keys=True).encode())
            continue
        for path in sorted(p for p in part.rglob("*") if p.is_file()) if part.is_dir() else [part]:
            total.update(str(path.relative_to(part) if path != part else path.name).encode())
            total.update(path.read_bytes())
    return total.hexdigest()[:10]
