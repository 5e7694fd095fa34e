"""Decoupled cross-attention: how ID tokens enter a U-Net (paper: injection of the ID embedding).

Each cross-attention layer keeps its text branch and gains keys and values of its own for ID tokens:

    out = Attention(Q, K_text, V_text) + id_scale * sum over n of psi_n * Attention(Q, K_id^(n), V_id^(n))

psi, 1 for one identity at each location, is the ID routing's; a single identity needs none.

What a call needs travels with the call, as `cross_attention_kwargs={"identities": IDConditions(...)}`, so a U-Net
holds weights only: two threads, or two pipelines, never meet. ControlNets are given nothing and see no ID tokens.
An image prompt and a style to share (image_prompt.py, style_alignment.py) travel beside it, with identities or without.
"""

from __future__ import annotations

import functools
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
SENTENCE_SHARE = 0.75  # of the text's attention, where something is said of the person there; the prompt has the rest


@dataclass(frozen=True)
class IDConditions(Conditions):
    """The identities of one U-Net call.

    `tokens` (B, N, 16, D): the ID tokens of N identities for each row of the batch, or (1, N, 16, D) for all rows.
    `id_scale`: one number, or one a row (B,). `active` (B,), bool: rows without it get text alone.
    `routing` says how locations choose among several identities, which need it; with masks it serves one, too.
    `sentences` (B, N, T, D) are encoded texts, one about each identity of which `said` (B, N), bool, says that there is
    one: locations that listen to that identity attend to it beside the prompt (our addition to the paper).
    `keys_values`: for each layer the projected tokens (B, heads, N * 16, inner / heads), and `router_keys` (B, N, 2C),
    both filled by `projected`; without them a layer projects its own, which is what training wants. `others`
    (1, N, N * 16), which comes with router_keys, is added to the attention scores of all tokens at a location of
    identity n: 0 for its own tokens, -inf for those of the others.
    `text`, where given, keeps each layer's keys and values of the prompt for calls with the same prompt and weights.
    """

    tokens: Tensor
    id_scale: float | Tensor = 1.0
    active: Tensor | None = None
    routing: Routing | None = None
    sentences: Tensor | None = None
    said: Tensor | None = None
    keys_values: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    router_keys: Mapping[str, Tensor] = field(default_factory=dict)
    others: Tensor | None = None
    text: dict[str, tuple[Tensor, Tensor]] | None = None

    def __post_init__(self) -> None:
        if self.tokens.ndim != 4:
            raise ConfigError(f"ID tokens are (batch, identities, tokens, width), not {tuple(self.tokens.shape)}")
        if (self.sentences is None) != (self.said is None):
            raise ConfigError("sentences and said go together: the texts, and which identities have one")

    def projected(self, id_attention: IDAttention) -> IDConditions:
        """The same with the keys and values of every layer computed: once a call in place of once a step."""
        keys_values = {layer.name: layer.keys_values(self.tokens) for layer in id_attention.values()}
        routers = {layer.name: layer.router for layer in id_attention.values() if layer.router is not None}
        count, length = self.tokens.shape[1:3]
        if count == 1 or not routers:
            return replace(self, keys_values=keys_values)
        router_keys = {name: router.keys(self.tokens) for name, router in routers.items()}
        own = torch.eye(count, dtype=torch.bool, device=self.tokens.device).repeat_interleave(length, dim=1)
        others = torch.zeros_like(own, dtype=self.tokens.dtype).masked_fill(~own, -torch.inf).unsqueeze(0)
        return replace(self, keys_values=keys_values, router_keys=router_keys, others=others)

    @property
    def one_each(self) -> bool:
        """Whether all that is asked of the routers is one identity for each location, which takes fewest operations."""
        routing = self.routing
        return self.others is not None and self.sentences is None and routing is not None and routing.largest

    def weight(self, dtype: torch.dtype) -> float | Tensor:
        """What the ID branch is multiplied with: the ID scale, 0 in rows that are not active."""
        return row_weight(self.id_scale, self.active, dtype)


