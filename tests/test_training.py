"""Both stages, on a random stack of toy size: what they learn from, what they train, how they resume."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import CLIPConfig, CLIPModel, CLIPTextModel

from uniportrait_lite import checkpoints, speed
from uniportrait_lite.adapter import UniPortrait
from uniportrait_lite.backbone import IRConfig, IRResNet
from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.id_routing import box_masks
from uniportrait_lite.speed import attention, fast_attention
from uniportrait_lite.toyworld import Person, reference, wording
from uniportrait_lite.toyworld.pretrain import data as world
from uniportrait_lite.toyworld.pretrain import latents as world_latents
from uniportrait_lite.toyworld.pretrain import unet
from uniportrait_lite.toyworld.pretrain.unet import scheduler
from uniportrait_lite.toyworld.tokenizer import build_tokenizer
from uniportrait_lite.training import distillation, multi_id, network, samples, single_id
from uniportrait_lite.training.batches import Batches, GroupBatches
from uniportrait_lite.training.config import load
from uniportrait_lite.training.data import SceneData
from uniportrait_lite.training.settings import MultiIDConfig, SingleIDConfig
from uniportrait_lite.training.store import Store, digest
from uniportrait_lite.training.watch import Validation

CHUNK = 20  # scenes: five people in four portraits each

# What a process of its own runs: the command, on a world of that size.
SCRIPT = f"""
import json, os, pathlib, signal, sys, torch
torch.set_num_threads(1)
from uniportrait_lite.toyworld.pretrain import data, latents
data.CACHE = latents.CACHE = pathlib.Path(os.environ["CACHE"])
data.CHUNK = latents.CHUNK = {CHUNK}
sets = (("portraits", 0, 1), ("unseen", 2_000_000, 1), ("pairs", 0, 2), ("trios", 0, 3), ("quintets", 0, 5))
data.SETS |= {{name: data.SceneSet(name, range(k, k + 5), n) for name, k, n in sets}}
from uniportrait_lite.training import batches, multi_id, single_id
draw = batches.Batches.__call__
def killed_at_its_step(self, step, generator):
    if str(step) == os.environ.get("KILLED_AT"):
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(self, step, generator)
batches.Batches.__call__ = killed_at_its_step
if __name__ != "__main__":  # a process that draws for this one
    pass
elif os.environ.get("STAGE") == "unet":
    from uniportrait_lite.toyworld.pretrain import run
    run("unet", **json.loads(sys.argv[1]))
else:
    (multi_id if os.environ.get("STAGE") == "multi_id" else single_id).main(sys.argv[1:])
"""


@pytest.fixture(scope="session")
def stack(tmp_path_factory) -> Path:
    """A `data` folder whose `tiny` has every network of the profile, smaller still and random."""
    tiny = tmp_path_factory.mktemp("data") / "tiny"
    torch.manual_seed(0)
    sd = tiny / "sd"
    tokenizer = build_tokenizer(sd / "tokenizer")
    size = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16}
    text = {
        **size, "hidden_size": 32, "intermediate_size": 32, "vocab_size": len(tokenizer), "max_position_embeddings": 48,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {**size, "hidden_size": 16, "intermediate_size": 16, "image_size": 224, "patch_size": 14}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(tiny / "clip")
    text_encoder = CLIPTextModel.from_pretrained(tiny / "clip")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4, mid_block_add_attention=False,
        sample_size=128,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32, attention_head_dim=(1, 2), norm_num_groups=8,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler(), None, None, requires_safety_checker=False
    )
    pipe.save_pretrained(sd)
    IRResNet(IRConfig(channels=(4, 4, 8, 8), blocks=(1, 1, 1, 1), embedding=12)).save(tiny / "recogniser")
    return tiny.parent


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def place(stack, tmp_path, monkeypatch) -> Path:
    """A working folder of its own, with the random stack as the profile's and the small world, its cache shared."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UPL_DATA", str(stack))
    for module in (world, world_latents):
        monkeypatch.setattr(module, "CHUNK", CHUNK)
        monkeypatch.setattr(module, "CACHE", stack / "cache")
    groups = [(name, 0, faces) for faces, name in enumerate(("pairs", "trios", "quartets", "quintets"), start=2)]
    for name, first, faces in (("portraits", 0, 1), ("unseen", 2_000_000, 1), *groups):
        monkeypatch.setitem(world.SETS, name, world.SceneSet(name, range(first, first + 5), faces))
    AcceleratorState._reset_state()  # accelerate lets a process have one precision
    return tmp_path


QUICK = ["--portraits", "20", "--batch", "4", "--precision", "fp32", "--out", "out", "--samples-every", "1000"]


def quick(*flags: str) -> SingleIDConfig:
    return load(SingleIDConfig, [*QUICK, *flags], part="single_id", prog="train")


def batches_of(config: SingleIDConfig) -> tuple[network.SingleID, Batches]:
    stack = network.Stack(single_id.data_folder("tiny"))
    data = SceneData("portraits", config.portraits, stack.features, stack.tokenizer, stack.folders)
    return single_id.build(config, stack), Batches(config, data, 1000, config.intrinsic)


def draw(batches: Batches, seed: int = 0):
    return batches(0, torch.Generator().manual_seed(seed))


# --- settings ---------------------------------------------------------------------------------------------------------
def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    (tmp_path / "run.yaml").write_text("lr: 2e-4\nbatch: 8\nmuon_lr: none\nstructure: false\n")
    config = load(
        SingleIDConfig,
        ["--config", str(tmp_path / "run.yaml"), "--batch=16", "--muon_lr", "0.5"],
        part="single_id",
        prog="t",
    )
    assert (config.lr, config.batch, config.muon_lr, config.structure) == (2e-4, 16, 0.5, False)
    assert config.swap == SingleIDConfig().swap


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--muon-rl", "1"], "did you mean 'muon_lr'"),
        (["--precision", "bf61"], "did you mean 'bf16'"),
        (["--steps", "many"], "steps must be INT"),
        (["--structure", "perhaps"], "structure must be true|false"),
        (["--lr"], "expected one argument"),
        (["--swap", "1.5"], "swap is a share"),
        (["--batch", "0"], "batch is at least 1"),
        (["--steps", "0"], "steps=0"),
        (["--graphs", "true", "--compile", "true"], "give one of them"),
        (["--config", "nowhere.yaml"], "can't be read"),
    ],
)
def test_a_setting_that_cannot_be_is_an_error_that_says_so(flags, says):
    with pytest.raises(ConfigError, match=says.replace("|", r"\|")):
        load(SingleIDConfig, flags, part="single_id", prog="train")


