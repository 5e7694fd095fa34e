"""What a frozen recogniser sees: pictures beside pictures, faces beside faces."""

import numpy as np
import pytest
import torch

from uniportrait_lite.folders import data_folder
from uniportrait_lite.toyworld.people import Person
from uniportrait_lite.toyworld.pretrain import seen
from uniportrait_lite.toyworld.pretrain.vae import to_pixels
from uniportrait_lite.toyworld.scenes import portrait

TINY = data_folder("tiny")


def faces() -> torch.Tensor:
    return to_pixels(np.stack([portrait(Person.random(k), seed=0).pixels[28:92, 32:96] for k in range(4)]))


@pytest.mark.parametrize("identity", [False, True])
def test_a_recogniser_sees_the_difference_between_faces_and_passes_its_gradient_on(identity):
    difference, pictures = seen.FeatureDifference(TINY / "recogniser", identity), faces()
    with torch.no_grad():
        assert difference(pictures, pictures).tolist() == [0] * 4
        assert (0 < 3 * difference(pictures, 0.98 * pictures)).all()
        assert (3 * difference(pictures, 0.98 * pictures) < difference(pictures, pictures.roll(1, 0))).all()
    restored = pictures.roll(1, 0).requires_grad_()
    difference.train()(restored, pictures).sum().backward()
    assert restored.grad.abs().sum() > 0 and not difference.recogniser.training
    assert not any(p.requires_grad for p in difference.parameters())


def test_with_identity_another_person_differs_more_than_the_same_a_little_darker():
    pictures = faces()
    by_maps, by_both = (seen.FeatureDifference(TINY / "recogniser", identity) for identity in (False, True))
    with torch.no_grad():
        darker, other = (by_both(pictures, x) - by_maps(pictures, x) for x in (0.9 * pictures, pictures.roll(1, 0)))
    assert (5 * darker < other).all() and other.min() > 0.5


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(TINY / "sd" / "vae", torch_dtype=torch.float32)
    pictures = to_pixels(np.stack([portrait(Person.random(k), seed=0).pixels for k in range(4)]))
    with torch.no_grad():
        return vae.encode(pictures).latent_dist.mean * vae.config.scaling_factor


BOXES = torch.tensor([[0.25, 0.2, 0.75, 0.7]]).repeat(4, 1)


def test_only_what_is_around_the_box_is_seen(latents):
    difference = seen.FaceDifference(TINY / "sd" / "vae", TINY / "recogniser")
    share = torch.ones(4)
    outside, inside = latents.clone(), latents.clone()
    outside[:, :, 12:] = 0
    inside[:, :, 4:9] = 0
    with torch.no_grad():
        assert difference(outside, latents, BOXES, share) == 0 < difference(inside, latents, BOXES, share)
        corner = torch.tensor([[0.9, 0.9, 1.0, 1.0]]).repeat(4, 1)  # what would lie outside is moved in
        assert difference(outside, latents, corner, share) > 0


def test_rows_count_as_what_is_left_of_the_picture_and_the_noisiest_not_at_all(latents):
    difference = seen.FaceDifference(TINY / "sd" / "vae", TINY / "recogniser", most=2)
    wrong = latents.roll(1, 0)

    def found(*share: float) -> float:
        with torch.no_grad():
            return float(difference(wrong, latents, BOXES, torch.tensor(share)))

    assert found(0.2, 0.1, 0.0, 0.25) == 0
    assert found(0.8, 0, 0, 0) == pytest.approx(2 * found(0.4, 0, 0, 0), rel=1e-4)
    assert found(0.8, 0, 0, 0) > 0
    assert found(0.8, 0.8, 0, 0) == found(0.8, 0.8, 0.8, 0.8)  # two are looked at, at most
    nothing = wrong.clone().requires_grad_()
    difference(nothing, latents, BOXES, torch.zeros(4)).backward()
    assert nothing.grad.abs().sum() == 0
