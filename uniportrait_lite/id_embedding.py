"""The ID embedding module: a Q-Former from face features to 16 ID tokens (paper: ID embedding module)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class IDEmbeddingConfig:
    """The sizes of the module and the rates of its regularisation.

    The defaults are the tiny profile's; the paper has width 768, 6 layers, 12 heads of 64; 512 and 1728 channels in.
    `structure=False` leaves the structure branch out (an ablation). For each training sample the branch is dropped
    with probability `drop_path`, loses tokens with probability `drop_token`, each at `token_drop_rate`, and else stays
    whole. The paper gives the first two as 0.33 each and does not publish the third: it is our choice.
    """

    intrinsic_dim: int = 128
    structure_dim: int = 208
    width: int = 128
    layers: int = 3
    heads: int = 4
    head_dim: int = 32
    queries: int = 16
    ffn_multiple: int = 4
    out_dim: int = 128
    structure: bool = True
    drop_path: float = 0.33
    drop_token: float = 0.33
    token_drop_rate: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.drop_path and 0 <= self.drop_token and self.drop_path + self.drop_token <= 1):
            raise ValueError(f"drop_path {self.drop_path} and drop_token {self.drop_token} are shares of one whole")
        if not 0 <= self.token_drop_rate <= 1:
            raise ValueError(f"token_drop_rate is a probability, not {self.token_drop_rate}")


class StructureDrop(NamedTuple):
    """What one training step keeps of the structure branch: `path` (B,) and `tokens` (B, L_s), both bool."""

    path: Tensor
    tokens: Tensor

    @staticmethod
    def draw(
        config: IDEmbeddingConfig,
        batch: int,
        length: int,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> StructureDrop:
        """DropPath, DropToken or neither, decided anew for each sample, on the generator's device or else `device`:
        a GPU's draws are not a CPU's."""
        device = generator.device if generator else device
        which = torch.rand(batch, generator=generator, device=device)
        dropped = torch.rand(batch, length, generator=generator, device=device) < config.token_drop_rate
        thinned = (which >= config.drop_path) & (which < config.drop_path + config.drop_token)
        return StructureDrop(path=which >= config.drop_path, tokens=~(dropped & thinned[:, None]))


class FeatureAttention(nn.Module):
    """The queries read features: keys and values come from the features and the queries together.

    `features` (B, L, width), `queries` (B, Q, width) -> the update of the queries (B, Q, width).
    `keep` (B, L), bool, hides features from the queries.
    """

    def __init__(self, config: IDEmbeddingConfig):
        super().__init__()
        inner = config.heads * config.head_dim
        self.heads = config.heads
        self.norm_features = nn.LayerNorm(config.width)
        self.norm_queries = nn.LayerNorm(config.width)
        self.to_q = nn.Linear(config.width, inner, bias=False)
        self.to_kv = nn.Linear(config.width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, config.width, bias=False)

    def forward(self, features: Tensor, queries: Tensor, keep: Tensor | None = None) -> Tensor:
        queries = self.norm_queries(queries)
        q = self.to_q(queries)
        k, v = self.to_kv(torch.cat([self.norm_features(features), queries], dim=1)).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        if keep is not None:
            keep = F.pad(keep, (0, queries.shape[1]), value=True)[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        return self.to_out(out.transpose(1, 2).flatten(2))


class QFormerLayer(nn.Module):
    """Attention to F_r, attention to F_s times the structure scale, feed-forward; each a residual."""

    def __init__(self, config: IDEmbeddingConfig):
        super().__init__()
        self.intrinsic = FeatureAttention(config)
        self.structure = FeatureAttention(config) if config.structure else None
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(config.width),
            nn.Linear(config.width, config.ffn_multiple * config.width, bias=False),
            nn.GELU(),
            nn.Linear(config.ffn_multiple * config.width, config.width, bias=False),
        )

    def forward(
        self, queries: Tensor, intrinsic: Tensor, structure: Tensor | None, scale: float, drop: StructureDrop | None
    ) -> Tensor:
        queries = queries + self.intrinsic(intrinsic, queries)
        if structure is not None:
            update = self.structure(structure, queries, keep=drop.tokens if drop else None)
            if drop:
                update = update * drop.path[:, None, None]
            queries = queries + scale * update
        return queries + self.feed_forward(queries)


def _mlp(in_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, 2 * in_dim), nn.GELU(), nn.Linear(2 * in_dim, out_dim))


class IDEmbedding(nn.Module):
    """Intrinsic and structure features of a face -> its ID tokens, in the U-Net's cross-attention width."""

    def __init__(self, config: IDEmbeddingConfig):
        super().__init__()
        self.config = config
        self.queries = nn.Parameter(torch.randn(1, config.queries, config.width) / config.width**0.5)
        self.intrinsic_mlp = _mlp(config.intrinsic_dim, config.width)
        self.structure_mlp = _mlp(config.structure_dim, config.width) if config.structure else None
        self.layers = nn.ModuleList(QFormerLayer(config) for _ in range(config.layers))
        self.project = nn.Linear(config.width, config.out_dim)
        self.norm = nn.LayerNorm(config.out_dim)

    def forward(
        self,
        intrinsic: Tensor,
        structure: Tensor | None,
        structure_scale: float = 1.0,
        drop: torch.Generator | StructureDrop | None = None,
    ) -> Tensor:
        """F_r (B, L_r, C_r) and F_s (B, L_s, C_s) -> ID tokens (B, queries, out_dim).

        Several references of one identity come concatenated along the sequence. `drop` is what training drops of the
        structure branch, or the generator to draw it with (the global one without it); evaluation mode drops nothing.
        With `structure_scale` 0 nothing is computed of F_s, which may then be None.
        """
        queries = self.queries.expand(intrinsic.shape[0], -1, -1)
        intrinsic = self.intrinsic_mlp(intrinsic)
        if self.structure_mlp is None or structure_scale == 0:
            structure, drop = None, None
        else:
            drop = self._drop(structure, drop)
            structure = self.structure_mlp(structure)
        for layer in self.layers:
            queries = layer(queries, intrinsic, structure, structure_scale, drop)
        return self.norm(self.project(queries))

    def _drop(self, structure: Tensor, drop: torch.Generator | StructureDrop | None) -> StructureDrop | None:
        if not self.training:
            return None
        if not isinstance(drop, StructureDrop):
            drop = StructureDrop.draw(self.config, *structure.shape[:2], generator=drop, device=structure.device)
        return StructureDrop(*(kept.to(structure.device) for kept in drop))
