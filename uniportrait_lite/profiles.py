"""Profiles: a whole UniPortrait by name.

`load("tiny")` is the toy world's, shipped with the project; `load("sd15")` the published weights on Stable Diffusion
1.5, from the Hub or from folders of yours.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from uniportrait_lite.errors import ConfigError
from uniportrait_lite.folders import data_folder, is_path

if TYPE_CHECKING:
    import torch

    from uniportrait_lite.adapter import UniPortrait

PROFILES = ("tiny", "sd15")


def load(
    profile: str = "tiny",
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    *,
    base: str | os.PathLike | None = None,
    weights: str | os.PathLike | None = None,
    ip_adapter: str | os.PathLike | None = None,
    faces: str | os.PathLike | None = None,
    offload: bool | None = None,
    tiling: bool | None = None,
) -> UniPortrait:
    """The UniPortrait of a profile, "tiny", "sd15" or a folder of yours with one, ready for `identity` and calls.

    Without `device` it takes a CUDA GPU if there is one, else the CPU; without `dtype` float32, as the tiny networks
    gain nothing from less. For "sd15" both, `offload` and `tiling` are chosen from the hardware (hardware.py), and its
    parts may be given: `base`, `weights`, `ip_adapter`, `faces`, each a Hub id or a place of yours (parts.py).
    Raises `ConfigError` for an unknown profile and settings that cannot work, `WeightsError` for missing weights.
    """
    if not is_path(profile) and profile not in PROFILES:
        raise ConfigError(
            f"there is no profile {profile!r}: the profiles are {' and '.join(PROFILES)}, and folders, as ./{profile}"
        )
    parts = {"base": base, "weights": weights, "ip_adapter": ip_adapter, "faces": faces}
    settings = parts | {"offload": offload, "tiling": tiling}
    if profile == "sd15":
        from uniportrait_lite.quiet import no_progress_bars

        with no_progress_bars():
            from uniportrait_lite import sd15
        return sd15.load(parts, device, dtype, offload, tiling)
    if given := [name for name, value in settings.items() if value is not None]:
        raise ConfigError(f'{", ".join(given)}: for load("sd15") alone; {profile} has all its parts in its folder')
    folder = data_folder(profile)
    import torch

    from uniportrait_lite.hardware import find, named_dtype
    from uniportrait_lite.quiet import no_progress_bars

    with no_progress_bars():  # around the imports, too: one advises to install torchvision
        from uniportrait_lite.adapter import UniPortrait
        from uniportrait_lite.pipelines import load_pipeline
    pipe = load_pipeline(folder / "sd", named_dtype(dtype) or torch.float32)
    pipe.to(find(device).device if device else "cuda" if torch.cuda.is_available() else "cpu")
    image = folder / "ip_adapter" / "ip-adapter.safetensors"
    return UniPortrait.attach(pipe, folder / "uniportrait", ip_adapter=image if image.is_file() else None)
