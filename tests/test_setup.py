"""The first cell of every notebook: where something is missing it says what to do; on Colab it holds torch still."""

import os
import subprocess
import sys
import textwrap
import venv
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from uniportrait_lite import doctor
from uniportrait_lite.folders import data_folder
from uniportrait_lite.learn import notebooks, setup

ROOT = Path(__file__).parents[1]
CELL = notebooks.generate(notebooks.FOLDER / "src" / "00_quickstart.py").cells[1].source


def run(before="", folder=ROOT, **environment):
    """The last line that the first cell ends with, in a Python of its own: its error, or what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", f"{textwrap.dedent(before)}\n{CELL}"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )
    return (done.stdout + done.stderr).strip().splitlines()[-1]


# --- where everything is there ----------------------------------------------------------------------------------------
def test_every_notebook_begins_with_the_same_cell():
    for name in notebooks.names_in():
        title, cell = notebooks.generate(notebooks.FOLDER / "src" / f"{name}.py").cells[:2]
        assert title.source.startswith("# ") and cell.source == CELL


def test_it_gives_the_profile(tmp_path):
    assert run() == "ready, with the profile tiny"
    mine = tmp_path / "mine"
    mine.symlink_to(data_folder("tiny"))
    assert run(UPL_PROFILE=str(mine)) == f"ready, with the profile {mine}"
    assert setup.ready(f"{mine}") == f"{mine}"


def test_a_folder_of_the_project_is_found_from_a_notebook(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    (tmp_path / "mine").symlink_to(data_folder("tiny"))
    assert setup.ready("./mine") == str(tmp_path / "mine")


# --- what is missing --------------------------------------------------------------------------------------------------
def test_without_the_package(tmp_path):
    hide = """
        import sys
        class Hidden:
            def find_spec(self, name, path=None, target=None):
                if name.startswith("uniportrait_lite"):
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Hidden())
    """
    said = run(hide, folder=tmp_path)
    assert said.startswith(f"ImportError: no uniportrait_lite for {sys.executable}: `make lab` in a clone")


@pytest.mark.parametrize("version", ["(3, 10, 4)", "(3, 14, 0)"])
def test_with_the_wrong_python(version):
    said = run(f"import sys; sys.version_info = {version}")
    assert "needs 3.11, 3.12 or 3.13" in said and "Choose another kernel" in said


def test_without_a_library(monkeypatch):
    monkeypatch.setattr(setup, "MODULES", (*setup.MODULES, "no_such_library"))
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    with pytest.raises(setup.NotReady, match="no_such_library cannot be found by .*make lab"):
        setup.ready()


def test_without_a_system_library(monkeypatch):
    monkeypatch.setattr(setup, "missing", lambda: [])
    monkeypatch.setitem(sys.modules, "skia", None)  # found, and cannot be imported
    with pytest.raises(setup.NotReady, match="apt-get install libgl1"):
        setup.ready()


def test_without_weights(tmp_path):
    assert "set UPL_DATA" in run(UPL_DATA=str(tmp_path))
    assert "there is no folder ./mine" in run(UPL_PROFILE="./mine")
    spoiled = tmp_path / "tiny"
    for file in doctor.TINY.values():
        (spoiled / file).parent.mkdir(parents=True, exist_ok=True)
        (spoiled / file).write_bytes(b"x")
    (spoiled / "clip" / "model.safetensors").write_bytes(doctor.GIT_LFS + b"/spec/v1")
    (spoiled / "face" / "detector.onnx").unlink()
    said = run(UPL_DATA=str(tmp_path))
    assert "lacks clip/model.safetensors, face/detector.onnx: `git checkout -- data`" in said


def test_an_unknown_profile_is_refused_with_those_there_are():
    assert "no huge weights" in run(UPL_PROFILE="huge")


# --- out of order -----------------------------------------------------------------------------------------------------
def test_a_cell_that_runs_before_those_above_it_says_so(tmp_path):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(text) for text in (CELL, "people['ann']")]
    with pytest.raises(CellExecutionError, match="name 'people' is not defined"):
        notebooks.execute(notebook, ROOT / "notebooks")
    (error,) = notebook.cells[1].outputs
    assert error.ename == "NameError" and setup.ABOVE in "".join(error.traceback)


def test_the_message_stands_alone_in_a_notebook(tmp_path, monkeypatch):
    monkeypatch.setenv("UPL_DATA", str(tmp_path))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    with pytest.raises(CellExecutionError):
        notebooks.execute(notebook, ROOT / "notebooks")
    (error,) = notebook.cells[0].outputs
    assert len(error.traceback) == 1 and error.traceback[0].startswith("Not ready: no tiny weights in")


# --- Colab ------------------------------------------------------------------------------------------------------------
def wheel(folder, name, version, *needs):
    """An empty package, as pip wants it."""
    info = f"{name}-{version}.dist-info"
    needed = "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", f"version = {version!r}\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """A machine with a torch and a numpy of its own, and an index with newer ones; install() works on it."""
    index, machine, project = (tmp_path / name for name in ("index", "machine", "project"))
    for folder in (index, project):
        folder.mkdir()
    for version in ("2.9.0+cu126", "2.13.0"):
        wheel(index, "torch", version)
    for version in ("2.0.2", "2.4.6"):
        wheel(index, "numpy", version)
    wheel(index, "needy", "1.0", "numpy>=2.0")
    wheel(index, "needy", "2.0", "numpy>=2.4", "torch>=2.12")
    venv.create(machine)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_PYTHON", str(machine / "bin" / "python"))
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    held = ["torch==2.9.0+cu126", "numpy==2.0.2"]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *held], check=True, capture_output=True)
    monkeypatch.setattr(setup, "_installed", lambda: dict(pin.split("==") for pin in held))

    def project_needs(*dependencies):
        (project / "pyproject.toml").write_text(f"[project]\ndependencies = {list(dependencies)!r}\n")
        return project

    def versions():
        command = "import torch, numpy, needy; print(torch.version, numpy.version, needy.version)"
        return subprocess.run(
            [machine / "bin" / "python", "-c", command], capture_output=True, text=True, env={}
        ).stdout.split()

    return project_needs, versions


def test_on_colab_torch_and_numpy_stay_as_they_are(colab):
    project_needs, versions = colab
    setup.install(project_needs("torch>=2.8,<3", "numpy>=2.0,<3", "needy>=1"))
    assert versions() == ["2.9.0+cu126", "2.0.2", "1.0"]  # needy 2.0 would have changed both


def test_on_colab_what_does_not_fit_is_said_and_not_forced(colab):
    project_needs, versions = colab
    with pytest.raises(setup.NotReady, match=r"beside torch 2.9.0\+cu126 and numpy 2.0.2 could not be installed"):
        setup.install(project_needs("torch>=2.12", "needy>=1"))
    assert versions() == []  # needy is not there


def test_on_colab_the_first_cell_fetches_the_project(tmp_path):
    """Colab's git is one that notes what it was asked for; the clone it makes is this project."""
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "git").write_text(f'#!/bin/sh\necho "$@" > asked.txt\nln -s {ROOT} uniportrait-lite\n')
    (bin / "git").chmod(0o755)
    path = f"{bin}{os.pathsep}{os.environ['PATH']}"
    for _ in range(2):  # again in the same place, as after a restart of the kernel
        assert run(folder=tmp_path, COLAB_RELEASE_TAG="x", PATH=path, PYTHONPATH="") == "ready, with the profile tiny"
        assert "clone --depth 1 https://github.com/" in (tmp_path / "asked.txt").read_text()
        (tmp_path / "asked.txt").write_text("clone --depth 1 https://github.com/")
    (tmp_path / "uniportrait-lite").unlink()
    (bin / "git").write_text("#!/bin/sh\nexit 128\n")
    assert "failed: is this the address?" in run(folder=tmp_path, COLAB_RELEASE_TAG="x", PATH=path)
