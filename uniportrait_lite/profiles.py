"""Profiles: a whole UniPortrait by name. `load("tiny")` is the toy world's, shipped with the project."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.folders import data_folder, is_path

if TYPE_CHECKING:
    import torch

    from uniportrait_lite.adapter import UniPortrait

PROFILES = ("tiny", "sd15")


def load(
    profile: str = "tiny", device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> UniPortrait:
    """The UniPortrait of a profile, "tiny" or a folder of yours with one, ready for `identity` and calls.

    Without `device` it takes a CUDA GPU if there is one, else the CPU; without `dtype` float32, as the tiny networks
    gain nothing from less. Raises `ConfigError` for an unknown profile, `WeightsError` for missing weights.
    """
    if not is_path(profile) and profile not in PROFILES:
        raise ConfigError(
            f"there is no profile {profile!r}: the profiles are {' and '.join(PROFILES)}, and folders, as ./{profile}"
        )
    if profile == "sd15":
        raise ConfigError("sd15 cannot be loaded by name yet: attach weights to a pipeline with UniPortrait.attach")
    folder = data_folder(profile)
    if not (folder / "sd" / "model_index.json").is_file():
        raise WeightsError(f"{folder / 'sd'} holds no pipeline (model_index.json): fetch or train the tiny stack again")

    import torch

    from uniportrait_lite.quiet import no_progress_bars

    try:
        with no_progress_bars():
            from diffusers import StableDiffusionPipeline

            pipe = StableDiffusionPipeline.from_pretrained(folder / "sd", dtype=dtype or torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{folder / 'sd'} is damaged or incomplete ({error}): fetch it again") from error
    from uniportrait_lite.adapter import UniPortrait

    pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pipe.set_progress_bar_config(disable=True)  # a picture takes a second or two
    return UniPortrait.attach(pipe, folder / "uniportrait")
