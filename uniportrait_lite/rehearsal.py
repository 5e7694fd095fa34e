"""A rehearsal of `load("sd15")`: all its files, in their published layouts, with random weights, and what it does.

Nothing is downloaded. The pictures are noise; that they come out, in which time and memory, is what is rehearsed.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from uniportrait_lite import checkpoints, official, sd15
from uniportrait_lite.attention import add_routers, attach_id_attention
from uniportrait_lite.backbone import IRConfig, IRResNet
from uniportrait_lite.folders import data_folder, writable_folder
from uniportrait_lite.id_embedding import IDEmbedding, IDEmbeddingConfig
from uniportrait_lite.image_prompt import ImageAdapter
from uniportrait_lite.lora import SEVERAL, SINGLE, add_lora
from uniportrait_lite.parts import BACKBONE, FACEID, IP_ADAPTER, PARTS, ROUTER
from uniportrait_lite.pictures import save_picture
from uniportrait_lite.toyworld.tokenizer import build_tokenizer

PEOPLE = ("ann", "bob", "cleo")
PROMPT = "a portrait of a person, smiling, at the beach"
TEXT_LENGTH = 77  # tokens, as CLIP's text towers read


@dataclass(frozen=True)
class Sizes:
    """The sizes of all networks; those without a default are diffusers' and transformers' names for them."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    backbone: IRConfig
    id_width: int
    id_layers: int
    lora_rank: int

    @property
    def id_embedding(self) -> IDEmbeddingConfig:
        """The ID embedding between these encoders and this U-Net, with heads of the published width."""
        structure = sum(self.backbone.channels[:3]) + self.vision["hidden_size"]
        heads, out = self.id_width // official.HEAD_DIM, self.unet["cross_attention_dim"]
        return IDEmbeddingConfig(
            self.backbone.channels[3], structure, self.id_width, self.id_layers, heads, official.HEAD_DIM, out_dim=out
        )


