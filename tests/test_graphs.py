"""CUDA graphs: what one graph may serve, and, where there is a CUDA device, that training by graphs is training."""

import pytest
import torch
from torch import nn

from uniportrait_lite.graphs import on_each, shape, tensors, wanted
from uniportrait_lite.loop import LoopConfig, train
from uniportrait_lite.training.data import Batch


def batch(size: int = 2, **more) -> Batch:
    return Batch(*(torch.full((size, 3), float(k)) for k in range(9)), **more)


def test_data_of_one_shape_are_one_graphs_and_others_are_not():
    assert shape([batch(), {"a": torch.zeros(2)}]) == shape([batch(), {"a": torch.ones(2)}])
    others = [
        [batch(3), {"a": torch.zeros(2)}],
        [batch(), {"b": torch.zeros(2)}],
        [batch(), {"a": torch.zeros(2, dtype=torch.int64)}],
        [batch(temperature=torch.tensor(1.0)), {"a": torch.zeros(2)}],
        (batch(), {"a": torch.zeros(2)}),
    ]
    assert len({shape(data) for data in [[batch(), {"a": torch.zeros(2)}], *others]}) == 1 + len(others)


def test_tensors_come_in_one_order_and_on_each_keeps_the_structure():
    data = [batch(), {"a": (torch.zeros(1), torch.ones(1))}]
    assert [float(tensor.flatten()[0]) for tensor in tensors(data)] == [*range(9), 0, 1]
    doubled = on_each(data, lambda tensor: 2 * tensor)
    assert shape(doubled) == shape(data) and float(doubled[1]["a"][1]) == 2 and doubled[0].temperature is None


def test_graphs_are_wanted_unless_a_compiler_is_or_they_are_turned_off():
    asked = [(None, False), (None, True), (True, False), (False, False), (False, True)]
    assert [wanted(*each) for each in asked] == [True, False, True, False, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
@pytest.mark.parametrize("muon_lr", [None, 0.02])
def test_training_by_graphs_is_training(tmp_path, muon_lr):
    """The same losses as without them, also after a stop; two shapes of data, a parameter that only one of them uses,
    and random numbers that are new in every step."""

    def run(folder: str, graphs: bool, steps: int = 40) -> tuple[list[dict], torch.Tensor]:
        torch.manual_seed(0)
        model = nn.ModuleDict({"first": nn.Linear(8, 32), "last": nn.Linear(32, 1), "wide": nn.Linear(32, 1)})

        def data(step: int, generator: torch.Generator) -> list[torch.Tensor]:
            inputs = torch.randn(4 if step % 3 else 6, 8, generator=generator)
            return [inputs, inputs.square().mean(1, keepdim=True)]

        def loss(model: nn.ModuleDict, data: list[torch.Tensor]) -> dict[str, torch.Tensor]:
            inputs, wanted = data
            hidden = model["first"](inputs).relu()
            found = model["last"](hidden) + (model["wide"](hidden) if len(inputs) == 6 else 0)
            return {"loss": (found - wanted).square().mean(), "drawn": torch.rand((), device=inputs.device)}

        config = LoopConfig(out=str(tmp_path / folder), steps=steps, cooldown=0, muon_lr=muon_lr, ema=0.9, log_every=1,
                            lr=1e-2, warmup=5)  # fmt: skip
        history = train(config, model, data, loss, graphs=graphs)
        weights = torch.cat([p.detach().flatten() for p in model.parameters()]).cpu()
        return history, weights

    plain, by_graphs = run("plain", False), run("graphs", True)
    run("stopped", True, 17)
    stopped = run("stopped", True)
    for history, weights in (by_graphs, stopped):
        assert torch.allclose(weights, plain[1], rtol=1e-3, atol=1e-4)
        for name in ("loss", "drawn"):
            assert [line[name] for line in history] == pytest.approx([line[name] for line in plain[0]], rel=1e-3)
    assert len({line["drawn"] for line in by_graphs[0]}) == 40
