"""`load("sd15")` through the real loaders, on the small rehearsal's files: places, other checkpoints, hardware."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import single_file
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessorPil

from uniportrait_lite import ConfigError, UniPortrait, WeightsError, cli, hardware, load, published, sd15
from uniportrait_lite.folders import data_folder
from uniportrait_lite.parts import BACKBONE, FACEID, PARTS, ROUTER
from uniportrait_lite.places import find

FACES = data_folder().parent / "faces"


@pytest.fixture(autouse=True, scope="module")
def _assets(tmp_path_factory):
    """The cache of converted weights is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path_factory.mktemp("assets")))
        yield


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory, _assets) -> tuple[Path, str, str]:
    """The folder of a small rehearsal, and what its command said on stdout and stderr."""
    folder, out, err = tmp_path_factory.mktemp("sd15"), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert cli.main(["rehearse", "sd15", "--out", str(folder), "--small", "--steps", "1", "--rounds", "1"]) == 0
    return folder, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def places(rehearsed) -> dict[str, Path]:
    """Every part of sd15, narrow, in its published layout."""
    return {name: rehearsed[0] / name for name in PARTS}


@pytest.fixture
def base(places, tmp_path) -> Path:
    """A base that a test may harm."""
    return Path(shutil.copytree(places["base"], tmp_path / "base"))


@pytest.fixture(scope="module")
def up(places):
    up = load("sd15", **places, dtype=torch.float32)
    up.pipe.set_progress_bar_config(disable=True)
    return up


