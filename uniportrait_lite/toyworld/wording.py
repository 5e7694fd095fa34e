"""The words of the toy world: how each factor can be said in English.

Each table maps the values of one factor (`factors.py`) to the ways of saying them, the plainest first. Captions use
no word that is not in a table here or a factor's own name, and `WORDS` is made of the same tables, so that the
tokenizer's vocabulary and the captions cannot drift apart. A slot in braces is filled by another table.
"""

import re

from . import factors

# --- who --------------------------------------------------------------------------------------------------------
NOUNS = {"woman": ("woman", "woman", "lady"), "man": ("man", "man", "guy"), None: ("person",)}
PLURALS = {"woman": ("women", "women", "ladies"), "man": ("men", "men", "guys"), None: ("people", "friends", "persons")}
NUMBERS = ("no", "one", "two", "three", "four", "five")
CROWDS = (
    "{number} people",
    "{number} friends",
    "{number} people together",
    "a group of {number} people",
    "{number} people next to each other",
    "a group of {number} friends",
)
AGES = {"young": ("young",), "old": ("old", "elderly", "aged")}
PLACES_IN_A_ROW = {
    2: ("on the left", "on the right"),
    3: ("on the left", "in the middle", "on the right"),
}

# --- what a picture adds ------------------------------------------------------------------------------------------
EXPRESSIONS = {
    "neutral": ("with a neutral expression", "looking calm", "looking serious", "with a calm face"),
    "smile": ("smiling", "with a smile", "grinning", "looking happy", "smiling gently"),
    "laugh": ("laughing", "laughing out loud", "with a big laugh", "with an open mouth, laughing"),
    "sad": ("looking sad", "with a sad face", "being sad", "with a sad expression"),
    "angry": ("looking angry", "with an angry face", "frowning", "with an angry expression"),
    "surprised": ("looking surprised", "with a surprised face", "with a surprised expression"),
}
MOODS = {
    "smile": ("smiling", "happy", "grinning"),
    "laugh": ("laughing",),
    "sad": ("sad", "unhappy"),
    "angry": ("angry", "frowning"),
    "surprised": ("surprised", "astonished"),
}
GLASSES = {
    "none": ("without glasses",),
    "round": ("round glasses", "glasses with round lenses", "round spectacles", "glasses"),
    "square": ("square glasses", "glasses with square lenses", "square spectacles", "glasses"),
    "sunglasses": ("sunglasses", "dark glasses", "black sunglasses"),
}
HATS = {
    "none": ("without a hat",),
    "cap": ("{color} cap", "{color} baseball cap", "{color} hat"),
    "beanie": ("{color} beanie", "{color} knitted hat", "{color} woolly hat", "{color} hat"),
    "top hat": ("{color} top hat", "{color} top hat", "{color} hat"),
    "beret": ("{color} beret", "{color} beret", "{color} hat"),
    "flower crown": ("{color} flower crown", "crown of {color} flowers"),
}
CLOTHES = {
    "t-shirt": ("{color} t-shirt", "{color} t shirt", "{color} tee"),
    "striped shirt": ("{color} striped shirt", "striped {color} shirt", "{color} shirt with stripes"),
    "hoodie": ("{color} hoodie",),
    "suit": ("{color} suit", "{color} suit", "{color} jacket and a shirt"),
    "dress": ("{color} dress",),
    "sweater": ("{color} sweater", "{color} jumper", "{color} pullover"),
}
COLORS = {color: (color,) for color in factors.COLORS}
BACKGROUNDS = {
    "studio": ("in a studio", "in the studio", "in front of a plain background", "with a plain background"),
    "beach": ("at the beach", "on the beach", "at the seaside", "by the sea", "on a beach"),
    "city": ("in the city", "in a city", "in town", "on a city street", "in the city by day"),
    "night city": ("in the city at night", "in a city at night", "at night in the city", "in town at night"),
    "park": ("in the park", "in a park", "in a green park", "among trees"),
    "mountains": ("in the mountains", "in front of mountains", "with mountains behind"),
    "room": ("in a room", "indoors", "at home", "in a living room"),
    "snow": ("in the snow", "on a snowy day", "in winter", "in a snowy place"),
}
STYLE_HEADS = {
    "photo": ("a photo of", "photo of", "a photograph of"),
    "comic": ("a comic drawing of", "a comic of", "a cartoon of"),
    "sketch": ("a sketch of", "a pencil sketch of", "a pencil drawing of"),
    "watercolour": ("a watercolour of", "a watercolour painting of", "a watercolor painting of"),
    "sepia": ("a sepia photo of", "a sepia picture of", "a sepia portrait of"),
    "noir": ("a black and white photo of", "a noir portrait of", "a noir photo of"),
}
STYLE_TAILS = {
    "photo": ("photo style", "as a photo", "in photo style"),
    "comic": ("comic style", "in comic style", "as a comic", "drawn as a comic", "cartoon style"),
    "sketch": ("sketch style", "as a sketch", "in sketch style", "as a pencil drawing", "drawn with a pencil"),
    "watercolour": (
        "watercolour style",
        "in watercolour",
        "painted in watercolour",
        "as a watercolour painting",
        "in watercolor style",
    ),
    "sepia": ("sepia style", "in sepia", "as a sepia photo", "in sepia tones"),
    "noir": ("noir style", "in black and white", "as a black and white photo", "in noir style"),
}
COLORLESS_STYLES = ("sketch", "sepia", "noir")  # a colour that cannot be seen is seldom said
HEADS = ("a portrait of", "portrait of", "a picture of", "a close portrait of", "an image of")
LIGHTS = {
    "front": ("lit from the front", "with light from the front"),
    "left": ("lit from the left", "with light from the left", "light from the left"),
    "right": ("lit from the right", "with light from the right", "light from the right"),
}

