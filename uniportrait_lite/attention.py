"""Decoupled cross-attention: how ID tokens enter a U-Net (paper: injection of the ID embedding).

Each cross-attention layer keeps its text branch and gains keys and values of its own for ID tokens:

    out = Attention(Q, K_text, V_text) + id_scale * sum over n of psi_n * Attention(Q, K_id^(n), V_id^(n))

psi, 1 for one identity at each location, is the ID routing's; a single identity needs none.

What a call needs travels with the call, as `cross_attention_kwargs={"identities": IDConditions(...)}`, so a U-Net
holds weights only: two threads, or two pipelines, never meet. ControlNets are given nothing and see no ID tokens.
An image prompt and a style to share (image_prompt.py, style_alignment.py) travel beside it, with identities or without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from uniportrait_lite.conditions import Conditions, row_weight
from uniportrait_lite.errors import ConfigError
from uniportrait_lite.id_routing import IDRouter, Routing
from uniportrait_lite.image_prompt import ImagePrompt
from uniportrait_lite.style_alignment import StyleAlignment

TRAVELLERS = {"identities", "image_prompt", "style"}  # what the processors here take of `cross_attention_kwargs`
SENTENCE_SHARE = 0.5  # of the text's attention, where something is said of the person there; the prompt has the rest


@dataclass(frozen=True)
class IDConditions(Conditions):
    """The identities of one U-Net call.

    `tokens` (B, N, 16, D): the ID tokens of N identities for each row of the batch, or (1, N, 16, D) for all rows.
    `id_scale`: one number, or one a row (B,). `active` (B,), bool: rows without it get text alone.
    `routing` says how locations choose among several identities, which need it; with masks it serves one, too.
    `sentences` (B, N, T, D) are encoded texts, one about each identity of which `said` (B, N), bool, says that there is
    one: locations that listen to that identity attend to it beside the prompt (our addition to the paper).
    `keys_values`: for each layer the projected tokens (B, N, 16, inner), and `router_keys` (B, N, 2C), both filled by
    `projected`; without them a layer projects its own, which is what training wants.
    """

    tokens: Tensor
    id_scale: float | Tensor = 1.0
    active: Tensor | None = None
    routing: Routing | None = None
    sentences: Tensor | None = None
    said: Tensor | None = None
    keys_values: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    router_keys: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tokens.ndim != 4:
            raise ConfigError(f"ID tokens are (batch, identities, tokens, width), not {tuple(self.tokens.shape)}")
        if (self.sentences is None) != (self.said is None):
            raise ConfigError("sentences and said go together: the texts, and which identities have one")

    def projected(self, id_attention: IDAttention) -> IDConditions:
        """The same with the keys and values of every layer computed: once a call in place of once a step."""
        keys_values = {layer.name: layer.project(self.tokens) for layer in id_attention.values()}
        routers = {layer.name: layer.router for layer in id_attention.values() if layer.router is not None}
        several = self.tokens.shape[1] > 1
        router_keys = {name: router.keys(self.tokens) for name, router in routers.items()} if several else {}
        return replace(self, keys_values=keys_values, router_keys=router_keys)

    def weight(self, dtype: torch.dtype) -> float | Tensor:
        """What the ID branch is multiplied with: the ID scale, 0 in rows that are not active."""
        return row_weight(self.id_scale, self.active, dtype)


def attend(attn: Attention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of (B, L, inner) on (B, T, inner)."""
    q, k, v = [x.view(*x.shape[:2], attn.heads, -1).transpose(1, 2) for x in (query, key, value)]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2).to(query.dtype)


def _routed(attn: Attention, query: Tensor, key: Tensor, value: Tensor, psi: Tensor | None) -> Tensor:
    """Attention of (B, L, inner) to each identity's (B or 1, N, T, inner), added up by psi (B, N, L).

    Without psi there is one identity.
    """
    batch, count = query.shape[0], key.shape[1]
    key, value = (x.expand(batch, -1, -1, -1).flatten(0, 1) for x in (key, value))
    if psi is None:
        return attend(attn, query, key, value)
    each = attend(attn, query.repeat_interleave(count, dim=0), key, value).view(batch, count, *query.shape[1:])
    return (psi.unsqueeze(-1) * each).sum(dim=1)


