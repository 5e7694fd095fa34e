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
