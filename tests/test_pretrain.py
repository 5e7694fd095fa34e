"""The recipes of autoencoder, CLIP and U-Net, at their smallest: what they leave is what the libraries load."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from uniportrait_lite.errors import ConfigError
from uniportrait_lite.toyworld import Person, portrait
from uniportrait_lite.toyworld.pretrain import clip, data, image, noisy, record, run, vae
from uniportrait_lite.toyworld.pretrain.latents import encoder_digest, load_latents


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A complete pipeline's folder, trained for two steps a part."""
    root = tmp_path_factory.mktemp("stack")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "CACHE", root / "cache")
        patch.setattr(data, "CHUNK", 100)
        for module in ("latents",):
            patch.setattr(f"uniportrait_lite.toyworld.pretrain.{module}.CACHE", root / "cache")
            patch.setattr(f"uniportrait_lite.toyworld.pretrain.{module}.CHUNK", 100)
        small = {"steps": 2, "batch": 4}
        folder = root / "tiny"
        parts = {
            "vae": run("vae", out=str(root / "vae"), folder=str(folder / "sd" / "vae"), scenes=100, **small,
                       widths=(8, 8, 16, 16), perceptual=0.0),
            "clip": run("clip", out=str(root / "clip"), folder=str(folder), scenes=100, **small, text_width=32,
                        text_layers=1, vision_width=32, vision_layers=1),
            "unet": run("unet", out=str(root / "unet"), folder=str(folder / "sd"), portraits=100, groups=100, **small,
                        widths=(16, 32), head_width=8, evaluate_every=2),
        }  # fmt: skip
        yield root, folder, parts, data.load_scenes("portraits", 100)


def test_captions_are_worded_once_and_some_samples_have_none(stack):
    """The same whoever asks first, several of each scene, none for a share of the samples."""
    from transformers import AutoTokenizer

    folder = stack[1] / "sd"
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")

    def scenes() -> noisy.NoisyScenes:
        config = SimpleNamespace(
            portraits=100, groups=100, group_share=0, world="", batch=4, no_caption=0.25, timesteps="fine"
        )
        return noisy.NoisyScenes(config, folder, tokenizer)

    first, second = scenes(), scenes()
    first(0, np.arange(100), torch.Generator().manual_seed(1))  # another order of asking
    made = [each(0, np.repeat([3, 7], 300), torch.Generator().manual_seed(2))[3] for each in (first, second)]
    assert torch.equal(*made) and made[0].shape == (600, 48)
    silent = (made[0] == first.silence).all(dim=1)
    assert 0.2 < silent.float().mean() < 0.3
    for rows in (made[0][:300], made[0][300:]):
        assert len({tuple(row) for row in rows.tolist()}) in range(4, noisy.CAPTIONS + 2)  # with the silence


def test_graphs_and_compile_are_not_to_be_had_together(tmp_path):
    with pytest.raises(ConfigError, match="give one of them"):
        run("unet", out=str(tmp_path), folder=str(tmp_path / "sd"), graphs=True, compile=True)


def test_the_pipeline_loads_in_plain_diffusers_and_draws(stack):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(stack[1] / "sd")
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    pipe.set_progress_bar_config(disable=True)
    images = pipe("a woman in the snow", num_inference_steps=2, height=128, width=192, output_type="np").images
    assert images.shape == (1, 128, 192, 3) and np.isfinite(images).all()


def test_clip_loads_with_both_towers_and_its_processor(stack):
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    folder = stack[1] / "clip"
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    picture = stack[3].images([0])[0]
    pixels = CLIPImageProcessor.from_pretrained(folder)(picture, return_tensors="pt").pixel_values
    tokens = AutoTokenizer.from_pretrained(folder)(["a man"], return_tensors="pt").input_ids
    with torch.no_grad():
        out = model(input_ids=tokens, pixel_values=pixels)
    assert pixels.shape == (1, 3, 224, 224) and out.logits_per_image.shape == (1, 1)