def split(x: Tensor, heads: int) -> Tensor:
    """(B, L, inner) -> (B, heads, L, inner / heads)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def merge(x: Tensor) -> Tensor:
    """(B, heads, L, inner / heads) -> (B, L, inner)."""
    return x.transpose(1, 2).flatten(2)


def attend(attn: Attention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of (B, L, inner) on (B, T, inner)."""
    q, k, v = [split(x, attn.heads) for x in (query, key, value)]
    return merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)).to(query.dtype)


def _routed(query: Tensor, key: Tensor, value: Tensor, psi: Tensor | None) -> Tensor:
    """Attention of (B, heads, L, d) to each identity's (B or 1, heads, N * T, d), added up by psi (B, N, L).

    Without psi there is one identity.
    """
    key, value = (x.expand(len(query), -1, -1, -1) for x in (key, value))
    if psi is None:
        return F.scaled_dot_product_attention(query, key, value)
    (batch, heads, length, width), count = query.shape, psi.shape[1]
    key, value = (x.reshape(batch, heads * count, -1, width) for x in (key, value))  # each identity has its own heads
    each = F.scaled_dot_product_attention(query.repeat_interleave(count, dim=1), key, value)
    return (psi[:, None, :, :, None] * each.view(batch, heads, count, length, width)).sum(dim=2)


