"""A world of drawn people with exact truth: who they are, where they are, and what else a picture shows."""

from .people import Person
from .scenes import Face, Scene, group, portrait, reference

__all__ = ["Face", "Person", "Scene", "group", "portrait", "reference"]
