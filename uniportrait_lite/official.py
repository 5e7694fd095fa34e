"""The published weights for Stable Diffusion 1.5, and how their keys and sizes are ours.

| file | what it holds | in its own keys |
| --- | --- | --- |
| `uniportrait-faceid_sd15` | the ID embedding; ID keys and values, LoRA | `faceid_proj`, `faceid_adapter` |
| `uniportrait-router_sd15` | routers, a second LoRA | `faceid_adapter` |
| `glint360k_curricular_face_r101_backbone` | the face backbone, an IR-101 | |
| `ip-adapter_sd15` | image tokens; their keys and values | `image_proj`, `ip_adapter` |

Both adapters have the attention layers numbered, self- and cross-attention alike: down, up, middle. `names` and
`backbone_names` translate our keys (checkpoints.py) to theirs; `checkpoints.fill` with them copies a file into our
modules, strictly, and `save` writes one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from uniportrait_lite import checkpoints, published
from uniportrait_lite.backbone import IRConfig, IRResNet
from uniportrait_lite.checkpoints import CallDefaults, UniPortraitConfig
from uniportrait_lite.errors import WeightsError
from uniportrait_lite.image_prompt import ImageAdapter
from uniportrait_lite.published import BACKBONE, FACEID, IP_ADAPTER, ROUTER

SETTINGS = "uniportrait_sd15.json"  # may lie beside the files: settings that no tensor tells, as our config.json's
HEAD_DIM = 64  # of the published ID embedding
_BLOCKS = ("down_blocks", "up_blocks", "mid_block")
_KEYS = [  # ours, with a layer's number in place of its name, and theirs
    (r"^id_embedding\.queries", r"faceid_proj.latents"),
    (r"^id_embedding\.intrinsic_mlp", r"faceid_proj.proj_id"),
    (r"^id_embedding\.structure_mlp", r"faceid_proj.proj_clip"),
    (r"^id_embedding\.project", r"faceid_proj.proj_out"),
    (r"^id_embedding\.norm", r"faceid_proj.norm_out"),
    (r"^id_embedding\.layers\.(\d+)\.intrinsic", r"faceid_proj.layers.\1.0"),
    (r"^id_embedding\.layers\.(\d+)\.structure", r"faceid_proj.layers.\1.1"),
    (r"^id_embedding\.layers\.(\d+)\.feed_forward", r"faceid_proj.layers.\1.2"),
    (r"\.norm_features\.", r".norm1."),
    (r"\.norm_queries\.", r".norm2."),
    (r"^id_attention\.(\d+)\.to_([kv])_id", r"faceid_adapter.\1.to_\2_faceid"),
    (r"^lora\.(\d+)\.(to_[a-z]+)(?:\.0)?\.(down|up)", r"faceid_adapter.\1.\2_lora.\3.weight"),
    (r"^router\.(\d+)\.theta", r"faceid_adapter.\1.to_q_router"),
    (r"^router\.(\d+)\.phi", r"faceid_adapter.\1.to_k_router"),
    (r"^router\.(\d+)\.aggregate", r"faceid_adapter.\1.aggr_router"),
    (r"^layers\.(\d+)\.to_([kv])", r"ip_adapter.\1.to_\2_ip"),
    (r"^projection\.image_embeds", r"image_proj.proj"),
    (r"^projection\.norm", r"image_proj.norm"),
]


def attention_layers(unet: UNet2DConditionModel) -> list[str]:
    """The U-Net's attention layers in the order in which the published files number them, from 0."""
    layers = [path.removesuffix(".processor") for path in unet.attn_processors]
    return sorted(layers, key=lambda layer: _BLOCKS.index(layer.split(".")[0]))


def names(unet: UNet2DConditionModel) -> Callable[[str], str]:
    """Our keys, of `checkpoints.weights`, `multi_weights` or an `ImageAdapter` for this U-Net -> the published keys."""
    numbers = {layer: str(number) for number, layer in enumerate(attention_layers(unet))}
    layer = re.compile(rf"({'|'.join(_BLOCKS)})[./].*?attn[12]")

    def theirs(key: str) -> str:
        key = layer.sub(lambda match: numbers[match[0].replace("/", ".")], key)
        for ours, published_key in _KEYS:
            key = re.sub(ours, published_key, key)
        return key

    return theirs


def backbone_names(config: IRConfig) -> Callable[[str], str]:
    """The keys of an `IRResNet` -> those of the published backbone, which numbers the blocks of all stages through."""
    first = [0, *accumulate(config.blocks)]
    parts = {"stem": "input_layer", "head": "output_layer", "residual": "res_layer", "shortcut": "shortcut_layer"}

    def theirs(key: str) -> str:
        key = re.sub(r"^stages\.(\d)\.(\d+)", lambda match: f"body.{first[int(match[1])] + int(match[2])}", key)
        return ".".join(parts.get(part, part) for part in key.split("."))

    return theirs


