"""The command line: portraits, comparisons, trainings and evaluations.

Modules that do the work are imported when their command runs, so that help comes at once. Exit codes: 0 done, 1 an
error that the user can mend (its message alone on stderr), 2 wrong usage.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from uniportrait_lite import __version__
from uniportrait_lite.errors import UniPortraitError

PROGRAM = "python -m uniportrait_lite"
RECIPES = ("recogniser", "vae", "clip", "judge", "reader", "detector", "unet", "pose", "edges", "all")

_EPILOG = f"""\
examples:
  {PROGRAM} demo
      the people in data/faces, each in four portraits: outputs/portraits.png
  {PROGRAM} portrait --face data/faces/ann.png --prompt "a portrait of a woman in the snow" --out ann.png
      one portrait of your own wording
  {PROGRAM} compare data/faces/ann.png ann.png
      how alike the judge finds the two

`{PROGRAM} COMMAND --help` explains each command.
"""

_PORTRAIT = f"""\
What happens: the face is found and aligned, an ID embedding is made of it, and the diffusion model listens to it beside
the prompt. The prompt says all that should differ from the reference: hat, glasses, clothes, expression, place, style.

examples:
  {PROGRAM} portrait --face ann.png --prompt "a smiling woman with a red beret" --out out.png
  {PROGRAM} portrait --face ann_1.png --face ann_2.png --prompt "a woman, comic style" --out out.png
      two references of the same person hold more of them than one
  {PROGRAM} portrait --face crowd.png --which largest --prompt "a man at the beach" --out out.png
      a picture with several faces: the largest one, or a number from left to right, from 0
  {PROGRAM} portrait --face ann.png --prompt "a woman" --num-images 4 --out out.png
      out_1.png to out_4.png, which differ in their noise
  {PROGRAM} portrait --face ann.png --and bob.png --prompt "two people in the park" --out both.png
      two people in one picture; --distinct draws again where someone is missing or there twice
"""

_COMPARE = f"""\
The judge is a face recogniser that conditions nothing, and scores every portrait of the project: no network that draws
was trained with it. 1 is the same picture, 0 is as alike as strangers;
two pictures of the same person, and of two people, come out as data/README.md says.

example:
  {PROGRAM} compare data/faces/ann.png data/faces/ann_2.png
"""

_DEMO = f"""\
The picture has a row for each person: the reference, then the portraits. The table says how alike each portrait is to
its reference and, for comparison, to the other people's.

examples:
  {PROGRAM} demo
  {PROGRAM} demo --faces my_faces --out outputs/mine.png --seed 3
"""

_GALLERY = f"""\
Portraits, styles, pairs, triples, mixtures of two people, and the portraits that are least alike, with similarities.
Seeds are fixed: the same weights draw the same pictures.

example:
  {PROGRAM} gallery
"""

_PRETRAIN = f"""\
Each recipe draws its own data (nothing is downloaded), trains, and writes into data/tiny with a record of settings,
steps, seconds, curve and metrics. Stopped at any moment, the same command goes on from its last checkpoint in runs/.
`all` runs them in the order in which they need each other. Any setting of a recipe is a flag (--settings lists them).

examples:
  {PROGRAM} pretrain vae --settings
  {PROGRAM} pretrain vae --hours 0.5
  {PROGRAM} pretrain unet --steps 200 --out runs/try --folder runs/try/sd
      a short try that leaves data/tiny as it is
  {PROGRAM} pretrain all
"""

_WEIGHTS = f"""\
The recipes of `pretrain all`, then both stages of `train`, then the page about them. Stopped at any moment, or carried
to another machine with the folder runs/, the same command goes on. With --hours each part gets its share of them in
place of its number of steps; drawing pictures and measuring come on top. The weights in the profile's folder are
replaced one by one: until the last part is done they do not belong together.

A profile of your own is a folder with two files, both optional:
  profile.yaml   settings by part, as `unet: {{steps: 4000, widths: [32, 64, 96]}}`; see `pretrain NAME --settings` and
                 `train STAGE --help` for their names
  world.py       drawings of your own: a function group(people, seed, **fixed), see uniportrait_lite/toyworld/worlds.py

examples:
  {PROGRAM} weights --hours 8
  {PROGRAM} weights --profile ./my_world
  {PROGRAM} evaluate identity --profile ./my_world
"""

_TRAIN = f"""\
stages:
  single_id   the ID embedding, its attention layers and a LoRA learn to draw any one person
  multi_id    after it: routers and a second LoRA learn to draw several people, each in their own face

