"""Noised latents of scenes of one to three people, with captions: what text-to-image networks are trained on."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uniportrait_lite.errors import ConfigError
from uniportrait_lite.toyworld.pretrain.clip import tokenise
from uniportrait_lite.toyworld.pretrain.data import load_scenes
from uniportrait_lite.toyworld.pretrain.latents import load_latents

CAPTIONS = 8  # different ones of each scene
DETAILS = {"full": 0.55, "scene": 0.4, "short": 0.05}  # the more one says of a face, the more it teaches to draw faces


class NoisyScenes:
    """Batches of a recipe, `config`: its numbers of scenes, their shares, captions, timesteps and weights in the loss.

    `folder` is that of the pipeline whose autoencoder and tokenizer are used.
    """

    def __init__(self, config, folder: Path, tokenizer):
        self.config, self.tokenizer = config, tokenizer
        groups = {"pairs": config.groups, "trios": config.groups} if config.group_share else {}
        counts = {"portraits": config.portraits, **groups}
        self.sets = [load_scenes(name, count, config.world) for name, count in counts.items()]
        self.latents = [load_latents(s, folder / "vae") for s in self.sets]
        for scenes in self.sets:  # read now, once, and not by each of the workers that make batches
            scenes.person, scenes.face, scenes.scene, scenes.boxes, scenes.landmarks  # noqa: B018
        self.silence = tokenise(tokenizer, [""])[0]
        self.ids = torch.int16 if len(tokenizer) < 2**15 else torch.int32  # 0.8 or 1.5 KB a scene
        self.texts = [  # shared, so that what one worker has worded serves all; below 0: not worded yet
            torch.full((len(scenes), CAPTIONS, len(self.silence)), -1, dtype=self.ids).share_memory_()
            for scenes in self.sets
        ]

    def draw(self, generator: torch.Generator) -> tuple[int, np.ndarray]:
        """Which set a batch is of, and which of its scenes (B,): fewer of wider ones, for steps that cost the same."""
        share, draw = self.config.group_share, float(torch.rand(1, generator=generator))
        kind = 2 if draw < share else 1 if draw < 2 * share else 0
        count = max(1, self.config.batch * 16 // self.latents[kind].shape[-1])
        return kind, torch.randint(len(self.latents[kind]), (count,), generator=generator).numpy()

    def __call__(self, kind: int, indices: np.ndarray, generator: torch.Generator) -> list[Tensor]:
        """Clean latents and noise (B,c,h,w), timesteps (B,), token ids (B,48), face and feature cells (B,h,w)."""
        scenes, count = self.sets[kind], len(indices)
        clean = torch.from_numpy(self.latents[kind][indices]).float()
        text = self._text(kind, torch.from_numpy(indices), torch.randint(CAPTIONS, (count,), generator=generator))
        text[torch.rand(count, generator=generator) < self.config.no_caption] = self.silence
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = draw_timesteps(count, generator, self.config.timesteps)
        faces = torch.from_numpy(face_cells(scenes.boxes[indices], clean.shape[-1]))
        features = torch.from_numpy(face_cells(feature_boxes(scenes.landmarks[indices]), clean.shape[-1]))
        return [clean, noise, timesteps, text, faces, features]

    def _text(self, kind: int, indices: Tensor, which: Tensor) -> Tensor:
        """Token ids (B,48) of these captions of the scenes; worded once, by whichever worker is first."""
        texts, scenes = self.texts[kind], self.sets[kind]
        new = (texts[indices, which] < 0).any(dim=1)
        if new.any():
            indices_new, which_new = indices[new], which[new]
            captions = [_caption(scenes, *pair) for pair in zip(indices_new.tolist(), which_new.tolist(), strict=True)]
            texts[indices_new, which_new] = tokenise(self.tokenizer, captions).to(self.ids)
        return texts[indices, which].long()

    def loss(self, schedule, predicted: Tensor, batch: list[Tensor]) -> dict[str, Tensor]:
        """The weighted error of v-prediction, and its means inside the faces and around their features."""
        clean, noise, timesteps, _, faces, features = batch
        error = (predicted - schedule.get_velocity(clean, noise, timesteps)).square().mean(1)
        weight = 1 + (self.config.face_weight - 1) * faces
        weight = torch.where(features > 0, self.config.feature_weight, weight)
        means = {"loss": weight, "face": faces, "features": features}
        return {name: (error * where).sum() / where.sum() for name, where in means.items()}


def _caption(scenes, index: int, which: int) -> str:
    rng = np.random.Generator(np.random.PCG64([index, which, 11]))
    detail = rng.choice(list(DETAILS), p=list(DETAILS.values()))
    return scenes.caption(index, int(rng.integers(2**31)), str(detail))


def draw_timesteps(count: int, generator: torch.Generator, kind: str = "fine", steps: int = 1000) -> Tensor:
    """Timesteps (count,) of some kind.

    fine: a third of them in the last fifth of denoising, where the small things of a face are decided, the colour of
    its eyes and what its mouth does; coarse: half of them in the first eighth, where there is only noise and little but
    the ID tokens can say who is to be drawn; uniform: as is usual; middle: most in the middle, an eighth anywhere.
    """
    if kind in ("fine", "coarse", "uniform"):
        u = torch.rand(count, generator=generator)
        share = {"fine": u**1.5, "coarse": 1 - u**3, "uniform": u}[kind]
        return (share * steps).long().clamp(0, steps - 1)
    if kind != "middle":
        raise ConfigError(f"timesteps are fine, coarse, uniform or middle, not {kind!r}")
    middle = torch.sigmoid(torch.randn(count, generator=generator) - 0.2)
    anywhere = torch.rand(count, generator=generator)
    chosen = torch.where(torch.rand(count, generator=generator) < 0.125, anywhere, middle)
    return (chosen * steps).long().clamp(0, steps - 1)


def face_cells(boxes: np.ndarray, width: int, height: int = 16) -> np.ndarray:
    """1 where the centre of a latent is inside a face: boxes (B,n,4) in pixels -> float32 (B,height,width)."""
    x, y = (np.arange(width) + 0.5) * 8, (np.arange(height) + 0.5) * 8
    across = (x >= boxes[..., 0, None]) & (x <= boxes[..., 2, None])
    down = (y >= boxes[..., 1, None]) & (y <= boxes[..., 3, None])
    return (down[..., :, None] & across[..., None, :]).any(1).astype(np.float32)


def feature_boxes(landmarks: np.ndarray) -> np.ndarray:
    """Boxes around brows, eyes, nose and mouth: landmarks (B,n,5,2) in pixels -> (B,n,4)."""
    eyes, mouth = landmarks[..., :2, :], landmarks[..., 3:, :]
    apart = np.linalg.norm(eyes[..., 1, :] - eyes[..., 0, :], axis=-1)
    left, right = landmarks[..., 0].min(-1) - 0.4 * apart, landmarks[..., 0].max(-1) + 0.4 * apart
    top, bottom = eyes[..., 1].min(-1) - 0.7 * apart, mouth[..., 1].max(-1) + 0.5 * apart
    return np.stack([left, top, right, bottom], axis=-1)
