"""Checks of 06_controlnet_composition."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from uniportrait_lite.learn.checks.verdict import check, demand, equal


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@check("A figure is drawn where this is less than half a line's width: any drawing is a question of distance.")
def segment_distance(answer: Callable[[Tensor, Tensor, int, int], Tensor]) -> None:
    """a, b (2,), height, width -> (height, width)."""
    a, b, height, width = torch.tensor([5.0, 3.0]), torch.tensor([11.0, 7.0]), 12, 18
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points, way = torch.stack([x, y], dim=-1).float(), b - a
    along = (points - a) @ way / way.square().sum()

    def distance(share: Tensor, points: Tensor = points) -> Tensor:
        return (points - (a + share[..., None] * way)).norm(dim=-1)

    flipped = points.flip(-1)
    mistakes = {
        "this is the distance from the endless line: keep the share of the way between 0 and 1": distance(along),
        "the line has no end at b: keep the share of the way below 1, too": distance(along.clamp(min=0)),
        "the line has no end at a: keep the share of the way above 0, too": distance(along.clamp(max=1)),
        "x and y are swapped: a pixel in row y and column x is the point (x, y)": (
            distance(((flipped - a) @ way / way.square().sum()).clamp(0, 1), flipped)
        ),
        "the share of the way is too large: divide by the squared length of b - a": (
            distance(((points - a) @ way / way.norm()).clamp(0, 1))
        ),
        "this is the squared distance: take its root": distance(along.clamp(0, 1)).square(),
        "this is the distance from the nearer end: the points between them belong to the segment": (
            torch.minimum(distance(torch.zeros_like(along)), distance(torch.ones_like(along)))
        ),
    }
    equal(answer(a, b, height, width), distance(along.clamp(0, 1)), mistakes)


@check("An edge that lies one pixel off is no mistake, one that is missing or too many is.")
def agreement(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Two edge maps (H, W), bool -> a number between 0 and 1."""
    a, b = torch.zeros(16, 20, dtype=torch.bool), torch.zeros(16, 20, dtype=torch.bool)
    a[2:14, 5] = True
    a[4, 8:18] = True
    a[0, 12:15], a[15, 2] = True, True  # at the border: what lies across it is not near
    b[15, 13:15], b[0, 2], b[9, 18] = True, True, True
    a[7, 12] = b[7, 12] = True  # by itself, at the same place in both
    b[3:12, 6] = True
    b[10, 9:15] = True
    b[6:15, 16] = True
    b[2, 12:19] = True
    b[4, 9:12] = True

    def near(x: Tensor, side: int = 3) -> Tensor:
        return F.max_pool2d(x.float()[None], side, stride=1, padding=side // 2)[0] > 0

    def neighbours(x: Tensor, moves: list[tuple[int, int]], wrap: bool = False) -> Tensor:
        padded = x if wrap else F.pad(x, (1, 1, 1, 1))
        seen = torch.stack([padded.roll(move, (0, 1)) for move in moves]).any(0)
        return seen if wrap else seen[1:-1, 1:-1]

    every = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]

    def cross(x: Tensor) -> Tensor:
        return neighbours(x, [move for move in every if 0 in move])

    def around(x: Tensor) -> Tensor:
        return neighbours(x, [move for move in every if any(move)])

    def wrapped(x: Tensor) -> Tensor:
        return neighbours(x, every, wrap=True)

    def f1(p: Tensor, r: Tensor) -> Tensor:
        return 2 * p * r / (p + r)

    p, r = near(b)[a].float().mean(), near(a)[b].float().mean()
    both = (near(a) & near(b)).float()
    mistakes = {
        "only edges at the very same pixel count: one pixel off should be no mistake": (
            f1(b[a].float().mean(), a[b].float().mean())
        ),
        "edges two pixels off count: near means one pixel, a neighbourhood of 3 x 3": (
            f1(near(b, 5)[a].float().mean(), near(a, 5)[b].float().mean())
        ),
        "this is the share of the first map's edges alone: an empty picture next to one right edge would be perfect": p,
        "this is the share of the second map's edges alone: what is too much in the first counts as well": r,
        "this is the mean of the two shares: F1 is their harmonic mean, low where one of them is": (p + r) / 2,
        "this is the product of the two shares: F1 is 2 p r / (p + r)": p * r,
        "this compares all pixels, and most are no edges in either": (near(a) == near(b)).float().mean(),
        "the factor of 2 is missing: F1 is 2 p r / (p + r)": p * r / (p + r),
        "the shares are counted over the other map's edges: each is of its own": f1(
            near(b)[a].float().sum() / b.sum(), near(a)[b].float().sum() / a.sum()
        ),
        "only neighbours above, below and beside count: the corners of the 3 x 3 pixels do, too": (
            f1(cross(b)[a].float().mean(), cross(a)[b].float().mean())
        ),
        "edges across the border count as near: what lies outside of the map is no edge": (
            f1(wrapped(b)[a].float().mean(), wrapped(a)[b].float().mean())
        ),
        "the same pixel does not count: it lies among the 3 x 3": (
            f1(around(b)[a].float().mean(), around(a)[b].float().mean())
        ),
        "this counts thickened edges: only the pixels of the edges themselves are asked whether one is near": (
            f1(both.sum() / near(a).sum(), both.sum() / near(b).sum())
        ),
    }
    equal(answer(a, b), f1(p, r), mistakes)