def save(path: str | os.PathLike, tensors: Mapping[str, Tensor], names: Callable[[str], str]) -> Path:
    """Writes weights of ours as a published file, `.bin` or `.safetensors`, whole or not at all.

    `names` translates their keys. Tensors keep their dtype; the published ones are float16, the backbone's float32.
    """
    path = Path(path).expanduser()
    published.write(path, {names(key): tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
    return path


def load(place: str | os.PathLike) -> tuple[UniPortraitConfig, dict[str, Tensor], dict[str, Tensor] | None]:
    """The config, the single-ID and the multi-ID weights (None without a router file), under their published keys.

    `place`: a folder with the files in it, or the faceid file, beside which the router file has the same name with
    `router` for `faceid`. Sizes and the LoRA's rank are read off the tensors. `uniportrait_sd15.json` in the folder may
    give settings that no tensor tells, in the form of our config.json. Raises `WeightsError`.
    """
    path = published.file_of(place, FACEID)
    single = published.read(path, FACEID)
    config = _config(path, single)
    router = published.inside(path.parent, path.stem.replace("faceid", "router"))
    if router is None or router == path:
        return config, single, None
    multi = published.read(router, ROUTER)
    if _rank(multi) != config.lora_rank:
        raise WeightsError(
            f"{router} has a LoRA of rank {_rank(multi)}, and {path} one of rank {config.lora_rank}: they do not "
            "belong together, fetch both again"
        )
    return config, single, multi


def load_ip_adapter(place: str | os.PathLike, unet: UNet2DConditionModel) -> ImageAdapter:
    """IP-Adapter's weights for a U-Net, from its file or a folder that holds it; raises `WeightsError`."""
    path = published.file_of(place, IP_ADAPTER)
    tensors = published.read(path, IP_ADAPTER)
    width = unet.config.cross_attention_dim
    outputs, embed_dim = _shape(tensors, "image_proj.proj.weight", 4 * width, 1024)
    adapter = ImageAdapter(unet, embed_dim, max(1, outputs // width))
    checkpoints.fill(adapter.state_dict(), tensors, path, names(unet))
    return adapter.eval().requires_grad_(False)


def load_backbone(place: str | os.PathLike) -> IRResNet:
    """The face backbone from its file or a folder that holds it: float32, in evaluation mode; raises `WeightsError`."""
    path = published.file_of(place, BACKBONE)
    tensors = published.read(path, BACKBONE)
    config = _backbone_config(tensors)
    with torch.device("meta"):  # random weights would take as long as reading the file
        network = IRResNet(config)
    network.to_empty(device="cpu")
    checkpoints.fill(network.state_dict(), tensors, path, backbone_names(config))
    return network.eval()


# Sizes. What is missing or has other dimensions counts as published here, and `fill` lists it.


def _shape(tensors: Mapping[str, Tensor], key: str, *default: int) -> tuple[int, ...]:
    shape = tuple(tensors[key].shape) if key in tensors else default
    return shape if len(shape) == len(default) and all(shape) else default


def _rank(tensors: Mapping[str, Tensor]) -> int:
    return next((len(tensor) for key, tensor in tensors.items() if key.endswith("to_q_lora.down.weight")), 128)


def _config(path: Path, faceid: Mapping[str, Tensor]) -> UniPortraitConfig:
    def shape(key: str, *default: int) -> tuple[int, ...]:
        return _shape(faceid, f"faceid_proj.{key}", *default)

    _, queries, width = shape("latents", 1, 16, 768)
    inner, _ = shape("layers.0.0.to_q.weight", 768, 768)
    layers = [int(match[1]) for key in faceid if (match := re.match(r"faceid_proj\.layers\.(\d+)\.", key))]
    sizes = {
        "intrinsic_dim": shape("proj_id.0.weight", 1024, 512)[1],
        "structure_dim": shape("proj_clip.0.weight", 3456, 1728)[1],
        "width": width,
        "layers": 1 + max(layers, default=5),
        "heads": max(1, inner // HEAD_DIM),
        "head_dim": min(inner, HEAD_DIM),
        "queries": queries,
        "ffn_multiple": max(1, shape("layers.0.2.1.weight", 3072, 768)[0] // width),
        "out_dim": shape("proj_out.weight", 768, 768)[0],
    }
    backbone = published.inside(path.parent, BACKBONE) or Path(f"{BACKBONE}.bin")
    config = UniPortraitConfig(
        lora_rank=_rank(faceid),
        encoders={"backbone": backbone.name, "clip": "image_encoder", "faces": "buffalo_l"},
        defaults=CallDefaults(steps=20, guidance=7.5, id_scale=0.7, structure_scale=0.1),
    )
    known = {**asdict(config), "id_embedding": sizes}
    settings = path.with_name(SETTINGS)
    return checkpoints.read_config(settings, known) if settings.is_file() else UniPortraitConfig.from_dict(known)


def _backbone_config(tensors: Mapping[str, Tensor]) -> IRConfig:
    """Four stages of any number of blocks; one begins where the width changes, or with the first block."""
    widths: list[tuple[int, int]] = []
    while (key := f"body.{len(widths)}.res_layer.1.weight") in tensors:
        outputs, inputs, _, _ = _shape(tensors, key, 0, 0, 3, 3)
        widths.append((inputs, outputs))
    starts = [number for number, (inputs, outputs) in enumerate(widths) if number == 0 or inputs != outputs]
    if len(starts) != 4:
        return IRConfig.ir101()
    blocks = [end - start for start, end in zip(starts, [*starts[1:], len(widths)], strict=True)]
    embedding, _ = _shape(tensors, "output_layer.3.weight", 512, 25088)
    return IRConfig(tuple(widths[start][1] for start in starts), tuple(blocks), stem_stride=1, embedding=embedding)
