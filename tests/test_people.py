"""The people protocol: who is drawn with whom, and what is measured on pictures of several."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import uniportrait_lite as upl
from uniportrait_lite.assignment import assign
from uniportrait_lite.errors import ConfigError, WeightsError
from uniportrait_lite.evaluation import people as protocol
from uniportrait_lite.evaluation.groups import Ask, Drawn, Found, Painter, among, figures, routed_right, seen
from uniportrait_lite.evaluation.portraits import settings
from uniportrait_lite.evaluation.subjects import Prompt, Subject
from uniportrait_lite.evaluation.witnesses import Witnesses
from uniportrait_lite.folders import data_folder
from uniportrait_lite.toyworld import Person, group, reference
from uniportrait_lite.toyworld.wording import WORDS, tokens
from uniportrait_lite.toyworld.worlds import world

PROMPTS = data_folder("tiny").parent / "prompts" / "people.json"
FACES = data_folder("tiny").parent / "faces"


def test_every_pair_is_drawn_with_each_its_prompts_and_noise_of_its_own():
    several, alone = protocol.people_prompts(PROMPTS)
    asks = protocol.plan(15, several, alone, each=2, triples=40, seed=0, larger=20)
    assert {k: len(part) for k, part in asks.items()} == {1: 15 * len(alone), 2: 210, 3: 80, 4: 40, 5: 40}
    assert len({frozenset(ask.who) for ask in asks[2]}) == 105
    assert len({frozenset(ask.who) for ask in asks[3]}) == 40
    assert len({ask.seed for number in (2, 3, 4, 5) for ask in asks[number]}) == 370
    used = [ask.prompt.name for ask in asks[2]]
    assert {used.count(prompt.name) for prompt in several} == {42}
    assert any(ask.who != tuple(sorted(ask.who)) for ask in asks[2])  # named in any order
    assert len({frozenset(ask.who) for ask in asks[5]}) == 20 and len(asks[5][0].who) == 5
    assert asks == protocol.plan(15, several, alone, each=2, triples=40, seed=0, larger=20)
    few = protocol.plan(3, several, alone, each=1, triples=40, seed=0, larger=20)
    assert {k: len(part) for k, part in few.items()} == {1: 3 * len(alone), 2: 3, 3: 1, 4: 0, 5: 0}


def test_prompts_are_words_of_the_world_and_fit_their_number():
    several, alone = protocol.people_prompts(PROMPTS)
    for number in protocol.NUMBERS.values():
        assert set(tokens(" ".join(p.text.format(number=number) for p in several))) <= set(WORDS)
    assert set(tokens(" ".join(p.text for p in alone))) <= set(WORDS)


def test_prompts_without_a_number_are_an_error_that_says_so(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([{"name": "a", "text": "two people", "attributes": {"style": "photo"}}]))
    with pytest.raises(ConfigError, match=r"'a' of .* needs \{number\}"):
        protocol.people_prompts(path)


@pytest.mark.parametrize(
    ("flags", "says"), [(["--rows", "routre"], "no row 'routre'"), (["--people", "2"], "people are 3 at least")]
)
def test_what_cannot_be_measured_is_an_error(tmp_path, flags, says):
    with pytest.raises(ConfigError, match=says):
        protocol.main([*flags, "--rows" if "--rows" not in flags else "--out", "masks", "--out", str(tmp_path)])


def test_faces_of_a_real_picture_are_matched_with_their_own_references_by_the_judge():
    witnesses = Witnesses(data_folder("tiny"))
    people = []
    for seed in (2_000_101, 2_000_102, 2_000_103):
        scene = reference(Person.random(seed), seed)
        face = witnesses.face(scene.image)
        people.append(Subject(Person.random(seed), world(), scene.image, face, [], None, None, 0))
    scene = group([subject.person for subject in people[::-1]], seed=5, style="photo", hat="none", glasses="none")
    found = seen(scene.image, people, witnesses)
    assert found.assignment.face_of == (2, 1, 0) and found.assignment.distinct
    assert min(found.assignment.matched) > 0.4 > 0.35 > among(found.embeddings)
    # the routing of a picture in which every place listened to the right, and to the wrong, person
    columns = torch.zeros(3, 16, 32)
    for person, face in enumerate(found.assignment.face_of):
        columns[person, :, [slice(0, 12), slice(12, 20), slice(20, 32)][face]] = 1
    right = routed_right({"up_blocks.0": columns, "down_blocks.0": columns.roll(1, 0)}, found)
    assert right["up_blocks"] > 0.95 and right["down_blocks"] < 0.05


def test_a_picture_without_faces_says_nothing_of_routing_and_blending():
    nothing = Found(
        np.zeros((0, 4)), np.zeros((0, 8)), assign(np.zeros((0, 4)), np.zeros((0, 8)), np.eye(2, 8)), (192, 128)
    )
    assert routed_right({"up_blocks.0": torch.zeros(2, 16, 24)}, nothing) == {}
    assert among(nothing.embeddings) is None and among(np.eye(2, 8)[:1]) is None
    assert among(np.eye(3)) == 0 and among(np.ones((2, 4)) / 2) == 1


@pytest.fixture(scope="module")
def known():
    """Three people as subjects, and the witnesses who know them."""
    witnesses, people = Witnesses(data_folder("tiny")), []
    for seed in (2_000_101, 2_000_102, 2_000_103):
        scene = reference(Person.random(seed), seed)
        face = witnesses.face(scene.image)
        people.append(Subject(Person.random(seed), world(), scene.image, face, [], None, None, 0))
    return people, witnesses


def test_figures_tell_who_is_there_who_is_alike_and_what_they_wear(known):
    """Of real pictures: the first is right and its second person wears the beret; in the other the first is twice."""
    people, witnesses = known
    first, second = people[0].person, people[1].person
    plain = {"glasses": "none", "expression": "neutral", "turn": 0.0}
    right = group([first, second], 5, **plain, style="photo", hat=["none", "beret"], hat_color=["red", "red"]).image
    twice = group([first, first], 6, **plain, style="comic", hat="none").image
    prompt = Prompt("photo", "two people", {"style": "photo"})
    asks = [Ask((0, 1), prompt, "two people", k) for k in range(2)]
    columns = torch.zeros(2, 16, 24)
    columns[0, :, :12] = columns[1, :, 12:] = 1
    nobody = torch.zeros_like(columns)
    maps = [
        {"down_blocks.0": columns.flip(0), "up_blocks.0": columns},
        {"down_blocks.0": nobody, "up_blocks.0": nobody + 1},
    ]
    alike = [among(seen(image, people[:2], witnesses).embeddings) for image in (right, twice)]
    found = figures("router", Drawn([right, twice], maps, 2.0), asks, people, witnesses, [alike[0], 0.0])
    names = ("pictures", "missing", "doubled", "once", "faces", "followed", "blending_of", "seconds")
    assert {name: found[name] for name in names} == {
        "pictures": 2, "missing": 0.5, "doubled": 0.5, "once": 0.5, "faces": 1.0, "followed": 0.5, "blending_of": 2,
        "seconds": 2.0,
    }  # fmt: skip
    assert found["wears"] == {"first": 0.0, "others": 0.5}
    assert found["blending"] == pytest.approx(alike[1] / 2) and alike[1] > 0.5 > alike[0]
    whole, lacking = found["lowest_each"]
    assert whole > 0.5 > lacking and found["lowest"] == pytest.approx((whole + lacking) / 2, abs=1e-4)
    assert found["matched"] > found["lowest"]
    assert found["routed"]["up_blocks"] > 0.95 and found["routed"]["down_blocks"] < 0.05
    # without a face nothing is followed, nobody is there, and blending is of the others
    empty = figures("router", Drawn([Image.new("RGB", (192, 128))], [], 1.0), asks[:1], people, witnesses, [0.1])
    names = ("missing", "once", "faces", "followed", "lowest", "blending", "routed")
    assert [empty[name] for name in names] == [1.0, 0.0, 0.0, 0.0, 0.0, None, {}]
    assert empty["wears"] == {"first": 0.0, "others": 0.0}


def test_a_real_picture_answers_the_prompt(known):
    people, witnesses = known
    ask = Ask((2, 0), Prompt("winter", "", {"background": "snow", "style": "comic"}), "", 3)
    read = witnesses.reader.read([protocol._real(ask, people)] * 2, [(40, 20, 88, 110), (104, 20, 152, 110)])
    assert [(face["background"], face["style"]) for face in read] == [("snow", "comic")] * 2


def test_routing_is_recorded_of_the_rows_with_people_with_guidance_and_without(known):
    people, _ = known
    up = upl.load("tiny")
    asks = [Ask((0, 1), Prompt("a", "", {}), "two people", k) for k in range(2)]
    for guidance, rows in ((3.0, 4), (1.0, 2)):
        knobs = settings(up.config.defaults, guidance=guidance)
        painter = Painter(up, people, knobs, 16, lambda done: None)
        conditions = painter._conditions("no_columns", asks)
        assert conditions.tokens.shape[:2] == (rows, 2) and conditions.routing.columns == 0
        psi = torch.rand(rows, 2, 4, 6)
        conditions.routing.record("up_blocks.0", psi, psi)
        assert torch.equal(painter.record.steps[0]["up_blocks.0"], psi[-2:])
        assert painter._conditions("columns", asks).routing.columns == 1
        assert painter._conditions("said", asks).said.tolist() == [[False, False]] * (rows - 2) + [[True, False]] * 2
        assert len(painter.draw("router", asks).images) == 2


def test_ablations_are_drawn_with_weights_of_their_own_where_they_can_be_compared(tmp_path, monkeypatch):
    full = data_folder("tiny") / "uniportrait"
    monkeypatch.chdir(tmp_path)
    for name in ("no_route", "control"):
        place = tmp_path / "runs" / f"multi_id_{name}" / "weights"
        shutil.copytree(full, place)
        config = json.loads((place / "config.json").read_text())
        config["encoders"] = {part: str((full / where).resolve()) for part, where in config["encoders"].items()}
        (place / "config.json").write_text(json.dumps(config))
        with safe_open(place / "multi_id.safetensors", "pt") as file:
            digest = file.metadata()
        tensors = load_file(place / "multi_id.safetensors")
        if name == "no_route":  # routers that say the contrary
            tensors = {key: -x if "theta.2" in key else x for key, x in tensors.items()}
        save_file(tensors, place / "multi_id.safetensors", digest)
    flags = ["--people", "3", "--triples", "0", "--larger", "0", "--prompts-each", "1", "--out", "out"]
    protocol.main([*flags, "--rows", "no_route,control,no_columns"])
    rows = {row["row"]: row for row in json.loads(Path("out/people.json").read_text())["rows"]}
    assert rows["control"]["lowest_each"] == rows["no_columns"]["lowest_each"] != rows["no_route"]["lowest_each"]
    assert rows["control"]["routed"] == rows["no_columns"]["routed"] != rows["no_route"]["routed"]
    recipe = tmp_path / "runs" / "multi_id_control" / "weights" / "multi_id.recipe.json"
    told = json.loads(recipe.read_text())
    recipe.write_text(json.dumps(told | {"config": told["config"] | {"route_weight": 0.1}}))
    places = [tmp_path / "runs" / f"multi_id_{name}" / "weights" for name in ("no_route", "control")]
    assert protocol._unlike(*places) is None
    recipe.write_text(json.dumps(told | {"steps": 7, "config": told["config"] | {"trios": 0.9}}))
    assert "trained with another steps, trios" in protocol._unlike(*places)
    with pytest.raises(WeightsError, match="row no_route is absent: .* another steps, trios"):
        protocol.main([*flags, "--rows", "no_route,control"])


def test_a_mixture_is_matched_by_its_shares():
    up = upl.load("tiny")
    ann, bob, picture = up.identity(FACES / "ann.png"), up.identity(FACES / "bob.png"), FACES / "ann.png"
    like = [up.assignment(picture, [ann.mix(bob, amount), bob]).matched[0] for amount in (0.0, 0.3, 0.7)]
    assert like[0] == pytest.approx(up.assignment(picture, [ann, bob]).matched[0], abs=1e-5)
    assert 1.001 > like[0] > like[1] > like[2]
    several = up.identity([FACES / "ann.png", FACES / "ann.png"])
    assert up.assignment(picture, [several]).matched[0] == pytest.approx(like[0], abs=1e-5)


def test_the_protocol_draws_and_measures_every_row_with_the_shipped_weights(tmp_path, capsys):
    few = ["--people", "3", "--triples", "1", "--larger", "1", "--prompts-each", "1"]
    flags = [*few, "--rows", "averaged,no_columns,columns,router,said,distinct,masks"]
    protocol.main([*flags, "--out", str(tmp_path)])
    result = json.loads((tmp_path / "people.json").read_text())
    rows = {(row["row"], row["number"]): row for row in result["rows"]}
    assert len(rows) == 1 + 7 * 2 and rows["alone", 1]["pictures"] == 15
    for row in rows.values():
        assert -1 <= row["lowest"] <= row["matched"] <= 1 and row["seconds"] > 0
        assert row["pictures"] == len(row["lowest_each"]) and 0 <= row["followed"] <= 1
    for number in (2, 3):
        assert rows["averaged", number]["routed"] == {}  # one identity as far as the U-Net knows
        assert set(rows["router", number]["routed"]) <= {"down_blocks", "mid_block", "up_blocks"}
        assert rows["no_columns", number]["lowest_each"] != rows["router", number]["lowest_each"]
        assert rows["masks", number]["routed"]["up_blocks"] > 0.9
        assert rows["said", number]["lowest_each"] != rows["router", number]["lowest_each"]
        assert rows["columns", number]["routed"] == {}
        assert (
            rows["averaged", number]["lowest"] < 0.45 < rows["router", number]["lowest"]
        )  # what the second half is for
        assert rows["router", number]["once"] == 1 and rows["router", number]["routed"]["up_blocks"] > 0.8
        assert rows["router", number]["tries"] is None and 0 <= rows["distinct", number]["tries"] <= 3
    alone = np.reshape(rows["alone", 1]["lowest_each"], (3, 5))  # of the pairs 01, 02 and 12 with prompts 0, 1 and 2
    expected = [alone[[0, 1], 0].min(), alone[[0, 2], 1].min(), alone[[1, 2], 2].min()]
    assert rows["router", 2]["lowest_alone"] == pytest.approx(np.mean(expected))
    text = (tmp_path / "people.md").read_text()
    assert text.strip() in capsys.readouterr().out and "## Triples" in text and "| distinct" in text
    assert (tmp_path / "people_3_masks.png").is_file()
    protocol.main([*few, "--rows", "router", "--columns", "0", "--out", str(tmp_path / "free")])
    for row in json.loads((tmp_path / "free" / "people.json").read_text())["rows"][1:]:
        assert row["lowest_each"] == rows["no_columns", row["number"]]["lowest_each"]


def test_four_and_five_people_are_drawn_and_reported(tmp_path):
    flags = ["--people", "5", "--triples", "0", "--larger", "1", "--prompts-each", "1"]
    protocol.main([*flags, "--rows", "router", "--out", str(tmp_path)])
    rows = {row["number"]: row for row in json.loads((tmp_path / "people.json").read_text())["rows"]}
    assert set(rows) == {1, 2, 4, 5} and (rows[4]["pictures"], rows[5]["pictures"]) == (1, 1)
    for number in (4, 5):
        assert rows[number]["faces"] == 1 and rows[number]["lowest"] > 0.3  # a stranger's is about 0
    text = (tmp_path / "people.md").read_text()
    assert "## Fours" in text and "## Fives" in text and "## Triples" not in text


def test_routers_of_other_single_id_weights_are_no_ablation(tmp_path):
    full = data_folder("tiny") / "uniportrait"
    assert "no multi_id.safetensors" in protocol._unfit(tmp_path, full)
    for name in ("model.safetensors", "multi_id.safetensors"):
        (tmp_path / name).write_bytes((full / name).read_bytes())
    assert protocol._unfit(tmp_path, full) is None
    with (tmp_path / "model.safetensors").open("ab") as file:
        file.write(b" ")
    assert "other single-ID weights" in protocol._unfit(tmp_path, full)


def test_words_for_one_person_are_drawn_on_that_person_alone():
    witnesses, wearing = Witnesses(data_folder("tiny")), {"hat": "beret", "hat_color": "red"}
    up, worn = upl.load("tiny"), []
    people = [up.identity(FACES / f"{name}.png") for name in ("ann", "bob", "cleo", "dan")]
    for k, (first, other) in enumerate([(0, 1), (1, 2), (2, 3), (3, 0)]):
        out = up("two people in the park", [people[first].saying("wearing a red beret"), people[other]], seed=k)
        found = witnesses.faces.detect(out.images[0])  # from left to right, as people are named
        read = witnesses.reader.read([out.images[0]] * len(found), [face.box for face in found])
        worn.append([all(each[name] == value for name, value in wearing.items()) for each in read])
    assert sum(each[0] for each in worn) >= 3 and not any(any(each[1:]) for each in worn), worn
