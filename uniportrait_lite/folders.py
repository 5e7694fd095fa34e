"""Where weights lie, and whether a folder can be written to."""

import os
import tempfile
from pathlib import Path

import yaml

from uniportrait_lite.errors import ConfigError, WeightsError

SETTINGS = "profile.yaml"


def is_path(profile: str | os.PathLike) -> bool:
    """Whether a profile is meant by the way to its folder, as ./mine, and not by its name, as tiny."""
    return isinstance(profile, os.PathLike) or bool({os.sep, os.altsep} & {*profile}) or profile in (".", "..")


def data_folder(profile: str | os.PathLike = "tiny") -> Path:
    """The folder of a profile, which is its name, or the way to a folder of yours.

    Names are looked for under `UPL_DATA` if that is set, else in the repository's `data`, else in the package's. Raises
    `WeightsError` if none of them holds it.
    """
    if is_path(profile):
        if not Path(profile).expanduser().is_dir():
            raise WeightsError(f"there is no folder {profile}: give a profile's name, or the folder of one")
        return Path(profile).expanduser()
    package = Path(__file__).resolve().parent
    places = [package.parent / "data", package / "data"]
    if os.environ.get("UPL_DATA"):
        places = [Path(os.environ["UPL_DATA"]).expanduser()]
    for place in places:
        if (place / profile).is_dir():
            return place / profile
    raise WeightsError(
        f"no {profile} weights in {' or '.join(str(place) for place in places)}: run from a clone of the repository, "
        f"or set UPL_DATA to the folder that has {profile} in it"
    )


def profile_settings(folder: str | os.PathLike, part: str | None = None) -> dict:
    """What the `profile.yaml` of a profile's folder sets, for one part (a recipe or a stage) or for all of them.

    It holds a mapping of settings for each part, under the part's name. Nothing is set where there is no such file;
    `ConfigError` where it holds something else.
    """
    path = Path(folder) / SETTINGS
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        values = {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(settings, dict) for settings in values.values()):
        raise ConfigError(f"{path} holds settings by part, as in `unet: {{steps: 500, widths: [16, 32]}}`")
    return values if part is None else values.get(part, {})


def prompts_file(name: str) -> Path:
    """One of the files of evaluation prompts that come with the project."""
    return data_folder().parent / "prompts" / name


def writable_folder(folder: str | os.PathLike, mend: str) -> Path:
    """The folder, made where it is missing; `ConfigError` that ends with `mend` where nothing can be written in it."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write in {folder} ({error.strerror}): {mend}") from error
    return folder


def runs_folder(profile: str) -> Path:
    """Where the trainings of a profile are: `runs`, of another than tiny a folder of its name in it."""
    return Path("runs") if profile == "tiny" else Path("runs") / Path(profile).resolve().name
