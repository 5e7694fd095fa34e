"""Captions say what is in the picture, within the tiny CLIP's words and length; the tokenizer knows every word."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import CLIPTokenizer

from uniportrait_lite.toyworld import factors, wording
from uniportrait_lite.toyworld.captions import DETAILS, caption, prompt_for, sentence
from uniportrait_lite.toyworld.tokenizer import MAX_LENGTH, WORDS, build_tokenizer

ROOT = Path(__file__).parents[1]


def draw_scene(seed: int, count: int = 1, **fixed) -> tuple:
    """The arguments of `caption` for a scene drawn uniformly over all factors."""
    rng = np.random.default_rng(seed)

    def one_of(table):
        return {name: values[rng.integers(len(values))] for name, values in table.items()}

    people = [
        SimpleNamespace(
            **one_of(factors.IDENTITY),
            **{name: float(rng.uniform(-1, 1)) for name in wording.CONTINUOUS},
            freckles=bool(rng.integers(2)),
        )
        for _ in range(count)
    ]
    faces = [one_of(factors.FACE_SCENE) | {k: v for k, v in fixed.items() if k in factors.FACE_SCENE} for _ in people]
    around = one_of(factors.SCENE) | {k: v for k, v in fixed.items() if k in factors.SCENE}
    return people, faces, around["background"], around["style"], around["light"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [caption(*draw_scene(seed, 1 + seed % 5), seed=seed) for seed in range(3000)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder)


def test_every_caption_is_one_token_a_word_and_fits(texts, tokenizer):
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        words = wording.tokens(text)
        assert set(words) <= set(WORDS), text
        assert len(ids) == len(words) + 2 <= MAX_LENGTH, text
        assert tokenizer.convert_ids_to_tokens(ids[1:-1]) == [f"{word}</w>" for word in words]


def test_every_word_is_one_token_between_the_markers(tokenizer):
    ids = [tokenizer.encode(word) for word in WORDS]
    assert all(len(each) == 3 for each in ids)
    assert {each[0] for each in ids} == {tokenizer.bos_token_id} and {each[2] for each in ids} == {len(tokenizer) - 1}
    assert len({each[1] for each in ids}) == len(WORDS)
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == len(tokenizer) - 1
    assert tokenizer.model_max_length == MAX_LENGTH and len(tokenizer) < 1200


@pytest.mark.parametrize("text", ["zebra", "naïve 日本 crème 🙂", "uniportrait", "\x00 \x7f ÿ"])
def test_unseen_words_fall_back_to_pieces_and_decode_back(text, tokenizer):
    ids = tokenizer.encode(text)
    assert tokenizer.eos_token_id not in ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True).split() == text.split()


def test_vocabulary_and_merges_alone_make_the_same_tokenizer(tokenizer, tmp_path):
    build_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    again = CLIPTokenizer.from_pretrained(tmp_path)
    for text in ("a sketch of a woman in a red t-shirt, at the beach", "zebra naïve 42"):
        assert again.encode(text) == tokenizer.encode(text)


def test_long_text_is_cut_with_both_markers(tokenizer):
    ids = tokenizer("zebra " * 500, truncation=True)["input_ids"]
    assert len(ids) == MAX_LENGTH and ids[-1] == tokenizer.eos_token_id


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    scene = draw_scene(3)
    assert caption(*scene, seed=5) == caption(*scene, seed=5)
    assert len({caption(*scene, seed=seed) for seed in range(50)}) > 40


def test_captions_have_not_changed(texts):
    """Captions are training data: the shipped weights learned exactly these words."""
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16] == "5a3b138557cbc9df"


def test_scene_captions_say_nothing_of_the_face():
    secret = wording.tokens("eyes nose hair skin lips brows eyebrows freckles mole beard jaw cheek bob afro bald chin")
    for seed in range(500):
        text = caption(*draw_scene(seed, 1 + seed % 3), seed=seed, detail="scene")
        assert not set(secret) & set(wording.tokens(text)), text


def test_full_captions_say_most_of_the_face():
    features = ("skin", "face", "eyes", "nose", "lips", "brows")
    said = dict.fromkeys(features, 0)
    for seed in range(500):
        text = caption(*draw_scene(seed, glasses="none"), seed=seed, detail="full")
        for feature in features:
            said[feature] += feature in text
    assert min(said.values()) > 500 * 0.45 and sum(said.values()) > 500 * len(features) * 0.65, said


@pytest.mark.parametrize(
    ("fixed", "words"),
    [
        ({"expression": "laugh"}, {"laughing", "laugh"}),
        ({"glasses": "sunglasses"}, {"sunglasses", "glasses"}),
        ({"hat": "beret"}, {"beret", "hat"}),
        ({"background": "beach"}, {"beach", "seaside", "sea"}),
        ({"style": "comic"}, {"comic", "cartoon"}),
        ({"clothes": "hoodie"}, {"hoodie"}),
        ({"age": "old"}, {"old", "elderly", "aged"}),
    ],
)
def test_what_a_scene_shows_is_said_and_what_it_does_not_is_not(fixed, words):
    (name, value), count = next(iter(fixed.items())), 300
    others = [v for v in (factors.FACE_SCENE | factors.SCENE)[name] if v != value]

    def share(**fixed):
        texts = [caption(*draw_scene(seed, **fixed), seed=seed, detail="scene") for seed in range(count)]
        return np.mean([bool(words & set(wording.tokens(text))) for text in texts])

    plain = {"hat": "none"} if name != "hat" else {}
    assert share(**fixed, **plain) > 0.7
    if name not in ("hat", "glasses"):  # "hat" and "glasses" are also said of the other kinds, and of none
        assert max(share(**{name: other}, **plain) for other in others) == 0


def test_colors_are_said_with_the_thing_that_has_them():
    fixed = {"hat": "top hat", "hat_color": "purple", "clothes": "suit", "clothes_color": "yellow", "style": "photo"}
    texts = [caption(*draw_scene(seed, **fixed), seed=seed, detail="scene") for seed in range(200)]
    assert np.mean(["purple top hat" in text or "purple hat" in text for text in texts]) > 0.8
    assert not any("yellow top" in text or "yellow hat" in text or "purple suit" in text for text in texts)


def test_groups_are_counted():
    people, *rest = draw_scene(1, 3)
    for person, kind in zip(people, ("woman", "man", "woman"), strict=True):
        person.presentation = kind
    texts = [caption(people, *rest, seed=seed, detail="short") for seed in range(100)]
    number = {"two women and a man", "two ladies and a guy", "two women and a guy", "three people", "three friends"}
    assert all("three" in text or "two" in text for text in texts)
    assert {found for found in number if any(found in text for text in texts)} == number


def test_people_are_said_from_left_to_right():
    people, faces, *rest = draw_scene(2, 2, hat="none", glasses="none", style="photo")
    people[0].hair_style, people[1].hair_style = "afro", "pigtails"
    texts = [caption(people, faces, *rest, seed=seed, detail="full") for seed in range(200)]
    both = [text for text in texts if "afro" in text and "pigtails" in text]
    assert len(both) > 100 and all(text.index("afro") < text.index("pigtails") for text in both)


def test_a_sentence_tells_of_one_person_what_the_scene_gives_them():
    people, faces, *_ = draw_scene(3, 2, hat="beret", hat_color="red", style="photo")
    texts = [sentence(people[0], faces[0], "photo", seed) for seed in range(300)]
    assert texts == [sentence(people[0], faces[0], "photo", seed) for seed in range(300)]
    assert np.mean(["red beret" in text or "red hat" in text for text in texts]) > 0.8
    named = np.mean([text.startswith(("a ", "an ")) for text in texts])
    assert 0.4 < named < 0.6 and all(set(wording.tokens(text)) <= set(wording.WORDS) for text in texts)
    assert not any(text.startswith((",", " ")) or not text for text in texts)


def test_details_are_drawn_in_their_shares(texts):
    singles = [caption(*draw_scene(seed), seed=seed) for seed in range(2000)]
    short = np.mean([len(wording.tokens(text)) < 14 for text in singles])
    assert DETAILS["short"] - 0.03 < short < 0.4
    assert len(set(texts)) > 0.9 * len(texts)


def test_impossible_captions_are_refused():
    people, faces, *rest = draw_scene(1, 2)
    with pytest.raises(ValueError, match="one to five people"):
        caption(people, faces[:1], *rest)
    with pytest.raises(ValueError, match="short, scene, full"):
        caption(people, faces, *rest, detail="long")


def test_prompts_are_plain():
    assert prompt_for({}) == "a portrait of a person"
    attributes = {"expression": "smile", "hat": "beret", "hat_color": "red", "clothes": "suit", "clothes_color": "blue",
                  "background": "beach", "style": "comic"}  # fmt: skip
    assert prompt_for(attributes) == (
        "a portrait of a person, smiling, wearing a red beret and a blue suit, at the beach, comic style"
    )
    face = {"presentation": "man", "age": "old", "hair_style": "afro", "hair_color": "red", "beard": "goatee"}
    assert prompt_for(face) == "a portrait of an old man with a red afro and a red goatee"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"colour": "red"}, "there are presentation"),
        ({"hat": "helmet"}, "cap, beanie, top hat"),
        ({"hat_color": "red"}, "give hat as well"),
        ({"hat": "none", "hat_color": "red"}, "give hat as well"),
    ],
)
def test_prompts_of_unknown_things_are_refused(attributes, message):
    with pytest.raises(ValueError, match=message):
        prompt_for(attributes)


def test_evaluation_prompts_are_what_their_attributes_ask_for(tokenizer):
    prompts = json.loads((ROOT / "data/prompts/identity.json").read_text())
    assert len(prompts) == len({prompt["name"] for prompt in prompts}) == 8
    for prompt in prompts:
        assert prompt["text"] == prompt_for(prompt["attributes"])
        assert set(prompt["attributes"]) <= {*factors.FACE_SCENE, *factors.SCENE}  # never what the identity decides