examples:
  {PROGRAM} train single_id --profile tiny
  {PROGRAM} train multi_id --profile tiny
  {PROGRAM} train single_id --help
      every setting of the stage; a YAML file of settings is --config FILE
"""

_EVALUATE = f"""\
protocols:
  identity   people whom no network was trained on: how alike portraits are to their references, how well prompts are
             followed, beside the ceiling (real pictures), the floor (other people) and the ablations
  people     the same people in pairs and triples: who is there, who is missing, who is like whom, beside the ways
             without a router, and masks
  compose    the same people beside ControlNets, and in pictures that there are: what each tool costs identity, and
             identity the tool
  stack      the networks below: judge, detector, autoencoder and text to image, beside the project's goals
  schedulers identity and prompt following against steps, for the usual samplers
  speed      seconds to the first and to each further portrait, and memory, beside the project's goals

examples:
  {PROGRAM} evaluate identity --profile tiny
  {PROGRAM} evaluate speed
  {PROGRAM} evaluate identity --help
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, a function of the parsed arguments and what is left over."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Portraits of people from reference pictures of their faces (UniPortrait, arXiv 2408.05939).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"uniportrait-lite {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run, help: str, epilog: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(run=run, parser=added)
        return added

    portrait = command(
        "portrait", _portrait, "draw portraits of the person, or the people, on your pictures", _PORTRAIT
    )
    portrait.add_argument(
        "--face",
        action="append",
        required=True,
        metavar="PATH",
        help="a picture of the person; give it again for more pictures of the same person",
    )
    portrait.add_argument(
        "--and",
        action="append",
        default=[],
        dest="others",
        metavar="PATH",
        help="a picture of another person, for the same portrait; again for a third, and so on",
    )
    portrait.add_argument("--distinct", action="store_true", help="draw again where someone is missing or there twice")
    portrait.add_argument("--prompt", required=True, metavar="TEXT", help="what the portrait should show")
    portrait.add_argument("--out", required=True, metavar="FILE", help="where to save it (.png, .jpg or .webp)")
    portrait.add_argument(
        "--which",
        type=_which,
        metavar="largest|N",
        help="which face of a picture with several, for every picture: the largest, or a number from left to right",
    )
    portrait.add_argument("--seed", type=int, default=0, help="another seed, another portrait (default: 0)")
    portrait.add_argument("--num-images", type=_count, default=1, metavar="N", help="how many portraits (default: 1)")
    portrait.add_argument("--steps", type=_count, help="denoising steps: more are slower and finer")
    portrait.add_argument("--guidance", type=float, help="how strongly prompt and face are followed")
    portrait.add_argument("--id-scale", type=float, help="how strongly the face is followed; 0 ignores it")
    portrait.add_argument(
        "--structure-scale", type=float, help="how much of the reference's pose and fine structure comes along"
    )
    portrait.add_argument("--profile", default="tiny", help="tiny, or the folder of a profile of yours (default: tiny)")

    compare = command("compare", _compare, "say how alike the faces on two pictures are", _COMPARE)
    compare.add_argument("a", metavar="A", help="a picture; of several faces the largest counts")
    compare.add_argument("b", metavar="B", help="another")

    gallery = command("gallery", _gallery, "draw people whom nobody chose, and write a page about it", _GALLERY)
    gallery.add_argument(
        "--out", default="outputs", metavar="FOLDER", help="gets gallery.md and gallery/*.webp (default: %(default)s)"
    )

    demo = command("demo", _demo, "draw each person of a folder in four portraits, and say how alike they are", _DEMO)
    demo.add_argument(
        "--faces",
        default="data/faces",
        metavar="FOLDER",
        help="reference pictures; NAME_2.png is another picture of NAME.png's person (default: %(default)s)",
    )
    demo.add_argument("--out", default="outputs/portraits.png", metavar="FILE", help="(default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="(default: 0)")

    pretrain = command("pretrain", _pretrain, "train the networks of the tiny profile from nothing", _PRETRAIN)
    pretrain.add_argument("recipe", choices=RECIPES, help="which network")
    pretrain.add_argument("--profile", default="tiny", help="tiny, or the folder of a profile of yours (default: tiny)")
    pretrain.add_argument("--settings", action="store_true", help="list the recipe's settings, and train nothing")

    weights = command("weights", _weights, "train every network of a profile, in order", _WEIGHTS)
    weights.add_argument("--profile", default="tiny", help="tiny, or the folder of a profile of yours (default: tiny)")
    weights.add_argument("--hours", type=float, help="time for all trainings together (default: by steps)")

    for name, run, help, epilog, choices in (
        ("train", _train, "train the identity modules on top of a profile's frozen networks", _TRAIN, _STAGES),
        ("evaluate", _evaluate, "measure portraits of people who were never trained on", _EVALUATE, _PROTOCOLS),
    ):
        added = command(name, run, help, epilog)
        inner = added.add_subparsers(dest="what", metavar="|".join(choices), required=True)
        for choice in choices:
            inner.add_parser(choice, add_help=False, allow_abbrev=False)  # its own --help is the module's
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (argparse itself exits with 2 where the usage is wrong)."""
    args, rest = build_parser().parse_known_args(argv)
    try:
        args.run(args, rest)
    except UniPortraitError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped", file=sys.stderr)
        return 130
    return 0


# --- the commands -----------------------------------------------------------------------------------------------------
def _portrait(args: argparse.Namespace, rest: list[str]) -> None:
    _no_more(args, rest)
    import uniportrait_lite
    from uniportrait_lite.pictures import savable, save_picture

    targets = [savable(target) for target in _targets(Path(args.out), args.num_images)]  # before minutes of drawing
    up = uniportrait_lite.load(args.profile)
    people = [up.identity(pictures, face=args.which) for pictures in (args.face, *([other] for other in args.others))]
    names = ("steps", "guidance", "id_scale", "structure_scale")
    knobs = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    out = up(args.prompt, people, seed=args.seed, num_images=args.num_images, distinct=args.distinct, **knobs)
    for image, target in zip(out.images, targets, strict=True):
        print(save_picture(image, target))


def _compare(args: argparse.Namespace, rest: list[str]) -> None:
    _no_more(args, rest)
    from uniportrait_lite.evaluation import face_similarity

    print(f"similarity {face_similarity(args.a, args.b):.3f}")


def _gallery(args: argparse.Namespace, rest: list[str]) -> None:
    _no_more(args, rest)
    from uniportrait_lite import gallery

    print(gallery.run(args.out))


def _demo(args: argparse.Namespace, rest: list[str]) -> None:
    _no_more(args, rest)
    from uniportrait_lite import demo

    demo.run(args.faces, args.out, seed=args.seed)


def _pretrain(args: argparse.Namespace, rest: list[str]) -> None:
    from uniportrait_lite.toyworld.pretrain import flags, run

    if args.settings:
        print(flags.listing(args.recipe))
    else:
        run(args.recipe, args.profile, **flags.read(args.recipe, rest))


def _weights(args: argparse.Namespace, rest: list[str]) -> None:
    _no_more(args, rest)
    from uniportrait_lite import weights

    print(f"weights in {_quietly(lambda: weights.run(args.profile, args.hours))}")


def _train(args: argparse.Namespace, rest: list[str]) -> None:
    _quietly(_STAGES[args.what])(rest)


def _evaluate(args: argparse.Namespace, rest: list[str]) -> None:
    _quietly(_PROTOCOLS[args.what])(rest)


def _quietly(load):
    """What `load` imports, without the libraries' advice."""
    from uniportrait_lite.quiet import no_progress_bars

    with no_progress_bars():
        return load()


def _single_id():
    from uniportrait_lite.training.single_id import main

    return main


def _multi_id():
    from uniportrait_lite.training.multi_id import main

    return main


def _identity():
    from uniportrait_lite.evaluation.identity import main

    return main


def _people():
    from uniportrait_lite.evaluation.people import main

    return main


def _composition():
    from uniportrait_lite.evaluation.composition import main

    return main


def _stack():
    from uniportrait_lite.evaluation.stack import main

    return main


def _speed():
    from uniportrait_lite.evaluation.speed import main

    return main


def _schedulers():
    from uniportrait_lite.evaluation.schedulers import main

    return main


_STAGES = {"single_id": _single_id, "multi_id": _multi_id}
_PROTOCOLS = {
    "identity": _identity,
    "people": _people,
    "compose": _composition,
    "stack": _stack,
    "speed": _speed,
    "schedulers": _schedulers,
}


# --- what they are given ----------------------------------------------------------------------------------------------
def _no_more(args: argparse.Namespace, rest: list[str]) -> None:
    if rest:
        args.parser.error(f"unrecognized arguments: {' '.join(rest)}")


def _which(text: str) -> str | int:
    if text == "largest":
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'largest' or the number of a face from 0, not {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, not {text!r}")
    return int(text)


def _targets(out: Path, count: int) -> list[Path]:
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}_{number}{out.suffix}") for number in range(1, count + 1)]
