"""`UniPortrait` around whole pipelines: small random networks of the real classes."""

import gc
import logging
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor2_0
from method_parts import WIDTH, crop, small_pipe, write_weights
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file, save_file

from uniportrait_lite import ConfigError, UniPortrait, WeightsError, adapter, profiles
from uniportrait_lite.features import load_clip_vision
from uniportrait_lite.pictures import save_picture

PROMPT = "a woman in a park"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stack")
    write_weights(folder)
    return folder


@pytest.fixture(scope="module")
def shared_pipe(folder):
    return small_pipe(folder / "tokenizer")


@pytest.fixture
def pipe(shared_pipe):
    """A pipeline that nothing is attached to, and whose parts a test may replace."""
    before = dict(shared_pipe.components)
    yield shared_pipe
    shared_pipe.register_modules(**before)


@pytest.fixture
def up(pipe, folder):
    up = UniPortrait.attach(pipe, folder / "uniportrait")
    yield up
    if up.injection.attached:
        up.detach()


@pytest.fixture
def ann(up):
    return up.identity_of_crops([crop(1)])


@pytest.fixture
def bob(up):
    return up.identity_of_crops([crop(2)])


def call(pipe, **arguments) -> np.ndarray:
    """The pictures of a plain call of the pipeline, as floats: what `up(seed=0)` does, without UniPortrait."""
    defaults = {"prompt": PROMPT, "num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    return pipe(**{**defaults, "generator": torch.Generator().manual_seed(0), **arguments}).images


def picture(up, *identities, prompt=PROMPT, seed=0, **arguments) -> np.ndarray:
    return up(prompt, identities, seed=seed, output_type="np", **arguments).images


# Attaching and detaching


def test_attached_and_detached_pipelines_draw_what_the_plain_one_draws_to_the_bit(pipe, folder):
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    plain = call(pipe)
    up = UniPortrait.attach(pipe, folder / "uniportrait")
    ann = up.identity_of_crops([crop(1)])
    assert np.array_equal(call(pipe), plain)  # attached, but nobody asked for
    assert not np.allclose(picture(up, ann), plain, atol=1e-2)
    assert np.array_equal(call(pipe), plain)  # and again after an identity
    up.detach()
    assert np.array_equal(call(pipe), plain)
    assert list(pipe.unet.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[name]) for name, value in pipe.unet.state_dict().items())
    assert "forward" not in vars(pipe.unet)


def test_no_identities_is_the_plain_pipeline(up):
    plain = call(up.pipe)
    assert np.array_equal(picture(up), plain)
    assert np.array_equal(up(PROMPT, seed=0, output_type="np").images, plain)


def test_a_detached_uniportrait_says_so_and_can_be_attached_again(up, ann, folder):
    before = picture(up, ann)
    up.detach()
    for use in (lambda: picture(up, ann), up.detach, lambda: up.using(ann).__enter__()):
        with pytest.raises(ConfigError, match="attach it again"):
            use()
    again = UniPortrait.attach(up.pipe, folder / "uniportrait")
    assert np.array_equal(picture(again, again.identity_of_crops([crop(1)])), before)
    again.detach()


def test_attaching_twice_is_an_error_that_leaves_the_first_working(up, ann, folder):
    before = picture(up, ann)
    with pytest.raises(ConfigError, match="already"):
        UniPortrait.attach(up.pipe, folder / "uniportrait")
    assert np.array_equal(picture(up, ann), before)


