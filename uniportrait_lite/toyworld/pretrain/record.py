"""How a recipe leaves its work: weights in half precision, and what was run to get them."""

import json
import os
import platform
import shutil
from pathlib import Path


def save_half(model, folder: str | Path):
    """Writes a diffusers or transformers model into `folder` as fp16 safetensors, all files or none; keeps `model`."""
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    model.half().save_pretrained(temporary)
    model.to(next(iter(kinds.values())))
    settings = json.loads((temporary / "config.json").read_text())
    if "dtype" in settings:  # transformers would compute in half precision, which CPUs and the other parts do not
        write_json(temporary / "config.json", settings | {"dtype": "float32"})
    folder.mkdir(parents=True, exist_ok=True)
    for file in temporary.iterdir():
        os.replace(file, folder / file.name)
    temporary.rmdir()


def record(
    folder: str | Path, name: str, config: dict, history: list[dict], metrics: dict, command: str | None = None
) -> dict:
    """Writes `name`.recipe.json in `folder`: settings, steps, seconds, hardware, curve and metrics. Returns it.

    `command` is what follows "pretrain" on the command line, where it is not the name alone.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    last = next((line for line in reversed(history)), {"step": 0, "seconds": 0.0})
    every = max(1, len(history) // 60)
    report = {
        "recipe": f"python -m uniportrait_lite pretrain {command or name}",
        "config": config,
        "steps": last["step"],
        "seconds": last["seconds"],
        "hardware": hardware(),
        "metrics": metrics,
        "curve": history[::every],
    }
    write_json(folder / f"{name}.recipe.json", report)
    print(json.dumps(metrics))
    return report


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
