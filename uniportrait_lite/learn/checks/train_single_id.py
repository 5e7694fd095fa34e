"""Checks of 04_train_single_id."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from uniportrait_lite.learn.checks.verdict import Mistake, check, demand, equal, learning, same_gradients


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _per_sample(alpha_bar: Tensor) -> Tensor:
    return alpha_bar[:, None, None, None]


@check("One formula gives any amount of noise in one go: no training walks through the steps before.")
def noisy(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """clean and noise (B, c, h, w), alpha_bar (B,) -> the noisy latents (B, c, h, w)."""
    clean, noise, alpha_bar = _random(4, 3, 2, 4), _random(4, 3, 2, 4, seed=1), torch.tensor([0.9, 0.6, 0.3, 0.05])
    a = _per_sample(alpha_bar)
    mistakes = {
        "alpha_bar is used without its root: then the noisy latents would not keep their variance": (
            a * clean + (1 - a) * noise
        ),
        "the two are swapped: alpha_bar near 1 means little noise": (1 - a).sqrt() * clean + a.sqrt() * noise,
        "the noise has the root of alpha_bar, too: it should have the root of 1 - alpha_bar": a.sqrt()
        * (clean + noise),
        "the noise is added in full: it gets the root of 1 - alpha_bar": a.sqrt() * clean + noise,
        "the picture's share lacks its root: sqrt(alpha_bar)": a * clean + (1 - a).sqrt() * noise,
        "the noise's share lacks its root: sqrt(1 - alpha_bar)": a.sqrt() * clean + (1 - a) * noise,
        "all samples get the first one's alpha_bar: each has its own": (
            a[:1].sqrt() * clean + (1 - a[:1]).sqrt() * noise
        ),
        "1 - sqrt(alpha_bar) is not sqrt(1 - alpha_bar)": a.sqrt() * clean + (1 - a.sqrt()) * noise,
        "alpha_bar went along the columns: it is one number for each sample, so give it the shape (B, 1, 1, 1)": (
            alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
        ),
    }
    equal(answer(clean, noise, alpha_bar), a.sqrt() * clean + (1 - a).sqrt() * noise, mistakes)


@check("From v and the noisy latents both can be had again, picture and noise, however much of it there is.")
def velocity(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """clean and noise (B, c, h, w), alpha_bar (B,) -> v (B, c, h, w)."""
    clean, noise, alpha_bar = _random(3, 4, 2, 5), _random(3, 4, 2, 5, seed=1), torch.tensor([0.9, 0.5, 0.1])
    a = _per_sample(alpha_bar)
    v = a.sqrt() * noise - (1 - a).sqrt() * clean
    mistakes = {
        "that is the noise, which the paper's base model predicts: this one predicts v": noise.clone(),
        "that is the noisy picture: in v the noise has the root of alpha_bar, and the picture is subtracted": (
            a.sqrt() * clean + (1 - a).sqrt() * noise
        ),
        "the sign is turned: the noise counts positive, the picture negative": -v,
        "the roots are swapped: the noise has that of alpha_bar": (1 - a).sqrt() * noise - a.sqrt() * clean,
        "the picture is added: it is subtracted": a.sqrt() * noise + (1 - a).sqrt() * clean,
        "the roots are swapped, and the sign is turned: the noise counts positive, with the root of alpha_bar": (
            a.sqrt() * clean - (1 - a).sqrt() * noise
        ),
        "alpha_bar is used without its root": a * noise - (1 - a) * clean,
    }
    equal(answer(clean, noise, alpha_bar), v, mistakes)


@check("A weighted mean: small things count as the person looking at the picture would count them.")
@torch.enable_grad()
def face_loss(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """error and inside (B, h, w), weight -> the weighted mean, a number as a tensor ()."""
    error = learning(_random(3, 4, 6).square())
    inside, weight = (_random(3, 4, 6, seed=1) > 0.6).float(), 3.0
    weights = 1 + (weight - 1) * inside
    each = (error * weights).sum((1, 2)) / weights.sum((1, 2))
    more = 1 + weight * inside
    flipped = 1 + (weight - 1) * (1 - inside)
    mistakes = {
        "it is divided by the number of places: divide by the sum of the weights, or more weight is more loss": (
            (error * weights).mean()
        ),
        "it is the sum, not the mean: divide by the sum of the weights": (error * weights).sum(),
        "the weight is not used": error.mean(),
        "outside of the face nothing counts any more: it should count once": (error * inside).sum() / inside.sum(),
        "inside it counts 1 + weight times: it should count weight times": (error * more).sum() / more.sum(),
        "the background counts more, not the face": (error * flipped).sum() / flipped.sum(),
        "each sample has a mean of its own, and then these are averaged: take one mean over all": each.mean(),
        "it gives a number for each sample: one mean over all is wanted": each,
        "inside and outside have a mean each here, and then these are put together: take one mean over all places": (
            (weight * (error * inside).sum() / inside.sum() + (error * (1 - inside)).sum() / (1 - inside).sum())
            / (weight + 1)
        ),
    }
    got, wanted = answer(error, inside, weight), (error * weights).sum() / weights.sum()
    equal(got, wanted, mistakes)
    same_gradients(got, wanted, {"error": error})


class _Base(nn.Module):
    """A frozen network with something added inside it, as a LoRA is."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.lora = nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(3, 1, bias=False)


