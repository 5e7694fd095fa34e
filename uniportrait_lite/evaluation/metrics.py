"""What is measured: similarities of faces, how well they tell people apart, and where they lie between two limits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from uniportrait_lite.faces import face_of
from uniportrait_lite.pictures import Picture


def face_similarity(image_a: Picture, image_b: Picture, folder: str | os.PathLike | None = None) -> float:
    """How alike the largest faces of two pictures are: the cosine of the judge's embeddings, 1 for the same picture.

    Pictures are paths, PIL images or arrays. `folder` holds detector and judge: the tiny profile's where not given.
    Raises `NoFaceError` where a picture shows no face, `PictureError` for what is no picture.
    """
    a, b = (face_of(image, "largest", folder, embed=True).embedding for image in (image_a, image_b))
    return float(a @ b)


def cosines(embeddings: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Similarities (...,R) of the judge's unit vectors (...,D) to references (R,D).

    A picture without a face (NaN) counts as 0, as alike as strangers: everything that scores portraits comes here.
    """
    return np.nan_to_num(embeddings @ references.T)


def similarities(embeddings: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of pictures to references: to their own person's (P,Q), and to each other person's (P,Q,P-1).

    `embeddings` (P,Q,D) are of Q pictures of each of P people, as `cosines` takes them; `references` (P,D).
    """
    people = len(references)
    alike = cosines(embeddings, references).transpose(0, 2, 1)
    same = np.eye(people, dtype=bool)
    return alike[same], alike[~same].reshape(people, people - 1, -1).transpose(0, 2, 1)


def auc(own: np.ndarray, others: np.ndarray) -> float:
    """The chance that a similarity to the own reference is above one to another's; equal ones count half."""
    ranked = np.sort(others, axis=None)
    below, upto = (np.searchsorted(ranked, own.ravel(), side=side) for side in ("left", "right"))
    return float((below + upto).mean() / (2 * len(ranked)))


def scaled(own: float, floor: float, ceiling: float) -> float:
    """s: 0 where portraits are as alike as other people's pictures, 1 where as alike as real ones of the person."""
    return float((own - floor) / (ceiling - floor))


def interval(
    own: np.ndarray, floor: np.ndarray, ceiling: np.ndarray, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The 95% interval of s over people, by bootstrap: each argument (P,) holds the people's means."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(own), size=(draws, len(own)))
    own, floor, ceiling = (values[drawn].mean(axis=1) for values in (own, floor, ceiling))
    low, high = np.quantile((own - floor) / (ceiling - floor), [0.025, 0.975])
    return float(low), float(high)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The Frechet distance of features (N,D) and (M,D), each taken as normally distributed (Heusel et al. 2017: FID).

    0 for sets of the same mean and covariance. Small sets are far from each other by chance: compare with what two
    sets of real pictures of the same size have.
    """
    means, covariances = [x.mean(0) for x in (a, b)], [np.cov(x, rowvar=False) for x in (a, b)]
    values = np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)  # those of a product of such: not negative
    trace = np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.sqrt(values).sum()
    return float(((means[0] - means[1]) ** 2).sum() + trace)


def readable(features: np.ndarray, wanted: np.ndarray, others: np.ndarray, weight: float = 0.1) -> np.ndarray:
    """What ridge regression makes of `others` (M,D), having learned `wanted` (N,E) from `features` (N,D): (M,E).

    How much of one network's embedding another's features hold. `weight` is that of the penalty, in mean squares.
    """
    mean, target = features.mean(0), wanted.mean(0)
    centred, rest = features - mean, others - mean
    products = centred @ centred.T
    products[np.diag_indices_from(products)] += weight * np.trace(products) / len(products)
    return rest @ centred.T @ np.linalg.solve(products, wanted - target) + target


def followed(read: Sequence[Mapping[str, str]], asked: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """The share of asked attributes that were read in the pictures: of all of them ("all"), then by attribute."""
    hits: dict[str, list[bool]] = {}
    for seen, wanted in zip(read, asked, strict=True):
        for name, value in wanted.items():
            hits.setdefault(name, []).append(seen[name] == value)
    every = [hit for values in hits.values() for hit in values]
    return {"all": float(np.mean(every)), **{name: float(np.mean(values)) for name, values in hits.items()}}