def _bare_copy(linear: nn.Module) -> nn.Linear:
    """A copy of the linear map, of the one below any LoRA."""
    linear = getattr(linear, "base_layer", linear)
    copy = nn.Linear(linear.in_features, linear.out_features, bias=False)
    copy.weight = nn.Parameter(linear.weight.detach().clone())
    return copy


class IDAttnProcessor(nn.Module):
    """The attention processor of one cross-attention layer, with the projections of ID tokens to keys and values.

    They start as copies of the layer's own projections of text, as ID tokens live in the same space. `name` is the
    layer's place in the U-Net, `router` what chooses among several identities, where there is one (`add_routers`).
    """

    def __init__(self, attn: Attention, name: str):
        super().__init__()
        self.name = name
        self.router: IDRouter | None = None
        self.to_k_id, self.to_v_id = (_bare_copy(linear) for linear in (attn.to_k, attn.to_v))

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """ID tokens (..., D) -> keys and values (..., inner)."""
        return self.to_k_id(tokens), self.to_v_id(tokens)

    # __call__, not forward: diffusers reads its signature to learn which cross_attention_kwargs a processor takes.
    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        identities: IDConditions | None = None,
        image_prompt: ImagePrompt | None = None,
        style: StyleAlignment | None = None,
    ) -> Tensor:
        """Positions (B, L, C) and text (B, T, D) -> positions (B, L, C); with text alone the layer as it was.

        `style` is for self-attention, and diffusers gives it to all layers.
        """
        query = attn.to_q(hidden_states)
        if attention_mask is not None:
            batch, length, _ = encoder_hidden_states.shape
            attention_mask = attn.prepare_attention_mask(attention_mask, length, batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])
        key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        if identities is None:
            out = attend(attn, query, key, value, attention_mask)
        else:
            psi = self.psi(hidden_states, identities)
            out = attend(attn, query, key, value, attention_mask)
            if identities.sentences is not None:
                out = self.with_sentences(attn, query, out, identities, psi)
            out = out + identities.weight(query.dtype) * self.identity_branch(attn, query, identities, psi)
        if image_prompt is not None:
            weight = image_prompt.weight(query.dtype, query.shape[1])
            out = out + weight * self.image_branch(attn, query, image_prompt)
        return attn.to_out[1](attn.to_out[0](out))

    def psi(self, hidden_states: Tensor, identities: IDConditions) -> Tensor | None:
        """The routing map (B, N, L) of positions (B, L, C); None where there is one identity, everywhere."""
        count = identities.tokens.shape[1]
        if identities.routing is None:
            if count > 1:
                raise ConfigError(f"{count} identities in one picture need a Routing, which says who is where")
            return None

        def logits() -> Tensor:
            if self.router is None:
                raise ConfigError(f"{count} identities need the routers of the multi-ID stage, or masks for each")
            keys = identities.router_keys.get(self.name)
            return self.router.logits(hidden_states, self.router.keys(identities.tokens) if keys is None else keys)

        psi = identities.routing.choose(self.name, *hidden_states.shape[:2], logits)
        return psi.to(hidden_states.dtype)

    def identity_branch(self, attn: Attention, query: Tensor, identities: IDConditions, psi: Tensor | None) -> Tensor:
        """The attention of the text branch's query (B, L, inner) to the ID tokens of each location's identity."""
        key, value = identities.keys_values.get(self.name) or self.project(identities.tokens)
        return _routed(attn, query, key, value, psi)

    def image_branch(self, attn: Attention, query: Tensor, image_prompt: ImagePrompt) -> Tensor:
        """The attention of the text branch's query (B, L, inner) to the image tokens: see image_prompt.py."""
        key, value = (x.expand(len(query), -1, -1) for x in image_prompt.keys_values[self.name])
        return attend(attn, query, key, value)

    def with_sentences(
        self, attn: Attention, query: Tensor, prompt: Tensor, identities: IDConditions, psi: Tensor | None
    ) -> Tensor:
        """The attention to the prompt (B, L, inner), a share of it given to what is said of each location's person."""
        here = identities.said.to(query.dtype).unsqueeze(-1)  # (B or 1, N, 1)
        here = here.expand(len(query), -1, query.shape[1]) if psi is None else here * psi
        about = _routed(attn, query, attn.to_k(identities.sentences), attn.to_v(identities.sentences), here)
        return prompt + SENTENCE_SHARE * (about - here.sum(dim=1).unsqueeze(-1) * prompt)


