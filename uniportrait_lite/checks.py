"""Numbers within bounds, and errors that say which."""

import numbers
import sys
from typing import Any

from uniportrait_lite.errors import ConfigError


def number(name: str, value: Any, lowest: float, highest: float = sys.float_info.max) -> float:
    """A finite number within bounds, as float; `ConfigError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not lowest <= float(value) <= highest:
        end = "" if highest == sys.float_info.max else f" to {highest}"
        raise ConfigError(f"{name} is a number from {lowest}{end}, not {value!r}")
    return float(value)


def whole(name: str, value: Any, lowest: int, highest: int = sys.maxsize) -> int:
    """A whole number within bounds, as int; `ConfigError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not lowest <= value <= highest:
        end = "" if highest == sys.maxsize else f" to {highest}"
        raise ConfigError(f"{name} is a whole number from {lowest}{end}, not {value!r}")
    return int(value)