# --- identity -----------------------------------------------------------------------------------------------------
SKINS = {
    "pale": ("pale", "very light"),
    "fair": ("fair", "light"),
    "tan": ("tan", "tanned"),
    "brown": ("brown",),
    "dark": ("dark", "deep brown"),
}
FACE_SHAPES = {
    "oval": ("oval",),
    "round": ("round",),
    "square": ("square",),
    "long": ("long",),
    "heart": ("heart shaped",),
}
HAIR_COLORS = {color: (color,) for color in factors.HAIR_COLORS} | {
    "blond": ("blond", "blonde"),
    "grey": ("grey", "gray"),
    "red": ("red", "ginger"),
}
HAIR_STYLES = {  # with its article where it needs one
    "bald": ("a bald head", "no hair"),
    "buzz": ("a {color} buzz cut", "very short {color} hair"),
    "short": ("short {color} hair",),
    "spiky": ("spiky {color} hair",),
    "parted": ("parted {color} hair", "side parted {color} hair"),
    "bob": ("a {color} bob", "{color} hair in a bob"),
    "straight": ("long straight {color} hair", "straight {color} hair"),
    "wavy": ("wavy {color} hair", "long wavy {color} hair"),
    "afro": ("a {color} afro", "afro {color} hair"),
    "bun": ("a {color} bun", "{color} hair in a bun"),
    "ponytail": ("a {color} ponytail", "{color} hair in a ponytail"),
    "pigtails": ("{color} pigtails", "{color} hair in pigtails"),
}
EYE_COLORS = {color: (color,) for color in factors.EYE_COLORS} | {"grey": ("grey", "gray")}
EYE_SHAPES = {"round": ("round",), "almond": ("almond", "almond shaped"), "narrow": ("narrow",)}
BROWS = {"thin": ("thin",), "thick": ("thick", "bushy"), "arched": ("arched",), "straight": ("straight",)}
NOSES = {"small": ("small", "little"), "long": ("long",), "wide": ("wide", "broad"), "pointed": ("pointed", "pointy")}
LIPS = {"thin": ("thin",), "full": ("full",), "wide": ("wide",)}
BEARDS = {
    "none": ("no beard", "a shaved face"),
    "stubble": ("stubble", "{color} stubble"),
    "moustache": ("a {color} moustache", "a {color} mustache"),
    "goatee": ("a {color} goatee",),
    "full": ("a full {color} beard", "a {color} beard", "a big {color} beard"),
}
MOLES = {
    "left cheek": ("a mole on the left cheek", "a beauty mark on the left cheek"),
    "right cheek": ("a mole on the right cheek", "a beauty mark on the right cheek"),
    "chin": ("a mole on the chin", "a beauty mark on the chin"),
}
FRECKLES = ("freckles", "a freckled face")
BODY = {
    "skin": ("{} skin",),
    "face": ("{} face",),
    "eyes": ("{} eyes",),
    "nose": ("{} nose",),
    "lips": ("{} lips",),
    "brows": ("{} brows", "{} eyebrows"),
}
CONTINUOUS = {  # adjectives or whole phrases for a value far below and far above the middle
    "face_width": (("narrow", "slim"), ("wide", "broad")),
    "jaw": (("a narrow jaw", "a soft jaw"), ("a wide jaw", "a strong jaw")),
    "eye_size": (("small",), ("big", "large")),
    "eye_spacing": (("close set",), ("wide set",)),
    "brow_height": (("low",), ("high", "raised")),
    "nose_size": (("short", "tiny"), ("big", "large")),
    "mouth_width": (("a small mouth", "a narrow mouth"), ("a wide mouth", "a big mouth")),
    "ear_size": (("small ears",), ("big ears", "large ears")),
}

