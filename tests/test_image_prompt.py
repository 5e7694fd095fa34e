"""The image prompt in a U-Net, beside text and identities."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from method_parts import WIDTH, small_pipe, small_unet
from PIL import Image

from uniportrait_lite import UniPortrait, official
from uniportrait_lite.attention import IDConditions, attach_id_attention
from uniportrait_lite.errors import ConfigError, PictureError
from uniportrait_lite.folders import data_folder
from uniportrait_lite.image_prompt import ImageAdapter, ImagePrompt, clip_view

G = torch.Generator().manual_seed(0)
LATENTS, TEXT = torch.randn(3, 4, 16, 16, generator=G), torch.randn(3, 7, WIDTH, generator=G)
EMBEDS, FACES = torch.randn(3, 10, generator=G), torch.randn(3, 1, 16, WIDTH, generator=G)


def adapter(unet) -> ImageAdapter:
    torch.manual_seed(1)
    return ImageAdapter(unet, embed_dim=10).eval()


def run(unet, rows: slice = slice(None), **conditions) -> torch.Tensor:
    return unet(LATENTS[rows], torch.tensor(500), TEXT[rows], cross_attention_kwargs=conditions).sample


@pytest.fixture
def unet():
    unet = small_unet()
    attach_id_attention(unet)
    return unet


@torch.no_grad()
def test_pictures_are_those_of_diffusers_own_ip_adapter(unet, tmp_path):
    image_adapter = adapter(unet)
    tokens = image_adapter(EMBEDS)
    assert tokens.shape == (3, 4, WIDTH)
    ours = run(unet, image_prompt=image_adapter.prompt(tokens, 0.6))
    pipe = small_pipe(tmp_path)
    plain = pipe.unet(LATENTS, torch.tensor(500), TEXT).sample
    official.save(tmp_path / "ip.bin", image_adapter.state_dict(), official.names(pipe.unet))
    pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name="ip.bin", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.6)
    added = {"image_embeds": [EMBEDS.unsqueeze(1)]}
    theirs = pipe.unet(LATENTS, torch.tensor(500), TEXT, added_cond_kwargs=added).sample
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours, plain, atol=1e-3)


@torch.no_grad()
def test_inactive_rows_and_scale_zero_are_the_plain_unet_to_the_bit(unet):
    plain, image_adapter = run(unet), adapter(unet)
    tokens = image_adapter(EMBEDS)
    out = run(unet, image_prompt=image_adapter.prompt(tokens, 0.8, torch.tensor([True, False, True])))
    assert torch.equal(out[1], plain[1]) and not torch.allclose(out[[0, 2]], plain[[0, 2]], atol=1e-3)
    assert torch.equal(run(unet, image_prompt=image_adapter.prompt(tokens, 0.0)), plain)


@torch.no_grad()
def test_scales_and_pictures_may_differ_by_row_and_one_serves_a_batch(unet):
    image_adapter = adapter(unet)
    tokens = image_adapter(EMBEDS)
    both = image_adapter.prompt(tokens, torch.tensor([0.2, 0.9, 0.0]))
    alone = image_adapter.prompt(tokens[1:2], 0.9)
    by_itself = run(unet, slice(1, 2), image_prompt=alone)
    torch.testing.assert_close(run(unet, image_prompt=both)[1:2], by_itself, atol=1e-5, rtol=1e-4)
    index = torch.tensor([1, 1, 2])
    expected = image_adapter.prompt(tokens[index], torch.tensor([0.9, 0.9, 0.0]))
    assert torch.equal(run(unet, image_prompt=both.rows(index)), run(unet, image_prompt=expected))
    repeated = image_adapter.prompt(tokens[[1, 1, 1]], 0.9)
    assert torch.equal(run(unet, image_prompt=alone), run(unet, image_prompt=repeated))


@torch.no_grad()
def test_identities_and_the_image_prompt_are_added_in_each_layer(unet):
    """Neither knows of the other: in the first layer the sum of what each adds to the text's attention."""
    image_adapter = adapter(unet)
    attn = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    image_prompt = image_adapter.prompt(image_adapter(EMBEDS), 0.5)
    x = torch.randn(3, 9, attn.to_q.in_features)

    def layer(**conditions):
        return attn(x, encoder_hidden_states=TEXT, **conditions)

    faces = IDConditions(FACES, 0.7)
    added = layer(identities=faces) + layer(image_prompt=image_prompt) - layer()
    torch.testing.assert_close(layer(identities=faces, image_prompt=image_prompt), added, atol=1e-6, rtol=1e-5)


def test_the_unet_holds_none_of_its_weights(unet):
    before = list(unet.state_dict())
    run(unet, image_prompt=adapter(unet).prompt(torch.randn(1, 4, WIDTH)))
    assert list(unet.state_dict()) == before


def test_what_travels_moves_to_a_device_with_its_scale():
    prompt = ImagePrompt({"layer": (torch.ones(1, 4, 8), torch.ones(1, 4, 8))}, torch.ones(2), torch.tensor([True]))
    moved = prompt.to(torch.device("meta"))
    assert {x.device.type for x in (*moved.keys_values["layer"], moved.image_scale, moved.active)} == {"meta"}


