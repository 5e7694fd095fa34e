"""The whole chain of trainings, at its smallest, on somebody's own world; and what a profile's folder may hold."""

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import ControlNetModel
from safetensors.torch import load_file

from uniportrait_lite import cli, load, onward, weights
from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.folders import data_folder
from uniportrait_lite.toyworld import Person, pretrain, splits
from uniportrait_lite.toyworld.pretrain import data, flags, latents
from uniportrait_lite.toyworld.pretrain.pose import PoseRecipe
from uniportrait_lite.toyworld.pretrain.record import command
from uniportrait_lite.toyworld.worlds import world, world_file
from uniportrait_lite.training import multi_id

DISCS = Path(__file__).with_name("discs.py")
SETTINGS = """\
recogniser: {steps: 2, scenes: 40, unseen: 40, batch: 8}
vae: {steps: 2, scenes: 40, batch: 2, widths: [8, 8, 16, 16], latents: 4}
clip: {steps: 2, scenes: 40, batch: 4, text_width: 32, text_layers: 1, vision_width: 32, vision_layers: 1}
judge: {steps: 2, scenes: 40, unseen: 40, batch: 8}
reader: {steps: 2, portraits: 40, groups: 40, unseen: 40, unseen_trios: 40, batch: 8}
detector: {steps: 2, scenes: 40, batch: 1, evaluated: 2}
unet: {steps: 2, portraits: 40, groups: 40, batch: 4, widths: [16, 32], head_width: 8}
pose: {steps: 2, portraits: 40, groups: 40, batch: 2, embedding: [4, 4, 8, 8]}
edges: {steps: 2, portraits: 40, groups: 40, batch: 2, embedding: [4, 4, 8, 8]}
image: {steps: 2, portraits: 40, groups: 40, batch: 2}
single_id: {steps: 2, portraits: 40, batch: 4, lora_rank: 2, distil: 0}
multi_id: {steps: 2, groups: 40, batch: 4}
"""


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """A folder with a world and settings, in a working folder of its own with small sets of scenes."""
    monkeypatch.chdir(tmp_path)
    for module in (data, latents):
        monkeypatch.setattr(module, "CHUNK", 20)
        monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    for name, faces in (("portraits", 1), ("pairs", 2), ("trios", 3), ("judge", 1), ("unseen", 1), ("unseen_trios", 3)):
        people = {"judge": splits.JUDGE, "unseen": splits.HELD_OUT, "unseen_trios": splits.HELD_OUT}
        monkeypatch.setitem(data.SETS, name, data.SceneSet(name, people.get(name, splits.TRAIN)[:20], faces))
    AcceleratorState._reset_state()
    data.world_digest.cache_clear()
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(DISCS, folder / "world.py")
    (folder / "profile.yaml").write_text(SETTINGS)
    yield folder
    data.world_digest.cache_clear()


def test_one_command_trains_a_world_of_ones_own_from_nothing_and_another_onward(mine, capsys, monkeypatch):
    assert cli.main(["weights", "--profile", "./mine"]) == 0
    records = {path.name.split(".")[0]: json.loads(path.read_text()) for path in mine.rglob("*.recipe.json")}
    parts = set(weights.SHARES) - set(pretrain.TOY)
    assert set(records) == parts
    assert all(record["steps"] == (1 if name == "vae_decoder" else 2) for name, record in records.items())
    assert all(0 <= line["waiting"] <= 1 for record in records.values() for line in record["curve"] if "loss" in line)
    for name in parts - {"vae_decoder"}:
        verb = "train" if name in weights.STAGES else "pretrain"
        assert f"| `python -m uniportrait_lite {verb} {name}" in (mine / "README.md").read_text(), name
    assert not (mine.parent / "data").exists()
    assert {path.name for path in (mine.parent / "runs" / "mine").iterdir()} == parts | {"batches.json"}
    up = load("./mine", device="cpu")
    assert up.unet.config.block_out_channels == [16, 32] and up.pipe.vae.config.latent_channels == 4
    ControlNetModel.from_pretrained(mine / "controlnet" / "pose")
    drawn = world(world_file(mine)).reference(Person.random(5), 3)
    crop = drawn.image.crop((32, 32, 96, 96)).resize((224, 224))
    image = up("a man", [up.identity_of_crops([crop])], seed=0, steps=2).images[0]
    assert image.size == (128, 128)

    before = {path: load_file(path) for path in mine.rglob("*.safetensors")}
    _elsewhere(mine, before, capsys)
    _onward(mine, monkeypatch, before)
    files = {path: path.read_bytes() for path in mine.rglob("*.*") if path.is_file() and path.name != "README.md"}
    capsys.readouterr()
    weights.run("./mine")  # all parts are done: what was trained on since stays
    assert all(path.read_bytes() == data for path, data in files.items())
    assert capsys.readouterr().out.count("done before") == len(parts)
    shutil.rmtree(mine / "controlnet" / "edges")
    with pytest.raises(WeightsError, match="edges: not there to go on from"):
        onward.run("./mine", 1)


