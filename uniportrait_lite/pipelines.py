"""The text-to-image pipeline of a profile's folder, with the sampler that its networks do best with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import DDPMScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config

from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.quiet import no_progress_bars

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

OWN = ("temperature", "spacing")  # what the configuration of a `TemperedDDPMScheduler` has beside diffusers' own


class TemperedDDPMScheduler(DDPMScheduler):
    """diffusers' DDPM, in every step less noise than its due, and steps that become smaller towards the end.

    `temperature` is the share of the new noise (its deviation) that a step adds: below 1 pictures keep closer to what
    is likely, more alike and less varied. Of n steps of T timesteps step i is at (T-1) (1 - (i/n)^spacing): below 1
    more of them are where little noise is left; many of them may fall together, and are made once. With both 1 it is
    DDPM, with diffusers' "trailing" timesteps and the small fixed variance, unclipped, whatever a configuration says of
    these. Raises `ConfigError` for values that cannot be.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        steps_offset: int = 0,
        temperature: float = 1.0,
        spacing: float = 1.0,
    ):
        if not 0 <= temperature <= 1 or not 0 < spacing <= 1:
            raise ConfigError(
                f"temperature is from 0 to 1 and spacing above 0 and at most 1, not {temperature} and {spacing}"
            )
        super().__init__(
            num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, clip_sample=False,
            prediction_type=prediction_type, timestep_spacing="trailing", steps_offset=steps_offset,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )  # fmt: skip

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """As diffusers', for a number of steps with this scheduler's spacing."""
        steps, last = num_inference_steps, self.config.num_train_timesteps - 1
        spaced = timesteps is None and self.config.spacing != 1 and 0 < steps <= last  # else diffusers, or its errors
        if spaced:
            found = np.round(last * (1 - (np.arange(steps) / steps) ** self.config.spacing)).astype(int)
            num_inference_steps, timesteps = None, np.unique(found)[::-1].tolist()
        super().set_timesteps(num_inference_steps, device, timesteps)
        if spaced:
            self.num_inference_steps = len(self.timesteps)

    def _get_variance(self, *args, **kwargs) -> torch.Tensor:
        return self.config.temperature**2 * super()._get_variance(*args, **kwargs)


def untempered(config: Mapping[str, object]) -> dict[str, object]:
    """A scheduler's configuration as others of diffusers know it, to make one of them `from_config`."""
    return {name: value for name, value in config.items() if name not in OWN}


# SchedulerMixin has to be a name of this module: diffusers looks here for it, to load a pipeline saved with ours.
def _scheduler(folder: Path) -> SchedulerMixin | None:
    """The tempered one, where the configuration says how; None: what diffusers reads."""
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    tempered = any(name in config for name in OWN)
    return TemperedDDPMScheduler.from_pretrained(folder / "scheduler") if tempered else None


def load_pipeline(folder: str | Path, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """The pipeline of a folder as diffusers reads it, DDPM tempered as the scheduler's configuration there says.

    diffusers alone takes such a folder as well, and DDPM as it is. Raises `WeightsError` where something is missing.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise WeightsError(f"{folder} holds no pipeline (model_index.json): fetch or train the tiny stack again")
    try:
        with no_progress_bars():  # around the import, too: it advises to install torchvision
            from diffusers import StableDiffusionPipeline

            own = {"scheduler": scheduler} if (scheduler := _scheduler(folder)) else {}
            pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype, **own)
    except ConfigError:  # of the scheduler, which says what is wrong
        raise
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{folder} is damaged or incomplete ({error}): fetch it again") from error
    pipe.set_progress_bar_config(disable=True)  # a picture takes a second or two
    return pipe
