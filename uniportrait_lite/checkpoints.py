"""Our weights on disk: a folder with `config.json` and `model.safetensors` (half precision).

Keys: `id_embedding.*`, `id_attention.{layer}.to_k_id|to_v_id.weight` and `lora.{layer}.down|up`. After the multi-ID
stage also `multi_id.safetensors`: `router.{layer}.*` and the second LoRA, `lora.{layer}.down|up`. It fits no other
single-ID weights than those it was trained on, whose digest it carries.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from uniportrait_lite.attention import IDAttention, routers
from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.id_embedding import IDEmbeddingConfig
from uniportrait_lite.lora import SEVERAL, lora_parameters

CONFIG, MODEL, MULTI = "config.json", "model.safetensors", "multi_id.safetensors"


@dataclass(frozen=True)
class CallDefaults:
    """What a call takes for the settings it does not name: those that these weights do best with.

    `columns`: for how large a share of the denoising each of several people keeps to a column (see `Routing`; the paper
    has none). `widths`: of a picture with one person, two, and so on, in pixels; none: always the pipeline's own.
    """

    steps: int = 20
    guidance: float = 4.0
    id_scale: float = 1.0
    structure_scale: float = 1.0
    columns: float = 0.0
    widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not all(isinstance(width, int) for width in self.widths):
            raise ConfigError(f"widths are whole numbers of pixels, not {self.widths}")
        if not 0 <= self.columns <= 1:
            raise ConfigError(f"columns is a share of the denoising, from 0 to 1, not {self.columns}")
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON has lists


@dataclass(frozen=True)
class UniPortraitConfig:
    """What weights are for: the sizes of the modules, the encoders that were used, and the defaults of a call.

    `encoders` maps `backbone`, `clip` and `faces` to folders, relative to that of the weights.
    """

    id_embedding: IDEmbeddingConfig = IDEmbeddingConfig()
    intrinsic: str = "spatial"
    lora_rank: int = 16
    encoders: Mapping[str, str] = field(
        default_factory=lambda: {"backbone": "../recogniser", "clip": "../clip", "faces": "../face"}
    )
    defaults: CallDefaults = CallDefaults()

    @classmethod
    def from_dict(cls, values: Mapping) -> UniPortraitConfig:
        """The inverse of `dataclasses.asdict`; raises `ConfigError` for unknown names and impossible values."""
        parts = {"id_embedding": IDEmbeddingConfig, "defaults": CallDefaults}
        built = {name: _build(kind, values[name]) for name, kind in parts.items() if name in values}
        return _build(cls, {**values, **built})


def _build(kind: type, values: Mapping):
    if not isinstance(values, Mapping):
        raise ConfigError(f"{kind.__name__} has settings by name, and this is {values!r}")
    defaults = {f.name: f.default for f in fields(kind)}
    for name, value in values.items():
        if name not in defaults:
            raise ConfigError(f"{kind.__name__} has no {name}")
        plain = type(defaults[name])
        if plain in (bool, int, float, str) and type(value) not in ((int, float) if plain is float else (plain,)):
            raise ConfigError(f"{name} of {kind.__name__} is a {plain.__name__}, not {value!r}")
    return kind(**values)


def weights(id_embedding: nn.Module, id_attention: IDAttention, unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Every weight of the single-ID stage under its key on disk: the parameters themselves, not copies."""
    projections = {name: weight for name, weight in id_attention.named_parameters() if ".router." not in name}
    return {
        **{f"id_embedding.{name}": weight for name, weight in id_embedding.named_parameters()},
        **{f"id_attention.{name}": weight for name, weight in projections.items()},
        **{f"lora.{name}": weight for name, weight in lora_parameters(unet).items()},
    }


