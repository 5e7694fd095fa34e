"""What a training shows of itself: a grid of pictures of people nobody trained on, and the judge's opinion of them."""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from uniportrait_lite import checkpoints
from uniportrait_lite.adapter import UniPortrait
from uniportrait_lite.assignment import assign
from uniportrait_lite.evaluation import metrics
from uniportrait_lite.faces import detector_of
from uniportrait_lite.pictures import save_picture
from uniportrait_lite.provenance import gathered, tell
from uniportrait_lite.quiet import no_progress_bars
from uniportrait_lite.toyworld import Scene, captions, splits
from uniportrait_lite.toyworld.pretrain.recognition import crop
from uniportrait_lite.toyworld.worlds import world

PEOPLE = splits.HELD_OUT[1300:1308]
PROMPTS = ({"expression": "smile", "background": "beach"}, {"hat": "beanie", "background": "park"}, {"style": "comic"})
GROUP_PROMPTS = ("two people at the beach", "two friends in the park, all smiling", "two people, comic style")


class Samples:
    """Draws the grid with the weights in the folder `weights`, through the pipeline and the adapter that users have.

    `pipeline` is the folder of the frozen Stable Diffusion pipeline, `faces` that of insightface's detector and judge:
    without them pictures are drawn and nothing is measured. `drawn_by`: the file of another world than the toy world.
    """

    def __init__(self, pipeline: Path, weights: Path, faces: Path, drawn_by: str = ""):
        self.pipeline, self.weights, self.faces = pipeline, weights, faces
        drawn = world(drawn_by)
        self.references = [drawn.reference(drawn.Person.random(seed), seed=seed) for seed in PEOPLE]
        if not self._has_judge:
            print(f"no detector.onnx and judge.onnx in {faces}: the samples get no FaceSim", flush=True)

    def __call__(self, grid: Path) -> dict[str, float]:
        """Writes the grid (a row a person: the reference, then portraits); returns what the judge finds."""
        up = self._loaded()
        rows = []
        for number, scene in enumerate(self.references):
            presentation = scene.faces[0].person.presentation
            prompts = [captions.prompt_for({"presentation": presentation, **prompt}) for prompt in PROMPTS]
            size = {"height": scene.image.height, "width": scene.image.width}
            rows.append(up(prompts, [self._identity(scene)], seed=100 * number, **size).images)
        save_grid([[scene.image, *row] for scene, row in zip(self.references, rows, strict=True)], grid)
        return self.similarities(rows) if self._has_judge else {}

    def similarities(self, rows: list[list[Image.Image]]) -> dict[str, float]:
        """`facesim`: mean cosine of the portraits to their own reference; `facesim_others`: to the others' references;
        `faces_found`: the share of portraits with a face. As in evaluation, those without one count as 0."""
        judge = detector_of(self.faces, embed=True)
        references = judge.embeddings([scene.image for scene in self.references])
        portraits = np.stack([judge.embeddings(row) for row in rows])
        own, others = metrics.similarities(portraits, references)
        found = 1 - np.isnan(portraits[..., 0]).mean()
        return {"faces_found": float(found), "facesim": float(own.mean()), "facesim_others": float(others.mean())}

    def _loaded(self) -> UniPortrait:
        """With the weights as they are now."""
        up = self._uniportrait
        checkpoints.fill(
            checkpoints.weights(up.id_embedding, up.id_attention, up.unet), checkpoints.load(self.weights)[1]
        )
        if up.routes:
            multi = checkpoints.load_multi(self.weights)
            checkpoints.fill(checkpoints.multi_weights(up.id_attention, up.unet), multi)
        return up

    @cached_property
    def _uniportrait(self) -> UniPortrait:
        with no_progress_bars():  # around the import, too: it advises to install torchvision
            from uniportrait_lite.pipelines import load_pipeline

        pipe = load_pipeline(self.pipeline)
        return UniPortrait.attach(pipe.to("cuda" if torch.cuda.is_available() else "cpu"), self.weights)

    @property
    def _has_judge(self) -> bool:
        return all((self.faces / name).is_file() for name in ("detector.onnx", "judge.onnx"))

    def _identity(self, scene: Scene):
        """By the true landmarks: a training's curve should not depend on the detector."""
        return self._uniportrait.identity_of_crops(
            [Image.fromarray(crop(scene.pixels[None], scene.faces[0].landmarks[None], 224)[0])]
        )


class GroupSamples(Samples):
    """The same with two people in each picture."""

    def __call__(self, grid: Path) -> dict[str, float]:
        """Writes the grid (a row a pair: their references, then pictures); returns what the judge finds.

        Without columns: in these any routers, even new ones, would do well.
        `facesim_lowest`: the mean over pictures of the lower of the two matched similarities; `distinct`: the share of
        pictures with both people once, by the judge.
        """
        up, lowest, distinct, rows = self._loaded(), [], [], []
        judge = detector_of(self.faces, embed=True) if self._has_judge else None
        for number in range(0, len(self.references), 2):
            pair = self.references[number : number + 2]
            out = up(list(GROUP_PROMPTS), [self._identity(scene) for scene in pair], seed=100 * number, columns=0)
            rows.append([*(scene.image for scene in pair), *out.images])
            for image in out.images if judge else ():
                faces = judge.detect(image)
                found = assign([f.box for f in faces], [f.embedding for f in faces], judge.embeddings(rows[-1][:2]))
                lowest.append(min(found.matched))
                distinct.append(found.distinct)
        save_grid(rows, grid)
        return {"facesim_lowest": float(np.mean(lowest)), "distinct": float(np.mean(distinct))} if judge else {}


def save_grid(rows: list[list[Image.Image]], path: Path) -> None:
    """Pictures of one height, row by row, as one PNG that is there whole or not at all."""
    height = rows[0][0].height
    sheet = Image.new("RGB", (max(sum(image.width for image in row) for row in rows), height * len(rows)))
    for y, row in enumerate(rows):
        x = 0
        for image in row:
            sheet.paste(image, (x, y * height))
            x += image.width
    tell(sheet, **gathered(image for row in rows for image in row))
    save_picture(sheet, path)
