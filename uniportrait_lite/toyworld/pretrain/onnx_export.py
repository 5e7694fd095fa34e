"""Networks to ONNX files, for onnxruntime and insightface."""

import os
import warnings
from pathlib import Path

import torch
from torch import nn


def export_onnx(network: nn.Module, example: torch.Tensor, path: str | Path, output: str = "embedding"):
    """Writes `network`, float32 and in evaluation mode, to `path`, whole or not at all; the batch size stays free.

    `example`: an input (1,C,H,W), whose C, H and W become the file's. Input and output are named "picture" and
    `output`. The input comes normalised: insightface looks for a subtraction among the first nodes, finds none, and
    therefore feeds (x - 127.5) / 127.5.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with warnings.catch_warnings():  # the newer exporter would need onnxscript, and folds no batch norms
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network.float().cpu().eval(), (example,), str(temporary), input_names=["picture"], output_names=[output],
            dynamic_axes={"picture": {0: "batch"}, output: {0: "batch"}}, dynamo=False, opset_version=17,
        )  # fmt: skip
    os.replace(temporary, path)
