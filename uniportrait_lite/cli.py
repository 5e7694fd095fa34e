"""The command line: portraits, comparisons, trainings and evaluations.

Modules that do the work are imported when their command runs, so that help comes at once. Exit codes: 0 done, 1 an
error that the user can mend (its message alone on stderr), 2 wrong usage.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from uniportrait_lite import __version__, cli_help
from uniportrait_lite.cli_help import PROGRAM
from uniportrait_lite.errors import UniPortraitError

RECIPES = ("recogniser", "vae", "clip", "judge", "reader", "detector", "unet", "pose", "edges", "image", "style", "all")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, a function of the parsed arguments and what is left over."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Portraits of people from reference pictures of their faces (UniPortrait, arXiv 2408.05939).",
        epilog=cli_help.EPILOG,
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
        "portrait", _portrait, "draw portraits of the person, or the people, on your pictures", cli_help.PORTRAIT
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
    portrait.add_argument("--image-prompt", metavar="FILE", help="a picture whose look and content come along")
    portrait.add_argument("--image-scale", type=float, help="how much of it, from 0 (default: 1)")
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
    for side in ("width", "height"):
        portrait.add_argument(f"--{side}", type=_count, metavar="PIXELS", help=f"the picture's {side}, a multiple of 8")
    portrait.add_argument("--guidance", type=float, help="how strongly prompt and face are followed")
    portrait.add_argument("--id-scale", type=float, help="how strongly the face is followed; 0 ignores it")
    portrait.add_argument(
        "--structure-scale", type=float, help="how much of the reference's pose and fine structure comes along"
    )
    portrait.add_argument(
        "--columns", type=float, help="share of the denoising in which each of several people keeps to a column, 0 to 1"
    )
    portrait.add_argument(
        "--profile", default="tiny", help="tiny, sd15, or the folder of a profile of yours (default: tiny)"
    )
    _takes_parts(portrait)
    plan = portrait.add_argument_group("how it runs", "chosen from the hardware where not given; the last two for sd15")
    plan.add_argument("--device", metavar="DEVICE", help="cuda, mps or cpu")
    plan.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), help="precision of the networks")
    plan.add_argument("--offload", action=argparse.BooleanOptionalAction, help="networks wait in main memory")
    plan.add_argument("--tiling", action=argparse.BooleanOptionalAction, help="decode pictures tile by tile")

    compare = command("compare", _compare, "say how alike the faces on two pictures are", cli_help.COMPARE)
    compare.add_argument("a", metavar="A", help="a picture; of several faces the largest counts")
    compare.add_argument("b", metavar="B", help="another")

    gallery = command("gallery", _gallery, "draw people whom nobody chose, and write a page about it", cli_help.GALLERY)
    gallery.add_argument(
        "--out", default="outputs", metavar="FOLDER", help="gets gallery.md and gallery/*.webp (default: %(default)s)"
    )

    demo = command(
        "demo", _demo, "draw each person of a folder in four portraits, and say how alike they are", cli_help.DEMO
    )
    demo.add_argument(
        "--faces",
        default="data/faces",
        metavar="FOLDER",
        help="reference pictures; NAME_2.png is another picture of NAME.png's person (default: %(default)s)",
    )
    demo.add_argument("--out", default="outputs/portraits.png", metavar="FILE", help="(default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="(default: 0)")

    pretrain = command("pretrain", _pretrain, "train the networks of the tiny profile from nothing", cli_help.PRETRAIN)
    pretrain.add_argument("recipe", choices=RECIPES, help="which network")
    pretrain.add_argument("--profile", default="tiny", help="tiny, or the folder of a profile of yours (default: tiny)")
    pretrain.add_argument("--settings", action="store_true", help="list the recipe's settings, and train nothing")

    weights = command("weights", _weights, "train every network of a profile, in order", cli_help.WEIGHTS)
    weights.add_argument("--profile", default="tiny", help="tiny, or the folder of a profile of yours (default: tiny)")
    weights.add_argument("--hours", type=float, help="time for all trainings together (default: by steps)")
    weights.add_argument("--onward", action="store_true", help="train what draws on from the weights that are there")

    fetch = command("fetch", _fetch, "download the files of a profile ahead", cli_help.FETCH)
    fetch.add_argument("profile", choices=["sd15"], help="tiny comes with the repository")
    _takes_parts(fetch)

    doctor = command("doctor", _doctor, "say what is there, what is missing, and what will run", cli_help.DOCTOR)
    _takes_parts(doctor)

    rehearse = command("rehearse", _rehearse, "try a profile of full size with random weights", cli_help.REHEARSE)
    rehearse.add_argument("profile", choices=["sd15"], help="which profile")
    rehearse.add_argument("--out", required=True, metavar="FOLDER", help="gets the files and the pictures")
    rehearse.add_argument("--small", action="store_true", help="narrow networks: seconds in place of minutes")
    rehearse.add_argument("--steps", type=_count, metavar="N", help="of a picture (default: those of the weights, 20)")
    rehearse.add_argument("--rounds", type=_count, default=3, metavar="N", help="the median of them (default: 3)")
    rehearse.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    rehearse.add_argument("--dtype", help="float16, bfloat16 or float32 (default: by the device)")

    for name, run, help, epilog, choices in (
        ("train", _train, "train the identity modules on top of a profile's frozen networks", cli_help.TRAIN, _STAGES),
        ("evaluate", _evaluate, "measure portraits of people who were never trained on", cli_help.EVALUATE, _PROTOCOLS),
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
    plan = {name: getattr(args, name) for name in ("device", "dtype", "offload", "tiling")}
    up = uniportrait_lite.load(args.profile, **plan, **_parts(args))
    people = [up.identity(pictures, face=args.which) for pictures in (args.face, *([other] for other in args.others))]
    names = ("steps", "guidance", "id_scale", "structure_scale", "columns", "image_prompt", "image_scale")
    names += ("width", "height")
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
    from uniportrait_lite import onward, weights

    train = onward.run if args.onward else weights.run
    print(f"weights in {_quietly(lambda: train(args.profile, args.hours))}")


def _fetch(args: argparse.Namespace, rest: list[str]) -> None:
    _no_more(args, rest)
    from uniportrait_lite import places

    for name, place in places.fetch(_parts(args)).items():
        print(f"{name}: {place.path}; licence: {place.licence}")


def _doctor(args: argparse.Namespace, rest: list[str]) -> None:
    _no_more(args, rest)
    from uniportrait_lite import doctor

    for line in doctor.report(_parts(args)):
        print(line, flush=True)


def _rehearse(args: argparse.Namespace, rest: list[str]) -> None:
    _no_more(args, rest)

    def rehearse() -> None:
        from uniportrait_lite import rehearsal

        rehearsal.run(args.out, args.small, args.steps, args.rounds, args.device, args.dtype)

    _quietly(rehearse)


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


def _operations():
    from uniportrait_lite.evaluation.operations import main

    return main


_STAGES = {"single_id": _single_id, "multi_id": _multi_id}
_PROTOCOLS = {
    "identity": _identity, "people": _people, "compose": _composition, "stack": _stack, "schedulers": _schedulers,
    "speed": _speed, "operations": _operations,
}  # fmt: skip


# --- what they are given ----------------------------------------------------------------------------------------------
def _no_more(args: argparse.Namespace, rest: list[str]) -> None:
    if rest:
        args.parser.error(f"unrecognized arguments: {' '.join(rest)}")


_PARTS = ("base", "weights", "ip_adapter", "faces")


def _takes_parts(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("parts of sd15", "a repository of the Hugging Face Hub, or a folder or file")
    group.add_argument("--base", metavar="PLACE", help="a Stable Diffusion 1.5 checkpoint (one .safetensors will do)")
    group.add_argument("--weights", metavar="PLACE", help="the published UniPortrait, or weights of yours")
    group.add_argument("--ip-adapter", metavar="PLACE", help="IP-Adapter, and CLIP ViT-H in image_encoder beside it")
    group.add_argument("--faces", metavar="PLACE", help="one of insightface's packages by name, or a folder with one")


def _parts(args: argparse.Namespace) -> dict[str, str | None]:
    return {name: getattr(args, name) for name in _PARTS}


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
