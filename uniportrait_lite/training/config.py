"""Settings of a training: a dataclass's defaults, its profile's, then a YAML file, then flags, later over earlier.

Every field of the dataclass is a key of the YAML file and a flag of the command line, under the same name
(`--muon-lr` and `--muon_lr` are one). A name that no field has, or a value that a field can't hold, is a `ConfigError`
that names the nearest: a misspelt setting must not become a training at defaults.
"""

import argparse
import difflib
import json
import types
import typing
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from uniportrait_lite.errors import ConfigError
from uniportrait_lite.folders import data_folder, profile_settings, writable_folder
from uniportrait_lite.toyworld.pretrain.record import write_json

T = TypeVar("T")
MAY_CHANGE = (
    "run_folder", "out", "start_from", "steps", "hours", "profile",
    "log_every", "checkpoint_every", "samples_every", "measure_cache", "workers", "compile", "graphs",
)  # fmt: skip


def setting(default: Any, help: str) -> Any:
    """A dataclass field with a default and the sentence that `--help` shows for it."""
    return field(default=default, metadata={"help": help})


def load(cls: type[T], argv: list[str], *, part: str, prog: str, description: str = "", epilog: str = "") -> T:
    """Makes a `cls` from its defaults, what its profile sets for `part`, the file of `--config`, and flags in `argv`.

    Raises `ConfigError` for unknown names and impossible values; `--help` prints and exits as argparse does.
    """
    parser = _Parser(
        prog=prog, description=description, epilog=epilog, allow_abbrev=False, argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--config", metavar="FILE", help="a YAML file with any of the settings below (flags win over it)"
    )
    hints = typing.get_type_hints(cls)
    for f in fields(cls):
        parser.add_argument(
            "--" + f.name.replace("_", "-"), dest=f.name, metavar=_metavar(hints[f.name]),
            help=f"{f.metadata.get('help', '')} (default: {_shown(f.default)})".strip().replace("%", "%%"),
        )  # fmt: skip
    flags, unknown = parser.parse_known_args([_dashed(argument) for argument in argv])
    if unknown:
        raise ConfigError(_unknown(unknown[0].split("=")[0].lstrip("-").replace("-", "_"), hints))
    given = vars(flags)
    values = read_yaml(given.pop("config")) if "config" in given else {}
    values = {**values, **given}
    return build(cls, {**_profile(cls, values, part), **values})


def _profile(cls: type, values: dict[str, Any], part: str) -> dict[str, Any]:
    profile = values.get("profile", next(f.default for f in fields(cls) if f.name == "profile"))
    return profile_settings(data_folder(profile), part)


def build(cls: type[T], values: dict[str, Any]) -> T:
    """Makes a `cls` from a dict of settings, each checked against its field's type; text is read as YAML reads it."""
    hints = typing.get_type_hints(cls)
    names = {f.name for f in fields(cls)}
    for name in values:
        if name not in names:
            raise ConfigError(_unknown(str(name), hints))
    return cls(**{name: _coerce(name, hints[name], value) for name, value in values.items()})


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the config file {path} can't be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config file {path} is not YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"the config file {path} must hold `name: value` lines, not a {type(values).__name__}")
    return values


def keep_settings(config: Any, frozen: dict[str, str]) -> None:
    """Writes RUN_FOLDER/settings.json; where a checkpoint was made with other settings, says so instead of going on.

    `frozen` are digests, by name, of what the training does not change.
    """
    path = writable_folder(config.run_folder, "choose another with --run-folder") / "settings.json"
    now = {"settings": asdict(config), "frozen": frozen}
    if path.exists() and (path.parent / "checkpoint.pt").exists():
        before = json.loads(path.read_text())
        changed = [
            f"{name} was {before[part].get(name)!r} and is {value!r}"
            for part, values in now.items()
            for name, value in values.items()
            if before[part].get(name) != value and name not in MAY_CHANGE
        ]
        if changed:
            onward = f" (and --start-from {config.run_folder}/weights to build on what it learned)"
            onward = onward if hasattr(config, "start_from") else ""
            raise ConfigError(
                f"{config.run_folder} holds a training with other settings ({'; '.join(changed)}): give them back, or "
                f"another --run-folder{onward}"
            )
    write_json(path, now)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ConfigError(f"{message} (see {self.prog} --help)")


def _dashed(argument: str) -> str:
    """`--muon_lr=0.02` as `--muon-lr=0.02`, the spelling the parser knows."""
    name, equals, value = argument.partition("=")
    return (name.replace("_", "-") if name.startswith("--") else name) + equals + value


def _unknown(name: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"no setting is called {name!r}" + (
        f"; did you mean {near[0]!r}?" if near else "; see --help for all of them"
    )


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _coerce(name: str, hint: Any, value: Any) -> Any:
    """`value` as the type `hint` asks for. YAML reads 1e-3 as text, and an int is a good float: both are mended."""
    original = value
    options = _options(hint)
    if isinstance(value, str) and value.lower() in ("none", "null", ""):
        value = None
    if value is None and types.NoneType in options:
        return None
    for option in options:
        if typing.get_origin(option) is Literal:
            choices = typing.get_args(option)
            if value in choices:
                return value
            near = difflib.get_close_matches(str(original), [str(c) for c in choices], n=1, cutoff=0.5)
            hint_text = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{name} is one of {', '.join(map(str, choices))}, not {original!r}{hint_text}")
        if option is str and isinstance(original, str):
            return original
        read = _scalar(value)
        if option is bool and isinstance(read, bool):
            return read
        if option is int and isinstance(read, int) and not isinstance(read, bool):
            return read
        if option is float and not isinstance(read, bool):
            try:
                return float(read)
            except (TypeError, ValueError):
                pass
    raise ConfigError(f"{name} must be {_metavar(hint)}, not {original!r}")


def _scalar(value: Any) -> Any:
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        return value


def _metavar(hint: Any) -> str:
    words = {int: "INT", float: "FLOAT", str: "TEXT", bool: "true|false", types.NoneType: "none"}
    parts = [
        "|".join(map(str, typing.get_args(o))) if typing.get_origin(o) is Literal else words[o] for o in _options(hint)
    ]
    return "|".join(parts)


def _shown(value: Any) -> str:
    return {"True": "true", "False": "false", "None": "none"}.get(str(value), str(value))
