"""Compares this package with outputs of the published implementation: `python tests/parity.py FOLDER`.

FOLDER holds `cases.json` (sizes, keys, the salt) and `outputs.safetensors` (one tensor a case), as
`tests/data/official` does. They were computed with random weights that anyone can make again: each tensor, of a
network or of an input, has a full name (`cases.json` has the prefixes); the CRC-32 of "salt:full name" seeds NumPy's
PCG64, which draws standard normal numbers of its shape; and the name says what becomes of them, see `Rule`.

Here these weights are written as files in the published layout, read by official.py and attached by
`UniPortrait.attach`, and what comes out of that computes every case. Prints a line a case: its name, the largest
absolute error, and that in standard deviations of the expected output. Exits 1 if one of these is above 1e-4.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from huggingface_hub import constants
from method_parts import small_pipe
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionConfig

from uniportrait_lite import UniPortrait, official
from uniportrait_lite.attention import IDConditions
from uniportrait_lite.id_embedding import IDEmbeddingConfig
from uniportrait_lite.id_routing import Routing
from uniportrait_lite.published import BACKBONE, FACEID, IP_ADAPTER, ROUTER
from uniportrait_lite.rehearsal import layouts
from uniportrait_lite.style_alignment import StyleAlignment

TOLERANCE = 1e-4  # of an output's standard deviation


class Rule:
    """The tensors of a salt, by their full names."""

    def __init__(self, salt: str):
        self.salt = salt

    def generator(self, name: str) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(zlib.crc32(f"{self.salt}:{name}".encode())))

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        x = torch.from_numpy(np.asarray(self.generator(name).standard_normal(tuple(shape)), dtype=np.float32))
        if name.startswith("input."):
            return x
        if name.endswith("num_batches_tracked"):
            return torch.zeros(shape, dtype=torch.int64)
        if name.endswith("running_var"):
            return (0.1 * x).exp()
        if len(shape) > 1:
            return x / x[0].numel() ** 0.5
        x = 0.1 * x + float(name.endswith("weight"))
        return 0.2 * x if name.endswith("res_layer.5.weight") else x  # the last norm of each of the backbone's blocks


class Case(NamedTuple):
    """An output of the published implementation, and ours."""

    name: str
    expected: Tensor
    actual: Tensor

    @property
    def error(self) -> float:
        return float((self.actual.float() - self.expected).abs().max())

    @property
    def relative(self) -> float:
        return self.error / float(self.expected.std())


def embedding(sizes: dict) -> IDEmbeddingConfig:
    """The ID embedding that the cases describe."""
    return IDEmbeddingConfig(
        sizes["intrinsic_id_embedding_dim"], sizes["structure_embedding_dim"], sizes["dim"], sizes["depth"],
        sizes["heads"], sizes["dim_head"], sizes["num_tokens"], sizes["ff_mult"], sizes["output_dim"],
    )  # fmt: skip


class Replay:
    """The cases of a folder; the weights' files are written to `work`. Each kind of case has a pipeline of its own."""

    OPTIONS = {"text_only", "ids", "ip_scale", "left_right_mask", "style_aligned", "shift", "adain", "batch"}
    FILES = {"resampler": (FACEID,), "embed": (FACEID, BACKBONE), "unet": (FACEID, ROUTER, IP_ADAPTER)}

    def __init__(self, folder: Path, work: Path, dtype: torch.dtype = torch.float32):
        self.cases = json.loads((folder / "cases.json").read_text())
        self.outputs = load_file(folder / "outputs.safetensors")
        self.rule, self.work, self.dtype = Rule(self.cases["salt"]), work, dtype
        self.attached: dict[str, UniPortrait] = {}
        if (alpha := self.cases["unet"].get("lora_network_alpha")) is not None:
            raise ValueError(f"lora_network_alpha is {alpha}: the published files have none, and no place for one")

    def run(self, kind: str = "", **settings) -> Iterator[Case]:
        """All cases, or those of one kind; the U-Net's with `settings`."""
        for name in self.outputs:
            if name.startswith(kind):
                yield self.case(name, **settings if name.startswith("unet/") else {})

    @torch.no_grad()
    def case(self, name: str, **settings) -> Case:
        """One of them; `settings` are those of `unet`."""
        expected, (kind, rest) = self.outputs[name], name.split("/", 1)
        return Case(name, expected, getattr(self, kind)(rest, tuple(expected.shape), **settings))

    # Files, and what is loaded from them

    def up(self, kind: str) -> UniPortrait:
        """The pipeline for a kind of cases, UniPortrait attached to it from files."""
        if kind not in self.attached:
            sizes, _ = self.embedding(kind)
            unet = UNet2DConditionModel(**self.unet_config(sizes)).eval()
            prefix = self.cases["unet"]["unet_weights_prefix"]
            unet.load_state_dict({key: self.rule(prefix + key, x.shape) for key, x in unet.state_dict().items()})
            for part in unet.children():  # the whole of it would warn of parts that there are none of
                part.to(self.dtype)
            folder = self.write(kind)
            pipe = small_pipe(folder / "tokenizer")
            pipe.register_modules(unet=unet)
            ip_adapter = folder if IP_ADAPTER in self.FILES[kind] else None
            self.attached[kind] = UniPortrait.attach(pipe, folder, ip_adapter=ip_adapter)
        return self.attached[kind]

    def embedding(self, kind: str) -> tuple[dict, str]:
        """Sizes of the ID embedding for a kind of cases, and the prefix of its weights."""
        if kind == "resampler":
            return self.cases[kind]["config"], self.cases[kind]["weights_prefix"]
        sizes, unet = self.cases["embed"]["resampler_config"], self.cases["unet"]
        if kind == "unet":  # takes ID tokens as they come
            width = unet["config"]["cross_attention_dim"]
            sizes = {**sizes, "output_dim": width, "num_tokens": unet["num_id_tokens"]}
        return sizes, self.cases["embed"]["resampler_weights_prefix"]

    def unet_config(self, sizes: dict) -> dict:
        """The cases' U-Net, reading tokens as wide as the ID embedding makes them."""
        return {**self.cases["unet"]["config"], "cross_attention_dim": sizes["output_dim"]}

    def write(self, kind: str) -> Path:
        """The files for a kind of cases, in a folder."""
        folder, (sizes, embedding_prefix) = self.work / kind, self.embedding(kind)
        prefixes = {kind.split()[0]: prefix for kind, prefix in self.cases["unet"]["file_prefixes"].items()}
        prefixes = {FACEID: prefixes["faceid"], ROUTER: prefixes["router"], IP_ADAPTER: prefixes["ip-adapter"]}
        prefixes[BACKBONE] = self.cases["ir101"]["weights_prefix"]
        layouts = self.layouts(sizes)
        for file in self.FILES[kind]:
            tensors = {}
            for key, shape in layouts[file].items():
                group, _, rest = key.partition(".")
                name = embedding_prefix + rest if group == "faceid_proj" else prefixes[file] + key
                tensors[key] = self.rule(name, shape)
            official.save(folder / f"{file}.bin", tensors, str)
        heads = {"id_embedding": {"heads": sizes["heads"], "head_dim": sizes["dim_head"]}}
        (folder / official.SETTINGS).write_text(json.dumps(heads))
        if kind == "embed":
            self.write_clip(folder / "image_encoder")
        return folder

    def write_clip(self, folder: Path) -> None:
        """The CLIP image tower, as transformers reads it."""
        case = self.cases["embed"]
        CLIPVisionConfig(**case["clip_config"]).save_pretrained(folder)
        shapes = {key: shape for key, shape in case["clip_state_keys"].items() if not key.endswith("position_ids")}
        tensors = {key: self.rule(case["clip_weights_prefix"] + key, shape) for key, shape in shapes.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def layouts(self, sizes: dict) -> dict[str, dict]:
        """Keys and shapes of the files."""
        unet, clip = self.cases["unet"], self.cases["embed"]["clip_config"]
        width, tokens = clip["projection_dim"], unet["num_ip_tokens"]
        return layouts(self.unet_config(sizes), embedding(sizes), unet["lora_rank"], width, tokens)

    # Kinds of cases: what follows the kind in a case's name, and the shape of its output -> our output

    def ir101(self, case: str, shape: tuple[int, ...]) -> Tensor:
        """The face backbone at full size: its embedding, and its stages."""
        backbone, faces = (
            self.up("embed").features.backbone,
            0.5 * self.rule("input.ir101", (1, 3, 112, 112)).to(self.dtype),
        )
        if case == "embedding":
            return backbone(faces)
        stage = backbone.features(faces)[int(case[len("stage")]) - 1]
        return F.interpolate(stage, size=shape[-2:], mode="bilinear", align_corners=False)

    def resampler(self, case: str, shape: tuple[int, ...]) -> Tensor:
        """The ID embedding at full size: features -> ID tokens."""
        inputs = []
        for named in self.cases["resampler"]["inputs"].values():
            name, sizes = named.split()
            inputs.append(self.rule(name, tuple(json.loads(f"[{sizes[1:-1]}]"))).to(self.dtype))
        module = self.up("resampler").id_embedding.to(self.dtype)  # a call of the adapter would place it so
        return module(*inputs, float(_options(case)["structure_scale"]))

    def embed(self, case: str, shape: tuple[int, ...]) -> Tensor:
        """From crops to ID tokens, of an identity or of nobody."""
        if case.startswith("clip_pixel_values"):
            return F.adaptive_avg_pool2d(self._clip_pixels(self._crop(0)), shape[-2:])
        case, whom = case.rsplit("/", 1)
        options = _options(case)
        crops = [self._crop(number) for number in range(int(options["refs"]))]
        up = self.up("embed")
        identity = None if whom == "uncond" else up.identity_of_crops(crops)
        return up.tokens(identity, float(options["structure_scale"]))

    def _crop(self, number: int) -> Image.Image:
        pixels = self.rule.generator(f"input.face{number}").integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR)

    def _clip_pixels(self, crop: Image.Image) -> Tensor:
        """What CLIP is given of a crop."""
        given, up = [], self.up("embed")
        hook = up.features.clip_vision.register_forward_pre_hook(
            lambda _, __, kwargs: given.append(kwargs["pixel_values"]), with_kwargs=True
        )
        up.identity_of_crops([crop])
        hook.remove()
        return given[0]

    def unet(
        self, case: str, shape: tuple[int, ...], cached: bool = False, fused: bool = False, compiled: str = ""
    ) -> Tensor:
        """What the U-Net predicts: with keys and values `cached` for the call, with the LoRA `fused`, or `compiled` by
        a backend of torch.compile.

        The case's name says how many `ids` (0 for `text_only`), `ip_scale`, `left_right_mask`, whether the style is
        shared (`style_aligned`, `shift`, `adain`: in each half of the batch the first picture is the style).
        """
        up, options, (batch, _, *size) = self.up("unet"), _options(case), shape
        if unknown := options.keys() - self.OPTIONS:
            raise ValueError(f"unet/{case}: {unknown} is not known here")
        count, config = int(options.get("ids", 0)), self.cases["unet"]["config"]
        latents = self._input("latents" if batch == 2 else f"latents{batch}", batch, config["in_channels"], *size)
        conditions, followers = {}, None
        if "style_aligned" in options:
            style = StyleAlignment.to_first(batch, shift=float(options.get("shift", 0)), adain="adain" in options)
            conditions["style"], followers = style, style.followers
        if "ip_scale" in options:
            tokens = self._given("ip", batch, self.cases["unet"]["num_ip_tokens"])
            conditions["image_prompt"] = up.image_adapter.prompt(tokens, float(options["ip_scale"]), followers)
        if count:
            tokens = self._given("ids", batch, 4, self.cases["unet"]["num_id_tokens"])[:, :count]
            masks = None
            if "left_right_mask" in options:
                masks = torch.zeros(1, count, *size)
                masks[:, 0, :, : size[1] // 2] = masks[:, 1, :, size[1] // 2 :] = 1
            routing = Routing(tuple(size), masks) if count > 1 else None
            identities = IDConditions(tokens, 0.5 if count == 4 else 0.7, followers, routing)
            conditions["identities"] = identities.projected(up.id_attention) if cached else identities
        text, timestep = self._given("text", batch, 12), torch.tensor(self.cases["unet"]["timestep"])
        unet = up.unet
        if compiled:
            torch.compiler.reset()  # nothing of another case is in the way, and only this one is counted
            torch._dynamo.utils.counters.clear()
            unet = torch.compile(unet, backend=compiled)
        with up.fused(count) if fused and count else contextlib.nullcontext():
            return unet(latents, timestep, text, cross_attention_kwargs=conditions).sample

    def _given(self, name: str, batch: int, *sizes: int) -> Tensor:
        """Tokens as wide as text, two rows that are repeated to the batch."""
        rows = self._input(name, 2, *sizes, self.cases["unet"]["config"]["cross_attention_dim"])
        return rows.repeat_interleave(batch // 2, dim=0)

    def _input(self, name: str, *sizes: int) -> Tensor:
        return self.rule(f"input.unet.{name}", sizes).to(self.dtype)


def _options(case: str) -> dict[str, str]:
    """`a=1,b` -> {"a": "1", "b": ""}."""
    return {name: value for name, _, value in (part.partition("=") for part in case.split(","))}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns what it exits with."""
    parser = argparse.ArgumentParser(description="Compares this package with outputs of the published implementation.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds cases.json and outputs.safetensors")
    parser.add_argument("--compile", action="store_true", help="the U-Net's cases through torch.compile (minutes)")
    given, found = parser.parse_args(arguments), []
    with tempfile.TemporaryDirectory() as work:
        constants.HF_ASSETS_CACHE = work  # nothing of it stays
        print(f"{'case':64} {'largest error':>13} {'relative':>9}")
        for case in Replay(given.folder, Path(work)).run(compiled="inductor" if given.compile else ""):
            print(f"{case.name:64} {case.error:13.2e} {case.relative:9.2e}")
            found.append(case.relative)
    if not found:
        parser.error(f"{given.folder} has no case")
    worst = float(np.max(found))  # NaN where there is one
    print(f"the worst is {worst:.2e} of its output's standard deviation; {TOLERANCE} is allowed")
    return int(not worst <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
