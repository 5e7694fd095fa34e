"""Every exercise: the reference passes, the stub is told so, plausible wrong answers are told what is wrong."""

import importlib

import pytest
import torch
import torch.nn.functional as F

import uniportrait_lite as upl
from uniportrait_lite.learn import exercises, notebooks
from uniportrait_lite.learn.checks.verdict import OPEN

EXERCISES = [
    (name, exercise)
    for name in notebooks.names_in()
    for exercise in exercises.exercises_of(notebooks.FOLDER / "src" / f"{name}.py")
]


def checks_of(name):
    """The module with a notebook's checks."""
    return importlib.import_module(f"uniportrait_lite.learn.checks.{name.split('_', 1)[1]}")


def verdict_on(name, exercise, code):
    """What the check says of an exercise's cell, run with what every notebook imports and nothing else."""
    space = {"torch": torch, "F": F, "upl": upl, "checks": checks_of(name)}
    exec(code, space)
    return eval(exercise.check, space)


@pytest.mark.parametrize("name, exercise", EXERCISES, ids=[exercise.name for _, exercise in EXERCISES])
def test_the_reference_passes_and_the_stub_is_open(name, exercise):
    verdict = verdict_on(name, exercise, exercise.solution)
    assert verdict and repr(verdict).startswith("Right. "), verdict
    verdict = verdict_on(name, exercise, exercise.stub)
    assert not verdict and repr(verdict) == OPEN


@pytest.mark.parametrize("name", [name for name in notebooks.names_in() if "01" < name < "07"])  # 00 and 09 use
def test_a_notebook_has_at_least_five_exercises(name):
    assert len([1 for owner, _ in EXERCISES if owner == name]) >= 5


def test_every_exercise_is_given_wrong_answers():
    assert set(WRONG) == {exercise.name for _, exercise in EXERCISES}
    assert all(len(answers) >= 2 for answers in WRONG.values())


def spoiled(answer, spoil):
    """The answer with every tensor that it returns spoiled."""

    def every(result):
        if isinstance(result, torch.Tensor):
            return spoil(result)
        if isinstance(result, tuple | list):
            return tuple(every(part) for part in result)
        return result

    return lambda *given, **named: every(answer(*given, **named))


SPOILS = {
    "shape": (lambda x: x[None], "shape"),
    "device": (lambda x: x.to("meta"), "meta"),
    "dtype": (lambda x: x.double(), "float64"),
    "kind": (lambda x: x.detach().numpy(), "ndarray"),
}


@pytest.mark.parametrize("owner, exercise", EXERCISES, ids=[exercise.name for _, exercise in EXERCISES])
def test_an_answer_of_the_wrong_shape_device_or_dtype_is_told_so(owner, exercise):
    """What a check asks of tensors, whatever its exercise; checks of answers that are no tensors are left out."""
    space, seen = {"torch": torch, "F": F, "upl": upl, "checks": checks_of(owner)}, []
    exec(exercise.solution, space)
    check, answer = getattr(checks_of(owner), exercise.name), space[exercise.name]
    assert check(spoiled(answer, lambda x: seen.append(x) or x))
    for spoil, said in SPOILS.values() if any(x.ndim for x in seen) else ():
        wrong = check(spoiled(answer, spoil))
        assert not wrong and (said in repr(wrong) or "it stops with" not in repr(wrong)), wrong


# --- 01_face_features -------------------------------------------------------------------------------------------------
def least_squares(points, template):
    """All six numbers free."""
    return torch.linalg.lstsq(torch.cat([points, torch.ones(5, 1)], 1), template).solution.T


def swapped(points, template):
    return right("similarity")(template, points)


def rows_of(targets=lambda template: template.T.flatten(), second=lambda x, y, one, zero: (y, x, zero, one)):
    """`similarity` with other targets, or other rows for y'."""

    def fit(points, template):
        given = (*points.T, torch.ones(5), torch.zeros(5))
        x, y, one, zero = given
        rows = torch.cat([torch.stack([x, -y, one, zero], 1), torch.stack(second(*given), 1)])
        a, b, u, v = torch.linalg.lstsq(rows, targets(template)).solution
        return torch.stack([a, -b, u, b, a, v]).view(2, 3)

    return fit


def mirrored(points, template):
    matrix = right("similarity")(points, template)
    matrix[0, 1], matrix[1, 0] = -matrix[0, 1], -matrix[1, 0]
    return matrix


def two_norms(a, b):
    return a @ b.T / a.norm(dim=1, keepdim=True)


def all_negatives(cosines, labels, t, margin):
    target = upl.backbone.with_margin(cosines.gather(1, labels[:, None]), margin)
    return (cosines * (t + cosines)).scatter(1, labels[:, None], target)


def bare_positive(cosines, labels, t, margin):
    positive = cosines.gather(1, labels[:, None])
    target = upl.backbone.with_margin(positive, margin)
    return torch.where(cosines > target, cosines * (t + cosines), cosines).scatter(1, labels[:, None], positive)


def against_the_bare(cosines, labels, t, margin):
    positive = cosines.gather(1, labels[:, None])
    target = upl.backbone.with_margin(positive, margin)
    return torch.where(cosines > positive, cosines * (t + cosines), cosines).scatter(1, labels[:, None], target)


def with_class_token(maps, hidden):
    side = 4
    resized = [F.interpolate(m, size=(side, side), mode="bilinear") for m in maps[:3]]
    return torch.cat([torch.cat(resized, 1).flatten(2).transpose(1, 2), hidden[-2]], -1)


