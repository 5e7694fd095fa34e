"""The published files: their layout, reading and writing them, and files that are not what they should be."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import parity
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from huggingface_hub import constants
from method_parts import EMBEDDING, WIDTH, crop, small_clip_vision, small_pipe, write_weights
from safetensors.torch import load_file, save_file

from uniportrait_lite import ConfigError, UniPortrait, WeightsError, checkpoints, official, published, rehearsal
from uniportrait_lite.backbone import IRConfig, IRResNet
from uniportrait_lite.image_prompt import ImageAdapter
from uniportrait_lite.published import BACKBONE, FACEID, IP_ADAPTER, ROUTER

LAYOUT = json.loads((Path(__file__).parent / "data" / "official" / "layout.json").read_text())
SD15 = {"sample_size": 64, "cross_attention_dim": 768}  # of its U-Net what is not diffusers' default
PUBLISHED = {
    "intrinsic_id_embedding_dim": 512, "structure_embedding_dim": 1728, "num_tokens": 16, "depth": 6, "dim": 768,
    "dim_head": 64, "heads": 12, "ff_mult": 4, "output_dim": 768,
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The Hub's cache of what is derived from downloads."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets" / "uniportrait_lite"


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Small weights of both stages in our format, and all that belongs to them."""
    folder = tmp_path_factory.mktemp("ours")
    write_weights(folder, several=True)
    return folder


@pytest.fixture(scope="module")
def pipe(ours):
    return small_pipe(ours / "tokenizer")


@pytest.fixture
def attach(pipe):
    """`UniPortrait.attach` that is undone after the test."""
    attached = []

    def attach(*args, **kwargs):
        attached.append(UniPortrait.attach(pipe, *args, **kwargs))
        return attached[-1]

    yield attach
    for up in attached:
        if up.injection.attached:
            up.detach()


BACKBONE_CONFIG = IRConfig((4, 5, 7, 8), (1, 2, 1, 1), stem_stride=1, embedding=12)


@pytest.fixture(scope="module")
def written(ours, pipe, tmp_path_factory):
    """The same weights in the published layout, encoders beside them; by the files' ending."""
    up = UniPortrait.attach(pipe, ours / "uniportrait")
    names = official.names(up.unet)
    torch.manual_seed(4)
    backbone, image_adapter = IRResNet(BACKBONE_CONFIG), ImageAdapter(up.unet, 8)
    folders = {}
    for ending in published.ENDINGS:
        folders[ending] = folder = tmp_path_factory.mktemp("published")
        weights = checkpoints.weights(up.id_embedding, up.id_attention, up.unet)
        official.save(folder / f"{FACEID}{ending}", weights, names)
        official.save(folder / f"{ROUTER}{ending}", checkpoints.multi_weights(up.id_attention, up.unet), names)
        official.save(folder / f"{IP_ADAPTER}{ending}", image_adapter.state_dict(), names)
        official.save(folder / f"{BACKBONE}{ending}", backbone.state_dict(), official.backbone_names(BACKBONE_CONFIG))
        small_clip_vision().save_pretrained(folder / "image_encoder")
        sizes = {"heads": EMBEDDING.heads, "head_dim": EMBEDDING.head_dim}
        (folder / official.SETTINGS).write_text(json.dumps({"id_embedding": sizes, "defaults": {"steps": 2}}))
    up.detach()
    return folders


@pytest.fixture(params=[".bin"])
def folder(tmp_path, written, request):
    """Published files that a test may harm, `.bin` where it does not say otherwise."""
    return Path(shutil.copytree(written[request.param], tmp_path / "published"))


BOTH = pytest.mark.parametrize("folder", published.ENDINGS, indirect=True)


def change(path: Path, edit) -> None:
    """Writes a published file again, its flat tensors edited."""
    tensors = published.read(path, path.stem)
    edit(tensors)
    published.write(path, tensors)


# Layout


@pytest.fixture(scope="module")
def layouts():
    return rehearsal.layouts(SD15, parity.embedding(PUBLISHED), rank=128, clip_width=1024)


@pytest.mark.parametrize("file", [FACEID, ROUTER, IP_ADAPTER, BACKBONE])
def test_keys_and_shapes_at_full_size_are_the_published_files(layouts, file):
    assert {key: list(shape) for key, shape in layouts[file].items()} == LAYOUT[f"{file}.bin"]


def test_layers_are_numbered_down_up_middle():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15)
    order = [name.removesuffix(".processor") for name in LAYOUT["attn_processor_order"]]
    assert official.attention_layers(unet) == order