# --- joints, and what people type besides ---------------------------------------------------------------------------
JOINTS = ("a", "an", "and", "with", "wearing", "in", "next to", "all", ",", "-")
ALSO_TYPED = tuple(
    """
    the of to at on his her their he she they who is are am i my me you it its this that these for from as while not
    very child children boy boys girl girls baby kid kids male female human adult friend couple family face faces head
    hair eyes mouth smile laughs smiles looks standing sitting walking holding near under over outside outdoors
    beautiful handsome pretty cute nice good best young new sunny day night evening morning street trees tree flower
    flowers sun sky water sand winter summer hat hats shirt tie coat scarf colorful colourful bright soft light dark
    drawing dressed painting style artist self background detailed quality camera left right middle center front
    behind someone
""".split()
)

_TABLES = (
    NOUNS,
    PLURALS,
    NUMBERS,
    CROWDS,
    AGES,
    PLACES_IN_A_ROW,
    EXPRESSIONS,
    MOODS,
    GLASSES,
    HATS,
    CLOTHES,
    COLORS,
    BACKGROUNDS,
    STYLE_HEADS,
    STYLE_TAILS,
    HEADS,
    LIGHTS,
    SKINS,
    FACE_SHAPES,
    HAIR_COLORS,
    HAIR_STYLES,
    EYE_COLORS,
    EYE_SHAPES,
    BROWS,
    NOSES,
    LIPS,
    BEARDS,
    MOLES,
    FRECKLES,
    BODY,
    CONTINUOUS,
    JOINTS,
    ALSO_TYPED,
)


def tokens(text: str) -> list[str]:
    """A text as the tokenizer cuts it: words of letters, single digits, and punctuation by itself."""
    return re.findall(r"[^\W\d_]+|\d|(?:[^\s\w]|_)+", text.lower())


def _texts(table) -> list[str]:
    if isinstance(table, str):
        return [table]
    values = table.values() if isinstance(table, dict) else table
    return [text for value in values for text in _texts(value)]


WORDS = tuple(sorted({word for text in _texts(_TABLES) for word in tokens(re.sub(r"{\w*}", " ", text))}))
"""Every word of the world, sorted: each is one token of the tiny CLIP."""
