"""ID tokens in a U-Net's cross-attention."""

import logging

import pytest
import torch
from diffusers import UNet2DConditionModel
from method_parts import WIDTH, small_unet
from peft import LoraConfig

from uniportrait_lite.attention import IDConditions, attach_id_attention
from uniportrait_lite.errors import ConfigError
from uniportrait_lite.id_routing import Routing
from uniportrait_lite.lora import add_lora, lora_layers, lora_parameters, remove_lora, use_lora

G = torch.Generator().manual_seed(0)
LATENTS, TEXT = torch.randn(3, 4, 16, 16, generator=G), torch.randn(3, 7, WIDTH, generator=G)
TOKENS = torch.randn(3, 1, 16, WIDTH, generator=G)


def run(unet: UNet2DConditionModel, identities: IDConditions | None = None, rows: slice = slice(None)) -> torch.Tensor:
    kwargs = None if identities is None else {"identities": identities}
    return unet(LATENTS[rows], torch.tensor(500), TEXT[rows], cross_attention_kwargs=kwargs).sample


@torch.no_grad()
def test_without_identities_the_unet_computes_what_it_did_to_the_bit():
    unet = small_unet()
    plain = run(unet)
    attach_id_attention(unet)
    assert torch.equal(run(unet), plain)
    assert not torch.allclose(run(unet, IDConditions(TOKENS)), plain, atol=1e-3)


@torch.no_grad()
def test_inactive_rows_and_scale_zero_are_the_plain_unet_to_the_bit():
    unet = small_unet()
    plain = run(unet)
    attach_id_attention(unet)
    active = torch.tensor([True, False, True])
    out = run(unet, IDConditions(TOKENS, active=active))
    assert torch.equal(out[1], plain[1])
    assert torch.equal(out[[0, 2]], run(unet, IDConditions(TOKENS))[[0, 2]])
    assert torch.equal(run(unet, IDConditions(TOKENS, id_scale=0.0)), plain)


@torch.no_grad()
def test_id_scale_may_differ_by_row():
    unet = small_unet()
    attach_id_attention(unet)
    out = run(unet, IDConditions(TOKENS, id_scale=torch.tensor([0.0, 0.5, 1.0])))
    for row, scale in enumerate((0.0, 0.5, 1.0)):
        assert torch.equal(out[row], run(unet, IDConditions(TOKENS, id_scale=scale))[row])


@torch.no_grad()
def test_the_id_branch_is_added_attention_with_the_text_branchs_query():
    """One layer, by hand: out(softmax(q k / sqrt(d)) v + scale * softmax(q k_id / sqrt(d)) v_id)."""
    unet = small_unet()
    layer = next(iter(attach_id_attention(unet).values()))
    torch.nn.init.normal_(layer.to_k_id.weight), torch.nn.init.normal_(layer.to_v_id.weight)
    attn = unet.get_submodule(layer.name)
    x = torch.randn(3, 10, attn.to_q.in_features)

    def heads(y):
        return y.view(3, -1, attn.heads, y.shape[-1] // attn.heads).transpose(1, 2)

    def attention(key, value):
        weights = (heads(attn.to_q(x)) @ heads(key).mT / (key.shape[-1] / attn.heads) ** 0.5).softmax(-1)
        return (weights @ heads(value)).transpose(1, 2).flatten(2)

    tokens = TOKENS[:, 0]
    by_hand = attention(attn.to_k(TEXT), attn.to_v(TEXT))
    by_hand = by_hand + 0.3 * attention(layer.to_k_id(tokens), layer.to_v_id(tokens))
    out = attn(x, encoder_hidden_states=TEXT, identities=IDConditions(TOKENS, id_scale=0.3))
    torch.testing.assert_close(out, attn.to_out[0](by_hand), atol=1e-5, rtol=1e-5)


def test_id_projections_start_as_the_text_projections_below_any_lora():
    unet = small_unet()
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"]), adapter_name="style")
    for layer in attach_id_attention(unet).values():
        attn = unet.get_submodule(layer.name)
        assert torch.equal(layer.to_k_id.weight, attn.to_k.base_layer.weight)
        assert torch.equal(layer.to_v_id.weight, attn.to_v.base_layer.weight)


def test_every_cross_attention_layer_takes_part_under_its_own_name():
    unet = small_unet()
    id_attention = attach_id_attention(unet)
    names = {name for name, _ in unet.named_modules() if name.endswith("attn2")}
    assert {key.replace("/", ".") for key in id_attention} == names and len(names) == 4
    loss = run(unet, IDConditions(TOKENS)).square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in id_attention.parameters())


@torch.no_grad()
def test_keys_and_values_computed_once_give_the_same_picture():
    unet = small_unet()
    id_attention = attach_id_attention(unet)
    conditions = IDConditions(TOKENS, id_scale=0.7)
    cached = conditions.projected(id_attention)
    assert torch.equal(run(unet, cached), run(unet, conditions))
    for layer in id_attention.values():  # and are not computed again
        layer.to_k_id.weight.zero_()
    assert not torch.allclose(run(unet, cached), run(unet, conditions), atol=1e-4)