def test_settings_of_the_published_weights_are_read_off_the_faceid_file(layouts, tmp_path):
    empty = {key: torch.empty(shape, device="meta") for key, shape in layouts[FACEID].items()}
    config = official._config(tmp_path / f"{FACEID}.bin", empty)
    embedding = config.id_embedding
    assert (embedding.width, embedding.layers, embedding.heads, embedding.head_dim) == (768, 6, 12, 64)
    assert (embedding.intrinsic_dim, embedding.structure_dim, embedding.out_dim) == (512, 1728, 768)
    assert config.lora_rank == 128 and config.encoders["backbone"] == f"{BACKBONE}.bin"
    assert (config.defaults.guidance, config.defaults.id_scale, config.defaults.structure_scale) == (7.5, 0.7, 0.1)


# There and back


@BOTH
def test_weights_written_as_published_and_attached_draw_the_same_to_the_bit(ours, folder, attach):
    pictures = []
    for weights in (ours / "uniportrait", folder, published.file_of(folder, FACEID)):
        up = attach(weights, backbone=ours / "recogniser", clip=ours / "clip")
        people = [up.identity_of_crops([crop(seed)]) for seed in (1, 2)]
        settings = {"seed": 0, "steps": 2, "guidance": 3.0, "id_scale": 0.8, "structure_scale": 0.5}
        pictures.append([up("a man", some, output_type="np", **settings).images for some in (people[:1], people)])
        up.detach()
    for one, two in pictures[1:]:
        assert np.array_equal(one, pictures[0][0]) and np.array_equal(two, pictures[0][1])


def test_a_bin_has_the_groups_and_keys_of_the_published_one(folder):
    nested = torch.load(folder / f"{FACEID}.bin", weights_only=True)
    assert set(nested) == {"faceid_proj", "faceid_adapter"} and "latents" in nested["faceid_proj"]
    assert set(torch.load(folder / f"{IP_ADAPTER}.bin", weights_only=True)) == {"image_proj", "ip_adapter"}
    backbone = torch.load(folder / f"{BACKBONE}.bin", weights_only=True)
    assert "input_layer.0.weight" in backbone and "body.4.res_layer.5.running_var" in backbone


def test_everything_is_found_in_the_folder(folder, attach):
    up = attach(folder, ip_adapter=folder)
    assert up.routes and up.config.defaults.steps == 2 and up.config.defaults.guidance == 7.5
    assert up.image_adapter(torch.zeros(1, 8)).shape == (1, 4, WIDTH)
    assert np.isfinite(up("a man", up.identity_of_crops([crop(1)]), seed=0, output_type="np").images).all()


def test_a_backbones_sizes_are_read_off_the_file(folder):
    loaded = official.load_backbone(folder)
    assert (loaded.config.channels, loaded.config.blocks) == (BACKBONE_CONFIG.channels, BACKBONE_CONFIG.blocks)
    assert loaded.config.embedding == 12 and not loaded.training


def test_a_backbone_with_other_than_four_stages_is_listed(folder):
    change(folder / f"{BACKBONE}.bin", lambda tensors: tensors.pop("body.1.res_layer.1.weight"))
    with pytest.raises(WeightsError, match="missing: .*body.1.res_layer"):
        official.load_backbone(folder)


def test_without_a_router_file_the_weights_are_for_one_person(folder, attach):
    (folder / f"{ROUTER}.bin").unlink()
    up = attach(folder)
    assert not up.routes and up.image_adapter is None


def test_ip_adapter_goes_with_weights_of_ours(ours, folder, attach):
    up = attach(ours / "uniportrait", ip_adapter=folder / f"{IP_ADAPTER}.bin")
    prompt = up.image_adapter.prompt(up.image_adapter(torch.randn(1, 8)), 0.8)
    ann = up.identity_of_crops([crop(1)])
    latents, text = torch.randn(2, 4, 16, 16), torch.randn(2, 5, WIDTH)

    def predict(**conditions):
        with torch.no_grad():
            return up.unet(latents, torch.tensor(9), text, cross_attention_kwargs=conditions).sample

    with up.using(ann, guided=True):
        together = predict(image_prompt=prompt)
    identities = up.conditions(ann)
    assert torch.equal(together, predict(identities=identities, image_prompt=prompt))
    for fewer in ({"identities": identities}, {"image_prompt": prompt}, {}):
        assert not torch.allclose(together, predict(**fewer), atol=1e-3)
    up.unet.set_attn_processor(AttnProcessor2_0())
    with pytest.raises(ConfigError, match="attach again"):
        predict(image_prompt=prompt)
    up.id_attention.detach(up.unet)


def test_a_file_beside_its_router_under_other_names(folder, attach):
    for file in (FACEID, ROUTER):
        kind = "faceid" if file == FACEID else "router"
        (folder / f"{file}.bin").rename(folder / f"my-{kind}.bin")
    assert attach(folder / "my-faceid.bin").routes


