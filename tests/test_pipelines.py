"""The sampler of the tiny profile: diffusers' DDPM with less noise, and where it says that from."""

import json
import shutil
import warnings

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline

from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.folders import data_folder
from uniportrait_lite.pipelines import TemperedDDPMScheduler, load_pipeline, untempered

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}
PLAIN = DDPMScheduler(**BETAS, prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing")


def tempered(**own) -> TemperedDDPMScheduler:
    return TemperedDDPMScheduler(**BETAS, prediction_type="v_prediction", **own)


def walk(scheduler, steps: int = 5, seed: int = 0) -> torch.Tensor:
    """From the same noise and predictions to the end."""
    drawn, own = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    sample = torch.randn(2, 8, 4, 4, generator=drawn)
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        predicted = torch.randn(sample.shape, generator=drawn)
        sample = scheduler.step(predicted, timestep, sample, generator=own).prev_sample
    return sample


def test_at_temperature_and_spacing_1_it_is_ddpm():
    assert torch.equal(walk(tempered()), walk(PLAIN))


def test_the_temperature_is_the_share_of_the_noise():
    still, half, whole = (walk(tempered(temperature=share)) for share in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half, (still + whole) / 2)
    assert torch.equal(still, walk(tempered(temperature=0.0), seed=1))  # no noise at all
    assert not torch.equal(half, walk(tempered(temperature=0.5), seed=1))


def test_the_spacing_puts_more_of_the_steps_where_little_noise_is_left():
    scheduler = tempered(spacing=0.6)
    scheduler.set_timesteps(8)
    assert scheduler.timesteps.tolist() == [round(999 * (1 - (i / 8) ** 0.6)) for i in range(8)]
    scheduler.set_timesteps(timesteps=[900, 100])
    assert scheduler.timesteps.tolist() == [900, 100]
    for steps in (1, 50, 999):
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps.tolist()
        assert timesteps[0] == 999 and timesteps == sorted(set(timesteps), reverse=True) and len(timesteps) <= steps
        assert scheduler.num_inference_steps == len(timesteps)
        walk(scheduler, steps)
    with pytest.raises(ValueError, match="cannot be larger"):
        scheduler.set_timesteps(5000)


@pytest.mark.parametrize("own", [{"temperature": 1.5}, {"temperature": -0.1}, {"spacing": 0.0}, {"spacing": 2.0}])
def test_what_cannot_be_is_refused(own):
    with pytest.raises(ConfigError, match="temperature is from 0 to 1 and spacing above 0"):
        tempered(**own)


def test_a_folder_says_how_its_pipeline_is_tempered(tmp_path):
    folder = tmp_path / "sd"
    shutil.copytree(data_folder() / "sd", folder)
    shipped = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    own = load_pipeline(folder).scheduler
    assert isinstance(own, TemperedDDPMScheduler) and own.config.timestep_spacing == "trailing"
    assert (own.config.temperature, own.config.spacing) == (shipped["temperature"], shipped["spacing"])
    plain = StableDiffusionPipeline.from_pretrained(folder).scheduler
    assert type(plain) is DDPMScheduler and torch.equal(plain.betas, own.betas)

    own.save_pretrained(folder / "scheduler")  # under its own name
    assert load_pipeline(folder).scheduler.config.temperature == shipped["temperature"]
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(untempered(shipped)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(load_pipeline(folder).scheduler) is DDPMScheduler
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(WeightsError, match="damaged or incomplete"):
        load_pipeline(folder)
    (folder / "model_index.json").unlink()
    with pytest.raises(WeightsError, match="holds no pipeline"):
        load_pipeline(folder)


def test_a_pipeline_saved_with_it_is_read_by_diffusers(tmp_path):
    load_pipeline(data_folder() / "sd").save_pretrained(tmp_path)
    for read in (load_pipeline, StableDiffusionPipeline.from_pretrained):
        assert isinstance(read(tmp_path).scheduler, TemperedDDPMScheduler)
