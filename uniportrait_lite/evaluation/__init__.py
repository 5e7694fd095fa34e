"""How alike portraits are to the people they should show, how well they follow prompts, and how good the stack is."""

from uniportrait_lite.evaluation.metrics import face_similarity

__all__ = ["face_similarity"]
