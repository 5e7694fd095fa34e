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


@pytest.mark.parametrize("name", [name for name in notebooks.names_in() if name > "01"])
def test_a_notebook_has_at_least_five_exercises(name):
    assert len([1 for owner, _ in EXERCISES if owner == name]) >= 5


def test_every_exercise_is_given_wrong_answers():
    assert set(WRONG) == {exercise.name for _, exercise in EXERCISES}
    assert all(len(answers) >= 2 for answers in WRONG.values())


# --- 01_face_features -------------------------------------------------------------------------------------------------
def least_squares(points, template):
    """All six numbers free."""
    return torch.linalg.lstsq(torch.cat([points, torch.ones(5, 1)], 1), template).solution.T


def swapped(points, template):
    return right("similarity")(template, points)


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


def reading(source=lambda f, q: torch.cat([f, q], 1), swap=False, merged=True):
    """`read_features` with something else in it."""

    def read(features, queries, to_q, to_kv, heads):
        k, v = to_kv(source(features, queries)).chunk(2, dim=-1)
        k, v = (v, k) if swap else (k, v)
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (to_q(queries), k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).flatten(2) if merged else out.reshape(*queries.shape[:2], -1)

    return read


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
    ],
    "cosines": [
        (lambda a, b: a @ b.T, "dot products"),
        (lambda a, b: F.normalize(a, dim=0) @ F.normalize(b, dim=0).T, "over the pictures"),
        (two_norms, "only one of the two"),
        (lambda a, b: F.cosine_similarity(b[:, None], a[None], dim=-1), "rows and columns are swapped"),
    ],
    "with_margin": [
        (lambda cosine, margin: cosine - margin, "CosFace"),
        (lambda cosine, margin: torch.cos(cosine + margin), "cosine of a cosine"),
        (lambda cosine, margin: torch.cos(torch.acos(cosine) - margin), "harder, so it is added"),
        (lambda cosine, margin: torch.acos(cosine) + margin, "take its cosine"),
    ],
    "curricular": [
        (all_negatives, "all negatives are reweighted"),
        (bare_positive, "bare cosine: it should have T"),
        (against_the_bare, "not its bare cosine"),
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
    ],
    "qformer_layer": [
        (parallel, "read by the old queries"),
        (without_residuals, "each is a residual"),
        (beta_on_everything, "beta scales everything"),
    ],
    "structure_drop": [
        (dropped_for_kept, "tokens says what is dropped"),
        (everyone_thinned, "every sample loses tokens"),
        (one_die_a_sample, "each token has its own"),
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


# --- 06_controlnet_composition ----------------------------------------------------------------------------------------
def along(a, b, height, width, keep=lambda t: t.clamp(0, 1), by=lambda way: way.square().sum(), turned=False):
    """`segment_distance` with something else in it."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points = torch.stack([y, x] if turned else [x, y], dim=-1).float()
    t = keep(((points - a) @ (b - a)) / by(b - a))
    return (points - (a + t[..., None] * (b - a))).norm(dim=-1)


def near(x, side=3):
    return F.max_pool2d(x.float()[None], side, stride=1, padding=side // 2)[0]


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
    ],
    "ddim_step": [
        (as_if_epsilon, "v is taken for the noise"),
        (lambda x, v, now, later: right("ddim_step")(x, v, later, now), "now and later are swapped"),
        (lambda x, v, now, later: now.sqrt() * x - (1 - now).sqrt() * v, "predicted clean picture"),
        (lambda x, v, now, later: right("ddim_step")(x, v, now.square(), later.square()), "values are not"),
    ],
    "adain": [
        (lambda x, reference: spread(x, reference, 2), "over the channels"),
        (lambda x, reference: spread(reference, x, 1), "roles are swapped"),
        (lambda x, reference: x - x.mean(1, keepdim=True) + reference.mean(1, keepdim=True), "only the mean"),
    ],
    "known_and_drawn": [
        (lambda d, c, n, inside, a: right("known_and_drawn")(d, c, n, 1 - inside, a), "turned round"),
        (lambda d, c, n, inside, a: inside * d + (1 - inside) * c, "known latents are clean"),
        (lambda d, c, n, inside, a: inside * d + (1 - inside) * (a * c + (1 - a) * n), "without its root"),
        (lambda d, c, n, inside, a: right("known_and_drawn")(d, c, n, inside, 1 - a), "shares are swapped"),
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
