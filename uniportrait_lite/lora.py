"""The LoRA of a U-Net's attention, as peft adapters: one for each stage of the paper."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from diffusers import UNet2DConditionModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn

from uniportrait_lite.errors import ConfigError

SINGLE, SEVERAL = "single_id", "multi_id"  # the adapters of the two stages, for one person and for several
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def add_lora(unet: UNet2DConditionModel, rank: int, adapter_name: str = SINGLE) -> None:
    """Adds a peft adapter on q, k, v and out of every self- and cross-attention, at first without effect.

    The paper has rank 128. Leaves the adapter trainable and active, and other adapters and parameters as they were.
    """
    if rank < 1:
        raise ConfigError(f"the LoRA's rank is at least 1, not {rank}")
    trainable = {parameter: parameter.requires_grad for parameter in unet.parameters()}
    active = {module: list(module.active_adapters) for module in unet.modules() if isinstance(module, LoraLayer)}
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are meant
        unet.add_adapter(config, adapter_name=adapter_name)
    for layer, others in active.items():  # peft has switched them off
        layer.set_adapter([*others, adapter_name])
    for parameter, was in trainable.items():  # and frozen all that is not the new adapter
        parameter.requires_grad_(was)


def remove_lora(unet: UNet2DConditionModel, adapter_name: str = SINGLE) -> None:
    """Deletes the adapter; without another one left the layers are plain again."""
    use_lora(lora_layers(unet, adapter_name).values(), False, adapter_name)  # else peft switches another one on
    unet.delete_adapters(adapter_name)
    if not getattr(unet, "peft_config", None):  # diffusers drops it with the last adapter
        unet.unload_lora()


def lora_layers(unet: UNet2DConditionModel, adapter_name: str = SINGLE) -> dict[str, LoraLayer]:
    """The layers that hold the adapter, by name."""
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, LoraLayer) and adapter_name in module.lora_A
    }


def lora_parameters(unet: UNet2DConditionModel, adapter_name: str = SINGLE) -> dict[str, nn.Parameter]:
    """The adapter's weights: `{layer}.down` (rank, in) and `{layer}.up` (out, rank), the parameters themselves."""
    weights = {}
    for name, layer in lora_layers(unet, adapter_name).items():
        weights[f"{name}.down"] = layer.lora_A[adapter_name].weight
        weights[f"{name}.up"] = layer.lora_B[adapter_name].weight
    return weights


def use_lora(layers: Iterable[LoraLayer], on: bool, adapter_name: str = SINGLE) -> None:
    """Switches the adapter of `lora_layers` on or off and leaves the user's other adapters as they are."""
    for layer in layers:
        active = list(layer.active_adapters)
        if on != (adapter_name in active):
            others = [name for name in active if name != adapter_name]
            layer.set_adapter(others + [adapter_name] * on, inference_mode=True)
