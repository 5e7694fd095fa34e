"""The toy world's `CLIPTokenizer`: each world word is one token, anything else falls back to pieces and bytes.

CLIP's tokenizer is a byte-level byte-pair encoding: a word is cut into bytes, and pairs are joined in the order of a
list of merges. Here the merges are learned on the world's words alone, until each is whole. The order of the ids is
that of CLIP: bytes, bytes that end a word, merges, and last the start and the end marker (the text tower finds
the end of a text as its largest id).
"""

from collections import Counter
from pathlib import Path

from transformers import CLIPTokenizer

from .wording import WORDS

MAX_LENGTH = 48
START, END = "<|startoftext|>", "<|endoftext|>"
_LAST = "</w>"

__all__ = ["MAX_LENGTH", "WORDS", "build_tokenizer", "learn_merges", "vocabulary"]


def learn_merges(words: tuple[str, ...] = WORDS) -> list[tuple[str, str]]:
    """Byte-pair merges that make each of the words (of ASCII characters) one token, most shared pairs first."""
    pieces = [[*word[:-1], word[-1] + _LAST] for word in words]
    merges = []
    while True:
        pairs = Counter(pair for word in pieces for pair in set(zip(word, word[1:], strict=False)))
        if not pairs:
            return merges
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((left, right))
        pieces = [_join(word, left, right) for word in pieces]


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Ids of every token: the bytes of UTF-8, those that can end a word, the merged pieces, the two markers."""
    characters = _byte_characters()
    names = [characters[byte] for byte in range(0xF5) if byte not in (0xC0, 0xC1)]
    names += [characters[byte] + _LAST for byte in range(0xC0)]  # from 0xC0 on, a byte only begins a character
    names += dict.fromkeys(left + right for left, right in merges)  # two pairs can join to the same piece
    return {name: index for index, name in enumerate([*names, START, END])}


def build_tokenizer(folder: str | Path) -> CLIPTokenizer:
    """Write the tokenizer to a folder, as `CLIPTokenizer.from_pretrained` reads it, and return it."""
    merges = learn_merges()
    tokenizer = CLIPTokenizer(vocab=vocabulary(merges), merges=merges, model_max_length=MAX_LENGTH)
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json and merges.txt, which older readers ask for
    return tokenizer


def _join(word: list[str], left: str, right: str) -> list[str]:
    joined, index = [], 0
    while index < len(word):
        if word[index : index + 2] == [left, right]:
            joined.append(left + right)
            index += 2
        else:
            joined.append(word[index])
            index += 1
    return joined


def _byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte in byte-level vocabularies, as GPT-2 chose them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}