def based(base: Path) -> StableDiffusionPipeline:
    """The pipeline of a base alone."""
    pipe = sd15.base_pipeline(find({"base": base}), torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(up, *people) -> np.ndarray:
    return up("two people", people, seed=1, steps=2, output_type="np").images


def test_the_rehearsal_runs_from_its_command(rehearsed):
    folder, out, err = rehearsed
    assert "1 in a picture" in out and "3 in a picture" in out and "times the bare pipeline's" in out
    assert err.count("sd15 on ") == 1 and "licences: base" in err
    assert [path.name for path in sorted((folder / "pictures").iterdir())] == ["1.png", "2.png", "3.png"]


def test_its_files_have_the_published_names(places):
    assert {path.name for path in places["weights"].iterdir()} == {f"{n}.bin" for n in (FACEID, ROUTER, BACKBONE)}
    for name, part in PARTS.items():
        missing = [need.names[0] for need in part.needs if not need.within(places[name])]
        assert missing in ([], ["safety_checker/model.fp16.safetensors"], ["det_10g.onnx"])


def test_real_pictures_become_people_in_pictures(up):
    ann, bob = (up.identity(FACES / f"{name}.png") for name in ("ann", "bob"))
    one, two, both, none = picture(up, ann), picture(up, bob), picture(up, ann, bob), picture(up)
    assert one.shape == (1, 128, 128, 3) and np.isfinite(both).all()
    for a, b in ((one, two), (one, both), (two, both), (one, none)):
        assert np.abs(a - b).max() > 1e-3


def test_settings_are_the_published_ones_and_the_scheduler_the_papers(up):
    defaults = up.config.defaults
    assert (defaults.steps, defaults.guidance, defaults.id_scale, defaults.structure_scale) == (20, 7.5, 0.7, 0.1)
    scheduler = up.pipe.scheduler
    assert isinstance(scheduler, DDIMScheduler) and not scheduler.config.clip_sample
    assert scheduler.config.steps_offset == 1 and up.routes and up.image_adapter is not None


def test_the_dtype_reaches_every_weight(places):
    up = load("sd15", **places, dtype="bfloat16")
    networks = (up.unet, up.pipe.vae, up.pipe.text_encoder)
    assert {weight.dtype for network in networks for weight in network.parameters()} == {torch.bfloat16}
    assert picture(up, up.identity(FACES / "ann.png")).std() > 0


def test_a_single_file_is_the_same_pipeline(places, up, tmp_path):
    path = single_file.write(based(places["base"]), tmp_path / "community.safetensors")
    for name in ("model_index.json", "tokenizer", "scheduler", "unet", "vae", "text_encoder"):
        source = places["base"] / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    for weights in tmp_path.rglob("*.fp16.safetensors"):
        weights.unlink()
    one = load("sd15", **places | {"base": path}, dtype=torch.float32)
    ann = up.identity(FACES / "ann.png")
    assert np.allclose(picture(one, ann), picture(up, ann), atol=1e-5)


def test_offloading_between_networks_draws_the_same(places, up):
    pipe = based(places["base"])
    pipe.enable_model_cpu_offload(device="cpu")  # the hooks are the same, and take it from the CPU to the CPU
    clip = places["ip_adapter"] / "models" / "image_encoder"
    other = UniPortrait.attach(pipe, places["weights"], clip=clip, faces=places["faces"])
    ann, bob = (other.identity(FACES / f"{name}.png") for name in ("ann", "bob"))
    assert np.array_equal(picture(other, ann, bob), picture(up, ann, bob))
    other.detach()


def test_the_safety_checker_stays_as_the_base_has_it(places, base):
    assert based(places["base"]).safety_checker is None
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    checker.save_pretrained(base / "safety_checker")
    CLIPImageProcessorPil().save_pretrained(base / "feature_extractor")
    index = json.loads((base / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    index |= {"feature_extractor": ["transformers", "CLIPImageProcessorPil"]}
    (base / "model_index.json").write_text(json.dumps(index))
    assert isinstance(based(base).safety_checker, StableDiffusionSafetyChecker)


# Checkpoints that are something else


def refused(places, **others) -> str:
    with pytest.raises(WeightsError) as error:
        load("sd15", **places | others)
    return str(error.value)


def test_an_sdxl_folder_is_named(places, base):
    config = json.loads((base / "unet" / "config.json").read_text())
    (base / "unet" / "config.json").write_text(json.dumps(config | {"addition_embed_type": "text_time"}))
    assert "is an SDXL checkpoint: give a text-to-image checkpoint of Stable Diffusion 1.5" in refused(
        places, base=base
    )


def test_an_inpainting_folder_is_named(places, base):
    config = json.loads((base / "unet" / "config.json").read_text())
    (base / "unet" / "config.json").write_text(json.dumps(config | {"in_channels": 9}))
    assert "reads 9 channels" in refused(places, base=base)


@pytest.mark.parametrize(
    ("key", "channels", "what"),
    [
        ("conditioner.embedders.1.model.ln_final.bias", 4, "an SDXL checkpoint"),
        ("cond_stage_model.model.ln_final.bias", 4, "a Stable Diffusion 2 checkpoint"),
        ("alphas_cumprod", 9, "reads 9 channels"),
        ("lora_unet_up_blocks_1.alpha", 0, "a LoRA"),
        ("weight", 0, "no Stable Diffusion checkpoint"),
    ],
)
def test_single_files_of_other_kinds_are_named(places, base, key, channels, what):
    tensors = {key: torch.zeros(1)}
    if channels:
        tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(1, channels, 1, 1)
    save_file(tensors, base / "other.safetensors")
    assert what in refused(places, base=base / "other.safetensors")


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/config.json"])
def test_a_damaged_base_is_named(places, base, file):
    path = base / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "damaged or incomplete" in refused(places, base=base)


def test_a_damaged_single_file_is_named(places, base):
    (base / "cut.safetensors").write_bytes(b"\x10")
    assert "cut short or damaged" in refused(places, base=base / "cut.safetensors")


# Weights of one's own, and parts of other profiles


def test_weights_without_a_router_are_for_one_person(places, tmp_path):
    folder = Path(shutil.copytree(places["weights"], tmp_path / "weights"))
    (folder / f"{ROUTER}.bin").unlink()
    up = load("sd15", **places | {"weights": folder})
    assert not up.routes
    ann = up.identity(FACES / "ann.png")
    with pytest.raises(ConfigError, match="need ID routing"):
        up("two people", [ann, ann])


def test_parts_are_for_sd15_alone(places):
    with pytest.raises(ConfigError, match='base, offload: for load\\("sd15"\\) alone'):
        load("tiny", base=places["base"], offload=True)


# Hardware


def made(kind: str, gigabytes: float, **plan) -> hardware.Plan:
    bfloat16 = plan.pop("bfloat16", True)
    return hardware.plan(hardware.Hardware(torch.device(kind), f"a {kind}", gigabytes * 1e9, bfloat16), **plan)


def test_the_plan_follows_the_hardware():
    large, small = made("cuda", 16), made("cuda", 8)
    assert (large.dtype, large.offload, large.tiling) == (torch.float16, False, False)
    assert (small.dtype, small.offload, small.tiling) == (torch.float16, True, True)
    assert str(small) == "a cuda, 8.0 GB: float16, one network at a time on it, the VAE in tiles"
    assert made("mps", 8).dtype == torch.float16 and not made("mps", 8).offload
    assert made("cpu", 64).dtype == torch.bfloat16
    assert made("cpu", 64, bfloat16=False).dtype == torch.float32
    assert made("cpu", 8, bfloat16=False).dtype == torch.bfloat16


def test_all_of_it_can_be_chosen():
    plan = made("cuda", 8, dtype="bfloat16", offload=False, tiling=False)
    assert (plan.dtype, plan.offload, plan.tiling) == (torch.bfloat16, False, False)
    assert made("cuda", 16, dtype=torch.float32, offload=True, tiling=True).offload


def test_settings_that_cannot_work_are_refused(places):
    with pytest.raises(ConfigError, match="a dtype is float16, bfloat16, float32"):
        load("sd15", **places, dtype="int8")
    with pytest.raises(ConfigError, match="a dtype is torch.float16"):
        load("sd15", **places, dtype=torch.int8)
    with pytest.raises(ConfigError, match="this is the CPU"):
        load("sd15", **places, device="cpu", offload=True)
    with pytest.raises(ConfigError, match="the device .* cannot be used"):
        load("sd15", **places, device="cuda:7")


def test_tiles_reach_the_vae(places):
    pipe = based(places["base"])
    made("cpu", 8).apply(pipe)
    assert pipe.vae.use_tiling


def test_converted_weights_are_cached_for_the_next_load(places):
    cache = Path(constants.HF_ASSETS_CACHE) / "uniportrait_lite"
    published.read(places["weights"] / f"{FACEID}.bin", FACEID)
    assert any(path.name.startswith(FACEID) for path in cache.iterdir())
