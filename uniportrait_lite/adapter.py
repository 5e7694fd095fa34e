"""`UniPortrait`: gives identities to any diffusers pipeline of the SD 1.5 family."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from torch.nn import Module

from uniportrait_lite import checkpoints, official, published
from uniportrait_lite.assignment import Assignment, assign
from uniportrait_lite.attention import IDAttention, IDConditions, add_routers, attach_id_attention, routers
from uniportrait_lite.backbone import IRResNet
from uniportrait_lite.checkpoints import UniPortraitConfig
from uniportrait_lite.checks import number, whole
from uniportrait_lite.distinct import ANOTHER, settle
from uniportrait_lite.errors import ConfigError
from uniportrait_lite.features import FaceFeatures, IDFeatures, load_clip_vision
from uniportrait_lite.id_embedding import IDEmbedding
from uniportrait_lite.id_routing import RoutingMaps
from uniportrait_lite.image_prompt import ImageAdapter, ImagePrompt, clip_view
from uniportrait_lite.injection import Injection, below_compile
from uniportrait_lite.lora import SEVERAL, SINGLE, add_lora, remove_lora
from uniportrait_lite.parts import package_name
from uniportrait_lite.pictures import read_picture
from uniportrait_lite.provenance import origin, tell
from uniportrait_lite.published import ENDINGS


class _Once(functools.cached_property):
    """A cached property that one thread computes while others wait: from Python 3.12 on the library's has no lock."""

    def __get__(self, instance: UniPortrait | None, owner: type | None = None) -> Any:
        if instance is None:
            return self
        with instance._loading:
            return super().__get__(instance, owner)


@dataclass(frozen=True, eq=False)
class Identity:
    """Who should be in the picture: features of their references, and the aligned `crops` (PIL, 224) they come from.

    Made by `UniPortrait.identity`. `parts` are features with their share: one for a person, several for a mixture;
    `shares` are those of the crops. `sentence` is said of this person alone, see `saying`.
    """

    parts: tuple[tuple[float, IDFeatures], ...]
    crops: tuple[Image.Image, ...] = field(repr=False)
    shares: tuple[float, ...] = field(repr=False)
    sentence: str | None = None

    @property
    def looks(self) -> tuple[tuple[float, bytes], ...]:
        """What tells who this is from others: the crops that count and their shares, in any order, whatever is said."""
        crops = zip(self.shares, (np.asarray(crop).tobytes() for crop in self.crops), strict=True)
        return tuple(sorted(one for one in crops if one[0]))

    def saying(self, sentence: str) -> Identity:
        """The same person with words that are meant for nobody else: `[ann.saying("wearing a red hat"), bob]`.

        They are read, beside the prompt, only where the picture shows this person: where the routers or the masks have
        them. One person alone, without a mask, is everywhere, and the prompt is the better place for such words. Not in
        the paper, whose prompt is everybody's: an addition of ours, which the multi-ID stage here trains along. The
        published weights were not trained with such words, and what they do with them is not known.
        """
        if not isinstance(sentence, str) or not sentence.strip():
            raise ConfigError(f"a sentence about a person is a text with words in it, not {sentence!r}")
        return replace(self, sentence=sentence)

    def mix(self, other: Identity, amount: float) -> Identity:
        """Somewhere between two people, linear on their ID tokens: `amount` 0 is this one, 1 is the other.

        What is said of this one (see `saying`), else of the other, is said of the mixture.
        """
        if not isinstance(other, Identity):
            raise ConfigError(f"an identity mixes with another identity, not with {type(other).__name__}")
        amount = number("amount", amount, 0, 1)
        both = ((1 - amount, self), (amount, other))
        parts = tuple((share * part, features) for share, one in both for part, features in one.parts)
        shares = tuple(share * part for share, one in both for part in one.shares)
        return Identity(parts, self.crops + other.crops, shares, self.sentence or other.sentence)


