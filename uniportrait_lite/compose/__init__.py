"""What can be made of identities together with the field's own tools: condition images, existing pictures."""

from uniportrait_lite.compose.inpainting import clothes_mask, face_mask, inpaint
from uniportrait_lite.compose.steering import edges_of, pose_of
from uniportrait_lite.controls import edges, pose

__all__ = ["clothes_mask", "edges", "edges_of", "face_mask", "inpaint", "pose", "pose_of"]
