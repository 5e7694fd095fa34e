"""What the `sd15` profile is made of: its parts, where they come from, and under which licence.

Each part is an argument of `load("sd15", ...)`: a repository of the Hugging Face Hub ("owner/name"), or a folder or a
file of yours; for `faces` one of insightface's packages by name. Nothing here needs torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

FACEID, ROUTER, BACKBONE, IP_ADAPTER = (
    "uniportrait-faceid_sd15", "uniportrait-router_sd15", "glint360k_curricular_face_r101_backbone", "ip-adapter_sd15",
)  # fmt: skip
NON_COMMERCIAL = "non-commercial research only"
OURS = "detector.onnx"  # this project's own face models; insightface's packages name theirs otherwise


@dataclass(frozen=True)
class Need:
    """One large file: the names that it may have, the published one first, and its size there in MB (1e6 bytes).

    `optional`: a folder of yours may do without it.
    """

    names: tuple[str, ...]
    megabytes: int
    optional: bool = False

    def within(self, folder: Path) -> str | None:
        """The name that it has in a folder, None if it is not there."""
        return next((name for name in self.names if (folder / name).is_file()), None)


@dataclass(frozen=True)
class Part:
    """One argument of `load("sd15", ...)`: `default` is where it is published, `small` what goes with its files."""

    name: str
    what: str
    default: str
    licence: str
    needs: tuple[Need, ...]
    small: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Where it is published, in words."""
        return "insightface's releases" if self.name == "faces" else f"{self.default} on the Hugging Face Hub"


def _diffusers(folder: str, stem: str = "diffusion_pytorch_model", pickled: str | None = None) -> tuple[str, ...]:
    names = (f"{stem}.fp16.safetensors", f"{stem}.safetensors", f"{pickled or stem}.bin")
    return tuple(f"{folder}/{name}" for name in names)


def _published(stem: str) -> tuple[str, ...]:
    return f"{stem}.bin", f"{stem}.safetensors"


PARTS = {
    part.name: part
    for part in (
        Part(
            "base",
            "Stable Diffusion 1.5, in float16",
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "CreativeML Open RAIL-M",
            (
                Need(_diffusers("unet"), 1719),
                Need(_diffusers("text_encoder", "model", "pytorch_model"), 246),
                Need(_diffusers("vae"), 167),
                Need(_diffusers("safety_checker", "model", "pytorch_model"), 608, optional=True),
            ),
            (
                "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "unet/config.json",
                "vae/config.json", "safety_checker/config.json", "feature_extractor/preprocessor_config.json",
                "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json",
                "tokenizer/special_tokens_map.json",
            ),
        ),
        Part(
            "weights",
            "UniPortrait: ID embedding, ID attention, routers, face backbone",
            "Junjie96/UniPortrait",
            "Apache-2.0",
            (Need(_published(FACEID), 224), Need(_published(ROUTER), 226, True), Need(_published(BACKBONE), 261)),
        ),
        Part(
            "ip_adapter",
            "IP-Adapter, and the image tower of CLIP ViT-H that both read pictures with",
            "h94/IP-Adapter",
            "Apache-2.0, CLIP ViT-H MIT",
            (
                Need(tuple(f"{at}{IP_ADAPTER}{end}" for at in ("models/", "") for end in (".safetensors", ".bin")), 45),
                Need(
                    tuple(
                        f"{at}image_encoder/{file}"
                        for at in ("models/", "")
                        for file in ("model.safetensors", "pytorch_model.bin")
                    ),
                    2528,
                ),
            ),
            ("models/image_encoder/config.json", "image_encoder/config.json"),
        ),
        Part(
            "faces",
            "insightface's models, which find and align faces",
            "buffalo_l",
            NON_COMMERCIAL,
            (Need(("det_10g.onnx",), 289),),  # the size of the whole package, which cannot be had in parts
        ),
    )
}  # fmt: skip
SETTINGS = Part(  # of a base that is one file: all of the base but its weights
    "settings", "settings and tokenizer of Stable Diffusion 1.5", PARTS["base"].default, PARTS["base"].licence,
    (Need(("model_index.json",), 0), Need(("tokenizer/vocab.json",), 1)), PARTS["base"].small,
)  # fmt: skip


def is_ours(weights: str | os.PathLike) -> bool:
    """Whether weights are a folder in this package's own format (checkpoints.py)."""
    return (Path(weights).expanduser() / "model.safetensors").is_file()


def package_name(faces: str | os.PathLike) -> str | None:
    """The name of an insightface package where that is what is meant, as "buffalo_l"; None for a folder."""
    named = isinstance(faces, str) and faces and not {os.sep, os.altsep} & {*faces} and faces not in (".", "..", "~")
    return faces if named and not Path(faces).is_dir() else None
