"""Checks of 03_id_routing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniportrait_lite.assignment import assign
from uniportrait_lite.id_routing import box_masks, one_hot
from uniportrait_lite.learn.checks.verdict import check, demand, equal


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@check("One softmax for all: whoever has hair answers the question for hair, and both are mixed, everywhere.")
def concatenated(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """q (B, L, d), keys and values (B, N, T, d) of N identities -> (B, L, d)."""
    q, keys, values = _random(2, 5, 4), _random(2, 3, 6, 4, seed=1), _random(2, 3, 6, 4, seed=2)
    attend = F.scaled_dot_product_attention
    each = torch.stack([attend(q, keys[:, n], values[:, n]) for n in range(3)])
    right = attend(q, keys.flatten(1, 2), values.flatten(1, 2))
    mistakes = {
        "each identity has a softmax of its own here, and the results are averaged: put all tokens into one sequence": (
            each.mean(0)
        ),
        "each identity has a softmax of its own here, and the results are added: put all tokens into one sequence": (
            each.sum(0)
        ),
        "the identities' tokens are averaged: they should stand one after another": attend(
            q, keys.mean(1), values.mean(1)
        ),
        "only the first identity is read": each[0],
        "the scores are not divided by the root of d: F.scaled_dot_product_attention does it": (
            (q @ keys.flatten(1, 2).transpose(1, 2)).softmax(-1) @ values.flatten(1, 2)
        ),
    }
    equal(answer(q, keys, values), right, mistakes)


@check("One number for each identity and place: how well what is there fits that person.")
def routing_logits(answer: Callable[..., Tensor]) -> None:
    """positions (B, L, C), tokens (B, N, 16, D), aggregate, theta, phi -> (B, N, L)."""
    positions, tokens = _random(2, 5, 4), _random(2, 3, 16, 16, seed=1)
    aggregate, theta, phi = nn.Linear(16, 1), nn.Linear(4, 6), nn.Sequential(nn.Tanh(), nn.Linear(16, 6))
    for seed, p in enumerate((*aggregate.parameters(), *theta.parameters(), *phi.parameters()), 2):
        p.requires_grad_(False).copy_(_random(*p.shape, seed=seed))

    def logits(keys: Tensor) -> Tensor:
        return keys @ theta(positions).transpose(1, 2)

    one = aggregate(tokens.transpose(-1, -2)).squeeze(-1)
    right = logits(phi(one))
    mistakes = {
        "the logits are divided by a root: here the paper has the bare product": right / 6**0.5,
        "places come before identities: (B, N, L) is wanted, so swap the two": right.transpose(1, 2),
        "aggregate reads the channels of each token: it should read the 16 tokens, so transpose first": logits(
            phi(aggregate(tokens).squeeze(-1))
        ),
        "the tokens are averaged: aggregate has a learned weight for each of the 16": logits(phi(tokens.mean(2))),
        "phi comes before the tokens are brought down to one": logits(
            aggregate(phi(tokens).transpose(-1, -2)).squeeze(-1)
        ),
        "this is the softmax: the logits themselves are wanted": right.softmax(dim=1),
    }
    equal(answer(positions, tokens, aggregate, theta, phi), right, mistakes)


@check("At each place one identity speaks, at full strength, and the others not at all.")
def route(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """logits (B, N, L), outputs (B, N, L, C) -> (B, L, C)."""
    logits, outputs = _random(2, 3, 7), _random(2, 3, 7, 4, seed=1)
    psi = one_hot(logits)
    places = torch.zeros_like(logits).scatter(2, logits.argmax(dim=2, keepdim=True), 1.0)

    def mixed(weights: Tensor) -> Tensor:
        return (weights.unsqueeze(-1) * outputs).sum(1)

    mistakes = {
        "the identities are mixed by softmax: only the one with the largest logit should speak": mixed(
            logits.softmax(1)
        ),
        "the largest is taken over the places: at each place, it is the largest over the identities, dim=1": (
            mixed(places)
        ),
        "softmax runs over the places": mixed(logits.softmax(2)),
        "the winner's output is multiplied with its logit: it counts 1": mixed(psi * logits),
        "all identities speak everywhere": outputs.sum(1),
        "the one with the smallest logit is taken": mixed(one_hot(-logits)),
        "the outputs are masked, but not yet added up over the identities": psi.unsqueeze(-1) * outputs,
    }
    equal(answer(logits, outputs), mixed(psi), mistakes)


@check("Noise in the logits: the largest is then a draw from their softmax, and temperature says how sharp.")
def gumbel_softmax(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """logits (B, N, L), uniform (B, N, L) in (0, 1), temperature -> (B, N, L)."""
    logits, temperature = _random(2, 3, 7), 0.5
    uniform = torch.rand(2, 3, 7, generator=torch.Generator().manual_seed(1)) * 0.98 + 0.01
    noise = -(-uniform.log()).log()
    mistakes = {
        "there is no noise in it": (logits / temperature).softmax(1),
        "the noise is uniform: first bring it to a Gumbel's, -log(-log(u))": (
            ((logits + uniform) / temperature).softmax(1)
        ),
        "one logarithm is missing: -log(-log(u))": ((logits - uniform.log()) / temperature).softmax(1),
        "the noise has the wrong sign: -log(-log(u))": ((logits - noise) / temperature).softmax(1),
        "the temperature multiplies: it divides, so that a low one is sharp": (
            ((logits + noise) * temperature).softmax(1)
        ),
        "the temperature is not used": (logits + noise).softmax(1),
        "only the logits are divided: the temperature divides the noise, too": (
            (logits / temperature + noise).softmax(1)
        ),
        "softmax runs over the places: the identities compete, dim=1": ((logits + noise) / temperature).softmax(2),
        "the noise comes after the softmax": (logits / temperature).softmax(1) + noise,
    }
    equal(answer(logits, uniform, temperature), ((logits + noise) / temperature).softmax(1), mistakes)


@check("Forwards it is one-hot, as at inference; backwards it is as soft as if nothing had been chosen.")
def straight_through(answer: Callable[[Tensor], Tensor]) -> None:
    """soft (B, N, L), shares of N identities -> the same shape: one-hot, with the gradient of soft."""
    with torch.enable_grad():
        soft = _random(2, 3, 7).softmax(1).requires_grad_()
        weight = _random(2, 3, 7, seed=1)
        got = answer(soft)
        wrong_dim = torch.zeros_like(soft).scatter(2, soft.argmax(dim=2, keepdim=True), 1.0)
        mistakes = {
            "its values are the soft ones: forwards it should be one-hot": soft,
            "the largest is taken over the places: the identities compete, dim=1": wrong_dim,
            "its values are one-hot plus soft: subtract the soft ones again, detached": one_hot(soft) + soft,
            "the winner keeps its share: forwards it counts 1": one_hot(soft) * soft,
        }
        equal(got, one_hot(soft.detach()), mistakes)
        nothing = "no gradient comes through: the values are right, but one-hot knows no slope. Add soft, and subtract "
        demand(got.requires_grad, f"{nothing}soft.detach()")
        gradient = torch.autograd.grad((got * weight).sum(), soft, allow_unused=True)[0]
    demand(gradient is not None, f"{nothing}soft.detach()")
    demand(bool(gradient.any()), "the gradient is 0: soft is added and subtracted, but one of the two must be detached")
    equal(
        gradient,
        weight,
        {
            "the gradient points the wrong way: it is the subtracted soft that must be detached": -weight,
            "the gradient reaches the winners alone: the losers should hear of it, too": weight * one_hot(soft),
            "the gradient reaches the winners alone, divided by their shares: add soft, and subtract soft.detach()": (
                weight * (one_hot(soft) / soft).detach()
            ),
        },
    )


@check("Inside faces the map has to name the right person; the background is free, and every layer counts alike.")
def routing_loss(answer: Callable[[dict[str, Tensor], Tensor], Tensor]) -> None:
    """maps: psi (B, N, h, w) of each layer; boxes (B, N, 4), shares of the picture -> the loss, one number."""
    boxes = torch.tensor([[(0.0, 0.1, 0.5, 0.9), (0.3, 0.0, 0.9, 0.6)], [(0.6, 0.3, 1.0, 0.7), (0.1, 0.2, 0.35, 0.6)]])
    sizes = ((8, 12), (6, 9), (4, 6))
    maps = {f"layer {k}": _random(2, 2, *size, seed=k).softmax(1) for k, size in enumerate(sizes)}

    def loss(free: bool = True, by_n: bool = True, by_place: str = "union", mean: bool = True, square: bool = True):
        losses = []
        for psi in maps.values():
            masks = box_masks(boxes, psi.shape[-2:])
            union = masks.amax(1, keepdim=True)
            errors = psi - masks
            errors = (union if free else 1.0) * (errors.square() if square else errors.abs())
            errors = errors.mean(1) if by_n else errors.sum(1)
            count = {"union": union.sum(), "all": torch.tensor(float(errors.numel())), "sum": torch.tensor(1.0)}
            losses.append(errors.sum() / count[by_place])
        return torch.stack(losses).mean() if mean else torch.stack(losses).sum()

    def parts(own: bool = False, doubly: bool = False) -> tuple[Tensor, Tensor]:
        """The errors added up, and the number of places, by layer and picture (layers, B)."""
        errors, counts = [], []
        for psi in maps.values():
            masks = box_masks(boxes, psi.shape[-2:])
            union = masks.sum(1, keepdim=True) if doubly else masks.amax(1, keepdim=True)
            errors.append(((masks if own else union) * (psi - masks)).square().mean(1).sum((1, 2)))
            counts.append(union.sum((1, 2, 3)))
        return torch.stack(errors), torch.stack(counts)

    def mean_of(errors: Tensor, counts: Tensor) -> Tensor:
        return (errors.sum(1) / counts.sum(1)).mean()

    right, (errors, counts) = loss(), parts()
    mistakes = {
        "each picture is averaged by itself: add up errors and places over all pictures, then divide": (
            (errors / counts).mean()
        ),
        "the places of all layers are counted together: each layer has a mean of its own, then the mean of these": (
            errors.sum() / counts.sum()
        ),
        "each identity's errors count inside its own box alone: inside the union of all boxes they should": mean_of(
            *parts(own=True)
        ),
        "where boxes overlap W is 2: it is 1 where any of the masks is, the largest over the identities": mean_of(
            *parts(doubly=True)
        ),
        "the background counts, too: multiply with the union of the masks, W": loss(free=False, by_place="all"),
        "the background counts, too, though you divide by the places of W: multiply with W": loss(free=False),
        "the errors are not divided by N: average over the identities": loss(by_n=False),
        "you divide by all places: only those in W count": loss(by_place="all"),
        "the errors are added up: divide by the number of places in W": loss(by_place="sum"),
        "the layers are added up: take their mean": loss(mean=False),
        "the errors are not squared": loss(square=False),
        "lambda is in it already: leave it out": 0.1 * right,
    }
    equal(answer(maps, boxes), right, mistakes)


@check("Claimed once: yours. Claimed by several: shared. Claimed by nobody: the prompt's alone.")
def shares(answer: Callable[[Tensor, tuple[int, int]], Tensor]) -> None:
    """masks (1, N, H, W), 0 to 1, and a layer's (h, w) -> psi (1, N, h, w)."""
    masks = torch.zeros(1, 3, 16, 24)
    masks[0, 0, :, :9], masks[0, 1, 3:, 6:13], masks[0, 2, 3:13, 5:19] = 1, 1, 1
    small = F.interpolate(masks, size=(4, 6), mode="area")
    total = small.sum(1, keepdim=True)
    nearest, bilinear = (F.interpolate(masks, size=(4, 6), mode=mode) for mode in ("nearest", "bilinear"))
    mistakes = {
        "places that nobody claims give NaN: divide by the sum only where it is above 1, clamp_min(1)": small / total,
        "edges that one person claims in part are made whole: divide only where the sum is above 1, clamp_min(1)": (
            small / total.clamp_min(1e-8)
        ),
        "what several claim counts several times: divide by the sum over the identities": small,
        "softmax gives something to those who claim nothing": small.softmax(1),
        "each mask is divided by its own sum over the places: at each place, add up the identities": (
            small / small.sum((2, 3), keepdim=True)
        ),
        "the masks are sampled, not averaged: mode='area' keeps the share that is covered": (
            nearest / nearest.sum(1, keepdim=True).clamp_min(1)
        ),
        "bilinear reads four pixels of those that a place covers: mode='area' averages all": (
            bilinear / bilinear.sum(1, keepdim=True).clamp_min(1)
        ),
        "the masks keep the picture's size: bring them to the layer's": masks / masks.sum(1, keepdim=True).clamp_min(1),
    }
    got = answer(masks.clone(), (4, 6))
    if isinstance(got, Tensor) and got.shape == small.shape and got.isnan().any():
        got = got.detach().nan_to_num(-1.0)  # NaN is equal to nothing, not even to itself
    mistakes = {said: wrong.nan_to_num(-1.0) for said, wrong in mistakes.items()}
    equal(got, small / total.clamp_min(1), mistakes)