def joined(maps, clip, **how):
    resized = [F.interpolate(m, size=(4, 4), **({"mode": "bilinear"} | how)) for m in maps]
    return torch.cat([torch.cat(resized, 1).flatten(2).transpose(1, 2), clip], -1)


# --- 02_id_embedding --------------------------------------------------------------------------------------------------
def straight_to_heads(x, heads):
    return x.reshape(x.shape[0], heads, x.shape[1], -1)


def reading(source=lambda f, q: torch.cat([f, q], 1), swap=False, merged=True, before=lambda x: x):
    """`read_features` with something else in it."""

    def read(features, queries, to_q, to_kv, heads):
        features, queries = before(features), before(queries)
        k, v = to_kv(source(features, queries)).chunk(2, dim=-1)
        k, v = (v, k) if swap else (k, v)
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (to_q(queries), k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).flatten(2) if merged else out.reshape(*queries.shape[:2], -1)

    return read


def heads_before_chunk(features, queries, to_q, to_kv, heads):
    k, v = to_kv(torch.cat([features, queries], 1)).unflatten(-1, (heads, -1)).transpose(1, 2).chunk(2, dim=-1)
    q = to_q(queries).unflatten(-1, (heads, -1)).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def parallel(queries, intrinsic, structure, to_intrinsic, to_structure, feed_forward, beta):
    queries = queries + to_intrinsic(intrinsic, queries) + beta * to_structure(structure, queries)
    return queries + feed_forward(queries)


def without_residuals(queries, intrinsic, structure, to_intrinsic, to_structure, feed_forward, beta):
    queries = to_intrinsic(intrinsic, queries)
    queries = beta * to_structure(structure, queries)
    return feed_forward(queries)


def beta_on_everything(queries, intrinsic, structure, to_intrinsic, to_structure, feed_forward, beta):
    queries = queries + to_intrinsic(intrinsic, queries)
    queries = beta * (queries + to_structure(structure, queries))
    return queries + feed_forward(queries)


def beta_on_the_features(queries, intrinsic, structure, to_intrinsic, to_structure, feed_forward, beta):
    return right("qformer_layer")(queries, intrinsic, beta * structure, to_intrinsic, to_structure, feed_forward, 1)


def nothing_where_dropped(which, dice, drop_path, drop_token, rate):
    path, tokens = right("structure_drop")(which, dice, drop_path, drop_token, rate)
    return path, tokens & path[:, None]


def dropped_for_kept(which, dice, drop_path, drop_token, rate):
    path, tokens = right("structure_drop")(which, dice, drop_path, drop_token, rate)
    return path, ~tokens


def everyone_thinned(which, dice, drop_path, drop_token, rate):
    return which >= drop_path, dice >= rate


def one_die_a_sample(which, dice, drop_path, drop_token, rate):
    path, tokens = right("structure_drop")(which, dice[:, :1].expand_as(dice), drop_path, drop_token, rate)
    return path, tokens


def one_softmax(q, k_text, v_text, k_id, v_id, id_scale):
    return F.scaled_dot_product_attention(q, torch.cat([k_text, k_id], 1), torch.cat([v_text, v_id], 1))


def blended(q, k_text, v_text, k_id, v_id, id_scale):
    text, identity = (F.scaled_dot_product_attention(q, k, v) for k, v in ((k_text, v_text), (k_id, v_id)))
    return (1 - id_scale) * text + id_scale * identity


def joined_along(dim):
    return lambda references: tuple(torch.cat(part, dim=dim) for part in zip(*references, strict=True))


