"""Attention that is fast to train through on a CPU in bf16."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class fast_attention(TorchFunctionMode):  # noqa: N801 - used as a context manager
    """Inside it, bf16 attention on the CPU is two matrix products around a softmax.

    torch's fused kernel of `scaled_dot_product_attention` saves memory that short sequences do not need, and its bf16
    backward pass takes 3 to 5 times as long (torch 2.13: 256 queries and keys, 2 heads of 32, batch 16: 23 ms against
    8.5 on a core), a quarter of a training step; the text encoder's causal attention likewise, a twentieth of one. All
    other calls, and other devices and dtypes, stay as they are.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and _slow(*args, **kwargs):
            return attention(*args, **kwargs)
        return func(*args, **kwargs)


def _slow(
    query: Tensor, key: Tensor, value: Tensor, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **other
) -> bool:
    """Whether torch's own kernel would be the slow one, and nothing is asked of it that `attention` does not do."""
    slow = query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[:-2] == query.shape[:-2]
    return slow and not dropout_p and not other and not (is_causal and attn_mask is not None)


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False,
    scale: float | None = None, **_,
) -> Tensor:  # fmt: skip
    """`F.scaled_dot_product_attention` of (B,heads,L,d), without dropout."""
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-1, -2)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1).to(value.dtype) @ value
