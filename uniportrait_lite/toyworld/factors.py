"""The toy world's vocabulary of factors: what makes a person, and what a picture adds.

Every table is a tuple, in a fixed order, because a seed picks by position: appending keeps old people the same,
reordering makes other people of them. `IDENTITY` stays with a person; `SCENE` changes from picture to picture.
"""

# --- identity -------------------------------------------------------------------------------------------------
PRESENTATIONS = ("woman", "man")
SKINS = ("pale", "fair", "tan", "brown", "dark")
FACE_SHAPES = ("oval", "round", "square", "long", "heart")
HAIR_COLORS = ("black", "brown", "blond", "red", "grey", "white", "pink", "blue")
HAIR_STYLES = (
    "bald",
    "buzz",
    "short",
    "spiky",
    "parted",
    "bob",
    "straight",
    "wavy",
    "afro",
    "bun",
    "ponytail",
    "pigtails",
)
EYE_COLORS = ("brown", "blue", "green", "amber", "grey", "violet")
EYE_SHAPES = ("round", "almond", "narrow")
BROWS = ("thin", "thick", "arched", "straight")
NOSES = ("small", "long", "wide", "pointed")
LIPS = ("thin", "full", "wide")
BEARDS = ("none", "stubble", "moustache", "goatee", "full")
MOLES = ("none", "left cheek", "right cheek", "chin")

IDENTITY = {
    "presentation": PRESENTATIONS,
    "skin": SKINS,
    "face_shape": FACE_SHAPES,
    "hair_color": HAIR_COLORS,
    "hair_style": HAIR_STYLES,
    "eye_color": EYE_COLORS,
    "eye_shape": EYE_SHAPES,
    "brows": BROWS,
    "nose": NOSES,
    "lips": LIPS,
    "beard": BEARDS,
    "mole": MOLES,
}

# --- what a picture adds --------------------------------------------------------------------------------------
EXPRESSIONS = ("neutral", "smile", "laugh", "sad", "angry", "surprised")
GLASSES = ("none", "round", "square", "sunglasses")
HATS = ("none", "cap", "beanie", "top hat", "beret", "flower crown")
CLOTHES = ("t-shirt", "striped shirt", "hoodie", "suit", "dress", "sweater")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
BACKGROUNDS = ("studio", "beach", "city", "night city", "park", "mountains", "room", "snow")
STYLES = ("photo", "comic", "sketch", "watercolour", "sepia", "noir")
LIGHTS = ("front", "left", "right")
AGES = ("young", "old")

FACE_SCENE = {  # one value for each face of a scene
    "expression": EXPRESSIONS,
    "glasses": GLASSES,
    "hat": HATS,
    "hat_color": COLORS,
    "clothes": CLOTHES,
    "clothes_color": COLORS,
    "age": AGES,
}
SCENE = {"background": BACKGROUNDS, "style": STYLES, "light": LIGHTS}  # one value for the whole scene
