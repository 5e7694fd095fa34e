"""What a U-Net call is given for each row of its batch: the base of identities, image prompts and routing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """Values of one U-Net call. The first dimension of their tensors is the batch, or 1 where all rows share them."""

    def rows(self, index: Tensor) -> Self:
        """The conditions of the rows `index` (B',) of these, for instance each row repeated."""
        return self._changed(lambda x: x[index] if x.ndim > 0 and len(x) > 1 else x)

    def to(self, device: torch.device) -> Self:
        """The same on another device: offloading may run the U-Net elsewhere than where its weights rest."""
        return self._changed(lambda x: x.to(device))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{name: _each(value, change) for name, value in vars(self).items()})


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The value with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Conditions):
        return value._changed(change)
    if isinstance(value, Mapping):
        return {name: _each(part, change) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_each(part, change) for part in value)
    return value


def row_weight(scale: float | Tensor, active: Tensor | None, dtype: torch.dtype) -> float | Tensor:
    """What a branch is multiplied with: `scale`, one number or one a row (B,), and 0 in rows that are not active."""
    weight = scale if active is None else scale * active
    return weight.to(dtype).view(-1, 1, 1) if isinstance(weight, Tensor) else weight
