"""What a frozen recogniser sees: pictures beside pictures."""

import numpy as np
import torch

from uniportrait_lite.folders import data_folder
from uniportrait_lite.toyworld.people import Person
from uniportrait_lite.toyworld.pretrain import seen
from uniportrait_lite.toyworld.pretrain.vae import to_pixels
from uniportrait_lite.toyworld.scenes import portrait

TINY = data_folder("tiny")


def faces() -> torch.Tensor:
    return to_pixels(np.stack([portrait(Person.random(k), seed=0).pixels[28:92, 32:96] for k in range(4)]))


def test_a_recogniser_sees_the_difference_between_faces_and_passes_its_gradient_on():
    difference, pictures = seen.FeatureDifference(TINY / "recogniser"), faces()
    with torch.no_grad():
        assert difference(pictures, pictures).tolist() == [0] * 4
        assert (0 < 3 * difference(pictures, 0.98 * pictures)).all()
        assert (3 * difference(pictures, 0.98 * pictures) < difference(pictures, pictures.roll(1, 0))).all()
    restored = pictures.roll(1, 0).requires_grad_()
    difference.train()(restored, pictures).sum().backward()
    assert restored.grad.abs().sum() > 0 and not difference.recogniser.training
    assert not any(p.requires_grad for p in difference.parameters())
