"""Loading without the libraries' chatter."""

import contextlib
import warnings
from collections.abc import Iterator

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Imports and loads without progress bars, load reports and transformers' advice to install torchvision.

    The tiny networks load in a second, a vision tower is meant to leave a CLIP's text tower unread, and nothing here
    needs torchvision. Whoever loads in here checks for missing weights: the report would have told of them.
    """
    barred = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    verbosity = transformers_logging.get_verbosity()
    for library in barred:
        library.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        for library in barred:
            library.enable_progress_bar()


@contextlib.contextmanager
def no_advice() -> Iterator[None]:
    """Loads LoRAs without the libraries' advice: that there is another one, and that this one leaves words alone."""
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers_logging.set_verbosity(verbosity)
