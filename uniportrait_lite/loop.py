"""One resumable training loop for every network of the project, on accelerate.

All that is random in step k is drawn from generators seeded by (seed, k, process), so a checkpoint holds no random
state and a run that was killed continues bit for bit as if it had not been (on the CPU; on CUDA up to its kernels).
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.graphs import Passes, Recorder, Updates, on_each
from uniportrait_lite.muon import Muon


@dataclass
class LoopConfig:
    """How long and how fast to train.

    With `hours` the schedule's progress is the larger of step/steps and elapsed/hours, and the run ends at 1.
    The learning rate warms up linearly over `warmup` steps and falls linearly to 0 over the last `cooldown` share.
    """

    out: str  # the run's folder: checkpoint, log.jsonl, TensorBoard
    steps: int | None = 1000
    hours: float | None = None
    lr: float = 1e-3  # AdamW
    muon_lr: float | None = None  # matrices and convolutions train by Muon where this is given
    weight_decay: float = 0.01
    warmup: int = 100
    cooldown: float = 0.3
    ema: float | None = None
    precision: str = "fp32"
    clip_norm: float = 1.0
    seed: int = 0
    log_every: int = 20
    checkpoint_every: float = 120.0  # seconds
    workers: int | None = None  # processes that make batches ahead; None: as many as there are cores to spare, on CUDA

    def __post_init__(self):
        if self.steps is None and self.hours is None:
            raise ConfigError("a training needs an end: give steps, hours or both")
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"precision is fp32 or bf16, not {self.precision!r}")
        if self.steps is not None and self.steps < 1 or self.hours is not None and self.hours <= 0:
            raise ConfigError(f"steps={self.steps} and hours={self.hours} must be positive")
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"workers is a number of processes, or none, not {self.workers}")


MAY_CHANGE = (
    "out",
    "steps",
    "hours",
    "cooldown",
    "log_every",
    "checkpoint_every",
    "workers",
)  # from one part of a run to the next


def train(
    config: LoopConfig,
    model: nn.Module,
    batch: Callable[[int, torch.Generator], Any],
    loss: Callable[[nn.Module, Any], dict[str, torch.Tensor]],
    *,
    evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None,
    evaluate_every: int | None = None,
    evaluate_first: bool = False,
    no_muon: Callable[[str], bool] = lambda name: False,
    rate: Callable[[str], float] = lambda name: 1.0,
    depends_on: dict[str, Any] | None = None,
    graphs: bool = False,
) -> list[dict]:
    """Trains the parameters of `model` that require gradients; returns the log, one dict a line.

    `evaluate(model, step)` is logged after every `evaluate_every` steps, with `evaluate_first` before the first, too.

    `batch(step, generator)` makes the step's data on the CPU, drawing from that generator alone, so that `workers` may
    make it ahead: a tensor, or a list, tuple, dict or dataclass of these. `loss(model, batch)` gets it on the model's
    device and returns a dict whose "loss" is minimised and whose other scalars are logged, with "waiting", the share of
    a step's time that went by until its data was there (on CUDA the network may still be working then). A parameter
    learns at `rate(name)` times the learning rate. Under several processes each gets generators of its own and `model`
    is wrapped, so `loss` must go through `model(...)`.
    Afterwards `model` holds the averaged weights where `ema` is set. Continues from `out/checkpoint.pt` where there is
    one, unless that was made with other settings or with another `depends_on`: what else decides the weights, such as
    data and frozen networks. `graphs`: steps as CUDA graphs (graphs.py), on one CUDA device.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # else a process could train in one precision only
    accelerator = Accelerator(
        mixed_precision="bf16" if config.precision == "bf16" else "no", cpu=not torch.cuda.is_available()
    )
    graphs = graphs and accelerator.device.type == "cuda" and accelerator.num_processes == 1
    run = _Run(config, accelerator, model, no_muon, rate, depends_on or {}, graphs)
    wrapped, before = accelerator.prepare(model), torch.backends.cudnn.benchmark
    try:
        torch.backends.cudnn.benchmark = True  # batches have few shapes: kernels for these are chosen by trial
        run.resume()
        ahead = _ahead(config, batch, run.step, accelerator)
        try:
            _steps(run, accelerator, wrapped, model, ahead, loss, evaluate, evaluate_every, evaluate_first, graphs)
        finally:
            ahead.close()
    finally:
        torch.backends.cudnn.benchmark = before
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # takes the mixed precision off `model` again
        run.close()
    return run.history