class UniPortrait:
    """A pipeline that knows people: see `attach`, `identity`, `__call__`, `using` and `detach`.

    Outside `using` and `__call__` the pipeline does what it did before. Identities are set by thread (and by task of
    asyncio), not in the U-Net: threads may share it, and their calls of it take turns. What else a pipeline holds, its
    scheduler and tokenizer, has a state, so each thread needs a pipeline around the U-Net with its own of these.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        config: UniPortraitConfig,
        id_embedding: IDEmbedding,
        id_attention: IDAttention,
        encoders: dict[str, Path | str],
        image_adapter: ImageAdapter | None = None,
        weights: str | None = None,
    ):
        self.pipe, self.config, self.weights = pipe, config, weights  # weights: their origin, in words
        self.unet: UNet2DConditionModel = _unet(pipe)
        self.id_embedding, self.id_attention = id_embedding, id_attention
        self._image_adapter = image_adapter
        self.routes = bool(routers(id_attention))  # whether several identities can be told apart without masks
        loras = (SINGLE, SEVERAL) if self.routes else (SINGLE,)
        scheduler = getattr(pipe, "scheduler", None)  # none where the loop is the user's own
        timesteps = {} if scheduler is None else {"timesteps": scheduler.config.num_train_timesteps}
        self.injection = Injection(self.unet, id_attention, loras, pipe.vae_scale_factor, **timesteps)
        self._encoders = encoders
        self._loading = threading.RLock()
        self._known: tuple | None = None  # see _place

    @classmethod
    def attach(
        cls,
        pipe: DiffusionPipeline,
        weights: str | Path,
        *,
        backbone: str | Path | None = None,
        clip: str | Path | None = None,
        faces: str | Path | None = None,
        ip_adapter: str | Path | None = None,
    ) -> UniPortrait:
        """Adds UniPortrait to a pipeline: text to image, image to image, inpainting, ControlNet, any with such a U-Net.

        `weights` is a folder of ours, or the published files (see official.py): a folder that holds them, or the
        faceid file. The encoders are where its config says, or where given here; `faces` may also be the name of an
        insightface package, as "buffalo_l". `ip_adapter`, IP-Adapter's file or a
        folder that holds it, makes `image_adapter`. On an error (`ConfigError`: not such a pipeline, attached before;
        `WeightsError`) the pipeline is left as it was.
        """
        unet = _unet(pipe)
        if published.holds(weights):
            (config, tensors, multi_tensors), names = official.load(weights), official.names(unet)
        else:
            config, tensors, multi_tensors, names = *checkpoints.load(weights), checkpoints.load_multi(weights), str
        width = unet.config.cross_attention_dim
        if width != config.id_embedding.out_dim:
            raise ConfigError(
                f"these weights make ID tokens of width {config.id_embedding.out_dim} and this U-Net reads {width}: "
                "take weights that were trained for this base model"
            )
        given = {"backbone": backbone, "clip": clip, "faces": faces}
        encoders = {
            name: _encoder_place(name, given[name] or place, published.folder_of(weights), given[name] is None)
            for name, place in config.encoders.items()
        }
        image_adapter = None if ip_adapter is None else official.load_ip_adapter(ip_adapter, unet)
        id_embedding = IDEmbedding(config.id_embedding)
        with contextlib.ExitStack() as undo:
            id_attention = attach_id_attention(unet)
            undo.callback(id_attention.detach, unet)
            add_lora(unet, config.lora_rank, SINGLE)
            undo.callback(remove_lora, unet, SINGLE)
            targets = checkpoints.weights(id_embedding, id_attention, unet)
            checkpoints.fill(targets, tensors, f"the weights in {weights}", names)
            trained = [*targets.values()]
            if multi_tensors is not None:
                add_lora(unet, config.lora_rank, SEVERAL)
                undo.callback(remove_lora, unet, SEVERAL)
                add_routers(id_attention, config.id_embedding.queries)
                targets = checkpoints.multi_weights(id_attention, unet)
                checkpoints.fill(targets, multi_tensors, f"the multi-ID weights in {weights}", names)
                trained += targets.values()
            for weight in trained:
                weight.requires_grad_(False)
            made = cls(pipe, config, id_embedding.eval(), id_attention, encoders, image_adapter, origin(weights))
            undo.pop_all()
        return made

    def detach(self) -> None:
        """Gives the pipeline back as it was, bit for bit."""
        self._check_attached()
        self.injection.detach()

    # Identities

    @_Once
    def features(self) -> FaceFeatures:
        """The face backbone and the CLIP image tower, loaded at the first identity."""
        place = self._encoders["backbone"]
        backbone = official.load_backbone(place) if place.suffix in ENDINGS else IRResNet.from_pretrained(place)
        return FaceFeatures(backbone, load_clip_vision(self._encoders["clip"]), self.config.intrinsic)

    def identity(self, pictures: Any, face: Any = None) -> Identity:
        """A person from a picture, or from a list of pictures of them: paths, PIL images or arrays.

        Each must show one face, or `face` says which: "largest", or the number of one, from the left.
        Raises `NoFaceError`, `SeveralFacesError`, `PictureError`.
        """
        from uniportrait_lite.faces import face_of

        pictures = list(pictures) if isinstance(pictures, list | tuple) else [pictures]
        if not pictures:
            raise ConfigError("an identity needs at least one picture of the person, and the list is empty")
        return self.identity_of_crops(
            [face_of(picture, face, folder=self._encoders["faces"]).crop for picture in pictures]
        )

    def identity_of_crops(self, crops: Sequence[Image.Image]) -> Identity:
        """A person from faces that are aligned already: RGB pictures of 224x224, as the `.crop` of detected faces."""
        if not crops:
            raise ConfigError("an identity needs at least one crop, and the list is empty")
        arrays = [np.asarray(crop) for crop in crops]
        for array in arrays:
            if array.shape != (224, 224, 3):
                raise ConfigError(f"crops are RGB pictures of 224x224, and one is {array.shape}")
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
        with self._at_work(self.features) as encoder:
            features = encoder(pixels.to(self._device, self._place[1]) / 255)
            self._nobody  # noqa: B018 - needed for every picture, and the encoders are large
        references = [IDFeatures(*(x[i : i + 1] for x in features)) for i in range(len(crops))]
        alike = (1 / len(crops),) * len(crops)
        return Identity(((1.0, IDFeatures.of_references(references)),), tuple(crops), alike)

    @property
    def _device(self) -> torch.device:
        """Where this pipeline computes: with offloading the U-Net rests elsewhere."""
        return self.pipe._execution_device if hasattr(self.unet, "_hf_hook") else self._place[0]

    @property
    def _place(self) -> tuple[torch.device, torch.dtype]:
        """The U-Net's device and dtype. diffusers goes through all of its layers to tell them, which takes as long as
        a third of a step: it is asked again where a weight of ours, which moves with them, is found elsewhere, and
        after `detach`, when it no longer does."""
        weight = next(self.id_attention.parameters())
        there = (weight.device, weight.dtype)
        if self._known is None or self._known[0] != there or not self.injection.attached:
            self._known = there, (self.unet.device, self.unet.dtype)
        return self._known[1]

    @contextlib.contextmanager
    def _at_work(self, network: Module) -> Iterator[Module]:
        """A network where the pipeline computes. Afterwards it rests in main memory: the U-Net works without it."""
        with self._loading:  # no thread takes it away from another
            try:
                yield network.to(self._device, self._place[1])
            finally:
                network.to("cpu")

    @_Once
    def _nobody(self) -> IDFeatures:
        with self._at_work(self.features) as encoder:
            return encoder.unconditional()

    @torch.no_grad()
    def tokens(self, identity: Identity | None, structure_scale: float | None = None) -> Tensor:
        """The ID tokens (1, 16, D) of an identity; of nobody (the unconditional ones) for None."""
        with self._embedding() as embed:
            return self._tokens(embed, identity, self._scale("structure_scale", structure_scale))

    def _tokens(self, embed: Module, identity: Identity | None, scale: float) -> Tensor:
        parts = ((1.0, self._nobody),) if identity is None else identity.parts
        there = embed.queries
        given = [(share, features.to(there.device, there.dtype)) for share, features in parts]
        return sum(share * embed(*features, scale) for share, features in given)

    def _embedding(self) -> contextlib.AbstractContextManager[Module]:
        """The ID embedding where the pipeline computes. It is small and stays there, unless memory is so scarce that
        networks are offloaded: to bring it anew for each picture takes longer than to use it."""
        if hasattr(self.unet, "_hf_hook"):
            return self._at_work(self.id_embedding)
        return contextlib.nullcontext(self.id_embedding.to(*self._place))

    @torch.no_grad()
    def conditions(
        self, *identities: Identity, id_scale: float | None = None, structure_scale: float | None = None
    ) -> IDConditions:
        """What a U-Net takes as `cross_attention_kwargs={"identities": ...}`: row 0 is nobody, row 1 the identities.

        For loops of your own: `conditions.rows(index)` makes it as many rows as your batch has. Several people also
        need `dataclasses.replace(conditions, routing=Routing(size, columns=...))`, with the size of the latents.
        """
        self._check_people(identities)
        scale = self._scale("structure_scale", structure_scale)
        with self._embedding() as embed:
            people = torch.stack([self._tokens(embed, identity, scale) for identity in identities], dim=1)
            nobody = self._tokens(embed, None, scale).unsqueeze(1).expand_as(people)
        tokens = torch.cat([nobody, people]).to(self._place[0])
        sentences, said = self._sentences([identity.sentence for identity in identities])
        conditions = IDConditions(tokens, self._scale("id_scale", id_scale), sentences=sentences, said=said)
        return conditions.projected(self.id_attention)

    def _sentences(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Encoded sentences (2, N, T, D) of nobody and of the identities, and of whom (2, N) there is one."""
        if not any(texts):
            return None, None
        if not all(getattr(self.pipe, part, None) for part in ("tokenizer", "text_encoder")):
            raise ConfigError(f"{type(self.pipe).__name__} has no text encoder to read sentences about people with")
        tokenizer, encoder = self.pipe.tokenizer, self.pipe.text_encoder
        for text in filter(None, texts):
            if len(tokenizer(text).input_ids) > tokenizer.model_max_length:
                raise ConfigError(f"a sentence has at most {tokenizer.model_max_length - 2} words here: {text!r:.80}")
        tokens = tokenizer([text or "" for text in texts], padding="max_length", return_tensors="pt")
        encoded = encoder(tokens.input_ids.to(encoder.device)).last_hidden_state.to(*self._place)
        said = torch.tensor([[False] * len(texts), [bool(text) for text in texts]], device=self._place[0])
        return encoded.unsqueeze(0).expand(2, -1, -1, -1), said

    @property
    def image_adapter(self) -> ImageAdapter | None:
        """What makes image prompts, where IP-Adapter's file was given to `attach`: see image_prompt.py."""
        return self._image_adapter and self._image_adapter.to(*self._place)

    # Pictures

    @contextlib.contextmanager
    def using(
        self,
        *identities: Identity,
        id_scale: float | None = None,
        structure_scale: float | None = None,
        masks: Sequence[Any] | None = None,
        columns: float | None = None,
        image_prompt: Any = None,
        image_scale: float = 1.0,
        image_mask: Any = None,
        guided: bool | None = None,
        maps: RoutingMaps | None = None,
    ) -> Iterator[UniPortrait]:
        """Inside it, this pipeline's pictures, and those of any other with the same U-Net, show these people.

        Scales are from 0, and those of the weights where not given. `masks`: where each person may be, in the router's
        place: arrays or pictures of the picture's shape, or boxes (left, top, right, bottom) in pixels, one a person;
        where several overlap they share, and what none covers shows nobody. Without masks, `columns` says for how large
        a share of the denoising, from pure noise on, each of several people keeps to a column of the picture, the first
        one to the left; 0, the paper's way, lets the routers decide from the first step. (Of few steps all may begin
        before that share is over, which leaves routers none. A picture to start from comes with less than pure noise,
        so fewer of its steps are in columns.)

        `image_prompt`: a picture, or a list of some, that is read beside the text (IP-Adapter, see image_prompt.py):
        its style, its colours, what it shows. `image_scale` says how much, from 0, and `image_mask` where, as in
        `masks`.

        `guided` is for loops of your own around the U-Net: whether a batch is unconditional rows and then as many
        conditional ones. Pipelines are asked. `maps` takes the routing of each step; give each call of a pipeline one
        of its own.
        """
        self._check_attached()
        if masks is not None:
            if not isinstance(masks, list | tuple) and not getattr(masks, "ndim", 0):
                raise ConfigError(f"masks are a list, with one for each person, not {type(masks).__name__}")
            if len(masks) != len(identities):
                raise ConfigError(f"masks: {len(masks)} for {len(identities)} people; give each person one")
        if len(identities) > 1 and masks is None and not self.routes:
            raise ConfigError(
                f"{len(identities)} people in one picture need ID routing, and these weights have had the single-ID "
                "stage only: train the multi-ID stage, give masks, or give one person"
            )
        scales = {"id_scale": self._scale("id_scale", id_scale)}
        scales["structure_scale"] = self._scale("structure_scale", structure_scale)
        conditions = self.conditions(*identities, **scales) if identities else None
        if image_prompt is None and image_mask is not None:
            raise ConfigError("image_mask says where an image prompt is heeded: give image_prompt, a picture")
        image = None if image_prompt is None else self._image_prompt(image_prompt, image_scale)
        columns = self._scale("columns", columns, 1)
        with self.injection.using(conditions, guided, masks, maps, image, image_mask, columns):
            yield self

    @torch.no_grad()
    def _image_prompt(self, pictures: Any, image_scale: float) -> ImagePrompt:
        """The image prompt of a picture, or of several, whose tokens stand side by side; row 0 is that of none."""
        image_scale = number("image_scale", image_scale, 0)
        if self.image_adapter is None:
            raise ConfigError(
                "an image prompt needs the weights of an IP-Adapter, and none were given: attach(..., ip_adapter=file)"
            )
        pictures = list(pictures) if isinstance(pictures, list | tuple) else [pictures]
        if not pictures:
            raise ConfigError("image_prompt is a picture or a list of some, and the list is empty")
        views = np.stack([clip_view(read_picture(picture)) for picture in pictures])
        pixels = torch.from_numpy(views).permute(0, 3, 1, 2)
        with self._at_work(self.features) as encoder:
            embeds = encoder.image_embedding(pixels.to(self._device, self._place[1]) / 255)
        embeds = torch.stack([torch.zeros_like(embeds), embeds]).to(self._place[0])  # of no picture: as published
        tokens = self.image_adapter(embeds.flatten(0, 1)).unflatten(0, embeds.shape[:2]).flatten(1, 2)
        return self.image_adapter.prompt(tokens, image_scale)

    @contextlib.contextmanager
    def fused(self, people: int = 1) -> Iterator[UniPortrait]:
        """Inside it pictures of this number of people are drawn faster, and no others can be.

        The LoRA for them is added to the U-Net's weights in place of being computed beside them, 4% of a picture at
        full size; pictures differ by rounding. The last prompt's keys and values are kept from step to step: neither
        weights nor adapters may be changed inside. Afterwards the weights are what they were, bit for bit. Raises
        `ConfigError` where another LoRA is active, and inside for another number of people or for none.
        """
        self._check_attached()
        with self.injection.fused(whole("people", people, 1)):
            yield self

    def __call__(
        self,
        prompt: str | Sequence[str],
        identities: Identity | Sequence[Identity] | None = None,
        *,
        seed: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        id_scale: float | None = None,
        structure_scale: float | None = None,
        num_images: int = 1,
        negative_prompt: str | None = None,
        masks: Sequence[Any] | None = None,
        columns: float | None = None,
        image_prompt: Any = None,
        image_scale: float = 1.0,
        image_mask: Any = None,
        routing: bool = False,
        distinct: bool = False,
        **pipe_arguments: Any,
    ) -> Any:
        """The pipeline's output (`.images`: PIL) for a prompt, or a list of them, with these people in it.

        Several people each get a face of their own; `masks` say where, else the routers find out, after steps in which
        everyone keeps to a column (`columns`, see `using`). With `routing` the output has their maps as `.routing`
        (`RoutingMaps`). Pictures of several people have the width that the weights name for so many, unless `width`,
        `image` or `latents` say otherwise; for more people than that a width has to be given.

        `image_prompt` is a picture that is read beside the prompt, `image_scale` and `image_mask` how much and where.

        With `distinct` each picture's faces are matched with the people, and where someone is doubled or missing it is
        drawn again, a few times at most, everyone kept to a region of their own; `.assignment` then says who is where
        (an `Assignment` a picture), `.tries` how many pictures were drawn again. Nobody may be given twice then; else
        a person who is given twice is drawn twice. How many people a prompt names is not looked at: "a woman in the
        park" with two identities shows both.

        Pictures (PIL) know how they were made, which `pictures.save_picture` writes into PNG files (provenance.py).

        Image number i is drawn from `seed` + i, so it stays the same however many are asked for; without a seed each
        call differs. No identities: the pipeline as it was. An empty prompt is fine, and one longer than the text
        encoder reads is cut by the pipeline, which warns of it. Settings not given are those of the weights; further
        ones (`height`, `width`, `image`, `generator`, `latents`, ...) go to the pipeline. Raises `ConfigError` for
        values that cannot work.
        """
        self._check_attached()
        people = [identities] if isinstance(identities, Identity) else list(identities or [])
        self._check_people(people)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, list | tuple) or not prompts or not all(isinstance(p, str) for p in prompts):
            raise ConfigError(f"a prompt is a text, or a list of texts, not {prompt!r}")
        num_images = whole("num_images", num_images, 1)
        defaults = self.config.defaults
        arguments = {
            "num_inference_steps": defaults.steps if steps is None else whole("steps", steps, 1),
            "guidance_scale": defaults.guidance if guidance is None else number("guidance", guidance, 0),
            "num_images_per_prompt": num_images,
        }
        if negative_prompt is not None:
            if not isinstance(negative_prompt, str):
                raise ConfigError(f"a negative prompt is one text, not {negative_prompt!r}")
            arguments["negative_prompt"] = [negative_prompt] * len(prompts)
        if seed is not None:
            if "generator" in pipe_arguments:
                raise ConfigError("a seed and a generator both decide the noise: give one of them")
            first = whole("seed", seed, 0, 2**32 - 1)
            arguments["generator"] = _noise(range(first, first + len(prompts) * num_images))
        for name in ("height", "width"):
            if pipe_arguments.get(name, 0) is None:  # as if it were not given
                del pipe_arguments[name]
            if name in pipe_arguments:
                self._check_size(name, pipe_arguments[name])
        for name in pipe_arguments:
            if name in arguments:
                raise ConfigError(f"{name}: this call has its own name for it (steps, guidance, num_images)")
            if name not in inspect.signature(type(self.pipe).__call__).parameters:
                raise ConfigError(f"{name} is no argument of this call, nor of {type(self.pipe).__name__}")
        if distinct:
            self._check_distinct(people, masks, routing, len(prompts) * num_images, pipe_arguments)
            references = self._references(people)
            first = int(torch.randint(2**31, (1,))) if seed is None else first
            arguments["generator"] = _noise(range(first, first + len(prompts) * num_images))
        if not {"image", "latents"} & pipe_arguments.keys():
            pipe_arguments = self._size(len(people), pipe_arguments) | pipe_arguments
        if routing and pipe_arguments.get("return_dict") is False:
            raise ConfigError("routing maps come with the pipeline's output: leave return_dict as it is")
        maps = RoutingMaps() if routing else None
        shown = {"image_prompt": image_prompt, "image_scale": image_scale, "image_mask": image_mask}
        knobs = {"id_scale": id_scale, "structure_scale": structure_scale, "columns": columns}
        with self.using(*people, masks=masks, maps=maps, **knobs, **shown):
            out = self.pipe(prompt=list(prompts), **arguments, **pipe_arguments)
        facts = {
            "negative_prompt": negative_prompt,
            "steps": arguments["num_inference_steps"],
            "guidance": arguments["guidance_scale"],
            "image_scale": None if image_prompt is None else image_scale,
            **self.facts(len(people), id_scale, structure_scale, columns),
        }
        if masks is not None:
            facts |= {"columns": None, "regions": "masks"}
        said = [f"person {n}: {person.sentence}" for n, person in enumerate(people, 1) if person.sentence]
        facts["said"] = "; ".join(said) or None
        for place, image in enumerate(out[0]):
            if isinstance(image, Image.Image):
                noise = first + place if "generator" in arguments else None
                tell(image, prompt=prompts[place // num_images], seed=noise, **facts)
        if routing:
            out.routing = maps
        if distinct:
            flags = getattr(out, "nsfw_content_detected", None)
            flagged = {} if flags is None else dict(zip(map(id, out.images), flags, strict=True))
            drawn = []  # kept, as flags go by what an image is

            def again(number: int, noise: int, regions: list[np.ndarray] | None) -> Image.Image:
                other = self(
                    prompts[number // num_images], people, seed=(first + number + noise * ANOTHER) % 2**32,
                    steps=steps, guidance=guidance, negative_prompt=negative_prompt, masks=regions,
                    **knobs, **shown, **pipe_arguments,
                )  # fmt: skip
                if flags is not None:
                    flagged[id(other.images[0])] = other.nsfw_content_detected[0]
                if regions is not None:
                    tell(other.images[0], regions="of distinct")
                drawn.append(other.images[0])
                return other.images[0]

            look = functools.partial(self._assignment, references=references)
            settled = [settle(image, look, functools.partial(again, k)) for k, image in enumerate(out.images)]
            out.images = [image for image, _, _ in settled]
            if flags is not None:
                out.nsfw_content_detected = [flagged[id(image)] for image in out.images]
            out.assignment, out.tries = [found for _, found, _ in settled], [tries for _, _, tries in settled]
        return out

    def assignment(self, image: Any, identities: Sequence[Identity]) -> Assignment:
        """Who of these people is where in a picture: its faces matched with their references, by the face backbone.

        Somebody with several references, or a mixture, is the mean of these, by their shares.
        """
        return self._assignment(image, self._references(identities))

    def _assignment(self, image: Any, references: np.ndarray) -> Assignment:
        from uniportrait_lite.faces import detect

        faces = detect(image, self._encoders["faces"])
        embeddings = self._embeddings([face.crop for face in faces]) if faces else np.zeros((0, references.shape[1]))
        return assign(np.array([face.box for face in faces]), embeddings, references)

    def _references(self, identities: Sequence[Identity]) -> np.ndarray:
        """The face backbone's embedding (N, D) of each identity, of length 1."""
        embeddings = self._embeddings([crop for person in identities for crop in person.crops])
        ends = np.cumsum([len(person.crops) for person in identities])[:-1]
        means = [
            np.asarray(person.shares, np.float32) @ own
            for person, own in zip(identities, np.split(embeddings, ends), strict=True)
        ]
        return np.stack([mean / np.linalg.norm(mean) for mean in means])

    @torch.no_grad()
    def _embeddings(self, crops: Sequence[Image.Image]) -> np.ndarray:
        """The face backbone's embeddings (crops, D), each of length 1."""
        pixels = torch.from_numpy(np.stack([np.asarray(crop) for crop in crops])).permute(0, 3, 1, 2)
        with self._at_work(self.features.backbone):  # CLIP stays where it is
            return self.features.embedding(pixels.to(self._device, self._place[1]) / 255).float().cpu().numpy()

    def facts(self, people: int, id_scale: float | None = None, structure_scale: float | None = None,
              columns: float | None = None) -> dict[str, object]:  # fmt: skip
        """What a picture of so many people is to tell of itself (`provenance.tell`), beside its prompt, seed and steps.

        Knobs that are None count as the weights' defaults.
        """
        return {
            "id_scale": self._scale("id_scale", id_scale),
            "structure_scale": self._scale("structure_scale", structure_scale),
            "columns": self._scale("columns", columns) if people > 1 else None,
            "people": people,
            "weights": self.weights if people else None,
            "base": origin(self.pipe.name_or_path) if self.pipe.name_or_path else None,
        }

    # Checks

    def _check_people(self, identities: Iterable[Any]) -> None:
        for identity in identities:
            if not isinstance(identity, Identity):
                raise ConfigError(f"{type(identity).__name__} is no identity: make one with identity(picture)")
            if identity.parts[0][1].intrinsic.shape[-1] != self.config.id_embedding.intrinsic_dim:
                raise ConfigError("this identity comes from other encoders: make it again with this UniPortrait")

    def _scale(self, name: str, value: float | None, *highest: float) -> float:
        return getattr(self.config.defaults, name) if value is None else number(name, value, 0, *highest)

    def _check_distinct(self, people: list[Identity], masks: Any, routing: bool, count: int, given: dict) -> None:
        if not people:
            raise ConfigError("distinct looks for people in the picture: give some")
        if len({person.looks for person in people}) < len(people):
            raise ConfigError("the same person is given twice, and distinct wants everyone once: give each once")
        if masks is not None:
            raise ConfigError("distinct finds regions for people itself: give masks, or distinct, not both")
        if routing:
            raise ConfigError("routing maps are those of one drawing, and distinct may draw again: ask for one of them")
        if {"generator", "latents", "output_type", "return_dict"} & given.keys():
            raise ConfigError("distinct may draw again: leave the noise and the output to it, and give a seed")
        if count > 1 and {"image", "mask_image", "control_image"} & given.keys():
            raise ConfigError("distinct with a picture to start from takes one prompt and one image at a time")

    def _size(self, people: int, given: dict[str, Any]) -> dict[str, int]:
        """The size of a picture of so many people, where it is not `given` and the weights know a width for several.

        diffusers wants both width and height, and of one alone makes nothing: it is completed by the usual other.
        """
        widths = self.config.defaults.widths
        if "width" not in inspect.signature(type(self.pipe).__call__).parameters:
            return {}
        known = bool(widths) and people > 1
        if not known and not {"width", "height"} & given.keys():
            return {}
        if known and people > len(widths) and "width" not in given:
            raise ConfigError(
                f"{people} people are more than the {len(widths)} that fit here: give a width for so many"
            )
        usual = self.unet.config.sample_size * self.pipe.vae_scale_factor
        return {"width": widths[people - 1] if known and people <= len(widths) else usual, "height": usual}

    def _check_size(self, name: str, value: int) -> None:
        multiple = max(8, self.pipe.vae_scale_factor)  # 8 is what diffusers asks for
        if whole(name, value, multiple) % multiple:
            near = round(value / multiple) * multiple
            raise ConfigError(f"{name} is a multiple of {multiple}, not {value}: take {near}")

    def _check_attached(self) -> None:
        if not self.injection.attached:
            raise ConfigError("this UniPortrait was detached: attach it again with UniPortrait.attach(pipe, weights)")


def _encoder_place(name: str, place: str | Path, folder: Path, relative: bool) -> Path | str:
    """An encoder's file or folder, `relative` to the weights' one or not; or the name of a package of face models."""
    path = folder / place if relative else Path(place)
    if name == "faces" and package_name(place) and not path.is_dir():
        return str(place)
    return path.expanduser().resolve()


def _noise(seeds: Iterable[int]) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def _unet(pipe: Any) -> UNet2DConditionModel:
    unet = below_compile(getattr(pipe, "unet", None))
    if not isinstance(unet, UNet2DConditionModel):
        raise ConfigError(f"{type(pipe).__name__} has no U-Net of Stable Diffusion 1.5's kind (UNet2DConditionModel)")
    if unet.config.addition_embed_type is not None:
        raise ConfigError("this is a U-Net of SDXL's kind: UniPortrait is for the Stable Diffusion 1.5 family")
    if not isinstance(unet.config.cross_attention_dim, int):
        raise ConfigError("this U-Net's levels read text of different widths: UniPortrait needs one width")
    net = getattr(pipe, "controlnet", None)
    for place, each in enumerate(getattr(net, "nets", [net] if net is not None else [])):
        for name in ("in_channels", "block_out_channels", "cross_attention_dim"):
            theirs, ours = getattr(each.config, name, None), getattr(unet.config, name)
            if theirs != ours:
                raise ConfigError(
                    f"ControlNet {place} is for another base model: its {name} is {theirs}, the U-Net's {ours}"
                )
    return unet