class SelfAttnProcessor(AttnProcessor2_0):
    """diffusers' own processor of self-attention, until a style is to be shared (see style_alignment.py)."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        *args,
        identities: IDConditions | None = None,
        image_prompt: ImagePrompt | None = None,
        style: StyleAlignment | None = None,
        **kwargs,
    ) -> Tensor:
        """Positions (B, L, C) -> positions (B, L, C). Diffusers gives identities and image prompts to all layers."""
        if style is None:
            return super().__call__(attn, hidden_states, *args, **kwargs)
        projections = (project(hidden_states) for project in (attn.to_q, attn.to_k, attn.to_v))
        out = attend(attn, *style.share(*projections))
        return attn.to_out[1](attn.to_out[0](out))


class IDAttention(nn.ModuleDict):
    """The ID projections of every cross-attention layer of a U-Net, in place in it; keys are the layers' names.

    Module names cannot hold dots, so a key is the layer's name with `/` for `.`. Made by `attach_id_attention`.
    """

    def __init__(self, layers: Mapping[str, IDAttnProcessor], replaced: Mapping[str, object]):
        super().__init__({name.replace(".", "/"): layer for name, layer in layers.items()})
        self.replaced = replaced

    def in_place(self, unet: UNet2DConditionModel) -> bool:
        """Whether the U-Net still uses these projections: another extension may have replaced them since."""
        return all(unet.get_submodule(layer.name).processor is layer for layer in self.values())

    def detach(self, unet: UNet2DConditionModel) -> None:
        """Gives the U-Net its former processors back, the same objects."""
        unet.set_attn_processor(dict(self.replaced))


def attach_id_attention(unet: UNet2DConditionModel) -> IDAttention:
    """Puts an `IDAttnProcessor` into every cross-attention layer; raises `ConfigError` where that cannot work."""
    replaced = dict(unet.attn_processors)
    layers, processors = {}, {}
    for path, processor in replaced.items():
        name = path.removesuffix(".processor")
        if type(processor) not in (AttnProcessor, AttnProcessor2_0):
            raise ConfigError(
                f"{name} already has a {type(processor).__name__}: detach what put it there (another UniPortrait, an "
                "IP-Adapter, ...) first"
            )
        if name.endswith(".attn2"):
            layers[name] = processors[path] = IDAttnProcessor(unet.get_submodule(name), name)
        else:
            processors[path] = SelfAttnProcessor()
    if not layers:
        raise ConfigError("this U-Net has no cross-attention layers for ID tokens to enter by")
    unet.set_attn_processor(processors)
    return IDAttention(layers, replaced)


def add_routers(id_attention: IDAttention, tokens: int = 16) -> dict[str, IDRouter]:
    """Gives every layer a router for the number of ID tokens, new ones where there were some; returns them by layer."""
    for layer in id_attention.values():
        inner, width = layer.to_k_id.weight.shape
        layer.router = IDRouter(inner, width, tokens).to(layer.to_k_id.weight)  # its device and dtype
    return routers(id_attention)


def routers(id_attention: IDAttention) -> dict[str, IDRouter]:
    """The routers by their layers' keys; none before the multi-ID stage."""
    return {key: layer.router for key, layer in id_attention.items() if layer.router is not None}