def _steps(run, accelerator, wrapped, model, ahead, loss, evaluate, evaluate_every, evaluate_first, graphs) -> None:
    config, device = run.config, accelerator.device

    def compute(data: Any) -> dict[str, torch.Tensor]:
        with accelerator.autocast():
            values = loss(wrapped, data)
        accelerator.backward(values["loss"])
        return {name: value.detach() for name, value in values.items()}

    def look() -> None:
        with run.averaged(), torch.compiler.set_stance("force_eager"):
            model.eval()
            run.log(evaluate(model, run.step), always=True)

    update = partial(run.update, accelerator)
    if graphs:
        recorder, trained = Recorder(), list(run.trained.values())
        compute, update = Passes(recorder, compute, trained), Updates(recorder, update, trained)
    if evaluate and evaluate_first and run.step == 0 and accelerator.is_main_process:
        look()
    while (progress := run.progress()) < 1:
        run.set_rates(progress)
        started = time.perf_counter()
        data = next(ahead)
        made = time.perf_counter()
        torch.manual_seed(_mix(config.seed, run.step, accelerator.process_index, 0))
        model.train()
        run.watch(compute(on_each(data, lambda tensor: tensor.to(device, non_blocking=True))))
        run.set_decay()
        update()
        run.step += 1
        run.log({"waiting": (made - started) / (time.perf_counter() - started)})
        if evaluate and evaluate_every and run.step % evaluate_every == 0 and accelerator.is_main_process:
            run.read()  # before anything is made of the weights
            look()
        run.checkpoint(force=False)
    run.log({}, last=True)
    run.checkpoint(force=True)
    run.use_average()
    model.eval()
    accelerator.wait_for_everyone()


class _Data(Dataset):
    """Step k -> its data, the same in whichever process it is made."""

    def __init__(self, batch: Callable[[int, torch.Generator], Any], seed: int, process: int):
        self.batch, self.seed, self.process = batch, seed, process

    def __getitem__(self, step: int) -> Any:
        return self.batch(step, torch.Generator().manual_seed(_mix(self.seed, step, self.process, 1)))


FORKS = sys.platform.startswith("linux")  # a batch's function cannot be sent to a new process, and macOS forks badly