def test_a_misspelt_key_of_the_file_is_an_error_that_names_the_nearest(tmp_path):
    (tmp_path / "run.yaml").write_text("no_fase: 0.1\n")
    with pytest.raises(ConfigError, match="'no_fase'; did you mean 'no_face'"):
        load(SingleIDConfig, ["--config", str(tmp_path / "run.yaml")], part="single_id", prog="train")


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        single_id.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for name in SingleIDConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')} " in text
    assert "accelerate launch" in text


def test_an_ablation_keeps_away_from_the_full_methods_folders():
    runs = {
        SingleIDConfig(**change).run_folder
        for change in ({}, {"structure": False}, {"drop": False}, {"intrinsic": "global"})
    }
    assert len(runs) == 4


# --- what is stored ---------------------------------------------------------------------------------------------------
def test_a_store_goes_on_where_it_was_stopped_and_never_computes_twice(tmp_path):
    asked, stopped = [], []

    def compute(indices):
        if 6 in indices and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        asked.extend(indices)
        return {"squares": np.array([i * i for i in indices], np.float32)}

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path / "s", compute, 4).fill(8, batch=2)
    assert asked == [0, 1, 2, 3, 4, 5]
    store = Store(tmp_path / "s", compute, 4).fill(8, batch=2)
    assert asked == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]
    assert store.rows("squares", [7, 0, 5]).tolist() == [49, 0, 25]
    Store(tmp_path / "s", compute, 4).fill(7)
    assert len(asked) == 10


def test_a_digest_follows_contents_and_settings(tmp_path):
    (tmp_path / "w").write_bytes(b"one")
    first = digest(tmp_path / "w", {"jitter": 0.1})
    assert first == digest(tmp_path / "w", {"jitter": 0.1}) != digest(tmp_path / "w", {"jitter": 0.2})
    (tmp_path / "w").write_bytes(b"two")
    assert digest(tmp_path / "w", {"jitter": 0.1}) != first


def test_what_is_read_is_what_would_be_computed(place):
    _, batches = batches_of(quick())
    drawn = batches.data.draw(torch.Generator().manual_seed(1), 6, swap=0.5)
    assert (drawn["source"] != drawn["face"]).any()
    read, computed = batches.data.read(drawn), batches.data.read(drawn, cached=False)
    assert read.keys() == computed.keys()
    for name in read:
        # latents are stored by way of bf16, as the base model's training has them
        torch.testing.assert_close(read[name], computed[name], rtol=2e-2, atol=2e-2 if name == "latents" else 2e-3)


def test_new_weights_of_the_backbone_leave_no_stale_features_in_use(place, stack):
    def faces() -> Path:
        return batches_of(quick())[1].data.faces.folder

    before = faces()
    path = stack / "tiny" / "recogniser" / "config.json"
    text = path.read_text()
    try:
        path.write_text(text + "\n")
        assert faces() != before
    finally:
        path.write_text(text)
    assert faces() == before
    assert len(list((stack / "cache").glob("faces-portraits-*"))) == 2
    assert len(list((stack / "cache").glob("latents-portraits-*"))) == 1


def test_swapped_features_come_from_another_picture_of_the_same_person(place):
    data = batches_of(quick())[1].data
    drawn = data.draw(torch.Generator().manual_seed(0), 64, swap=1.0)
    assert (data.people[drawn["source"]] == data.people[drawn["face"]]).all()
    assert (drawn["source"] != drawn["face"]).all()
    kept = data.draw(torch.Generator().manual_seed(0), 64, swap=0.0)
    assert (kept["source"] == kept["face"]).all()


# --- batches and the loss ---------------------------------------------------------------------------------------------
def test_a_dropped_caption_may_take_the_face_along_as_guidance_does(place):
    _, batches = batches_of(quick("--no-caption", "1", "--nobody", "1", "--no-face", "0"))
    batch = draw(batches)
    features = batches.data.features.unconditional(4)
    assert (batch.text == batches.no_text).all()
    assert batch.active.all()
    assert torch.equal(batch.intrinsic[:, 0], features.intrinsic.half())
    assert torch.equal(batch.structure[:, 0], features.structure.half())


def test_without_a_face_the_id_modules_learn_nothing_and_with_one_they_do(place):
    for share, learns in (("1", False), ("0", True)):
        torch.manual_seed(0)
        model, batches = batches_of(quick("--no-face", share))
        model(draw(batches))["loss"].backward()
        norms = {n: float(p.grad.norm()) for n, p in model.named_parameters() if p.requires_grad and "lora_A" not in n}
        identity = [norm for name, norm in norms.items() if "lora" not in name and "structure" not in name]
        assert all(norm > 0 for norm in identity) if learns else not any(identity)
        assert all(norm > 0 for name, norm in norms.items() if "lora" in name)


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
def test_the_loss_is_the_error_of_what_the_base_model_predicts(place, kind):
    model, batches = batches_of(quick("--face-weight", "1", "--feature-weight", "1"))
    model.scheduler.register_to_config(prediction_type=kind)
    torch.nn.init.zeros_(model.unet.conv_out.weight)
    torch.nn.init.zeros_(model.unet.conv_out.bias)
    batch = draw(batches)
    a = model.scheduler.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    target = a.sqrt() * batch.noise - (1 - a).sqrt() * batch.latents if kind == "v_prediction" else batch.noise
    torch.testing.assert_close(model(batch)["loss"], target.square().mean())


