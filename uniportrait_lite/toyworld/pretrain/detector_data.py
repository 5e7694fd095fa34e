"""Views of toy scenes for the detector: faces of all sizes, cut, blurred, recoloured; and pictures without a face."""

import cv2
import numpy as np
import torch

from uniportrait_lite.toyworld.pretrain.data import load_scenes

CANVASES = (96, 128, 160, 192, 224, 256)
SETS = ("portraits", "pairs", "trios")
MOST_FACES = 3
NO_FACE = 0.08  # the share of pictures without any face
LEFT_RIGHT = [1, 0, 2, 4, 3]  # a mirrored left eye is a right eye


class ViewSampler:
    """Batches of views of `count` scenes of each kind; all that is random comes from the generator given."""

    def __init__(self, count: int, world: str = ""):
        self.sets = [load_scenes(name, count, world) for name in SETS]

    def batch(self, generator: torch.Generator, budget: float) -> dict[str, torch.Tensor]:
        """One canvas size for all, as many views as cost `budget` pictures of 256 x 256.

        pictures float (B, 3, S, S), boxes (B, 3, 4) and landmarks (B, 3, 5, 2) in pixels, shown (B, 3): 1 a face to
        find, 0 one that is mostly cut off, -1 no entry.
        """
        rng = np.random.default_rng(torch.randint(2**62, (), generator=generator).item())
        side = int(rng.choice(CANVASES))
        views = [self.view(rng, side) for _ in range(max(1, round(budget * (256 / side) ** 2)))]
        pictures, boxes, landmarks, shown = (np.stack(parts) for parts in zip(*views, strict=True))
        return {
            "pictures": network_input(pictures), "boxes": torch.from_numpy(boxes),
            "landmarks": torch.from_numpy(landmarks), "shown": torch.from_numpy(shown),
        }  # fmt: skip

    def view(self, rng: np.random.Generator, side: int):
        """A view of one of the scenes, or a picture without a face; as the function `view`."""
        scenes = self.sets[rng.integers(len(self.sets))]
        index = int(rng.integers(len(scenes)))
        return view(scenes.images([index])[0], scenes.boxes[index], scenes.landmarks[index], side, rng)


def view(picture: np.ndarray, boxes: np.ndarray, landmarks: np.ndarray, side: int, rng: np.random.Generator):
    """One view of a scene (H, W, 3) with boxes (n, 4) and landmarks (n, 5, 2), or what is left without its faces.

    Returns uint8 (S, S, 3), boxes (3, 4), landmarks (3, 5, 2) and shown (3,), padded to three faces.
    """
    view_boxes = np.zeros((MOST_FACES, 4), np.float32)
    view_landmarks = np.zeros((MOST_FACES, 5, 2), np.float32)
    shown = np.full(MOST_FACES, -1)
    if rng.random() < NO_FACE:
        picture = degrade(faceless(picture, boxes, side, rng), rng)
        if rng.random() < 0.3:  # an empty border, as around a picture of another shape
            inner = int(side * rng.uniform(0.3, 0.9))
            x, y = rng.integers(side - inner, size=2)
            whole, picture = picture, np.zeros_like(picture)
            picture[y : y + inner, x : x + inner] = cv2.resize(whole, (inner, inner))
        return picture, view_boxes, view_landmarks, shown
    matrix = placement(boxes, side, rng)
    border, colour = [
        (cv2.BORDER_CONSTANT, (0, 0, 0)),
        (cv2.BORDER_CONSTANT, tuple(map(int, rng.integers(0, 256, 3)))),
        (cv2.BORDER_REPLICATE, (0, 0, 0)),
    ][rng.integers(3)]
    picture = cv2.warpAffine(picture, matrix, (side, side), borderMode=border, borderValue=colour)
    count = len(boxes)
    corners = boxes.reshape(count, 2, 2) @ matrix[:, :2].T + matrix[:, 2]
    points = landmarks @ matrix[:, :2].T + matrix[:, 2]
    if matrix[0, 0] < 0:
        points = points[:, LEFT_RIGHT]
    low, high = corners.min(1), corners.max(1)
    view_boxes[:count], view_landmarks[:count] = np.concatenate([low, high], 1), points
    inside = (np.clip(high, 0, side) - np.clip(low, 0, side)).prod(1) / (high - low).prod(1)
    shown[:count] = np.where(inside > 0.75, 1, np.where(inside > 0.1, 0, -1))
    return degrade(picture, rng), view_boxes, view_landmarks, shown


