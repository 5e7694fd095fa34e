"""A picture -> its faces, with boxes, five landmarks and aligned crops, through insightface."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uniportrait_lite.errors import ConfigError, NoFaceError, SeveralFacesError, UniPortraitError, WeightsError
from uniportrait_lite.folders import data_folder
from uniportrait_lite.parts import NON_COMMERCIAL, OURS, package_name
from uniportrait_lite.pictures import Picture, read_picture
from uniportrait_lite.places import fetch

CROP = 224  # pixels: what CLIP reads, and twice what a face backbone reads
SMALLEST = 12  # pixels: a face less high than this says nothing about who it is
DET_SIZE, THRESHOLD = 256, 0.8  # of the tiny detector: what it is trained for, what it was found to need
PACKAGE_DET_SIZE, PACKAGE_THRESHOLD = 640, 0.5  # of insightface's packages, as insightface has them


@dataclass(frozen=True, eq=False)
class DetectedFace:
    """One face of a picture. Coordinates are pixels of the picture as `read_picture` gives it."""

    box: np.ndarray  # float32 (4,): x0, y0, x1, y1
    landmarks: np.ndarray  # float32 (5, 2): left eye, right eye, nose, left and right corner of the mouth, as seen
    score: float  # 0..1
    crop: Image.Image  # RGB 224 x 224: eyes, nose and mouth at ArcFace's places
    embedding: np.ndarray | None = None  # float32 (D,) of length 1, by the folder's recognition model, if asked for


class FaceDetector:
    """insightface's `FaceAnalysis` on a folder of ONNX files, or on one of its packages by name ("buffalo_l").

    Pictures are looked at with `det_size` pixels, and `threshold` is the least score of a face: without them those of
    the tiny detector (in 600 drawn scenes of one to three people each of the 1,200 faces scored at least 0.94, and each
    wrong box, around two faces or a second one on a face, at most 0.78), or of insightface's packages. `embed` also
    loads the recognition model.
    insightface's models are for non-commercial research only, which is said on stderr when they are loaded; this
    project's own are free. Raises WeightsError if there is no detector that can be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        det_size: int | None = None,
        threshold: float | None = None,
        embed: bool = False,
    ):
        ours = is_ours(folder)
        usual_size, usual_threshold = (DET_SIZE, THRESHOLD) if ours else (PACKAGE_DET_SIZE, PACKAGE_THRESHOLD)
        det_size = usual_size if det_size is None else det_size
        threshold = usual_threshold if threshold is None else threshold
        if det_size % 32 or det_size < 32:
            raise ConfigError(f"det_size={det_size} must be a multiple of 32, as 256")
        self.folder, self.det_size, self.threshold, self.embed = str(folder), det_size, threshold, embed
        self.app = _load(self.folder, ["detection", "recognition"] if embed else ["detection"])
        if not ours:
            print(f"the face models of {folder}: insightface's are for {NON_COMMERCIAL}", file=sys.stderr)
        if embed and "recognition" not in self.app.models:
            raise WeightsError(f"{folder} holds no recognition model (judge.onnx): {_MEND}")
        with contextlib.redirect_stdout(io.StringIO()):
            self.app.prepare(ctx_id=0, det_thresh=threshold, det_size=(det_size, det_size))

    def detect(self, picture: Picture) -> list[DetectedFace]:
        """All faces, from left to right; an empty list if there is none.

        Where nothing is found at first, looks again with an empty border of half the picture's size around it (a face
        that fills the picture), and in pictures of more than 512 pixels once more at four times the area (small faces).
        Raises PictureError for what is no picture.
        """
        image = np.asarray(read_picture(picture))
        bgr = np.ascontiguousarray(image[..., ::-1])
        found = self._find(bgr, 0.0, self.det_size) or self._find(bgr, 0.5, self.det_size)
        if not found and max(bgr.shape) > 512:
            found = self._find(bgr, 0.0, 2 * self.det_size)
        faces = [self._face(image, bgr, box, landmarks) for box, landmarks in found]
        return sorted(faces, key=lambda face: face.box[0] + face.box[2])

    def embeddings(self, pictures: Sequence[Picture]) -> np.ndarray:
        """The judge's view (N,D) of the largest face of each picture, NaN where none is found. Needs `embed`."""
        nothing = np.full(self.app.models["recognition"].output_shape[-1], np.nan, np.float32)
        found = [largest(self.detect(picture)) for picture in pictures]
        return np.stack([nothing if face is None else face.embedding for face in found])

    def _find(self, bgr: np.ndarray, border: float, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Boxes with scores (5,) and landmarks (5, 2), looking with a black border, a share of the picture's size.

        Pictures that are very long get one in any case: insightface would scale their short side to nothing.
        """
        height, width = bgr.shape[:2]
        rows = max(int(border * height), width // 8 - height, 0)
        columns = max(int(border * width), height // 8 - width, 0)
        padded = np.pad(bgr, ((rows, rows), (columns, columns), (0, 0)))
        boxes, landmarks = self.app.det_model.detect(padded, input_size=(size, size))
        boxes = boxes - np.array([columns, rows, columns, rows, 0], np.float32)
        landmarks = landmarks - np.array([columns, rows], np.float32)
        return [(b, p) for b, p in zip(boxes, landmarks, strict=True) if min(b[2] - b[0], b[3] - b[1]) >= SMALLEST]

    def _face(self, image: np.ndarray, bgr: np.ndarray, box: np.ndarray, landmarks: np.ndarray) -> DetectedFace:
        from insightface.app.common import Face
        from insightface.utils.face_align import norm_crop

        embedding = None
        with warnings.catch_warnings():  # insightface calls scikit-image by an old name
            warnings.simplefilter("ignore", FutureWarning)
            crop = Image.fromarray(norm_crop(image, landmarks, CROP))
            if self.embed:
                face = Face(bbox=box[:4], kps=landmarks, det_score=box[4])
                self.app.models["recognition"].get(bgr, face)
                embedding = face.normed_embedding.astype(np.float32)
        return DetectedFace(box[:4].copy(), landmarks, float(box[4]), crop, embedding)


def detect(picture: Picture, folder: str | os.PathLike | None = None, embed: bool = False) -> list[DetectedFace]:
    """The faces of a picture, from left to right: see `FaceDetector.detect`. The detector is loaded once a folder.

    Without `folder` it is the tiny profile's.
    """
    return detector_of(folder, embed).detect(picture)


def largest(faces: Sequence[DetectedFace]) -> DetectedFace | None:
    """The face whose box has the largest area, None of none."""
    return max(faces, key=lambda f: (f.box[2] - f.box[0]) * (f.box[3] - f.box[1])) if faces else None


def pick(faces: list[DetectedFace], face: Any = None) -> DetectedFace:
    """The face that is meant: the only one, the "largest", or a number from the left, from 0.

    Raises NoFaceError, SeveralFacesError (when `face` is None and there are several), ConfigError for another `face`.
    """
    if face is not None and face != "largest" and (isinstance(face, bool) or not isinstance(face, int)):
        raise ConfigError(f'face={face!r}: give "largest", or the number of a face, counted from the left from 0')
    if not faces:
        raise NoFaceError("no face found: give a picture in which one face is well seen, upright and not too small")
    if face == "largest":
        return largest(faces)
    if face is None:
        if len(faces) > 1:
            raise SeveralFacesError(
                f'{len(faces)} faces found: choose with face="largest", or with face=0 to face={len(faces) - 1}, '
                "counted from the left"
            )
        return faces[0]
    if not 0 <= face < len(faces):
        raise ConfigError(f"face={face}, but the picture shows {len(faces)}: give 0 to {len(faces) - 1}, from the left")
    return faces[face]


def face_of(
    picture: Picture, face: Any = None, folder: str | os.PathLike | None = None, embed: bool = False
) -> DetectedFace:
    """The one face of a picture that is meant: `detect`, then `pick`; errors name the picture's file."""
    try:
        return pick(detect(picture, folder, embed), face)
    except (NoFaceError, SeveralFacesError) as error:
        if isinstance(picture, str | os.PathLike):
            raise type(error)(f"{picture}: {error}") from None
        raise


def detector_of(folder: str | os.PathLike | None = None, embed: bool = False) -> FaceDetector:
    """The detector of a folder or an insightface package, loaded at the first call; of the tiny profile for None."""
    if folder is None:
        folder = data_folder("tiny") / "face"
    return _detector(package_name(folder) or str(Path(folder).expanduser().absolute()), embed)


def is_ours(folder: str | os.PathLike) -> bool:
    """Whether these are face models of this project, and not insightface's."""
    return (Path(folder).expanduser() / OURS).is_file()


@functools.lru_cache(maxsize=4)
def _detector(folder: str, embed: bool) -> FaceDetector:
    return FaceDetector(folder, embed=embed)


_MEND = (
    "fetch the repository's data again (git checkout -- data), train it (python -m uniportrait_lite pretrain), or name "
    "one of insightface's packages (buffalo_l)"
)


def _load(folder: str, modules: list[str]) -> Any:
    """insightface's application; its prints of model paths are dropped, its failures put in words."""
    package, path = package_name(folder), Path(folder).expanduser()
    if package is not None:
        fetch({"faces": package}, only=("faces",))
    elif not path.is_dir():
        raise WeightsError(f"there is no folder {path} with face models: {_MEND}")
    try:
        from insightface.app import FaceAnalysis
    except ImportError as error:
        if ".so" not in str(error):
            raise
        raise UniPortraitError(
            f"a system library is missing ({error}): apt-get install libgl1 libglib2.0-0 libegl1, and try again"
        ) from error
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return FaceAnalysis(name=folder, allowed_modules=modules)
    except AssertionError as error:
        raise WeightsError(f"{folder} holds no detector (detector.onnx): {_MEND}") from error
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise WeightsError(f"the face models in {folder} cannot be read ({error}): {_MEND}") from error