def test_the_faces_weight_counts_inside_its_box_alone(place):
    plain, batches = batches_of(quick())
    weighted, _ = batches_of(quick("--face-weight", "1e6", "--feature-weight", "1e6"))
    batch = draw(batches)
    torch.manual_seed(0)
    expected = plain(batch)["face"]
    torch.manual_seed(0)
    torch.testing.assert_close(weighted(batch)["loss"], expected, rtol=1e-3, atol=1e-4)


def test_the_features_weight_counts_around_brows_eyes_nose_and_mouth_alone(place):
    plain, batches = batches_of(quick())
    weighted, _ = batches_of(quick("--feature-weight", "1e6"))
    batch = draw(batches)
    cells = box_masks(batch.features, batch.latents.shape[-2:]).amax(dim=1)
    assert 0 < cells.sum() < box_masks(batch.boxes, batch.latents.shape[-2:]).sum()
    torch.manual_seed(0)
    expected = plain(replace(batch, boxes=batch.features))["face"]
    torch.manual_seed(0)
    torch.testing.assert_close(weighted(batch)["loss"], expected, rtol=1e-3, atol=1e-4)


def test_fast_attention_gives_the_same_sums(monkeypatch):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8, dtype=torch.bfloat16) for length in (5, 7, 7))
    keep = torch.rand(2, 1, 1, 7) > 0.4
    for mask in (None, keep, torch.zeros(2, 1, 5, 7, dtype=torch.bfloat16).masked_fill(~keep, -1e4)):
        expected = F.scaled_dot_product_attention(
            q.float(),
            k.float(),
            v.float(),
            None if mask is None else mask if mask.dtype == torch.bool else mask.float(),
        )
        with fast_attention():
            got = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), expected, rtol=3e-2, atol=3e-2)
    taken = []
    monkeypatch.setattr(speed, "attention", lambda *given, **named: taken.append(1) or attention(*given, **named))
    expected = F.scaled_dot_product_attention(q.float(), q.float(), q.float(), is_causal=True, scale=0.3)
    with fast_attention():  # as transformers' CLIP asks for it
        causal = F.scaled_dot_product_attention(q, q, q, is_causal=True, scale=0.3)
    torch.testing.assert_close(causal.float(), expected, rtol=3e-2, atol=3e-2)
    assert taken


def test_validation_is_the_same_each_time_and_tells_features_apart(place):
    model, batches = batches_of(quick())
    validation = Validation(batches, 8)
    first = validation(model.eval())
    assert first == validation(model)
    assert len(set(first.values())) == 3


# --- runs -------------------------------------------------------------------------------------------------------------
def test_a_run_trains_only_what_carries_identity_and_exports_its_average(place, stack, monkeypatch):
    monkeypatch.setattr(samples, "PEOPLE", samples.PEOPLE[:1])
    monkeypatch.setattr(samples, "PROMPTS", samples.PROMPTS[:1])
    flags = [
        "--precision",
        "bf16",
        "--steps",
        "2",
        "--samples-every",
        "2",
        "--log-every",
        "1",
        "--measure-cache",
        "true",
    ]
    single_id.main([*QUICK, *flags])
    run = place / "runs" / "single_id"
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    parts = ("id_embedding.", "lora_", "to_k_id", "to_v_id")
    assert all(any(part in name for part in parts) for name in state["parameters"])
    assert all(any(part in name for name in state["parameters"]) for part in parts)
    average = dict(zip(state["parameters"], state["average"], strict=True))
    config, tensors = checkpoints.load("out")
    assert len(tensors) == len(average)
    for name in ("id_embedding.queries", "id_embedding.layers.0.structure.to_q.weight"):
        assert torch.equal(tensors[name], average[name].half().float())
        assert not torch.equal(average[name], state["parameters"][name])
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {"loss", "face"} <= log[0].keys()
    with Image.open(run / "samples" / "000002.png") as grid:
        assert grid.text["weights"].endswith("/weights") and "a portrait of" in grid.text["prompt"]
        assert grid.size == (256, 128)
    assert json.loads((run / "cache.json").read_text())["speedup"] > 0
    assert list((run / "tb").iterdir())
    recipe = json.loads(Path("out/single_id.recipe.json").read_text())
    assert recipe["steps"] == 2 and recipe["config"]["precision"] == "bf16"
    assert {"loss", "unseen_face", "unseen_face_with_another"} <= recipe["metrics"].keys()


