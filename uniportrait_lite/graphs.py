"""A training step as CUDA graphs: what a small network costs a GPU is its orders.

A U-Net of this size is some thousand kernels a step, each shorter than the time in which Python orders it. A graph is
recorded once and replayed ever after, with new data in the old places.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from uniportrait_lite.errors import ConfigError

WARM = 3  # calls as usual before one is recorded: libraries choose their kernels, optimisers make their state


class Recorder:
    """Records functions as CUDA graphs, all of one memory and on one stream."""

    def __init__(self):
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self.calls: dict[Hashable, int] = {}

    def warm(self, kind: Hashable) -> bool:
        """Counts a call of some kind; whether it is time to record."""
        self.calls[kind] = self.calls.get(kind, 0) + 1
        return self.calls[kind] > WARM

    def aside(self, function: Callable[[], Any]) -> Any:
        """What the function returns, on the stream that will be recorded: autograd's nodes have to be made there."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            value = function()
        torch.cuda.current_stream().wait_stream(self.stream)
        return value

    def record(self, function: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        """The function's graph, which has not run yet, and what it returns when it has."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            value = function()
        return graph, value


@dataclass
class _Pass:
    graph: torch.cuda.CUDAGraph
    data: Any
    values: dict[str, Tensor]
    gradients: list[Tensor | None]


class Passes:
    """Calls `compute(data)`, a forward and a backward pass that returns scalars, by a graph for each shape of data.

    It may depend on nothing but `data` (on the GPU: tensors in lists, tuples, dicts and dataclasses), the parameters
    in their places, and the GPU's random numbers, and may not wait for a number of the GPU's. What changes from call to
    call has to be a tensor: anything else in `data` makes a graph of its own. A parameter's gradient is always found in
    the same place.
    """

    def __init__(self, recorder: Recorder, compute: Callable[[Any], dict[str, Tensor]], parameters: list[nn.Parameter]):
        self.recorder, self.compute, self.parameters = recorder, compute, parameters
        self.gradients = [torch.zeros_like(parameter) for parameter in parameters]
        self.known: dict[tuple, _Pass] = {}

    def __call__(self, data: Any) -> dict[str, Tensor]:
        kind = shape(data)
        if kind in self.known or self.recorder.warm(kind):
            known = self.known[kind] = self.known.get(kind) or self._record(data)
            for old, new in zip(tensors(known.data), tensors(data), strict=True):
                old.copy_(new)
            known.graph.replay()
            values, found = {name: value.clone() for name, value in known.values.items()}, known.gradients
        else:
            self._clear()
            values = self.recorder.aside(lambda: self.compute(data))
            found = [parameter.grad for parameter in self.parameters]
        there = [k for k, gradient in enumerate(found) if gradient is not None]
        torch._foreach_copy_([self.gradients[k] for k in there], [found[k] for k in there])
        self._clear()
        for k in there:
            self.parameters[k].grad = self.gradients[k]
        return values

    def _record(self, data: Any) -> _Pass:
        self._clear()
        data = on_each(data, torch.clone)
        graph, values = self.recorder.record(lambda: self.compute(data))
        return _Pass(graph, data, values, [parameter.grad for parameter in self.parameters])

    def _clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


class Updates:
    """Calls `apply()`, which makes of gradients new weights, by a graph for each set of parameters that have some."""

    def __init__(self, recorder: Recorder, apply: Callable[[], None], parameters: list[nn.Parameter]):
        self.recorder, self.apply, self.parameters = recorder, apply, parameters
        self.known: dict[tuple[bool, ...], torch.cuda.CUDAGraph] = {}

    def __call__(self) -> None:
        kind = tuple(parameter.grad is not None for parameter in self.parameters)
        if kind in self.known or self.recorder.warm(kind):
            if kind not in self.known:
                self.known[kind], _ = self.recorder.record(self.apply)
            self.known[kind].replay()
        else:
            self.recorder.aside(self.apply)


def wanted(graphs: bool | None, compiled: bool) -> bool:
    """Whether to train by graphs where there is CUDA: as asked for, or, if nothing was asked, where no compiler is.

    Raises `ConfigError` where both are asked for.
    """
    if graphs and compiled:
        raise ConfigError("graphs and compile have not been tried together: give one of them")
    return not compiled if graphs is None else graphs


def on_each(data: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same data with `function` of each tensor in its place."""
    if isinstance(data, Tensor):
        return function(data)
    if isinstance(data, dict):
        return {name: on_each(value, function) for name, value in data.items()}
    if hasattr(data, "_fields"):  # a NamedTuple
        return type(data)(*(on_each(value, function) for value in data))
    if isinstance(data, list | tuple):
        return type(data)(on_each(value, function) for value in data)
    if is_dataclass(data) and not isinstance(data, type):
        return replace(data, **{f.name: on_each(getattr(data, f.name), function) for f in fields(data)})
    return data


def tensors(data: Any) -> list[Tensor]:
    """The tensors of some data, always in the same order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    on_each(data, keep)
    return found


def shape(data: Any) -> tuple:
    """What two data must have in common to be one graph's: their structure, and their tensors' shapes and kinds."""
    if isinstance(data, Tensor):
        return (tuple(data.shape), data.dtype)
    if isinstance(data, dict):
        return ("dict", *((name, shape(value)) for name, value in data.items()))
    if isinstance(data, list | tuple):
        return (type(data).__name__, *map(shape, data))
    if is_dataclass(data) and not isinstance(data, type):
        return (type(data).__name__, *(shape(getattr(data, f.name)) for f in fields(data)))
    return (repr(data),)