def _added(out: Tensor, weight: float | Tensor, branch: Tensor) -> Tensor:
    """out + weight * branch, in one operation; a weight that is no number is (B, 1 or L, 1), the others have heads."""
    if isinstance(weight, Tensor):
        return torch.addcmul(out, weight.unsqueeze(1), branch)
    return torch.add(out, branch, alpha=float(weight))


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
        self.name, self.heads = name, attn.heads
        self.router: IDRouter | None = None
        self.to_k_id, self.to_v_id = (_bare_copy(linear) for linear in (attn.to_k, attn.to_v))

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """ID tokens (..., D) -> keys and values (..., inner)."""
        return self.to_k_id(tokens), self.to_v_id(tokens)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """ID tokens (B, N, 16, D) -> keys and values (B, heads, N * 16, inner / heads)."""
        key, value = (split(x.flatten(1, 2), self.heads) for x in self.project(tokens))
        return key, value

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
        if attention_mask is not None:
            batch, length, _ = encoder_hidden_states.shape
            attention_mask = attn.prepare_attention_mask(attention_mask, length, batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])
        query = split(attn.to_q(hidden_states), self.heads)
        kept = None if identities is None or torch.compiler.is_compiling() else identities.text
        known = {} if kept is None else kept
        if self.name not in known:
            projections = (attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
            known[self.name] = tuple(split(x, self.heads) for x in projections)
        key, value = known[self.name]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        if identities is not None:
            if identities.one_each:
                branch = self._chosen_branch(hidden_states, query, identities)
            else:
                psi = self.psi(hidden_states, identities)
                if identities.sentences is not None:
                    out = self.with_sentences(attn, query, out, identities, psi)
                branch = self.identity_branch(query, identities, psi)
            out = _added(out, identities.weight(query.dtype), branch)
        if image_prompt is not None:
            weight = image_prompt.weight(query.dtype, query.shape[2])
            out = _added(out, weight, self.image_branch(query, image_prompt))
        return attn.to_out[1](attn.to_out[0](merge(out)))

    def psi(self, hidden_states: Tensor, identities: IDConditions) -> Tensor | None:
        """The routing map (B, N, L) of positions (B, L, C); None where there is one identity, everywhere."""
        count = identities.tokens.shape[1]
        if identities.routing is None:
            if count > 1:
                raise ConfigError(f"{count} identities in one picture need a Routing, which says who is where")
            return None
        logits = functools.partial(self.logits, hidden_states, identities)
        psi = identities.routing.choose(self.name, *hidden_states.shape[:2], logits)
        return psi.to(hidden_states.dtype)

    def logits(self, hidden_states: Tensor, identities: IDConditions) -> Tensor:
        """The router's logits (B, N, L) at positions (B, L, C)."""
        if self.router is None:
            count = identities.tokens.shape[1]
            raise ConfigError(f"{count} identities need the routers of the multi-ID stage, or masks for each")
        keys = identities.router_keys.get(self.name)
        return self.router.logits(hidden_states, self.router.keys(identities.tokens) if keys is None else keys)

    def identity_branch(self, query: Tensor, identities: IDConditions, psi: Tensor | None) -> Tensor:
        """The attention of the text branch's query (B, heads, L, d) to the ID tokens of each location's identity."""
        key, value = identities.keys_values.get(self.name) or self.keys_values(identities.tokens)
        return _routed(query, key, value, psi)

    def _chosen_branch(self, hidden_states: Tensor, query: Tensor, identities: IDConditions) -> Tensor:
        """The same where routers choose, in one attention: at each location the tokens of others are masked."""
        key, value = (x.expand(len(query), -1, -1, -1) for x in identities.keys_values[self.name])
        chosen = self.logits(hidden_states, identities).argmax(dim=1)  # (B, L)
        mask = F.embedding(chosen, identities.others[0]).unsqueeze(1)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    def image_branch(self, query: Tensor, image_prompt: ImagePrompt) -> Tensor:
        """The attention of the text branch's query (B, heads, L, d) to the image tokens: see image_prompt.py."""
        key, value = (split(x, self.heads).expand(len(query), -1, -1, -1) for x in image_prompt.keys_values[self.name])
        return F.scaled_dot_product_attention(query, key, value)

    def with_sentences(
        self, attn: Attention, query: Tensor, prompt: Tensor, identities: IDConditions, psi: Tensor | None
    ) -> Tensor:
        """The attention to the prompt (B, heads, L, d), a share of it given to what is said of each location's person.

        The text branch's query has the same shape.
        """
        here = identities.said.to(query.dtype).unsqueeze(-1)  # (B or 1, N, 1)
        here = here.expand(len(query), -1, query.shape[2]) if psi is None else here * psi
        texts = identities.sentences.flatten(1, 2)
        key, value = (split(project(texts), self.heads) for project in (attn.to_k, attn.to_v))
        about = _routed(query, key, value, here)
        return prompt + SENTENCE_SHARE * (about - here.sum(dim=1)[:, None, :, None] * prompt)


class SelfAttnProcessor(AttnProcessor2_0):
    """Self-attention as diffusers' own processor has it, or with a style that is shared (see style_alignment.py)."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args,
        identities: IDConditions | None = None,
        image_prompt: ImagePrompt | None = None,
        style: StyleAlignment | None = None,
        **kwargs,
    ) -> Tensor:
        """Positions (B, L, C) -> positions (B, L, C). Diffusers gives identities and image prompts to all layers."""
        plain = hidden_states.ndim == 3 and encoder_hidden_states is None and attention_mask is None
        if style is None and not plain:  # of pictures or with a text of their own; SD 1.5 has none
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
        projections = [project(hidden_states) for project in (attn.to_q, attn.to_k, attn.to_v)]
        out = attend(attn, *(projections if style is None else style.share(*projections)))
        return attn.to_out[1](attn.to_out[0](out))


class IDAttention(nn.ModuleDict):
    """The ID projections of every cross-attention layer of a U-Net, in place in it; keys are the layers' names.

    Module names cannot hold dots, so a key is the layer's name with `/` for `.`. Made by `attach_id_attention`.
    """

    def __init__(self, layers: Mapping[str, IDAttnProcessor], replaced: Mapping[str, object]):
        super().__init__({name.replace(".", "/"): layer for name, layer in layers.items()})
        self.replaced = replaced
        self._layers: tuple[nn.Module, list[nn.Module]] | None = None  # the U-Net last asked about, its layers

    def in_place(self, unet: UNet2DConditionModel) -> bool:
        """Whether the layers still use these projections: another extension may have replaced them since."""
        if self._layers is None or self._layers[0] is not unet:
            self._layers = unet, [unet.get_submodule(layer.name) for layer in self.values()]
        return all(layer.processor is ours for layer, ours in zip(self._layers[1], self.values(), strict=True))

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
