"""Shared self-attention: pictures of a batch take over the look of one of them (StyleAligned, arXiv 2312.02133).

In every self-attention layer each row reads its reference's keys and values beside its own:

    out = Attention(AdaIN(Q), [AdaIN(K), K_ref], [V, V_ref]),  with `shift` added to the scores of K_ref

It travels with the call (`cross_attention_kwargs={"style": StyleAlignment(...)}`) and needs no weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StyleAlignment:
    """Whose look each row of one U-Net call takes over.

    `reference` (B,), long: the row that each row reads; one that reads itself stays as it is, as reading twice the same
    changes nothing. `shift` is added to the attention scores of the reference's keys: below 0 less of its look.
    `adain`: queries and keys first get the mean and the deviation, over positions, of the reference's.
    """

    reference: Tensor
    shift: float = 0.0
    adain: bool = False

    @classmethod
    def to_first(
        cls, batch: int, guided: bool = True, device: torch.device | None = None, **settings: float | bool
    ) -> StyleAlignment:
        """The first picture of a batch is the reference; with guidance that of each half, as diffusers stacks it."""
        group = batch // 2 if guided else batch
        return cls(torch.arange(batch, device=device) // group * group, **settings)

    @property
    def followers(self) -> Tensor:
        """(B,), bool: rows that read another. References take no identities and no image prompt: their `active`."""
        return self.reference != torch.arange(len(self.reference), device=self.reference.device)

    def share(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Projections (B, L, C) -> queries (B, L, C), keys and values (B, 2L, C), what is added to scores or None."""
        if self.adain:
            query, key = self._matched(query), self._matched(key)
        length = key.shape[1]
        key, value = (torch.cat([x, x[self.reference]], dim=1) for x in (key, value))
        if self.shift == 0:
            return query, key, value, None
        bias = query.new_zeros(1, 1, 1, 2 * length)
        bias[..., length:] = self.shift
        return query, key, value, bias

    def _matched(self, x: Tensor) -> Tensor:
        """AdaIN (Huang and Belongie 2017) on (B, L, C): every channel spread over positions as the reference's."""
        deviation, mean = torch.var_mean(x.float(), dim=1, keepdim=True)
        deviation = (deviation + 1e-5).sqrt()
        matched = (x - mean) / deviation * deviation[self.reference] + mean[self.reference]
        return matched.to(x.dtype)
