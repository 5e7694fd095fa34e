"""The package's own code in a notebook: shown, never pasted."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]


def show_source(thing: Any) -> None:
    """Shows the code of a function, a method or a class of this package below the cell, and says where it stands."""
    from IPython.display import Markdown, display

    thing = inspect.unwrap(thing)  # below no_grad and the like
    place = Path(inspect.getsourcefile(thing)).resolve().relative_to(PACKAGE.parent).as_posix()
    code = textwrap.dedent(inspect.getsource(thing)).rstrip()
    display(Markdown(f"`{thing.__qualname__}` in `{place}`:\n\n```python\n{code}\n```"))