@check("The best sum decides who has which face; who is doubled or missing is told by counting the nearest.")
def who_is_where(answer: Callable[[np.ndarray], tuple[Any, Any]]) -> None:
    """similarities (F, N) -> face_of, a list of N face numbers or None; counts, a list of N."""
    cases = [
        np.array([[0.8, 0.7, 0.1], [0.6, 0.1, 0.2], [0.3, 0.2, 0.5]]),  # the best pair is not in the best sum
        np.array([[0.7, 0.1, 0.4], [0.6, 0.2, 0.1]]),  # a face too few
        np.array([[0.1, 0.5], [0.7, 0.2], [0.2, 0.4]]),  # and one too many
    ]
    for similarities in cases:
        faces, people = similarities.shape
        found = assign(np.zeros((faces, 4)), similarities, np.eye(people))
        got = answer(similarities.copy())
        demand(got is not None, "it returns None: is there a `return`?")
        demand(isinstance(got, tuple | list) and len(got) == 2, "it returns two things: face_of, then counts")
        face_of, counts = (_plain(part) for part in got)
        wrong = {
            "the worst sum is taken: linear_sum_assignment looks for the smallest, so give it -similarities": (
                _matched(similarities)
            ),
            "each person gets the face nearest to them, so two may get the same one: match them one to one": (
                similarities.argmax(0).tolist()
            ),
            "the best pair is taken first, then the next: that need not be the best sum": _greedy(similarities),
            "it says which person each face has: for each person, the number of their face is wanted": (
                _matched(-similarities.T)
            ),
        }
        right = list(found.face_of)
        for said, mistaken in wrong.items():
            demand(face_of == right or face_of != mistaken, said)
        demand(len(face_of) == people, f"face_of has {len(face_of)} entries for {people} people: None for who has none")
        demand(face_of == right, f"for the similarities {similarities.tolist()} face_of is {right}, not {face_of}")
        matched = [int(face is not None) for face in right]
        right = list(found.counts)
        of_faces = np.bincount(similarities.argmax(0), minlength=people)[:people].tolist()
        demand(
            counts == right or counts != matched,
            "the counts are those of the matching, which never doubles anybody: count, for each face, who is nearest",
        )
        demand(
            counts == right or counts != of_faces,
            "counted is which face is nearest to each person: for each face, take the person who is nearest, axis=1",
        )
        demand(counts == right, f"for the similarities {similarities.tolist()} counts are {right}, not {counts}")


def _plain(values: Any) -> list:
    """Numbers of numpy or torch as Python's."""
    return [None if value is None else int(value) for value in values]


def _matched(costs: np.ndarray) -> list[int | None]:
    """For each column its row, by the smallest sum of costs."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(costs)
    own = dict(zip(columns.tolist(), rows.tolist(), strict=True))
    return [own.get(n) for n in range(costs.shape[1])]


def _greedy(similarities: np.ndarray) -> list[int | None]:
    """The best pair first, and so on."""
    left, found = similarities.astype(float).copy(), [None] * similarities.shape[1]
    for _ in range(min(left.shape)):
        face, person = np.unravel_index(left.argmax(), left.shape)
        found[person] = int(face)
        left[face, :], left[:, person] = -np.inf, -np.inf
    return found
