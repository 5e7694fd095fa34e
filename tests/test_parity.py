"""The package computes what the published implementation computes: see parity.py."""

import json
import os
import shutil
from pathlib import Path

import parity
import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import save_file

DATA = Path(__file__).parent / "data" / "official"
with safe_open(DATA / "outputs.safetensors", "pt") as file:
    NAMES = list(file.keys())
UNET = [name for name in NAMES if name.startswith("unet/")]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Nothing is left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path_factory.mktemp("assets")))
        yield


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    work = tmp_path_factory.mktemp("files")
    yield parity.Replay(DATA, work)
    shutil.rmtree(work)  # half a gigabyte


def test_there_are_cases_of_every_kind():
    assert {name.split("/")[0] for name in NAMES} == {"resampler", "ir101", "embed", "unet"}
    assert len(NAMES) == 24


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_the_published_implementation(replay, name):
    assert replay.case(name).relative < parity.TOLERANCE


@pytest.mark.parametrize("name", UNET)
@pytest.mark.parametrize("ways", [("cached",), ("fused",), ("cached", "fused")])
def test_keys_and_values_computed_once_or_a_fused_lora_change_nothing(replay, name, ways):
    assert replay.case(name, **dict.fromkeys(ways, True)).relative < parity.TOLERANCE


def captured():
    """How many calls of the last compiled case went into graphs."""
    return torch._dynamo.utils.counters["stats"]["calls_captured"]


@pytest.mark.parametrize("name", UNET)
def test_what_torch_compile_captures_computes_the_same(replay, name):
    """Without the compiler's own code, which the next test and `parity.py --compile` run."""
    assert replay.case(name, compiled="aot_eager").relative < parity.TOLERANCE
    assert captured() > 500


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
def test_compiled_code_computes_the_same(replay):
    assert replay.case("unet/ids=3", compiled="inductor").relative < parity.TOLERANCE
    assert captured() > 500
    torch.compiler.reset()


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float16, 0.005), (torch.bfloat16, 0.04)])
def test_half_precision_is_near_and_moves_a_border_of_the_routing_at_most(tmp_path, dtype, allowed):
    """Where two people's logits are almost equal, rounding may give a location to the other one: a few large errors."""
    names = []
    for case in parity.Replay(DATA, tmp_path, dtype).run():
        assert case.actual.dtype == dtype
        routed = case.name in ("unet/ids=2", "unet/ids=2,ip_scale=0.6", "unet/ids=3")
        error = case.actual.float() - case.expected
        assert error.square().mean().sqrt() < (0.1 if routed else allowed) * case.expected.std(), case.name
        assert routed or case.relative < 5 * allowed, case.name
        names.append(case.name)
    assert names == NAMES


def test_the_small_files_have_the_keys_and_shapes_that_the_cases_name(replay):
    sizes, _ = replay.embedding("unet")
    layouts = replay.layouts(sizes)
    for file, kind in ((parity.FACEID, "faceid"), (parity.ROUTER, "router"), (parity.IP_ADAPTER, "ip")):
        adapters = {key: list(shape) for key, shape in layouts[file].items() if "_adapter." in key}
        assert adapters == replay.cases["unet"]["keys"][kind]


def test_the_command_replays_any_salt_and_sizes_and_tells_wrong_outputs(tmp_path, monkeypatch, capsys):
    cases = json.loads((DATA / "cases.json").read_text())
    cases["salt"] = "another"
    cases["unet"]["lora_rank"] = 3
    cases["unet"]["config"] |= {"cross_attention_dim": 40, "block_out_channels": [16, 32, 32], "layers_per_block": 2}
    cases["unet"]["config"]["down_block_types"] = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]
    cases["unet"]["config"]["up_block_types"] = ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    names = ["unet/text_only,ip_scale=0.5", "unet/ids=4", "unet/ids=2,style_aligned,adain,shift=0.1,batch=4"]
    outputs = {name: torch.randn(4 if "batch=4" in name else 2, 4, 24, 16) for name in names}
    save_file(outputs, tmp_path / "outputs.safetensors")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    ours = {case.name: case.actual for case in parity.Replay(tmp_path, tmp_path / "temporary" / "work").run()}
    shutil.rmtree(tmp_path / "temporary" / "work")
    ours["unet/ids=4"][0, 0, 0, 0] += 2e-3 * ours["unet/ids=4"].std()
    save_file(ours, tmp_path / "outputs.safetensors")
    assert parity.main([str(tmp_path)]) == 1
    relative = {line.split()[0]: float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()[1:-1]}
    assert relative.keys() == set(names)
    assert relative.pop("unet/ids=4") == pytest.approx(2e-3, rel=0.02)
    assert max(relative.values()) < 1e-5
    lost = min(names)  # a case that is not the last
    save_file(ours | {lost: torch.full_like(ours[lost], torch.nan)}, tmp_path / "outputs.safetensors")
    assert parity.main([str(tmp_path)]) == 1 and "the worst is nan" in capsys.readouterr().out
    save_file({}, tmp_path / "outputs.safetensors")
    with pytest.raises(SystemExit, match="2"):
        parity.main([str(tmp_path)])
    save_file({names[0]: ours[names[0]]}, tmp_path / "outputs.safetensors")
    assert parity.main([str(tmp_path)]) == 0
    assert not os.listdir(tmp_path / "temporary")


def test_an_option_that_is_not_known_is_no_silent_pass(replay, tmp_path):
    with pytest.raises(ValueError, match="sharpen"):
        replay.unet("ids=1,sharpen", (2, 4, 16, 16))
    cases = json.loads((DATA / "cases.json").read_text())
    cases["unet"]["lora_network_alpha"] = 8
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    shutil.copy(DATA / "outputs.safetensors", tmp_path)
    with pytest.raises(ValueError, match="lora_network_alpha is 8"):
        parity.Replay(tmp_path, tmp_path)