def _elsewhere(mine: Path, before: dict, capsys) -> None:
    """Another machine has a copy of the profile and of the runs, stopped before the last parts had been marked done."""
    undone = ("vae_decoder", "unet", "image", "single_id", "multi_id")
    for name in undone:
        (Path("runs/mine") / name / "done").unlink()
    there = mine.parent / "there" / "mine"
    shutil.copytree(mine, there)
    capsys.readouterr()
    weights.run(str(there))
    said = capsys.readouterr().out
    assert said.count("done before") == 2  # what follows one that is not done is looked at again
    assert "step 1 " not in said and "step 2 " not in said  # it has only written what it had learned
    for path, tensors in before.items():
        again = load_file(there / path.relative_to(mine))
        assert again.keys() == tensors.keys() and all(torch.equal(again[k], tensors[k]) for k in tensors), path


def _onward(mine: Path, monkeypatch, before: dict) -> None:
    """A power cut before the last part; the same command does that part alone, and leaves nothing behind."""

    def power_cut(config):
        raise OSError("power cut")

    command = ["weights", "--profile", "./mine", "--onward", "--hours", "0.002"]
    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr(multi_id, "run", power_cut)
        cli.main(command)
    done = {path.parent.name for path in Path("runs/mine/onward").glob("*/done")}
    assert done == set(onward.SHARES) - {"style", "multi_id"}
    single = (mine / "uniportrait" / "single_id.recipe.json").read_text()
    assert cli.main(command) == 0
    assert (mine / "uniportrait" / "single_id.recipe.json").read_text() == single
    for name in done | {"multi_id"}:
        (path,) = mine.rglob(f"{name}{'_decoder' * (name == 'vae')}.recipe.json")
        record = json.loads(path.read_text())
        assert len(record["before"]) == (name != "vae") and record["steps"], name
    assert not Path("runs/mine/onward").exists()
    after = {path: load_file(path) for path in before}
    trained = ("controlnet", "ip_adapter", "text_encoder", "unet", "uniportrait", "vae")
    for path, tensors in after.items():
        kept = all(torch.equal(tensors[name], x) for name, x in before[path].items())
        assert kept != any(part in path.parts for part in trained), path
    encoder = {name: x for name, x in before[mine / "sd/vae/diffusion_pytorch_model.safetensors"].items()
               if name.startswith("encoder")}  # fmt: skip
    assert all(
        torch.equal(after[mine / "sd/vae/diffusion_pytorch_model.safetensors"][n], x) for n, x in encoder.items()
    )
    load("./mine", device="cpu")
    with pytest.raises(ConfigError, match="--onward needs --hours"):
        onward.run("./mine", None)


def test_hours_are_shared_out_among_the_parts(mine):
    parts = weights.plan("./mine", hours=10)
    assert list(weights.plan("tiny", hours=10)) == list(weights.SHARES)
    assert list(parts) == [name for name in weights.SHARES if name not in pretrain.TOY]
    assert sum(weights.SHARES.values()) == pytest.approx(1)
    assert parts["unet"].keywords == {"steps": None, "hours": pytest.approx(3.9)}
    (single,) = parts["single_id"].args
    assert single.steps is None and single.hours == pytest.approx(1.4) and single.portraits == 40
    assert weights.plan("./mine", None)["unet"].keywords == {}
    assert single.distil == 0 and weights.plan("tiny", None)["single_id"].args[0].distil == weights.DISTIL


def test_a_part_that_is_trained_again_takes_all_that_follows_along(mine, monkeypatch):
    trained = []

    def train(name: str):
        trained.append(name)
        (mine / f"{name}.recipe.json").touch()

    names = [name for name in weights.SHARES if name not in pretrain.TOY]
    monkeypatch.setattr(weights, "plan", lambda *_: {name: partial(train, name) for name in names})
    monkeypatch.setattr(weights, "_settings", lambda name, *_: settings.get(name, "as ever"))
    monkeypatch.setattr(weights.report, "write", lambda *_: None)
    settings: dict[str, str] = {}
    weights.run("./mine")
    weights.run("./mine")
    assert trained == names
    for begin in ("unet", "pose", "judge"):
        trained.clear()
        if begin == "unet":
            shutil.rmtree("runs/mine/unet")
        elif begin == "pose":
            (mine / "pose.recipe.json").unlink()
        else:
            settings["judge"] = "others"
        weights.run("./mine")
        assert trained == names[names.index(begin) :]


def test_the_decoders_second_pass_is_of_the_autoencoder_that_is_there(mine):
    """What went on from a checkpoint of another's decoder would fit no latents."""
    (mine / "profile.yaml").write_text(SETTINGS.replace("latents: 4}", "latents: 4, perceptual: 0}"))
    parts = weights.plan("./mine", None)
    parts["vae"](), parts["vae_decoder"]()
    shutil.rmtree("runs/mine/vae")
    (mine / "profile.yaml").write_text(SETTINGS.replace("latents: 4}", "latents: 4, perceptual: 0, kl: 0.1}"))
    again = weights.plan("./mine", None)
    again["vae"]()
    with pytest.raises(ConfigError, match="encoder was"):
        parts["vae_decoder"]()


