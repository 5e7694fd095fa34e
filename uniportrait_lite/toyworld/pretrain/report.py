"""data/README.md, written from what every recipe recorded beside its weights."""

import argparse
import json
import os
from pathlib import Path

HEAD = """\
# What lies here

Every file was made by this project from nothing but its own drawings: no outside data, no outside weights. All of it
is under the project's licence (Apache-2.0). `python -m uniportrait_lite.toyworld.pretrain.report` writes this page from
the records that the recipes leave beside their weights (`*.recipe.json`: settings, curve, metrics).

* `tiny/sd/`: a Stable Diffusion pipeline as diffusers loads it: `AutoencoderKL`, text encoder and tokenizer, U-Net,
  scheduler
* `tiny/clip/`: CLIP with both towers and projections
* `tiny/face/`: `detector.onnx` (SCRFD's outputs) and `judge.onnx` (the recogniser that scores and conditions nothing),
  as insightface's `FaceAnalysis` loads them; give `prepare` a `det_size` of (256, 256)
* `tiny/recogniser/`: the IR-ResNet whose feature maps condition pictures
* `tiny/reader/`: reads attributes off pictures, for evaluation alone
* `tiny/uniportrait/`: ID embedding, ID keys and values, LoRA, the single-ID stage's result, in `model.safetensors`;
  routers and a second LoRA, the multi-ID stage's, in `multi_id.safetensors`
* `tiny/controlnet/`: ControlNets, `edges` (OpenCV's Canny) and `pose` (figures of landmarks), as
  `ControlNetModel.from_pretrained` loads them
* `tiny/ip_adapter/`: an IP-Adapter for image prompts, laid out as the published ones are
* `tiny/lora/`: a style LoRA, of `looks/glass.py`, as `load_lora_weights` reads it
* `tiny/profile.yaml`: what the trainings of this stack set otherwise than by default
* `looks/`: the toy world in other looks, for that LoRA and for a base model of one's own
* `faces/`: references of four held-out people: `python -m uniportrait_lite.toyworld.references`
* `prompts/`: evaluation prompts, written by hand

## How the weights were made
"""


def main(argv=None) -> None:
    """Writes README.md into the data folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data", help="the folder of tiny/, faces/ and prompts/")
    folder = Path(parser.parse_args(argv).data)
    write(folder, HEAD)


def write(folder: Path, head: str) -> None:
    """Writes README.md into a folder of weights."""
    temporary = folder / "README.md.tmp"
    temporary.write_text(page(folder, head))
    os.replace(temporary, folder / "README.md")


def page(folder: Path, head: str) -> str:
    """What README.md says: the head, how each of the weights was made, and the files."""
    lines = ["| command | steps | seconds | on | measured |", "| --- | --- | --- | --- | --- |"]
    for path in sorted(folder.rglob("*.recipe.json")):
        report = json.loads(path.read_text())
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in flat(report["metrics"]).items())
        for run in (*report.get("before", []), report):
            cells = (f"`{run['recipe']}`", f"{run['steps']:,}", f"{run['seconds']:,.0f}", run["hardware"])
            lines.append(f"| {' | '.join((*cells, metrics if run is report else 'see the next'))} |")
    lines += ["", "## Files", "", "| file | kB |", "| --- | --- |"]
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("README.md") and path.parent.name != "__pycache__":
            lines.append(f"| `{path.relative_to(folder).as_posix()}` | {path.stat().st_size / 1000:,.1f} |")
    return head + "\n" + "\n".join(lines) + "\n"


def flat(metrics: dict, prefix: str = "") -> dict:
    """Nested metrics under one level of names."""
    found = {}
    for name, value in metrics.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


if __name__ == "__main__":
    main()
