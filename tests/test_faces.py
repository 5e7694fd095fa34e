"""Faces of drawn people are found, cropped and chosen; what has no face says so."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from uniportrait_lite.errors import ConfigError, NoFaceError, PictureError, SeveralFacesError, WeightsError
from uniportrait_lite.faces import CROP, DetectedFace, FaceDetector, detect, detector_of, face_of, pick
from uniportrait_lite.pictures import read_picture
from uniportrait_lite.profiles import data_folder
from uniportrait_lite.toyworld import Person, group, portrait, splits

PEOPLE = [Person.random(splits.HELD_OUT[20_000 + k]) for k in range(60)]


def away(face: DetectedFace, truth) -> float:
    """Mean distance of the landmarks in widths of the true face."""
    return np.linalg.norm(face.landmarks - truth.landmarks, axis=1).mean() / (truth.box[2] - truth.box[0])


def test_every_face_of_unseen_people_is_found_from_left_to_right():
    complete, errors, scenes = 0, [], 0
    for k in range(0, 60, 3):
        for scene in (portrait(PEOPLE[k], seed=k), group(PEOPLE[k : k + 2], seed=k), group(PEOPLE[k : k + 3], seed=k)):
            found = detect(scene.image)
            scenes += 1
            if len(found) == len(scene.faces):
                complete += 1
                errors += [away(face, truth) for face, truth in zip(found, scene.faces, strict=True)]
    assert complete >= 0.95 * scenes
    assert np.mean(errors) <= 0.03


@pytest.mark.parametrize(("seed", "people"), [(50_046, (63, 474)), (50_148, (359, 165)), (50_377, (158, 1275, 99))])
def test_a_box_around_two_faces_at_once_is_no_face(seed, people):
    scene = group([Person.random(splits.HELD_OUT[number]) for number in people], seed=seed)
    truth = np.array([face.box for face in scene.faces])
    found = detect(scene.image)
    assert len(found) == len(people)
    assert np.abs(np.array([face.box for face in found]) - truth).max() < 12
    unsure = FaceDetector(data_folder() / "face", threshold=0.7).detect(scene.image)
    assert len(unsure) == len(people) + 1, "the detector is another one now: does its threshold still fit?"


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_coordinates_are_those_of_the_picture_at_any_scale(scale):
    scene = portrait(PEOPLE[0], seed=1, style="photo", glasses="none", scale=scale)
    (face,) = detect(scene.image)
    truth = scene.faces[0]
    assert away(face, truth) < 0.06 and np.abs(face.box - np.array(truth.box)).max() < 8 * scale
    assert face.landmarks.shape == (5, 2) and 0.8 <= face.score <= 1


def test_the_crop_puts_eyes_and_mouth_where_face_backbones_expect_them():
    scene = portrait(PEOPLE[1], seed=2, style="photo", glasses="none", hat="none", turn=0.0, tilt=15)
    upright = portrait(PEOPLE[1], seed=2, style="photo", glasses="none", hat="none", turn=0.0, tilt=-15)
    (tilted,), (straight,) = detect(scene.image), detect(upright.image)
    assert tilted.crop.size == (CROP, CROP) and tilted.crop.mode == "RGB"
    crops = [np.asarray(face.crop, int)[60:200, 60:164] for face in (tilted, straight)]
    windows = [
        np.asarray(s.image.crop([round(v) for v in face.box]).resize((CROP, CROP)), int)[60:200, 60:164]
        for face, s in ((tilted, scene), (straight, upright))
    ]
    aligned, as_drawn = (np.abs(a - b).mean() for a, b in (crops, windows))
    assert aligned < 0.85 * as_drawn, "alignment takes the tilt away"


def test_a_face_that_fills_the_picture_is_found():
    found = 0
    for k in range(12):
        scene = portrait(PEOPLE[k], seed=k, style="photo", hat="none", scale=2)
        x0, y0, x1, y1 = scene.faces[0].box
        found += len(detect(scene.image.crop((int(x0), int(y0), int(x1), int(y1)))))
    assert found >= 11


def test_a_face_that_overflows_the_picture_is_found_with_a_border_around_it():
    """The middle of a face, which the detector mostly overlooks by itself."""
    detector, plain, bordered = detector_of(), 0, 0
    for k in range(12):
        scene = portrait(PEOPLE[k], seed=k, style="photo", hat="none", scale=3)
        x0, y0, x1, y1 = scene.faces[0].box
        across, down = 0.15 * (x1 - x0), 0.15 * (y1 - y0)
        picture = scene.image.crop((int(x0 + across), int(y0 + down), int(x1 - across), int(y1 - down)))
        bgr = np.ascontiguousarray(np.asarray(picture)[..., ::-1])
        plain += bool(detector._find(bgr, 0.0, detector.det_size))
        bordered += bool(detect(picture))
    assert plain <= 8 and bordered >= 11


def test_a_small_face_in_a_large_picture_is_found():
    picture = Image.new("RGB", (900, 700), (120, 150, 170))
    picture.paste(portrait(PEOPLE[2], seed=3, style="photo", hat="none").image, (500, 300))
    (face,) = detect(picture)
    assert 500 < face.box[0] < face.box[2] < 628 and 300 < face.box[1] < face.box[3] < 428


@pytest.mark.parametrize(
    "picture",
    [
        np.full((200, 300, 3), 130, np.uint8),
        np.zeros((10, 10, 3), np.uint8),
        np.zeros((1, 10_000, 3), np.uint8),
        np.zeros((10_000, 1), np.uint8),
        np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8),
        np.linspace(0, 1, 128 * 128).reshape(128, 128),
    ],
    ids=["plain", "10x10", "long", "tall", "noise", "gradient"],
)
def test_a_picture_without_a_face_has_none(picture):
    assert detect(picture) == []
    with pytest.raises(NoFaceError, match="one face is well seen"):
        face_of(picture)


def test_greyscale_and_transparent_pictures_and_files_give_the_face_too(tmp_path):
    image = portrait(PEOPLE[3], seed=4, style="photo", glasses="none").image
    (usual,) = detect(image)
    image.save(tmp_path / "a.png")
    for picture in (tmp_path / "a.png", np.asarray(image), image.convert("RGBA"), image.convert("L")):
        (face,) = detect(picture)
        assert np.abs(face.landmarks - usual.landmarks).max() < 4
    with pytest.raises(PictureError):
        detect(tmp_path / "none.png")


@pytest.mark.parametrize("kind", ["cmyk.jpg", "sixteen.png", "palette.gif", "turned.jpg", "huge.jpg"])
def test_files_as_cameras_and_programs_write_them_give_the_face(tmp_path, kind):
    image, path = portrait(PEOPLE[3], seed=4, style="photo", glasses="none", scale=4).image, tmp_path / kind
    (usual,) = detect(image)
    if kind == "cmyk.jpg":
        image.convert("CMYK").save(path, quality=95)
    elif kind == "sixteen.png":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)
    elif kind == "palette.gif":
        image.save(path, save_all=True, append_images=[Image.new("RGB", image.size)])
    elif kind == "turned.jpg":
        exif = Image.Exif()
        exif[0x0112] = 8  # the camera lay on its side: turn left by 90 degrees
        image.transpose(Image.Transpose.ROTATE_270).save(path, quality=95, exif=exif)
    else:
        image.resize((10_000, 10_000), Image.Resampling.NEAREST).save(path)  # 100 MP
    (face,) = detect(path)
    scale = image.width / read_picture(path).width
    assert np.abs(scale * face.landmarks - usual.landmarks).max() < 0.06 * image.width


def test_nothing_is_found_in_eight_pixels_and_one_of_five_has_to_be_chosen(tmp_path):
    Image.new("RGB", (8, 8), (200, 170, 150)).save(tmp_path / "tiny.png")
    with pytest.raises(NoFaceError, match="tiny.png: no face found"):
        face_of(tmp_path / "tiny.png")
    scene = group(PEOPLE[20:25], seed=6, style="photo", hat="none", scale=2).image
    with pytest.raises(SeveralFacesError, match='5 faces.*face="largest".*face=4'):
        face_of(scene)
    assert face_of(scene, face="largest").crop.size == (CROP, CROP)


def test_choosing_among_several():
    scene = group(PEOPLE[4:7], seed=5, style="photo", hat="none")
    wide = scene.image.resize((scene.image.width * 2, scene.image.height * 2))
    faces = detect(wide)
    assert len(faces) == 3
    with pytest.raises(SeveralFacesError, match='3 faces.*face="largest".*face=0 to face=2'):
        pick(faces)
    assert [pick(faces, k) for k in range(3)] == faces
    areas = [(f.box[2] - f.box[0]) * (f.box[3] - f.box[1]) for f in faces]
    assert pick(faces, "largest") is faces[int(np.argmax(areas))]
    assert pick(faces[1:2]) is faces[1]
    for wrong in (3, -1, "smallest", 1.0, True):
        with pytest.raises(ConfigError, match="from the left"):
            pick(faces, wrong)
    with pytest.raises(NoFaceError):
        pick([], "largest")


def test_errors_name_the_file(tmp_path):
    group(PEOPLE[4:6], seed=5, style="photo", hat="none").image.save(tmp_path / "two.png")
    with pytest.raises(SeveralFacesError, match="two.png: 2 faces"):
        face_of(tmp_path / "two.png")


def test_embeddings_tell_people_apart():
    def embedding(person, seed):
        return face_of(portrait(person, seed=seed, style="photo", glasses="none").image, embed=True).embedding

    same = [embedding(p, 11) @ embedding(p, 12) for p in PEOPLE[10:16]]
    other = [embedding(p, 11) @ embedding(q, 12) for p, q in zip(PEOPLE[10:16], PEOPLE[16:22], strict=True)]
    assert np.linalg.norm(embedding(PEOPLE[0], 1)) == pytest.approx(1, abs=1e-3)
    assert np.mean(same) > np.mean(other) + 0.3
    assert detect(portrait(PEOPLE[0], seed=1).image)[0].embedding is None


def test_finding_faces_prints_and_warns_nothing(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FaceDetector(data_folder("tiny") / "face", embed=True).detect(portrait(PEOPLE[0], seed=1).image)
    assert capfd.readouterr() == ("", "")


def test_missing_and_damaged_models_say_how_to_get_them(tmp_path):
    with pytest.raises(WeightsError, match="no folder.*pretrain"):
        FaceDetector(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="no detector"):
        FaceDetector(tmp_path / "empty")
    (tmp_path / "cut").mkdir()
    whole = (data_folder("tiny") / "face" / "detector.onnx").read_bytes()
    (tmp_path / "cut" / "detector.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cannot be read.*pretrain"):
        FaceDetector(tmp_path / "cut")
    (tmp_path / "cut" / "detector.onnx").write_bytes(whole)
    FaceDetector(tmp_path / "cut")
    with pytest.raises(WeightsError, match="no recognition model"):
        FaceDetector(tmp_path / "cut", embed=True)
    with pytest.raises(ConfigError, match="multiple of 32"):
        FaceDetector(tmp_path / "cut", det_size=250)


def test_a_missing_system_library_is_named():
    code = """
import sys
class NoGL:
    def find_spec(self, name, path=None, target=None):
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
sys.meta_path.insert(0, NoGL())
from uniportrait_lite.faces import detect
from uniportrait_lite.errors import UniPortraitError
try:
    detect(__import__("numpy").zeros((64, 64, 3), "uint8"))
except UniPortraitError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "libGL.so.1" in done.stdout and "apt-get install libgl1 libglib2.0-0 libegl1" in done.stdout
