"""Who looks at the pictures: insightface with the tiny detector and judge, the attribute reader, the tiny CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from uniportrait_lite.errors import WeightsError
from uniportrait_lite.faces import DetectedFace, FaceDetector, detector_of, largest
from uniportrait_lite.quiet import no_progress_bars
from uniportrait_lite.toyworld.pretrain.clip import clip_pixels, tokenise
from uniportrait_lite.toyworld.pretrain.reader import AttributeReader
from uniportrait_lite.toyworld.pretrain.recognition import crop
from uniportrait_lite.toyworld.worlds import World, world, world_file

BATCH = 50


@dataclass
class Seen:
    """What the witnesses say of N pictures.

    embeddings (N,D): the judge's, of the largest face, of length 1, NaN where none was found; read: the value of each
    factor; clip (N,): the cosine of CLIP's embeddings of picture and prompt.
    """

    embeddings: np.ndarray
    read: list[dict[str, str]]
    clip: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Whether a face was found (N,)."""
        return ~np.isnan(self.embeddings[:, 0])


class Witnesses:
    """The networks of a profile's folder that judge pictures, loaded when first asked; WeightsError for missing ones.

    None of them takes part in making portraits but CLIP: the base model's text encoder began as its text tower.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @property
    def world(self) -> World:
        """Whose pictures they know."""
        return world(world_file(self.folder))

    @cached_property
    def faces(self) -> FaceDetector:
        """Detector and judge."""
        return detector_of(self.folder / "face", embed=True)

    @cached_property
    def reader(self) -> AttributeReader:
        """What tells the attributes of a portrait."""
        return AttributeReader.from_pretrained(self.folder / "reader")

    @cached_property
    def _clip(self) -> tuple:
        from transformers import AutoTokenizer, CLIPModel

        folder = self.folder / "clip"
        try:
            with no_progress_bars():
                model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
                return model, AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise WeightsError(f"{folder} holds no CLIP with its tokenizer ({error}): fetch or train it") from error

    def face(self, image: Image.Image) -> DetectedFace | None:
        """The largest face of a picture, with the judge's embedding; None where none is found."""
        return largest(self.faces.detect(image))

    def embeddings(self, images: Sequence[Image.Image]) -> np.ndarray:
        """The judge's view (N,D) of the largest face of each picture, NaN where none is found."""
        return self.faces.embeddings(images)

    def embed_crops(self, crops: np.ndarray) -> np.ndarray:
        """The judge's embeddings (N,D), of length 1, of aligned RGB faces uint8 (N,112,112,3), through insightface."""
        judge = self.faces.app.models["recognition"]
        parts = [judge.get_feat(list(crops[i : i + BATCH, ..., ::-1])) for i in range(0, len(crops), BATCH)]
        embeddings = np.concatenate(parts)
        return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)

    def embed_at(self, images: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """The judge's embeddings (N,D) of pictures uint8 (N,H,W,3) by given landmarks (N,5,2): without the detector."""
        return self.embed_crops(crop(images, landmarks))

    @torch.no_grad()
    def clip_t(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """CLIP-T (N,): the cosine of the tiny CLIP's embeddings of each picture and its prompt."""
        model, tokenizer = self._clip
        found = []
        for i in range(0, len(images), BATCH):
            pixels = clip_pixels([np.array(image.convert("RGB")) for image in images[i : i + BATCH]])
            out = model(input_ids=tokenise(tokenizer, list(prompts[i : i + BATCH])), pixel_values=pixels)
            found.append(F.cosine_similarity(out.image_embeds, out.text_embeds, dim=-1).numpy())
        return np.concatenate(found)

    @torch.no_grad()
    def clip_image(self, images: Sequence[Image.Image]) -> np.ndarray:
        """What the image tower of the tiny CLIP makes of pictures, (N,D), before the projection."""
        pixels = clip_pixels([np.array(image.convert("RGB")) for image in images])
        return np.concatenate([self._clip[0].vision_model(part).pooler_output.numpy() for part in pixels.split(BATCH)])

    def look(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Seen:
        """All that is to be seen on square pictures of one person each, made from prompts."""
        return Seen(self.embeddings(images), self.reader.read(images), self.clip_t(images, prompts))
