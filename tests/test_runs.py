"""Long runs in notebooks: watched while they go on, the same words everywhere when they are done."""

import json

import pytest

from uniportrait_lite.errors import ConfigError
from uniportrait_lite.learn import runs, viz

# A program in the place of the package's command: it writes a log as a training does, with its argument as the folder.
TRAINING = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
for step in (1, 2, 3):
    with open(folder / "log.jsonl", "a") as log:
        log.write(json.dumps({"step": step, "seconds": step / 10, "loss": 1 / step}) + "\\n")
    print("step", step, flush=True)
    time.sleep(0.4)
"""
FAILING = "import sys; print('reading'); sys.exit('no setting is called stpes')"


@pytest.fixture
def shown(monkeypatch):
    """The texts of the plots that are displayed, in order, and what the line below them said."""
    seen = []

    class Handle:
        def update(self, data, **_):
            seen.append(data["text/plain"])

    def display(data, **_):
        seen.append(repr(data) if not isinstance(data, dict) else data["text/plain"])
        if hasattr(data, "observe"):
            data.observe(lambda change: seen.append(change["new"]), "value")
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    return seen


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Makes a text what `python -m` runs."""

    def put(text):
        (tmp_path / "a_program.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(runs, "PROGRAM", "a_program")
        monkeypatch.setattr(runs, "LOOK", 0.1)

    return put


def test_a_run_is_drawn_as_its_log_grows(shown, program, tmp_path):
    program(TRAINING)
    lengths = []

    def draw(log):
        lengths.append(len(log))
        return viz.curves(log, 3, {"loss": {"loss": "training"}})

    log = runs.watch([tmp_path / "run"], tmp_path / "run", draw, "a curve")
    assert [line["step"] for line in log] == [1, 2, 3]
    assert lengths[0] == 0 and lengths[-1] == 3 and len(lengths) > 1
    assert shown[0] == "a curve" and shown[-1] == "the run is finished"
    assert [words for words in shown if words.startswith("step ")]  # what the command said meanwhile


def test_a_run_that_fails_says_why(shown, program, tmp_path):
    program(FAILING)
    with pytest.raises(ConfigError, match="the run stopped: reading no setting is called stpes"):
        runs.watch([], tmp_path, lambda log: viz.curves(log, 3, {"loss": {"loss": "training"}}), "a curve")


def test_interrupting_ends_the_run(shown, program, tmp_path):
    program(TRAINING.replace("(1, 2, 3)", "range(1, 1000)"))

    def draw(log):
        if log:
            raise KeyboardInterrupt
        return viz.curves(log, 3, {"loss": {"loss": "training"}})

    with pytest.raises(KeyboardInterrupt):
        runs.watch([tmp_path / "run"], tmp_path / "run", draw, "a curve")
    before = len(runs.read_log(tmp_path / "run"))
    assert 0 < before < 20 and len(runs.read_log(tmp_path / "run")) == before


def test_a_log_that_is_being_written_is_read_as_far_as_it_is_whole(tmp_path):
    assert runs.read_log(tmp_path) == []
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo')
    assert runs.read_log(tmp_path) == [{"step": 1}]


def test_curves_draw_what_the_log_has_of_each_name():
    log = [{"step": k, "seconds": 2.0 * k, "loss": 1 / k} for k in range(1, 30)] + [{"step": 29, "alike": 0.4}]
    panels = {"loss": {"loss": "training"}, "similarity": {"alike": "this run", "missing": "nothing"}}
    drawing = viz.curves(log, 50, panels, {"similarity": {"goal": 0.5}})
    left, right = drawing.axes
    assert [len(line.get_xdata()) for line in left.lines] == [29]
    assert [line.get_label() for line in right.lines] == ["this run", "nothing", "goal"]
    assert drawing._suptitle.get_text() == "step 29 of 50, 58 seconds"