def multi_weights(id_attention: IDAttention, unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Every weight of the multi-ID stage under its key on disk: the parameters themselves, not copies."""
    return {
        f"router.{layer}.{name}": weight
        for layer, router in routers(id_attention).items()
        for name, weight in router.named_parameters()
    } | {f"lora.{name}": weight for name, weight in lora_parameters(unet, SEVERAL).items()}


def save(folder: str | os.PathLike, config: UniPortraitConfig, tensors: Mapping[str, Tensor]) -> Path:
    """Writes a checkpoint, each file whole or not at all; raises `WeightsError` where it cannot be written.

    Weights of the multi-ID stage that were trained on other ones go: they would be wrong.
    """
    folder = Path(folder).expanduser()
    text = json.dumps(asdict(config), indent=2) + "\n"
    with writing(folder) as temporary:
        save_file(_halves(tensors), temporary / MODEL, metadata={"format": "pt"})
        (temporary / CONFIG).write_text(text)
        if (folder / MULTI).exists() and _trained_on(folder / MULTI) != _digest(temporary / MODEL):
            for stale in (MULTI, "multi_id.recipe.json"):
                (folder / stale).unlink(missing_ok=True)
        for name in (MODEL, CONFIG):
            os.replace(temporary / name, folder / name)
    return folder


def save_multi(folder: str | os.PathLike, tensors: Mapping[str, Tensor], trained_on: str | None = None) -> Path:
    """Writes the weights of the multi-ID stage beside those of the single-ID stage that they were trained on.

    `trained_on` is the `single_digest` of these, taken before the training: `WeightsError` where others lie there now.
    """
    folder = Path(folder).expanduser()
    digest = single_digest(folder)
    if trained_on not in (None, digest):
        raise WeightsError(
            f"the single-ID weights in {folder} have changed since the training began: give another --out"
        )
    with writing(folder) as temporary:
        metadata = {"format": "pt", "single_id": digest}
        save_file(_halves(tensors), temporary / MULTI, metadata=metadata)
        os.replace(temporary / MULTI, folder / MULTI)
    return folder


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder`, to move files from that are whole; `WeightsError` where one cannot write."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing", dir=folder) as temporary:
            yield Path(temporary)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot write weights to {folder} ({error}): choose a folder of yours") from error


def _halves(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in tensors.items()}


def single_digest(folder: str | os.PathLike) -> str:
    """What tells a folder's single-ID weights from others."""
    return _digest(Path(folder).expanduser() / MODEL)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _trained_on(path: Path) -> str | None:
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("single_id")
    except SafetensorError:  # damaged: of no use with any weights
        return None


def load(folder: str | os.PathLike) -> tuple[UniPortraitConfig, dict[str, Tensor]]:
    """Reads a checkpoint: its config, its tensors in float32; raises `WeightsError` if missing or damaged."""
    folder = Path(folder).expanduser()
    for name in (CONFIG, MODEL):
        if not (folder / name).is_file():
            raise WeightsError(
                f"{folder} holds no {name}: give a folder with {CONFIG} and {MODEL} in it, or the published files"
            )
    return read_config(folder / CONFIG), _read(folder / MODEL)


def read_config(path: Path, known: Mapping = types.MappingProxyType({})) -> UniPortraitConfig:
    """The config that a JSON file tells, which need not repeat what is `known`; `WeightsError` if it cannot be read."""
    try:
        told = json.loads(path.read_text())
        told = {k: {**known[k], **v} if isinstance(known.get(k), Mapping) else v for k, v in told.items()}
        return UniPortraitConfig.from_dict({**known, **told})
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} cannot be read ({error}): fetch these weights again") from error


def load_multi(folder: str | os.PathLike) -> dict[str, Tensor] | None:
    """The tensors of the multi-ID stage in float32, None where the folder has none; `WeightsError` if they don't fit.

    They fit no other single-ID weights than those beside which they were trained.
    """
    folder = Path(folder).expanduser()
    if not (folder / MULTI).is_file():
        return None
    tensors = _read(folder / MULTI)
    if _trained_on(folder / MULTI) != _digest(folder / MODEL):
        raise WeightsError(
            f"{folder / MULTI} was trained on another {MODEL} than the one beside it: train the multi-ID stage again, "
            f"or delete {MULTI} to go on with one person a picture"
        )
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return {name: tensor.float() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is cut short or damaged ({error}): fetch it again") from error


@torch.no_grad()
def fill(
    target: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    origin: object = "these weights",
    names: Callable[[str], str] = str,
) -> None:
    """Copies tensors into the weights of the same keys (see `weights`), all or, with a `WeightsError`, none.

    `names` gives the key of a weight among the tensors, where that is another one (see official.py). Strict: the error
    lists the keys that are missing, unexpected or of another shape.
    """
    target = {names(name): weight for name, weight in target.items()}
    problems = {
        "missing": sorted(target.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - target.keys()),
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)}, not {tuple(target[name].shape)}"
            for name in sorted(target.keys() & tensors.keys())
            if tensors[name].shape != target[name].shape
        ],
    }
    found = [f"{len(names)} {what}: {_few(names)}" for what, names in problems.items() if names]
    if found:
        raise WeightsError(
            f"{origin} do not fit this pipeline and config ({'; '.join(found)}): take the pipeline that they were "
            "trained with, or the weights that were trained with it"
        )
    for name, weight in target.items():
        weight.copy_(tensors[name])


def _few(names: list[str], shown: int = 5) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
