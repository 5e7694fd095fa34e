"""Where the repository is: said once, in `pyproject.toml` (project.urls), and stamped from there on everything else.

`python -m uniportrait_lite.learn.notebooks stamp` writes it anew into README.md, notebooks/README.md and the notebooks
(badges, clone commands); `... check` and the tests hold them to it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from uniportrait_lite.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
BRANCH = "main"
UNKNOWN = "OWNER"  # in the address, as long as nobody knows it
CLONE = "uniportrait-lite"  # the folder that a clone is told to make
_CLONED = re.compile(rf"(git clone --depth 1 )\S+( {CLONE})")
_BLOCK = re.compile(r"(<!-- badges(?P<what>[^>]*?) -->\n).*?(<!-- /badges -->)", re.DOTALL)
_COLAB, _BINDER, _VIEWER = (
    "https://colab.research.google.com/assets/colab-badge.svg",
    "https://mybinder.org/badge_logo.svg",
    "https://raw.githubusercontent.com/jupyter/design/main/logos/Badges/nbviewer_badge.svg",
)


def address(root: Path = ROOT) -> str:
    """The repository's address, as https://github.com/OWNER/NAME; `ConfigError` where pyproject.toml has no such."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = project.get("urls", {}).get("Repository", "").rstrip("/")
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", found):
        raise ConfigError(
            f"pyproject.toml: [project.urls] Repository is an address as https://github.com/OWNER/NAME, not {found!r}: "
            "Colab, Binder and nbviewer open notebooks from there"
        )
    return found


def badges(path: str, where: str) -> str:
    """Markdown: a notebook (its path in the repository), or a folder of them, opened in Colab, Binder and nbviewer."""
    name = where.removeprefix("https://github.com/")
    links = {
        f"[![Open in Colab]({_COLAB})]": f"https://colab.research.google.com/github/{name}/blob/{BRANCH}/{path}",
        f"[![Open in Binder]({_BINDER})]": f"https://mybinder.org/v2/gh/{name}/{BRANCH}?labpath={path}",
        f"[![Read in nbviewer]({_VIEWER})]": f"https://nbviewer.org/github/{name}/blob/{BRANCH}/{path}",
    }
    return " ".join(f"{badge}({link})" for badge, link in links.items())


def stamped(text: str, where: str, names: Iterable[str]) -> str:
    """A page's Markdown with this address in its clone commands and its blocks of badges.

    A block is what stands between `<!-- badges NAME -->` and `<!-- /badges -->`: those of one notebook, or, without a
    NAME, a list of all.
    """
    names = list(names)

    def block(found: re.Match) -> str:
        only = found["what"].strip()
        if only:
            lines = [badges(f"notebooks/{only}.ipynb", where)]
        else:
            lines = [f"* `{name}` {badges(f'notebooks/{name}.ipynb', where)}" for name in names]
        if f"/{UNKNOWN}/" in where:
            lines += ["", f"*{UNKNOWN} is not known yet: the links work once `pyproject.toml` says where this is.*"]
        return found[1] + "\n".join(lines) + "\n" + found[3]

    return _BLOCK.sub(block, _CLONED.sub(lambda found: f"{found[1]}{where}{found[2]}", text))
