"""Notebooks from their sources: `python -m uniportrait_lite.learn.notebooks build|check|stamp [NAME ...]`.

`notebooks/src/NN_name.py` (percent format) is what people edit; `notebooks/NN_name.ipynb` is made of it, run from top
to bottom and stored with what it showed. A source with exercises (see exercises.py) also makes
`notebooks/solutions/NN_name.ipynb`, in which they are solved. Needs the `dev` extra.

Under a source's title (`# # ...`, its first cell) come badges, and a first cell of code, the same in all notebooks: it
looks whether everything is there (see setup.py), and gives `PROFILE`, for `upl.load(PROFILE)`. `stamp` writes another
address of the repository (see address.py) into what is stored, without running it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from uniportrait_lite.errors import ConfigError, UniPortraitError
from uniportrait_lite.learn import exercises
from uniportrait_lite.learn.address import CLONE, address, badges, stamped

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
MAX_BYTES, MAX_LINES, MAX_CELLS = 300_000, 25, 60  # of a file; of code in a cell; in a notebook, beside its setup
IGNORED, RAISES = "nbval-ignore-output", "raises-exception"
CELL_TIMEOUT = 1800  # seconds: a cell that trains for four minutes, on a busy machine
_WIDGET = "application/vnd.jupyter.widget-view+json"
_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "pygments_lexer": "ipython3",
    },
}
SETUP = """\
# Setup, the same in every notebook: it says what is missing here, and on Colab fetches it.
import os
import sys

if "COLAB_RELEASE_TAG" in os.environ:
    clone = "git clone --depth 1 {address} {clone}"
    if not os.path.exists("{clone}") and os.system(clone):
        raise OSError(f"`{{clone}}` failed: is this the address?")
    sys.path.insert(0, "{clone}")
try:
    from uniportrait_lite.learn import setup
except ImportError:
    advice = "`make lab` in a clone of the project installs it and opens this page"
    raise ImportError(f"no uniportrait_lite for {{sys.executable}}: {{advice}}") from None
PROFILE = setup.ready()  # ready("./mine") takes another profile than "tiny", as UPL_PROFILE does
"""
_LINK = re.compile(r"\]\((?P<name>\d\d_\w+)\.ipynb\)")
_ABSOLUTE = re.compile(r"(?<![\w.:/~-])/(?:home|root|Users|tmp|var|usr|opt|mnt|work|private|content)/|\b[A-Z]:\\\w")


def names_in(folder: Path = FOLDER) -> list[str]:
    """The notebooks that have a source, in order."""
    return sorted(path.stem for path in (folder / "src").glob("[0-9]*.py"))


def targets(name: str, folder: Path = FOLDER) -> dict[Path, bool]:
    """The notebooks that a source makes, and whether their exercises are solved."""
    found = {folder / f"{name}.ipynb": False}
    if exercises.exercises_of(folder / "src" / f"{name}.py"):
        found[folder / "solutions" / f"{name}.ipynb"] = True
    return found


def generate(source: str | os.PathLike, solved: bool = False) -> NotebookNode:
    """A source -> its notebook, not run yet; the same source gives the same notebook, cell ids included."""
    notebook = nbformat.v4.new_notebook(metadata=_METADATA)
    used: dict[str, int] = {}
    cells = list(exercises.cells(source, solved))
    if cells and cells[0][0] == "markdown" and cells[0][1].startswith("# "):
        cells[:1] = _opening(Path(source).stem, solved, *cells[0])
    for kind, text, key, tags in cells:
        if solved:
            text = _LINK.sub(lambda link: _from_solutions(link, Path(source).parent), text)
        made = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}[kind]
        notebook.cells.append(made(text, id=_cell_id(kind, key, used), metadata={"tags": tags} if tags else {}))
    return notebook


def _from_solutions(link: re.Match, sources: Path) -> str:
    """A link to a notebook, from the folder of solutions: one up, where the other has none."""
    other = sources / f"{link['name']}.py"
    up = other.is_file() and not exercises.exercises_of(other)
    return f"](../{link['name']}.ipynb)" if up else link[0]


def _opening(name: str, solved: bool, kind: str, text: str, key: str, tags: list[str]) -> list[tuple]:
    """The title's cell with badges below the title, and the cell that sets up."""
    where = address()
    title, _, rest = text.partition("\n")
    links = badges(f"notebooks/{'solutions/' if solved else ''}{name}.ipynb", where)
    setup = SETUP.format(address=where, clone=CLONE).rstrip()
    return [(kind, f"{title}\n\n{links}\n{rest}".rstrip(), key, tags), ("code", setup, "setup", [])]