def test_other_kinds_of_pipelines_are_refused_and_left_alone(folder, pipe):
    with pytest.raises(ConfigError, match="no U-Net"):
        UniPortrait.attach(object(), folder / "uniportrait")
    torch.manual_seed(0)
    sizes = {"layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 2,
             "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
             "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}  # fmt: skip
    pipe.unet = UNet2DConditionModel(cross_attention_dim=WIDTH + 8, **sizes)
    with pytest.raises(ConfigError, match=f"width {WIDTH} and this U-Net reads {WIDTH + 8}"):
        UniPortrait.attach(pipe, folder / "uniportrait")
    pipe.unet = UNet2DConditionModel(
        cross_attention_dim=WIDTH, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32, **sizes,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="SDXL"):
        UniPortrait.attach(pipe, folder / "uniportrait")
    sizes["block_out_channels"] = (16, 16)
    pipe.unet = UNet2DConditionModel(cross_attention_dim=WIDTH, **sizes)
    keys, processors = list(pipe.unet.state_dict()), pipe.unet.attn_processors
    with pytest.raises(WeightsError, match="of another shape"):
        UniPortrait.attach(pipe, folder / "uniportrait")
    assert list(pipe.unet.state_dict()) == keys and pipe.unet.attn_processors == processors
    assert "forward" not in vars(pipe.unet)


def test_a_forgotten_uniportrait_does_not_stay_in_memory(pipe, folder):
    up = UniPortrait.attach(pipe, folder / "uniportrait")
    picture(up, up.identity_of_crops([crop(1)]))
    up.detach()
    forgotten = weakref.ref(up)
    del up
    gc.collect()
    assert forgotten() is None


# Identities


def test_different_faces_give_different_pictures_and_the_same_face_the_same(up, ann, bob):
    assert not np.allclose(picture(up, ann), picture(up, bob), atol=1e-3)
    assert np.array_equal(picture(up, ann), picture(up, up.identity_of_crops([crop(1)])))


def test_mixing_is_linear_on_the_tokens(up, ann, bob):
    a, b = up.tokens(ann, 0.4), up.tokens(bob, 0.4)
    torch.testing.assert_close(up.tokens(ann.mix(bob, 0.3), 0.4), 0.7 * a + 0.3 * b)
    torch.testing.assert_close(up.tokens(ann.mix(bob, 0.5).mix(ann, 0.5), 0.4), 0.75 * a + 0.25 * b)
    assert np.array_equal(picture(up, ann.mix(bob, 0.0)), picture(up, ann))
    assert np.array_equal(picture(up, ann.mix(bob, 1.0)), picture(up, bob))
    assert len(ann.mix(bob, 0.3).crops) == 2
    for amount in (-0.1, 1.1, float("nan"), "half", None):
        with pytest.raises(ConfigError, match="amount is a number from 0 to 1"):
            ann.mix(bob, amount)
    with pytest.raises(ConfigError, match="not with str"):
        ann.mix("bob", 0.5)


def test_several_references_are_one_identity(up):
    both = up.identity_of_crops([crop(1), crop(3)])
    assert up.tokens(both).shape == (1, 16, WIDTH) and len(both.crops) == 2
    one, other = (up.identity_of_crops([crop(i)]) for i in (1, 3))
    features = [identity.parts[0][1] for identity in (one, other)]
    with torch.no_grad():
        expected = up.id_embedding(
            torch.cat([f.intrinsic for f in features], 1), torch.cat([f.structure for f in features], 1), 0.5
        )
    torch.testing.assert_close(up.tokens(both), expected, atol=1e-5, rtol=1e-4)


def test_threads_that_ask_at_once_load_the_encoders_once(pipe, folder, monkeypatch):
    loaded, start = [], threading.Barrier(3)

    def load(path):
        loaded.append(path)
        time.sleep(0.1)  # long enough for the others to come
        return load_clip_vision(path)

    monkeypatch.setattr(adapter, "load_clip_vision", load)
    up = UniPortrait.attach(pipe, folder / "uniportrait")
    found = []

    def ask():
        start.wait()
        found.append((up.features, up._nobody))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    up.detach()
    assert len(loaded) == 1
    assert all(features is found[0][0] and nobody is found[0][1] for features, nobody in found) and len(found) == 3


def test_an_identity_of_other_encoders_and_things_that_are_no_identity_are_errors(up, tmp_path):
    write_weights(tmp_path, intrinsic="global")
    other = UniPortrait.attach(small_pipe(tmp_path / "tokenizer"), tmp_path / "uniportrait")
    stranger = other.identity_of_crops([crop(1)])
    assert np.isfinite(picture(other, stranger)).all()
    with pytest.raises(ConfigError, match="other encoders"):
        picture(up, stranger)
    with pytest.raises(ConfigError, match="no identity"):
        up(PROMPT, ["ann.png"])
    with pytest.raises(ConfigError, match="list is empty"):
        up.identity([])
    with pytest.raises(ConfigError, match="224x224"):
        up.identity_of_crops([crop(1).resize((112, 112))])


def test_two_identities_are_refused_where_there_are_no_routers(up, ann, bob):
    with pytest.raises(ConfigError, match="ID routing"):
        picture(up, ann, bob)


# Calls


def test_a_call_takes_the_defaults_of_the_weights(up, ann):
    named = picture(up, ann, steps=2, guidance=3.0, id_scale=0.8, structure_scale=0.5)
    assert np.array_equal(picture(up, ann), named)
    for changed in ({"steps": 3}, {"guidance": 2.0}, {"id_scale": 0.3}, {"structure_scale": 0.0}):
        assert not np.allclose(picture(up, ann, **changed), named, atol=1e-4), changed


def test_id_scale_zero_leaves_the_id_tokens_out(up, ann, bob):
    assert np.array_equal(picture(up, ann, id_scale=0), picture(up, bob, id_scale=0))


def test_guidance_takes_the_tokens_of_nobody_for_its_unconditional_half(up, ann):
    """A step by hand: both halves apart, each with its own tokens, then extrapolated."""
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    text, empty = up.pipe.encode_prompt(PROMPT, "cpu", 1, True)
    predictions = []
    conditions = up.conditions(ann)
    for row, embeds in ((0, empty), (1, text)):
        kwargs = {"identities": conditions.rows(torch.tensor([row]))}
        with torch.no_grad():
            timestep = torch.tensor(1)  # DDIM's only one when there is one step
            predictions.append(up.unet(latents, timestep, embeds, cross_attention_kwargs=kwargs).sample)
    guided = predictions[0] + 3.0 * (predictions[1] - predictions[0])
    up.pipe.scheduler.set_timesteps(1)
    expected = up.pipe.scheduler.step(guided, up.pipe.scheduler.timesteps[0], latents).prev_sample
    out = up(PROMPT, ann, steps=1, latents=latents, output_type="latent").images
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


def test_image_i_is_that_of_seed_plus_i_alone_or_in_a_batch(up, ann):
    batch = picture(up, ann, num_images=3, seed=7)
    assert len(batch) == 3
    np.testing.assert_allclose(batch[2], picture(up, ann, seed=9)[0], atol=1e-4)
    prompts = picture(up, ann, prompt=[PROMPT, "a man"], seed=7, negative_prompt="a hat", num_images=2)
    np.testing.assert_allclose(
        prompts[3], picture(up, ann, prompt="a man", seed=10, negative_prompt="a hat")[0], atol=1e-4
    )


def test_without_guidance_every_row_has_the_identity(up, ann):
    batch = picture(up, ann, num_images=2, guidance=1.0)
    np.testing.assert_allclose(batch[0], picture(up, ann, guidance=1.0)[0], atol=1e-4)
    np.testing.assert_allclose(batch[1], picture(up, ann, guidance=1.0, seed=1)[0], atol=1e-4)
    assert not np.allclose(batch[0], call(up.pipe, guidance_scale=1.0)[0], atol=1e-2)


def test_latents_and_generator_go_to_the_pipeline(up, ann):
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    by_latents = up(PROMPT, ann, latents=latents, output_type="np").images
    by_generator = up(PROMPT, ann, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert np.array_equal(by_latents, picture(up, ann)) and np.array_equal(by_generator, by_latents)


def test_sizes_and_kinds_of_pictures(up, ann):
    image = up(PROMPT, ann, height=24, width=40).images[0]
    assert isinstance(image, Image.Image) and image.size == (40, 24)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"steps": 0}, "steps is a whole number from 1"),
        ({"steps": 2.5}, "steps is a whole number"),
        ({"guidance": -1}, "guidance is a number from 0"),
        ({"guidance": float("nan")}, "guidance is a number"),
        ({"id_scale": -0.5}, "id_scale is a number from 0"),
        ({"id_scale": "strong"}, "id_scale is a number"),
        ({"structure_scale": float("inf")}, "structure_scale is a number"),
        ({"seed": -1}, "seed is a whole number from 0"),
        ({"seed": 1.5}, "seed is a whole number"),
        ({"seed": True}, "seed is a whole number"),
        ({"seed": "7"}, "seed is a whole number"),
        ({"seed": 2**40}, "seed is a whole number from 0 to"),
        ({"seed": 1, "generator": torch.Generator()}, "give one of them"),
        ({"num_images": 0}, "num_images is a whole number from 1"),
        ({"height": 30}, "height is a multiple of 8, not 30: take 32"),
        ({"width": 0}, "width is a whole number from 8"),
        ({"prompt": None}, "a prompt is a text"),
        ({"prompt": []}, "a prompt is a text"),
        ({"prompt": [PROMPT, 3]}, "a prompt is a text"),
        ({"negative_prompt": 3}, "a negative prompt is one text"),
        ({"num_inference_steps": 3}, "its own name"),
        ({"stepz": 3}, "stepz is no argument of this call, nor of StableDiffusionPipeline"),
    ],
)
def test_values_that_cannot_work_are_clear_errors(up, wrong, says):
    with pytest.raises(ConfigError, match=says):
        up(**{"prompt": PROMPT, **wrong})


