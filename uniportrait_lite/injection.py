"""Identities into the U-Net calls of pipelines that know nothing of them."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from uniportrait_lite.attention import IDAttention, IDConditions, lora_layers, remove_lora, use_lora
from uniportrait_lite.errors import ConfigError


@dataclass
class _Call:
    """Conditions of two rows, of nobody and of the identities, for calls with any number of rows."""

    conditions: IDConditions
    guided: bool | None
    expanded: dict[tuple[int, bool], IDConditions] = field(default_factory=dict)

    def rows(self, batch: int, unet: UNet2DConditionModel) -> IDConditions:
        """One row for each of the batch; with guidance its first half is unconditional, as diffusers stacks it."""
        guided = guided_by_caller(unet) if self.guided is None else self.guided
        if guided and batch % 2:
            raise ConfigError(
                f"a batch of {batch} rows is no two halves, without and with the prompt: it is not guided"
            )
        if (batch, guided) not in self.expanded:
            nobody = batch // 2 if guided else 0
            index = torch.tensor([0] * nobody + [1] * (batch - nobody), device=self.conditions.tokens.device)
            self.expanded[batch, guided] = self.conditions.rows(index)
        return self.expanded[batch, guided]


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
            guided = getattr(caller, "do_classifier_free_guidance", None)
            if guided is not None:
                return bool(guided)
        frame = frame.f_back
    raise ConfigError(
        "the U-Net is called by no pipeline that says whether it uses guidance: pass using(..., guided=True) if each "
        "batch is unconditional rows and then as many with the prompt, else guided=False"
    )


class Injection:
    """Adds identities to the calls of one U-Net, and switches the LoRA on for just these calls.

    Which identities is a matter of the caller's context (its thread, or its task of asyncio), never of the U-Net.
    The LoRA's switch does belong to the U-Net, so calls from several threads take turns.
    """

    def __init__(self, unet: UNet2DConditionModel, id_attention: IDAttention, lora: str):
        self.unet, self.id_attention, self.lora = unet, id_attention, lora
        self.attached = True
        self._current: ContextVar[_Call | None] = ContextVar("identities", default=None)
        self._turn = threading.RLock()
        self._layers = list(lora_layers(unet, lora).values())
        use_lora(self._layers, False, lora)
        self._former = unet.__dict__.get("forward")  # accelerate's offloading has one here
        self._forward = unet.forward
        self._wrapper = self._wrap()
        unet.forward = self._wrapper

    @contextlib.contextmanager
    def using(self, conditions: IDConditions | None, guided: bool | None = None) -> Iterator[None]:
        """Calls of the U-Net inside it take these conditions (row 0 nobody, row 1 the identities), or none."""
        token = self._current.set(None if conditions is None else _Call(conditions, guided))
        try:
            yield
        finally:
            self._current.reset(token)

    def detach(self) -> None:
        """Gives the U-Net back as it was. A wrapper that was wrapped in turn stays, and only passes calls on."""
        self.attached = False
        if self.unet.__dict__.get("forward") is self._wrapper:
            del self.unet.forward
            if self._former is not None:
                self.unet.forward = self._former
        if self._has_lora():
            remove_lora(self.unet, self.lora)
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
                given["identities"] = call.rows(sample.shape[0], self.unet)
            if "identities" in given:
                self._check_in_place()
            with self._turn:
                use_lora(self._layers, "identities" in given, self.lora)
                return self._forward(sample, *args, cross_attention_kwargs=given or None, **kwargs)

        return forward

    def _has_lora(self) -> bool:
        return self.lora in getattr(self.unet, "peft_config", {})

    def _check_in_place(self) -> None:
        if not self.id_attention.in_place(self.unet) or not self._has_lora():
            raise ConfigError(
                "something has since replaced this U-Net's attention processors or removed its LoRA adapters: "
                "detach, and attach again afterwards"
            )
