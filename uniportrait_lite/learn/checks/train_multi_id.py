"""Checks of 05_train_multi_id."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniportrait_lite.id_routing import one_hot, routing_loss
from uniportrait_lite.learn.checks.verdict import check, demand, equal, learning, same_gradients


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


BLOCK = "up_blocks.1.attentions.0.transformer_blocks.0"
SHARES = {  # the rate of a parameter of this name, and what to say where it has another
    f"unet.{BLOCK}.attn2.processor.router.theta.0.weight": (
        1.0,
        "the routers learn at the full rate: their names have .router. in them",
    ),
    f"unet.{BLOCK}.attn2.processor.router.aggregate.bias": (1.0, "all of a router learns, its W_aggr, too"),
    f"unet.{BLOCK}.attn1.to_q.lora_A.multi_id.weight": (0.1, "the second LoRA learns at a tenth of the rate"),
    f"unet.{BLOCK}.attn2.to_out.0.lora_B.multi_id.weight": (0.1, "both halves of the second LoRA learn, A and B"),
    f"unet.{BLOCK}.attn1.to_q.lora_A.single_id.weight": (
        0.0,
        "the first LoRA learns, too: then pictures of one person would change. Only .multi_id. does",
    ),
    f"unet.{BLOCK}.attn2.processor.to_k_id.weight": (
        0.0,
        "the ID keys and values learn: the single-ID stage made them, and they stay",
    ),
    f"unet.{BLOCK}.attn1.to_q.base_layer.weight": (0.0, "the U-Net's own weights learn: they are frozen"),
    "id_embedding.layers.0.to_structure.to_q.weight": (0.0, "the ID embedding learns: it is frozen in this stage"),
    "text_encoder.encoder.layers.0.self_attn.q_proj.weight": (0.0, "the text encoder learns: it is frozen"),
}


@check("A stage is what it leaves alone: whatever one person needs stays, so their pictures stay.")
def share(answer: Callable[[str], float]) -> None:
    """A parameter's name -> its share of the learning rate."""
    for name, (wanted, mistake) in SHARES.items():
        got = answer(name)
        demand(got is not None, f"it returns None for {name}: every name needs a number")
        demand(isinstance(got, int | float), f"it returns a {type(got).__name__}, and a number is wanted")
        demand(abs(got - wanted) < 1e-9, f"{mistake}. Of {name} it says {got}, and it should be {wanted}")