@torch.no_grad()
def test_rows_repeat_conditions_and_one_row_serves_a_batch():
    unet = small_unet()
    id_attention = attach_id_attention(unet)
    conditions = IDConditions(TOKENS, torch.tensor([0.2, 0.4, 0.6]), torch.tensor([True, True, False]))
    index = torch.tensor([1, 1, 2])
    expected = IDConditions(TOKENS[index], torch.tensor([0.4, 0.4, 0.6]), torch.tensor([True, True, False]))
    assert torch.equal(run(unet, conditions.projected(id_attention).rows(index)), run(unet, expected))
    shared, repeated = IDConditions(TOKENS[:1]), IDConditions(TOKENS[[0, 0, 0]])
    assert torch.equal(run(unet, shared), run(unet, repeated))


def test_several_identities_need_to_be_told_who_is_where():
    unet = small_unet()
    attach_id_attention(unet)
    with pytest.raises(ConfigError, match="need a Routing"):
        run(unet, IDConditions(torch.randn(1, 2, 16, WIDTH)))
    with pytest.raises(ConfigError, match="routers of the multi-ID stage"):
        run(unet, IDConditions(torch.randn(1, 2, 16, WIDTH), routing=Routing((16, 16))))


@torch.no_grad()
def test_detaching_gives_the_unet_back_to_the_bit():
    unet = small_unet()
    plain, weights, processors = run(unet), {k: v.clone() for k, v in unet.state_dict().items()}, unet.attn_processors
    id_attention = attach_id_attention(unet)
    add_lora(unet, 2)
    for weight in lora_parameters(unet).values():
        weight.normal_()
    assert not torch.allclose(run(unet), plain, atol=1e-3)
    remove_lora(unet)
    id_attention.detach(unet)
    assert torch.equal(run(unet), plain)
    assert unet.attn_processors == processors  # the very same objects
    assert list(unet.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[name]) for name, value in unet.state_dict().items())


def test_attaching_twice_is_an_error_that_changes_nothing():
    unet = small_unet()
    id_attention = attach_id_attention(unet)
    with pytest.raises(ConfigError, match="already"):
        attach_id_attention(unet)
    assert id_attention.in_place(unet)


def test_diffusers_warns_of_nothing(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    unet = small_unet()
    attach_id_attention(unet)
    add_lora(unet, 2)
    with caplog.at_level(logging.WARNING):
        run(unet, IDConditions(TOKENS))
    assert not caplog.records


def test_gradient_checkpointing_gives_the_same_gradients():
    unet = small_unet().train()
    id_attention = attach_id_attention(unet)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
        tokens = TOKENS.clone().requires_grad_()
        id_attention.zero_grad()
        run(unet, IDConditions(tokens)).square().mean().backward()
        gradients.append([tokens.grad, *(p.grad.clone() for p in id_attention.parameters())])
    assert gradients[0][0].any()
    torch.testing.assert_close(gradients[0], gradients[1])


@torch.no_grad()
def test_lora_sits_on_all_attention_and_not_on_id_projections():
    unet = small_unet()
    id_attention = attach_id_attention(unet)
    before = run(unet, IDConditions(TOKENS))
    add_lora(unet, 3)
    blocks = [name for name, _ in unet.named_modules() if name.endswith(("attn1", "attn2"))]
    targets = {f"{block}.{part}" for block in blocks for part in ("to_q", "to_k", "to_v", "to_out.0")}
    assert set(lora_layers(unet)) == targets
    assert set(lora_parameters(unet)) == {f"{t}.{part}" for t in targets for part in ("down", "up")}
    assert type(next(iter(id_attention.values())).to_k_id) is torch.nn.Linear
    assert torch.equal(run(unet, IDConditions(TOKENS)), before)  # no effect until trained


@torch.no_grad()
def test_switching_the_lora_leaves_another_adapter_alone():
    unet = small_unet()
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), adapter_name="style")
    styled = run(unet)
    add_lora(unet, 2)
    layers = lora_layers(unet).values()
    for weight in lora_parameters(unet).values():
        weight.normal_()
    both = run(unet)
    assert not torch.allclose(both, styled, atol=1e-3)
    use_lora(layers, False)
    assert torch.equal(run(unet), styled)
    use_lora(layers, True)
    assert torch.equal(run(unet), both)
    remove_lora(unet)
    assert torch.equal(run(unet), styled)
    assert list(unet.peft_config) == ["style"]


def test_adding_the_lora_freezes_and_thaws_nothing_else():
    unet = small_unet().requires_grad_(False)
    id_attention = attach_id_attention(unet)
    id_attention.requires_grad_(True)
    add_lora(unet, 2)
    trainable = {id(p) for p in unet.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in [*id_attention.parameters(), *lora_parameters(unet).values()]}


def test_a_lora_without_rank_is_an_error():
    with pytest.raises(ConfigError, match="rank"):
        add_lora(small_unet(), 0)
