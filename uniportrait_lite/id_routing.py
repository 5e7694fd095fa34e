"""The ID routing module: which identity each location of a cross-attention layer listens to (paper: ID routing).

In every cross-attention layer, with positions Z, and F^(n) the 16 ID tokens of identity n of N:

    logits(u, v, n) = theta(Z)_uv . phi(W_aggr F^(n))
    psi(u, v, .)    = one-hot of the largest over n;  in training a Gumbel-softmax of them, straight through

and the layer adds, at each location, the attention output of the identity that psi names there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniportrait_lite.conditions import Conditions
from uniportrait_lite.errors import ConfigError

LAMBDA = 0.1  # of the routing regularization loss (paper)


def _mlp(dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, out_dim, bias=False))


class IDRouter(nn.Module):
    """The router of one layer: theta on its positions, phi on each identity's tokens, brought down to one by W_aggr.

    The paper has two-layer MLPs with GELU, twice as wide inside; their common output width is the layer's own.
    """

    def __init__(self, position_dim: int, token_dim: int, tokens: int = 16):
        super().__init__()
        self.aggregate = nn.Linear(tokens, 1)
        self.theta = _mlp(position_dim, position_dim)
        self.phi = _mlp(token_dim, position_dim)

    def keys(self, tokens: Tensor) -> Tensor:
        """ID tokens (B, N, 16, D) -> one key for each identity (B, N, 2 * position_dim).

        theta's last map has no bias, so its product with phi is taken here, once a call instead of once a step.
        """
        one = self.aggregate(tokens.transpose(-1, -2)).squeeze(-1)
        return self.phi(one) @ self.theta[2].weight

    def logits(self, positions: Tensor, keys: Tensor) -> Tensor:
        """Positions (B, L, C) and keys (B, N, 2C) -> logits (B, N, L)."""
        return keys @ self.theta[1](self.theta[0](positions)).transpose(-1, -2)


def gumbel(logits: Tensor, temperature: float | Tensor = 1.0, hard: bool = True) -> Tensor:
    """A draw from the logits (B, N, L), over N: one-hot with the soft draw's gradient, or the soft draw itself."""
    noise = -torch.empty_like(logits).exponential_().log()
    soft = ((logits + noise) / temperature).softmax(dim=1)
    return one_hot(soft) - soft.detach() + soft if hard else soft


def one_hot(scores: Tensor) -> Tensor:
    """1 for the identity with the largest score at a location, 0 for the others: (B, N, L) -> (B, N, L)."""
    return torch.zeros_like(scores).scatter(1, scores.argmax(dim=1, keepdim=True), 1.0)


@dataclass(frozen=True)
class Routing(Conditions):
    """How the locations of one U-Net call choose among its identities.

    `size`: height and width of the latents. `masks` (B or 1, N, H, W), 0 to 1: take the router's place; what several
    identities claim is shared, and what none claims gets nobody. `columns`: for so large a share of the denoising, from
    pure noise on, each identity has a column of the picture, in their order (`at`); the routers decide afterwards.
    `temperature`: draws with Gumbel noise, in training; None takes the largest. `soft`: draws shares of all identities
    instead of one. `record`, if given, is called with a layer's name, its map psi (B, N, h, w), and the logits, of the
    same shape, where a router was asked, else None.
    """

    size: tuple[int, int]
    masks: Tensor | None = None
    columns: float = field(default=0.0, kw_only=True)
    temperature: float | Tensor | None = None
    soft: bool = False
    record: Callable[[str, Tensor, Tensor | None], None] | None = None

    def at(self, done: float, count: int) -> Routing:
        """The routing of a U-Net call on `count` identities, when a share `done` of the noise schedule lies behind it.

        Our addition to the paper. Where there is only noise nothing says who is where, so each place would choose for
        itself, and a face that was begun by two people stays a blend of them. Masks that are given make it needless.
        """
        if self.masks is not None or done >= self.columns < 1:  # 1: to the end, whatever the last timestep is
            return self
        return replace(self, masks=columns(count, self.size))

    @property
    def largest(self) -> bool:
        """Whether each location takes the identity of its largest logit, and nobody records which."""
        return self.masks is None and self.temperature is None and self.record is None

    def choose(self, name: str, batch: int, length: int, logits: Callable[[], Tensor]) -> Tensor:
        """psi (B, N, L) for a layer of `length` locations; `logits` (B, N, L) are asked for where no masks are set."""
        size = layer_size(self.size, length)
        scores = None
        if self.masks is not None:
            shares = F.interpolate(self.masks.float(), size=size, mode="area").flatten(2).expand(batch, -1, -1)
            psi = shares / shares.sum(dim=1, keepdim=True).clamp_min(1)
        else:
            scores = logits().float()
            psi = one_hot(scores) if self.temperature is None else gumbel(scores, self.temperature, not self.soft)
        if self.record is not None:
            shape = (*psi.shape[:2], *size)
            self.record(name, psi.reshape(shape), None if scores is None else scores.reshape(shape))
        return psi


