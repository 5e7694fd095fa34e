"""The settings of both stages, with what `--help` says of them."""

from dataclasses import dataclass
from typing import Literal

from uniportrait_lite.errors import ConfigError
from uniportrait_lite.folders import runs_folder
from uniportrait_lite.graphs import wanted
from uniportrait_lite.id_routing import LAMBDA
from uniportrait_lite.loop import LoopConfig
from uniportrait_lite.training.config import setting

SINGLE_ID = """\
Teaches a frozen text-to-image model to draw a person from a picture of their face (paper: single-ID stage).

Each step takes drawn portraits with their captions, hides them in noise, and asks the model to tell the noise from the
picture, given the caption and the ID tokens of the person's face. Only what carries identity is trained: the ID
embedding, the ID keys and values of every cross-attention, and a LoRA. All else stays as it was pretrained, so what
those frozen networks make of the portraits is computed once and read from runs/cache ever after.
"""
SINGLE_ID_EPILOG = """\
examples:
  python -m uniportrait_lite train single_id --steps none --hours 2     two hours, with the schedule that fits them
      the same command again goes on where it was stopped or killed
  python -m uniportrait_lite train single_id --distil 1600 --steps 160 --portraits 2000 --out runs/short
      minutes from nothing, words distilled first, in a folder of its own
  python -m uniportrait_lite train single_id --structure false          an ablation, in a folder of its own
  python -m uniportrait_lite train single_id --config my.yaml --seed 1  settings from a file, one of them changed
  accelerate launch -m uniportrait_lite train single_id                 on one GPU or several, each with its own batches
  torchrun --nproc-per-node 2 -m uniportrait_lite train single_id       the same in two processes on CPUs

A run's folder (--run-folder) holds checkpoint.pt, log.jsonl, TensorBoard's tb, settings.json, samples (a row a person:
reference, then portraits) and weights, the averaged weights so far, as UniPortrait.attach reads them.
What to watch: "face" is the loss inside the face's box; "facesim" is the judge's similarity of portraits of people
nobody trained on to their references, which has to rise above "facesim_others", that to other people's references.
"""

MULTI_ID = """\
Teaches the same model to draw several people in one picture, each in their own face (paper: multi-ID stage).

Each step takes drawn pictures of two or three people, with --larger of four and five, too. In every cross-attention a
router decides, for each location, whose ID tokens it listens to; it learns this from the diffusion loss and from the
faces' boxes (the routing regularization loss). Trained are the routers and a second LoRA, which begins as the
single-ID stage's; ID embedding and ID keys and values stay as that stage left them, so pictures of one person stay the
same, to the bit.
"""
MULTI_ID_EPILOG = """\
examples:
  python -m uniportrait_lite train multi_id --steps none --hours 0.5    half an hour, with the schedule that fits it
      the same command again goes on where it was stopped or killed
  python -m uniportrait_lite train multi_id --route-weight 0            an ablation: without the routing loss
  accelerate launch -m uniportrait_lite train multi_id                  on one GPU or several, each with its own batches

A run's folder (--run-folder) holds checkpoint.pt, log.jsonl, TensorBoard's tb, settings.json, samples (a row a pair:
references, then pictures) and weights, the averaged weights so far, as UniPortrait.attach reads them.
What to watch: "route" is the routing regularization loss, "right_down", "right_mid" and "right_up" the share of
locations inside face boxes whose router names the right person, by part of the U-Net; "facesim_lowest" is the lower of
two people's similarities to their references in one picture, people nobody trained on.
"""


