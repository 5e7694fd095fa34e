"""The recipes of recogniser, judge and reader, on small sets of really drawn people."""

import json

import cv2
import numpy as np
import pytest
import torch
from insightface.app import FaceAnalysis
from insightface.model_zoo.arcface_onnx import ArcFaceONNX
from insightface.utils.face_align import arcface_dst, norm_crop

from uniportrait_lite.backbone import IRResNet, verification
from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.toyworld import Person, group, portrait, splits
from uniportrait_lite.toyworld.pretrain import data, judge, reader, recogniser, recognition
from uniportrait_lite.toyworld.pretrain.detector import Detector
from uniportrait_lite.toyworld.pretrain.detector import export as export_detector
from uniportrait_lite.toyworld.pretrain.onnx_export import export_onnx


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    """Sets of few people, in chunks of 60 scenes, drawn into a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(data, "CHUNK", 60)
        people = {"portraits": splits.TRAIN[:12], "judge": splits.JUDGE[:12], "unseen": splits.HELD_OUT[:12]}
        for name, seeds in people.items():
            patch.setitem(data.SETS, name, data.SceneSet(name, seeds))
        for name, count in (("pairs", 2), ("trios", 3), ("unseen_trios", 3)):
            patch.setitem(data.SETS, name, data.SceneSet(name, splits.TRAIN[:12], count))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield data.load_scenes
        torch.set_num_threads(threads)


# --- aligned faces --------------------------------------------------------------------------------------------
def test_alignment_is_the_least_squares_similarity_to_insightfaces_template():
    landmarks = np.float32(arcface_dst * 0.5 + 30 + np.random.default_rng(0).normal(0, 2, (6, 5, 2)))
    for side in (112, 224):
        for points, (a, b) in zip(landmarks, recognition.align(landmarks, side)[:, 0, :2], strict=True):
            target = arcface_dst * side / 112
            columns = np.stack([points[:, 0], -points[:, 1], points[:, 1], points[:, 0]], 1).reshape(10, 2)
            system = np.concatenate([columns, np.tile(np.eye(2), (5, 1))], 1)
            found = np.linalg.lstsq(system, target.reshape(10), rcond=None)[0]
            np.testing.assert_allclose([a, -b], found[:2], atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*estimate:FutureWarning")  # insightface calls scikit-image by an old name
@pytest.mark.parametrize("side", [112, 224])
def test_crops_are_those_of_insightface(side):
    """But for a rounding of coordinates here and there: training sees what `FaceDetector` will give."""
    for seed in range(4):
        scene = group([Person.random(seed), Person.random(seed + 50)], seed=seed)
        for face in scene.faces:
            ours = recognition.crop(scene.pixels[None], face.landmarks[None], side)[0].astype(int)
            theirs = norm_crop(scene.pixels, face.landmarks, side).astype(int)
            assert ours.shape == theirs.shape and np.ptp(theirs) > 100
            assert (ours != theirs).any(-1).mean() < 0.02 and np.abs(ours - theirs).max() <= 8


def test_crops_bring_the_eyes_and_mouth_of_any_scene_to_the_template():
    scene = group([Person.random(s) for s in (1, 2, 3)], seed=5)
    for face in scene.faces:
        dot = np.zeros((*scene.pixels.shape[:2], 3), np.uint8)
        for x, y in face.landmarks:
            cv2.circle(dot, (round(float(x)), round(float(y))), 1, (255, 255, 255), -1)
        crop = recognition.crop(dot[None], face.landmarks[None])[0]
        found = np.array([crop[int(y) - 9 : int(y) + 10, int(x) - 9 : int(x) + 10].max() for x, y in arcface_dst])
        assert (found > 100).all()


def test_batches_repeat_for_a_seed_vary_between_seeds_and_name_the_right_person(small_world):
    scenes = small_world("portraits", 120)
    batches = recognition.FaceBatches(scenes, 16, jitter=0.0, blurred=0.0)
    first, again, other = (batches(torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first["faces"], again["faces"]) and not torch.equal(first["faces"], other["faces"])
    assert first["faces"].shape == (16, 3, 112, 112) and first["faces"].abs().max() <= 1
    plain = {
        p: recognition.as_input(recognition.crop(scenes.images([p]), scenes.landmarks[[p], 0])) for p in range(120)
    }
    for face, label in zip(first["faces"], first["labels"], strict=True):
        nearest = min(plain, key=lambda p: float((plain[p][0] - plain[p].mean() - face + face.mean()).abs().mean()))
        assert scenes.person[nearest, 0] - splits.TRAIN[0] == label


def test_the_margin_rises_in_a_line_and_stays():
    assert [recognition.ramp(s, 0.4, 100) for s in (0, 50, 100, 5000)] == [0, 0.2, 0.4, 0.4]


# --- recipes --------------------------------------------------------------------------------------------------
QUICK = {"batch": 24, "steps": 24, "warmup": 5, "unseen": 60, "evaluate_every": 24}


def test_the_recogniser_learns_to_tell_people_apart_and_ships_what_it_measured(small_world, tmp_path):
    settings = {
        "out": str(tmp_path / "run"),
        "folder": str(tmp_path / "net"),
        "scenes": 60,
        "margin_steps": 24,
        **QUICK,
    }
    report = recogniser.run(**settings)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert report["metrics"]["auc"] > 0.6 and report["steps"] == 24
    assert report == json.loads((tmp_path / "net" / "recogniser.recipe.json").read_text())
    assert any("auc" in line for line in log)
    network = IRResNet.from_pretrained(tmp_path / "net")
    unseen = small_world("unseen", 60)
    again = verification(*recognition.embed(network, unseen, 60, recognition.twice_resampled))
    assert again == report["metrics"]


def test_the_judges_onnx_file_is_the_network_and_insightface_feeds_it_right(small_world, tmp_path):
    settings = {
        "out": str(tmp_path / "run"),
        "folder": str(tmp_path / "face"),
        "scenes": 60,
        "margin_steps": 24,
        **QUICK,
    }
    report = judge.run(**settings)
    assert report["metrics"]["auc"] > 0.6
    torch.manual_seed(0)
    network = judge.Judge()
    network(torch.randn(8, 3, 112, 112))
    export_onnx(network, torch.zeros(1, 3, 112, 112), tmp_path / "other.onnx")
    loaded = ArcFaceONNX(str(tmp_path / "other.onnx"))
    assert (loaded.input_mean, loaded.input_std, loaded.input_size) == (127.5, 127.5, (112, 112))
    unseen = small_world("unseen", 60)
    faces = recognition.crop(unseen.images(range(5)), unseen.landmarks[:5, 0])
    with torch.no_grad():
        expected = network.eval()(recognition.as_input(faces)).numpy()
    found = loaded.get_feat([face[..., ::-1] for face in faces])
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_faceanalysis_takes_a_relative_folder_with_the_judge_as_its_recognition_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export_detector(Detector(8).eval(), "data/tiny/face/detector.onnx")
    export_onnx(judge.Judge(), torch.zeros(1, 3, 112, 112), "data/tiny/face/judge.onnx")
    for name in ("data/tiny/face", "./data/tiny/face"):
        app = FaceAnalysis(name=name, providers=["CPUExecutionProvider"])
        assert set(app.models) == {"detection", "recognition"}
        assert isinstance(app.models["recognition"], ArcFaceONNX)


def test_judge_and_recogniser_share_neither_people_nor_seed_nor_architecture():
    assert not set(data.SETS["judge"].people) & set(data.SETS["portraits"].people)
    assert not set(data.SETS["unseen"].people) & (set(splits.TRAIN) | set(splits.JUDGE))
    assert judge.JudgeConfig().seed != recogniser.RecogniserConfig().seed
    assert {type(m).__name__ for m in judge.Judge().modules()}.isdisjoint({"IRBlock", "PReLU"})


# --- the reader -----------------------------------------------------------------------------------------------
def test_the_reader_learns_and_reads_the_same_after_saving(small_world, tmp_path):
    report = reader.run(
        out=str(tmp_path / "run"), folder=str(tmp_path / "net"), portraits=60, groups=60, unseen_trios=60, **QUICK
    )
    few = {key: 1 / len(values) for key, values in reader.CHOICES.items()}
    assert report["metrics"]["portraits"]["background"] > 2 * few["background"]
    assert set(report["metrics"]["trios"]) == {"mean", *reader.CHOICES}
    loaded = reader.AttributeReader.from_pretrained(tmp_path / "net")
    assert reader.accuracy(loaded, small_world("unseen", 60), 60) == report["metrics"]["portraits"]
    read = loaded.read([portrait(Person.random(3), seed=1).image])[0]
    assert all(read[key] in values for key, values in reader.CHOICES.items())


def test_the_reader_looks_at_the_face_it_is_asked_about(tmp_path):
    scene = group([Person.random(s) for s in (4, 5, 6)], seed=2)
    for k, face in enumerate(scene.faces):
        part = reader.window(scene.pixels, face.box)
        assert part.shape == (128, 128, 3)
        middle = (face.box[0] + face.box[2]) / 2
        start = next(x for x in range(0, 129) if np.array_equal(scene.pixels[:, x : x + 128], part))
        assert abs(start + 64 - middle) <= 4 and k == round(start / 64)
    network = reader.AttributeReader().eval()
    with pytest.raises(ConfigError, match="256x128 is not square: give a face's box"):
        network.read([scene.image])
    boxes = [face.box for face in scene.faces]
    assert len(network.read([scene.image] * 3, boxes)) == 3 and network.read([]) == []


def test_only_what_a_picture_shows_is_asked_for():
    scene = portrait(Person.random(8), seed=3, hat="none", style="photo", glasses="sunglasses")
    values = {**scene.faces[0].attributes, "style": "photo", "hair_style": "bob"}
    assert not reader.shows("hat_color", values) and not reader.shows("eye_color", values)
    assert reader.shows("clothes_color", values) and reader.shows("hair_style", values)
    assert not reader.shows("clothes_color", values | {"style": "noir"})
    assert reader.shows("hat_color", values | {"hat": "cap"})
    assert not reader.shows("hair_color", values | {"hair_style": "bald"})


def test_the_truth_of_a_set_is_the_truth_of_its_scenes(small_world):
    scenes = small_world("trios", 60)
    seeds = scenes.spec.who(7)
    drawn = group([Person.random(s) for s in seeds], seed=7)
    for f, face in enumerate(drawn.faces):
        values = reader.truth(scenes, 7, f)
        assert values["hat"] == face.attributes["hat"] and values["background"] == drawn.background
        assert values["hair_style"] == face.person.hair_style and set(values) == set(reader.CHOICES)


def test_a_reader_of_other_factors_is_refused(tmp_path):
    network = reader.AttributeReader()
    network.save(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("sunglasses", "monocle"))
    with pytest.raises(WeightsError, match="other factors"):
        reader.AttributeReader.from_pretrained(tmp_path)
