"""The tiny CLIP: text and vision towers with projections, trained contrastively on scenes and their captions.

The text encoder of the tiny Stable Diffusion starts from the text tower; the vision tower sees the face crops. So half
of the pictures are cut close around the face, as such a crop is.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from uniportrait_lite.loop import LoopConfig, train
from uniportrait_lite.toyworld.pretrain.data import Scenes, load_scenes
from uniportrait_lite.toyworld.pretrain.record import depends, record, save_half
from uniportrait_lite.toyworld.tokenizer import build_tokenizer

MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP's, which every CLIPImageProcessor defaults to
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class CLIPRecipe:
    out: str = "runs/clip"
    folder: str = "data/tiny"  # receives clip/ and sd/tokenizer/
    world: str = ""  # the file of another world than the toy world, see worlds.py
    scenes: int = 20_000
    batch: int = 96
    steps: int | None = 1000
    hours: float | None = None
    lr: float = 1e-3
    muon_lr: float | None = 0.02
    ema: float = 0.998
    text_width: int = 128
    text_layers: int = 3
    vision_width: int = 96
    vision_layers: int = 4
    projection: int = 128
    precision: str = "bf16"
    workers: int | None = None  # processes that make batches ahead; none: on CUDA what cores there are to spare
    seed: int = 1


def build(config: CLIPRecipe, tokenizer):
    """An untrained CLIPModel for pictures of 224 pixels in patches of 14."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(config.seed)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.text_width,
        "intermediate_size": 4 * config.text_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.text_width // 32,
        "max_position_embeddings": tokenizer.model_max_length,
        "projection_dim": config.projection,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": config.vision_width,
        "intermediate_size": 4 * config.vision_width,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.vision_width // 32,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": config.projection,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=config.projection))


class Contrast(nn.Module):
    """Pixels and tokens -> the matrix of similarities (B,B), pictures down, captions across."""

    def __init__(self, clip):
        super().__init__()
        self.clip = clip

    def forward(self, pixels, tokens):
        out = self.clip(input_ids=tokens, pixel_values=pixels)
        return out.logits_per_image.float()


def clip_pixels(images: list[np.ndarray] | np.ndarray) -> torch.Tensor:
    """uint8 pictures (h,w,3) of any sizes -> CLIP's normalised input (B,3,224,224)."""
    resized = [
        F.interpolate(
            torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255,
            (224, 224),
            mode="bilinear",
            antialias=True,
        )
        for image in images
    ]
    pixels = torch.cat(resized)
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def face_window(scenes: Scenes, index: int, rng: np.random.Generator) -> np.ndarray:
    """A square around a face of scene `index`, somewhat larger or smaller and off centre at random."""
    x0, y0, x1, y1 = scenes.boxes[index][rng.integers(scenes.spec.faces)]
    side = max(x1 - x0, y1 - y0) * rng.uniform(1.0, 1.6)
    x, y = (x0 + x1) / 2 + rng.uniform(-0.1, 0.1) * side, (y0 + y1) / 2 + rng.uniform(-0.1, 0.1) * side
    picture = scenes.images([index])[0]
    half = side / 2
    left, top = int(max(0, x - half)), int(max(0, y - half))
    return picture[top : int(y + half), left : int(x + half)]


def run(**overrides) -> dict:
    """Trains, writes the towers and the tokenizer, returns the metrics."""
    from transformers import AutoTokenizer

    config = CLIPRecipe(**overrides)
    folder = Path(config.folder)
    build_tokenizer(folder / "sd" / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "sd" / "tokenizer")
    scenes = load_scenes("portraits", config.scenes, config.world)
    model = Contrast(build(config, tokenizer))

    def batch(step, generator):
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        indices = rng.choice(len(scenes), config.batch, replace=False)
        close = rng.random(config.batch) < 0.5
        images = [
            face_window(scenes, i, rng) if c else scenes.images([i])[0] for i, c in zip(indices, close, strict=True)
        ]
        texts = [
            scenes.caption(i, int(rng.integers(2**31)), "full" if c else None)
            for i, c in zip(indices, close, strict=True)
        ]
        return clip_pixels(images), tokenise(tokenizer, texts)

    def loss(module, data):
        logits = module(*data)
        labels = torch.arange(len(logits), device=logits.device)
        value = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.mT, labels)) / 2
        return {"loss": value, "top1": (logits.argmax(1) == labels).float().mean()}

    loop = LoopConfig(
        out=config.out, steps=config.steps, hours=config.hours, lr=config.lr, muon_lr=config.muon_lr, ema=config.ema,
        precision=config.precision, seed=config.seed, workers=config.workers,
    )  # fmt: skip
    history = train(
        loop, model, batch, loss, no_muon=lambda name: "embedding" in name or "projection" in name,
        depends_on=depends(config),
    )  # fmt: skip
    metrics = retrieval(model, tokenizer, load_scenes("unseen", 1000, config.world))
    export(model.clip, tokenizer, folder)
    return record(folder / "clip", "clip", config, history, metrics)


def tokenise(tokenizer, texts: list[str]) -> torch.Tensor:
    """Captions -> token ids (B, 48), padded as Stable Diffusion's pipeline pads them."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


@torch.no_grad()
def retrieval(model: Contrast, tokenizer, scenes: Scenes, count: int = 100) -> dict:
    """How often the right one of `count` full captions of unseen people's pictures is nearest, and the other way."""
    model = model.float().cpu().eval()
    logits = model(
        clip_pixels(scenes.images(range(count))),
        tokenise(tokenizer, [scenes.caption(i, i, "full") for i in range(count)]),
    )
    labels = torch.arange(count)
    return {
        f"image_to_text_top1_of_{count}": round(float((logits.argmax(1) == labels).float().mean()), 3),
        f"text_to_image_top1_of_{count}": round(float((logits.argmax(0) == labels).float().mean()), 3),
    }


def export(clip, tokenizer, folder: Path):
    """Writes clip/: both towers, tokenizer, image processor."""
    from transformers import CLIPImageProcessor

    save_half(clip, folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}).save_pretrained(
        folder / "clip"
    )
