"""Shared self-attention: a batch that takes over the look of one of its pictures."""

import pytest
import torch
from method_parts import WIDTH, small_unet

from uniportrait_lite.attention import attach_id_attention
from uniportrait_lite.style_alignment import StyleAlignment

G = torch.Generator().manual_seed(0)
LATENTS, TEXT = torch.randn(4, 4, 16, 16, generator=G), torch.randn(4, 7, WIDTH, generator=G)


@pytest.fixture
def unet():
    unet = small_unet()
    attach_id_attention(unet)
    return unet


def run(unet, style: StyleAlignment | None = None, rows: slice = slice(None)) -> torch.Tensor:
    return unet(LATENTS[rows], torch.tensor(500), TEXT[rows], cross_attention_kwargs={"style": style}).sample


def test_the_first_picture_is_the_reference_of_each_half_of_a_guided_batch():
    assert StyleAlignment.to_first(6).reference.tolist() == [0, 0, 0, 3, 3, 3]
    assert StyleAlignment.to_first(3, guided=False).reference.tolist() == [0, 0, 0]
    assert StyleAlignment.to_first(4).followers.tolist() == [False, True, False, True]


@torch.no_grad()
@pytest.mark.parametrize("adain", [False, True])
def test_a_layer_attends_to_its_own_positions_and_to_the_references(unet, adain):
    """By hand: one softmax over both, the references' scores shifted; AdaIN over positions, each channel by itself."""
    attn = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    x = torch.randn(4, 10, attn.to_q.in_features)
    q, k, v = attn.to_q(x), attn.to_k(x), attn.to_v(x)
    outs = []
    for row, reference in enumerate([0, 0, 2, 2]):

        def as_reference(y, row=row, reference=reference):
            standard = (y[row] - y[row].mean(0)) / (y[row].var(0) + 1e-5).sqrt()
            return standard * (y[reference].var(0) + 1e-5).sqrt() + y[reference].mean(0) if adain else y[row]

        query, keys = as_reference(q), torch.cat([as_reference(k), k[reference]])
        heads = []
        for h in range(attn.heads):
            part = slice(h * query.shape[1] // attn.heads, (h + 1) * query.shape[1] // attn.heads)
            scores = query[:, part] @ keys[:, part].T * attn.scale
            scores[:, 10:] += -0.4
            heads.append(scores.softmax(-1) @ torch.cat([v[row], v[reference]])[:, part])
        outs.append(attn.to_out[0](torch.cat(heads, dim=-1)))
    out = attn(x, style=StyleAlignment.to_first(4, shift=-0.4, adain=adain))
    torch.testing.assert_close(out, torch.stack(outs), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"shift": -0.5}, {"shift": 1.0, "adain": True}])
def test_references_are_drawn_as_without_it_and_the_others_are_not(unet, settings):
    plain, shared = run(unet), run(unet, StyleAlignment.to_first(4, **settings))
    torch.testing.assert_close(shared[[0, 2]], plain[[0, 2]], atol=1e-5, rtol=1e-4)
    for follower in (1, 3):
        assert not torch.allclose(shared[follower], plain[follower], atol=1e-3)


@torch.no_grad()
def test_shifts_weigh_the_references_look(unet):
    plain = run(unet)
    distance = [(run(unet, StyleAlignment.to_first(4, shift=s)) - plain).norm() for s in (-100.0, -2.0, 0.0, 2.0)]
    assert distance[0] < 1e-3 < distance[1] < distance[2] < distance[3]


@torch.no_grad()
def test_each_half_reads_its_own_reference(unet):
    style = StyleAlignment.to_first(4, shift=0.3)
    alone = run(unet, StyleAlignment.to_first(2, guided=False, shift=0.3), slice(2, 4))
    torch.testing.assert_close(run(unet, style)[2:], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_without_a_style_the_unet_computes_what_it_did_to_the_bit():
    unet = small_unet()
    plain = unet(LATENTS, torch.tensor(500), TEXT).sample
    attach_id_attention(unet)
    assert torch.equal(run(unet), plain)
