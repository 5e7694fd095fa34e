"""Identities into the U-Net calls of pipelines that know nothing of them."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from uniportrait_lite.attention import TRAVELLERS, IDAttention, IDConditions
from uniportrait_lite.conditions import Conditions
from uniportrait_lite.errors import ConfigError
from uniportrait_lite.id_routing import Routing, RoutingMaps
from uniportrait_lite.image_prompt import ImagePrompt
from uniportrait_lite.lora import lora_layers, remove_lora, use_lora
from uniportrait_lite.regions import regions


@dataclass
class _Call:
    """Conditions of two rows, of nobody or nothing and of what was given, for calls with any number of rows."""

    identities: IDConditions | None
    image_prompt: ImagePrompt | None
    guided: bool | None
    cell: int
    masks: Sequence[Any] | None = None
    columns: float = 0.0
    image_mask: Any = None
    maps: RoutingMaps | None = None
    expanded: dict[tuple, dict[str, Conditions]] = field(default_factory=dict)

    @torch.compiler.disable  # it looks at the frames of its callers, which no compiler follows
    def rows(self, sample: torch.Tensor, unet: UNet2DConditionModel) -> dict[str, Conditions]:
        """The identities and the image prompt, one row for each of the latents (B, c, h, w), on their device; with
        guidance the first half is unconditional, as diffusers stacks it."""
        batch, size = len(sample), tuple(sample.shape[-2:])
        guided = guided_by_caller(unet) if self.guided is None else self.guided
        if guided and batch % 2:
            raise ConfigError(
                f"a batch of {batch} rows is no two halves, without and with the prompt: it is not guided"
            )
        key = (batch, size, guided, sample.device)
        if key not in self.expanded:
            nobody = batch // 2 if guided else 0
            found = {}
            if self.identities is not None:
                found["identities"] = replace(self.identities, routing=self._routing(size, nobody))
            if self.image_prompt is not None:
                mask = None if self.image_mask is None else regions([self.image_mask], size, self.cell)[0]
                found["image_prompt"] = replace(self.image_prompt, mask=mask)
            index = torch.tensor([0] * nobody + [1] * (batch - nobody), device=sample.device)
            self.expanded[key] = {name: each.to(sample.device).rows(index) for name, each in found.items()}
        return self.expanded[key]

    def _routing(self, size: tuple[int, int], nobody: int) -> Routing | None:
        """What says who is where; one person without a mask is everywhere."""
        if self.identities.tokens.shape[1] == 1 and self.masks is None:
            return None
        masks = None if self.masks is None else regions(self.masks, size, self.cell)
        record = None
        if self.maps is not None:
            self.maps.size = size

            def record(name: str, psi: torch.Tensor, logits: torch.Tensor | None) -> None:
                self.maps.add(name, psi[nobody:], logits is not None)

        return Routing(size, masks, columns=self.columns, record=record)


def below_compile(unet: object) -> object:
    """The U-Net itself where `torch.compile` has wrapped it."""
    return getattr(unet, "_orig_mod", unet)


def guided_by_caller(unet: UNet2DConditionModel) -> bool:
    """Whether the pipeline in whose call we are stacks unconditional rows first.

    Only the pipeline knows, it tells the U-Net nothing, and it may be another one than the one attached to (an
    inpainting pipeline made of the same parts): hence this look at who called.
    """
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, DiffusionPipeline) and below_compile(getattr(caller, "unet", None)) is unet:
            if getattr(caller, "do_perturbed_attention_guidance", False) or hasattr(caller, "image_guidance_scale"):
                raise ConfigError(
                    f"{type(caller).__name__} guides by three kinds of rows, and identities know two, without and with "
                    "the prompt: use a pipeline without such guidance"
                )
            guided = getattr(caller, "do_classifier_free_guidance", None)
            if guided is not None:
                return bool(guided)
        frame = frame.f_back
    raise ConfigError(
        "the U-Net is called by no pipeline that says whether it uses guidance: pass using(..., guided=True) if each "
        "batch is unconditional rows and then as many with the prompt, else guided=False"
    )


class Injection:
    """Adds identities to the calls of one U-Net, and switches a LoRA on for just these calls.

    `loras` are the adapters for one identity and for several; without the second the first serves both. `cell`: pixels
    of a picture a latent, for masks; `timesteps`: those of the noise schedule.
    Which identities is a matter of the caller's context (its thread, or its task of asyncio), never of the U-Net.
    The LoRA's switch does belong to the U-Net, so calls from several threads take turns.
    """

    def __init__(self, unet: UNet2DConditionModel, id_attention: IDAttention, loras: Sequence[str], cell: int,
                 timesteps: int = 1000):  # fmt: skip
        self.unet, self.id_attention, self.loras, self.cell = unet, id_attention, tuple(loras), cell
        self.timesteps = timesteps
        self.attached = True
        self._current: ContextVar[_Call | None] = ContextVar("identities", default=None)
        self._turn = threading.RLock()
        self._layers: Mapping[str, list] = {lora: list(lora_layers(unet, lora).values()) for lora in self.loras}
        self._fused: str | None = None
        self._prompt: tuple[torch.Tensor, tuple, dict] | None = None  # of the last call, while a LoRA is fused
        self._use(None)
        self._former = unet.__dict__.get("forward")  # accelerate's offloading has one here
        self._forward = unet.forward
        self._wrapper = self._wrap()
        unet.forward = self._wrapper

    @contextlib.contextmanager
    def using(
        self,
        conditions: IDConditions | None,
        guided: bool | None = None,
        masks: Sequence[Any] | None = None,
        maps: RoutingMaps | None = None,
        image_prompt: ImagePrompt | None = None,
        image_mask: Any = None,
        columns: float = 0.0,
    ) -> Iterator[None]:
        """Calls of the U-Net inside it take these conditions (row 0 nobody, row 1 the identities), or none.

        `masks`, one for each identity, take the router's place, and `columns` do for that share of the denoising, from
        pure noise on; `maps` gets the routing of each call. `image_prompt`
        (row 0 of no picture, row 1 of the picture) is heeded where `image_mask` says, or everywhere.
        """
        call = None
        if conditions is not None or image_prompt is not None:
            call = _Call(conditions, image_prompt, guided, self.cell, masks, columns, image_mask, maps)
        token = self._current.set(call)
        try:
            yield
        finally:
            self._current.reset(token)

    @contextlib.contextmanager
    def fused(self, people: int) -> Iterator[None]:
        """Inside it the LoRA for this number of identities is a part of the weights, and the U-Net serves no others.

        Afterwards the weights are what they were, bit for bit: main memory keeps a copy of those that change.
        """
        lora = self._lora_for(people)
        with self._turn:
            if self._fused is not None:
                raise ConfigError("a LoRA is fused already: leave that first")
            self._use(None)
            layers = {layer: layer.get_base_layer().weight for layer in self._layers[lora]}
            if any(layer.active_adapters or layer.merged for layer in layers):
                raise ConfigError("another LoRA is active in this U-Net, and fusing would hide it: unload it first")
            plain = {layer for layer in layers if "forward" not in vars(layer)}  # of the others accelerate has hold
            kept = {layer: weight.detach().to("cpu", copy=True) for layer, weight in layers.items()}
        try:
            with self._turn:
                for layer in layers:
                    layer.merge(adapter_names=[lora])
                    if layer in plain:
                        layer.forward = layer.get_base_layer().__call__  # peft's takes time to find nothing to add
                self._fused = lora
            yield
        finally:
            with self._turn, torch.no_grad():
                for layer, weight in layers.items():
                    if layer in plain:
                        vars(layer).pop("forward", None)
                    if layer.merged:  # not where memory ran out before its turn
                        layer.unmerge()
                    weight.copy_(kept[layer])
                self._fused = self._prompt = None

    def detach(self) -> None:
        """Gives the U-Net back as it was. A wrapper that was wrapped in turn stays, and only passes calls on."""
        if self._fused is not None:
            raise ConfigError("a LoRA is fused into this U-Net's weights: leave that first, and then detach")
        self.attached = False
        if self.unet.__dict__.get("forward") is self._wrapper:
            del self.unet.forward
            if self._former is not None:
                self.unet.forward = self._former
        for lora in self.loras:
            if lora in getattr(self.unet, "peft_config", {}):
                remove_lora(self.unet, lora)
        if self.id_attention.in_place(self.unet):
            self.id_attention.detach(self.unet)

    def _wrap(self):
        @functools.wraps(self._forward)
        @torch.compiler.disable(recursive=False)
        def forward(sample, *args, cross_attention_kwargs=None, **kwargs):
            if not self.attached:
                return self._forward(sample, *args, cross_attention_kwargs=cross_attention_kwargs, **kwargs)
            given = dict(cross_attention_kwargs or {})
            call = self._current.get()
            if call is not None and "identities" not in given:
                given = call.rows(sample, self.unet) | given
            if given.keys() & TRAVELLERS:
                self._check_in_place()
            if (routing := getattr(given.get("identities"), "routing", None)) is not None and routing.columns:
                timestep = torch.as_tensor(args[0] if args else kwargs["timestep"])
                given["identities"] = self._at(given["identities"], float(timestep.max()))
            with self._turn:
                self._use(given.get("identities"))
                if self._fused is not None and not torch.is_grad_enabled():
                    text = self._text(args[1] if len(args) > 1 else kwargs["encoder_hidden_states"])
                    given["identities"] = replace(given["identities"], text=text)
                return self._forward(sample, *args, cross_attention_kwargs=given or None, **kwargs)

        return forward

    @torch.compiler.disable
    def _text(self, embeds: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]] | None:
        """Where layers keep the keys and values of a prompt (B, T, D): from step to step they and the weights stay.

        None where that cannot be known: of inference tensors, which do not tell of changes, and in the capture of a
        CUDA graph, whose replays may be for other prompts.
        """
        if embeds.is_inference() or embeds.is_cuda and torch.cuda.is_current_stream_capturing():
            return None
        kind = embeds.device.type
        state = embeds._version, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        if self._prompt is None or self._prompt[0] is not embeds or self._prompt[1] != state:
            self._prompt = embeds, state, {}
        return self._prompt[2]

    @torch.compiler.disable
    def _at(self, identities: IDConditions, timestep: float) -> IDConditions:
        """The identities in a step of the denoising, in the first of which each may have a column."""
        routing = identities.routing.at(1 - timestep / self.timesteps, identities.tokens.shape[1])
        return replace(identities, routing=routing.to(identities.tokens.device))

    def _use(self, identities: IDConditions | None) -> None:
        """Switches on the LoRA for this number of identities, and the other off."""
        chosen = None if identities is None else self._lora_for(identities.tokens.shape[1])
        if self._fused not in (None, chosen):
            raise ConfigError(
                "the LoRA for another number of people is fused into this U-Net's weights: draw these pictures outside"
            )
        if self._fused is not None:  # as a part of the weights, to which peft adds nothing
            return
        for lora, layers in self._layers.items():
            use_lora(layers, lora == chosen, lora)

    def _lora_for(self, people: int) -> str:
        return self.loras[0] if people == 1 else self.loras[-1]

    def _has_lora(self) -> bool:
        return all(lora in getattr(self.unet, "peft_config", {}) for lora in self.loras)

    def _check_in_place(self) -> None:
        if not self.id_attention.in_place(self.unet) or not self._has_lora():
            raise ConfigError(
                "something has since replaced this U-Net's attention processors or removed its LoRA adapters: "
                "detach, and attach again afterwards"
            )
