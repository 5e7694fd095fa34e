"""Our weights on disk."""

import dataclasses
import json
import os

import pytest
import torch
from method_parts import EMBEDDING, small_unet, write_weights
from safetensors.torch import load_file

from uniportrait_lite import WeightsError, checkpoints
from uniportrait_lite.attention import attach_id_attention
from uniportrait_lite.checkpoints import CallDefaults, UniPortraitConfig
from uniportrait_lite.errors import ConfigError
from uniportrait_lite.id_embedding import IDEmbedding
from uniportrait_lite.lora import add_lora

CONFIG = UniPortraitConfig(
    id_embedding=EMBEDDING, intrinsic="global", lora_rank=3, encoders={"clip": "there"}, defaults=CallDefaults(steps=7)
)


def modules(rank: int = 3):
    unet = small_unet()
    id_attention = attach_id_attention(unet)
    add_lora(unet, rank)
    return IDEmbedding(EMBEDDING), id_attention, unet


def test_weights_come_back_as_they_went_but_for_half_precision(tmp_path):
    torch.manual_seed(0)
    weights = checkpoints.weights(*modules())
    for weight in weights.values():
        torch.nn.init.normal_(weight)
    checkpoints.save(tmp_path / "new" / "folder", CONFIG, weights)
    config, tensors = checkpoints.load(tmp_path / "new" / "folder")
    assert config == CONFIG
    torch.manual_seed(1)
    fresh = checkpoints.weights(*modules())
    checkpoints.fill(fresh, tensors)
    assert fresh.keys() == weights.keys()
    assert all(torch.equal(fresh[name], weights[name].half().float()) for name in weights)


def test_keys_name_the_three_parts_and_their_layers():
    weights = checkpoints.weights(*modules())
    assert {name.split(".")[0] for name in weights} == {"id_embedding", "id_attention", "lora"}
    layer = "down_blocks{0}0{0}attentions{0}0{0}transformer_blocks{0}0{0}attn2"
    assert f"id_attention.{layer.format('/')}.to_k_id.weight" in weights
    assert f"lora.{layer.format('.')}.to_out.0.up" in weights


def test_on_disk_is_half_precision_and_readable_json(tmp_path):
    checkpoints.save(tmp_path, CONFIG, checkpoints.weights(*modules()))
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    assert json.loads((tmp_path / "config.json").read_text())["id_embedding"]["width"] == EMBEDDING.width
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]


def test_misfits_are_listed_and_nothing_is_changed():
    weights = checkpoints.weights(*modules())
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    wrong = {name: torch.ones_like(weight) for name, weight in weights.items()}
    del wrong["id_embedding.queries"]
    wrong["router.theta"] = torch.zeros(1)
    wrong["id_embedding.norm.weight"] = torch.zeros(5)
    with pytest.raises(WeightsError) as error:
        checkpoints.fill(weights, wrong, origin="these")
    text = str(error.value)
    assert "1 missing: id_embedding.queries" in text and "1 unexpected: router.theta" in text
    assert "1 of another shape: id_embedding.norm.weight (5,), not (24,)" in text
    assert all(torch.equal(weight, before[name]) for name, weight in weights.items())


def test_a_lora_of_another_rank_is_named():
    with pytest.raises(WeightsError, match=r"lora.*and \d+ more"):
        checkpoints.fill(checkpoints.weights(*modules(rank=2)), checkpoints.weights(*modules(rank=3)))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("harm", ["missing", "truncated", "empty"])
def test_missing_and_truncated_files_are_clear_errors(tmp_path, name, harm):
    folder = write_weights(tmp_path)
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if harm != "missing":
        path.write_bytes(content[: len(content) // 2] if harm == "truncated" else b"")
    with pytest.raises(WeightsError, match=name):
        checkpoints.load(folder)


def test_a_config_of_a_later_version_is_an_error(tmp_path):
    folder = write_weights(tmp_path)
    values = json.loads((folder / "config.json").read_text())
    values["id_embedding"]["gates"] = 3
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match="IDEmbeddingConfig has no gates"):
        checkpoints.load(folder)
    for text in ("{", "[]", '{"id_embedding": 3}', '{"id_embedding": {"width": "wide"}}'):
        (folder / "config.json").write_text(text)
        with pytest.raises(WeightsError, match="cannot be read"):
            checkpoints.load(folder)


def test_a_folder_that_cannot_be_written_is_a_clear_error_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsError, match="choose a folder"):
        checkpoints.save(tmp_path / "file", CONFIG, checkpoints.weights(*modules()))
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_former_weights_whole(tmp_path):
    resource = pytest.importorskip("resource")  # Unix
    weights = checkpoints.weights(*modules())
    checkpoints.save(tmp_path, CONFIG, weights)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(WeightsError, match="cannot write"):
            checkpoints.save(tmp_path, CONFIG, {name: 2 * weight for name, weight in weights.items()})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    _, tensors = checkpoints.load(tmp_path)
    assert all(torch.equal(tensors[name], weight.half().float()) for name, weight in weights.items())


def test_configs_with_unknown_names_are_errors():
    assert UniPortraitConfig.from_dict(dataclasses.asdict(CONFIG)) == CONFIG
    with pytest.raises(ConfigError, match="has no steps"):
        UniPortraitConfig.from_dict({"steps": 3})
