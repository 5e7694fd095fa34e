"""A compiled U-Net draws what the plain one draws, where the platform has a compiler."""

import shutil

import pytest
import torch
from method_parts import crop, small_pipe, write_weights

from uniportrait_lite import UniPortrait

SIZE = {"height": 32, "width": 48, "steps": 3, "seed": 0, "output_type": "latent"}


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
def test_one_and_two_people_through_a_compiled_unet(tmp_path):
    write_weights(tmp_path, several=True)
    pipe = small_pipe(tmp_path / "tokenizer")
    up = UniPortrait.attach(pipe, tmp_path / "uniportrait")
    people = [up.identity_of_crops([crop(k)]) for k in range(2)]
    asked = {"one": (people[:1], {}), "two, columns at first": (people, {"columns": 0.5})}
    plain = {name: up("two people", who, **SIZE, **more).images for name, (who, more) in asked.items()}
    up.detach()
    pipe.unet = torch.compile(pipe.unet)
    up = UniPortrait.attach(pipe, tmp_path / "uniportrait")
    for name, (who, more) in asked.items():
        compiled = up("two people", who, **SIZE, **more).images
        torch.testing.assert_close(compiled, plain[name], rtol=1e-3, atol=1e-3, msg=lambda text, n=name: f"{n}: {text}")
    torch.compiler.reset()