def test_faces_outlive_noise_in_the_shipped_latents():
    """Noise of a fifth of the latents' deviation takes little away: what makes a face moves them by more than that."""
    from diffusers import AutoencoderKL

    shipped = AutoencoderKL.from_pretrained("data/tiny/sd/vae").eval()
    pixels = vae.to_pixels(np.stack([portrait(Person.random(k), seed=k).pixels for k in range(8)]))
    with torch.no_grad():
        latents = shipped.encode(pixels).latent_dist.mean
        noise = 0.2 / shipped.config.scaling_factor * torch.randn(latents.shape, generator=torch.manual_seed(0))
        clean, noised = shipped.decode(latents).sample, shipped.decode(latents + noise).sample
        lost, added = (clean - pixels).abs().mean(), (noised - clean).abs().mean()
    assert latents.std() * shipped.config.scaling_factor == pytest.approx(1, abs=0.1)
    assert added < 1.2 * lost, (added, lost)


def test_training_noises_latents_by_their_own_deviation(stack):
    """A scale of the latents changes nothing, so an encoder gains nothing by making them large."""
    from diffusers import AutoencoderKL

    small = AutoencoderKL.from_pretrained(stack[1] / "sd" / "vae", torch_dtype=torch.float32)
    seen = []
    small.decode = lambda latents: seen.append(latents) or SimpleNamespace(sample=latents)
    pixels = torch.rand(4, 3, 64, 64, generator=torch.manual_seed(0)) * 2 - 1
    for noise in (0.0, 0.5, 0.5):
        if len(seen) == 2:  # the same latents, ten times as large
            for layer in (small.quant_conv.weight, small.quant_conv.bias):
                layer.data[: layer.shape[0] // 2] *= 10
        torch.manual_seed(1)
        small.quant_conv.bias.data[small.quant_conv.bias.shape[0] // 2 :] = -60  # next to no noise of its own
        vae.Reconstruct(small, noise)(pixels)
    clean, noised, large = seen
    assert 0.1 * clean.std() < (noised - clean).std() < 0.5 * clean.std()
    torch.testing.assert_close(large, 10 * noised, rtol=1e-3, atol=1e-3)


def test_what_was_run_stands_beside_the_weights(stack):
    for name, folder in (("vae", "sd/vae"), ("clip", "clip"), ("unet", "sd/unet")):
        report = json.loads((stack[1] / folder / f"{name}.recipe.json").read_text())
        assert report == json.loads(json.dumps(stack[2][name]))
        assert report["steps"] == 2 and report["seconds"] > 0 and report["hardware"]


def test_weights_are_stored_in_half_precision(stack):
    from safetensors.torch import load_file

    for path in Path(stack[1]).rglob("*.safetensors"):
        assert {t.dtype for t in load_file(path).values() if t.is_floating_point()} == {torch.float16}, path


def test_scenes_on_disk_are_the_scenes_drawn(stack):

    scenes = stack[3]
    drawn = portrait(Person.random(int(scenes.person[7, 0])), seed=7)
    assert np.array_equal(scenes.images([7])[0], np.asarray(drawn.image))
    assert np.allclose(scenes.landmarks[7, 0], drawn.faces[0].landmarks, atol=1e-4)
    assert scenes.description(7)["style"] == drawn.style
    assert scenes.caption(7, seed=1) == scenes.caption(7, seed=1) != scenes.caption(7, seed=2)


def test_latents_are_scaled_to_about_one_and_kept(stack):
    folder = stack[1] / "sd" / "vae"
    first = load_latents(stack[3], folder)
    assert first.shape == (100, 8, 16, 16) and first.dtype == np.float16
    assert 0.5 < first.astype(np.float32).std() < 2
    files = sorted((stack[0] / "cache").glob("latents-portraits-*/*.npy"))
    before = [f.stat().st_mtime_ns for f in files]
    load_latents(stack[3], folder)
    assert [f.stat().st_mtime_ns for f in files] == before


def test_latents_hang_on_the_encoder_and_outlive_its_decoder(stack, tmp_path):
    folder = tmp_path / "vae"
    shutil.copytree(stack[1] / "sd" / "vae", folder)
    first = encoder_digest(folder)
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    parts = {"decoder.conv_in.weight": False, "encoder.conv_in.weight": True, "quant_conv.bias": True}
    for name, changes in parts.items():
        save_file({**tensors, name: tensors[name] + 1}, folder / "diffusion_pytorch_model.safetensors")
        assert (encoder_digest(folder) != first) == changes, name
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"scaling_factor": 2 * config["scaling_factor"]}))
    assert encoder_digest(folder) != first