def execute(notebook: NotebookNode, folder: Path = FOLDER, progress: bool = False) -> None:
    """Runs every cell in a kernel of its own, as from `folder`, and stores what it shows. CellExecutionError."""
    code = [cell.id for cell in notebook.cells if cell.cell_type == "code"]
    began = time.perf_counter()

    def executed(cell: NotebookNode, cell_index: int, execute_reply: dict) -> None:
        first = cell.source.splitlines()[0]
        print(f"  {code.index(cell.id) + 1}/{len(code)} after {time.perf_counter() - began:.0f} s: {first}", flush=True)

    NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        store_widget_state=False,  # random ids, and nothing that works without a kernel
        record_timing=False,
        coalesce_streams=True,
        on_cell_executed=executed if progress else None,
    ).execute()
    notebook.metadata = nbformat.from_dict(_METADATA)
    for output in _outputs(notebook):
        output.get("data", {}).pop(_WIDGET, None)  # a model that is gone; its plain text says what it was


def build(name: str, folder: Path = FOLDER, progress: bool = False) -> list[Path]:
    """Makes and runs a source's notebooks; writes each whole, or ConfigError: a cell fails, a habit is broken."""
    source = folder / "src" / f"{name}.py"
    if not source.is_file():
        raise ConfigError(f"there is no {source.name} in {source.parent}: there are {', '.join(names_in(folder))}")
    made = targets(name, folder)
    for target, solved in made.items():
        _build(source, target, solved, progress)
    return list(made)


def _build(source: Path, target: Path, solved: bool, progress: bool) -> None:
    notebook, name = generate(source, solved), f"{target.parent.name}/{target.stem}"
    target.parent.mkdir(exist_ok=True)
    try:
        execute(notebook, target.parent, progress)
    except CellExecutionError as error:
        raise ConfigError(f"{name} was not written, as a cell fails:\n{error}") from error
    text = nbformat.writes(notebook) + "\n"
    if broken := list(habits(notebook, len(text.encode()))):
        raise ConfigError(f"{name} was not written:\n" + "\n".join(broken))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def stamp(folder: Path = FOLDER) -> list[Path]:
    """Writes the repository's address into the stored notebooks and the two READMEs; returns what has changed."""
    changed, where, names = [], address(), names_in(folder)
    for page in pages(folder):
        text = page.read_text(encoding="utf-8")
        if (new := stamped(text, where, names)) != text:
            page.write_text(new, encoding="utf-8")
            changed.append(page)
    for name in names:
        for target, solved in targets(name, folder).items():
            if not target.is_file():
                continue
            expected = generate(folder / "src" / f"{name}.py", solved)
            stored = nbformat.read(target, as_version=nbformat.NO_CONVERT)
            before = [cell.source for cell in stored.cells]
            for new, old in zip(expected.cells[:2], stored.cells[:2], strict=False):
                old.source = new.source if new.id == old.id else old.source
            if [cell.source for cell in stored.cells] != before:
                target.write_text(nbformat.writes(stored) + "\n", encoding="utf-8")
                changed.append(target)
    return changed


def pages(folder: Path = FOLDER) -> list[Path]:
    """The pages that name the repository's address, beside the notebooks."""
    return [page for page in (folder.parent / "README.md", folder / "README.md") if page.is_file()]


def check(name: str, folder: Path = FOLDER) -> list[str]:
    """What is wrong with a source's stored notebooks, one line each: they must be what it generates, run in order."""
    source = folder / "src" / f"{name}.py"
    if not source.is_file():
        return [f"{source.name} is missing: make notebooks"]
    return [problem for target, solved in targets(name, folder).items() for problem in _check(source, target, solved)]