@check(
    "The weight's gradient does not depend on the weight. So a zero learns, while nothing that feeds it does as yet."
)
def zero_conv_gradients(answer: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> None:
    """weight (D, C), x (B, C, H, W), upstream (B, D, H, W) -> gradients of weight, bias and x."""
    weight, x, upstream = _random(3, 4), _random(2, 4, 5, 6, seed=1), _random(2, 3, 5, 6, seed=2)
    of_weight = torch.einsum("bdhw,bchw->dc", upstream, x)
    of_bias = upstream.sum((0, 2, 3))
    of_x = torch.einsum("dc,bdhw->bchw", weight, upstream)
    got = answer(weight, x, upstream)
    demand(got is not None, "it returns None: is there a `return`?")
    demand(isinstance(got, tuple | list) and len(got) == 3, "it returns three things: of weight, of bias, of x")
    places = x.shape[2] * x.shape[3]
    equal(
        got[0],
        of_weight,
        {
            "the weight's gradient holds the weight: y is linear in it, so what is left is x": of_weight * weight,
            "the weight's gradient is a mean over places: every place adds to it, so they are summed": (
                of_weight / places
            ),
            "the weight's gradient is a mean over batch and places: they are summed": of_weight / places / x.shape[0],
            "the weight's gradient is transposed: it has the weight's shape (D, C)": of_weight.T,
            "the weight's gradient is still one for each sample: sum over the batch": (
                torch.einsum("bdhw,bchw->bdc", upstream, x)
            ),
        },
    )
    equal(
        got[1],
        of_bias,
        {
            "the bias's gradient is a mean: the bias is added at every place, so all of them are summed": (
                upstream.mean((0, 2, 3))
            ),
            "the bias's gradient holds x: the bias is added to y as it is": of_weight.sum(1),
            "the bias's gradient is still one for each sample: sum over the batch": upstream.sum((2, 3)),
        },
    )
    equal(
        got[2],
        of_x,
        {
            "the gradient of x is zero only while the weight is: multiply with the weight": torch.zeros_like(x),
            "the gradient of x does not depend on x: y is linear in it": of_x * x,
        },
    )


@check("Each branch has a softmax of its own, so each can be turned down, or kept to a place, without the others.")
def three_branches(answer: Callable[..., Tensor]) -> None:
    """q (B, L, d); text, identity, image: (k, v) each; id_scale, image_scale; mask (B, L) -> (B, L, d)."""
    q = _random(2, 6, 8)
    pairs = [tuple(_random(2, n, 8, seed=10 * n + s) for s in (0, 1)) for n in (5, 3, 4)]
    mask = torch.tensor([[0, 0, 1, 1, 1, 0.5], [1, 0, 0, 1, 0, 1]])
    id_scale, image_scale = 0.7, 0.4
    text, identity, image = (F.scaled_dot_product_attention(q, k, v) for k, v in pairs)
    here = mask[..., None]
    masked_q = F.scaled_dot_product_attention(q * here, *pairs[2])
    k, v = (torch.cat(parts, 1) for parts in zip(*pairs, strict=True))
    mistakes = {
        "one softmax over all tokens: then image tokens take attention away from words and people": (
            F.scaled_dot_product_attention(q, k, v)
        ),
        "the mask is not used: the picture is heeded everywhere": text + id_scale * identity + image_scale * image,
        "the mask is on the identity: it belongs to the image prompt alone": (
            text + id_scale * here * identity + image_scale * image
        ),
        "the mask is on identity and image prompt: it belongs to the image prompt alone": (
            text + here * (id_scale * identity + image_scale * image)
        ),
        "the mask is on everything: text and identity are heeded everywhere": (
            here * (text + id_scale * identity + image_scale * image)
        ),
        "the mask is taken for all or nothing: values between 0 and 1 count in part, so multiply": (
            text + id_scale * identity + image_scale * (here > 0) * image
        ),
        "the mask is taken for all or nothing, and a half for nothing: values between count in part, so multiply": (
            text + id_scale * identity + image_scale * (here == 1) * image
        ),
        "the mask is turned round: 1 is where the picture is heeded": (
            text + id_scale * identity + image_scale * (1 - here) * image
        ),
        "the mask is on the query: a query of zeros still gets the mean of the values. Mask the result": (
            text + id_scale * identity + image_scale * masked_q
        ),
        "the two scales are swapped": text + image_scale * identity + id_scale * here * image,
        "the scales are not used": text + identity + here * image,
        "the identity's branch is missing": text + image_scale * here * image,
        "the text's branch is missing": id_scale * identity + image_scale * here * image,
    }
    right = text + id_scale * identity + image_scale * here * image
    equal(answer(q, *pairs, id_scale, image_scale, mask), right, mistakes)


@check("One formula, two directions: towards the picture alpha-bar grows, towards noise it falls.")
def ddim_step(answer: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """x and v (B, c, h, w), alpha-bar now and later -> x at the later step."""
    x, v = _random(2, 3, 4, 4), _random(2, 3, 4, 4, seed=1)
    now, later = torch.tensor(0.8), torch.tensor(0.35)

    def step(now: Tensor, later: Tensor, noisy: float = 1.0) -> Tensor:
        clean, noise = now.sqrt() * x - (1 - now).sqrt() * v, now.sqrt() * v + (1 - now).sqrt() * x
        return later.sqrt() * clean + noisy * (1 - later).sqrt() * noise

    clean, noise = now.sqrt() * x - (1 - now).sqrt() * v, now.sqrt() * v + (1 - now).sqrt() * x
    by_epsilon = (x - (1 - now).sqrt() * v) / now.sqrt()
    mistakes = {
        "v is taken for the noise: here the network predicts velocity, so noise has to be made of v and x": (
            later.sqrt() * by_epsilon + (1 - later).sqrt() * v
        ),
        "v is taken for the noise in the second term: make the noise of v and x first": (
            later.sqrt() * clean + (1 - later).sqrt() * v
        ),
        "now and later are swapped, or both signs: clean is the root of now times x, minus the rest times v": (
            step(later, now)
        ),
        "it stays where it is: mix clean picture and noise again by the later alpha-bar": step(now, now),
        "this is the predicted clean picture: mix noise into it again, as much as later has": clean,
        "the noise is missing: the later picture is not clean": step(now, later, noisy=0.0),
        "the noise comes in whole: its share is the root of 1 - later": later.sqrt() * clean + noise,
        "clean picture and noise have each other's share": later.sqrt() * noise + (1 - later).sqrt() * clean,
        "1 - sqrt(later) is not sqrt(1 - later)": later.sqrt() * clean + (1 - later.sqrt()) * noise,
        "the noise has the wrong sign: v and x are added in it": (
            later.sqrt() * clean + (1 - later).sqrt() * (now.sqrt() * v - (1 - now).sqrt() * x)
        ),
        "the clean picture has the wrong sign: v is subtracted in it": (
            later.sqrt() * (now.sqrt() * x + (1 - now).sqrt() * v) + (1 - later).sqrt() * noise
        ),
        "alpha-bar without its root: the shares are roots, so that their squares add up to 1": (
            later * (now * x - (1 - now) * v) + (1 - later) * (now * v + (1 - now) * x)
        ),
    }
    equal(answer(x, v, now, later), step(now, later), mistakes)


@check(
    "What is where stays; how strongly, and around which value, is the reference's: that much of style is statistics."
)
def adain(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """x and reference (B, L, C) -> (B, L, C)."""
    x = 2 * _random(2, 40, 3) + torch.tensor([1.0, -2.0, 0.5])
    reference = _random(2, 40, 3, seed=1) * torch.tensor([0.5, 3.0, 1.0]) + torch.tensor([4.0, 0.0, -1.0])

    def matched(dims: tuple[int, ...], x: Tensor = x, reference: Tensor = reference) -> Tensor:
        (s, m), (s_ref, m_ref) = (torch.std_mean(y, dim=dims, keepdim=True) for y in (x, reference))
        return (x - m) / s * s_ref + m_ref

    (s, m), (s_ref, m_ref) = (torch.std_mean(y, dim=1, keepdim=True) for y in (x, reference))
    mistakes = {
        "mean and deviation are taken over the channels: each channel keeps its own, over places, dim=1": matched((2,)),
        "mean and deviation are taken over all channels together: each channel has its own": matched((1, 2)),
        "mean and deviation are taken over the batch, too: each picture has its own": matched((0, 1)),
        "the roles are swapped: x is to be spread as the reference is": matched((1,), reference, x),
        "x is only normalised: now give it the reference's deviation and mean": (x - m) / s,
        "only the mean is taken over: the deviation, too": x - m + m_ref,
        "the reference's mean is missing": (x - m) / s * s_ref,
        "the mean of x is not taken off before": x / s * s_ref + m_ref,
        "x is normalised by one kind of deviation and spread by another (std's with n - 1, instance_norm's with n)": (
            (x - m) / torch.std(x, 1, unbiased=False, keepdim=True) * s_ref + m_ref
        ),
        "x keeps its own deviation: divide by it first": (x - m) * s_ref + m_ref,
        "the reference's variance is used: its root, the deviation, is meant": (x - m) / s * s_ref**2 + m_ref,
    }
    equal(answer(x, reference), matched((1,)), mistakes, tolerance=1e-3)


@check("The U-Net sees a whole picture in every step, and what it draws inside has to fit what is around it.")
def known_and_drawn(answer: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """drawn, clean, noise (B, c, h, w), inside (1, 1, h, w), alpha-bar -> latents (B, c, h, w)."""
    drawn, clean, noise = (_random(2, 3, 6, 6, seed=s) for s in range(3))
    inside, alpha_bar = torch.zeros(1, 1, 6, 6), torch.tensor(0.7)
    inside[..., 1:4, 2:5] = 1

    def put(outside: Tensor, inside: Tensor = inside) -> Tensor:
        return inside * drawn + (1 - inside) * outside

    known = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
    mistakes = {
        "the mask is turned round: inside, where it is 1, the drawn latents stay": put(known, 1 - inside),
        "the known latents are clean: beside noisy ones they look wrong to the U-Net. Noise them first": put(clean),
        "outside is nothing but noise: the known latents belong there": put(noise),
        "alpha-bar without its root: the shares are roots": put(alpha_bar * clean + (1 - alpha_bar) * noise),
        "the shares are swapped: alpha-bar, that of the picture, grows to 1 at the end": (
            put((1 - alpha_bar).sqrt() * clean + alpha_bar.sqrt() * noise)
        ),
        "noise is added to the drawn latents, too: they are as noisy as they should be": (
            alpha_bar.sqrt() * put(clean) + (1 - alpha_bar).sqrt() * noise
        ),
        "the noise lies on everything: put brackets around the noised known latents": (
            put(alpha_bar.sqrt() * clean) + (1 - alpha_bar).sqrt() * noise
        ),
        "1 - sqrt(alpha_bar) is not sqrt(1 - alpha_bar)": put(
            alpha_bar.sqrt() * clean + (1 - alpha_bar.sqrt()) * noise
        ),
        "the noise comes on top: the picture's share shrinks as that of noise grows": (
            put(clean + (1 - alpha_bar).sqrt() * noise)
        ),
    }
    equal(answer(drawn, clean, noise, inside, alpha_bar), put(known), mistakes)