@check("Frozen is what gets no gradient of its own. Gradients still pass through it, to what was added.")
def trained_only(answer: Callable[[nn.Module, Sequence[nn.Module]], Iterable[nn.Parameter]]) -> None:
    """A base and the modules added to it, some of them inside -> the parameters to train; the rest is frozen."""
    base, embedding = _Base(), nn.Linear(4, 4)
    base.lora.requires_grad_(False)  # as an earlier stage may have left it
    added = [base.lora, embedding]
    wanted = [p for module in added for p in module.parameters()]
    got = answer(base, added)
    frozen = [*base.first.parameters(), *base.second.parameters()]
    demand(
        not any(p.requires_grad for p in frozen),
        "the base is not frozen: requires_grad_(False) does it (eval() does not)",
    )
    demand(
        base.lora.weight.requires_grad,
        "what was added inside the base is frozen with it: freeze the base first, then unfreeze what was added",
    )
    demand(all(p.requires_grad for p in wanted), "something of what was added is frozen")
    demand(got is not None, "it returns None: is there a `return`?")
    demand(isinstance(got, list | tuple), f"it returns a {type(got).__name__}: a list is wanted, to be used twice")
    got = list(got)
    demand(
        all(isinstance(p, nn.Parameter) for p in got),
        "it returns something else than parameters: a list of them is wanted, as an optimiser takes it",
    )
    ids, right = [id(p) for p in got], {id(p) for p in wanted}
    demand(
        not {id(p) for p in frozen} & set(ids), "it returns frozen parameters, too: the optimiser has no use for them"
    )
    demand(len(set(ids)) == len(ids), "a parameter is in the list twice: an optimiser would complain")
    demand(
        set(ids) == right,
        f"it returns {len(ids)} parameters, and {len(right)} are wanted: those of every module that was added",
    )


