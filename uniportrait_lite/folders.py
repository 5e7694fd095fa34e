"""Where weights lie, and whether a folder can be written to."""

import os
import tempfile
from pathlib import Path

from uniportrait_lite.errors import ConfigError, WeightsError


def data_folder(profile: str = "tiny") -> Path:
    """Where a profile's weights lie: under `UPL_DATA` if that is set, else the repository's `data`, else the package's.

    Raises `WeightsError` if none of them holds it.
    """
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
