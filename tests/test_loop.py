"""The training loop: what is learnt, what is kept, what is the same after a stop."""

import json
import os

import pytest
import torch
from torch import nn

from uniportrait_lite import loop
from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.loop import LoopConfig, train
from uniportrait_lite.muon import orthogonalise


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 2))


def batch(step, generator):
    x = torch.randn(32, 4, generator=generator)
    return x, torch.stack([x[:, 0] * x[:, 1], x.sum(1)], 1)


def loss(model, data):
    return {"loss": (model(data[0]) - data[1]).square().mean()}


def settings(out, **changes) -> LoopConfig:
    return LoopConfig(
        **{"out": str(out), "steps": 60, "lr": 3e-3, "muon_lr": 0.02, "warmup": 5, "ema": 0.9, "log_every": 5} | changes
    )


def test_training_lowers_the_loss(tmp_path):
    history = train(settings(tmp_path, steps=150), network(), batch, loss)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


def test_a_stopped_run_goes_on_to_the_same_weights_as_one_that_was_not(tmp_path):
    straight = network()
    train(settings(tmp_path / "straight"), straight, batch, loss)

    class Stopped(Exception):
        pass

    def until_30(step, generator):
        if step == 30:
            raise Stopped
        return batch(step, generator)

    with pytest.raises(Stopped):  # the loop saves after every step here, so step 30 is the next
        train(settings(tmp_path / "stopped", checkpoint_every=0), network(), until_30, loss)
    resumed = network()
    history = train(settings(tmp_path / "stopped"), resumed, batch, loss)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [line["step"] for line in history] == list(range(5, 61, 5))
    assert len((tmp_path / "stopped" / "log.jsonl").read_text().splitlines()) == 12


def test_a_time_budget_ends_a_run(tmp_path):
    history = train(settings(tmp_path, steps=None, hours=1 / 3600, log_every=1), network(), batch, loss)
    assert history[-1]["step"] >= 1
    again = train(settings(tmp_path, steps=None, hours=1 / 3600, log_every=1), network(), batch, loss)
    assert len(again) == len(history)  # the time is used up


def test_one_process_trains_in_any_precision_one_after_another(tmp_path):
    for precision in ("fp32", "bf16", "fp32"):
        model = network()
        train(settings(tmp_path / precision, steps=3, precision=precision), model, batch, loss)
        assert model(torch.zeros(1, 4)).dtype == torch.float32  # mixed precision is for training alone


def test_other_settings_or_other_data_are_not_gone_on_with(tmp_path):
    train(settings(tmp_path, steps=5), network(), batch, loss, depends_on={"world": "a"})
    with pytest.raises(ConfigError, match="lr was 0.003 and is 0.1"):
        train(settings(tmp_path, steps=9, lr=0.1), network(), batch, loss, depends_on={"world": "a"})
    with pytest.raises(ConfigError, match="world was 'a' and is 'b'"):
        train(settings(tmp_path, steps=9), network(), batch, loss, depends_on={"world": "b"})
    with pytest.raises(ConfigError, match="perceptual was 'not there' and is 0.1"):
        train(settings(tmp_path, steps=9), network(), batch, loss, depends_on={"world": "a", "perceptual": 0.1})
    assert train(settings(tmp_path, steps=9), network(), batch, loss, depends_on={"world": "a"})[-1]["step"] == 9


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="give another folder"):
        train(settings(tmp_path / "file" / "run"), network(), batch, loss)


def test_frozen_parameters_stay(tmp_path):
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    train(settings(tmp_path, steps=5), model, batch, loss)
    assert torch.equal(model[0].weight, before)


def test_the_averaged_weights_are_what_remains(tmp_path):
    fast, slow = network(), network()
    train(settings(tmp_path / "a", steps=20, ema=None), fast, batch, loss)
    train(settings(tmp_path / "b", steps=20, ema=0.9), slow, batch, loss)
    start = network()[0].weight
    assert (slow[0].weight - start).norm() < (fast[0].weight - start).norm()