@check("Who is in it stays; how they looked that day does not. So F_r learns to mean the person.")
def swapped(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """people (B,), dice (B,), rate -> for each picture the number of the one that F_r is taken from (B,)."""
    people = torch.tensor([7, 3, 7, 5, 3, 7, 5, 9])
    dice = torch.tensor([0.9, 0.2, 0.1, 0.1, 0.8, 0.05, 0.7, 0.1])
    rate, own = 0.3, torch.arange(8)
    following = torch.tensor([2, 4, 5, 6, 1, 0, 3, 7])
    first = torch.tensor([0, 1, 0, 3, 1, 0, 3, 7])
    low = dice < rate
    at_the_end = torch.tensor([2, 4, 5, 6, 4, 5, 6, 7])
    previous, other = torch.tensor([5, 4, 0, 6, 1, 2, 3, 7]), torch.tensor([2, 4, 0, 6, 1, 0, 3, 7])
    mistakes = {
        "it is the picture before: the next one is wanted": torch.where(low, previous, own),
        "it is the first of their other pictures: the next one is wanted": torch.where(low, other, own),
        "every picture is swapped: only those whose die is below the rate": following,
        "nothing is swapped (if you looked at neighbours only: a person's pictures need not be neighbours)": own,
        "the dice are read the wrong way round: swapped are those below the rate": torch.where(low, own, following),
        "it returns people: the numbers of pictures are wanted": torch.where(low, people[following], people),
        "it returns people, not pictures": people,
        "it is always the person's first picture, and that may be the same one: take the next": (
            torch.where(low, first, own)
        ),
        "after a person's last picture comes their first: nobody should get their own where there is another": (
            torch.where(low, at_the_end, own)
        ),
        "it is the next picture of anybody: the next of the same person is wanted": (
            torch.where(low, (own + 1) % 8, own)
        ),
    }
    equal(answer(people, dice, rate), torch.where(low, following, own), mistakes)


@check("Three kinds of samples, and so guidance can compare: with words and a person, with neither, and between.")
def hidden(answer: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """text (B, T), F_r (B, L, C), the empty caption (T,), two dice (B,), two rates -> text and F_r."""
    text, intrinsic, empty = torch.arange(1, 31).view(6, 5), _random(6, 3, 4), torch.arange(40, 45)
    first, second = torch.tensor([0.05, 0.08, 0.5, 0.9, 0.02, 0.6]), torch.tensor([0.3, 0.8, 0.2, 0.9, 0.1, 0.4])
    no_caption, share = 0.1, 0.5
    silent = first < no_caption
    nobody = silent & (second < share)
    got = answer(text, intrinsic, empty, first, second, no_caption, share)
    demand(got is not None, "it returns None: is there a `return`?")
    demand(isinstance(got, tuple | list) and len(got) == 2, "it returns two things: the text, then F_r")

    def texts(where: Tensor) -> Tensor:
        return torch.where(where[:, None], empty, text)

    def features(where: Tensor) -> Tensor:
        return intrinsic * ~where[:, None, None]

    equal(
        got[0],
        texts(silent),
        {
            "only samples without a person lose their caption: all with a first die below no_caption do": texts(nobody),
            "the wrong captions are empty: they should be those with a first die below no_caption": texts(~silent),
            "no caption is empty": text,
            "the captions are zeros: an empty caption has tokens of its own, `empty`": text * ~silent[:, None],
        },
    )
    equal(
        got[1],
        features(nobody),
        {
            "every sample without a caption loses its person: only a share of them, by the second die": features(
                silent
            ),
            "people are taken from samples with a caption, too: only from those without": features(second < share),
            "a caption or a person is enough to be hidden: a person goes only where the caption went": (
                features(silent | (second < share))
            ),
            "nobody's F_r is zero, and here none is": intrinsic,
        },
    )


@check("Forget, ask, clip, move: the lines of every training.")
def one_step(answer: Callable[..., float]) -> None:
    """loss_of, batch, parameters, optimizer, max_norm -> the loss as a number; the parameters have moved."""
    start, stale, batch, rate = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2.0, 1.0, -2.0]), _random(3) * 4, 0.1
    halves = [nn.Parameter(start[:1].clone()), nn.Parameter(start[1:].clone())]
    arrived: list[Tensor] = []
    for half, old in zip(halves, (stale[:1], stale[1:]), strict=True):
        half.grad = old.clone()  # of the step before
        half.register_hook(arrived.append)
    optimizer = torch.optim.SGD(halves, lr=rate)

    def loss_of(values: Tensor) -> Tensor:
        return (values * torch.cat(halves)).sum() + 20

    def moved(gradient: Tensor, most: float | None = 0.5) -> Tensor:
        norm = gradient.norm()
        return start - rate * gradient * (1 if most is None else min(1, most / float(norm)))

    loss = float(loss_of(batch).detach())
    got = answer(loss_of, batch, halves, optimizer, 0.5)
    weights = torch.cat([half.detach() for half in halves])
    gradients = [half.grad for half in halves if half.grad is not None]
    if torch.equal(weights, start):
        if not arrived:
            raise Mistake("the weights have not moved, as no gradient has arrived: is there a loss.backward()?")
        if not gradients or not torch.cat(gradients).any():
            raise Mistake("the weights have not moved: the gradients were set to zero between backward and step")
        if torch.equal(torch.cat(gradients), stale):
            raise Mistake("the weights have not moved: where are loss.backward() and optimizer.step()?")
        raise Mistake("the weights have not moved: optimizer.step() is missing")
    mistakes = {
        "gradients add up: those of the step before were not set to zero (optimizer.zero_grad())": moved(batch + stale),
        "the gradients were clipped after the step, or not at all: clip between backward and step": moved(batch, None),
        "it stepped with the gradients of the step before: backward comes before step": moved(stale, None),
        "it stepped with the gradients of the step before: backward comes before clipping and step": moved(stale),
        "gradients add up, and are not clipped: zero them first, clip them between backward and step": (
            moved(batch + stale, None)
        ),
        "it is clipped to a norm of 1: max_norm says to which": moved(batch, 1.0),
        "each parameter is clipped by itself, which turns the direction: clip all together": torch.cat(
            [moved(batch * torch.tensor([1.0, 0, 0]))[:1], moved(batch * torch.tensor([0.0, 1, 1]))[1:]]
        ),
    }
    equal(weights, moved(batch), mistakes)
    demand(got is not None, "it returns None: the loss is wanted, as a number")
    demand(
        not isinstance(got, Tensor) or not got.requires_grad,
        "it returns the loss with its graph, which keeps the whole step in memory: loss.item() is a number",
    )
    demand(abs(float(got) - loss) < 1e-3, "the loss that it returns is not that of the step")


@check("The weights wander around a good place; their average lies nearer to it than any one of them.")
def averaged(answer: Callable[[Tensor, Tensor, float, int], Tensor]) -> None:
    """average and weights of one shape, decay, step -> the new average."""
    average, weights = _random(3, 4), _random(3, 4, seed=1)
    kept = (average.clone(), weights.clone())
    for step, decay in ((5000, 0.98), (5, 0.99)):
        early = (1 + step) / (10 + step)
        rate = min(decay, early)

        def mixed(rate: float) -> Tensor:
            return rate * kept[0] + (1 - rate) * kept[1]

        got = answer(average, weights, decay, step)
        wrong = {
            "average and weights are swapped: decay is what the average keeps": mixed(1 - rate),
            "early in training the decay should be smaller: the first average is that of untrained weights": (
                mixed(decay)
            ),
            "the larger of the two decays is taken: the smaller is wanted": mixed(max(decay, early)),
            "these are the weights themselves": kept[1],
            "the average has not moved": kept[0],
        }
        true = mixed(rate)
        equal(got, true, {k: v for k, v in wrong.items() if not torch.allclose(v, true, rtol=1e-4, atol=1e-4)})