def _check(source: Path, target: Path, solved: bool) -> list[str]:
    if not target.is_file():
        return [f"{'solutions/' if solved else ''}{target.name} is missing: make notebooks"]
    expected, stored = generate(source, solved), nbformat.read(target, as_version=nbformat.NO_CONVERT)
    problems = []
    if (stored.nbformat, stored.nbformat_minor) != (expected.nbformat, expected.nbformat_minor):
        problems.append(f"it is of notebook format {stored.nbformat}.{stored.nbformat_minor}")
    if stored.metadata != expected.metadata:
        problems.append("its metadata are not those of a generated notebook")
    if len(stored.cells) != len(expected.cells):
        problems.append(f"it has {len(stored.cells)} cells and its source {len(expected.cells)}")
    for number, (a, b) in enumerate(zip(expected.cells, stored.cells, strict=False), 1):
        differ = [key for key in ("cell_type", "id", "source", "metadata") if a[key] != b.get(key)]
        if differ:
            problems.append(f"cell {number} differs from its source in {', '.join(differ)}")
    problems += habits(stored, target.stat().st_size)
    return [f"{'solutions/' if solved else ''}{target.stem}: {problem}" for problem in problems]


def habits(notebook: NotebookNode, size: int) -> Iterator[str]:
    """What breaks the habits of this project's notebooks, in words; `size` is that of the file in bytes."""
    if size > MAX_BYTES:
        yield f"it has {size / 1000:.0f} KB, and {MAX_BYTES / 1000:.0f} are enough"
    if len(notebook.cells) > MAX_CELLS + 1:  # the setup is not counted
        yield f"it has {len(notebook.cells)} cells, and {MAX_CELLS} are enough"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        yield f"its cells were not run once each, in order: {counts}"
    ignored = sum(IGNORED in cell.metadata.get("tags", ()) for cell in code)
    if ignored > len(code) / 10:
        yield f"{ignored} of {len(code)} cells are not compared, more than a tenth"
    for number, cell in enumerate(notebook.cells, 1):
        if _ABSOLUTE.search(cell.source):
            yield f"cell {number} names a path of one machine"
        if cell.cell_type == "code":
            yield from (f"cell {number} {problem}" for problem in _code_habits(cell))


def _code_habits(cell: NotebookNode) -> Iterator[str]:
    lines = sum(bool(line.strip()) for line in cell.source.splitlines())
    if lines > MAX_LINES:
        yield f"has {lines} lines of code, and {MAX_LINES} are enough"
    for output in cell.outputs:
        if output.output_type == "error" and RAISES not in cell.metadata.get("tags", ()):
            yield f"fails: {output.ename}: {output.evalue}"
        if output.get("name") == "stderr":
            yield f"writes to stderr: {output.text.strip()[:300]}"
        if output.get("data", {}).keys() & {_WIDGET}:
            yield "stores a widget, which no page can show"
        shown = {k: v for k, v in output.get("data", {}).items() if not k.startswith("image/") or k.endswith("+xml")}
        texts = [output.get("text", ""), *map(str, shown.values()), *output.get("traceback", [])]
        if any(_ABSOLUTE.search(text) for text in texts):
            yield "shows a path of one machine"


def _outputs(notebook: NotebookNode) -> Iterator[NotebookNode]:
    return (output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)


def _cell_id(kind: str, key: str, used: dict[str, int]) -> str:
    """Of the kind and first line, or the exercise's name: editing a cell's body, or the cells around it, keeps it."""
    name = hashlib.sha256(f"{kind} {key}".encode()).hexdigest()[:8]
    used[name] = used.get(name, 0) + 1
    return name if used[name] == 1 else f"{name}-{used[name]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Builds, checks or stamps notebooks, all without names; returns 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m uniportrait_lite.learn.notebooks", description=__doc__)
    parser.add_argument("action", choices=("build", "check", "stamp"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="as 00_quickstart; all without")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where src/ is (default: the project's notebooks)")
    args = parser.parse_args(argv)
    names = args.names or names_in(args.folder)
    if not names:
        print(f"there is no notebook in {args.folder / 'src'}", file=sys.stderr)
        return 1
    failed = False
    if args.action == "stamp":
        try:
            print("\n".join(f"stamped {path}" for path in stamp(args.folder)) or f"all have {address()} already")
        except UniPortraitError as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    for name in names:
        began = time.perf_counter()
        try:
            if args.action == "check":
                problems = check(name, args.folder)
                print("\n".join(problems) or f"{name}: as its source")
                failed |= bool(problems)
            else:
                print(f"{name}:", flush=True)
                paths = build(name, args.folder, progress=True)
                sizes = " and ".join(f"{path.stat().st_size / 1000:.0f} KB" for path in paths)
                print(f"{name}: {sizes}, run in {time.perf_counter() - began:.0f} s")
        except UniPortraitError as error:
            print(error, file=sys.stderr)
            failed = True
    if args.action == "build":
        stamp(args.folder)  # the lists of notebooks in the READMEs
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