WRONG = {
    "similarity": [
        (least_squares, "six free numbers"),
        (swapped, "brings the template to the face"),
        (mirrored, "turns the wrong way round"),
        (rows_of(targets=lambda template: template.flatten()), "in different orders"),
        (rows_of(second=lambda x, y, one, zero: (x, y, zero, one)), "y' = b x + a y + v"),
    ],
    "cosines": [
        (lambda a, b: a @ b.T, "dot products"),
        (lambda a, b: F.normalize(a, dim=0) @ F.normalize(b, dim=0).T, "over the pictures"),
        (two_norms, "only one of the two"),
        (lambda a, b: a @ b.T / (a.norm() * b.norm()), "each has its own"),
        (lambda a, b: right("cosines")(a, b).acos(), "these are angles"),
        (lambda a, b: a @ b.T / (a.square().sum(1)[:, None] * b.square().sum(1)), "squared lengths"),
        (lambda a, b: F.cosine_similarity(b[:, None], a[None], dim=-1), "rows and columns are swapped"),
    ],
    "with_margin": [
        (lambda cosine, margin: cosine - margin, "CosFace"),
        (lambda cosine, margin: torch.cos(cosine + margin), "cosine of a cosine"),
        (lambda cosine, margin: torch.cos(torch.acos(cosine) - margin), "harder, so it is added"),
        (lambda cosine, margin: torch.acos(cosine) + margin, "take its cosine"),
        (lambda cosine, margin: right("with_margin")(cosine, 0.5), "whatever is asked for"),
        (lambda cosine, margin: right("with_margin")(cosine, margin * torch.pi / 180), "for degrees"),
        (lambda cosine, margin: right("with_margin")(cosine.detach(), margin), "not the gradient of cosine"),
        (lambda c, m: right("with_margin")(c, m).detach() + 0 * c, "not the gradient of cosine"),
        (lambda cosine, margin: right("with_margin")(cosine.mul_(1.0).add_(0.001).sub_(0.002), margin), "overwrites"),
    ],
    "curricular": [
        (all_negatives, "all negatives are reweighted"),
        (bare_positive, "bare cosine: it should have T"),
        (against_the_bare, "not its bare cosine"),
        (lambda cosines, labels, t, margin: right("curricular")(cosines, labels, 0.3, margin), "use t"),
        (lambda cosines, *given: right("curricular")(cosines.detach(), *given), "not the gradient of cosines"),
        (lambda *given: 64 * right("curricular")(*given), "s comes later"),
    ],
    "as_tokens": [
        (lambda x: x.flatten(2), "channels still come before places"),
        (lambda x: x.reshape(x.shape[0], -1, x.shape[1]), "transpose"),
        (lambda x: x.mean((2, 3)), "global vector"),
    ],
    "structure": [
        (with_class_token, "class token, the first"),
        (lambda maps, hidden: joined(maps[:3], hidden[-1][:, 1:]), "second-to-last"),
        (lambda maps, hidden: joined(maps, hidden[-2][:, 1:]), "fourth map"),
        (lambda maps, hidden: joined(maps[:3], hidden[-2][:, 1:], mode="nearest"), "bilinear"),
        (lambda maps, hidden: joined(maps[:3], hidden[-2][:, 1:], mode="area"), "areas are averaged"),
        (lambda maps, hidden: joined(maps[:3], hidden[-2][:, 1:], antialias=True), "antialias"),
        (lambda maps, hidden: joined(maps[:3], hidden[2][:, 1:]), "an earlier layer"),
        (lambda maps, hidden: joined([m.transpose(2, 3) for m in maps[:3]], hidden[-2][:, 1:]), "column by column"),
    ],
    "attention": [
        (lambda q, k, v: (q @ k.transpose(1, 2)).softmax(-1) @ v, "not divided by the root of d"),
        (lambda q, k, v: (q @ k.transpose(1, 2) / q.shape[-1]).softmax(-1) @ v, "its root is meant"),
        (lambda q, k, v: (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(1) @ v, "runs over the queries"),
        (lambda q, k, v: (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1), "multiplied with v"),
    ],
    "split_heads": [
        (straight_to_heads, "mixes places and channels"),
        (lambda x, heads: x.unflatten(-1, (heads, -1)), "the heads come after the places"),
        (lambda x, heads: x.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2), "split into (heads, d)"),
    ],
    "read_features": [
        (reading(lambda features, queries: features), "from the features alone"),
        (reading(lambda features, queries: queries), "from the queries alone"),
        (reading(swap=True), "they are swapped"),
        (reading(merged=False), "transpose back"),
        (
            reading(lambda f, q: torch.cat([f, q], 1), before=lambda x: F.layer_norm(x, x.shape[-1:])),
            "they are already",
        ),
        (heads_before_chunk, "chunk first"),
    ],
    "qformer_layer": [
        (parallel, "read by the old queries"),
        (without_residuals, "each is a residual"),
        (beta_on_everything, "beta scales everything"),
        (beta_on_the_features, "before it is read"),
    ],
    "structure_drop": [
        (dropped_for_kept, "tokens says what is dropped"),
        (everyone_thinned, "every sample loses tokens"),
        (one_die_a_sample, "each token has its own"),
        (nothing_where_dropped, "they stay True there"),
        (lambda which, dice, a, b, rate: (which >= a, torch.ones_like(dice, dtype=torch.bool)), "no sample loses"),
        (lambda w, d, a, b, rate: (w >= a, ~((d < rate) & ((w >= a) & (w < b))[:, None])), "drop_path + drop_token"),
        (lambda *given: tuple(x.float() for x in right("structure_drop")(*given)), "return bools"),
        (lambda which, dice, a, b, rate: which >= a, "two things"),
    ],
    "decoupled": [
        (one_softmax, "one softmax over text and ID tokens"),
        (blended, "keeps its full weight"),
        (lambda q, kt, vt, ki, vi, s: s * right("decoupled")(q, kt, vt, ki, vi, 1), "the scale is on both"),
    ],
    "several_references": [
        (joined_along(0), "three people"),
        (joined_along(2), "along the channels"),
        (lambda refs: tuple(torch.stack(x).mean(0) for x in zip(*refs, strict=True)), "averaged"),
    ],
}


# --- 03_id_routing ----------------------------------------------------------------------------------------------------
def one_after_another(q, keys, values):
    """A softmax for each identity."""
    return torch.stack(
        [F.scaled_dot_product_attention(q, k, v) for k, v in zip(keys.unbind(1), values.unbind(1), strict=True)]
    ).mean(0)


def logits_of(one=lambda tokens, aggregate, phi: phi(aggregate(tokens.transpose(-1, -2)).squeeze(-1)), after=None):
    """`routing_logits` with something else in it."""

    def made(positions, tokens, aggregate, theta, phi):
        logits = one(tokens, aggregate, phi) @ theta(positions).transpose(1, 2)
        return after(logits) if after else logits

    return made


def routing_by(weights):
    return lambda logits, outputs: (weights(logits).unsqueeze(-1) * outputs).sum(1)


def drawing(noise=lambda u: -(-u.log()).log(), dim=1, times=lambda x, t: x / t):
    return lambda logits, uniform, temperature: times(logits + noise(uniform), temperature).softmax(dim)


