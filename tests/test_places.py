"""Parts of sd15: found, downloaded from a Hub on this machine, listed when they are missing; what doctor says."""

import os
import subprocess
import sys
from pathlib import Path

import hub
import pytest
from huggingface_hub import constants

from uniportrait_lite import ConfigError, WeightsError, cli, doctor, places
from uniportrait_lite.faces import FaceDetector
from uniportrait_lite.folders import data_folder
from uniportrait_lite.parts import PARTS

ROOT = Path(__file__).parents[1]
FACE = data_folder("tiny") / "face"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A machine on which nothing was ever downloaded, and that is offline."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "home"


@pytest.fixture
def repositories(tmp_path) -> dict[str, Path]:
    """What is asked for, by name: files with nothing in them but their size."""
    folders = {name: tmp_path / "repositories" / name for name in ("base", "weights", "ip_adapter")}
    for name, folder in folders.items():
        part = PARTS[name]
        for file in (*part.small, *(need.names[0] for need in part.needs)):
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"{}" if path.suffix == ".json" else file.encode() * 100)
        for more in ("README.md", "v1-5-pruned.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors"):
            (folder / more).parent.mkdir(exist_ok=True)
            (folder / more).write_bytes(b"not asked for")
    index = '{"unet": ["diffusers", "UNet2DConditionModel"], "safety_checker": ["stable_diffusion", "X"]}'
    (folders["base"] / "model_index.json").write_text(index)
    return {f"some/{name}": folder for name, folder in folders.items()}


def command(*arguments: str, home: Path, endpoint: str | None = None, **environment: str):
    environment |= {"HOME": str(home), "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}
    if endpoint is not None:
        environment["HF_ENDPOINT"] = endpoint
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-m", "uniportrait_lite", *arguments],
        capture_output=True, text=True, cwd=ROOT, env=inherited | environment,
    )  # fmt: skip


SOME = ("--base", "some/base", "--weights", "some/weights", "--ip-adapter", "some/ip_adapter", "--faces", str(FACE))