# --- as a user gives it ----------------------------------------------------------------------------------------------
FACES_FOLDER = data_folder().parent / "faces"


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    """The tiny stack with an IP-Adapter of random weights, which shows in pictures."""
    folder = data_folder()
    pipe = StableDiffusionPipeline.from_pretrained(folder / "sd", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(1)
    made = ImageAdapter(pipe.unet, embed_dim=128)
    file = tmp_path_factory.mktemp("ip") / "ip.safetensors"
    official.save(file, made.state_dict(), official.names(pipe.unet))
    return UniPortrait.attach(pipe, folder / "uniportrait", ip_adapter=file)


def drawn(up, people=(), **given) -> np.ndarray:
    prompt = "a woman and a man" if len(people) > 1 else "a woman"
    out = up(prompt, list(people), seed=1, steps=2, columns=0, **given)  # two steps in columns leave routers none
    return np.asarray(out.images[0]).astype(int)


def test_a_picture_beside_the_words_is_seen_with_and_without_people(up):
    ann, bob = (up.identity(FACES_FOLDER / f"{name}.png") for name in ("ann", "bob"))
    cleo, dan = (FACES_FOLDER / f"{name}.png" for name in ("cleo", "dan"))
    for people in ((), (ann,), (ann, bob)):
        plain, shown = drawn(up, people), drawn(up, people, image_prompt=cleo)
        assert np.abs(shown - plain).mean() > 1
        assert np.abs(drawn(up, people, image_prompt=dan) - shown).mean() > 0.5
        assert np.array_equal(drawn(up, people, image_prompt=cleo, image_scale=0), plain)
    weaker = np.abs(drawn(up, image_prompt=cleo, image_scale=0.1) - drawn(up)).mean()
    assert weaker < 0.5 * np.abs(drawn(up, image_prompt=cleo) - drawn(up)).mean()


def test_several_pictures_are_all_seen_and_stand_in_no_order(up):
    cleo, dan = (Image.open(FACES_FOLDER / f"{name}.png") for name in ("cleo", "dan"))
    both = drawn(up, image_prompt=[cleo, dan])
    assert np.abs(both - drawn(up, image_prompt=[dan, cleo])).max() <= 1
    assert all(np.abs(both - drawn(up, image_prompt=one)).mean() > 0.2 for one in (cleo, dan))


def test_the_callers_own_u_net_call_is_what_a_pipeline_makes_of_an_image_prompt(up):
    latents = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    text = torch.randn(2, 48, 128, generator=torch.Generator().manual_seed(1))
    view = torch.from_numpy(clip_view(Image.open(FACES_FOLDER / "cleo.png")).copy()).permute(2, 0, 1)[None] / 255
    embeds = up.features.image_embedding(view)
    tokens = up.image_adapter(torch.cat([torch.zeros_like(embeds), embeds]))
    with torch.no_grad():
        given = {"image_prompt": up.image_adapter.prompt(tokens, 0.7)}
        own = up.unet(latents, 500, text, cross_attention_kwargs=given).sample
        with up.using(image_prompt=FACES_FOLDER / "cleo.png", image_scale=0.7, guided=True):
            torch.testing.assert_close(up.unet(latents, 500, text).sample, own)


def test_a_mask_says_where_the_picture_is_heeded(up):
    """One layer, so that what lies outside the mask hears nothing from what lies inside."""
    layer = up.id_attention["down_blocks/0/attentions/0/transformer_blocks/0/attn2"]
    attn = up.unet.get_submodule(layer.name)
    hidden = torch.randn(1, 16 * 16, attn.to_q.in_features, generator=torch.Generator().manual_seed(0))
    text = torch.randn(1, 4, 128, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 16, 16)
    mask[:, :, :8] = 1
    prompt = up.image_adapter.prompt(up.image_adapter(torch.randn(1, 128)))
    with torch.no_grad():
        plain, everywhere = layer(attn, hidden, text), layer(attn, hidden, text, image_prompt=prompt)
        left = layer(attn, hidden, text, image_prompt=ImagePrompt(prompt.keys_values, mask=mask)).view(16, 16, -1)
    assert torch.equal(left[:, 8:], plain.view(16, 16, -1)[:, 8:])
    torch.testing.assert_close(left[:, :8], everywhere.view(16, 16, -1)[:, :8])


def test_a_masked_picture_is_as_none_where_the_mask_is_small_and_as_unmasked_where_it_is_all(up):
    cleo = FACES_FOLDER / "cleo.png"
    plain, everywhere = drawn(up), drawn(up, image_prompt=cleo)
    all_of_it = drawn(up, image_prompt=cleo, image_mask=np.ones((128, 128)))
    half = drawn(up, image_prompt=cleo, image_mask=(0, 0, 64, 128))
    assert np.abs(all_of_it - everywhere).max() <= 1
    assert np.abs(half - plain)[:, :48].mean() > np.abs(half - plain)[:, 80:].mean()


@pytest.mark.parametrize(
    "given, says",
    [
        ({"image_prompt": []}, "list is empty"),
        ({"image_prompt": "data/faces/ann.png", "image_scale": -1}, "image_scale"),
        ({"image_mask": (0, 0, 8, 8)}, "give image_prompt"),
        ({"image_prompt": np.zeros((8, 8, 3), np.uint8), "image_mask": (8, 8, 8, 8)}, "is no box"),
        ({"image_prompt": np.zeros((8, 8, 3), np.uint8), "image_mask": np.zeros((128, 128))}, "nothing"),
    ],
)
def test_image_prompts_that_cannot_be_are_said(up, given, says):
    with pytest.raises(ConfigError, match=says):
        drawn(up, **given)


def test_a_missing_picture_and_a_missing_adapter_are_said(up):
    with pytest.raises(PictureError):
        drawn(up, image_prompt="nowhere.png")
    pipe = StableDiffusionPipeline.from_pretrained(data_folder() / "sd", dtype=torch.float32)
    without = UniPortrait.attach(pipe, data_folder() / "uniportrait")
    with pytest.raises(ConfigError, match="ip_adapter=file"):
        without("a woman", image_prompt=FACES_FOLDER / "cleo.png")