def hard_of(soft, dim=1):
    return torch.zeros_like(soft).scatter(dim, soft.argmax(dim, keepdim=True), 1.0)


def loss_with(free=True, by_n=True, whole=False, layers=torch.mean, factor=1.0):
    """`routing_loss` with something else in it."""

    def made(maps, boxes):
        losses = []
        for psi in maps.values():
            masks = upl.id_routing.box_masks(boxes, psi.shape[-2:])
            union = masks.amax(1, keepdim=True)
            errors = ((union if free else 1) * (psi - masks)).square()
            errors = errors.mean(1) if by_n else errors.sum(1)
            losses.append(errors.mean() if whole else errors.sum() / union.sum())
        return factor * layers(torch.stack(losses))

    return made


def loss_in_parts(
    mean=lambda e, c: (e.sum(1) / c.sum(1)).mean(), own=False, union=lambda masks: masks.amax(1, keepdim=True)
):
    """`routing_loss` from errors and numbers of places by layer and picture, (layers, B)."""

    def made(maps, boxes):
        errors, counts = [], []
        for psi in maps.values():
            masks = upl.id_routing.box_masks(boxes, psi.shape[-2:])
            inside = masks if own else union(masks)
            errors.append((inside * (psi - masks)).square().mean(1).sum((1, 2)))
            counts.append(union(masks).sum((1, 2, 3)))
        return mean(torch.stack(errors), torch.stack(counts))

    return made


def shared(divide, mode="area"):
    def made(masks, size):
        small = F.interpolate(masks, size=size, mode=mode)
        return divide(small)

    return made


def each_their_nearest(similarities):
    return similarities.argmax(axis=0).tolist(), right("who_is_where")(similarities)[1]


def smallest_sum(similarities):
    return right("who_is_where")(-similarities)[0], right("who_is_where")(similarities)[1]


def best_pair_first(similarities):
    left, face_of = similarities.copy(), [None] * similarities.shape[1]
    for _ in range(min(left.shape)):
        face, person = divmod(int(left.argmax()), left.shape[1])
        face_of[person] = face
        left[face], left[:, person] = -9, -9
    return face_of, right("who_is_where")(similarities)[1]


def counts_of_the_matching(similarities):
    face_of, _ = right("who_is_where")(similarities)
    return face_of, [int(face is not None) for face in face_of]


WRONG |= {
    "concatenated": [
        (one_after_another, "a softmax of its own here, and the results are averaged"),
        (lambda q, k, v: F.scaled_dot_product_attention(q, k.mean(1), v.mean(1)), "one after another"),
        (lambda q, k, v: F.scaled_dot_product_attention(q, k[:, 0], v[:, 0]), "only the first identity"),
    ],
    "routing_logits": [
        (logits_of(after=lambda logits: logits.transpose(1, 2)), "places come before identities"),
        (logits_of(after=lambda logits: logits.softmax(1)), "this is the softmax"),
        (logits_of(after=lambda logits: logits / 6**0.5), "the bare product"),
        (logits_of(lambda tokens, aggregate, phi: phi(tokens.mean(2))), "the tokens are averaged"),
        (logits_of(lambda tokens, aggregate, phi: phi(aggregate(tokens).squeeze(-1))), "the channels of each token"),
        (
            logits_of(lambda tokens, aggregate, phi: aggregate(phi(tokens).transpose(-1, -2)).squeeze(-1)),
            "phi comes before",
        ),
    ],
    "route": [
        (routing_by(lambda logits: logits.softmax(1)), "mixed by softmax"),
        (routing_by(lambda logits: hard_of(logits, 2)), "over the places"),
        (routing_by(lambda logits: hard_of(logits) * logits), "multiplied with its logit"),
        (lambda logits, outputs: hard_of(logits).unsqueeze(-1) * outputs, "not yet added up"),
    ],
    "gumbel_softmax": [
        (drawing(noise=lambda u: 0), "there is no noise"),
        (drawing(noise=lambda u: u), "the noise is uniform"),
        (drawing(noise=lambda u: (-u.log()).log()), "the wrong sign"),
        (drawing(noise=lambda u: -u.log()), "one logarithm is missing"),
        (drawing(times=lambda x, t: x * t), "the temperature multiplies"),
        (drawing(dim=2), "softmax runs over the places"),
    ],
    "straight_through": [
        (lambda soft: soft, "its values are the soft ones"),
        (hard_of, "no gradient comes through"),
        (lambda soft: hard_of(soft) + soft - soft, "the gradient is 0"),
        (lambda soft: hard_of(soft) - soft + soft.detach(), "points the wrong way"),
        (lambda soft: hard_of(soft, 2) + soft - soft.detach(), "over the places"),
        (lambda soft: hard_of(soft) * (1 + soft - soft.detach()), "the winners alone: the losers"),
        (lambda soft: hard_of(soft) * soft / soft.detach(), "divided by their shares"),
    ],
    "routing_loss": [
        (loss_with(free=False), "the background counts"),
        (loss_with(free=False, whole=True), "the background counts"),
        (loss_with(by_n=False), "not divided by N"),
        (loss_with(whole=True), "only those in W count"),
        (loss_with(layers=torch.sum), "take their mean"),
        (loss_with(factor=0.1), "lambda is in it"),
        (loss_in_parts(lambda e, c: (e / c).mean()), "each picture is averaged by itself"),
        (loss_in_parts(lambda e, c: e.sum() / c.sum()), "counted together"),
        (loss_in_parts(own=True), "its own box alone"),
        (loss_in_parts(union=lambda masks: masks.sum(1, keepdim=True)), "where boxes overlap"),
    ],
    "shares": [
        (shared(lambda x: x / x.sum(1, keepdim=True)), "give NaN"),
        (shared(lambda x: x / x.sum(1, keepdim=True).clamp_min(1e-8)), "made whole"),
        (shared(lambda x: x), "counts several times"),
        (shared(lambda x: x.softmax(1)), "softmax gives something"),
        (shared(lambda x: x / x.sum(1, keepdim=True).clamp_min(1), mode="nearest"), "mode='area'"),
        (shared(lambda x: x / x.sum(1, keepdim=True).clamp_min(1), mode="bilinear"), "averages all"),
    ],
    "who_is_where": [
        (each_their_nearest, "match them one to one"),
        (smallest_sum, "the worst sum"),
        (best_pair_first, "the best pair is taken first"),
        (counts_of_the_matching, "never doubles anybody"),
        (lambda similarities: right("who_is_where")(similarities)[0], "two things"),
    ],
}


