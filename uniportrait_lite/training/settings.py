"""The settings of the single-ID stage, with what its `--help` says of them."""

from dataclasses import dataclass
from typing import Literal

from uniportrait_lite.errors import ConfigError
from uniportrait_lite.loop import LoopConfig
from uniportrait_lite.training.config import setting

DESCRIPTION = """\
Teaches a frozen text-to-image model to draw a person from a picture of their face (paper: single-ID stage).

Each step takes drawn portraits with their captions, hides them in noise, and asks the model to tell the noise from the
picture, given the caption and the ID tokens of the person's face. Only what carries identity is trained: the ID
embedding, the ID keys and values of every cross-attention, and a LoRA. All else stays as it was pretrained, so what
those frozen networks make of the portraits is computed once and read from runs/cache ever after.
"""
EPILOG = """\
examples:
  python -m uniportrait_lite train single_id --steps none --hours 2     two hours, with the schedule that fits them
      the same command again goes on where it was stopped or killed
  python -m uniportrait_lite train single_id --structure false          an ablation, in a folder of its own
  python -m uniportrait_lite train single_id --config my.yaml --seed 1  settings from a file, one of them changed
  accelerate launch -m uniportrait_lite train single_id                 on one GPU or several, each with its own batches
  torchrun --nproc-per-node 2 -m uniportrait_lite train single_id       the same in two processes on CPUs

A run's folder (--run-folder) holds checkpoint.pt, log.jsonl, TensorBoard's tb, settings.json, samples (a row a person:
reference, then portraits) and weights, the averaged weights so far, as UniPortrait.attach reads them.
What to watch: "face" is the loss inside the face's box; "facesim" is the judge's similarity of portraits of people
nobody trained on to their references, which has to rise above "facesim_others", that to other people's references.
"""


@dataclass
class SingleIDConfig:
    """A run's settings; where the paper has another value, or none, the help says so."""

    profile: Literal["tiny"] = setting("tiny", "which stack is trained: its folder of weights, its world")
    run_folder: str | None = setting(
        None, "the run's folder; none: runs/single_id, or runs/single_id_VARIANT for an ablation"
    )
    out: str | None = setting(
        None, "gets the final weights; none: the profile's uniportrait, RUN_FOLDER/weights for an ablation"
    )
    start_from: str | None = setting(None, "weights to begin with in place of new ones: a folder")
    portraits: int = setting(20_000, "how many drawn portraits to train on, of 4,000 people in turn")
    batch: int = setting(32, "portraits in a step, for each process (paper: 128 in all)")
    steps: int | None = setting(12_000, "length of the run in steps; with hours, whichever ends first")
    hours: float | None = setting(None, "length of the run in hours")
    lr: float = setting(
        1e-3, "AdamW's rate, for LoRA, biases, norms and queries, without muon_lr for all (paper: 1e-5)"
    )
    muon_lr: float | None = setting(
        0.01, "Muon's rate, for the matrices of the ID embedding and the ID keys and values"
    )
    weight_decay: float = setting(0.01, "of the matrices")
    warmup: int = setting(100, "steps over which the rates rise")
    cooldown: float = setting(0.5, "last share of the run, over which they fall to 0")
    ema: float | None = setting(0.998, "decay of the averaged weights, which are those exported; none: no average")
    precision: Literal["fp32", "bf16"] = setting("bf16", "bf16 is mixed precision: the trained weights stay float32")
    swap: float = setting(0.1, "probability that F_r comes from another picture of the same person (paper: 0.1)")
    no_face: float = setting(0.05, "share of samples with the ID branch off: caption alone (paper: 0.05)")
    no_caption: float = setting(0.1, "share of samples with an empty caption, for guidance (our choice)")
    nobody: float = setting(0.5, "share of these that get the unconditional ID tokens too, as in guidance (our choice)")
    timesteps: Literal["middle", "uniform"] = setting(
        "middle", "middle: most where faces take form, as the base model has it; uniform: as is usual"
    )
    face_weight: float = setting(2.0, "weight of the loss inside the face's box (the base model's; paper: 1)")
    lora_rank: int = setting(16, "rank of the LoRA (paper: 128, on a wider U-Net)")
    intrinsic: Literal["spatial", "global"] = setting("spatial", "ablation: global takes the face's one vector for F_r")
    structure: bool = setting(True, "ablation: false leaves the structure branch out")
    drop: bool = setting(True, "ablation: false trains without DropToken and DropPath")
    seed: int = setting(0, "of all that is drawn at random")
    log_every: int = setting(20, "steps")
    checkpoint_every: float = setting(120.0, "seconds")
    samples_every: int = setting(1000, "steps from one grid of samples, with its FaceSim, to the next")
    measure_cache: bool = setting(
        False, "true: first time steps with and without what is cached, into RUN_FOLDER/cache.json"
    )

    def __post_init__(self):
        shares = {name: getattr(self, name) for name in ("swap", "no_face", "no_caption", "nobody")}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is a share from 0 to 1, not {value}")
        for name in ("portraits", "batch", "lora_rank", "samples_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is at least 1, not {getattr(self, name)}")
        if self.face_weight <= 0:
            raise ConfigError(f"face_weight is above 0, not {self.face_weight}")
        changed = {"global": self.intrinsic == "global", "no_structure": not self.structure, "no_drop": not self.drop}
        self.variant = "_".join(name for name, is_so in changed.items() if is_so)
        self.run_folder = self.run_folder or "_".join(filter(None, ("runs/single_id", self.variant)))
        self.loop()  # checks the rest

    def loop(self) -> LoopConfig:
        """The part that the loop reads."""
        names = (
            "steps",
            "hours",
            "lr",
            "muon_lr",
            "weight_decay",
            "warmup",
            "cooldown",
            "ema",
            "precision",
            "seed",
            "log_every",
            "checkpoint_every",
        )
        return LoopConfig(out=self.run_folder, **{name: getattr(self, name) for name in names})
