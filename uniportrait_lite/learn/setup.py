"""The first cell of every notebook: `ready` says what is missing and what to do, and on Colab installs it.

Imports nothing but the standard library before it has looked, so that it can speak where nothing else is installed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OLDEST, NEWEST = (3, 11), (3, 13)
MODULES = (
    "torch", "numpy", "diffusers", "transformers", "peft", "accelerate", "insightface", "onnxruntime", "cv2", "skia",
    "yaml", "matplotlib", "ipywidgets",
)  # fmt: skip
HELD = ("torch", "numpy")  # Colab's own fit its GPU and each other: nothing here may change them
ABOVE = "A cell above gives it its value: run the cells from the top, in order."


class NotReady(Exception):
    """The notebook cannot run here. Jupyter shows the message alone, without the code that raised it."""

    def _render_traceback_(self) -> list[str]:
        return [f"Not ready: {self}"]


def ready(profile: str | None = None) -> str:
    """The profile to load, once everything that a notebook needs is there; raises `NotReady` that says what to do.

    `profile` is "tiny", "sd15" or a folder of yours, as ./mine; without it, what the variable UPL_PROFILE of the
    environment says, else "tiny". On Colab, missing packages are installed first, around its own torch and numpy.
    """
    profile = profile or os.environ.get("UPL_PROFILE") or "tiny"
    _python(sys.version_info[:2])
    lacking = missing()
    if lacking and "COLAB_RELEASE_TAG" in os.environ:
        install()
        lacking = missing()
    if lacking:
        raise NotReady(
            f"{', '.join(lacking)} cannot be found by {sys.executable}. In the project's folder, `make lab` installs "
            'everything and opens the notebooks; or: pip install -c constraints.txt -e ".[dev]"'
        )
    _libraries()
    profile = _found(profile)
    _weights(profile)
    _explain_names()
    print(f"ready, with the profile {profile}")
    return profile


def missing() -> list[str]:
    """The modules that notebooks import and this Python does not have."""
    return [name for name in MODULES if importlib.util.find_spec(name) is None]


def install(root: Path = ROOT) -> None:
    """Installs what the project's `pyproject.toml` asks for, and leaves the packages in `HELD` as they are.

    Raises `NotReady` where that is not possible.
    """
    import tomllib

    wanted = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "held.txt"
        pins.write_text("".join(f"{name}=={version}\n" for name, version in _installed().items()), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(pins), *wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        held = " and ".join(f"{name} {version}" for name, version in _installed().items())
        raise NotReady(f"the packages that fit beside {held} could not be installed: {done.stderr.strip()[-800:]}")
    importlib.invalidate_caches()


def _installed() -> dict[str, str]:
    """The versions of the packages in `HELD`, where they are installed."""
    found = {}
    for name in HELD:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _python(version: tuple[int, int]) -> None:
    if not OLDEST <= tuple(version) <= NEWEST:
        raise NotReady(
            f"this page runs on Python {version[0]}.{version[1]} ({sys.executable}), and the project needs 3.11, 3.12 "
            "or 3.13. Choose another kernel (in JupyterLab: Kernel, Change Kernel), or run `make lab`, which makes an "
            "environment with one of them"
        )


def _libraries() -> None:
    try:
        import cv2  # noqa: F401 - whether the system has what they draw with
        import skia  # noqa: F401
    except ImportError as error:
        raise NotReady(
            f"drawing and face detection need system libraries ({error}): "
            "sudo apt-get install libgl1 libegl1 libglib2.0-0, then restart the kernel"
        ) from None


def _found(profile: str) -> str:
    """The profile; a folder that is not below the notebook's own, as ./mine, is meant below the project's."""
    from uniportrait_lite.folders import is_path

    below = ROOT / profile
    return str(below) if is_path(profile) and not Path(profile).is_dir() and below.is_dir() else profile


def _weights(profile: str) -> None:
    from uniportrait_lite.doctor import lacking
    from uniportrait_lite.errors import UniPortraitError
    from uniportrait_lite.folders import data_folder

    if profile == "sd15":
        return  # upl.load looks for them, and says where from
    try:
        folder = data_folder(profile)
    except UniPortraitError as error:
        raise NotReady(str(error)) from None
    if files := lacking(folder):
        raise NotReady(
            f"{folder} lacks {', '.join(files)}: `git checkout -- data` brings back what belongs to the project, "
            "`python -m uniportrait_lite doctor` says more"
        )


def _explain_names() -> None:
    """From now on, a cell that stops at an unknown name says that the cells above come first."""
    try:
        from IPython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    if shell is None:  # no notebook: a test, a script
        return

    def explain(shell, kind, error, trace, tb_offset=None):
        error.add_note(ABOVE)
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)

    shell.set_custom_exc((NameError,), explain)
