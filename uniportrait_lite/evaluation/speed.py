"""The speed protocol: a fresh process loads a profile and draws; its seconds and memory beside the project's goals."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from uniportrait_lite.errors import ConfigError, UniPortraitError
from uniportrait_lite.evaluation.report import check_folder, markdown, shown, write_json, write_text
from uniportrait_lite.folders import data_folder
from uniportrait_lite.pictures import read_picture

# Seconds, seconds, GB, for two CPU cores; then times of two and of three people, as shares of the time of one.
GOALS = {"first": 6.0, "further": 3.0, "memory": 2.0, "two": 1.15, "three": 1.2}
PROMPT = "a portrait of a person, smiling, at the beach"
FURTHER = 5

_DESCRIPTION = """\
Starts a process, as a user would, that loads the profile, reads a face and draws portraits one at a time, with the
weights' own settings; then pictures of one, two and three people of one size, in turn. Writes speed.md and speed.json
into --out, and prints the table. Files that were read lately are in the system's memory: right after a start of the
machine, loading takes longer.
"""
_EPILOG = """\
examples:
  python -m uniportrait_lite evaluate speed
  taskset -c 0,1 python -m uniportrait_lite evaluate speed       on two cores of a larger machine (Linux)
"""


def evaluate(profile: str, face: Path, rounds: int = 10) -> dict:
    """Seconds from the start of a process to its first portrait, of each further one, its peak memory in GB, and what
    two and three people take, as shares of what one does."""
    settings = [profile, str(face), str(rounds), str(time.time())]
    command = [sys.executable, "-c", f"from {__name__} import report; report()", *settings]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UniPortraitError(f"no portrait was drawn: {(done.stderr.strip() or 'stopped').splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def report() -> None:
    """What the process does that `evaluate` starts: prints its figures as JSON."""
    profile, face, rounds, started = sys.argv[1:]
    import torch

    import uniportrait_lite
    from uniportrait_lite.toyworld.pretrain.record import hardware

    try:
        up = uniportrait_lite.load(profile)
        identity = up.identity(face)
        up(PROMPT, [identity], seed=0)
    except UniPortraitError as error:
        sys.exit(str(error))
    first, seconds = time.time() - float(started), []
    for seed in range(1, FURTHER + 1):
        began = time.perf_counter()
        up(PROMPT, [identity], seed=seed)
        seconds.append(time.perf_counter() - began)
    found = {"first": first, "further": statistics.median(seconds), "seconds": seconds, "memory": peak_memory()}
    width = up.config.defaults.widths[2]
    times: dict[int, list[float]] = {1: [], 2: [], 3: []}
    for seed in range(int(rounds)):
        for count, taken in times.items():
            began = time.perf_counter()
            up(PROMPT, [identity] * count, seed=seed, width=width, height=128)
            taken.append(time.perf_counter() - began)
    alone, two, three = (statistics.median(taken) for taken in times.values())
    found |= {"two": two / alone, "three": three / alone, "people": times}
    print(json.dumps(found | {"threads": torch.get_num_threads(), "hardware": hardware()}))


def peak_memory() -> float | None:
    """The most memory that this process held so far, in GB of 1e9 bytes (VmHWM); None on systems other than Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e9


def speed_markdown(found: dict) -> str:
    """The table of figures beside their goals."""
    names = {
        "first": "seconds to the first portrait, loading included",
        "further": f"seconds for each further one, median of {FURTHER}",
        "memory": "peak memory with one person, GB",
        "two": "two people in a picture, times one in a picture of that size",
        "three": "three people, times one",
    }

    def verdict(value: float | None, goal: float) -> str | None:
        return None if value is None else "yes" if value <= goal else "no"

    rows = [
        (name, shown(found[key], 2), f"at most {GOALS[key]:g}", verdict(found[key], GOALS[key]))
        for key, name in names.items()
    ]
    table = markdown(("", "measured", "goal on two cores", "met"), rows)
    return f"# Speed\n\nOn {found['hardware']}, torch on {found['threads']} of them.\n\n{table}\n"


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m uniportrait_lite evaluate speed`."""
    parser = argparse.ArgumentParser(
        prog="python -m uniportrait_lite evaluate speed",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--profile", default="tiny", help="tiny, or the folder of a profile of yours (default: tiny)")
    parser.add_argument("--face", metavar="PATH", help="a picture of one person (default: data/faces/ann.png)")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="pictures of each number (default: 10)")
    parser.add_argument("--out", default="outputs/evaluation", metavar="FOLDER", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    face = Path(args.face) if args.face else data_folder().parent / "faces" / "ann.png"
    read_picture(face)  # its errors come before any process
    out = check_folder(args.out)
    if args.rounds < 1:
        raise ConfigError(f"--rounds is at least 1, not {args.rounds}")
    found = evaluate(args.profile, face, args.rounds)
    write_json(found | {"goals": GOALS}, out / "speed.json")
    write_text(speed_markdown(found), out / "speed.md")
    print(speed_markdown(found))
    print(f"written to {out}: speed.md, speed.json")
