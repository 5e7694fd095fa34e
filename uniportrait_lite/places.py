"""Where the parts of `sd15` lie on this machine, and how what is missing gets there. Nothing here needs torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.parts import OURS, PARTS, SETTINGS, Need, Part, is_ours, package_name

PACKAGES = Path("~/.insightface/models")  # where insightface unpacks its packages


@dataclass(frozen=True)
class Place:
    """Where a part lies: `path`, a folder or a file, or the name of an insightface package; `missing` what is not."""

    part: Part
    given: str
    path: Path | str | None
    missing: tuple[Need, ...] = ()

    @property
    def published(self) -> bool:
        """Whether it is the part's default, whose sizes and licence are known."""
        return self.given == self.part.default

    @property
    def licence(self) -> str:
        """The licence of what lies there, in words."""
        if self.published:
            return self.part.licence
        if isinstance(self.path, Path) and (self.path / OURS).is_file():
            return "Apache-2.0 (this project's own)"
        if self.part.name == "faces" and package_name(self.given):
            return self.part.licence  # of all of insightface's packages
        return "its own (see where you have it from)"

    @property
    def downloadable(self) -> bool:
        """Whether the place is one to fetch from: a repository, or an insightface package by name."""
        return bool(package_name(self.given)) if self.part.name == "faces" else _is_hub_id(self.given)


def find(
    given: Mapping[str, str | os.PathLike | None] | None = None, only: Collection[str] = tuple(PARTS)
) -> dict[str, Place]:
    """Where each part, or `only` some of them, lies on this machine, by its name, without any network.

    `given`: places by the part's name; None, or a part that is not named: its default. A base that is one file also
    needs `settings`: those beside it, or the default's. Raises `ConfigError` for the name of no part.
    """
    given = {name: value for name, value in (given or {}).items() if value is not None}
    if unknown := given.keys() - PARTS.keys():
        raise ConfigError(f"sd15 has no part {', '.join(sorted(unknown))}: its parts are {', '.join(PARTS)}")
    ours = is_ours(given.get("weights", ""))  # their config says where their encoders are
    names = [name for name in PARTS if name in only and (not ours or name in {"base", "weights", *given})]
    places = {name: _place(PARTS[name], str(given.get(name, PARTS[name].default))) for name in names}
    base = places["base"].path if "base" in places else None
    if isinstance(base, Path) and base.is_file():
        beside = (base.parent / "model_index.json").is_file()
        places["settings"] = _place(SETTINGS, str(base.parent) if beside else SETTINGS.default)
    return places


def fetch(
    given: Mapping[str, str | os.PathLike | None] | None = None, only: Collection[str] = tuple(PARTS)
) -> dict[str, Place]:
    """As `find`, after what is missing has been downloaded; `WeightsError` that lists what still is.

    The Hub's own environment variables hold (`HF_HOME`, `HF_HUB_OFFLINE`, `HF_ENDPOINT`), downloads that were broken
    off go on where they were, and progress bars are shown.
    """
    places, reason = find(given, only), ""
    for place in sorted(places.values(), key=lambda place: place.downloadable):  # errors come before gigabytes
        if place.missing and not reason:
            reason = _download(place)
    places = find(given, only)
    if any(place.missing for place in places.values()):
        raise WeightsError(lacking(places, reason))
    return places


def lacking(places: Mapping[str, Place], reason: str = "") -> str:
    """What is missing: each file's size, where it comes from, its licence, and where to put it."""
    lines = [f"sd15 lacks files{f', and could not fetch them ({reason})' if reason else ''}:"]
    for place in places.values():
        if not place.missing:
            continue
        part, known = place.part, place.published
        origin = part.origin if known else f"{place.given}, as given"
        lines.append(f"  {part.name}: {part.what}; from {origin}; licence: {place.licence}")
        for need in place.missing:
            lines.append(f"    {need.names[0]}, {megabytes(need.megabytes) if known else 'of a size unknown here'}")
        lines.append(f"    {_where(place)}")
    return "\n".join([*lines, "With a network, `python -m uniportrait_lite fetch sd15` fetches all that is published."])


def megabytes(count: int) -> str:
    """A size in words."""
    return f"{count / 1000:.1f} GB" if count >= 1000 else f"{max(count, 1)} MB"


