"""A loss on the faces of pictures that the model draws itself, from noise, as it will be used."""

from dataclasses import fields, replace

import torch
from diffusers import DDPMScheduler
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from uniportrait_lite.attention import IDConditions
from uniportrait_lite.id_embedding import StructureDrop
from uniportrait_lite.id_routing import Routing
from uniportrait_lite.toyworld.pretrain.seen import FaceDifference, predicted_clean
from uniportrait_lite.training.data import Batch

STEPS = 8  # of DDIM, from noise to a picture
GUIDANCE = 4.0  # the tiny profile's own


class OwnPictures(nn.Module):
    """How far faces in the model's own pictures are from the people asked for: 1 - cosine, by a frozen recogniser.

    The diffusion loss shows the model noised pictures of the person it is to draw: much of the face can be copied from
    them. In use it begins with noise, and what it once got wrong it has to live with. So here it draws `most` faces of
    a batch from noise, with guidance, by DDIM without a gradient up to some step in the last two thirds, drawn anew for
    each batch; the clean picture that it predicts there is decoded around where faces are in the true picture of
    that caption and seen beside it. PuLID (Guo et al. 2024, arXiv 2404.16022, section 3.2) trains so, with four steps;
    UniPortrait does not. Of several people each face counts with the person whom it is matched to, one to one.
    """

    def __init__(self, faces: FaceDifference, scheduler: DDPMScheduler, no_text: Tensor, no_structure: Tensor,
                 most: int = 8):  # fmt: skip
        super().__init__()
        self.faces, self.scheduler, self.most = faces, scheduler, most
        self.register_buffer("no_text", no_text, persistent=False)
        self.register_buffer("no_structure", no_structure, persistent=False)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a batch by a stage's network; 0 where nobody is to be drawn."""
        somebody = batch.active & batch.intrinsic.flatten(2).any(dim=2).all(dim=1)
        people = batch.intrinsic.shape[1]
        rows = somebody.nonzero()[: max(1, self.most // people), 0]
        if not len(rows):
            return batch.latents.sum() * 0
        batch = _rows(batch, rows)
        clean = self._drawn(model, batch)
        boxes = batch.boxes.flatten(0, 1)
        found, real = (
            self.faces.difference.who(self.faces.faces(x.repeat_interleave(people, 0), boxes)).unflatten(
                0, (-1, people)
            )
            for x in (clean, batch.latents)
        )
        cosines = found @ real.detach().transpose(1, 2)
        matched = [picture[linear_sum_assignment(picture.detach().float().cpu(), maximize=True)] for picture in cosines]
        return 1 - torch.stack(matched).mean()

    def _drawn(self, model: nn.Module, batch: Batch) -> Tensor:
        """The clean latents that the model predicts in the last of some steps from noise; only that has a gradient."""
        alphas = self.scheduler.alphas_cumprod.to(batch.latents.device)
        steps = [round((STEPS - k) * len(alphas) / STEPS) - 1 for k in range(STEPS)]
        stop = int(torch.randint(STEPS // 3, STEPS, ()))
        kind = self.scheduler.config.prediction_type
        faces = batch.structure.shape[0] * batch.structure.shape[1]
        whole = StructureDrop(
            torch.ones(faces, dtype=torch.bool), torch.ones(faces, batch.structure.shape[2], dtype=torch.bool)
        )
        tokens = model.tokens(batch, whole)
        with torch.no_grad():
            text, no_text = (model.text_encoder(x).last_hidden_state for x in (batch.text, self.no_text))
            unknown = {
                "intrinsic": torch.zeros_like(batch.intrinsic),
                "structure": self.no_structure.expand_as(batch.structure),
            }
            nobody = model.tokens(replace(batch, **unknown), whole)
        no_text = no_text.expand_as(text)
        size, latents = batch.latents.shape[-2:], torch.randn_like(batch.latents)
        several = batch.intrinsic.shape[1] > 1

        def clean(k: int, routing: Routing | None) -> Tensor:
            t = torch.full((len(latents),), steps[k], device=latents.device)
            given = {"identities": IDConditions(tokens, routing=routing)}
            told = model.unet(latents, t, text, cross_attention_kwargs=given).sample.float()
            with torch.no_grad():
                given = {"identities": IDConditions(nobody, routing=routing)}
                untold = model.unet(latents, t, no_text, cross_attention_kwargs=given).sample.float()
            return predicted_clean(latents, untold + GUIDANCE * (told - untold), alphas[t], kind)

        with torch.no_grad():
            for k in range(stop):
                found = clean(k, Routing(size) if several else None)
                now, then = alphas[steps[k]], alphas[steps[k + 1]]
                noise = (latents - now.sqrt() * found) / (1 - now).sqrt()
                latents = then.sqrt() * found + (1 - then).sqrt() * noise
        return clean(stop, Routing(size, None, batch.temperature, model.soft) if several else None)


def _rows(batch: Batch, rows: Tensor) -> Batch:
    """The samples `rows` of a batch, without what is said of one person alone."""
    parts = {f.name: getattr(batch, f.name) for f in fields(batch)}
    kept = {name: x[rows] for name, x in parts.items() if x is not None and x.ndim}
    return replace(batch, **{**kept, "sentences": None, "said": None})
