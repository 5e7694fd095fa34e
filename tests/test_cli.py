"""The command line: help, exit codes and messages. What the commands do is tested where it is written."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from uniportrait_lite import cli, sd15
from uniportrait_lite.errors import ConfigError
from uniportrait_lite.folders import data_folder
from uniportrait_lite.toyworld import pretrain
from uniportrait_lite.toyworld.pretrain import flags

ROOT = Path(__file__).parents[1]
COMMANDS = ("portrait", "compare", "demo", "pretrain", "train", "evaluate", "fetch", "doctor", "rehearse")


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "uniportrait_lite", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_help_comes_without_loading_the_libraries():
    code = (
        "import sys; from uniportrait_lite import cli; cli.build_parser().format_help(); print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout.strip() == "False"


def test_help_names_every_command_and_shows_how_to_use_it(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and all(command in text for command in COMMANDS) and "--face" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_each_commands_help_has_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    examples = [line.strip() for line in text.splitlines() if line.strip().startswith(f"{cli.PROGRAM} {command}")]
    assert ended.value.code == 0 and examples
    for example in examples:
        words = shlex.split(example.removeprefix(cli.PROGRAM))
        cli.build_parser().parse_known_args([word for word in words if word != "--help"])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["portrait", "--prompt", "a woman", "--out", "a.png"],
        ["portrait", "--face", "a.png", "--prompt", "a woman", "--out", "a.png", "--num-images", "0"],
        ["portrait", "--face", "a.png", "--prompt", "a woman", "--out", "a.png", "--which", "smallest"],
        ["portrait", "--face", "a.png", "--prompt", "a woman", "--out", "a.png", "--colour", "red"],
        ["compare", "a.png"],
        ["pretrain", "everything"],
        ["train"],
        ["evaluate", "beauty"],
        ["fetch", "tiny"],
        ["rehearse", "sd15"],
    ],
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2 and "usage" in capsys.readouterr().err


def test_an_error_of_ours_is_its_message_alone_and_exit_code_1(tmp_path):
    out = run("demo", "--faces", str(tmp_path))
    assert out.returncode == 1 and out.stdout == ""
    assert "there are no pictures in" in out.stderr and "Traceback" not in out.stderr
    assert len(out.stderr.splitlines()) == 1


def test_settings_of_a_recipe_are_read_as_what_they_are():
    words = ("--steps", "20", "--lr=1e-3", "--out", "runs/7", "--widths", "(8, 16)", "--muon-lr", "none")
    expected = {"steps": 20, "lr": 1e-3, "out": "runs/7", "widths": (8, 16), "muon_lr": None}
    assert flags.read("vae", list(words)) == expected
    assert flags.read("all", ["--steps", "20"]) == {"steps": 20}


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        ("vae", ["--step", "20"], "vae has no setting 'step'; it has out, folder"),
        ("vae", ["--seed", "lucky"], "seed cannot be 'lucky'"),
        ("vae", ["--steps"], "--steps needs a value"),
        ("vae", ["20"], "expected --setting value"),
        ("all", ["--out", "runs/all"], "to one recipe"),
        ("all", ["--widths", "(8, 16)"], "has no setting 'widths'"),
    ],
)
def test_settings_that_cannot_be_are_refused(recipe, words, message):
    with pytest.raises(ConfigError, match=message):
        flags.read(recipe, words)


def test_the_command_line_knows_every_recipe():
    assert set(cli.RECIPES) == {*pretrain.NAMES, "all"}


def test_recipes_list_their_settings(capsys):
    assert cli.main(["pretrain", "vae", "--settings"]) == 0
    listed = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')} {value}\n" in listed for name, value in flags.defaults("vae").items())


@pytest.mark.parametrize(
    ("out", "says"), [("file/a.png", "cannot be written"), ("a.xyz", "ends in .png"), (".", "ends in .png")]
)
def test_a_portrait_that_could_not_be_saved_is_not_drawn(out, says, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UPL_DATA", str(tmp_path / "none"))  # with what was to be drawn this would be the error
    assert cli.main(["portrait", "--face", "a.png", "--prompt", "a woman", "--out", out]) == 1
    assert says in capsys.readouterr().err


def test_how_a_portrait_is_computed_can_be_said(tmp_path, capsys, monkeypatch):
    face = str(data_folder("tiny").parent / "faces" / "ann.png")
    out = tmp_path / "a.png"
    command = ["portrait", "--face", face, "--prompt", "a woman", "--out", str(out), "--steps", "1"]
    assert cli.main([*command, "--device", "cpu", "--dtype", "bfloat16"]) == 0 and out.is_file()
    assert cli.main([*command, "--width", "160"]) == 0 and Image.open(out).size == (160, 128)
    assert cli.main([*command, "--width", "161"]) == 1 and "width is a multiple of 8" in capsys.readouterr().err
    assert cli.main([*command, "--no-tiling"]) == 1 and 'tiling: for load("sd15") alone' in capsys.readouterr().err
    given = {}
    monkeypatch.setattr(sd15, "load", lambda parts, *plan: given.update(plan=plan) or sys.exit(3))
    with pytest.raises(SystemExit):
        cli.main([*command, "--profile", "sd15", "--dtype", "float16", "--offload"])
    assert given["plan"] == (None, "float16", True, None)


def test_several_pictures_get_numbers():
    assert cli._targets(Path("a/b.png"), 1) == [Path("a/b.png")]
    assert cli._targets(Path("a/b.png"), 2) == [Path("a/b_1.png"), Path("a/b_2.png")]