def columns(count: int, size: tuple[int, int]) -> Tensor:
    """Masks (1, N, H, W) of as many columns as identities, from left to right.

    Of faces that stand N + 1 equal steps from edge to edge, each has what is nearest to it: so the outer columns are
    half as wide again as the others, as there is room beside a row of people. Raises `ConfigError` where somebody would
    get none of the locations.
    """
    height, width = size
    if width < count + 1:
        raise ConfigError(f"{count} people do not fit side by side into {width} latents: give a larger width")
    owner = ((2 * torch.arange(width) + 1) * (count + 1) - width).div(2 * width, rounding_mode="floor")
    owner = owner.clamp(0, count - 1)
    return (owner == torch.arange(count)[:, None]).float()[None, :, None].expand(1, count, height, width)


def layer_size(size: tuple[int, int], length: int) -> tuple[int, int]:
    """Height and width of a layer with `length` locations, in a U-Net that halves latents of `size`, rounding up."""
    height, width = size
    while height * width > length:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != length:
        raise ConfigError(f"{length} locations are no level of a U-Net on latents of {size[0]}x{size[1]}")
    return height, width


def box_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """1 where a location's centre is inside the box: boxes (..., 4), as shares of the picture -> (..., h, w).

    A box is left, top, right, bottom.
    """
    height, width = size
    x = (torch.arange(width, device=boxes.device) + 0.5) / width
    y = (torch.arange(height, device=boxes.device) + 0.5) / height
    left, top, right, bottom = (edge[..., None] for edge in boxes.unbind(-1))
    across, down = (x >= left) & (x <= right), (y >= top) & (y <= bottom)
    return (down[..., :, None] & across[..., None, :]).float()


def routing_loss(maps: Mapping[str, Tensor], boxes: Tensor) -> Tensor:
    """The routing regularization loss, without lambda (paper: 1/N * ||W (psi - M)||^2).

    `maps`: psi (B, N, h, w) of each layer; `boxes` (B, N, 4) of the faces, as shares of the picture. M holds the boxes'
    masks and W their union, so the background is free. The paper does not say how layers and positions are reduced:
    here each layer's squares are averaged over its positions in W, and the layers over each other.
    """
    losses = []
    for psi in maps.values():
        masks = box_masks(boxes, psi.shape[-2:])
        union = masks.amax(dim=1, keepdim=True)
        errors = (union * (psi.float() - masks)).square().mean(dim=1)
        losses.append(errors.sum() / union.sum().clamp_min(1))
    return torch.stack(losses).mean()


def routing_accuracy(maps: Mapping[str, Tensor], boxes: Tensor) -> dict[str, Tensor]:
    """The share of locations in exactly one face's box whose largest psi is that face's: of each layer, by its name.

    NaN for a layer so coarse that no location lies in a box.
    """
    found = {}
    for name, psi in maps.items():
        masks = box_masks(boxes, psi.shape[-2:])
        alone = masks.sum(dim=1) == 1
        right = alone & (psi.argmax(dim=1) == masks.argmax(dim=1))
        found[name] = right.sum() / alone.sum()
    return found


class RoutingMaps:
    """The routing of a call, step by step and layer by layer, as the U-Net made it.

    `steps[k][layer]` (images, N, h, w) is psi in step k: 1 where the layer listened to identity n. Layers are named as
    in the U-Net, `down_blocks...`, `mid_block...` and `up_blocks...`.
    """

    def __init__(self) -> None:
        self.size: tuple[int, int] | None = None  # of the latents
        self.steps: list[dict[str, Tensor]] = []
        self._told = 0  # steps in which masks or columns took the routers' place

    def add(self, name: str, psi: Tensor, routed: bool = True) -> None:
        """Takes a layer's map, `routed` by its router; one that was seen in this step begins the next."""
        if not self.steps or name in self.steps[-1]:
            self.steps.append({})
            self._told += not routed
        self.steps[-1][name] = psi.detach().float().cpu()

    @property
    def routed(self) -> slice:
        """The steps in which the routers decided: those after the columns, with masks none."""
        return slice(self._told, None)

    @property
    def layers(self) -> list[str]:
        """The layers' names, in the U-Net's order."""
        return list(self.steps[0]) if self.steps else []

    def mean(self, layers: str = "", steps: slice = slice(None)) -> Tensor:
        """The mean over some steps and the layers whose names begin so, at the latents' size: (images, N, H, W).

        For instance `mean("up_blocks")`, `mean(steps=slice(-5, None))`, or `mean("up_blocks", maps.routed)`.
        """
        chosen = [psi for step in self.steps[steps] for name, psi in step.items() if name.startswith(layers)]
        if not chosen:
            if not self.steps:
                raise ConfigError("no routing maps: they are of several people, and one person alone is everywhere")
            raise ConfigError(
                f"no routing maps of layers {layers!r} in these steps: see .layers, len(.steps) and .routed (with few "
                "steps, or columns=1, no step is left to the routers)"
            )
        return sum(F.interpolate(psi, size=self.size, mode="nearest") for psi in chosen) / len(chosen)