@check("Only places that belong to exactly one face can be right or wrong.")
def right_share(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """scores (B, N, h, w), masks (B, N, h, w) of 0 and 1 -> the share of right places, a number."""
    scores, masks = _random(3, 3, 6, 8, seed=15), torch.zeros(3, 3, 6, 8)
    for k in range(3):  # three boxes a picture, of other sizes, two of which overlap
        masks[k, 0, 1:4, 0 : 3 + k] = masks[k, 1, 0:5, 2:5] = masks[k, 2, 3:6, 6:8] = 1
    alone, union = masks.sum(1) == 1, masks.amax(1) > 0
    hit = scores.argmax(1) == masks.argmax(1)
    mistakes = {
        "places outside every box count, too: nobody is there to be right about": hit.float().mean(),
        "places in two boxes count, too: there both are right": hit[union].float().mean(),
        "these are right places among all places: divide by the number of those in exactly one box": (
            (hit & alone).float().mean()
        ),
        "this is how many are wrong": (~hit)[alone].float().mean(),
        "each picture counts alike, however many places its boxes have: count places": torch.stack(
            [hit[k][alone[k]].float().mean() for k in range(3)]
        ).mean(),
        "it compares places, not people: argmax runs over dim=1, the identities": (
            (scores.argmax(-1) == masks.argmax(-1)).float().mean()
        ),
        "it asks whether the right one's score is above a half, not whether it is the largest": (
            ((scores * masks).sum(1) > 0.5)[alone].float().mean()
        ),
        "it asks whether the right one has more than half, not whether it has most": (
            ((scores.softmax(1) * masks).sum(1) > 0.5)[alone].float().mean()
        ),
        "this is the softmax's share, not the share of right places": (
            (scores.softmax(1) * masks).sum(1)[alone].float().mean()
        ),
    }
    equal(torch.as_tensor(answer(scores, masks)), hit[alone].float().mean(), mistakes)


@check("Two losses, one number: the picture asks for the right face, the boxes say where it is.")
@torch.enable_grad()
def stage_loss(answer: Callable[..., Tensor]) -> None:
    """predicted, target, logits by layer, boxes, route_weight -> the loss, a number."""
    predicted, target = _random(2, 3, 8, 12), _random(2, 3, 8, 12, seed=1)
    logits = {"down": 2 * _random(2, 2, 8, 12, seed=2), "mid": 2 * _random(2, 2, 4, 6, seed=3)}
    predicted, logits = learning(predicted), {name: learning(layer) for name, layer in logits.items()}
    boxes = torch.tensor([[[0.1, 0.2, 0.45, 0.8], [0.5, 0.1, 0.9, 0.7]], [[0.6, 0.1, 0.95, 0.9], [0.0, 0.3, 0.3, 0.8]]])
    error, weight = F.mse_loss(predicted, target), 0.3

    def route(psi: Callable[[Tensor], Tensor]) -> Tensor:
        return routing_loss({name: psi(layer) for name, layer in logits.items()}, boxes)

    soft, raw, hard = route(lambda x: x.softmax(1)), route(lambda x: x), route(one_hot)
    each = sum(routing_loss({name: layer.softmax(1)}, boxes) for name, layer in logits.items())
    mistakes = {
        "the routing loss is missing": error,
        "lambda is not used: it scales the routing loss": error + soft,
        "lambda scales both: the diffusion loss keeps its full weight": weight * (error + soft),
        "lambda scales the diffusion loss: it belongs to the routing loss": weight * error + soft,
        "the diffusion loss is missing": weight * soft,
        "the routing loss gets the logits as they are: it wants psi, shares that add up to 1 over the identities": (
            error + weight * raw
        ),
        "softmax runs over places: at each place the identities' shares add up to 1, dim=1": (
            error + weight * route(lambda x: x.softmax(-1))
        ),
        "the maps are one-hot here: no gradient would come back through argmax. Take the softmax": (
            error + weight * hard
        ),
        "the layers are added up: routing_loss takes all of them at once, and averages": error + weight * each,
        "the squared error is summed: take its mean": F.mse_loss(predicted, target, reduction="sum") + weight * soft,
        "the diffusion loss is the error's absolute value: it is squared": F.l1_loss(predicted, target) + weight * soft,
        "lambda is 0.1 whatever is asked for: use route_weight": error + 0.1 * soft,
        "each place's shares come from a sigmoid: softmax over the identities, dim=1, makes them add up to 1": (
            error + weight * route(torch.sigmoid)
        ),
    }
    kept, given = {name: layer.detach().clone() for name, layer in logits.items()}, dict(logits)
    got = answer(predicted, target, given, boxes, weight)
    equal(got, error + weight * soft, mistakes)
    same = all(given[name] is layer and torch.equal(kept[name], layer) for name, layer in logits.items())
    demand(same, "it overwrites the logits: make a new dictionary, of new tensors")
    same_gradients(got, error + weight * soft, {"the diffusion loss": predicted, **logits})


@check("Warm at first, when every place gets a gradient; cooler later, when only the undecided ones do.")
def temperature(answer: Callable[[int, float, float, int], float]) -> None:
    """step, first, last, cooling -> the temperature of that step."""
    asked = [(0, 1.0, 0.5, 200), (50, 1.0, 0.5, 200), (200, 1.0, 0.5, 200), (500, 1.0, 0.5, 200), (30, 2.0, 0.2, 100)]
    got = [answer(*settings) for settings in asked]
    demand(all(value is not None for value in got), "it returns None: is there a `return`?")

    def schedule(value: Callable[[float, float, float], float]) -> Tensor:
        return torch.tensor([value(step / cooling, first, last) for step, first, last, cooling in asked])

    mistakes = {
        "it goes on falling after `cooling` steps, and would pass 0: from there on it stays at `last`": schedule(
            lambda done, first, last: first + (last - first) * done
        ),
        "it rises from last to first: noise comes first": schedule(
            lambda done, first, last: last + (first - last) * min(1.0, done)
        ),
        "it falls as a power, and the package's falls linearly": schedule(
            lambda done, first, last: first * (last / first) ** min(1.0, done)
        ),
        "it falls to 0: its end is `last`": schedule(lambda done, first, last: first * (1 - min(1.0, done))),
        "it falls by `first` times `last`: the way to go is last - first": schedule(
            lambda done, first, last: first * (1 - last * min(1.0, done))
        ),
    }
    wanted = schedule(lambda done, first, last: first + (last - first) * min(1.0, done))
    equal(torch.tensor([float(value) for value in got]), wanted, mistakes)
    for step in (0, 3):
        try:
            at_once = answer(step, 1.0, 0.5, 0)
        except ZeroDivisionError:
            demand(False, "it divides by 0 where cooling is 0: then the temperature is `last` from the beginning")
        demand(abs(at_once - 0.5) < 1e-6, "where cooling is 0, the temperature is `last` from the beginning")


class _Small(nn.Module):
    """A network of six numbers, two of them frozen, which calls its loss by the package's names."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.frozen = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)
        for seed, layer in enumerate((self.router, self.frozen)):
            layer.weight.data = _random(1, 3, seed=seed)
        self.frozen.requires_grad_(False)

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        error = (self.router(batch) + self.frozen(batch)).square().mean()
        route = (self.router(batch.roll(1, dims=-1)) - 1).square().mean()
        return {"loss": error + route, "diffusion": error, "route": route}


class _Counting(torch.optim.SGD):
    """Knows how often it has moved."""

    moves = 0

    def step(self, closure: None = None) -> None:
        self.moves += 1
        super().step(closure)


def _trained(step: Callable[..., object], steps: int = 3) -> tuple[Tensor, list[object], int]:
    """The weights after some steps, what these returned, and how often the optimiser has moved."""
    model = _Small()
    model.router.weight.grad = _random(1, 3, seed=9)  # of somebody else's step
    optimiser = _Counting([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.5)
    given = [step(model, _random(5, 3, seed=10 + k), optimiser) for k in range(steps)]
    return model.router.weight.detach().clone(), given, optimiser.moves


def _step(zero: str = "before", clip: str | None = "norm", part: str = "loss", limit: float = 1.0):
    """A training step with something else in it."""

    def step(model: nn.Module, batch: Tensor, optimiser: torch.optim.Optimizer) -> float:
        if zero == "before":
            optimiser.zero_grad()
        loss = model(batch)[part]
        if clip == "early":
            nn.utils.clip_grad_norm_(model.parameters(), limit)
        loss.backward()
        if zero == "between":
            optimiser.zero_grad()
        if clip == "norm":
            nn.utils.clip_grad_norm_(model.parameters(), limit)
        if clip == "value":
            nn.utils.clip_grad_value_(model.parameters(), limit)
        optimiser.step()
        if zero == "after":
            optimiser.zero_grad()
        return loss.item()

    return step


@check("The same lines, whatever the network: everything else of this project is about what goes into them.")
def training_step(answer: Callable[..., object]) -> None:
    """model, batch, optimiser -> the loss as a number; the optimiser has moved the weights."""
    found, given, moves = _trained(answer)
    demand(moves > 0, "the weights have not moved: where is optimiser.step()?")
    mistakes = {
        "gradients of former steps are still there and add up: optimiser.zero_grad() comes before backward()": (
            _step(zero="never")
        ),
        "the gradients are set to 0 after backward(), before the optimiser has seen them": _step(zero="between"),
        "the gradients are not clipped between backward() and optimiser.step(): one bad batch could throw the routers "
        "far away": _step(clip=None),
        "the gradients are clipped before backward(), when they are old ones": _step(zero="never", clip="early"),
        "the gradients are set to 0 only after the step, so those that were there at the first call still count": (
            _step(zero="after")
        ),
        "the gradients are clipped to another norm than 1": _step(limit=0.1),
        "each gradient is clipped by itself, which turns the direction: clip_grad_norm_ keeps it": _step(clip="value"),
        "it trains on the diffusion loss alone: model(batch)['loss'] has the routing loss in it": (
            _step(part="diffusion")
        ),
        "it trains on the routing loss alone: model(batch)['loss'] has both": _step(part="route"),
    }
    wanted, losses, _ = _trained(_step())
    equal(found, wanted, {message: _trained(step)[0] for message, step in mistakes.items()})
    demand(all(value is not None for value in given), "it returns None: return the loss, to be plotted")
    demand(
        all(not isinstance(value, Tensor) or not value.requires_grad for value in given),
        "it returns the loss with everything it was made from, which fills the memory: return loss.item()",
    )
    equal(torch.tensor([float(value) for value in given]), torch.tensor(losses))


@check("Not nearly the same: the same. Training that should leave a thing alone leaves every bit of it.")
def changed(answer: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], set[str]]) -> None:
    """Weights by name, before and after -> the names of those that differ in any number."""
    before = {name: _random(4, 4, seed=k) for k, name in enumerate(("a", "b", "c", "d"))}
    after = {name: weight.clone() for name, weight in before.items()}
    after["b"] += 1
    after["d"][0, 0] *= 1 + 2e-7
    got = answer(before, after)
    demand(got is not None, "it returns None: is there a `return`?")
    demand(isinstance(got, set | frozenset), f"it returns a {type(got).__name__}: a set of names is wanted")
    demand(got != {"a", "c"}, "these are the names of those that stayed the same")
    demand(got != {"b"}, "it misses a weight that differs in its last bit only: compare with torch.equal, not nearly")
    demand(got != {"a", "b", "c", "d"}, "all are named, also those that are equal: compare values, not objects")
    demand(got == {"b", "d"}, f"it should be {{'b', 'd'}} here, and it is {got}")


GRADIENTS = {"router.weight": (2, 3), "router.bias": (4,), "lora_A": (2, 5), "lora_B": (3, 2)}


@check("Each process has its own samples; after this they all hold the same gradient, and stay the same network.")
def averaged_gradients(answer: Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]) -> None:
    """The gradients by name of each process -> by name, what all of them go on with."""
    processes = [
        {name: _random(*shape, seed=10 * k + len(shape)) for name, shape in GRADIENTS.items()} for k in range(3)
    ]
    got = answer([{name: grad.clone() for name, grad in one.items()} for one in processes])
    demand(got is not None, "it returns None: is there a `return`?")
    demand(isinstance(got, Mapping), f"it returns a {type(got).__name__}: gradients by name are wanted, a dictionary")
    demand(set(got) == set(GRADIENTS), f"it has the names {sorted(got)}: the processes have {sorted(GRADIENTS)}")
    for name in GRADIENTS:
        every = torch.stack([one[name] for one in processes])
        mistakes = {
            "the gradients are added up: with more processes the steps would grow. Divide by their number": every.sum(
                0
            ),
            "only the first process is heard": every[0],
            "only the last process is heard": every[-1],
            "the gradients are kept side by side: one of the shape of the weight is wanted": every,
            "it divides by 2, whatever the number of processes is: len(...) knows it": every.sum(0) / 2,
            "it divides by the number of names: divide by that of processes": every.sum(0) / len(GRADIENTS),
        }
        equal(got[name], every.mean(0), mistakes)