def _ahead(config: LoopConfig, batch: Callable, step: int, accelerator) -> Generator:
    """The data of `step` and all that follow, made ahead by `workers` processes or, without any, when asked for.

    Closed, it ends the processes.
    """
    workers, cuda = config.workers, accelerator.device.type == "cuda"
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if FORKS else 0
        workers = max(1, min(16, cores // accelerator.num_processes - 2)) if cuda and FORKS else 0
    elif workers and not FORKS:
        raise ConfigError("workers are forked, which only Linux does well: give workers 0")
    more = {"prefetch_factor": 2, "multiprocessing_context": "fork", "worker_init_fn": _alone} if workers else {}
    data = _Data(batch, config.seed, accelerator.process_index)
    made = iter(DataLoader(data, batch_size=None, sampler=itertools.count(step), num_workers=workers,
                           collate_fn=lambda made: made, pin_memory=cuda and workers > 0, **more))  # fmt: skip
    try:
        while True:
            yield next(made)
    finally:
        del made


def _alone(worker: int) -> None:
    """One thread in each worker: OpenCV's do not outlive a fork, and torch gives its own up by itself."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)


class _Run:
    """The state of one training: step, clock, optimisers, average, log."""

    def __init__(
        self, config: LoopConfig, accelerator, model, no_muon: Callable, rate: Callable, depends_on: dict, graphs: bool
    ):
        self.graphs = graphs
        self.config, self.model, self.main = config, model, accelerator.is_main_process
        self.depends_on = json.loads(json.dumps(depends_on))
        self.processes = accelerator.num_processes
        model.to(accelerator.device)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        muon = {n for n, p in self.trained.items() if config.muon_lr and p.ndim >= 2 and not no_muon(n)}
        groups: dict[tuple, dict] = {}
        for name, p in self.trained.items():
            factor, kind = rate(name), "muon" if name in muon else "decayed" if p.ndim >= 2 else "plain"
            settings = {"lr": factor * (config.muon_lr if kind == "muon" else config.lr)}
            settings["weight_decay"] = 0.0 if kind == "plain" else config.weight_decay
            groups.setdefault((kind, factor), {"params": [], **settings})["params"].append(p)
        by_adam = [group for (kind, _), group in groups.items() if kind != "muon"]
        by_muon = [group for (kind, _), group in groups.items() if kind == "muon"]
        self.optimisers = []
        if by_adam:
            self.optimisers.append(torch.optim.AdamW(by_adam, lr=config.lr, betas=(0.9, 0.99), capturable=graphs))
        if by_muon:
            self.optimisers.append(Muon(by_muon, lr=config.muon_lr))
        self.base_rates = [[g["lr"] for g in o.param_groups] for o in self.optimisers]
        self.average = [p.detach().clone().float() for p in self.trained.values()] if config.ema else None
        self.decay: float | torch.Tensor = 0.0  # of the average, in this step
        if graphs:  # what changes from step to step has to be read from a place
            self.decay = torch.zeros((), device=accelerator.device)
            self._place_rates()
        self.step, self.elapsed, self.started, self.saved = 0, 0.0, time.time(), time.time()
        self.history: list[dict] = []
        self.pending: dict[str, list[float]] = {}
        self.unread: list[tuple[int, dict[str, torch.Tensor]]] = []  # on CUDA: to read a number is to wait for it
        self.out = Path(config.out)
        self.writer = None
        if self.main:
            from torch.utils.tensorboard import SummaryWriter

            try:
                self.out.mkdir(parents=True, exist_ok=True)
                self.writer = SummaryWriter(str(self.out / "tb"))
            except OSError as error:
                raise ConfigError(f"can't write into {self.out} ({error}): give another folder") from error

    def close(self):
        if self.writer:
            self.writer.close()

    # --- schedule ---------------------------------------------------------------------------------------------
    def seconds(self) -> float:
        return self.elapsed + time.time() - self.started

    def progress(self) -> float:
        by_steps = self.step / self.config.steps if self.config.steps else 0.0
        by_time = self.seconds() / (3600 * self.config.hours) if self.config.hours else 0.0
        value = [max(by_steps, by_time)]
        if self.processes > 1 and self.config.hours:  # one clock for all, or one process would stop before another
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(value)
        return value[0]

    def set_rates(self, progress: float):
        factor = min(1.0, (self.step + 1) / max(1, self.config.warmup))
        if self.config.cooldown:
            factor *= min(1.0, max(0.0, 1 - progress) / self.config.cooldown)
        for optimiser, rates in zip(self.optimisers, self.base_rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                if self.graphs:
                    group["lr"].fill_(rate * factor)
                else:
                    group["lr"] = rate * factor

    def set_decay(self):
        if self.average is not None:
            decay = min(self.config.ema, (2 + self.step) / (11 + self.step))
            self.decay = self.decay.fill_(decay) if self.graphs else decay

    def _place_rates(self):
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = torch.tensor(float(group["lr"]), device=self.decay.device)

    def update(self, accelerator):
        if self.config.clip_norm:
            accelerator.clip_grad_norm_(self.trained.values(), self.config.clip_norm)
        for optimiser in self.optimisers:
            optimiser.step()
            if not self.graphs:
                optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            current = [p.detach().float() for p in self.trained.values()]
            if self.graphs:
                change = torch._foreach_sub(current, self.average)
                torch._foreach_mul_(change, 1 - self.decay)
                torch._foreach_add_(self.average, change)
            else:
                torch._foreach_lerp_(self.average, current, 1 - self.decay)

    # --- averaged weights -------------------------------------------------------------------------------------
    def use_average(self):
        if self.average is not None:
            with torch.no_grad():
                for p, average in zip(self.trained.values(), self.average, strict=True):
                    p.copy_(average)

    def averaged(self):
        run = self

        class Swap:
            def __enter__(self):
                self.kept = [p.detach().clone() for p in run.trained.values()]
                run.use_average()

            def __exit__(self, *exc):
                with torch.no_grad():
                    for p, kept in zip(run.trained.values(), self.kept, strict=True):
                        p.copy_(kept)

        return Swap()

    # --- what a step found ------------------------------------------------------------------------------------
    def watch(self, values: dict[str, torch.Tensor]):
        """Keeps a step's values for the log; on CUDA they are read together, before anything is written."""
        self.unread.append((self.step, values))
        if values["loss"].device.type != "cuda" or (self.step + 1) % self.config.log_every == 0:
            self.read()

    def read(self):
        """Raises `ConfigError` for a loss that is not finite."""
        unread, self.unread = self.unread, []
        for step, values in unread:
            found = {name: float(value) for name, value in values.items()}
            if not np.isfinite(found["loss"]):
                raise ConfigError(
                    f"the loss is {found['loss']} at step {step}: begin again in another folder, with a lower lr and "
                    "muon_lr"
                )
            for name, value in found.items() if self.main else ():
                self.pending.setdefault(name, []).append(value)

    # --- log --------------------------------------------------------------------------------------------------
    def log(self, values: dict[str, float], always: bool = False, last: bool = False):
        """Gathers a step's values into means of `log_every` steps; `always` writes them as they are, at once."""
        if last:
            self.read()
        if not self.main:
            return
        if not always:
            for name, value in values.items():
                self.pending.setdefault(name, []).append(value)
            if self.step % self.config.log_every and not last or not self.pending:
                return
            known = {name: [x for x in v if np.isfinite(x)] for name, v in self.pending.items()}  # NaN: not to be had
            values = {name: float(np.mean(v)) for name, v in known.items() if v}
            self.pending = {}
        line = {"step": self.step, "seconds": round(self.seconds(), 1), **values}
        self.history.append(line)
        with open(self.out / "log.jsonl", "a") as f:
            f.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self.writer.add_scalar(name, value, self.step)
        print(" ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()), flush=True)

    # --- checkpoints ------------------------------------------------------------------------------------------
    def checkpoint(self, force: bool):
        if not self.main or not force and time.time() - self.saved < self.config.checkpoint_every:
            return
        self.read()
        state = {
            "config": asdict(self.config),
            "depends_on": self.depends_on,
            "step": self.step,
            "seconds": self.seconds(),
            "parameters": {name: p.detach().cpu() for name, p in self.trained.items()},
            "buffers": {name: b.cpu() for name, b in self.model.named_buffers()},
            "optimisers": [o.state_dict() for o in self.optimisers],
            "average": self.average,
        }
        temporary = self.out / "checkpoint.pt.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.out / "checkpoint.pt")
        self.saved = time.time()

    def resume(self):
        path, log = self.out / "checkpoint.pt", self.out / "log.jsonl"
        self.started = self.saved = time.time()
        if not path.exists():
            if self.main:
                log.unlink(missing_ok=True)
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise WeightsError(f"{path} can't be read ({error}); delete it to start over") from error
        if set(state["parameters"]) != set(self.trained):
            raise WeightsError(f"{path} is of another network; delete the folder or give another --out")
        self._compare(state)
        self.step, self.elapsed = state["step"], state["seconds"]
        with torch.no_grad():
            for name, p in self.trained.items():
                p.copy_(state["parameters"][name])
            for name, b in self.model.named_buffers():
                b.copy_(state["buffers"][name])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            for group in saved["param_groups"]:
                group.update({"capturable": self.graphs} if "capturable" in group else {}, lr=float(group["lr"]))
            optimiser.load_state_dict(saved)
        if self.graphs:
            self._place_rates()
        if self.average is not None:
            self.average = [a.to(p.device) for a, p in zip(state["average"], self.trained.values(), strict=True)]
        if self.main and log.exists():  # lines written after the checkpoint will be written again
            lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
            self.history = [line for line in lines if line["step"] <= self.step]
            log.write_text("".join(json.dumps(line) + "\n" for line in self.history))

    def _compare(self, state: dict):
        """Refuses to go on with other settings than the checkpoint's, but for those of length and logging."""
        now = {**asdict(self.config), **self.depends_on}
        before = {**state["config"], **state.get("depends_on", {})}
        changed = [
            f"{name} was {before.get(name, 'not there')!r} and is {now[name]!r}"
            for name in now
            if name not in MAY_CHANGE and (name not in before or before[name] != now[name])
        ]
        if changed:
            raise ConfigError(
                f"{self.out} holds a training with other settings ({'; '.join(changed)}): give them back, give another "
                "--out, or delete the folder to start over"
            )


def _mix(*numbers: int) -> int:
    """One seed from several numbers, the same on every machine."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