@pytest.mark.parametrize("shape", [(3, 24, 40), (2, 16, 144), (2, 96, 32)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    values = torch.linalg.svdvals(orthogonalise(torch.randn(*shape, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.25 and values.max() < 1.4


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    train(settings(tmp_path, steps=10), network(), batch, loss)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ConfigError, match="a lower lr"):
        train(settings(tmp_path, steps=20), network(), batch, lambda m, d: {"loss": m(d[0]).sum() * float("nan")})
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept


def test_a_broken_or_foreign_checkpoint_says_what_to_do(tmp_path):
    train(settings(tmp_path, steps=5), network(), batch, loss)
    with pytest.raises(WeightsError, match="another network"):
        train(settings(tmp_path, steps=5), nn.Linear(4, 2), batch, loss)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match="delete it"):
        train(settings(tmp_path, steps=5), network(), batch, loss)


@pytest.mark.parametrize("wrong", [{"steps": None}, {"precision": "fp8"}, {"steps": 0}, {"hours": -1.0}])
def test_wrong_settings_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError):
        settings(tmp_path, **wrong)


def test_the_log_is_one_json_object_a_line(tmp_path):
    train(settings(tmp_path, steps=10), network(), batch, loss)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10] and all("loss" in line for line in lines)


def test_a_parameter_may_learn_at_a_share_of_the_rate(tmp_path):
    """The first step of Adam is as long as its rate, that of Muon has singular values of its rate."""
    for muon_lr in (None, 0.01):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        before = [p.detach().clone() for p in model.parameters()]
        config = LoopConfig(
            out=str(tmp_path / str(muon_lr)), steps=1, warmup=0, cooldown=0, lr=0.01, muon_lr=muon_lr, weight_decay=0.0
        )
        train(
            config,
            model,
            lambda step, generator: torch.randn(8, 4, generator=generator),
            lambda module, x: {"loss": module(x).square().mean()},
            rate=lambda name: 0.1 if name.startswith("1") else 1.0,
        )
        moved = [float((p.detach() - b).abs().mean()) for p, b in zip(model.parameters(), before, strict=True)]
        assert moved[3] / moved[1] == pytest.approx(0.1, rel=0.02)
        assert moved[2] / moved[0] == pytest.approx(0.1, rel=0.02 if muon_lr is None else 0.5)


def test_what_cannot_be_measured_in_a_step_is_left_out_of_the_log(tmp_path):
    """NaN is no JSON, and one would make the mean of all steps NaN."""
    values = iter([1.0, float("nan"), 3.0, float("nan")])

    def measured(model, data):
        share = torch.tensor(next(values))
        return {**loss(model, data), "share": share, "never": torch.tensor(float("nan"))}

    train(settings(tmp_path, steps=4, log_every=4), network(), batch, measured)
    lines = (tmp_path / "log.jsonl").read_text()
    assert "NaN" not in lines and json.loads(lines.splitlines()[0])["share"] == 2 and "never" not in lines


@pytest.mark.skipif(not loop.FORKS, reason="workers are forked")
def test_workers_make_the_same_batches_ahead(tmp_path):
    """Each in a process of its own: the same weights come out, and an error in one comes through."""
    alone, helped, made_by = network(), network(), set()

    def numbered(step, generator):
        return {"xy": batch(step, generator), "process": torch.tensor(os.getpid())}

    def watched(model, data):
        made_by.add(int(data["process"]))
        return loss(model, data["xy"])

    train(settings(tmp_path / "alone", workers=0), alone, numbered, watched)
    assert made_by == {os.getpid()}
    made_by.clear()
    train(settings(tmp_path / "helped", workers=2), helped, numbered, watched)
    assert len(made_by) == 2 and os.getpid() not in made_by
    for a, b in zip(alone.parameters(), helped.parameters(), strict=True):
        assert torch.equal(a, b)

    def broken(step, generator):
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        train(settings(tmp_path / "broken", workers=2), network(), broken, loss)
    with pytest.raises(ConfigError, match="workers"):
        settings(tmp_path, workers=-1)


def test_the_choice_of_kernels_is_the_training_s_alone(tmp_path):
    seen = []

    def watched(model, data):
        seen.append(torch.backends.cudnn.benchmark)
        return loss(model, data)

    def broken(model, data):
        raise OSError("no more")

    (tmp_path / "file").write_text("")
    for out, chosen, error in ((tmp_path / "file", loss, ConfigError), (tmp_path / "b", broken, OSError)):
        with pytest.raises(error):
            train(settings(out, steps=2), network(), batch, chosen)
        assert not torch.backends.cudnn.benchmark
    train(settings(tmp_path / "c", steps=2), network(), batch, watched)
    assert seen == [True, True] and not torch.backends.cudnn.benchmark
