"""How a recipe leaves its work: weights in half precision, and what was run to get them."""

import hashlib
import json
import os
import platform
import shutil
from dataclasses import asdict, fields
from pathlib import Path

from uniportrait_lite.errors import WeightsError
from uniportrait_lite.folders import data_folder, profile_settings


def save_half(model, folder: str | Path):
    """Writes a diffusers or transformers model into `folder` as fp16 safetensors, all files or none; keeps `model`."""
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    model.half().save_pretrained(temporary)
    model.to(next(iter(kinds.values())))
    settings = json.loads((temporary / "config.json").read_text())
    settings.pop("_name_or_path", None)  # where the weights lay that it began with
    if "dtype" in settings:  # transformers would compute in half precision, which CPUs and the other parts do not
        settings["dtype"] = "float32"
    write_json(temporary / "config.json", settings)
    folder.mkdir(parents=True, exist_ok=True)
    for file in temporary.iterdir():
        os.replace(file, folder / file.name)
    temporary.rmdir()


def record(folder: str | Path, name: str, config, history: list[dict], metrics: dict, after: str = "") -> dict:
    """Writes `name``after`.recipe.json in `folder` and returns it.

    It holds the command with the settings that differ from the recipe's own (`config`, its dataclass), steps, seconds,
    hardware, curve and metrics, and of a run that went on from weights, under `before`, the runs that made these.
    `after` tells a second pass over the same weights from the first, whose record stays beside it until there is a new
    first pass.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    last = next((line for line in reversed(history)), {"step": 0, "seconds": 0.0})
    every = max(1, len(history) // 60)
    start = getattr(config, "start_from", None)
    report = {
        "recipe": command(name, config),
        "config": asdict(config),
        "steps": last["step"],
        "seconds": last["seconds"],
        "hardware": hardware(),
        "metrics": metrics,
        "curve": history[::every],
        "before": before(Path(start), Path(start) / folder.name, Path(start).parent, name=name)
        if start and not after
        else [],
    }
    write_json(folder / f"{name}{after}.recipe.json", report)
    for past in folder.glob(f"{name}_*.recipe.json") if not after else ():
        past.unlink()
    print(json.dumps(metrics))
    return report


def before(*places: Path, name: str) -> list[dict]:
    """The runs that led to weights, from the record `name` in the first of some folders that has it; latest last.

    Of each: command, steps, seconds, hardware.
    """
    for place in (place for place in places if (place / f"{name}.recipe.json").exists()):
        first, *passes = (
            json.loads(path.read_text())
            for path in [place / f"{name}.recipe.json", *sorted(place.glob(f"{name}_*.recipe.json"))]
        )
        runs = [{key: run[key] for key in ("recipe", "steps", "seconds", "hardware")} for run in (first, *passes)]
        return [*first.get("before", []), *runs]
    return []


def depends(config, *weights: str | Path) -> dict:
    """What a run's result depends on beside the loop's own settings: the recipe's, the drawn world, frozen weights.

    Not on where these lie, so that another machine may go on from a copy: frozen weights count by what is in them, a
    path among the settings by its last two names.
    """
    from uniportrait_lite.toyworld.pretrain.data import world_digest

    length = (
        "out", "folder", "steps", "hours", "cooldown", "checkpoint_every", "evaluate_every", "workers", "compile",
        "graphs",
    )  # fmt: skip
    settings = {
        name: _ending(value) if isinstance(value, str) and "/" in value else value
        for name, value in asdict(config).items()
        if name not in length
    }
    drawn = world_digest(getattr(config, "world", ""))
    return settings | {"world": drawn, **{_ending(path): file_digest(path) for path in weights}}


def _ending(path: str | Path) -> str:
    """The last two names of a path."""
    return "/".join(Path(path).parts[-2:])


def file_digest(*paths: str | Path) -> str:
    """Eight hex digits of the files' contents: what was computed with other weights is never taken for current."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:8]


def command(name: str, config, verb: str = "pretrain") -> str:
    """The command line that runs the recipe or stage `name` with the settings `config` where they are not its own."""
    words = [f"python -m uniportrait_lite {verb} {name}"]
    try:
        own = profile_settings(data_folder("tiny"), name)  # which the command line stands above
    except WeightsError:
        own = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if (value != field.default or field.name in own) and field.name not in ("out", "folder", "run_folder"):
            words.append(f"--{field.name.replace('_', '-')} {str(value).lower()}")
    return " ".join(words)


def write_json(path: Path, value):
    """Writes JSON atomically."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


def hardware() -> str:
    """The processor or accelerator in words, for the record."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{os.cpu_count()} cores of {model}"