@pytest.mark.parametrize(
    "flags", [["--intrinsic", "global"], ["--structure", "false"], ["--drop", "false"]], ids=lambda f: f[0][2:]
)
def test_an_ablations_weights_attach_and_take_the_features_they_were_trained_with(place, stack, flags):
    config = quick("--steps", "1", *flags)
    single_id.run(config)
    pipe = StableDiffusionPipeline.from_pretrained(stack / "tiny" / "sd")
    tiny = stack / "tiny"
    up = UniPortrait.attach(pipe, "out", backbone=tiny / "recogniser", clip=tiny / "clip")
    _, batches = batches_of(config)
    drawn = {"scene": np.array([3]), "face": np.array([[3]]), "source": np.array([[3]]), "caption": np.array([0])}
    parts = batches.read(drawn, cached=False)
    crop = Image.fromarray(batches.data.crops([3])[0])
    features = up.identity_of_crops([crop]).parts[0][1]
    torch.testing.assert_close(features.intrinsic, parts["intrinsic"][0].float(), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(features.structure, parts["structure"][0].float(), rtol=1e-2, atol=1e-2)
    assert up.tokens(up.identity_of_crops([crop])).isfinite().all()


def test_weights_to_start_from_are_where_a_run_starts(place):
    first = single_id.build(quick("--seed", "5"), network.Stack(single_id.data_folder("tiny")))
    network.save(Path("begin"), first, network.Stack(single_id.data_folder("tiny")))
    second = single_id.build(quick("--start-from", "begin"), network.Stack(single_id.data_folder("tiny")))
    for name, weight in first.weights().items():
        assert torch.equal(second.weights()[name], weight.half().float())


def test_distillation_teaches_id_tokens_what_captions_say_and_nothing_else(place, capsys):
    def begun(*flags: str) -> tuple[float, dict[str, torch.Tensor], network.SingleID]:
        config = quick(*flags)
        model, batches = batches_of(config)
        with torch.no_grad():  # a random stack's text attention says next to nothing
            for name, weight in model.unet.named_parameters():
                weight.mul_(8 if "attn2.to_" in name else 1)
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        return distillation.distil(model, batches.data, config), before, model

    (first, *_), (left, before, model) = begun("--distil", "10"), begun("--distil", "120")
    assert left < 0.7 * first
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert any(name.startswith("id_embedding.layers") for name in changed) and any(
        "to_v_id" in name for name in changed
    )
    assert not any("lora_" in name or name.startswith("text_encoder") for name in changed)
    structure = {name for name in changed if "structure" in name}
    assert all(name.endswith("structure.to_out.weight") for name in structure)  # not learned: without a say
    assert all(not weight.any() for name, weight in model.named_parameters() if name in structure)
    again, _, same = begun("--distil", "120")
    assert again == left
    for name, weight in model.named_parameters():
        assert torch.equal(weight, same.get_parameter(name)), name


def test_what_is_distilled_is_the_mean_of_several_wordings(place, monkeypatch):
    model, batches = batches_of(quick())
    asked, text = [], distillation._text
    monkeypatch.setattr(distillation, "_text", lambda *given: asked.append(given[3:]) or text(*given))
    distillation._record(model, batches.data, 4, torch.Generator().manual_seed(0))
    assert {detail for detail, _ in asked} == {"full", "scene"}
    assert len({*asked}) == 2 * distillation.WORDINGS == 16
    data, scenes = batches.data, np.arange(4)
    full, plain = (
        [distillation._text(model, data, scenes, detail, k) for k in range(2)] for detail in ("full", "scene")
    )

    @torch.no_grad()
    def changes(which: slice) -> dict[str, torch.Tensor]:
        with distillation._listening(model, full[which], plain[which], torch.Generator().manual_seed(0)) as heard:
            model.unet(torch.from_numpy(data.latents[scenes]).float(), 500, full[0])
        return {layer: change.float() for layer, (_, change) in heard.items()}

    first, second, both = (changes(which) for which in (slice(1), slice(1, 2), slice(2)))
    for layer in both:
        torch.testing.assert_close(both[layer], (first[layer] + second[layer]) / 2, rtol=5e-3, atol=5e-4)
        assert not torch.allclose(first[layer], second[layer], rtol=0.1)


def test_distillation_needs_words_for_faces(place, monkeypatch):
    config = quick("--distil", "2")
    model, batches = batches_of(config)
    monkeypatch.setattr(distillation, "SILENT", 1e9)
    with pytest.raises(ConfigError, match="words for faces mean nothing"):
        distillation.distil(model, batches.data, config)


def test_distillation_is_made_once_and_refused_where_it_cannot_be(place, capsys, monkeypatch):
    flags = ("--distil", "2", "--run-folder", "run")
    single_id.run(quick(*flags, "--steps", "1"))
    assert "of what captions say of these faces unsaid" in capsys.readouterr().out
    monkeypatch.setattr(single_id, "distil", None)  # it would fail
    single_id.run(quick(*flags, "--steps", "2"))
    log = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert [("unseen_face" in line, line["step"]) for line in log] == [(True, 0), (False, 1), (False, 2)]
    single_id.run(quick("--run-folder", "plain", "--steps", "1"))
    assert [json.loads(line)["step"] for line in Path("plain/log.jsonl").read_text().splitlines()] == [1]
    for wrong, says in (
        (("--distil=-1",), "not -1"),
        (("--distil", "2", "--start-from", "begin"), "new weights"),
        (("--distil", "2", "--intrinsic", "global"), "one vector"),
    ):
        with pytest.raises(ConfigError, match=says):
            quick(*wrong)


def test_a_run_does_not_go_on_with_other_settings_or_other_frozen_weights(place, stack):
    single_id.main([*QUICK, "--steps", "1"])
    with pytest.raises(ConfigError, match="swap was 0.1 and is 0.2"):
        single_id.main([*QUICK, "--steps", "2", "--swap", "0.2"])
    config = stack / "tiny" / "sd" / "unet" / "config.json"
    text = config.read_text()
    try:
        config.write_text(text + "\n")
        with pytest.raises(ConfigError, match="unet was"):
            single_id.main([*QUICK, "--steps", "2"])
    finally:
        config.write_text(text)
    single_id.main([*QUICK, "--steps", "2", "--log-every", "1"])


def test_missing_frozen_weights_are_named(place, stack, monkeypatch):
    (place / "empty" / "tiny").mkdir(parents=True)
    monkeypatch.setenv("UPL_DATA", str(place / "empty"))
    with pytest.raises(WeightsError, match="U-Net"):
        single_id.main(QUICK)


def test_a_training_depends_on_the_noise_schedule_and_not_on_what_draws_pictures(place, stack):
    file = stack / "tiny" / "sd" / "scheduler" / "scheduler_config.json"
    text, before = file.read_text(), network.Stack(stack / "tiny").digests()
    try:
        file.write_text(text.replace("DDPMScheduler", "DDIMScheduler"))
        assert network.Stack(stack / "tiny").digests() == before and "DDIM" in file.read_text()
        file.write_text(text.replace("0.012", "0.02"))
        assert network.Stack(stack / "tiny").digests()["scheduler"] != before["scheduler"]
    finally:
        file.write_text(text)


@pytest.mark.parametrize("setting", ["--run-folder", "--out"])
def test_a_folder_that_cannot_be_written_is_said_before_training(place, setting):
    (place / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=f"cannot write in file.*choose another with {setting}"):
        single_id.main([*QUICK, "--run-folder", "run", setting, "file/run"])
    assert not (place / "run" / "log.jsonl").exists()


def test_a_run_killed_and_started_again_has_the_weights_of_one_that_was_not(place, stack):
    """Bit for bit, as all that is random in a step is drawn from the step's number."""
    flags = [*QUICK, "--steps", "24", "--log-every", "1", "--warmup", "3"]
    single_id.main([*flags, "--run-folder", "whole"])
    command = [sys.executable, "-c", SCRIPT, *flags, "--run-folder", "killed", "--checkpoint-every", "0"]
    killed = subprocess.run(command, capture_output=True, text=True, env=environment(stack) | {"KILLED_AT": "9"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert torch.load(place / "killed" / "checkpoint.pt", weights_only=True)["step"] == 9
    single_id.main([*flags, "--run-folder", "killed"])
    whole, resumed = (torch.load(place / run / "checkpoint.pt", weights_only=True) for run in ("whole", "killed"))
    assert resumed["step"] == 24
    for name, weight in whole["parameters"].items():
        assert torch.equal(weight, resumed["parameters"][name]), name
    assert all(map(torch.equal, whole["average"], resumed["average"]))
    losses = [
        [json.loads(x)["loss"] for x in (place / run / "log.jsonl").read_text().splitlines()]
        for run in ("whole", "killed")
    ]
    assert losses[0] == losses[1]


def test_two_processes_train_together(place, stack):
    """Through gloo on the CPU: gradients are averaged over more batches than one process has."""
    (place / "script.py").write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    flags = [*QUICK, "--steps", "2", "--log-every", "1", "--ema", "none"]
    subprocess.run(
        [sys.executable, *launch, "script.py", *flags, "--run-folder", "two"],
        env=environment(stack),
        check=True,
        timeout=600,
    )
    single_id.main([*flags, "--run-folder", "one", "--out", "alone"])
    two, one = (torch.load(place / run / "checkpoint.pt", weights_only=True)["parameters"] for run in ("two", "one"))
    assert two.keys() == one.keys()
    assert not torch.equal(two["id_embedding.queries"], one["id_embedding.queries"])
    assert (place / "out" / "model.safetensors").exists()


# --- the base model below both ----------------------------------------------------------------------------------------
def test_the_base_models_text_encoder_begins_as_clips_and_learns_along(place, stack):
    folder = place / "tiny" / "sd"
    shutil.copytree(stack / "tiny" / "clip", place / "tiny" / "clip")
    for part in ("vae", "tokenizer"):
        shutil.copytree(stack / "tiny" / "sd" / part, folder / part)
    size = {
        "portraits": 20,
        "groups": 20,
        "batch": 2,
        "widths": (16, 32),
        "head_width": 16,
        "precision": "fp32",
        "evaluate_every": 9,
    }
    first = unet.run(out="first", folder=str(folder), steps=1, **size)
    clip, learnt = (
        CLIPTextModel.from_pretrained(place / "tiny" / part).state_dict() for part in ("clip", "sd/text_encoder")
    )
    moved = [name for name in clip if not torch.equal(clip[name].half(), learnt[name].half())]
    assert clip.keys() == learnt.keys() and len(moved) > len(clip) / 2
    assert StableDiffusionPipeline.from_pretrained(folder).unet.config.block_out_channels == [16, 32]
    second = unet.run(out="second", folder=str(folder), start_from=str(folder), steps=1, **size)
    assert first["before"] == [] and [run["recipe"] for run in second["before"]] == [first["recipe"]]
    unet.run(out="third", folder=str(place / "other"), start_from=str(folder), steps=1, **size)  # a base beside it
    for part in ("vae", "text_encoder", "unet"):
        bases = [StableDiffusionPipeline.from_pretrained(at) for at in (folder, place / "other")]
        weights = [getattr(base, part).state_dict() for base in bases]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(x, weights[1][name]) for name, x in weights[0].items()) == (part == "vae")


def test_two_processes_train_the_base_model_together(place, stack):
    (place / "script.py").write_text(SCRIPT)
    for part in ("vae", "tokenizer"):
        shutil.copytree(stack / "tiny" / "sd" / part, place / "tiny" / "sd" / part)
    shutil.copytree(stack / "tiny" / "clip", place / "tiny" / "clip")
    settings = {"portraits": 20, "groups": 20, "batch": 2, "widths": (16, 32), "head_width": 16, "precision": "fp32"}
    settings |= {"steps": 2, "evaluate_every": 9, "folder": str(place / "tiny" / "sd")}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "script.py"]
    subprocess.run(
        [sys.executable, *launch, json.dumps(settings | {"out": "two"})],
        env=environment(stack) | {"STAGE": "unet"},
        check=True,
        timeout=600,
    )
    unet.run(out="one", **settings)
    two, one = (torch.load(place / run / "checkpoint.pt", weights_only=True)["parameters"] for run in ("two", "one"))
    assert two.keys() == one.keys() and any(not torch.equal(two[name], one[name]) for name in one)


# --- the multi-ID stage -----------------------------------------------------------------------------------------------
GROUPS = ["--groups", "20", "--batch", "4", "--precision", "fp32", "--out", "out", "--samples-every", "1000"]


@pytest.fixture
def single(place, stack) -> Path:
    """Single-ID weights, new from the seed."""
    frozen = network.Stack(stack / "tiny")
    return network.save(place / "single", single_id.build(quick(), frozen), frozen)


def multi(single: Path, *flags: str) -> MultiIDConfig:
    return load(MultiIDConfig, [*GROUPS, "--single-id", str(single), *flags], part="multi_id", prog="train")


def groups_of(config: MultiIDConfig) -> tuple[network.MultiID, GroupBatches]:
    stack = network.Stack(single_id.data_folder("tiny"))
    frozen = (stack.features, stack.tokenizer, stack.folders)
    kinds = {
        name: Batches(config, SceneData(name, config.groups, *frozen), 1000)
        for name, share in config.shares.items()
        if share
    }
    return multi_id.build(config, stack, *checkpoints.load(config.single_id)), GroupBatches(config, kinds)


def test_multi_id_weights_go_on_beside_other_single_id_weights(single, tmp_path):
    stack = network.Stack(single_id.data_folder("tiny"))
    config, tensors = checkpoints.load(single)
    trained = {name: tensor.detach() for name, tensor in groups_of(multi(single, "--seed", "5"))[0].weights().items()}
    trained |= {name: tensor + 0.25 for name, tensor in trained.items() if name.startswith("lora.")}
    before, other = tmp_path / "before", tmp_path / "other"
    for folder, scale in ((before, 1), (other, 2)):
        network.save_single(folder, config, {name: scale * tensor for name, tensor in tensors.items()}, stack)
    checkpoints.save_multi(before, trained, checkpoints.single_digest(before))
    for folder, scale in ((before, 1), (other, 2)):
        begun, _ = groups_of(multi(folder, "--start-from", str(before)))
        for name, weight in begun.weights().items():
            expected = trained[name] + ((scale - 1) * tensors[name] if name.startswith("lora.") else 0)
            assert torch.allclose(weight, expected, rtol=1e-3, atol=1e-3), name

    def narrow(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        cut = {".down": lambda x: x[:4], ".up": lambda x: x[:, :4]}
        return {name: cut[name[name.rfind(".") :]](x) if name.startswith("lora.") else x for name, x in weights.items()}

    of_rank_4 = tmp_path / "narrow"
    network.save_single(of_rank_4, replace(config, lora_rank=4), narrow(tensors), stack)
    checkpoints.save_multi(of_rank_4, narrow(trained), checkpoints.single_digest(of_rank_4))
    for name, weight in groups_of(multi(single, "--start-from", str(of_rank_4)))[0].weights().items():
        expected = (tensors if name.startswith("lora.") else trained)[name]  # a LoRA of another rank begins anew
        assert torch.allclose(weight, expected, rtol=1e-3, atol=1e-3), name
    with pytest.raises(WeightsError, match="holds no multi-ID weights"):
        groups_of(multi(other, "--start-from", str(other)))


def test_features_and_boxes_of_a_group_belong_to_the_same_faces(single):
    _, batches = groups_of(multi(single))
    data = batches.kinds["trios"].data
    drawn = data.draw(torch.Generator().manual_seed(3), 4, swap=0.0)
    assert sorted(drawn["face"][0] % 3) == [0, 1, 2] and len({tuple(row % 3) for row in drawn["face"]}) > 1
    read, computed = data.read(drawn), data.read(drawn, cached=False)
    for name in ("intrinsic", "structure", "boxes"):
        torch.testing.assert_close(read[name], computed[name], rtol=2e-2, atol=2e-3)
    scene, face = int(drawn["scene"][2]), int(drawn["face"][2, 1]) % 3
    torch.testing.assert_close(
        read["boxes"][2, 1] * torch.tensor([256, 128] * 2), torch.tensor(data.scenes.boxes[scene, face])
    )
    crop = data.crops([scene * 3 + face])
    alone = data._features(crop)["intrinsic"][0]
    torch.testing.assert_close(read["intrinsic"][2, 1], torch.from_numpy(alone), rtol=2e-2, atol=2e-3)


def test_swapped_features_in_groups_come_from_another_picture_of_the_same_person(single):
    data = groups_of(multi(single))[1].kinds["pairs"].data
    drawn = data.draw(torch.Generator().manual_seed(0), 64, swap=1.0)
    assert (data.people[drawn["source"]] == data.people[drawn["face"]]).all()
    assert (drawn["source"] != drawn["face"]).all()


def test_what_is_said_of_a_person_alone_goes_with_their_face(single):
    _, batches = groups_of(multi(single))
    data = batches.kinds["trios"].data
    drawn = data.draw(torch.Generator().manual_seed(3), 40, swap=0.0)
    words = [data.tokenizer.batch_decode(row, skip_special_tokens=True) for row in data.sentences(drawn)]
    kinds = {kind: set(wording.NOUNS[kind]) for kind in ("woman", "man")}
    told = 0
    for faces, texts in zip(drawn["face"], words, strict=True):
        for face, text in zip(faces, texts, strict=True):
            own = Person.random(int(data.people[face])).presentation
            for kind, nouns in kinds.items():
                if nouns & set(text.split()):
                    told += 1
                    assert own == kind, (own, text)
    assert told > 30


def test_sentences_are_said_in_as_many_steps_as_asked_and_never_without_a_caption(single):
    _, batches = groups_of(multi(single))

    def said(share: str, seed: int):
        config = multi(single, "--no-caption", "0.3", "--no-face", "0.3", "--batch", "24", "--sentences", share)
        return Batches(config, batches.kinds["pairs"].data, 1000)(0, torch.Generator().manual_seed(seed))

    assert said("0", 0).sentences is None
    batch = said("1", 0)
    heard = (batch.text != batches.kinds["pairs"].no_text).any(dim=1) & batch.active
    assert batch.sentences.shape == (*batch.said.shape, 48)
    assert 0 < heard.sum() < len(heard) and batch.said[heard].any() and not batch.said[~heard].any()
    assert 0 < sum(said("0.5", seed).sentences is None for seed in range(12)) < 12


def test_sentences_change_what_the_model_predicts(single):
    torch.manual_seed(0)
    model, batches = groups_of(multi(single, "--no-caption", "0", "--sentences", "1"))
    batch = batches.kinds["pairs"](0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        told, silent, without = (
            float(model.eval()(each)["diffusion"])
            for each in (
                batch,
                replace(batch, said=torch.zeros_like(batch.said)),
                replace(batch, said=None, sentences=None),
            )
        )
    assert silent == pytest.approx(without, rel=1e-6) and abs(told - silent) > 1e-5 * silent


def test_batches_are_made_on_the_cpu_wherever_the_frozen_networks_are(place):
    """Workers make them, and a forked process cannot compute on a GPU: "meta" stands in for one here."""
    config = quick("--intrinsic", "global")
    _, batches = batches_of(config)
    batches.data.features.to("meta")
    assert draw(batches).intrinsic.device.type == "cpu"


@pytest.mark.parametrize("intrinsic", ["spatial", "global"])
def test_face_features_nearly_all_of_a_batch_stay_in_the_half_precision_that_they_are_stored_in(place, intrinsic):
    model, batches = batches_of(quick("--no-caption", "0.5", "--nobody", "1", "--intrinsic", intrinsic))
    batch = draw(batches)
    nobody = (batch.text == batches.no_text).all(dim=1)
    assert nobody.any() and not nobody.all()
    assert batch.intrinsic.dtype == batch.structure.dtype == torch.float16
    assert not batch.intrinsic[nobody].any() and batch.intrinsic[~nobody].flatten(1).any(dim=1).all()
    assert model.tokens(batch).dtype == torch.float32


def test_torch_compile_captures_the_u_net_whole_in_both_stages(single):
    """Without a break, with the same losses and gradients; the compiler's own code is another test's."""
    for made, batches in (batches_of(quick()), groups_of(multi(single, "--sentences", "1"))):
        given, found, counted = draw(batches), [], CompileCounterWithBackend("aot_eager")
        for compiled in (False, True):
            if compiled:
                torch.compiler.reset()
                made.unet.compile(backend=counted, fullgraph=True, dynamic=False)
            torch.manual_seed(0)
            losses = made.train()(given)
            losses["loss"].backward()
            gradients = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
            made.zero_grad(set_to_none=True)
            found.append((losses, gradients))
        torch.testing.assert_close(*found, equal_nan=True)
        assert counted.frame_count == 1
    torch.compiler.reset()


def test_the_temperature_falls_and_trios_come_as_often_as_asked(single):
    _, batches = groups_of(multi(single, "--temperature", "2", "--last-temperature", "1", "--cooling", "10"))
    drawn = [batches(step, torch.Generator().manual_seed(step)) for step in (0, 5, 10, 20)]
    assert [float(batch.temperature) for batch in drawn] == [2, 1.5, 1, 1]
    asked = {("0", "0"): {2}, ("1", "0"): {3}, ("0.7", "0.3"): {3, 4, 5}, ("0.2", "0.4"): {2, 3, 4, 5}}
    for (trios, larger), people in asked.items():
        _, batches = groups_of(multi(single, "--trios", trios, "--larger", larger, "--batch", "12"))
        drawn = [batches(k, torch.Generator().manual_seed(k)) for k in range(40)]
        assert {batch.boxes.shape[1] for batch in drawn} == people
        for batch in drawn:  # wider pictures, fewer in a step, and each identity its own face
            people_in_it = batch.boxes.shape[1]
            assert batch.latents.shape[::3] == (24 // (people_in_it + 1), 8 * (people_in_it + 1))
            assert batch.intrinsic.shape[:2] == batch.boxes.shape[:2]


def test_the_routers_learn_from_both_losses_and_the_frozen_parts_do_not(single):
    for weight in ("0", "0.1"):
        torch.manual_seed(0)
        model, batches = groups_of(multi(single, "--route-weight", weight, "--no-face", "0", "--no-caption", "0"))
        found = model.train()(batches(0, torch.Generator().manual_seed(0)))
        torch.testing.assert_close(found["loss"], found["diffusion"] + float(weight) * found["route"])
        rights = {"right_down", "right_mid", "right_up"}
        assert rights <= found.keys() and all(0 <= found[k] <= 1 for k in rights - {"right_mid"})  # no face fills it
        found["loss"].backward()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert trained and all(".router." in name or "lora_" in name for name in trained)
        norms = {name: float(p.grad.norm()) for name, p in trained.items() if "lora_A" not in name}
        assert all(norms.values()), [name for name, norm in norms.items() if not norm]


def test_the_routing_loss_alone_teaches_the_routers_where_faces_are(single):
    """On one batch, noise-free: the share of locations that name the right face rises to nearly all."""
    model, batches = groups_of(multi(single, "--trios", "0", "--no-face", "0", "--no-caption", "0"))
    batch = batches(0, torch.Generator().manual_seed(0))
    batch.timesteps.fill_(0)
    routers = [p for name, p in model.named_parameters() if ".router." in name]
    optimiser = torch.optim.Adam(routers, lr=1e-2)
    before = model(batch)["right_up"]
    for _ in range(60):
        optimiser.zero_grad()
        model(batch)["route"].backward()
        optimiser.step()
    assert model(batch)["right_up"] > max(0.9, before)


def test_a_run_of_the_multi_id_stage_leaves_the_first_stages_weights_as_they_were(single, place, monkeypatch):
    monkeypatch.setattr(samples, "PEOPLE", samples.PEOPLE[:2])
    flags = ["--steps", "2", "--samples-every", "2", "--log-every", "1", "--precision", "bf16", "--trios", "0.5"]
    multi_id.main([*GROUPS, "--single-id", str(single), *flags])
    (_, before), (_, after) = checkpoints.load(single), checkpoints.load("out")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    tensors = checkpoints.load_multi("out")
    assert any(name.startswith("router.") for name in tensors)
    name = "lora.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.up"
    assert tensors[name].shape == before[name].shape and not torch.equal(tensors[name], before[name])
    assert (tensors[name] - before[name]).abs().max() < 1e-3  # a tenth of the rate, two steps of the warm-up
    log = [json.loads(line) for line in (place / "runs/multi_id/log.jsonl").read_text().splitlines()]
    assert {"loss", "diffusion", "route", "right_up"} <= log[0].keys()
    recipe = json.loads(Path("out/multi_id.recipe.json").read_text())
    assert recipe["steps"] == 2 and recipe["recipe"].startswith("python -m uniportrait_lite train multi_id")
    with Image.open(place / "runs/multi_id/samples/000002.png") as grid:
        assert grid.size == (2 * 128 + 3 * 192, 128)


@pytest.mark.parametrize(("trios", "kinds"), [("0", ["pairs"]), ("1", ["trios"])])
def test_pictures_that_no_step_reads_are_not_drawn(single, place, monkeypatch, trios, kinds):
    drawn = []
    monkeypatch.setattr(multi_id, "SceneData", lambda name, *given: drawn.append(name) or SceneData(name, *given))
    history = multi_id.run(multi(single, "--steps", "1", "--log-every", "1", "--trios", trios))
    assert drawn == kinds and history[-1]["step"] == 1


def test_the_second_lora_begins_as_the_first_and_learns_at_its_share_of_the_rate(single, place):
    flags = ["--steps", "1", "--warmup", "1", "--lr", "0.01", "--ema", "none", "--cooldown", "0"]
    (_, first), moved = checkpoints.load(single), {}
    for rate in ("0", "0.1", "1"):
        multi_id.main([*GROUPS, "--single-id", str(single), *flags, "--lora-rate", rate, "--run-folder", f"run{rate}"])
        after = checkpoints.load_multi("out")
        names = [name for name in first if name.startswith("lora.") and name.endswith(".up")]
        moved[rate] = {name: float((after[name].float() - first[name].float()).abs().mean()) for name in names}
        routers = torch.cat([after[name].flatten() for name in sorted(after) if name.startswith("router.")])
        moved[rate]["routers"] = routers.float()
    assert not any(moved["0"][name] for name in names)  # it begins as the single-ID stage's
    for name in names:
        assert moved["1"][name] > 0 and moved["0.1"][name] == pytest.approx(0.1 * moved["1"][name], rel=0.15), name
    assert torch.equal(moved["0.1"]["routers"], moved["1"]["routers"])


def test_the_routing_loss_is_of_what_routers_will_choose_and_nobodys_faces_are_nowhere(single, monkeypatch):
    model, batches = groups_of(multi(single, "--trios", "0", "--no-face", "0", "--no-caption", "0"))
    batch, seen = batches(0, torch.Generator().manual_seed(0)), {}

    def spied(name, ask):
        return lambda maps, boxes: seen.update({name: maps}) or ask(maps, boxes)

    for name in ("routing_loss", "routing_accuracy"):
        monkeypatch.setattr(network, name, spied(name, getattr(network, name)))
    with torch.no_grad():
        assert model(batch)["route"] > 0
        for layer, logits in seen["routing_accuracy"].items():  # without the noise of the draws, and not one-hot
            assert torch.equal(seen["routing_loss"][layer], logits.softmax(dim=1)), layer
        for name in ("active", "intrinsic"):
            nobody = replace(batch, **{name: torch.zeros_like(getattr(batch, name))})
            assert model(nobody)["route"] == 0, name


@pytest.mark.parametrize("launcher", [["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
                                      ["accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1",
                                       "--mixed_precision", "no", "--dynamo_backend", "no", "--cpu"]])  # fmt: skip
def test_the_second_stage_runs_under_both_launchers(single, place, stack, launcher):
    (place / "script.py").write_text(SCRIPT)
    flags = [*GROUPS, "--single-id", str(single), "--steps", "2", "--warmup", "1", "--log-every", "1"]
    command = [sys.executable, "-m", *launcher, "script.py", *flags, "--run-folder", "launched"]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(stack) | {"STAGE": "multi_id"})
    assert ran.returncode == 0, ran.stderr
    multi_id.main([*flags, "--run-folder", "here"])
    there, here = (torch.load(place / run / "checkpoint.pt", weights_only=True) for run in ("launched", "here"))
    assert there["step"] == here["step"] == 2
    same = [torch.equal(weight, there["parameters"][name]) for name, weight in here["parameters"].items()]
    assert all(same) if "--nproc-per-node" not in launcher else not all(same)  # two processes have twice the batch


def test_an_ablation_of_the_second_stage_keeps_away_from_the_full_methods_folders(single):
    assert multi(single, "--sentences", "0").run_folder == "runs/multi_id_no_sentences"
    assert multi(single, "--route-weight", "0").run_folder == "runs/multi_id_no_route"
    assert multi(single, "--soft", "true").run_folder == "runs/multi_id_soft"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--temperature", "0"], "temperature is above 0"),
        (["--route-weight", "-1"], "not below 0"),
        (["--trios", "2"], "trios is a share"),
        (["--larger", "0.7"], "trios and larger share the steps"),
        (["--groups", "0"], "groups is at least 1"),
        (["--single-id", "nowhere"], "nowhere holds no config.json"),
    ],
)
def test_settings_of_the_second_stage_that_cannot_be_are_errors(place, flags, says):
    with pytest.raises((ConfigError, WeightsError), match=says):
        multi_id.main([*GROUPS, *flags])


def test_a_run_that_is_done_goes_on_when_asked_for_more_beside_the_weights_it_wrote(single, place):
    """The usual case: the weights go into the folder of the single-ID weights."""
    flags = [
        *GROUPS[:-4],
        "--samples-every",
        "1000",
        "--single-id",
        str(single),
        "--out",
        str(single),
        "--log-every",
        "1",
    ]
    multi_id.main([*flags, "--steps", "1"])
    first = checkpoints.load_multi(single)
    multi_id.main([*flags, "--steps", "2"])
    second = checkpoints.load_multi(single)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert json.loads((single / "multi_id.recipe.json").read_text())["steps"] == 2


def test_the_second_stage_killed_and_started_again_has_the_weights_of_one_that_was_not(single, place, stack):
    flags = [*GROUPS, "--single-id", str(single), "--steps", "6", "--log-every", "1", "--warmup", "2"]
    multi_id.main([*flags, "--run-folder", "whole"])
    command = [sys.executable, "-c", SCRIPT, *flags, "--run-folder", "killed", "--checkpoint-every", "0"]
    env = environment(stack) | {"KILLED_AT": "3", "STAGE": "multi_id"}
    killed = subprocess.run(command, capture_output=True, text=True, env=env)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    multi_id.main([*flags, "--run-folder", "killed"])
    whole, resumed = (torch.load(place / run / "checkpoint.pt", weights_only=True) for run in ("whole", "killed"))
    assert resumed["step"] == 6
    for name, weight in whole["parameters"].items():
        assert torch.equal(weight, resumed["parameters"][name]), name


def test_the_samples_tell_people_apart_by_the_judge(stack, place):
    """On real pictures in place of portraits: a second scene of each person is nearer to that person's reference."""
    faces = Path(__file__).parents[1] / "data" / "tiny" / "face"
    look = samples.Samples(stack / "tiny" / "sd", place, faces)
    again = [[reference(scene.faces[0].person, seed=2).image] for scene in look.references]
    found = look.similarities(again)
    assert found["faces_found"] == 1
    assert found["facesim"] > found["facesim_others"] + 0.3


def environment(stack: Path) -> dict[str, str]:
    """For processes that run beside this one: one thread each, as here, so that sums come in the same order."""
    here = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1]), "CACHE": str(stack / "cache")}
    return {**os.environ, **here}
