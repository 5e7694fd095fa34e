"""Where networks of full size run, in which precision, and how much of them is there at a time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from uniportrait_lite.errors import ConfigError

SMALL = 12e9  # bytes: with less memory than that, networks take turns on the accelerator
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Hardware:
    """A device: its `name` in words, its memory in bytes, and whether it multiplies bfloat16 itself."""

    device: torch.device
    name: str
    memory: float
    bfloat16: bool = True


@dataclass(frozen=True)
class Plan:
    """How a pipeline runs. `offload`: one network at a time is on the device, the others rest in main memory.

    `tiling`: the VAE decodes large pictures in tiles.
    """

    hardware: Hardware
    dtype: torch.dtype
    offload: bool
    tiling: bool

    @property
    def device(self) -> torch.device:
        """Where networks compute."""
        return self.hardware.device

    def __str__(self) -> str:
        said = [str(self.dtype).removeprefix("torch.")]
        said.append("one network at a time on it" if self.offload else "all networks on it")
        said += ["the VAE in tiles"] * self.tiling
        return f"{self.hardware.name}, {self.hardware.memory / 1e9:.1f} GB: {', '.join(said)}"

    def apply(self, pipe: Any) -> None:
        """Brings a diffusers pipeline, whose networks have the dtype already, to the device."""
        if self.offload:
            pipe.enable_model_cpu_offload(device=self.device)
        else:
            pipe.to(self.device)
        if self.tiling:
            pipe.vae.enable_tiling()


def plan(
    hardware: Hardware, dtype: torch.dtype | str | None = None, offload: bool | None = None, tiling: bool | None = None
) -> Plan:
    """The plan for a device, but for what is given.

    float16 on CUDA and MPS, as the published weights are; on a CPU bfloat16 where it multiplies that itself or memory
    is short, else float32. Under 12 GB a CUDA device holds one network at a time, and all decode in tiles.
    Raises `ConfigError` for what cannot work.
    """
    small, kind = hardware.memory < SMALL, hardware.device.type
    dtype = named_dtype(dtype)
    if dtype is None:
        dtype = torch.float16
        if kind == "cpu":
            dtype = torch.bfloat16 if hardware.bfloat16 or small else torch.float32
    if dtype not in DTYPES.values():
        raise ConfigError(f"a dtype is torch.{', torch.'.join(DTYPES)}, not {dtype!r}")
    if offload and kind == "cpu":
        raise ConfigError("offload takes turns on an accelerator, and this is the CPU: leave it out")
    if offload is None:
        offload = small and kind == "cuda"  # the memory of an Apple chip is the main memory
    return Plan(hardware, dtype, offload, small if tiling is None else tiling)


def named_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype by its name, anything else as it is; `ConfigError` for another name."""
    if not isinstance(dtype, str):
        return dtype
    if dtype not in DTYPES:
        raise ConfigError(f"a dtype is {', '.join(DTYPES)}, not {dtype!r}")
    return DTYPES[dtype]


def find(device: str | torch.device | None = None) -> Hardware:
    """The device that is given, else a CUDA GPU, an Apple chip, or the CPU; `ConfigError` if it is not there."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # what torch raises depends on how it was built
        line = (str(error) or "it is not there").splitlines()[0]
        raise ConfigError(f"the device {device} cannot be used ({line}): leave it out, or give another") from error
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return Hardware(device, f"CUDA GPU {properties.name}", properties.total_memory)
    if device.type == "mps":
        return Hardware(device, "Apple GPU", torch.mps.recommended_max_memory())
    return Hardware(device, f"CPU, {torch.get_num_threads()} threads", _main_memory(), _multiplies_bfloat16())


def _main_memory() -> float:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return float("inf")  # Windows has no sysconf


def _multiplies_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