@dataclass
class StageConfig:
    """What both stages can be told; where the paper has another value, or none, the help says so."""

    profile: str = setting("tiny", "which stack is trained: tiny, or the folder of a profile of yours")
    run_folder: str | None = setting(
        None, "the run's folder; none: runs/STAGE (runs/PROFILE/STAGE), with _VARIANT for an ablation"
    )
    out: str | None = setting(
        None, "gets the final weights; none: the profile's uniportrait, RUN_FOLDER/weights for an ablation"
    )
    batch: int = setting(32, "portraits in a step, or as many pixels, for each process (paper: 128 in all)")
    steps: int | None = setting(8_000, "length of the run in steps; with hours, whichever ends first")
    hours: float | None = setting(None, "length of the run in hours")
    lr: float = setting(1e-3, "AdamW's rate, for LoRA, biases, norms and queries, or for all (paper: 1e-5)")
    muon_lr: float | None = setting(0.015, "Muon's rate, for all other matrices")
    weight_decay: float = setting(0.01, "of the matrices")
    warmup: int = setting(100, "steps over which the rates rise")
    cooldown: float = setting(0.6, "last share of the run, over which they fall to 0")
    ema: float | None = setting(0.998, "decay of the averaged weights, which are those exported; none: no average")
    precision: Literal["fp32", "bf16"] = setting("bf16", "bf16 is mixed precision: the trained weights stay float32")
    swap: float = setting(0.1, "probability that F_r comes from another picture of the same person (paper: 0.1)")
    no_face: float = setting(0.05, "share of samples with the ID branch off: caption alone (paper: 0.05)")
    no_caption: float = setting(0.1, "share of samples with an empty caption, for guidance (our choice)")
    nobody: float = setting(0.5, "share of these that get the unconditional ID tokens too, as in guidance (our choice)")
    timesteps: Literal["fine", "coarse", "middle", "uniform"] = setting(
        "fine",
        "fine: a third where small things are decided, as the base model has it; coarse: half in the first "
        "eighth of denoising, where little but the ID tokens says who it is; uniform: as is usual",
    )
    face_weight: float = setting(2.0, "weight of the loss inside faces' boxes (the base model's; paper: 1)")
    feature_weight: float = setting(4.0, "and around brows, eyes, nose and mouth (the base model's; paper: 1)")
    seed: int = setting(0, "of all that is drawn at random")
    log_every: int = setting(20, "steps")
    checkpoint_every: float = setting(120.0, "seconds")
    compile: bool = setting(
        False, "true: the U-Net by torch.compile, for each kind of picture once: minutes, that an hour repays"
    )
    graphs: bool | None = setting(None, "steps as CUDA graphs; none: on one CUDA device, unless compiled")
    workers: int | None = setting(None, "processes that make batches ahead; none: on CUDA what cores are to spare")
    samples_every: int = setting(1000, "steps from one grid of samples, with its FaceSim, to the next")

    def _check(self, stage: str, changed: dict[str, bool], shares: tuple[str, ...], counts: tuple[str, ...]):
        """Checks the settings, names the variant, and with it the run's folder."""
        for name in ("swap", "no_face", "no_caption", "nobody", *shares):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a share from 0 to 1, not {getattr(self, name)}")
        for name in ("batch", "samples_every", "log_every", *counts):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is at least 1, not {getattr(self, name)}")
        for name in ("face_weight", "feature_weight"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is above 0, not {getattr(self, name)}")
        self.variant = "_".join(name for name, is_so in changed.items() if is_so)
        runs = runs_folder(self.profile).as_posix()
        self.run_folder = self.run_folder or "_".join(filter(None, (f"{runs}/{stage}", self.variant)))
        wanted(self.graphs, self.compile)
        self.loop()  # checks the rest

    def loop(self) -> LoopConfig:
        """The part that the loop reads."""
        names = (
            "steps", "hours", "lr", "muon_lr", "weight_decay", "warmup", "cooldown", "ema", "precision", "seed",
            "log_every", "checkpoint_every", "workers",
        )  # fmt: skip
        return LoopConfig(out=self.run_folder, **{name: getattr(self, name) for name in names})


@dataclass
class SingleIDConfig(StageConfig):
    """The settings of a run of the single-ID stage."""

    start_from: str | None = setting(None, "weights to begin with in place of new ones: a folder")
    distil: int = setting(
        0,
        "steps in which new ID tokens first learn to say of faces what captions say, without the U-Net: some minutes, "
        "in which a short run gets further than by itself (our addition)",
    )
    portraits: int = setting(16_000, "how many drawn portraits to train on, of 4,000 people in turn")
    lora_rank: int = setting(16, "rank of the LoRA (paper: 128, on a wider U-Net)")
    intrinsic: Literal["spatial", "global"] = setting("spatial", "ablation: global takes the face's one vector for F_r")
    structure: bool = setting(True, "ablation: false leaves the structure branch out")
    drop: bool = setting(True, "ablation: false trains without DropToken and DropPath")
    measure_cache: bool = setting(
        False, "true: first time steps with and without what is cached, into RUN_FOLDER/cache.json"
    )

    def __post_init__(self):
        changed = {"global": self.intrinsic == "global", "no_structure": not self.structure, "no_drop": not self.drop}
        if self.distil < 0:
            raise ConfigError(f"distil is a number of steps, 0 for none, not {self.distil}")
        if self.distil and self.start_from:
            raise ConfigError("distil is for new weights, and start_from would lose what it has: give one of them")
        if self.distil and self.intrinsic == "global":
            raise ConfigError("distil reads the map F_r, intrinsic=global one vector: give one of them")
        self._check("single_id", changed, (), ("portraits", "lora_rank"))


@dataclass
class MultiIDConfig(StageConfig):
    """The settings of a run of the multi-ID stage."""

    steps: int | None = setting(3_000, "length of the run in steps; with hours, whichever ends first")
    muon_lr: float | None = setting(0.01, "Muon's rate, for all other matrices")
    single_id: str | None = setting(None, "single-ID weights to build on: a folder; none: the profile's uniportrait")
    start_from: str | None = setting(
        None,
        "multi-ID weights to go on from: a folder, with the single-ID weights they were trained beside; where "
        "this run builds on others, its LoRA is moved by what theirs had learned beyond those",
    )
    groups: int = setting(3_000, "how many drawn pictures of two people to train on, and as many of each other number")
    trios: float = setting(0.4, "share of steps with three people")
    larger: float = setting(0.0, "share of steps with four or five people, as many of each; else there are two")
    route_weight: float = setting(LAMBDA, "lambda, of the routing regularization loss (paper: 0.1); ablation: 0")
    lora_rate: float = setting(0.1, "the LoRA's share of the learning rate (paper: 0.1)")
    temperature: float = setting(1.0, "of the routers' Gumbel noise at first (not published)")
    last_temperature: float = setting(0.5, "and after COOLING steps (not published)")
    sentences: float = setting(0.5, "share of steps that say something of half of the people alone (our addition)")
    cooling: int = setting(2000, "steps over which the temperature falls")
    soft: bool = setting(False, "true: shares of all identities in place of one-hot, straight through (not published)")

    def __post_init__(self):
        if min(self.temperature, self.last_temperature) <= 0:
            raise ConfigError("a temperature is above 0")
        if min(self.route_weight, self.lora_rate, self.cooling) < 0:
            raise ConfigError("route_weight, lora_rate and cooling are not below 0")
        changed = {"no_route": self.route_weight == 0, "soft": self.soft, "no_sentences": self.sentences == 0}
        self._check("multi_id", changed, ("trios", "larger", "sentences"), ("groups",))
        if self.trios + self.larger > 1:
            raise ConfigError(f"trios and larger share the steps, and {self.trios:g} + {self.larger:g} is above 1")

    @property
    def shares(self) -> dict[str, float]:
        """The share of steps with pictures of each number of people, by the name of their set."""
        half, rest = self.larger / 2, max(0.0, round(1 - self.trios - self.larger, 9))  # 0.7 and 0.3 leave nothing
        return {"trios": self.trios, "quartets": half, "quintets": half, "pairs": rest}