# --- 04_train_single_id -----------------------------------------------------------------------------------------------
def mixed_with(clean_share, noise_share):
    """`noisy` and `velocity` with other shares, functions of alpha_bar (B, 1, 1, 1)."""

    def mix(clean, noise, alpha_bar):
        a = alpha_bar[:, None, None, None]
        return clean_share(a) * clean + noise_share(a) * noise

    return mix


def weighed(weights_of=lambda inside, weight: 1 + (weight - 1) * inside, mean=lambda e, w: (e * w).sum() / w.sum()):
    """`face_loss` with other weights, or with another mean."""
    return lambda error, inside, weight: mean(error, weights_of(inside, weight))


def two_means(error, inside, weight):
    means = [(error * where).sum() / where.sum() for where in (inside, 1 - inside)]
    return (weight * means[0] + means[1]) / (weight + 1)


def weighs_in_place(error, inside, weight):
    inside.mul_(weight - 1).add_(1)
    return (error * inside).sum() / inside.sum()


def frozen_last(base, added):
    for module in added:
        module.requires_grad_(True)
    base.requires_grad_(False)
    return [p for module in added for p in module.parameters()]


def put_to_sleep(base, added):
    """eval() in place of freezing."""
    base.eval()
    return [p for module in added for p in module.parameters()]


def everything_to_the_optimiser(base, added):
    right("trained_only")(base, added)
    return [*base.parameters(), *added[1].parameters()]


def of_the_base_alone(base, added):
    right("trained_only")(base, added)
    return [p for p in base.parameters() if p.requires_grad]


def hides(nobody):
    """`hidden` with other samples of nobody."""

    def hide(text, intrinsic, empty, first, second, no_caption, share):
        silent = first < no_caption
        gone = nobody(silent, second < share)
        return torch.where(silent[:, None], empty, text), intrinsic * ~gone[:, None, None]

    return hide


def hides_in_place(text, intrinsic, empty, first, second, no_caption, share):
    text[first < no_caption] = empty
    return text, intrinsic


def first_of_the_person(people, dice, rate):
    first = torch.stack([(people == p).nonzero()[0, 0] for p in people])
    return torch.where(dice < rate, first, torch.arange(len(people)))


def swapped_with(step):
    """`swapped` with the picture that many further on, or with the person's first other one."""

    def swap(people, dice, rate):
        source = torch.arange(len(people))
        for i in (dice < rate).nonzero().flatten().tolist():
            own = (people == people[i]).nonzero().flatten()
            others = own[own != i] if step is None else own[((own == i).nonzero()[0] + step) % len(own)]
            source[i] = others[0] if len(others) else i
        return source

    return swap


def clips_one_by_one(loss_of, batch, parameters, optimizer, max_norm):
    optimizer.zero_grad()
    loss = loss_of(batch)
    loss.backward()
    for parameter in parameters:
        torch.nn.utils.clip_grad_norm_([parameter], max_norm)
    optimizer.step()
    return loss.item()


def stepping(order):
    """`one_step` with its lines in another order: some of zero, backward, clip, step."""

    def step(loss_of, batch, parameters, optimizer, max_norm):
        loss = loss_of(batch)
        lines = {
            "zero": optimizer.zero_grad,
            "backward": loss.backward,
            "clip": lambda: torch.nn.utils.clip_grad_norm_(parameters, max_norm),
            "step": optimizer.step,
        }
        for line in order.split():
            lines[line]()
        return loss.item()

    return step


def keeps_the_graph(loss_of, batch, parameters, optimizer, max_norm):
    loss = loss_of(batch)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    return loss


def averaged_in_place(average, weights, decay, step):
    keep = min(decay, (1 + step) / (10 + step))
    return weights.mul_(1 - keep).add_(keep * average)


