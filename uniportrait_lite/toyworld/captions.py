"""Captions: varied English for a toy scene, from the factors that made it, and plain prompts for evaluation.

A caption says one of three amounts of things (`DETAILS`): "short" little more than who is there; "scene" what is not
identity, as a user's prompt does; "full" the face as well, so that text alone nearly determines it, which teaches the
base model to draw all kinds of people. At most `MAX_TOKENS` words and commas, so that with the two markers 48 tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from . import factors, wording
from .sentences import MAX_TOKENS, Clause, Item, Voice, article, colored, fit, segments

DETAILS = {"short": 0.20, "scene": 0.35, "full": 0.45}
STRONG = 0.4  # a continuous factor beyond this can be seen, and is said


def caption(
    people: Sequence[Any],
    faces: Sequence[Mapping[str, Any]],
    background: str,
    style: str,
    light: str,
    seed: int = 0,
    detail: str | None = None,
) -> str:
    """What a scene's picture shows, in lower-case English.

    people: toy people, left to right; faces: a mapping of `factors.FACE_SCENE` values for each. `detail`: a key of
    `DETAILS`, drawn when None. The same arguments give the same text on every machine.
    """
    if len(people) != len(faces) or not 1 <= len(people) <= 5:
        raise ValueError(f"A caption is of one to five people with one face each, not {len(people)} and {len(faces)}.")
    if detail not in (None, *DETAILS):
        raise ValueError(f"detail is one of {', '.join(DETAILS)} or None, not {detail!r}.")
    voice = Voice(np.random.Generator(np.random.PCG64(seed)))
    drawn = list(DETAILS)[int(np.searchsorted(np.cumsum(list(DETAILS.values())), voice.rng.random()))]
    detail = detail or drawn
    around = _surroundings(voice, background, style, light, detail)
    if detail == "short" or (len(people) > 1 and detail == "scene" and voice.says(0.4)):
        who = [_count(voice, people, faces, detail)]
    else:
        see_colors = style not in wording.COLORLESS_STYLES or voice.says(0.15)
        who = [
            _clause(voice, person, face, detail, see_colors, alone=len(people) == 1)
            for person, face in zip(people, faces, strict=True)
        ]
        if len(who) in wording.PLACES_IN_A_ROW and voice.says(0.3):
            for clause, position in zip(who, wording.PLACES_IN_A_ROW[len(who)], strict=True):
                clause.position = position
    return fit(voice, who, around)


def sentence(person: Any, face: Mapping[str, Any], style: str, seed: int = 0) -> str:
    """What can be said of one person of a scene alone, as "a man in a red beret, smiling" or "wearing a red beret".

    person, face: as in `caption`, one of each; style: the scene's, whose colours may not be seen. The same arguments
    give the same text on every machine.
    """
    voice = Voice(np.random.Generator(np.random.PCG64(seed)))
    see_colors = style not in wording.COLORLESS_STYLES or voice.says(0.15)
    clause = _clause(voice, person, face, "scene", see_colors, alone=True)
    bare = voice.says(0.5)
    text = fit(voice, [clause], [])
    shorter = text.partition(clause.noun)[2].lstrip(", ")
    return shorter if bare and shorter else text


def prompt_for(attributes: Mapping[str, Any]) -> str:
    """The plain prompt that asks for some attributes, as in "a portrait of a person, smiling, comic style".

    attributes: values by name of `factors.IDENTITY`, `FACE_SCENE` and `SCENE`; raises ValueError, listing the
    choices, for others. A colour needs the thing that has it (`hat_color` a `hat`).
    """
    known = factors.IDENTITY | factors.FACE_SCENE | factors.SCENE
    for name, value in attributes.items():
        if name not in known:
            raise ValueError(f"No attribute {name!r}; there are {', '.join(known)}.")
        if value not in known[name]:
            raise ValueError(f"{name} is one of {', '.join(known[name])}, not {value!r}.")
    for color, thing in (("hat_color", "hat"), ("clothes_color", "clothes")):
        if color in attributes and attributes.get(thing, "none") == "none":
            raise ValueError(f"{color} is the colour of something: give {thing} as well.")
    voice = Voice()
    noun = voice.pick(wording.NOUNS[attributes.get("presentation")])
    identity = _identity_items(voice, attributes, chance=1, see_colors=True, see_eyes=True)
    items = _face_items(voice, attributes, see_colors=True) + identity
    around = (
        [Item("where", voice.pick(wording.BACKGROUNDS[attributes["background"]]), 1)]
        if "background" in attributes
        else []
    )
    style, light = attributes.get("style"), attributes.get("light")
    head = voice.pick(wording.STYLE_HEADS["photo"] if style == "photo" else wording.HEADS)
    around += [Item("light", voice.pick(wording.LIGHTS[light]), 1)] if light else []
    around += [Item("style", voice.pick(wording.STYLE_TAILS[style]), 1)] if style not in (None, "photo") else []
    pieces = segments(voice, Clause(noun, items))
    text = ", ".join([f"{head} {pieces[0]}", *pieces[1:], *(item.text for item in around)])
    if len(wording.tokens(text)) > MAX_TOKENS:
        raise ValueError(f"These are too many attributes for one prompt of {MAX_TOKENS} words: {text!r}.")
    return text


# --- what is said ---------------------------------------------------------------------------------------------------
def _surroundings(voice: Voice, background: str, style: str, light: str, detail: str) -> list[Item]:
    items = []
    if style == "photo":
        if voice.says(0.12):
            items.append(Item("head", voice.pick(wording.STYLE_HEADS["photo"]), 2))
        elif voice.says(0.03):
            items.append(Item("style", voice.pick(wording.STYLE_TAILS["photo"]), 2))
    elif voice.says(0.4):
        items.append(Item("head", voice.pick(wording.STYLE_HEADS[style]), 9))
    else:
        items.append(Item("style", voice.pick(wording.STYLE_TAILS[style]), 9))
    if not items or items[0].kind != "head":
        if voice.says(0.75):
            items.append(Item("head", voice.pick(wording.HEADS), 0.2))
    said = {"short": 0.25, "scene": 0.92, "full": 0.7}[detail] * (0.5 if background == "studio" else 1)
    if voice.says(said):
        items.append(Item("where", voice.pick(wording.BACKGROUNDS[background]), 0.8 + voice.weight()))
    if detail != "short" and voice.says(0.05 if light == "front" else 0.25):
        items.append(Item("light", voice.pick(wording.LIGHTS[light]), 0.3 * voice.weight()))
    return items


def _count(voice: Voice, people: Sequence[Any], faces: Sequence[Mapping], detail: str) -> Clause:
    """The people by their number ("two women and a man"), and what all of them share."""
    items = []
    if detail == "scene":
        for name, table in (("expression", wording.EXPRESSIONS), ("glasses", wording.GLASSES)):
            shared = {face[name] for face in faces}
            if len(shared) == 1 and not shared & {"none", "neutral"}:
                what = voice.pick(table[shared.pop()])
                items.append(Item("doing", f"all {what}" if name == "expression" else f"all wearing {what}", 1))
    if len(people) == 1:
        who = people[0].presentation if voice.says(0.9) else None
        return Clause(voice.pick(wording.NOUNS[who]), items)
    if voice.says(0.3):
        crowd = voice.pick(wording.CROWDS).format(number=wording.NUMBERS[len(people)])
        return Clause(crowd, items, position="")
    kinds = []
    for kind in dict.fromkeys(person.presentation for person in people):
        count = sum(person.presentation == kind for person in people)
        one = article(voice.pick(wording.NOUNS[kind]))
        kinds.append(one if count == 1 else f"{wording.NUMBERS[count]} {voice.pick(wording.PLURALS[kind])}")
    return Clause((" and " if voice.says(0.85) else " next to ").join(kinds), items, position="")


def _clause(voice: Voice, person: Any, face: Mapping, detail: str, see_colors: bool, alone: bool) -> Clause:
    noun = voice.pick(wording.NOUNS[person.presentation if voice.says(0.9 if alone else 0.97) else None])
    items = _face_items(voice, face, see_colors, chance=1.0 if alone else 0.75)
    if detail == "full":
        chance = 0.7 + 0.3 * voice.weight()
        items += _identity_items(voice, _identity(person), chance, see_colors, see_eyes=face["glasses"] != "sunglasses")
        # When words run short, in half of the captions the face goes first, in the others what it wears.
        shift = -0.6 if voice.says(0.5) else 0.4
        items = [replace(item, weight=item.weight + shift * (item.kind in ("doing", "wears"))) for item in items]
    return Clause(noun, items)


def _identity(person: Any) -> dict[str, Any]:
    return {name: getattr(person, name) for name in (*factors.IDENTITY, *wording.CONTINUOUS, "freckles")}


def _face_items(voice: Voice, face: Mapping, see_colors: bool, chance: float = 1.0) -> list[Item]:
    """What this picture adds to a face: expression, glasses, hat, clothes, age. Absent names are not said."""
    items = []
    if "expression" in face and voice.says(chance * (0.3 if face["expression"] == "neutral" else 0.95)):
        moods = wording.MOODS.get(face["expression"])
        if moods and voice.rng is not None and voice.says(0.3):
            items.append(Item("adjective", voice.pick(moods), 1 + voice.weight()))
        else:
            items.append(Item("doing", voice.pick(wording.EXPRESSIONS[face["expression"]]), 1 + voice.weight()))
    if "age" in face and voice.says(0.95 * chance if face["age"] == "old" else 0.1):
        items.append(Item("adjective", voice.pick(wording.AGES[face["age"]]), 1 + voice.weight()))
    for name, table in (("glasses", wording.GLASSES), ("hat", wording.HATS), ("clothes", wording.CLOTHES)):
        if name not in face:
            continue
        if face[name] == "none":
            if voice.says(0.06):
                items.append(Item("doing", voice.pick(table["none"]), 0.3 * voice.weight()))
        elif voice.says(chance * (0.85 if name == "clothes" else 0.95)):
            color = face.get(f"{name}_color") if see_colors else None
            text = colored(voice.pick(table[face[name]]), color)
            importance = 0.6 if name == "clothes" else 1.0  # the others change the face
            items.append(Item("wears", text if name == "glasses" else article(text), importance + voice.weight()))
    return items


def _identity_items(voice: Voice, who: Mapping, chance: float, see_colors: bool, see_eyes: bool) -> list[Item]:
    """What stays with a person, each part said with the given chance. Absent names are not said."""
    items = []

    def say(text: str, importance: float) -> None:
        items.append(Item("has", text, importance + voice.weight()))

    def adjectives(*parts: tuple[str, Mapping]) -> list[str]:
        found = []
        for name, table in parts:
            value = who.get(name)
            if name in wording.CONTINUOUS:
                if value is not None and abs(value) > STRONG and voice.says(chance):
                    found.append(voice.pick(table[value > 0]))
            elif value is not None and voice.says(chance):
                found.append(voice.pick(table[value]))
        return found

    def part(name: str, importance: float, found: list[str], with_article: bool = False) -> None:
        if found:
            text = voice.pick(wording.BODY[name]).format(" ".join(found))
            say(article(text) if with_article else text, importance)

    far = wording.CONTINUOUS
    hair_color = who.get("hair_color") if see_colors else None
    hair_color = voice.pick(wording.HAIR_COLORS[hair_color]) if hair_color else None
    part("skin", 1.0, adjectives(("skin", wording.SKINS)))
    part(
        "face",
        0.8,
        adjectives(("face_width", far["face_width"]), ("face_shape", wording.FACE_SHAPES)),
        with_article=True,
    )
    if who.get("hair_style") is not None and voice.says(chance):
        say(colored(voice.pick(wording.HAIR_STYLES[who["hair_style"]]), hair_color), 1.6)
    elif hair_color and "hair_style" not in who:
        say(f"{hair_color} hair", 1.6)
    if see_eyes:
        colors = [("eye_color", wording.EYE_COLORS)] if see_colors else []
        part(
            "eyes",
            1.0,
            adjectives(
                ("eye_size", far["eye_size"]),
                ("eye_spacing", far["eye_spacing"]),
                ("eye_shape", wording.EYE_SHAPES),
                *colors,
            ),
        )
    part("brows", 0.6, adjectives(("brow_height", far["brow_height"]), ("brows", wording.BROWS)))
    sizes = [("nose_size", far["nose_size"])] if who.get("nose") != "small" else []
    part("nose", 0.7, adjectives(*sizes, ("nose", wording.NOSES)), with_article=True)
    part("lips", 0.6, adjectives(("lips", wording.LIPS)))
    for name in ("jaw", "mouth_width", "ear_size"):
        for text in adjectives((name, far[name])):
            say(text, 0.5)
    beard = who.get("beard")
    if beard is not None and voice.says(chance * (0.1 if beard == "none" else 1)):
        say(colored(voice.pick(wording.BEARDS[beard]), hair_color if voice.says(0.5) else None), 1.2)
    if who.get("freckles") and voice.says(chance):
        say(voice.pick(wording.FRECKLES), 0.9)
    if who.get("mole", "none") != "none" and voice.says(chance):
        say(voice.pick(wording.MOLES[who["mole"]]), 0.7)
    return items