def test_what_a_part_was_made_with_counts_and_not_where(mine):
    def made(folder: str, hours: float | None = None) -> str:
        return weights._settings("unet", folder, weights.plan(folder, hours)["unet"])

    there = mine.parent / "there" / "mine"
    shutil.copytree(mine, there)
    assert made("./mine") == made(str(there)) == made("./mine", hours=1)
    (there / "profile.yaml").write_text(SETTINGS.replace("head_width: 8", "head_width: 16"))
    assert made("./mine") != made(str(there))


def test_batches_are_the_gpus_and_stay_those_when_another_machine_goes_on(mine, monkeypatch):
    (mine / "profile.yaml").write_text("unet: {batch: 4}\n")
    file = Path("batches.json")
    assert weights.batches(mine, Path("cpu.json")) == {}
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        memory = SimpleNamespace(total_memory=weights.MEMORY / 2)
        patch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
        found = weights.batches(mine, file)
    assert found["single_id"] == {"batch": 256} and "unet" not in found
    assert weights.batches(mine, file) == found
    (mine / "profile.yaml").write_text("unet: {batch: 4}\nvae: {batch: 8}\n")  # what did not fit into memory
    assert not {"vae", "vae_decoder"} & weights.batches(mine, file).keys()
    (mine / "profile.yaml").write_text("unet: {batch: 4}\n")
    parts = weights.plan(str(mine), None, found)
    assert parts["single_id"].args[0].batch == 256 and parts["vae_decoder"].keywords["batch"] == 128


def test_scenes_of_a_world_are_its_own_and_kept_apart(mine):
    path = world_file(mine)
    discs, toys = data.load_scenes("pairs", 20, path), data.load_scenes("pairs", 20)
    seeds = discs.spec.who(3)
    drawn = world(path).group([Person.random(seed) for seed in seeds], seed=3)
    assert np.array_equal(discs.images([3])[0], drawn.pixels) and discs.person[3].tolist() == seeds
    assert not np.array_equal(discs.images([3]), toys.images([3]))
    assert data.world_digest(path) != data.world_digest()
    (mine / "world.py").write_text(DISCS.read_text() + "\n# drawn anew\n")
    data.world_digest.cache_clear()
    assert data.world_digest(path) != discs.chunks[0].parent.name.split("-")[1]


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("world.py", "def draw(): pass\n", "has no function group"),
        ("world.py", "import nothing_like_this\n", "cannot be read as a world .*nothing_like_this"),
        ("profile.yaml", "unet: 500\n", "settings by part, as in"),
        ("profile.yaml", "unet: {stepz: 500}\n", "unet has no setting 'stepz'; it has .*steps"),
        ("profile.yaml", "unet: {steps: many}\n", "steps cannot be 'many'"),
        ("profile.yaml", "single_id: {portrait: 5}\n", "no setting is called 'portrait'; did you mean 'portraits'"),
        ("profile.yaml", "unett: {steps: 5}\n", "there is no part unett; there are recogniser"),
        ("profile.yaml", "[", "can't be read"),
    ],
)
def test_a_folder_that_is_no_profile_is_an_error_before_anything_is_trained(mine, file, text, says):
    (mine / file).write_text(text)
    world.cache_clear()
    with pytest.raises(ConfigError, match=says):
        weights.run("./mine")
    assert not (mine.parent / "runs").exists()


def test_a_profiles_settings_stand_below_flags_and_above_the_recipes_own(mine):
    settings = flags.of_profile("unet", str(mine))
    assert settings["widths"] == (16, 32) and settings["folder"] == str(mine / "sd")
    assert settings["out"] == "runs/mine/unet" and flags.of_profile("vae", str(mine))["recogniser"] == str(
        mine / "recogniser"
    )
    assert flags.of_profile("unet", "tiny") == {}
    assert flags.of_profile("pose", "tiny") == {"feature_weight": 6.0, "group_share": 0.3}
    assert command("pose", PoseRecipe(feature_weight=1.0, group_share=0.2)).endswith(
        "pretrain pose --group-share 0.2 --feature-weight 1.0"
    )


def test_a_folder_is_meant_by_its_way_and_a_profile_by_its_name(mine):
    assert data_folder("./mine") == Path("mine") and data_folder(str(mine)) == mine
    with pytest.raises(WeightsError, match="no folder ./other"):
        data_folder("./other")
    with pytest.raises(ConfigError, match="no profile 'mine'.* as ./mine"):
        load("mine")
    with pytest.raises(ConfigError, match="hours are above 0"):
        weights.run("./mine", hours=0)