WRONG |= {
    "noisy": [
        (mixed_with(lambda a: a, lambda a: 1 - a), "without its root"),
        (mixed_with(lambda a: (1 - a).sqrt(), lambda a: a.sqrt()), "swapped: alpha_bar near 1"),
        (mixed_with(lambda a: a.sqrt(), lambda a: 1), "added in full"),
        (mixed_with(lambda a: a.sqrt(), lambda a: 1 - a.sqrt()), "is not sqrt(1 - alpha_bar)"),
        (mixed_with(lambda a: a, lambda a: (1 - a).sqrt()), "the picture's share lacks its root"),
        (mixed_with(lambda a: a.sqrt(), lambda a: 1 - a), "the noise's share lacks its root"),
        (lambda x, e, a: right("noisy")(x, e, a[:1].expand_as(a)), "the first one's alpha_bar"),
        (lambda x, e, a: a.sqrt() * x + (1 - a).sqrt() * e, "along the columns"),
    ],
    "velocity": [
        (lambda x, e, a: e.clone(), "that is the noise"),
        (mixed_with(lambda a: a.sqrt(), lambda a: (1 - a).sqrt()), "noisy picture"),
        (mixed_with(lambda a: (1 - a).sqrt(), lambda a: -a.sqrt()), "sign is turned"),
        (mixed_with(lambda a: -a.sqrt(), lambda a: (1 - a).sqrt()), "roots are swapped"),
        (mixed_with(lambda a: a.sqrt(), lambda a: -(1 - a).sqrt()), "and the sign is turned"),
    ],
    "face_loss": [
        (weighed(mean=lambda e, w: (e * w).mean()), "sum of the weights"),
        (weighed(lambda inside, weight: inside), "nothing counts any more"),
        (weighed(lambda inside, weight: 1 + weight * inside), "1 + weight times"),
        (weighed(mean=lambda e, w: ((e * w).sum((1, 2)) / w.sum((1, 2))).mean()), "a mean of its own"),
        (two_means, "a mean each"),
        (lambda error, inside, weight: right("face_loss")(error.detach(), inside, weight), "not the gradient of error"),
        (weighs_in_place, "overwrites its argument inside"),
    ],
    "trained_only": [
        (frozen_last, "frozen with it"),
        (put_to_sleep, "eval() does not"),
        (everything_to_the_optimiser, "frozen parameters, too"),
        (of_the_base_alone, "every module that was added"),
        (lambda base, added: iter(right("trained_only")(base, added)), "a list is wanted"),
    ],
    "hidden": [
        (hides(lambda silent, second: silent), "only a share of them"),
        (hides(lambda silent, second: second), "with a caption, too"),
        (hides(lambda silent, second: silent | second), "only where the caption went"),
        (hides_in_place, "overwrites its argument text"),
        (lambda text, *given: right("hidden")(text, given[0], 0 * given[1], *given[2:]), "tokens of its own"),
    ],
    "swapped": [
        (first_of_the_person, "always the person's first picture"),
        (lambda people, dice, rate: right("swapped")(people, 1 - dice, 1 - rate), "wrong way round"),
        (lambda people, dice, rate: right("swapped")(people, dice, 2.0), "every picture is swapped"),
        (lambda people, dice, rate: people[right("swapped")(people, dice, rate)], "it returns people"),
        (lambda people, dice, rate: torch.arange(len(people)), "need not be neighbours"),
        (swapped_with(-1), "the picture before"),
        (swapped_with(None), "the first of their other pictures"),
    ],
    "one_step": [
        (stepping("backward clip step"), "gradients add up"),
        (stepping("zero backward step clip"), "clipped after the step"),
        (stepping("backward zero clip step"), "set to zero between"),
        (stepping("clip step zero backward"), "gradients of the step before"),
        (stepping("zero backward clip"), "optimizer.step() is missing"),
        (stepping("zero clip step"), "is there a loss.backward()"),
        (lambda loss, b, p, o, norm: right("one_step")(loss, b, p, o, 1.0), "max_norm says to which"),
        (clips_one_by_one, "clip all together"),
        (keeps_the_graph, "with its graph"),
    ],
    "averaged": [
        (lambda average, weights, decay, step: right("averaged")(weights, average, decay, step), "swapped"),
        (lambda average, weights, decay, step: decay * average + (1 - decay) * weights, "early in training"),
        (averaged_in_place, "overwrites its argument weights"),
        (lambda a, w, d, k: (r := max(d, (1 + k) / (10 + k))) * a + (1 - r) * w, "the larger of the two"),
        (lambda average, *given: average.copy_(right("averaged")(average, *given)), "its argument average"),
    ],
}


# --- 05_train_multi_id ------------------------------------------------------------------------------------------------
def any_lora(name):
    return 1.0 if ".router." in name else 0.1 if ".lora_" in name else 0.0


def every_parameter_of_a_processor(name):
    return 1.0 if ".processor." in name else 0.1 if ".multi_id." in name else 0.0


def with_background(scores, masks):
    return (scores.argmax(1) == masks.argmax(1)).float().mean()


def with_overlaps(scores, masks):
    return (scores.argmax(1) == masks.argmax(1))[masks.amax(1) > 0].float().mean()


def of_all_places(scores, masks):
    return ((scores.argmax(1) == masks.argmax(1)) & (masks.sum(1) == 1)).float().mean()


def stage_loss_of(psi, weigh=lambda diffusion, route, weight: diffusion + weight * route):
    """`stage_loss` with other maps, or another sum."""

    def loss(predicted, target, logits, boxes, route_weight):
        route = upl.id_routing.routing_loss({name: psi(scores) for name, scores in logits.items()}, boxes)
        return weigh(F.mse_loss(predicted, target), route, route_weight)

    return loss


def never_at_its_end(step, first, last, cooling):
    return first + (last - first) * step / max(1, cooling)


def dividing_by_zero(step, first, last, cooling):
    return first + (last - first) * min(1.0, step / cooling)


