"""The package's own errors: each message says what went wrong and what to do next.

They mark mistakes that a user can mend. Programming errors (wrong types of tensors and the like) stay Python's own.
"""


class UniPortraitError(Exception):
    """Base of all errors that this package raises on purpose: catch it to catch them all."""


class PictureError(UniPortraitError):
    """A picture cannot be read, or cannot be written where it was asked for."""


class NoFaceError(UniPortraitError):
    """No face was found where one is needed."""


class SeveralFacesError(UniPortraitError):
    """More faces were found than one, and nothing says which is meant."""


class WeightsError(UniPortraitError):
    """Weights are missing, cut short, or of another shape than their config says."""


class ConfigError(UniPortraitError, ValueError):
    """A setting has a value that cannot work: an unknown name, a size out of range, a wrong seed."""