FULL = Sizes(
    unet={"sample_size": 64, "cross_attention_dim": 768},
    vae={"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512},
    text={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    vision={
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
        "projection_dim": 1024, "patch_size": 14, "hidden_act": "gelu",
    },
    backbone=IRConfig.ir101(),
    id_width=768,
    id_layers=6,
    lora_rank=128,
)  # fmt: skip
SMALL = Sizes(
    unet={
        "sample_size": 16, "cross_attention_dim": 64, "block_out_channels": (32, 32, 64, 64), "layers_per_block": 1,
    },
    vae={"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "sample_size": 128},
    text={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    vision={
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
        "projection_dim": 16, "patch_size": 14, "hidden_act": "gelu",
    },
    backbone=IRConfig((8, 16, 24, 32), (1, 1, 2, 1), stem_stride=1, embedding=32),
    id_width=64,
    id_layers=2,
    lora_rank=4,
)  # fmt: skip


# The files


def write(folder: Path, sizes: Sizes, seed: int = 0) -> dict[str, Path]:
    """Writes every part in its published layout, half precision; the places for `load("sd15", **places)`."""
    places = {name: folder / name for name in PARTS}
    _write_base(places["base"], sizes, seed)
    files = layouts(
        sizes.unet, sizes.id_embedding, sizes.lora_rank, sizes.vision["projection_dim"], backbone=sizes.backbone
    )
    for number, (file, shapes) in enumerate(files.items(), start=1):
        target = places["ip_adapter"] / "models" if file == IP_ADAPTER else places["weights"]
        dtype = torch.float32 if file == BACKBONE else torch.float16
        official.save(target / f"{file}.bin", random_weights(shapes, seed + number, dtype), str)
    vision = CLIPVisionConfig(image_size=224, **sizes.vision)
    clip = _filled(lambda: CLIPVisionModelWithProjection(vision), seed + 5)
    clip.save_pretrained(places["ip_adapter"] / "models" / "image_encoder")
    shutil.copytree(data_folder("tiny") / "face", places["faces"], dirs_exist_ok=True)
    return places


def layouts(
    unet_config: Mapping[str, Any],
    embedding: IDEmbeddingConfig,
    rank: int,
    clip_width: int,
    image_tokens: int = 4,
    backbone: IRConfig | None = None,
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Keys and shapes of the published files for networks of these sizes, by the file's name; the backbone's: IR-101.

    `clip_width`: of CLIP's projected image embedding.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config)
        names, image_adapter = official.names(unet), ImageAdapter(unet, clip_width, image_tokens)
        id_attention = attach_id_attention(unet)
        add_lora(unet, rank, SINGLE)
        add_lora(unet, rank, SEVERAL)
        add_routers(id_attention, embedding.queries)
        network = IRResNet(backbone or IRConfig.ir101())
        id_embedding = IDEmbedding(embedding)
    files = {
        FACEID: (checkpoints.weights(id_embedding, id_attention, unet), names),
        ROUTER: (checkpoints.multi_weights(id_attention, unet), names),
        IP_ADAPTER: (image_adapter.state_dict(), names),
        BACKBONE: (network.state_dict(), official.backbone_names(network.config)),
    }
    return {
        file: {names(key): tuple(weight.shape) for key, weight in weights.items()}
        for file, (weights, names) in files.items()
    }


def random_weights(
    shapes: Mapping[str, Sequence[int]], seed: int, dtype: torch.dtype = torch.float16
) -> dict[str, Tensor]:
    """Weights that keep activations of any depth finite in half precision, by their keys and shapes.

    Matrices have the deviation 1 / sqrt(inputs), LoRA a tenth of it, norms are plain, and the last norm of each
    block of the face backbone, which nothing normalises after, is small.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, shape in shapes.items():
        if len(shape) > 1:
            scale = (0.1 if "lora" in key else 1.0) / math.sqrt(math.prod(shape[1:]))
            weights[key] = torch.randn(shape, generator=generator).mul_(scale).to(dtype)
        elif key.endswith("num_batches_tracked"):
            weights[key] = torch.zeros(shape, dtype=torch.int64)
        else:
            ones = 0.2 if key.endswith("res_layer.5.weight") else float(key.endswith(("weight", "running_var")))
            weights[key] = torch.full(shape, ones, dtype=dtype)
    return weights


def _filled(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network with random weights in half precision; it is built without weights, which would take minutes."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            network = build()
    finally:
        torch.set_default_dtype(usual)
    network = network.to_empty(device="cpu").eval()
    network.load_state_dict(random_weights({key: x.shape for key, x in network.named_parameters()}, seed), strict=False)
    for buffer in network.buffers():  # positions 0, 1, 2, ... are all that CLIP has of them
        buffer.copy_(torch.arange(buffer.numel()).view(buffer.shape))
    return network


def _write_base(folder: Path, sizes: Sizes, seed: int) -> None:
    tokenizer = build_tokenizer(folder / "tokenizer")
    tokenizer.model_max_length = TEXT_LENGTH
    text = CLIPTextConfig(
        vocab_size=49408,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=sizes.text["hidden_size"],
        hidden_act="quick_gelu",
        **sizes.text,
    )
    levels = len(sizes.vae["block_out_channels"])
    pipe = StableDiffusionPipeline(
        unet=_filled(lambda: UNet2DConditionModel(**sizes.unet), seed),
        vae=_filled(
            lambda: AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels,
                latent_channels=4,
                **sizes.vae,
            ),
            seed + 6,
        ),
        text_encoder=_filled(lambda: CLIPTextModel(text), seed + 7),
        tokenizer=tokenizer,
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, variant="fp16")
    file = folder / "text_encoder" / "model.fp16.safetensors"
    published = {f"text_model.{name}": weight for name, weight in load_file(file).items()}
    save_file(published, file, metadata={"format": "pt"})  # under the keys that the published one has


# The run


def run(
    out: str | Path,
    small: bool = False,
    steps: int | None = None,
    rounds: int = 3,
    device: str | None = None,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Writes the files into OUT, loads them, and draws one, two and three people; prints and returns what it took.

    `steps`: of a picture, those of the weights without it. Each picture is drawn `rounds` times, with the LoRA fused,
    and the median taken. Then the same pipeline without UniPortrait. Files that lie in OUT already are written again.
    """
    out = writable_folder(out, "give another --out")
    began = time.perf_counter()
    places = write(out, SMALL if small else FULL)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"written: {size / 1e9:.2f} GB in {time.perf_counter() - began:.0f} s, {out}")
    began = time.perf_counter()
    up = sd15.load(places, device, dtype)
    found: dict[str, Any] = {"load": time.perf_counter() - began}
    print(f"loaded in {found['load']:.1f} s")
    up.pipe.set_progress_bar_config(disable=True)
    began = time.perf_counter()
    people = [up.identity(data_folder().parent / "faces" / f"{name}.png") for name in PEOPLE]
    print(f"{len(people)} faces found and embedded in {time.perf_counter() - began:.1f} s")
    steps = steps or up.config.defaults.steps
    for count in range(1, len(people) + 1):
        with up.fused(count):
            took, memory, picture = _timed(lambda n=count: up(PROMPT, people[:n], seed=0, steps=steps), rounds)
        found[f"people_{count}"], found[f"memory_{count}"] = took, memory
        path = save_picture(picture, out / "pictures" / f"{count}.png")
        print(f"{count} in a picture: {took:.2f} s, {_shown(memory)}, {path}")
    guidance, pipe = up.config.defaults.guidance, up.pipe
    up.detach()
    bare, memory, _ = _timed(lambda: pipe(PROMPT, num_inference_steps=steps, guidance_scale=guidance), rounds)
    found["bare"], found["memory_bare"] = bare, memory
    print(f"the bare pipeline: {bare:.2f} s, {_shown(memory)}")
    shares = ", ".join(f"{found[f'people_{n}'] / bare:.3f}" for n in range(1, len(people) + 1))
    print(f"times the bare pipeline's: {shares}; {steps} steps, {size_of(pipe)} pixels, guidance {guidance:g}")
    return found


def size_of(pipe: StableDiffusionPipeline) -> int:
    """The side of the pipeline's own pictures, in pixels."""
    return pipe.unet.config.sample_size * pipe.vae_scale_factor


def _timed(draw: Callable[[], Any], rounds: int) -> tuple[float, float | None, Any]:
    """Median seconds, peak memory on a CUDA device in GB (None elsewhere), and the picture."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        picture = draw().images[0]  # PIL: it has been waited for
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), torch.cuda.max_memory_allocated() / 1e9 if cuda else None, picture


def _shown(memory: float | None) -> str:
    return "memory not measured" if memory is None else f"{memory:.2f} GB at most"