def step_of(order, value="loss"):
    """A training step of these parts in this order: z forgets, b sends back, c clips, s moves."""

    def step(model, batch, optimiser):
        loss = model(batch)[value]
        do = {
            "z": optimiser.zero_grad,
            "b": loss.backward,
            "c": lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0),
            "s": optimiser.step,
        }
        for part in order:
            do[part]()
        return loss.item()

    return step


def step_that_keeps_the_graph(model, batch, optimiser):
    optimiser.zero_grad()
    loss = model(batch)["loss"]
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return loss


def together(how):
    return lambda processes: {name: how(torch.stack([one[name] for one in processes])) for name in processes[0]}


WRONG |= {
    "share": [
        (any_lora, "the first LoRA learns, too"),
        (every_parameter_of_a_processor, "the ID keys and values learn"),
        (lambda name: 1.0 if ".router." in name or ".multi_id." in name else 0.0, "a tenth of the rate"),
        (lambda name: 1.0 if ".router.theta" in name else 0.1 if ".multi_id." in name else 0.0, "its W_aggr"),
    ],
    "right_share": [
        (with_background, "nobody is there to be right about"),
        (with_overlaps, "places in two boxes"),
        (of_all_places, "divide by the number"),
        (lambda scores, masks: ((scores * masks).sum(1) > 0.5)[masks.sum(1) == 1].float().mean(), "above a half"),
    ],
    "stage_loss": [
        (stage_loss_of(lambda scores: scores), "the logits as they are"),
        (stage_loss_of(lambda scores: scores.softmax(-1)), "softmax runs over places"),
        (stage_loss_of(upl.id_routing.one_hot), "no gradient would come back"),
        (stage_loss_of(lambda scores: scores.softmax(1), lambda d, r, w: d + r), "lambda is not used"),
        (stage_loss_of(lambda scores: scores.softmax(1), lambda d, r, w: d + 0.1 * r), "whatever is asked for"),
        (stage_loss_of(torch.sigmoid), "from a sigmoid"),
        (stage_loss_of(lambda scores: scores.softmax(1).detach()), "not the gradient of down"),
        (stage_loss_of(lambda scores: scores.softmax(1), lambda d, r, w: d.item() + w * r), "of the diffusion loss"),
    ],
    "temperature": [
        (never_at_its_end, "goes on falling"),
        (dividing_by_zero, "divides by 0"),
        (lambda step, first, last, cooling: right("temperature")(step, last, first, cooling), "rises from last"),
        (lambda s, first, last, cooling: first * (1 - last * min(1, s / (cooling or 1))), "`first` times `last`"),
        (lambda step, first, last, cooling: right("temperature")(step, first, last, cooling or step + 1), "beginning"),
    ],
    "training_step": [
        (step_of("bcs"), "add up"),
        (step_of("bzcs"), "before the optimiser has seen them"),
        (step_of("zbs"), "not clipped between"),
        (step_of("zbsc"), "not clipped between"),
        (step_of("zbc"), "have not moved"),
        (step_of("zbcs", "diffusion"), "on the diffusion loss alone"),
        (step_that_keeps_the_graph, "loss.item()"),
        (step_of("bcsz"), "only after the step"),
    ],
    "changed": [
        (lambda a, b: {name for name in a if not torch.allclose(a[name], b[name])}, "its last bit only"),
        (lambda a, b: {name for name in a if torch.equal(a[name], b[name])}, "stayed the same"),
        (lambda a, b: {name for name in a if a[name] is not b[name]}, "compare values, not objects"),
        (lambda a, b: sorted(right("changed")(a, b)), "a set of names"),
    ],
    "averaged_gradients": [
        (together(lambda every: every.sum(0)), "added up"),
        (together(lambda every: every), "side by side"),
        (lambda processes: processes[0], "only the first process"),
        (together(lambda every: every.sum(0) / 2), "whatever the number of processes"),
        (together(lambda every: every.sum(0) / 4), "the number of names"),
    ],
}


