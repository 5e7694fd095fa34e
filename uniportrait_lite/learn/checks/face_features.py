"""Checks of 01_face_features."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from insightface.utils.face_align import arcface_dst
from torch import Tensor

from uniportrait_lite.backbone import with_margin as _with_margin
from uniportrait_lite.learn.checks.verdict import Mistake, check, equal, learning, same_gradients


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@check("Four numbers bring any face to the same place, however tilted, and cannot bend it.")
def similarity(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """points (5, 2), template (5, 2) -> the similarity (2, 3) that brings the points nearest to the template."""
    template = torch.from_numpy(arcface_dst)
    turn = torch.tensor([[0.8, -0.5], [0.5, 0.8]])
    points = template @ turn.T * 1.7 + torch.tensor([40.0, -12.0]) + 2 * _random(5, 2)
    wanted = _fitted(points, template)
    spread, target = points - points.mean(0), template - template.mean(0)
    scale = (spread * target).sum() / spread.square().sum()
    mistakes = {
        "it has six free numbers, so it may shear and stretch the face: a similarity has four, a, b, u and v": (
            torch.linalg.lstsq(torch.cat([points, torch.ones(5, 1)], 1), template).solution.T
        ),
        "it turns the wrong way round: the first row is (a, -b, u), the second (b, a, v)": (
            wanted * torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]])
        ),
        "it brings the template to the face: the crop needs the way from the face to the template": (
            _fitted(template, points)
        ),
        "it only moves and scales: where is the rotation, b?": (
            torch.cat([scale * torch.eye(2), (template.mean(0) - scale * points.mean(0))[:, None]], 1)
        ),
    }
    x, y, one, zero = *points.T, torch.ones(5), torch.zeros(5)
    first, second = torch.stack([x, -y, one, zero], 1), torch.stack([y, x, zero, one], 1)
    for said, rows, targets in (
        ("rows and targets are in different orders: all x' first, then all y', in both", [first, second], template),
        (
            "the rows of y' are (y, x, 0, 1): y' = b x + a y + v",
            [first, torch.stack([x, y, zero, one], 1)],
            template.T,
        ),
    ):
        a, b, u, v = torch.linalg.lstsq(torch.cat(rows), targets.flatten()).solution
        mistakes[said] = torch.stack([a, -b, u, b, a, v]).view(2, 3)
    equal(answer(points, template), wanted, mistakes, tolerance=1e-3)


def _fitted(points: Tensor, template: Tensor) -> Tensor:
    """The similarity (2, 3) of least squares: points as complex numbers, which a + ib turns and scales."""
    z, w = (torch.complex(*x.T) for x in (points, template))
    spread = z - z.mean()
    turn = (spread.conj() * (w - w.mean())).sum() / spread.abs().square().sum()
    shift = w.mean() - turn * z.mean()
    return torch.stack([turn.real, -turn.imag, shift.real, turn.imag, turn.real, shift.imag]).view(2, 3)


@check("Only the direction counts: how long a vector is says how clear a face is, not whose it is.")
def cosines(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """a (N, D), b (M, D) -> their cosines (N, M)."""
    a, b = _random(4, 8) * 3, _random(5, 8, seed=1)
    unit_a, unit_b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    mistakes = {
        "these are dot products: long vectors win. Divide each vector by its length first": a @ b.T,
        "each feature was normalised over the pictures: the length of a vector is over dim=1": F.normalize(a, dim=0)
        @ F.normalize(b, dim=0).T,
        "only one of the two was brought to length 1": unit_a @ b.T,
        "only one of the two was brought to length 1 ": a @ unit_b.T,
        "these are distances: small where alike. A cosine is a dot product": torch.cdist(unit_a, unit_b),
        "rows and columns are swapped: row i belongs to a[i]": unit_b @ unit_a.T,
        "it is divided by squared lengths: by the lengths themselves": a
        @ b.T
        / (a.square().sum(1)[:, None] * b.square().sum(1)),
        "everything is divided by the length of all vectors together: each has its own, over dim=1": (
            a @ b.T / (a.norm() * b.norm())
        ),
        "these are angles: their cosines are wanted": (unit_a @ unit_b.T).clamp(-1, 1).acos(),
    }
    equal(answer(a, b), unit_a @ unit_b.T, mistakes)


@check("The right class has to win by an angle, not by a hair: that pulls pictures of one person together.")
@torch.enable_grad()
def with_margin(answer: Callable[[Tensor, float], Tensor]) -> None:
    """cos(theta) (...), m -> cos(theta + m)."""
    cosine, margin = learning(torch.linspace(-0.85, 0.98, 40).view(8, 5)), 0.4
    angle = cosine.acos()
    mistakes = {
        "the margin is 0.5 whatever is asked for: use margin": (angle + 0.5).cos(),
        "the margin is taken for degrees: it is in radians, as acos is": (angle + margin * torch.pi / 180).cos(),
        "the sine is the root of 1 - cos^2: the root is missing": (
            cosine * torch.tensor(margin).cos() - (1 - cosine.square()) * torch.tensor(margin).sin()
        ),
        "that subtracts the margin from the cosine (CosFace): here it is added to the angle": cosine - margin,
        "it adds the margin to the cosine: go to the angle first, with acos": cosine + margin,
        "it takes the cosine of a cosine: go to the angle first, with acos": (cosine + margin).cos(),
        "the angle gets smaller: a margin makes the task harder, so it is added": (angle - margin).cos(),
        "it multiplies the angle (SphereFace): here the margin is added": (angle * margin).cos(),
        "it returns the angle: take its cosine": angle + margin,
    }
    got, wanted = answer(cosine, margin), (angle + margin).cos()
    equal(got, wanted, mistakes, tolerance=1e-3)
    same_gradients(got, wanted, {"cosine": cosine})


@check("Negatives that beat the right class weigh little at first (t near 0), and more and more as t rises.")
@torch.enable_grad()
def curricular(answer: Callable[[Tensor, Tensor, float, float], Tensor]) -> None:
    """cosines (B, C), labels (B,), t, m -> the logits (B, C), before the scale."""
    cosines, labels, t, margin = learning(_random(6, 7).mul(0.4).clamp(-0.8, 0.8)), torch.arange(6), 0.2, 0.4
    row = labels[:, None]
    positive = cosines.gather(1, row)
    target = _with_margin(positive, margin)
    harder = cosines * (t + cosines)

    def filled(negatives: Tensor, own: Tensor = target) -> Tensor:
        return negatives.scatter(1, row, own)

    mistakes = {
        "the right class has its bare cosine: it should have T = cos(theta + m)": filled(
            torch.where(cosines > target, harder, cosines), positive
        ),
        "hard is what beats T, the right class with its margin, not its bare cosine": filled(
            torch.where(cosines > positive, harder, cosines)
        ),
        "all negatives are reweighted: those below T are easy, and stay as they are": filled(harder),
        "it reweights the easy negatives: hard are those above T": filled(
            torch.where(cosines > target, cosines, harder)
        ),
        "no negative is reweighted: that is ArcFace's loss": filled(cosines),
        "the margin is for the right class alone": _with_margin(cosines, margin),
        "t is 0.3 whatever is asked for: use t": filled(
            torch.where(cosines > target, cosines * (0.3 + cosines), cosines)
        ),
        "cos is not multiplied with t + cos: add first, then multiply": filled(
            torch.where(cosines > target, cosines * t + cosines, cosines)
        ),
        "cos is not multiplied: it becomes cos (t + cos)": filled(torch.where(cosines > target, t + cosines, cosines)),
        "it is scaled already: s comes later": 64 * filled(torch.where(cosines > target, harder, cosines)),
        "T is cos(theta + m), on the angle, and not cos(theta) - m": torch.where(
            cosines > positive - margin, harder, cosines
        ).scatter(1, row, positive - margin),
        "a hard negative becomes cos (t + cos): t is added, then multiplied": filled(
            torch.where(cosines > target, cosines * t, cosines)
        ),
        "the right class was reweighted like a negative: put T in its place at the end": torch.where(
            cosines > target, harder, cosines
        ),
    }
    got, wanted = answer(cosines, labels, t, margin), filled(torch.where(cosines > target, harder, cosines))
    equal(got, wanted, mistakes)
    same_gradients(got, wanted, {"cosines": cosines})


@check("Each place of the map is a token now, and attention can choose among them.")
def as_tokens(answer: Callable[[Tensor], Tensor]) -> None:
    """A map (B, C, H, W) -> its tokens (B, H W, C), row by row."""
    features = _random(2, 5, 3, 4)
    mistakes = {
        "channels still come before places: a token is one place with all its channels": features.flatten(2),
        "reshape only cuts the row of numbers anew, so a token holds values of several channels: transpose": (
            features.reshape(2, 12, 5)
        ),
        "the places go column by column: rows come first": features.transpose(2, 3).flatten(2).transpose(1, 2),
        "places are averaged: that is a global vector again": features.mean((2, 3)),
    }
    equal(answer(features), features.flatten(2).transpose(1, 2), mistakes)


@check("Shallow maps and CLIP's patches, place by place: what the face looks like in this very picture.")
def structure(answer: Callable[[list[Tensor], list[Tensor]], Tensor]) -> None:
    """Four maps (B, C, h, w), CLIP's hidden states, each (B, 17, D) -> face structure features (B, 16, ...)."""
    maps = [_random(2, c, s, s, seed=s) for c, s in ((2, 16), (3, 8), (4, 6), (5, 2))]
    hidden = [_random(2, 17, 6, seed=i) for i in range(7)]
    sized = [F.interpolate(m, size=(4, 4), mode="bilinear", align_corners=False) for m in maps]
    corners = [F.interpolate(m, size=(4, 4), mode="bilinear", align_corners=True) for m in maps]
    nearest = [F.interpolate(m, size=(4, 4)) for m in maps]
    areas = [F.interpolate(m, size=(4, 4), mode="area") for m in maps]
    smooth = [F.interpolate(m, size=(4, 4), mode="bilinear", antialias=True) for m in maps]

    def joined(maps: list[Tensor], clip: Tensor, clip_first: bool = False) -> Tensor:
        parts = [torch.cat(maps, 1).flatten(2).transpose(1, 2), clip]
        return torch.cat(parts[::-1] if clip_first else parts, dim=-1)

    wanted = joined(sized[:3], hidden[-2][:, 1:])
    mistakes = {
        "CLIP's last hidden states are used: the paper takes the second-to-last": joined(sized[:3], hidden[-1][:, 1:]),
        "the last token was dropped: CLIP's class token is the first": joined(sized[:3], hidden[-2][:, :-1]),
        "the fourth map is in it: that one is F_r, structure takes the three shallow ones": joined(
            sized, hidden[-2][:, 1:]
        ),
        "the order is: the maps' channels, then CLIP's": joined(sized[:3], hidden[-2][:, 1:], clip_first=True),
        "the maps go from the shallow to the deep one": joined(sized[2::-1], hidden[-2][:, 1:]),
        "align_corners=True: leave it False, as pixels are areas, not points": joined(corners[:3], hidden[-2][:, 1:]),
        "that picks single pixels of the maps: resize with mode='bilinear'": joined(nearest[:3], hidden[-2][:, 1:]),
        "areas are averaged: resize with mode='bilinear'": joined(areas[:3], hidden[-2][:, 1:]),
        "antialias=True averages what bilinear leaves out: leave it off": joined(smooth[:3], hidden[-2][:, 1:]),
        "CLIP's tokens are of an earlier layer: the second-to-last is the last but one of the list": joined(
            sized[:3], hidden[2][:, 1:]
        ),
        "the maps' places go column by column: rows come first, as in CLIP's tokens": joined(
            [m.transpose(2, 3) for m in sized[:3]], hidden[-2][:, 1:]
        ),
    }
    try:
        got = answer(maps, hidden)
    except RuntimeError as error:
        if "Sizes of tensors must match" not in str(error):
            raise
        raise Mistake(
            "the tokens of the two are not as many: is CLIP's class token, the first, still there, and has each map "
            "CLIP's grid of patches?"
        ) from error
    equal(got, wanted, mistakes)
