"""How a caption is put together: choices among wordings, the things said of each person, and the sentence."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import wording

MAX_TOKENS = 46  # with the two markers 48, which the tiny CLIP reads
PREPOSITIONS = ("in", "at", "on", "by", "as", "with", "among")  # begin a phrase that needs no comma before it


class Voice:
    """How to choose among ways of saying: at random from a generator, or always the first (`rng=None`)."""

    def __init__(self, rng: np.random.Generator | None = None):
        self.rng = rng

    def pick(self, options: Sequence[str]) -> str:
        return options[0] if self.rng is None else options[int(self.rng.integers(len(options)))]

    def says(self, chance: float) -> bool:
        return self.rng is None or self.rng.random() < chance

    def weight(self) -> float:
        return 0.0 if self.rng is None else float(self.rng.random())

    def shuffled(self, values: Sequence) -> list:
        return list(values) if self.rng is None else [values[i] for i in self.rng.permutation(len(values))]


@dataclass(frozen=True)
class Item:
    """One thing said: `kind` is its place in the sentence, the item of the least `weight` is dropped first."""

    kind: str  # "adjective", "doing", "has" (after "with"), "wears", "where", "style", "light"
    text: str
    weight: float


@dataclass
class Clause:
    """One person: the noun, what is said of them, and where they stand."""

    noun: str
    items: list[Item]
    position: str | None = None


def article(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def colored(template: str, color: str | None) -> str:
    text = " ".join(template.format(color=color or "").split())
    # "a {color} afro" without its colour is "an afro", with orange "an orange ...".
    return article(text.split(" ", 1)[1]) if text.startswith("a ") else text


def listed(voice: Voice, texts: Sequence[str]) -> str:
    if len(texts) > 1 and voice.says(0.75):
        return f"{', '.join(texts[:-1])} and {texts[-1]}"
    return ", ".join(texts)


def segments(voice: Voice, clause: Clause) -> list[str]:
    """A clause in pieces to be joined by commas, the noun with its adjectives first."""
    of = {
        kind: [item.text for item in clause.items if item.kind == kind]
        for kind in ("adjective", "doing", "has", "wears")
    }
    if clause.position == "":  # a count brings its own articles
        return [clause.noun, *of["doing"]]
    noun = " ".join([*of["adjective"], clause.noun])
    first = article(noun)
    if clause.position:
        first += f" {clause.position}"
    rest = list(of["doing"])
    if of["has"] and voice.rng is None:
        first += " with " + listed(voice, of["has"])
    elif of["has"]:
        rest.append("with " + listed(voice, of["has"]))
    if of["wears"]:
        verb = "wearing" if voice.rng is None else voice.pick(("wearing", "wearing", "in", "with"))
        if verb == "in" and any("glasses" in t or "spectacles" in t for t in of["wears"]):
            verb = "wearing"
        rest.append(f"{verb} {listed(voice, of['wears'])}")
    if voice.rng is not None:
        rest = voice.shuffled(rest)
    return [first, *rest]


def fit(voice: Voice, who: list[Clause], around: list[Item]) -> str:
    """The longest version within `MAX_TOKENS`, what weighs least dropped first."""
    order = int(voice.rng.integers(2**32))
    for clause in who:
        clause.items = voice.shuffled(clause.items)
    lists = [around, *(clause.items for clause in who)]
    by_weight = sorted(
        ((item.weight, index, item) for index, items in enumerate(lists) for item in items),
        key=lambda entry: entry[:2],
        reverse=True,
    )
    size = sum(len(wording.tokens(item.text)) for *_, item in by_weight)
    while True:
        if size <= MAX_TOKENS:  # commas and joints still add to it
            text = _sentence(Voice(np.random.Generator(np.random.PCG64(order))), who, around)
            if len(wording.tokens(text)) <= MAX_TOKENS:
                return text
        _, index, least = by_weight.pop()
        lists[index].remove(least)
        size -= len(wording.tokens(least.text))


def _sentence(voice: Voice, who: list[Clause], around: list[Item]) -> str:
    of = {kind: [item.text for item in around if item.kind == kind] for kind in ("head", "where", "style", "light")}
    together = []
    for clause in who:
        first, *rest = segments(voice, clause)
        # The first piece after the noun often needs no comma: "a woman with red hair, smiling".
        text = f"{first} {rest.pop(0)}" if rest and voice.says(0.7) else first
        together.append(", ".join([text, *rest]))
    joint = " and " if len(together) == 2 and all("," not in text for text in together) and voice.says(0.8) else ", "
    people = joint.join(together) if len(together) < 3 else listed(voice, together)
    tail = voice.shuffled(of["where"] + of["light"] + of["style"])
    lead = of["where"][0] if of["where"] and voice.says(0.1) else None
    if lead:
        tail.remove(lead)
    text = " ".join(of["head"] + [people])
    if tail and tail[0].split()[0] in PREPOSITIONS and "," not in people and voice.says(0.6):
        text = f"{text} {tail.pop(0)}"
    return ", ".join([lead, text, *tail] if lead else [text, *tail])
