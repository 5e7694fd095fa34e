"""How a check comes to its verdict."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

OPEN = "Not solved yet: write your code in place of the line that raises NotImplementedError, and run the cell again."


OFF = "the shape is right, the values are not"


class Verdict:
    """What a check says: true if the answer is right, and in words."""

    def __init__(self, right: bool, message: str):
        self.right, self.message = right, message

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return self.message


class Mistake(Exception):
    """Raised by a check, with the mistake in words."""


def check(lesson: str) -> Callable[[Callable[..., None]], Callable[..., Verdict]]:
    """Makes a check of a function that takes the reader's answers and raises `Mistake` where they are wrong.

    `lesson` is what to keep of it, said when the answer is right. An untouched stub and an answer that stops with an
    error get verdicts of their own.
    """

    def made(judge: Callable[..., None]) -> Callable[..., Verdict]:
        @functools.wraps(judge)
        def verdict(*answers: Callable) -> Verdict:
            changed: list[str] = []  # arguments, by answers that overwrite them
            try:
                for answer in answers:
                    demand(callable(answer), f"give the function itself, not {type(answer).__name__}: no brackets")
                judge(*(_watched(answer, changed) for answer in answers))
            except NotImplementedError:
                return Verdict(False, OPEN)
            except Exception as error:
                said = str(error) if isinstance(error, Mistake) else _stopped(error, answers)
                if changed:  # and so the inputs are no longer those of the right answer: how far it is off says nothing
                    besides = "" if said.startswith(OFF) else f". Besides, {said}"
                    said = _overwrites(changed) + besides
                return Verdict(False, f"Not yet: {said}")
            if changed:
                return Verdict(False, f"Not yet: {_overwrites(changed)}")
            return Verdict(True, f"Right. {lesson}")

        return verdict

    return made


def demand(fulfilled: bool, mistake: str) -> None:
    """Raises `Mistake` unless fulfilled."""
    if not fulfilled:
        raise Mistake(mistake)


def equal(got: Any, wanted: Tensor, mistakes: Mapping[str, Tensor] | None = None, tolerance: float = 1e-4) -> None:
    """Raises `Mistake` unless an answer is the wanted tensor: in type, shape, dtype, device and values.

    `mistakes`: what wrong answers look like, by what to say of them. They are looked at before anything general.
    """
    demand(got is not None, "it returns None: is there a `return`?")
    demand(isinstance(got, Tensor), f"it returns a {type(got).__name__}, and a tensor is wanted: stay in torch")
    demand(got.device == wanted.device, f"it returns a tensor on {got.device}, and its input is on {wanted.device}")
    for message, wrong in (mistakes or {}).items():
        demand(not _close(got, wrong, tolerance), message)
    shape, right = tuple(got.shape), tuple(wanted.shape)
    if shape != right:
        turned = sorted(shape) == sorted(right)
        raise Mistake(
            f"it returns the shape {shape}, and {right} is wanted" + (": two dimensions are swapped" if turned else "")
        )
    demand(got.dtype == wanted.dtype, f"it returns {got.dtype}, and {wanted.dtype} is wanted: keep the dtype")
    demand(bool(torch.isfinite(got.float()).all()), "some of its values are infinite or NaN: what is divided by 0?")
    off = (got.detach().float() - wanted.detach().float()).abs().max()
    demand(_close(got, wanted, tolerance), f"{OFF}: they differ by up to {off:.2g}")


def learning(x: Tensor) -> Tensor:
    """`x` as a network would hand it over: its gradient is wanted, and it may be written over as any result may."""
    return x.requires_grad_() * 1


def same_gradients(got: Tensor, wanted: Tensor, inputs: Mapping[str, Tensor]) -> None:
    """Raises `Mistake` unless the gradients of `inputs`, by name, are those that come back through `wanted`."""
    weights = torch.linspace(1, 2, wanted.numel()).view_as(wanted)
    for name, x in inputs.items():
        right, there = (
            torch.autograd.grad((y * weights).sum(), x, allow_unused=True, retain_graph=True)[0]
            if y.requires_grad
            else None
            for y in (wanted, got)
        )
        demand(
            there is not None and _close(there, right, 1e-3),
            f"the values are right, but not the gradient of {name}: leave out detach(), .item(), .data and no_grad()",
        )


def _overwrites(changed: list[str]) -> str:
    return f"it overwrites its argument {changed[0]}: write x = x + y, not x += y"


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if a.shape != b.shape:
        return False
    return torch.allclose(a.detach().double(), b.detach().double(), rtol=tolerance, atol=tolerance)


def _watched(answer: Callable, changed: list[str]) -> Callable:
    """The same function, which notes the arguments that it overwrites; classes and modules stay as they are."""
    if not inspect.isfunction(answer):
        return answer
    names = list(inspect.signature(answer).parameters)

    @functools.wraps(answer)
    def watched(*given: Any, **named: Any) -> Any:
        before = [x.clone() if isinstance(x, Tensor) else None for x in given]
        try:
            return answer(*given, **named)
        finally:
            for name, x, old in zip(names, given, before, strict=False):
                if old is not None and not torch.equal(x, old):
                    changed.append(name)

    return watched


def _stopped(error: Exception, answers: tuple[Callable, ...]) -> str:
    """Where and why an answer stops, in one line."""
    names = {getattr(answer, "__name__", "") for answer in answers}
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name in names]
    where = f" in `{lines[-1].line}`" if lines and lines[-1].line else ""
    advice = " (misspelt, or given its value by a cell that has not run yet?)" if isinstance(error, NameError) else ""
    return f"it stops with {type(error).__name__}: {error}{advice}{where}"