def test_the_loras_rank_is_read_off_the_file(folder, attach):
    def cut(tensors):
        for key in tensors:
            if "lora.down" in key:
                tensors[key] = tensors[key][:1].clone()
            elif "lora.up" in key:
                tensors[key] = tensors[key][:, :1].clone()

    for file in (FACEID, ROUTER):
        change(folder / f"{file}.bin", cut)
    assert attach(folder).config.lora_rank == 1


# The cache


def test_a_bin_is_unpickled_once_and_again_when_it_changes(folder, cache, monkeypatch):
    path, unpickled, load = folder / f"{FACEID}.bin", [], torch.load

    def counted(*args, **kwargs):
        assert kwargs["weights_only"]
        unpickled.append(args)
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", counted)
    first = published.read(path, FACEID)
    second = published.read(path, FACEID)
    assert len(unpickled) == 1 and [p.suffix for p in cache.iterdir()] == [".safetensors"]
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    first["faceid_proj.latents"] = first["faceid_proj.latents"] + 1
    published.write(path, first)
    assert torch.equal(published.read(path, FACEID)["faceid_proj.latents"], first["faceid_proj.latents"])
    assert len(unpickled) == 2 and len(os.listdir(cache)) == 1


def test_older_bins_and_tensors_that_share_memory_are_read(tmp_path):
    whole = torch.arange(6.0)
    nested = {"faceid_proj": {"a": whole[:3], "b": whole.view(2, 3).T}}
    for path, new in ((tmp_path / "new.bin", True), (tmp_path / "old.bin", False)):
        torch.save(nested, path, _use_new_zipfile_serialization=new)
        for _ in range(2):  # unpickled, and from the copy
            tensors = published.read(path, FACEID)
            assert torch.equal(tensors["faceid_proj.a"], whole[:3])
            assert torch.equal(tensors["faceid_proj.b"], whole.view(2, 3).T)


def test_a_damaged_copy_is_made_again(folder, cache):
    path = folder / f"{FACEID}.bin"
    expected = published.read(path, FACEID)
    [copy] = cache.iterdir()
    copy.write_bytes(copy.read_bytes()[:2000])
    assert published.read(path, FACEID).keys() == expected.keys()
    assert load_file(copy).keys() == expected.keys()


def test_where_nothing_can_be_cached_the_file_is_read_all_the_same(folder, tmp_path, monkeypatch):
    (tmp_path / "in the way").write_text("")
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "in the way"))
    assert "faceid_proj.latents" in published.read(folder / f"{FACEID}.bin", FACEID)


# Files that are not what they should be


def refused(pipe, *args, **kwargs) -> str:
    """What the error says; the pipeline is left as it was."""
    keys, processors = list(pipe.unet.state_dict()), pipe.unet.attn_processors
    with pytest.raises(WeightsError) as error:
        UniPortrait.attach(pipe, *args, **kwargs)
    assert list(pipe.unet.state_dict()) == keys and pipe.unet.attn_processors == processors
    assert "forward" not in vars(pipe.unet)
    return str(error.value)


@pytest.mark.parametrize("file", [FACEID, ROUTER])
def test_missing_unexpected_and_misshapen_keys_are_listed_as_published(folder, pipe, file):
    def edit(tensors):
        del tensors["faceid_adapter.2.to_q_lora.up.weight"]
        tensors["faceid_adapter.2.to_q_lora.middle"] = torch.zeros(1)
        tensors["faceid_adapter.0.to_out_lora.up.weight"] = torch.zeros(5, 2)

    change(folder / f"{file}.bin", edit)
    text = refused(pipe, folder)
    assert "1 missing: faceid_adapter.2.to_q_lora.up.weight" in text
    assert "1 unexpected: faceid_adapter.2.to_q_lora.middle" in text
    assert "1 of another shape: faceid_adapter.0.to_out_lora.up.weight (5, 2), not (8, 2)" in text


@pytest.mark.parametrize(
    "key", ["faceid_proj.latents", "faceid_proj.proj_out.weight", "faceid_proj.layers.1.1.norm2.bias"]
)
def test_a_missing_tensor_of_the_id_embedding_is_named(folder, pipe, key):
    change(folder / f"{FACEID}.bin", lambda tensors: tensors.pop(key))
    if key == "faceid_proj.proj_out.weight":  # then its width counts as published
        with pytest.raises(ConfigError, match="width 768"):
            UniPortrait.attach(pipe, folder)
    else:
        assert f"missing: {key}" in refused(pipe, folder)


@BOTH
@pytest.mark.parametrize("kept", [0, 1, 1000, -1])
def test_truncated_files_are_named(folder, pipe, kept):
    path = published.file_of(folder, FACEID)
    path.write_bytes(path.read_bytes()[:kept])
    text = refused(pipe, folder)
    assert str(path) in text and "damaged" in text and "Junjie96/UniPortrait" in text