# Where things lie


def _place(part: Part, given: str) -> Place:
    if part.name == "faces":
        return _faces(part, given)
    path = Path(given).expanduser()
    if path.exists():
        return Place(part, given, path, tuple(_missing_beside(part, path)))
    if _is_hub_id(given):
        return _cached(part, given)
    return Place(part, given, None, (Need((given,), 0),))


def _is_hub_id(given: str) -> bool:
    owner, _, name = given.partition("/")
    plain = bool(owner and name) and "/" not in name and not given.startswith((".", "~"))
    return plain and not name.endswith((".safetensors", ".bin")) and not Path(given).exists()


def _missing_beside(part: Part, path: Path) -> Iterator[Need]:
    """What a folder or a file of the user's lacks."""
    if part.name == "base" and path.is_file():
        return
    if part.name == "weights" and is_ours(path):
        return
    folder = path.parent if path.is_file() else path
    for need in part.needs:
        if need.optional or need.within(folder):
            continue
        if path.is_file() and need is part.needs[0] and path.suffix in {Path(name).suffix for name in need.names}:
            continue  # this file, under a name of its own
        yield need


def _cached(part: Part, repository: str) -> Place:
    """A repository's files in the Hub's cache."""
    folder, missing = None, []
    for need in part.needs:
        found = next(filter(None, (_in_cache(repository, name) for name in need.names)), None)
        if found is None:
            missing.append(need)
        elif folder is None:
            folder = found
    if folder is not None and missing:
        missing = [need for need in missing if not (need.optional and _does_without(part, repository, folder, need))]
    return Place(part, repository, folder, tuple(missing))


def _does_without(part: Part, repository: str, folder: Path, need: Need) -> bool:
    """Whether a repository is complete without an optional file: many a base has no safety checker."""
    index = folder / "model_index.json"
    if not index.is_file():
        return repository != part.default
    component = json.loads(index.read_text(encoding="utf-8")).get(need.names[0].split("/")[0])
    return component in (None, [None, None])


def _in_cache(repository: str, name: str) -> Path | None:
    """The folder of the repository's snapshot that has the file, None if none has."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, name)
    return Path(found).parents[len(Path(name).parts) - 1] if isinstance(found, str) else None


def _faces(part: Part, given: str) -> Place:
    name = package_name(given)
    folder = PACKAGES.expanduser() / name if name else Path(given).expanduser()
    there = folder.is_dir() and any(folder.glob("*.onnx"))
    return Place(part, given, (name or folder) if there else None, () if there else part.needs)


def _where(place: Place) -> str:
    """Where to put what is missing."""
    name = place.part.name
    if name == "faces":
        package = package_name(place.given)
        return f"unpack it to {PACKAGES / (package or 'buffalo_l')}, or give a folder of ONNX files as faces=FOLDER"
    if name == "settings":
        return "put these beside the base's file, in folders as diffusers has them"
    if not place.downloadable:
        if place.path is None:
            return f"check the way to it, or leave {name} out to take {place.part.default}"
        return f"put it into {place.path if place.path.is_dir() else place.path.parent}"
    return f"put it into a folder, and give that as {name}=FOLDER (--{name.replace('_', '-')} FOLDER)"


# Downloads


def _download(place: Place) -> str:
    """Downloads what a part lacks; returns why that was not possible, "" if it was."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError

    if not place.downloadable:
        return f"there is no {place.given}" if place.path is None else f"{place.given} is a place of yours"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    download: Callable[[Place], None] = _download_faces if place.part.name == "faces" else _download_files
    try:
        download(place)
    except (OSError, HTTPError, RuntimeError, EOFError, ValueError) as error:  # insightface's and requests' are these
        return f"{place.given}: {(str(error) or type(error).__name__).splitlines()[0]}"
    return ""


def _download_files(place: Place) -> None:
    from huggingface_hub import hf_hub_download, list_repo_files

    there = set(list_repo_files(place.given))
    chosen = [next((name for name in need.names if name in there), None) for need in place.part.needs]
    for name in [*(name for name in place.part.small if name in there), *filter(None, chosen)]:
        hf_hub_download(place.given, name)


def _download_faces(place: Place) -> None:
    from insightface.utils import storage

    storage.download("models", place.given, force=True)
