"""Who is where in a picture: its faces matched one to one with the people who should be in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Assignment:
    """F faces, from left to right, and N people.

    `boxes` float32 (F, 4), in pixels of the picture; `similarities` (F, N), the cosine of each face's embedding to each
    person's reference; `face_of`: for each person the number of the face that is theirs, None where there are not
    enough faces.
    """

    boxes: np.ndarray
    similarities: np.ndarray
    face_of: tuple[int | None, ...]

    @property
    def matched(self) -> tuple[float, ...]:
        """Each person's similarity to their own face; 0, as alike as strangers, where they have none."""
        return tuple(0.0 if face is None else float(self.similarities[face, n]) for n, face in enumerate(self.face_of))

    @property
    def counts(self) -> tuple[int, ...]:
        """How many faces are more alike to each person than to the others."""
        people = self.similarities.shape[1]
        return tuple(np.bincount(self.similarities.argmax(axis=1), minlength=people).tolist())

    @property
    def missing(self) -> tuple[int, ...]:
        """The people to whom no face is nearest."""
        return tuple(n for n, count in enumerate(self.counts) if count == 0)

    @property
    def doubled(self) -> tuple[int, ...]:
        """The people to whom several faces are nearest."""
        return tuple(n for n, count in enumerate(self.counts) if count > 1)

    @property
    def distinct(self) -> bool:
        """Whether every person has exactly one face nearest to them.

        Nearest says little where likeness is weak: faces of two strangers would do in half of all cases, by chance.
        """
        return all(count == 1 for count in self.counts)


def assign(boxes: np.ndarray, embeddings: np.ndarray, references: np.ndarray) -> Assignment:
    """Matches faces (F, 4), (F, D) with people's references (N, D), embeddings of length 1: the best sum of cosines."""
    from scipy.optimize import linear_sum_assignment

    people = len(references)
    similarities = np.asarray(embeddings, np.float32).reshape(-1, references.shape[1]) @ references.T
    similarities = np.nan_to_num(similarities)  # a reference without a face is as alike as strangers
    faces, matched = linear_sum_assignment(-similarities)
    own = dict(zip(matched.tolist(), faces.tolist(), strict=True))
    return Assignment(
        np.asarray(boxes, np.float32).reshape(-1, 4), similarities, tuple(own.get(n) for n in range(people))
    )