def test_other_things_than_tensors_are_never_unpickled(folder, pipe, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    path = folder / f"{FACEID}.bin"
    torch.save({"faceid_proj": Trap()}, path)
    assert "never unpickled" in refused(pipe, folder)
    assert not (tmp_path / "trapped").exists()
    torch.save({"faceid_proj": {"latents": torch.zeros(1)}, "step": 3}, path)
    assert "step. is a int in place of tensors" in refused(pipe, folder)
    path.write_text("<html>404</html>")
    assert "damaged" in refused(pipe, folder)


def test_files_in_each_others_place_are_told_apart(folder, pipe, ours):
    def instead(path, **kwargs):
        return refused(pipe, path, **kwargs)

    files = {kind: folder / f"{kind}.bin" for kind in (FACEID, ROUTER, IP_ADAPTER, BACKBONE)}
    assert f"is no {FACEID}, it is probably {IP_ADAPTER}" in instead(files[IP_ADAPTER])
    assert f"is no {FACEID}, it is probably {ROUTER}" in instead(files[ROUTER])
    assert f"is no {FACEID}, it is probably {BACKBONE}" in instead(files[BACKBONE])
    assert f"is no {IP_ADAPTER}, it is probably {FACEID}" in instead(folder, ip_adapter=files[FACEID])
    assert "is given by its folder" in instead(ours / "uniportrait" / "model.safetensors")
    for key, what in (
        ("conditioner.embedders.1.model.ln_final.bias", "an SDXL checkpoint"),
        ("model.diffusion_model.out.0.bias", "a Stable Diffusion checkpoint"),
        ("lora_unet_up_blocks_1.alpha", "a LoRA"),
        ("image_proj.latents", "an IP-Adapter Plus"),
        ("weight", "something else"),
    ):
        save_file({key: torch.zeros(1)}, folder / "other.safetensors")
        assert f"it is probably {what}" in instead(folder / "other.safetensors")


def test_a_router_file_without_its_faceid_file(folder, pipe):
    (folder / f"{FACEID}.bin").unlink()
    text = refused(pipe, folder)
    assert f"there is no {folder / FACEID}.bin: fetch {FACEID} from Junjie96/UniPortrait" in text


def test_a_router_file_of_another_rank(folder, pipe):
    def widen(tensors):
        for key in tensors:
            if "_lora." in key:
                dim = 0 if "down" in key else 1
                tensors[key] = torch.cat([tensors[key]] * 2, dim)

    change(folder / f"{ROUTER}.bin", widen)
    text = refused(pipe, folder)
    assert "LoRA of rank 4" in text and "one of rank 2" in text and "fetch both again" in text


def test_ranks_that_differ_inside_a_file_are_listed(folder, pipe):
    key = "faceid_adapter.3.to_v_lora.down.weight"
    change(folder / f"{FACEID}.bin", lambda tensors: tensors.update({key: torch.zeros(7, WIDTH)}))
    assert f"1 of another shape: {key} (7, {WIDTH}), not (2, {WIDTH})" in refused(pipe, folder)


def test_files_for_a_unet_of_another_width(folder):
    pipe = small_pipe(folder / "tokenizer")
    sizes = {"layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 2,
             "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
             "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}  # fmt: skip
    pipe.unet = UNet2DConditionModel(cross_attention_dim=WIDTH + 8, **sizes)
    with pytest.raises(ConfigError, match=f"width {WIDTH} and this U-Net reads {WIDTH + 8}"):
        UniPortrait.attach(pipe, folder)


def test_no_such_file_says_where_to_fetch_it(folder, pipe, attach):
    assert "there is no" in refused(pipe, folder / "nowhere.bin")
    assert "h94/IP-Adapter" in refused(pipe, folder, ip_adapter=folder / "nowhere")
    (folder / f"{BACKBONE}.bin").unlink()
    up = attach(folder)
    with pytest.raises(WeightsError, match=f"fetch {BACKBONE} from Junjie96/UniPortrait"):
        up.identity_of_crops([crop(1)])


def test_settings_that_cannot_be_are_named(folder, pipe):
    for text in ("{", "[]", '{"id_embedding": {"heads": "two"}}', '{"colour": 3}'):
        (folder / official.SETTINGS).write_text(text)
        assert f"{official.SETTINGS} cannot be read" in refused(pipe, folder)


def test_a_folder_with_neither_kind_of_weights(tmp_path, pipe):
    assert "model.safetensors" in refused(pipe, tmp_path)


def test_a_published_file_has_one_of_two_endings(tmp_path):
    with pytest.raises(WeightsError, match=".safetensors or .bin"):
        official.save(tmp_path / "weights.pt", {"projection.norm.bias": torch.zeros(1)}, str)
    assert not os.listdir(tmp_path)
