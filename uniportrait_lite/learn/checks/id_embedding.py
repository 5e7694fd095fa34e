"""Checks of 02_id_embedding."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniportrait_lite.learn.checks.verdict import check, demand, equal


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@check("Each query gets a mean of the values, weighted by how well the keys fit it.")
def attention(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """q (B, Q, d), k and v (B, L, d) -> (B, Q, d)."""
    q, k, v = 2 * _random(2, 3, 16), _random(2, 5, 16, seed=1), _random(2, 5, 16, seed=2)
    scores = q @ k.transpose(1, 2)
    weights = (scores / 4).softmax(-1)
    mistakes = {
        "the scores are not divided by the root of d: with many channels softmax would see extremes only": (
            scores.softmax(-1) @ v
        ),
        "the scores are divided by d: its root is meant, 4 for 16 channels": (scores / 16).softmax(-1) @ v,
        "softmax runs over the queries: for each query the weights of the keys, the last dimension, add up to 1": (
            (scores / 4).softmax(-2) @ v
        ),
        "these are the weights: they still have to be multiplied with v": weights,
        "there is no softmax in it": scores / 4 @ v,
    }
    equal(answer(q, k, v), weights @ v, mistakes)


@check("Heads are channels that attend on their own: no weight is added, only the order of numbers changes.")
def split_heads(answer: Callable[[Tensor, int], Tensor]) -> None:
    """x (B, L, heads * d) -> (B, heads, L, d)."""
    x, heads = _random(2, 5, 12), 3
    mistakes = {
        "a view straight to (B, heads, L, d) mixes places and channels: split the channels first, then transpose": (
            x.reshape(2, 3, 5, 4)
        ),
        "the heads come after the places: they should come before, so that @ runs over places": x.unflatten(-1, (3, 4)),
        "the channels of one head lie next to each other: split into (heads, d), not (d, heads)": (
            x.unflatten(-1, (4, 3)).permute(0, 3, 1, 2)
        ),
    }
    equal(answer(x, heads), x.unflatten(-1, (3, 4)).transpose(1, 2), mistakes)


@check("The queries read the face, and each other: that is how 16 of them can share the work.")
def read_features(answer: Callable[..., Tensor]) -> None:
    """features (B, L, w), queries (B, Q, w), to_q, to_kv, heads -> (B, Q, inner)."""
    features, queries, heads = _random(2, 7, 6), _random(2, 3, 6, seed=1), 2
    w_q, w_kv = _random(8, 6, seed=2), _random(16, 6, seed=3)
    to_q, to_kv = nn.Linear(6, 8, bias=False), nn.Linear(6, 16, bias=False)
    to_q.weight.data, to_kv.weight.data = w_q, w_kv

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, 4)).transpose(1, 2)

    def read(source: Tensor, asking: Tensor = queries, swap: bool = False, merge: bool = True) -> Tensor:
        k, v = to_kv(source).chunk(2, dim=-1)
        k, v = (v, k) if swap else (k, v)
        out = F.scaled_dot_product_attention(*(split(x) for x in (to_q(asking), k, v)))
        return out.transpose(1, 2).flatten(2) if merge else out.reshape(out.shape[0], out.shape[2], -1)

    both = torch.cat([features, queries], dim=1)
    k, v = to_kv(both).chunk(2, dim=-1)
    normed = read(F.layer_norm(both, (6,)), F.layer_norm(queries, (6,)))
    pairs = to_kv(both).unflatten(-1, (heads, 8)).transpose(1, 2).chunk(2, dim=-1)
    mixed = F.scaled_dot_product_attention(split(to_q(queries)), *pairs).transpose(1, 2).flatten(2)
    mistakes = {
        "keys and values come from the features alone: the queries belong to them, too": read(features),
        "keys and values come from the queries alone: where are the features?": read(queries),
        "to_kv gives the keys first, then the values: they are swapped": read(both, swap=True),
        "the heads are put together in the wrong order: transpose back before you flatten": read(both, merge=False),
        "the features ask, too: only the queries are to be updated": read(both, both),
        "all channels attend as one head: split them first": F.scaled_dot_product_attention(to_q(queries), k, v),
        "features and queries are normalised here: they are already": normed,
        "keys and values lie side by side for all heads together: chunk first, then split each into heads": mixed,
    }
    equal(answer(features, queries, to_q, to_kv, heads), read(both), mistakes)


@check("Three steps, each added to what is there: beta turns the second one down without touching the others.")
def qformer_layer(answer: Callable[..., Tensor]) -> None:
    """queries, F_r, F_s, the layer's three parts, beta -> queries."""
    queries, intrinsic, structure, beta = _random(2, 3, 4), _random(2, 5, 4, seed=1), _random(2, 6, 4, seed=2), 0.3

    def to_intrinsic(features: Tensor, queries: Tensor) -> Tensor:
        return torch.tanh(queries.roll(1, -1) + features.mean(1, keepdim=True))

    def to_structure(features: Tensor, queries: Tensor) -> Tensor:
        return torch.sin(2 * queries + features.amax(1, keepdim=True))

    def feed_forward(queries: Tensor) -> Tensor:
        return queries.square() - 0.5

    def layer(beta: float = beta, beta_r: float = 1.0, keep: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
        q = keep[0] * queries + beta_r * to_intrinsic(intrinsic, queries)
        q = keep[1] * q + beta * to_structure(structure, q)
        return keep[2] * q + feed_forward(q)

    first = queries + to_intrinsic(intrinsic, queries)
    parallel = first + beta * to_structure(structure, queries)
    scaled = beta * (first + to_structure(structure, first))
    before = first + to_structure(beta * structure, first)
    turned = queries + beta * to_structure(structure, queries)
    turned = turned + to_intrinsic(intrinsic, turned)
    mistakes = {
        "beta is not used: it scales the attention to the structure features": layer(beta=1),
        "beta scales the attention to F_r: it belongs to F_s": layer(beta=1, beta_r=beta),
        "beta scales everything: only what the attention to F_s adds": scaled + feed_forward(scaled),
        "beta scales F_s before it is read: it scales what reading it adds": before + feed_forward(before),
        "structure is read by the old queries: those that have read F_r should ask": parallel + feed_forward(parallel),
        "the order is F_r first, then F_s": turned + feed_forward(turned),
        "the first attention replaces the queries: add it to them": layer(keep=(0, 1, 1)),
        "the second attention replaces the queries: add it to them": layer(keep=(1, 0, 1)),
        "the feed-forward part replaces the queries: add it to them": layer(keep=(1, 1, 0)),
        "none of the steps is added to the queries: each is a residual": layer(keep=(0, 0, 0)),
        "the feed-forward part is missing": first + beta * to_structure(structure, first),
    }
    equal(answer(queries, intrinsic, structure, to_intrinsic, to_structure, feed_forward, beta), layer(), mistakes)


@check("Each sample has its own luck: a third without the branch, a third with holes in it, a third whole.")
def structure_drop(answer: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """which (B,), dice (B, L), drop_path, drop_token, rate -> what is kept: path (B,), tokens (B, L), both bool."""
    which = torch.tensor([0.1, 0.3, 0.4, 0.65, 0.7, 0.95])
    dice = torch.rand(6, 50, generator=torch.Generator().manual_seed(0))
    path_rate, token_rate, rate = 0.25, 0.42, 0.4
    path, low = which >= path_rate, dice < rate
    thinned = path & (which < path_rate + token_rate)
    got = answer(which, dice, path_rate, token_rate, rate)
    demand(got is not None, "it returns None: is there a `return`?")
    demand(isinstance(got, tuple | list) and len(got) == 2, "it returns two things: the path, then the tokens")
    for name, part in zip(("path", "tokens"), got, strict=True):
        numbers = isinstance(part, Tensor) and part.is_floating_point()
        demand(
            not numbers, f"{name} holds {getattr(part, 'dtype', '')} numbers: return bools, as comparisons give them"
        )
    equal(
        got[0],
        path,
        {
            "path says what is dropped: True should mean kept": ~path,
            "the branch is kept in the samples that lose tokens, too: only below drop_path it is dropped": (
                which >= path_rate + token_rate
            ),
        },
    )
    equal(
        got[1],
        ~(low & thinned[:, None]),
        {
            "tokens says what is dropped: True should mean kept": low & thinned[:, None],
            "no sample loses tokens: those with drop_path <= which < drop_path + drop_token do": torch.ones_like(low),
            "where the branch is dropped the tokens are False: they stay True there, as path says it already": (
                ~(low & thinned[:, None]) & path[:, None]
            ),
            "the thinned end at drop_token: they begin at drop_path and end at drop_path + drop_token": (
                ~(low & (path & (which < token_rate))[:, None])
            ),
            "every sample loses tokens: only those with drop_path <= which < drop_path + drop_token": ~low,
            "samples of the first third lose tokens, too; there the whole branch is dropped already": (
                ~(low & (which < path_rate + token_rate)[:, None])
            ),
            "the whole samples lose tokens: they are those with which >= drop_path + drop_token": (
                ~(low & (which >= path_rate + token_rate)[:, None])
            ),
            "rate is the chance to be dropped, not to be kept: dice < rate drops": (
                ~((dice >= rate) & thinned[:, None])
            ),
            "all tokens of a sample share one die: each token has its own": (
                ~((dice[:, :1] < rate) & thinned[:, None]).expand(-1, 50)
            ),
        },
    )


@check(
    "Text keeps its softmax to itself: at ID scale 0 the model is what it was, bit for bit. In one long sequence ID "
    "tokens would take attention away from the words, and the scale would have nothing to scale."
)
def decoupled(answer: Callable[..., Tensor]) -> None:
    """q, k_text, v_text, k_id, v_id, id_scale -> (B, L, d)."""
    q, scale = _random(2, 6, 8), 0.6
    k_text, v_text, k_id, v_id = (_random(2, n, 8, seed=s) for s, n in ((1, 4), (2, 4), (3, 3), (4, 3)))
    attend = F.scaled_dot_product_attention
    text, identity = attend(q, k_text, v_text), attend(q, k_id, v_id)
    joint = attend(q, torch.cat([k_text, k_id], 1), torch.cat([v_text, v_id], 1))
    mistakes = {
        "one softmax over text and ID tokens together: then every ID token takes attention away from the words": joint,
        "one softmax over text and ID tokens together, and scaled values": attend(
            q, torch.cat([k_text, k_id], 1), torch.cat([v_text, scale * v_id], 1)
        ),
        "the scale is on the text: it belongs to the ID branch": scale * text + identity,
        "the scale is on both": scale * (text + identity),
        "the scale is not used": text + identity,
        "it blends the two: the text's branch keeps its full weight": (1 - scale) * text + scale * identity,
        "the ID branch attends with scaled keys: scale its result": text + attend(q, scale * k_id, v_id),
    }
    equal(answer(q, k_text, v_text, k_id, v_id, scale), text + scale * identity, mistakes)


@check("More tokens to read, and no new weight: attention takes as many keys as there are.")
def several_references(answer: Callable[[list[tuple[Tensor, Tensor]]], tuple[Tensor, Tensor]]) -> None:
    """[(F_r, F_s), ...] of one person's pictures -> (F_r, F_s) of all."""
    references = [(_random(1, 4, 3, seed=i), _random(1, 9, 5, seed=10 + i)) for i in range(3)]
    both = [list(part) for part in zip(*references, strict=True)]
    got = answer(references)
    demand(got is not None, "it returns None: is there a `return`?")
    demand(isinstance(got, tuple | list) and len(got) == 2, "it returns two things: F_r, then F_s")
    for name, part, parts in zip(("F_r", "F_s"), got, both, strict=True):
        equal(
            part,
            torch.cat(parts, dim=1),
            {
                f"{name} is averaged: a place of one picture is not that place of another. Join them": (
                    torch.stack(parts).mean(0)
                ),
                f"{name} is joined along the batch, so it is three people: the sequence is dim=1": torch.cat(parts),
                f"{name} is joined along the channels: the sequence is dim=1": torch.cat(parts, dim=2),
                f"{name} is that of the first picture alone": parts[0],
            },
        )