def placement(boxes: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """The affine map (2, 3) that shows one of the faces at a random size and place of the canvas, perhaps mirrored."""
    x0, y0, x1, y1 = boxes[rng.integers(len(boxes))]
    height = np.exp(rng.uniform(np.log(max(18.0, 0.12 * side)), np.log(0.98 * side)))
    scale = height / (y1 - y0)
    mirrored = -1.0 if rng.random() < 0.5 else 1.0
    room = np.maximum(side - np.array([(x1 - x0) * scale, height]), 0) / 2
    over = 0.15 * height if rng.random() < 0.3 else 0.0  # some faces are cut by the edge
    middle = side / 2 + rng.uniform(-1, 1, 2) * (room + over)
    matrix = np.array([[mirrored * scale, 0, 0], [0, scale, 0]])
    matrix[:, 2] = middle - matrix[:, :2] @ np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    return matrix.astype(np.float32)


def faceless(picture: np.ndarray, boxes: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """A picture (S, S, 3) without a face: plain, noise, gradient, or a scene whose faces are painted over."""
    kind = rng.integers(4)
    colours = rng.integers(0, 256, (2, 3))
    if kind == 0:
        return np.broadcast_to(colours[0].astype(np.uint8), (side, side, 3)).copy()
    if kind == 1:
        coarse = rng.integers(0, 256, (int(rng.integers(2, side)),) * 2 + (3,), dtype=np.uint8)
        return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_LINEAR)
    if kind == 2:
        ramp = np.linspace(0, 1, side)[:, None, None]
        row = (colours[0] * ramp + colours[1] * (1 - ramp)).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(row, (side, side, 3)))
    picture = picture.copy()
    for (x0, y0, x1, y1), colour in zip(boxes, rng.integers(0, 256, (len(boxes), 3)), strict=True):
        inside = picture[int(y1) - 4 : int(y1), int((x0 + x1) / 2)].mean(0) if rng.random() < 0.7 else colour
        middle, axes = (int((x0 + x1) / 2), int((y0 + y1) / 2)), (int(0.6 * (x1 - x0)), int(0.62 * (y1 - y0)))
        cv2.ellipse(picture, middle, axes, 0, 0, 360, tuple(map(float, inside)), -1)
    x, y = int(rng.integers(picture.shape[1] - 63)), int(rng.integers(picture.shape[0] - 63))
    return cv2.resize(picture[y:, x : x + 128], (side, side))


def degrade(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What small generators, cameras and users do to pictures: blur, light, colour casts, greyscale, noise."""
    side = len(picture)
    if rng.random() < 0.4:
        small = max(16, int(side / rng.uniform(1.0, 3.0)))
        picture = cv2.resize(cv2.resize(picture, (small, small), interpolation=cv2.INTER_AREA), (side, side))
    values = picture.astype(np.float32)
    if rng.random() < 0.1:
        values[:] = values.mean(-1, keepdims=True)
    if rng.random() < 0.5:
        gain = rng.uniform(0.6, 1.3) * rng.uniform(0.85, 1.15, 3)
        values = (values - 128) * gain.astype(np.float32) + 128 + rng.uniform(-30, 30)
    if rng.random() < 0.2:
        values += rng.standard_normal(values.shape, dtype=np.float32) * rng.uniform(2, 15)
    return np.clip(values, 0, 255).astype(np.uint8)


def network_input(pictures: np.ndarray) -> torch.Tensor:
    """uint8 RGB (B, H, W, 3) -> float (B, 3, H, W), scaled as insightface's SCRFD does."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().sub_(127.5).div_(128.0).contiguous()
