"""The operations protocol: what identities cost the U-Net of Stable Diffusion 1.5, counted and not timed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from uniportrait_lite.attention import IDAttention, IDConditions, add_routers, attach_id_attention
from uniportrait_lite.evaluation.report import check_folder, markdown, write_json, write_text
from uniportrait_lite.id_routing import Routing
from uniportrait_lite.lora import SEVERAL, SINGLE, add_lora, lora_layers, use_lora

SIZE, WIDTH, TEXT, TOKENS, RANK = 64, 768, 77, 16, 128  # latents of 512 pixels, and the published weights' sizes
PEOPLE = (1, 2, 3)
GOALS = {1: 1.03, 2: 1.08, 3: 1.08}  # times the bare U-Net, LoRA fused
STEPS = 20  # of a picture, for what is done once

_DESCRIPTION = """\
Counts the floating-point operations (torch.utils.flop_counter: products and sums of matrix products, convolutions and
attention) of one call of Stable Diffusion 1.5's U-Net for a picture of 512 pixels with guidance, with one, two and
three identities, beside the U-Net alone. Nothing is computed, and no weights are needed: all tensors are on the meta
device. Writes operations.md and operations.json into --out, and prints the table.
"""
_EPILOG = """\
example:
  python -m uniportrait_lite evaluate operations
"""


def evaluate() -> dict[str, Any]:
    """Operations of a U-Net call: `bare`; with identities, LoRA `fused` or beside it (`unfused`), by their number.

    `once`: the projections of ID tokens to keys and values, and of routers' keys, for a picture.
    """
    with torch.device("meta"), torch.no_grad():
        unet = UNet2DConditionModel(sample_size=SIZE, cross_attention_dim=WIDTH).eval()
        bare = _count(lambda: _call(unet))
        id_attention = attach_id_attention(unet)
        add_routers(id_attention, TOKENS)
        for adapter in (SINGLE, SEVERAL):
            add_lora(unet, RANK, adapter)
        found = {"bare": bare, "fused": {}, "unfused": {}, "once": {}}
        for people in PEOPLE:
            adapter = SINGLE if people == 1 else SEVERAL
            for other in (SINGLE, SEVERAL):
                use_lora(lora_layers(unet, other).values(), other == adapter, other)
            found["once"][people] = _count(lambda n=people: _conditions(id_attention, n))
            conditions = _conditions(id_attention, people)
            found["unfused"][people] = _count(lambda c=conditions: _call(unet, identities=c))
            unet.fuse_lora(adapter_names=[adapter])
            found["fused"][people] = _count(lambda c=conditions: _call(unet, identities=c))
            unet.unfuse_lora()
    return found


def _call(unet: UNet2DConditionModel, **conditions: Any) -> None:
    """Two rows, as guidance has them: without the prompt, and with it."""
    unet(torch.empty(2, 4, SIZE, SIZE), torch.tensor(9), torch.empty(2, TEXT, WIDTH), cross_attention_kwargs=conditions)


def _conditions(id_attention: IDAttention, people: int) -> IDConditions:
    routing = Routing((SIZE, SIZE)) if people > 1 else None
    return IDConditions(torch.empty(2, people, TOKENS, WIDTH), 0.7, routing=routing).projected(id_attention)


def _count(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def operations_markdown(found: dict[str, Any]) -> str:
    """The table, shares beside their goals."""
    bare, rows = found["bare"], [("the U-Net alone", f"{found['bare'] / 1e9:,.1f}", "1", "", "1", "")]
    for people in PEOPLE:
        fused, unfused, once = (found[kind][people] for kind in ("fused", "unfused", "once"))
        rows.append(
            (
                f"{people} {'identity' if people == 1 else 'identities'}",
                f"{fused / 1e9:,.1f}",
                f"{fused / bare:.4f}",
                f"at most {GOALS[people]:g}",
                f"{unfused / bare:.4f}",
                f"{once / bare / STEPS:.5f}",
            )
        )
    head = ("a call with", "GFLOP, LoRA fused", "times the U-Net", "goal", "LoRA beside it", f"once, of {STEPS} calls")
    return f"{markdown(head, rows)}\n"


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m uniportrait_lite evaluate operations`."""
    parser = argparse.ArgumentParser(
        prog="python -m uniportrait_lite evaluate operations",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", default="outputs/evaluation", metavar="FOLDER", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    out = check_folder(args.out)
    found = evaluate()
    write_json(found | {"goals": GOALS}, out / "operations.json")
    write_text(operations_markdown(found), out / "operations.md")
    print(operations_markdown(found))
    print(f"written to {out}: operations.md, operations.json")