# --- 06_controlnet_composition ----------------------------------------------------------------------------------------
def along(a, b, height, width, keep=lambda t: t.clamp(0, 1), by=lambda way: way.square().sum(), turned=False):
    """`segment_distance` with something else in it."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points = torch.stack([y, x] if turned else [x, y], dim=-1).float()
    t = keep(((points - a) @ (b - a)) / by(b - a))
    return (points - (a + t[..., None] * (b - a))).norm(dim=-1)


def near(x, side=3):
    return F.max_pool2d(x.float()[None], side, stride=1, padding=side // 2)[0]


def by_neighbours(moves, pad=1):
    """`agreement` with other neighbours; without padding those across the border are some, too."""

    def near(x):
        seen = torch.stack([F.pad(x, (pad,) * 4).roll(move, (0, 1)) for move in moves]).any(0)
        return seen[pad : seen.shape[0] - pad, pad : seen.shape[1] - pad].float()

    def agree(a, b):
        p, r = near(b)[a].mean(), near(a)[b].mean()
        return 2 * p * r / (p + r)

    return agree


def by_instance_norm(x, reference):
    deviation, mean = torch.std_mean(reference, dim=1, keepdim=True)
    return F.instance_norm(x.transpose(1, 2), eps=0).transpose(1, 2) * deviation + mean


def exact_f1(a, b):
    p, r = b[a].float().mean(), a[b].float().mean()
    return 2 * p * r / (p + r)


def averaged_gradients(weight, x, upstream):
    of_weight, of_bias, of_x = right("zero_conv_gradients")(weight, x, upstream)
    return of_weight / (x.shape[2] * x.shape[3]), of_bias, of_x


def nothing_learns(weight, x, upstream):
    of_weight, of_bias, of_x = right("zero_conv_gradients")(weight, x, upstream)
    return weight * of_weight, of_bias, of_x


def nothing_behind(weight, x, upstream):
    return *right("zero_conv_gradients")(weight, x, upstream)[:2], torch.zeros_like(x)


def all_in_one(q, text, identity, image, id_scale, image_scale, mask):
    k, v = (torch.cat(parts, dim=1) for parts in zip(text, identity, image, strict=True))
    return F.scaled_dot_product_attention(q, k, v)


def masked_query(q, text, identity, image, id_scale, image_scale, mask):
    out = right("three_branches")(q, text, identity, image, id_scale, 0, mask)
    return out + image_scale * F.scaled_dot_product_attention(q * mask[..., None], *image)


def as_if_epsilon(x, v, now, later):
    return later.sqrt() * (x - (1 - now).sqrt() * v) / now.sqrt() + (1 - later).sqrt() * v


def spread(x, reference, dims):
    (s, m), (wanted, centre) = (torch.std_mean(y, dim=dims, keepdim=True) for y in (x, reference))
    return (x - m) / s * wanted + centre


WRONG |= {
    "segment_distance": [
        (lambda a, b, h, w: along(a, b, h, w, keep=lambda t: t), "endless line"),
        (lambda a, b, h, w: along(a, b, h, w, keep=lambda t: t.clamp(min=0)), "no end at b"),
        (lambda a, b, h, w: along(a, b, h, w, turned=True), "x and y are swapped"),
        (lambda a, b, h, w: along(a, b, h, w, by=lambda way: way.norm()), "squared length"),
    ],
    "agreement": [
        (exact_f1, "very same pixel"),
        (lambda a, b: near(b)[a].mean(), "the first map's edges alone"),
        (lambda a, b: (near(b)[a].mean() + near(a)[b].mean()) / 2, "harmonic mean"),
        (lambda a, b: (near(a) == near(b)).float().mean(), "most are no edges"),
        (lambda a, b: right("agreement")(a, b) / 2, "factor of 2"),
        (by_neighbours([(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)]), "corners of the 3 x 3"),
        (by_neighbours([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]), "same pixel does not count"),
        (by_neighbours([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)], pad=0), "across the border"),
    ],
    "zero_conv_gradients": [
        (averaged_gradients, "mean over places"),
        (nothing_learns, "holds the weight"),
        (nothing_behind, "only while the weight is"),
        (lambda weight, x, upstream: upstream.sum((0, 2, 3)), "three things"),
    ],
    "three_branches": [
        (all_in_one, "one softmax over all tokens"),
        (masked_query, "still gets the mean of the values"),
        (lambda q, t, i, p, a, b, mask: right("three_branches")(q, t, i, p, a, b, 1 - mask), "turned round"),
        (lambda q, t, i, p, a, b, mask: right("three_branches")(q, t, i, p, b, a, mask), "scales are swapped"),
        (lambda q, t, i, p, a, b, mask: right("three_branches")(q, t, i, p, a, b, (mask > 0) * 1.0), "all or nothing"),
    ],
    "ddim_step": [
        (as_if_epsilon, "v is taken for the noise"),
        (lambda x, v, now, later: right("ddim_step")(x, v, later, now), "now and later are swapped"),
        (lambda x, v, now, later: now.sqrt() * x - (1 - now).sqrt() * v, "predicted clean picture"),
        (lambda x, v, now, later: right("ddim_step")(x, v, now.square(), later.square()), "values are not"),
        (lambda x, v, now, later: right("ddim_step")(x, v, now, 1 - later), "each other's share"),
    ],
    "adain": [
        (lambda x, reference: spread(x, reference, 2), "over the channels"),
        (lambda x, reference: spread(reference, x, 1), "roles are swapped"),
        (lambda x, reference: x - x.mean(1, keepdim=True) + reference.mean(1, keepdim=True), "only the mean"),
        (by_instance_norm, "one kind of deviation"),
    ],
    "known_and_drawn": [
        (lambda d, c, n, inside, a: right("known_and_drawn")(d, c, n, 1 - inside, a), "turned round"),
        (lambda d, c, n, inside, a: inside * d + (1 - inside) * c, "known latents are clean"),
        (lambda d, c, n, inside, a: inside * d + (1 - inside) * (a * c + (1 - a) * n), "without its root"),
        (lambda d, c, n, inside, a: right("known_and_drawn")(d, c, n, inside, 1 - a), "shares are swapped"),
        (lambda d, c, n, inside, a: inside * d + (1 - inside) * a.sqrt() * c + (1 - a).sqrt() * n, "put brackets"),
    ],
}


def right(name):
    """The reference's function."""
    owner, exercise = next((owner, exercise) for owner, exercise in EXERCISES if exercise.name == name)
    space = {"torch": torch, "F": F, "upl": upl}
    exec(exercise.solution, space)
    return space[name]


@pytest.mark.parametrize(
    "name, answer, said", [(name, answer, said) for name, answers in WRONG.items() for answer, said in answers]
)
def test_a_wrong_answer_is_told_its_mistake(name, answer, said):
    owner = next(owner for owner, exercise in EXERCISES if exercise.name == name)
    verdict = getattr(checks_of(owner), name)(answer)
    assert not verdict and said in repr(verdict), verdict