def test_numpy_numbers_are_numbers(up, ann):
    same = picture(up, ann, seed=np.int64(0), steps=np.int32(2), id_scale=np.float32(0.5))
    assert np.array_equal(same, picture(up, ann, id_scale=0.5))


def test_an_empty_prompt_works_and_a_long_one_is_cut_with_a_warning(up, ann, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    assert np.isfinite(picture(up, ann, prompt="")).all()
    assert not caplog.records
    long = " ".join(["woman"] * 500)
    cut = picture(up, ann, prompt=long)
    assert "truncated" in caplog.text
    assert np.array_equal(cut, picture(up, ann, prompt=" ".join(["woman"] * 46)))  # 48 with start and end


def test_words_the_text_encoder_never_saw_are_spelt_out(up, ann):
    assert np.isfinite(picture(up, ann, prompt="a quixotic Żółw, 漢字 🙂")).all()


# Unchanged calls of other pipelines


def test_using_gives_an_unchanged_call_the_identity_and_ends_with_its_block(up, ann, bob):
    plain = call(up.pipe)
    with up.using(ann) as same:
        assert same is up
        assert np.array_equal(call(up.pipe), picture(up, ann))
        with up.using(bob, id_scale=0.3):
            assert np.array_equal(call(up.pipe), picture(up, bob, id_scale=0.3))
        with up.using():
            assert np.array_equal(call(up.pipe), plain)
        assert np.array_equal(call(up.pipe), picture(up, ann))
    assert np.array_equal(call(up.pipe), plain)
    with pytest.raises(RuntimeError, match="mine"), up.using(ann):
        raise RuntimeError("mine")
    assert np.array_equal(call(up.pipe), plain)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_image_to_image_and_inpainting_pipelines_of_the_same_parts_take_part(up, ann, guidance):
    image = crop(5).resize((32, 32))
    mask = Image.new("L", (32, 32), 255)
    for kind, extra in ((StableDiffusionImg2ImgPipeline, {}), (StableDiffusionInpaintPipeline, {"mask_image": mask})):
        pipe = kind(**up.pipe.components, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        up.pipe._guidance_scale = 4.0 - guidance  # the other way: only the calling pipeline's own setting counts
        arguments = {"image": image, "strength": 1.0, "height": 32, "width": 32, "guidance_scale": guidance, **extra}
        if kind is StableDiffusionImg2ImgPipeline:
            del arguments["height"], arguments["width"]
        plain = call(pipe, **arguments)
        with up.using(ann):
            with_ann = call(pipe, **arguments)
            pair = call(pipe, **{**arguments, "image": [image] * 2}, num_images_per_prompt=2)
        assert not np.allclose(with_ann, plain, atol=1e-2)
        assert np.array_equal(call(pipe, **arguments), plain)
        assert pair.shape[0] == 2 and not np.allclose(pair[0], plain[0], atol=1e-2)


def test_controlnet_sees_no_id_tokens_and_the_picture_has_them(up, ann):
    torch.manual_seed(0)
    control = ControlNetModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=WIDTH,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        conditioning_embedding_out_channels=(4, 8),
    )  # fmt: skip
    torch.nn.init.normal_(control.controlnet_mid_block.weight)
    pipe = StableDiffusionControlNetPipeline(**up.pipe.components, controlnet=control, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    seen = []
    control.register_forward_hook(lambda _, __, kwargs, out: seen.append((kwargs, out)), with_kwargs=True)
    plain = call(pipe, image=crop(1).resize((32, 32)))
    with up.using(ann):
        with_ann = call(pipe, image=crop(1).resize((32, 32)))
    assert not np.allclose(with_ann, plain, atol=1e-2)
    assert len(seen) == 4  # two steps of each
    (_, without), (kwargs, withal) = seen[0], seen[2]
    assert not kwargs.get("cross_attention_kwargs")
    assert torch.equal(without[1], withal[1])


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # peft, of a second adapter
def test_a_style_lora_works_together_with_an_identity(up, ann):
    plain, with_ann = call(up.pipe), picture(up, ann)
    torch.manual_seed(0)
    style = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    up.unet.add_adapter(style, adapter_name="style")
    styled = call(up.pipe)
    assert not np.allclose(styled, plain, atol=1e-3)
    both = picture(up, ann)
    assert not np.allclose(both, with_ann, atol=1e-3) and not np.allclose(both, styled, atol=1e-2)
    assert np.array_equal(call(up.pipe), styled)
    up.detach()
    assert np.array_equal(call(up.pipe), styled)
    up.unet.delete_adapters("style")
    assert np.array_equal(call(up.pipe), plain)


def test_processors_replaced_or_loras_unloaded_behind_our_back_are_an_error_not_a_wrong_picture(up, ann, folder):
    up.pipe.unload_lora_weights()
    with pytest.raises(ConfigError, match="attach again"):
        picture(up, ann)
    up.detach()
    up = UniPortrait.attach(up.pipe, folder / "uniportrait")
    up.unet.set_attn_processor(AttnProcessor2_0())
    with pytest.raises(ConfigError, match="attach again"):
        picture(up, ann)
    up.detach()


def test_a_loop_of_ones_own_says_whether_it_is_guided(up, ann):
    latents, text = torch.randn(2, 4, 16, 16), torch.randn(2, 5, WIDTH)
    conditions = up.conditions(ann)
    with torch.no_grad(), up.using(ann), pytest.raises(ConfigError, match="guided=True"):
        up.unet(latents, torch.tensor(9), text)
    for guided, index in ((True, [0, 1]), (False, [1, 1])):
        with torch.no_grad():
            kwargs = {"identities": conditions.rows(torch.tensor(index))}
            expected = up.unet(latents, torch.tensor(9), text, cross_attention_kwargs=kwargs).sample
            with up.using(ann, guided=guided):
                assert torch.equal(up.unet(latents, torch.tensor(9), text).sample, expected)


def test_a_pipeline_that_is_given_another_precision_is_followed(folder, tmp_path):
    up = UniPortrait.attach(small_pipe(tmp_path), folder / "uniportrait")
    ann = up.identity_of_crops([crop(1)])
    assert up.tokens(ann).dtype == torch.float32
    up.pipe.to(torch.bfloat16)
    assert up.tokens(ann).dtype == torch.bfloat16
    up.detach()
    up.unet.to(torch.float32)
    assert up._place[1] == torch.float32


# Threads


def test_threads_with_other_people_and_with_nobody_do_not_meet(up, ann, bob, folder):
    """One U-Net, three threads, each with a pipeline around it: schedulers and tokenizers are one call's."""
    import copy

    def own_pipe():
        own = {name: copy.deepcopy(getattr(up.pipe, name)) for name in ("scheduler", "tokenizer")}
        parts = {**up.pipe.components, **own}
        pipe = type(up.pipe)(**parts, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def draw(identities, pipe):
        with up.using(*identities):
            return call(pipe, num_inference_steps=6)

    jobs = [([ann], own_pipe()), ([bob], own_pipe()), ([], own_pipe())]
    alone = [draw(*job) for job in jobs]
    together: list = [None] * len(jobs)
    start = threading.Barrier(len(jobs))

    def work(i):
        start.wait()
        together[i] = [draw(*jobs[i]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, pictures in zip(alone, together, strict=True):
        assert all(np.array_equal(picture, expected) for picture in pictures)


def test_another_pipeline_attached_at_the_same_time_keeps_its_own_people(up, ann, bob, folder, tmp_path):
    other = UniPortrait.attach(small_pipe(tmp_path), folder / "uniportrait")
    with_ann, with_bob = picture(up, ann), picture(up, bob)
    with up.using(ann), other.using(other.identity_of_crops([crop(2)])):
        assert np.array_equal(call(up.pipe), with_ann)
        assert np.array_equal(call(other.pipe), with_bob)


# Profiles


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, uniportrait_lite; print([m for m in ('torch', 'diffusers', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_unknown_profiles_and_missing_weights_are_clear_errors(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="profiles are tiny"):
        profiles.load("large")
    monkeypatch.setenv("UPL_DATA", str(tmp_path))
    with pytest.raises(WeightsError, match="set UPL_DATA"):
        profiles.load("tiny")
    (tmp_path / "tiny").mkdir()
    with pytest.raises(WeightsError, match="model_index.json"):
        profiles.load("tiny")


def test_a_profile_is_its_pipeline_and_weights_found_by_the_environment(monkeypatch, tmp_path, capfd):
    small_pipe(tmp_path / "tokenizer").save_pretrained(tmp_path / "tiny" / "sd")
    write_weights(tmp_path / "tiny")
    capfd.readouterr()
    monkeypatch.setenv("UPL_DATA", str(tmp_path))
    up = profiles.load("tiny", device="cpu")
    assert up.unet.dtype == torch.float32
    assert capfd.readouterr() == ("", "")  # neither progress bars nor load reports
    assert np.isfinite(picture(up, up.identity_of_crops([crop(1)]))).all()
    unet = tmp_path / "tiny" / "sd" / "unet" / "diffusion_pytorch_model.safetensors"
    unet.write_bytes(unet.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="damaged or incomplete"):
        profiles.load("tiny", device="cpu")


@pytest.mark.parametrize("harm", ["missing", "truncated", "incomplete"])
def test_harmed_encoders_are_clear_errors_at_the_first_identity(harm, pipe, tmp_path):
    write_weights(tmp_path)
    model = tmp_path / "clip" / "model.safetensors"
    if harm == "missing":
        (tmp_path / "clip" / "config.json").unlink()
    elif harm == "truncated":
        model.write_bytes(model.read_bytes()[:500])
    else:
        tensors = load_file(model)
        tensors.pop("vision_model.pre_layrnorm.weight")
        save_file(tensors, model, metadata={"format": "pt"})
    up = UniPortrait.attach(pipe, tmp_path / "uniportrait")
    with pytest.raises(WeightsError, match="CLIP model"):
        up.identity_of_crops([crop(1)])
    up.detach()


def test_pictures_know_how_they_were_made(up, ann, tmp_path):
    images = up([PROMPT, "a man"], [ann], seed=5, num_images=2, negative_prompt="a hat", id_scale=0.3).images
    assert [image.info["seed"] for image in images] == ["5", "6", "7", "8"]
    assert [image.info["prompt"] for image in images] == [PROMPT, PROMPT, "a man", "a man"]
    told = Image.open(save_picture(images[0], tmp_path / "a.png")).text
    expected = {"negative_prompt": "a hat", "steps": "2", "guidance": "3.0", "id_scale": "0.3", "people": "1"}
    assert expected.items() <= told.items() and told["structure_scale"] == "0.5"
    assert told["weights"].endswith("/uniportrait") and told["weights"].count("/") == 1, "no path of this machine"
    plain = up(PROMPT).images[0]
    assert "seed" not in plain.info and "weights" not in plain.info and plain.info["people"] == "0"


# Fused


def test_another_active_lora_is_not_hidden_by_fused_weights(up, ann):
    up.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="style")
    up.unet.set_adapter("style")
    with pytest.raises(ConfigError, match="another LoRA is active"), up.fused(1):
        pass
    up.unet.delete_adapters("style")


@pytest.mark.parametrize("offloaded", [False, True])
def test_the_id_embedding_stays_where_the_pipeline_computes_unless_it_is_offloaded(up, monkeypatch, offloaded):
    """It was brought to the GPU and back for each identity of each picture once."""
    if offloaded:
        up.pipe.unet._hf_hook = True
        monkeypatch.setattr(type(up.pipe), "_execution_device", torch.device("cpu"))
    identities, places = [up.identity_of_crops([crop(i)]) for i in (1, 2)], []
    to = up.id_embedding.to
    monkeypatch.setattr(up.id_embedding, "to", lambda *place: (places.append(str(place[0])), to(*place))[1])
    whole = up.conditions(*identities).tokens
    assert places == ["cpu"] * (1 + offloaded)  # there, and where memory is scarce back again: once for everybody
    torch.testing.assert_close(whole[1], torch.cat([up.tokens(identity) for identity in identities]))