def test_face_cells_are_those_whose_centre_is_in_a_box():
    cells = noisy.face_cells(np.array([[[16.0, 32, 48, 64], [80, 0, 96, 8]]]), width=16)
    expected = np.zeros((1, 16, 16), np.float32)
    expected[0, 4:8, 2:6] = 1
    expected[0, 0, 10:12] = 1
    assert np.array_equal(cells, expected)


def test_timesteps_cover_the_schedule_and_prefer_what_they_are_named_by():
    counts = {}
    for kind in ("fine", "coarse", "uniform", "middle"):
        t = noisy.draw_timesteps(20_000, torch.Generator().manual_seed(0), kind)
        assert 0 <= t.min() and t.max() <= 999
        counts[kind] = torch.histc(t.float(), 10, 0, 1000)
        assert counts[kind].min() > 200
    assert counts["fine"][:2].sum() == pytest.approx(20_000 * 0.2 ** (2 / 3), rel=0.05)
    assert counts["coarse"][-2:].sum() == pytest.approx(20_000 * 0.2 ** (1 / 3), rel=0.05)
    assert counts["uniform"].max() < 1.15 * counts["uniform"].min()
    assert counts["middle"][4] > 4 * counts["middle"][9]
    with pytest.raises(ConfigError, match="fine, coarse, uniform or middle, not 'late'"):
        noisy.draw_timesteps(4, torch.Generator(), "late")


def test_edges_tell_a_blurred_picture_from_a_sharp_one():
    sharp = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert vae.edge_difference(sharp, sharp) == 0 < vae.edge_difference(sharp, sharp.mean() + 0 * sharp)


def test_a_decoder_alone_learns_beside_an_encoder_that_stays(stack, tmp_path):
    folder, first = tmp_path / "vae", stack[1] / "sd" / "vae"
    run("vae", out=str(tmp_path / "run"), folder=str(folder), start_from=str(first), scenes=100, steps=2, batch=4,
        decoder_only=True, perceptual=0.1)  # fmt: skip
    before, after = (load_file(f / "diffusion_pytorch_model.safetensors") for f in (first, folder))
    changed = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"decoder", "post_quant_conv"}
    assert json.loads((folder / "vae_decoder.recipe.json").read_text())["curve"][-1]["perceptual"] > 0
    config = [json.loads((f / "config.json").read_text()) for f in (first, folder)]
    assert config[0]["scaling_factor"] == config[1]["scaling_factor"]
    shutil.copy(first / "vae.recipe.json", folder)
    whole = run("vae", out=str(tmp_path / "whole"), folder=str(folder), start_from=str(folder), scenes=100, steps=1,
                batch=4, perceptual=0.0)  # fmt: skip
    assert [past["steps"] for past in whole["before"]] == [2, 2] and "decoder" in whole["before"][1]["recipe"]
    assert sorted(path.name for path in folder.glob("*.recipe.json")) == ["vae.recipe.json"]


def test_the_past_of_weights_is_kept_where_they_are_a_file(tmp_path):
    record.record(tmp_path / "first", "image", image.ImageRecipe(), [{"step": 3, "seconds": 1.0}], {})
    after = image.ImageRecipe(start_from=str(tmp_path / "first" / image.FILE))
    again = record.record(tmp_path / "second", "image", after, [{"step": 2, "seconds": 1.0}], {})
    assert [past["steps"] for past in again["before"]] == [3]


def test_pictures_of_any_size_become_clip_input():
    pixels = clip.clip_pixels([np.full((20, 30, 3), 255, np.uint8), np.zeros((128, 128, 3), np.uint8)])
    white = (1 - torch.tensor(clip.MEAN)) / torch.tensor(clip.STD)
    assert pixels.shape == (2, 3, 224, 224) and torch.allclose(pixels[0, :, 5, 5], white, atol=1e-4)
