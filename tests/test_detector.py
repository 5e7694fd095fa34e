"""The detector's recipe: insightface reads what the network means, and the network learns what the world shows."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from uniportrait_lite.toyworld import Person, group, portrait
from uniportrait_lite.toyworld.pretrain import data, detector
from uniportrait_lite.toyworld.pretrain.detector_data import network_input, view

torch.set_num_threads(1)


class Perfect(nn.Module):
    """Says of one face exactly what the training's targets are, at every location of the face's stride."""

    def __init__(self, box: np.ndarray, landmarks: np.ndarray, level: int):
        super().__init__()
        self.box, self.points, self.level = torch.tensor(box), torch.tensor(landmarks), level

    def forward(self, pictures):
        maps = []
        for level, stride in enumerate(detector.STRIDES):
            side = pictures.shape[-1] // stride
            at = detector.centres(side, side, stride)
            distances = torch.cat([at - self.box[:2], self.box[2:] - at], 1) / stride
            offsets = ((self.points - at[:, None]) / stride).flatten(1)
            middle = (self.box[:2] + self.box[2:]) / 2
            near = (at - middle).abs().amax(1) <= (stride if level == self.level else -1)
            score = torch.where(near, 12.0, -12.0)[:, None]
            maps.append([m.repeat(1, 2).T.reshape(1, -1, side, side) for m in (score, distances, offsets)])
        return maps


def insightface_on(folder, size=256):
    from insightface.app import FaceAnalysis

    app = FaceAnalysis(name=str(folder), allowed_modules=["detection"], providers=["CPUExecutionProvider"])
    app.prepare(ctx_id=-1, det_size=(size, size))
    return app


@pytest.mark.parametrize(("height", "level"), [(40, 0), (80, 1), (200, 2)])
def test_what_the_loss_calls_perfect_insightface_reads_as_the_truth(tmp_path, height, level):
    box = np.array([21.0, 30.0, 21.0 + 0.8 * height, 30.0 + height], np.float32)
    landmarks = box[:2] + np.array([[0.3, 0.4], [0.7, 0.42], [0.5, 0.6], [0.33, 0.8], [0.66, 0.78]]) * height
    landmarks = landmarks.astype(np.float32)
    perfect = Perfect(box, landmarks, level)
    batch = {
        "pictures": torch.zeros(1, 3, 256, 256), "boxes": torch.tensor(box)[None, None],
        "landmarks": torch.tensor(landmarks)[None, None], "shown": torch.tensor([[1]]),
    }  # fmt: skip
    loss = detector.detector_loss(perfect, batch)
    assert loss["box"] < 1e-3 and loss["landmarks"] < 1e-3 and loss["score"] < 1e-3
    detector.export(perfect, tmp_path / "detector.onnx")
    (face,) = insightface_on(tmp_path).get(np.zeros((256, 256, 3), np.uint8))
    assert np.allclose(face.bbox, box, atol=1e-2) and np.allclose(face.kps, landmarks, atol=1e-2)


def test_the_file_computes_what_the_network_does_at_any_size(tmp_path):
    import onnxruntime

    torch.manual_seed(0)
    network = detector.Detector(8).eval()
    detector.export(network, tmp_path / "detector.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "detector.onnx"), providers=["CPUExecutionProvider"])
    for height, width in ((64, 64), (96, 160)):
        x = torch.randn(1, 3, height, width)
        found = session.run(None, {"picture": x.numpy()})
        cells = [2 * height * width // s**2 for s in (8, 16, 32)]
        assert [f.shape for f in found] == [(n, k) for k in (1, 4, 10) for n in cells]
        with torch.no_grad():
            meant = detector.InsightfaceOutputs(network)(x)
        assert all(np.allclose(f, m, atol=1e-4) for f, m in zip(found, meant, strict=True))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_face_belongs_to_the_stride_of_its_size_and_a_cut_one_to_none():
    boxes = torch.tensor([[[40.0, 40, 70, 80], [150, 20, 190, 60]]])
    points = detector.centres(32, 32, 8)
    index, positive, ignored = detector.assign(boxes, torch.tensor([[1, 0]]), points, level=0)
    middle = torch.tensor([55.0, 60.0])
    assert torch.equal(positive[0], (points - middle).abs().amax(1) <= 8)
    assert (index[0][positive[0]] == 0).all()
    near_cut = (points - torch.tensor([170.0, 40.0])).abs().amax(1) <= 16
    assert ignored[0][near_cut].all() and not (ignored & positive).any()
    assert not detector.assign(boxes, torch.tensor([[1, 0]]), points, level=2)[1].any()
    assert not detector.assign(boxes, torch.tensor([[-1, -1]]), points, level=0)[2].any()


def test_left_stays_left_in_mirrored_views():
    boxes = np.array([[30.0, 30, 90, 100]], np.float32)
    landmarks = np.array([[[45, 50], [75, 54], [60, 70], [48, 86], [72, 84]]], np.float32)
    slopes = set()
    for seed in range(40):
        _, new_boxes, points, shown = view(
            np.zeros((128, 128, 3), np.uint8), boxes, landmarks, 160, np.random.default_rng(seed)
        )
        if shown[0] == -1:
            continue
        assert (points[0] >= new_boxes[0, :2]).all() and (points[0] <= new_boxes[0, 2:]).all()
        assert points[0, 0, 0] < points[0, 1, 0] and points[0, 3, 0] < points[0, 4, 0]
        slopes.add(bool(points[0, 1, 1] > points[0, 0, 1]))
    assert slopes == {True, False}, "some views are mirrored, some are not"


def test_views_show_the_face_where_its_box_is():
    picture = np.zeros((128, 128, 3), np.uint8)
    picture[40:90, 40:80, 1] = 255
    boxes = np.array([[40.0, 40, 79, 89]], np.float32)
    landmarks = boxes[:, None, :2] + np.array([[8, 15], [30, 15], [20, 25], [10, 40], [30, 40]], np.float32)
    overlaps = []
    for seed in range(60):
        pixels, new_boxes, _, shown = view(picture, boxes, landmarks, 128, np.random.default_rng(seed))
        green = pixels[..., 1].astype(int) - pixels[..., 0]
        if shown[0] != 1 or (new_boxes[0] < 0).any() or (new_boxes[0] > 127).any() or green.max() < 60:
            continue  # greyscale, or a border as green as the face
        rows, columns = np.nonzero(green > green.max() / 2)
        seen = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
        overlaps.append(detector.iou(new_boxes[0], seen))
    assert len(overlaps) > 10 and np.median(overlaps) > 0.85


def test_the_network_learns_a_handful_of_faces():
    scenes = [portrait(Person.random(k), seed=k) for k in range(2)] + [group([Person.random(8), Person.random(9)], 1)]
    rng = np.random.default_rng(0)
    views = []
    for scene in scenes:
        boxes = np.array([f.box for f in scene.faces], np.float32)
        landmarks = np.stack([f.landmarks for f in scene.faces])
        views += [view(np.asarray(scene.image), boxes, landmarks, 96, rng) for _ in range(2)]
    pictures, boxes, landmarks, shown = (np.stack(parts) for parts in zip(*views, strict=True))
    batch = {
        "pictures": network_input(pictures), "boxes": torch.from_numpy(boxes),
        "landmarks": torch.from_numpy(landmarks), "shown": torch.from_numpy(shown),
    }  # fmt: skip
    torch.manual_seed(0)
    network = detector.Detector(8)
    optimiser = torch.optim.AdamW(network.parameters(), lr=6e-3)
    losses = []
    for _ in range(40):
        values = detector.detector_loss(network, batch)
        optimiser.zero_grad()
        values["loss"].backward()
        optimiser.step()
        losses.append({name: value.item() for name, value in values.items()})
    for name in ("score", "box", "landmarks"):
        assert losses[-1][name] < 0.7 * losses[0][name], name


def test_the_recipe_leaves_a_detector_and_its_record(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 12)
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
    settings = {"scenes": 12, "batch": 0.2, "width": 8, "evaluated": 1, "precision": "fp32"}
    report = detector.run(out=str(tmp_path / "run"), folder=str(tmp_path / "face"), steps=20, **settings)
    assert report["steps"] == 20 and json.loads((tmp_path / "face" / "detector.recipe.json").read_text()) == report
    for name in ("found_1", "found_2", "found_3", "false_positives", "landmark_error"):
        assert report["metrics"][name] >= 0
    assert insightface_on(tmp_path / "face").det_model.use_kps
