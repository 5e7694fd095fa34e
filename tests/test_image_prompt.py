"""The image prompt in a U-Net, beside text and identities."""

import pytest
import torch
from method_parts import WIDTH, small_pipe, small_unet

from uniportrait_lite import official
from uniportrait_lite.attention import IDConditions, attach_id_attention
from uniportrait_lite.image_prompt import ImageAdapter, ImagePrompt

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