def test_fetch_downloads_what_is_asked_for_and_that_once(repositories, home):
    file = "uniportrait-faceid_sd15.bin"
    with open(repositories["some/weights"] / file, "ab") as large:  # the Hub's client writes ten megabytes at a time
        large.truncate(24 * 2**20)
    with hub.serving(repositories, broken=(file,)) as server:
        first = command("fetch", "sd15", *SOME, home=home, endpoint=server.address)
        assert first.returncode == 0, first.stderr
        asked = [name for name, _ in server.asked]
        second = command("fetch", "sd15", *SOME, home=home, endpoint=server.address)
        assert len(server.asked) == len(asked) and second.stdout == first.stdout
    expected = {need.names[0] for name in ("base", "weights", "ip_adapter") for need in PARTS[name].needs}
    small = {"model_index.json", "tokenizer/merges.txt", "models/image_encoder/config.json"}
    assert expected | small <= set(asked) and asked.count(file) == 2, "once more after the connection broke"
    ranges = [span for name, span in server.asked if name == file]
    assert ranges[0] is None and ranges[1] == f"bytes={10 * 2**20}-", "from where it broke, not from the beginning"
    assert not {"README.md", "v1-5-pruned.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors"} & {*asked}
    offline = command("fetch", "sd15", *SOME, home=home, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0 and offline.stdout == first.stdout
    for name in ("base", "weights", "ip_adapter"):
        assert f"{name}: {home}/hub/models--some--{name}/snapshots/{hub.COMMIT}; licence: " in first.stdout


def test_all_of_insightfaces_packages_have_its_licence():
    found = places.find({"faces": "buffalo_s"}, only=["faces"])["faces"]
    assert found.licence == PARTS["faces"].licence and "research" in found.licence


def test_offline_one_error_lists_all_that_is_missing(home):
    done = command("fetch", "sd15", home=home, HF_HUB_OFFLINE="1")
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    text = done.stderr
    assert "HF_HUB_OFFLINE is set" in text
    for part in PARTS.values():
        assert f"{part.name}: {part.what}; from {part.origin}; licence: {part.licence}" in text
        for need in part.needs:
            assert f"{need.names[0]}, {places.megabytes(need.megabytes)}" in text
    for where in (
        "base=FOLDER (--base FOLDER)",
        "ip_adapter=FOLDER (--ip-adapter FOLDER)",
        "~/.insightface/models/buf",
    ):
        assert where in text


def test_load_says_the_same_as_fetch():
    from uniportrait_lite import load

    with pytest.raises(WeightsError, match="(?s)sd15 lacks files.*HF_HUB_OFFLINE is set.*224 MB.*fetch sd15"):
        load("sd15")


def test_a_hub_that_does_not_have_it_is_named(repositories, home):
    with hub.serving({}) as server:
        done = command("fetch", "sd15", *SOME, home=home, endpoint=server.address)
    assert done.returncode == 1 and "could not fetch them (some/base: " in done.stderr
    assert "from some/base, as given" in done.stderr and "of a size unknown here" in done.stderr


def test_a_wrong_place_is_told_before_anything_is_downloaded(home):
    done = command("fetch", "sd15", "--base", "./none.safetensors", home=home, endpoint="http://127.0.0.1:1")
    assert done.returncode == 1 and "could not fetch them (there is no ./none.safetensors)" in done.stderr
    assert "check the way to it, or leave base out" in done.stderr


def test_a_repository_without_a_safety_checker_is_complete(repositories, home, monkeypatch):
    folder = repositories["some/base"]
    (folder / "model_index.json").write_text('{"unet": ["diffusers", "X"], "safety_checker": [null, null]}')
    (folder / "safety_checker" / "model.fp16.safetensors").unlink()
    with hub.serving(repositories) as server:
        assert command("fetch", "sd15", *SOME, home=home, endpoint=server.address).returncode == 0
    given = {"base": "some/base", "weights": "some/weights", "ip_adapter": "some/ip_adapter", "faces": str(FACE)}
    assert not any(place.missing for place in places.find(given).values())


def test_what_a_folder_lacks_goes_into_it(repositories, tmp_path):
    folder = repositories["some/weights"]
    (folder / "uniportrait-faceid_sd15.bin").unlink()
    (folder / "uniportrait-router_sd15.bin").unlink()
    place = places.find({"weights": folder})["weights"]
    assert [need.names[0] for need in place.missing] == ["uniportrait-faceid_sd15.bin"], "routers are optional"
    with pytest.raises(WeightsError, match=f"is a place of yours.*(?s:.*)put it into {folder}"):
        places.fetch({"weights": folder})


def test_files_under_names_of_their_own_and_either_ending(repositories):
    folder = repositories["some/weights"]
    (folder / "uniportrait-faceid_sd15.bin").rename(folder / "my-faceid.safetensors")
    assert not places.find({"weights": folder / "my-faceid.safetensors"})["weights"].missing
    flat = repositories["some/ip_adapter"]
    assert not places.find({"ip_adapter": flat / "models"})["ip_adapter"].missing


def test_a_single_file_needs_settings(repositories, tmp_path):
    file = tmp_path / "alone" / "community.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"x")
    found = places.find({"base": file})
    assert not found["base"].missing and found["settings"].missing
    beside = repositories["some/base"] / "v1-5-pruned.safetensors"
    assert places.find({"base": beside})["settings"].path == beside.parent


def test_weights_of_ours_need_no_other_parts(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert set(places.find({"weights": tmp_path})) == {"base", "weights"}


def test_no_such_part():
    with pytest.raises(ConfigError, match="no part clip: its parts are base"):
        places.find({"clip": "x"})


# Face models by name


def test_a_package_of_face_models_by_name(home, capsys):
    with pytest.raises(WeightsError, match=r"(?s)faces: .*non-commercial.*289 MB.*unpack it to ~/.insightface"):
        FaceDetector("buffalo_l")
    (home / ".insightface" / "models").mkdir(parents=True)
    package = home / ".insightface" / "models" / "buffalo_l"
    package.mkdir()
    (package / "det_10g.onnx").write_bytes((FACE / "detector.onnx").read_bytes())
    detector = FaceDetector("buffalo_l")
    assert (detector.det_size, detector.threshold) == (640, 0.5)
    assert "face models of buffalo_l: insightface's are for non-commercial research only" in capsys.readouterr().err
    tiny = FaceDetector(FACE)
    assert (tiny.det_size, tiny.threshold) == (256, 0.8) and capsys.readouterr().err == ""


# doctor


def test_doctor_says_what_is_there_and_what_will_run(capsys, repositories):
    assert cli.main(["doctor", "--weights", str(repositories["some/weights"])]) == 0
    text = capsys.readouterr().out
    assert "torch 2" in text and "device: " in text and 'tiny: will run: load("tiny")' in text
    assert f"  weights: {repositories['some/weights']}; licence: its own" in text
    assert "MISSING: base: unet/diffusion_pytorch_model.fp16.safetensors, 1.7 GB" in text
    assert "sd15: will not run: `python -m uniportrait_lite fetch sd15` downloads 5.6 GB" in text


def test_doctor_when_all_of_sd15_is_there(repositories):
    given = {name: repositories[f"some/{name}"] for name in ("base", "weights", "ip_adapter")} | {"faces": FACE}
    *_, last = doctor.report(given)
    assert last.startswith('sd15: will run: load("sd15") on ')


def test_doctor_finds_tiny_files_that_git_has_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("UPL_DATA", str(tmp_path))
    assert any("tiny: MISSING: no tiny weights in" in line for line in doctor.report())
    for file in doctor.TINY.values():
        (tmp_path / "tiny" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tiny" / file).write_bytes(b"x")
    assert any("tiny: will run, one person a picture" in line for line in doctor.report())
    (tmp_path / "tiny" / "clip" / "model.safetensors").write_bytes(doctor.GIT_LFS + b"/spec/v1")
    (tmp_path / "tiny" / "face" / "detector.onnx").unlink()
    lines = list(doctor.report())
    assert sum("MISSING: CLIP" in line or "MISSING: face models" in line for line in lines) == 2
    assert any(line.startswith("tiny: will not run") for line in lines)
