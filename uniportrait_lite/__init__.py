"""Portraits of people from reference pictures: UniPortrait (arXiv 2408.05939), small enough for a laptop.

Names are imported when they are first used, as torch and diffusers take seconds.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "load": "profiles",
    "UniPortrait": "adapter",
    "Identity": "adapter",
    "Assignment": "assignment",
    "RoutingMaps": "id_routing",
    "UniPortraitError": "errors",
    "NoFaceError": "errors",
    "SeveralFacesError": "errors",
    "PictureError": "errors",
    "WeightsError": "errors",
    "ConfigError": "errors",
}
_ROOMS = (
    "adapter", "attention", "backbone", "checkpoints", "compose", "controls", "errors", "evaluation", "faces",
    "features", "hardware", "id_embedding", "id_routing", "learn", "loop", "official", "parts", "pictures", "places",
    "profiles", "provenance", "sd15", "toyworld", "training",
)  # fmt: skip

__all__ = [*_HOME, *_ROOMS]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
