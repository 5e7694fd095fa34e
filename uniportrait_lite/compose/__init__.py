"""What can be made of identities together with the field's own tools: conditions, existing pictures, sequences."""

from uniportrait_lite.compose.inpainting import clothes_mask, face_mask, inpaint
from uniportrait_lite.compose.sequences import Story, morph, save_animation, story
from uniportrait_lite.compose.steering import annotated, edges_of, pose_of
from uniportrait_lite.compose.style import in_style
from uniportrait_lite.controls import edges, pose

__all__ = [
    "Story", "annotated", "clothes_mask", "edges", "edges_of", "face_mask", "in_style", "inpaint", "morph", "pose",
    "pose_of", "save_animation", "story",
]  # fmt: skip
