"""Condition images, and people in existing pictures."""

import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file

import uniportrait_lite as upl
from uniportrait_lite import cli, compose, controls
from uniportrait_lite.compose.style import invert
from uniportrait_lite.errors import ConfigError, NoFaceError, PictureError
from uniportrait_lite.evaluation import composition, face_similarity
from uniportrait_lite.evaluation.composition import edge_agreement, pose_errors
from uniportrait_lite.folders import data_folder
from uniportrait_lite.toyworld import Person, group, portrait
from uniportrait_lite.toyworld.splits import HELD_OUT

FACES = data_folder().parent / "faces"


@pytest.fixture(scope="module")
def up():
    return upl.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def cleo() -> Image.Image:
    return Image.open(FACES / "cleo.png").convert("RGB").resize((128, 128))


# --- condition images -----------------------------------------------------------------------------------------------
def test_a_figure_is_where_the_landmarks_are_and_another_limb_has_another_colour():
    points = np.float32([[40, 40], [80, 40], [60, 60], [48, 80], [72, 80]])
    pixels = np.asarray(controls.pose([points], (128, 96)))
    assert pixels.shape == (96, 128, 3)
    assert all((pixels[int(y), int(x)] == 255).all() for x, y in points)
    rows, columns = np.nonzero(pixels.any(-1))
    assert rows.min() >= 34 and rows.max() <= 86 and columns.min() >= 34 and columns.max() <= 86
    assert len({tuple(pixels[y, x]) for y, x in ((40, 60), (50, 50), (80, 60))}) == 3
    moved = np.asarray(controls.pose([points + [20, 0]], (128, 96)))
    assert np.array_equal(moved[:, 20:], pixels[:, :-20])
    assert not np.asarray(controls.pose([], (64, 64))).any()


def test_every_person_of_a_scene_gets_a_figure_of_their_own():
    scene = group([Person.random(HELD_OUT[n]) for n in range(3)], seed=2)
    figures = np.asarray(controls.pose([face.landmarks for face in scene.faces], scene.image.size))
    for face in scene.faces:
        left, _, right, _ = map(int, face.box)
        assert figures[:, left:right].any()
    gaps = [int((a.box[2] + b.box[0]) / 2) for a, b in zip(scene.faces, scene.faces[1:], strict=False)]
    assert not figures[:, gaps].any()


def test_the_figures_found_in_a_picture_are_those_of_its_truth():
    scene = portrait(Person.random(HELD_OUT[3]), seed=5, style="photo", glasses="none")
    found, true = (np.asarray(x).any(-1) for x in (
        compose.pose_of(scene.image), compose.pose([scene.faces[0].landmarks], scene.image.size)
    ))  # fmt: skip
    assert (found & true).sum() > 0.4 * (found | true).sum()
    with pytest.raises(NoFaceError, match="landmarks to controls.pose"):
        compose.pose_of(Image.new("RGB", (128, 128), "grey"))


def test_edges_are_where_a_picture_changes():
    picture = Image.new("RGB", (64, 64), "black")
    picture.paste("white", (32, 0, 64, 64))
    found = np.asarray(compose.edges_of(picture.convert("L")))  # any mode
    assert found.shape == (64, 64, 3) and set(np.unique(found)) == {0, 255}
    assert found[:, 29:35].any(axis=(1, 2)).all() and not found[:, :28].any() and not found[:, 36:].any()


def test_annotators_are_those_of_an_optional_library():
    picture = Image.new("RGB", (96, 64), "black")
    picture.paste("white", (48, 0, 96, 64))
    if importlib.util.find_spec("controlnet_aux") is None:
        with pytest.raises(ConfigError, match="pip install controlnet-aux; .*compose.edges_of"):
            compose.annotated(picture, "canny")
        pytest.skip("controlnet_aux is not installed")
    found = np.asarray(compose.annotated(picture, "canny"))
    assert found.shape == (64, 96, 3) and found[:, 44:52].any(axis=(1, 2)).all() and not found[:, :40].any()
    with pytest.raises(ConfigError, match="no annotator 'cany': .*canny"):
        compose.annotated(picture, "cany")


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (lambda: controls.pose([np.zeros((4, 2))], (64, 64)), r"person 0: landmarks are five points .*\(4, 2\)"),
        (lambda: controls.pose([np.full((5, 2), np.nan)], (64, 64)), "five points"),
        (lambda: controls.edges(Image.new("RGB", (8, 8)), 200, 100), "thresholds"),
    ],
)
def test_what_no_condition_can_be_made_of_is_said(draw, says):
    with pytest.raises(ConfigError, match=says):
        draw()


# --- into existing pictures -----------------------------------------------------------------------------------------
def test_a_face_is_swapped_and_nothing_else_changes(up, cleo):
    mask = compose.face_mask(cleo)
    ann = up.identity(FACES / "ann.png")
    out = compose.inpaint(up, "a photo of a woman", cleo, mask, ann, seed=0)
    before, after, inside = (np.asarray(x) for x in (cleo, out, mask))
    assert np.array_equal(before[inside == 0], after[inside == 0])
    assert np.abs(before[inside > 0].astype(int) - after[inside > 0]).mean() > 15
    assert face_similarity(out, FACES / "ann.png") > face_similarity(out, FACES / "cleo.png") + 0.1
    assert np.array_equal(after, np.asarray(compose.inpaint(up, "a photo of a woman", cleo, mask, ann, seed=0)))


def test_columns_are_the_pictures_and_asked_for_where_only_a_part_of_it_is_drawn(up, cleo):
    two = [up.identity(FACES / f"{name}.png") for name in ("ann", "bob")]
    mask = np.ones((cleo.height, cleo.width), bool)
    free, columned, default = (
        np.asarray(compose.inpaint(up, "two people", cleo, mask, two, seed=0, steps=4, **given))
        for given in ({"columns": 0}, {"columns": 0.5}, {})
    )
    assert np.array_equal(free, default) and not np.array_equal(free, columned)
    styled = [compose.in_style(up, "two people", cleo, two, steps=3, columns=share) for share in (0, 0.7)]
    assert styled[1].info["columns"] == "0.7" and styled[0].info["columns"] == "0.0"
    assert styled[0].info["prompt"] == "two people" and styled[0].info["weights"] == "tiny/uniportrait"
    assert not np.array_equal(*map(np.asarray, styled))


def test_clothes_change_and_the_face_stays(up, cleo):
    mask = compose.clothes_mask(cleo)
    out = compose.inpaint(up, "a photo of a woman wearing a blue hoodie", cleo, mask, up.identity(FACES / "cleo.png"))
    assert face_similarity(out, cleo) > 0.98
    before, after = (np.asarray(image)[110:, 48:80].mean(axis=(0, 1)) for image in (cleo, out))
    assert before[0] > before[2] and after[2] > after[0] + 20  # pink, then blue


def test_masks_of_every_kind_and_pictures_of_any_size_are_taken(up, cleo):
    odd = cleo.resize((150, 131))
    half = np.zeros((131, 150), bool)
    half[:, 75:] = True
    outs = [compose.inpaint(up, "the beach", odd, mask, seed=3, steps=2) for mask in (half, half * 255, half * 1.0)]
    outs.append(compose.inpaint(up, "the beach", odd, Image.fromarray(np.uint8(255 * half)), seed=3, steps=2))
    assert [outs[0].info[name] for name in ("prompt", "seed", "steps", "people")] == ["the beach", "3", "2", "0"]
    assert all(out.size == (150, 131) for out in outs)
    assert all(np.array_equal(np.asarray(out), np.asarray(outs[0])) for out in outs[1:])
    assert np.array_equal(np.asarray(outs[0])[:, :75], np.asarray(odd)[:, :75])


def test_a_large_picture_is_drawn_at_the_models_size_and_keeps_its_own(up):
    large = Image.open(FACES / "cleo.png").convert("RGB")
    assert large.size == (256, 256)
    mask = compose.face_mask(large)
    out = compose.inpaint(up, "a photo of a woman", large, mask, up.identity(FACES / "ann.png"), seed=0)
    assert out.size == (256, 256) and len(upl.faces.detect(out)) == 1
    assert np.array_equal(np.asarray(out)[np.asarray(mask) == 0], np.asarray(large)[np.asarray(mask) == 0])
    assert face_similarity(out, FACES / "ann.png") > face_similarity(out, FACES / "cleo.png") + 0.1


def test_the_mask_of_a_head_covers_its_box_and_that_of_clothes_lies_below(cleo):
    scene = portrait(Person.random(HELD_OUT[3]), seed=5, style="photo", glasses="none", hat="none")
    left, top, right, bottom = scene.faces[0].box
    head, clothes = (np.asarray(mask(scene.image)) for mask in (compose.face_mask, compose.clothes_mask))
    assert head[int(top) + 2 : int(bottom) - 2, int((left + right) / 2)].all() and head.mean() < 0.6 * 255
    assert not clothes[: int(bottom) - 4].any() and clothes[-1, int((left + right) / 2)] == 255
    with pytest.raises(NoFaceError):
        compose.face_mask(Image.new("RGB", (64, 64)))


@pytest.mark.parametrize(
    ("mask", "given", "says"),
    [
        (np.zeros((128, 128)), {}, "the mask is empty"),
        (np.ones((64, 64)), {}, r"the mask is \(64, 64\), the picture \(128, 128\)"),
        (np.ones((128, 128)), {"strength": 0.01}, "leaves none of 8 steps"),
        (np.ones((128, 128)), {"strength": 2}, "strength"),
        ([1, 2, 3], {}, "they are of one shape"),
    ],
)
def test_masks_and_settings_that_cannot_be_are_said(up, cleo, mask, given, says):
    with pytest.raises(ConfigError, match=says):
        compose.inpaint(up, "a woman", cleo, mask, **given)
    with pytest.raises(PictureError):
        compose.inpaint(up, "a woman", "nothing.png", np.ones((8, 8)))


# --- sequences ------------------------------------------------------------------------------------------------------
def test_a_story_has_its_people_in_every_panel_and_says_who_is_there(up):
    ann, bob = (up.identity(FACES / f"{name}.png") for name in ("ann", "bob"))
    panels = [("a woman at the beach", ann), ("a woman and a man in the park", [ann, bob]), ("the mountains", [])]
    told = compose.story(up, panels, seed=4, steps=10)
    assert [image.width for image in told.images] == [128, 192, 128]
    assert [None if a is None else len(a.face_of) for a in told.assignments] == [1, 2, None]
    assert told.everyone_once == tuple(a is None or a.distinct for a in told.assignments) and told.everyone_once[2]
    alone = up("a woman at the beach", ann, seed=4, steps=10, distinct=True).images[0]
    assert np.array_equal(np.asarray(alone), np.asarray(told.images[0]))
    strip = told.strip(height=128, captions=["one", "two", "three"])
    assert strip.width == 128 + 192 + 128 + 4 * 8 and 128 < strip.height < 200
    assert np.array_equal(np.asarray(strip)[8:136, 8:136], np.asarray(told.images[0]))
    assert strip.info["prompt"] == "; ".join(told.prompts) and strip.info["steps"] == "10"
    assert strip.info["base"] and not {"people", "seed"} & strip.info.keys()  # which the panels do not share
    long = told.strip(height=128, captions=["a very long story " * 5, "two", "three"])
    assert long.height > strip.height and (np.asarray(long)[140:, 8:120] < 128).any()
    with pytest.raises(ConfigError, match="2 captions for 3 panels"):
        told.strip(captions=["one", "two"])


def test_a_way_from_person_to_person_begins_with_one_and_ends_with_the_other(up):
    ann, bob = (up.identity(FACES / f"{name}.png") for name in ("ann", "bob"))
    frames = compose.morph(up, "a photo of a person", [ann, bob], frames=3, seed=1, steps=6)
    ends = [up("a photo of a person", who, seed=1, steps=6).images[0] for who in (ann, bob)]
    first, middle, last = (np.asarray(frame).astype(int) for frame in frames)
    for frame, end in ((first, ends[0]), (last, ends[1])):
        assert np.abs(frame - np.asarray(end)).max() <= 2  # a mixture that holds nothing of the other, up to rounding
    apart = np.abs(first - last).mean()
    assert np.abs(first - middle).mean() < apart and np.abs(middle - last).mean() < apart
    moods = compose.morph(up, ["a smiling woman", "an angry woman"], ann, seed=1, steps=4)
    assert len(moods) == 2 and not np.array_equal(*map(np.asarray, moods))


def test_an_animation_goes_there_and_back(tmp_path):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "green", "blue")]
    for name in ("a.gif", "b.webp"):
        with Image.open(compose.save_animation(frames, tmp_path / "new" / name, seconds=0.4)) as read:
            assert read.n_frames == 4 and read.info["loop"] == 0
            colors = []
            for k in range(4):
                read.seek(k)
                colors.append(int(np.asarray(read.convert("RGB")).mean((0, 1)).argmax()))
                assert read.info["duration"] == 100
        assert colors == [0, 1, 2, 1]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.gif", "b.webp"]
    with pytest.raises(PictureError, match="ends in .gif or .webp"):
        compose.save_animation(frames, tmp_path / "a.png")
    with pytest.raises(ConfigError, match="two frames"):
        compose.save_animation(frames[:1], tmp_path / "a.gif")
    with pytest.raises(ConfigError, match="of one size"):
        compose.save_animation([frames[0], Image.new("RGB", (8, 8))], tmp_path / "a.gif")


def test_what_is_no_story_and_no_way_is_said(up):
    ann = up.identity(FACES / "ann.png")
    for panels in ([], ["a woman"], [("a woman",)]):
        with pytest.raises(ConfigError, match="a story is a list of panels"):
            compose.story(up, panels)
    for prompts, people in (("a woman", [ann]), (["a", "b"], [ann, ann])):
        with pytest.raises(ConfigError):
            compose.morph(up, prompts, people)
    with pytest.raises(ConfigError, match="a frame for each"):
        compose.morph(up, "a woman", [ann, ann, ann], frames=2)


# --- style ----------------------------------------------------------------------------------------------------------
def test_a_picture_goes_to_noise_by_steps_that_lead_back(up):
    image = portrait(Person.random(HELD_OUT[5]), seed=3, style="comic").image
    way = invert(up.pipe, image, 20)
    assert len(way) == 21 and way[0].shape == way[-1].shape
    scheduler = DDIMScheduler.from_config(up.pipe.scheduler.config)
    scheduler.set_timesteps(20)
    text = up.pipe.encode_prompt("", up.pipe.device, 1, False)[0]
    for number in (1, 6, 14):  # one step back from the latents after so many steps
        timestep = scheduler.timesteps[-number]
        with torch.no_grad():
            predicted = up.unet(way[number], timestep, text).sample
        back = scheduler.step(predicted, timestep, way[number]).prev_sample
        taken, wanted = (x.flatten() - way[number].flatten() for x in (back, way[number - 1]))
        assert torch.cosine_similarity(taken, wanted, dim=0) > 0.7 and 0.7 < taken.norm() / wanted.norm() < 1.4
    assert (way[-1] - way[0]).norm() > way[0].norm() / 2


def test_the_style_of_a_picture_comes_through_and_the_person_stays(up):
    bob = up.identity(FACES / "bob.png")
    spread = {}
    for style in ("comic", "noir"):
        reference = portrait(Person.random(HELD_OUT[5]), seed=3, style=style, background="park", hat="none").image
        out = compose.in_style(up, "", reference, bob, seed=2)
        values = np.asarray(out.convert("HSV"), float)
        spread[style] = values[:60, :, 1].mean()  # how colourful the upper half is
        assert out.size == (128, 128)
        assert face_similarity(out, FACES / "bob.png") > face_similarity(out, reference) + 0.1
    assert spread["noir"] < 0.7 * spread["comic"]
    wide = compose.in_style(up, "two people", Image.new("RGB", (300, 200), "teal"), seed=0, steps=2)
    assert wide.size == (192, 128)


def test_any_pipeline_that_one_is_attached_to_will_do(up, cleo):
    parts = {**up.pipe.components, "unet": UNet2DConditionModel.from_pretrained(data_folder() / "sd" / "unet").eval()}
    control = ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(4, 4, 8, 8))
    pipe = StableDiffusionControlNetPipeline(**parts, controlnet=control, requires_safety_checker=False)
    other = upl.UniPortrait.attach(pipe, data_folder() / "uniportrait")
    ann = other.identity(FACES / "ann.png")
    given = {"seed": 3, "steps": 3}
    swapped = [compose.inpaint(u, "a woman", cleo, compose.face_mask(cleo), ann, **given) for u in (other, up)]
    styled = [compose.in_style(u, "a woman", cleo, ann, **given) for u in (other, up)]
    for a, b in (swapped, styled):
        assert np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 1


def test_a_style_that_cannot_be_is_said(up):
    grey = Image.new("RGB", (128, 128), "grey")
    for given, says in (({"shift": 1e9}, "shift"), ({"guidance": 0.5}, "guidance"), ({"steps": 1}, "steps")):
        with pytest.raises(ConfigError, match=says):
            compose.in_style(up, "a man", grey, **given)


# --- the evaluation -------------------------------------------------------------------------------------------------
def test_edges_agree_within_a_pixel_and_no_further():
    line = np.zeros((20, 20), bool)
    line[:, 10] = True
    assert edge_agreement(line, line) == 1 == edge_agreement(line, np.roll(line, 1, axis=1))
    assert edge_agreement(line, np.roll(line, 2, axis=1)) == 0 == edge_agreement(line, np.zeros_like(line))
    both = line | np.roll(line, 5, axis=1)
    assert edge_agreement(both, line) == pytest.approx(2 / 3)  # half of its edges are there, and all of the other's


def test_pose_errors_are_in_widths_of_the_face_that_is_meant():
    scene = group([Person.random(HELD_OUT[n]) for n in range(2)], seed=2)
    width = scene.faces[0].box[2] - scene.faces[0].box[0]
    moved = [SimpleNamespace(landmarks=face.landmarks + [0, 0.1 * width]) for face in scene.faces[::-1]]
    assert pose_errors(moved, scene)[0] == pytest.approx(0.1, rel=1e-3)
    assert len(pose_errors(moved[:1], scene)) == 2 and max(pose_errors(moved[:1], scene)) > 0.5
    assert pose_errors([], scene) == []


def test_the_compose_protocol_runs_and_says_what_could_not_be_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(composition, "ASKED", ("place",))
    both = ("pose", "edges")
    tools = {"none": ((), 1.0), "edges": (("edges",), 1.0), "both, at 0.1": (both, 0.1), "depth": (("depth",), 1.0)}
    monkeypatch.setattr(composition, "TOOLS", tools)
    assert cli.main(["evaluate", "compose", "--people", "4", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "compose.json").read_text())
    text, portraits, *beside = result["tools"]
    (edges, little) = ([row["edges"] for row in beside if row["tool"] == name] for name in ("edges", "both, at 0.1"))
    assert min(edges) > max(little) + 0.05 and len(edges) == len(little) == 2  # a scale is of each of the ControlNets
    assert text["similar"] is None and portraits["similar"] > 0.1 and text["faces"] == portraits["faces"] == 1
    assert 0 < portraits["pose"] < 0.5 and 0 < portraits["edges"] < 1
    assert result["swapped"]["changed_outside"] == 0 and result["swapped"]["similar"] > result["swapped"]["to_the_old"]
    looks = {row["way"]: row for row in result["looks"]}
    assert all(row["look"] > row["plain"] for row in looks.values())
    assert looks["style LoRA"]["similar"] < looks["style LoRA, at 0.7"]["similar"]  # less leaves more of them
    assert looks["style transfer"]["seconds"] > 1.3 * looks["style transfer"]["without"] > 0 < text["seconds"]
    table = (tmp_path / "compose.md").read_text()
    assert "| followed | seconds |" in table and "| plain | seconds | seconds without |" in " ".join(table.split())
    assert "depth: not measured, no " in capsys.readouterr().out and "pretrain depth" in result["absent"]["depth"]
    assert (tmp_path / "compose_swapped.png").is_file()
    assert cli.main(["evaluate", "compose", "--people", "1"]) == 1


# --- beside ControlNets and LoRAs ------------------------------------------------------------------------------------
def controlled_by(net) -> upl.UniPortrait:
    unet = UNet2DConditionModel.from_pretrained(data_folder() / "sd" / "unet").eval()
    parts = {**upl.load("tiny", device="cpu").pipe.components, "unet": unet}
    pipe = StableDiffusionControlNetPipeline(**parts, controlnet=net(unet), requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return upl.UniPortrait.attach(pipe, data_folder() / "uniportrait")


def steering(unet) -> ControlNetModel:
    """A ControlNet of random weights, which shows in pictures."""
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 8, 8))
    torch.nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=0.1)
    torch.nn.init.normal_(net.controlnet_mid_block.weight, std=0.1)
    return net


def test_a_control_net_of_another_base_is_said_when_attaching():
    other = dict(in_channels=4, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=128,
                 down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=16,
                 conditioning_embedding_out_channels=(4, 4, 8, 8))  # fmt: skip
    for nets in (lambda unet: ControlNetModel(**other), lambda unet: [steering(unet), ControlNetModel(**other)]):
        with pytest.raises(ConfigError, match="for another base model: its in_channels is 4, the U-Net's 8"):
            controlled_by(nets)


def test_conditions_of_any_size_and_mode_and_more_or_fewer_figures_than_people_are_taken():
    up = controlled_by(steering)
    ann, bob = (up.identity(FACES / f"{name}.png") for name in ("ann", "bob"))
    points = np.float32([[52, 60], [76, 60], [64, 72], [55, 82], [73, 82]])
    figures = controls.pose([points], (128, 128))

    def draw(people, image, **given) -> np.ndarray:
        return np.asarray(up("people", people, seed=1, steps=2, image=image, **given).images[0]).astype(int)

    plain = draw([ann], figures, height=128, width=128)
    large = draw([ann], figures.resize((256, 256), Image.Resampling.NEAREST), height=128, width=128)
    assert plain.shape == large.shape == (128, 128, 3) and np.abs(plain - large).mean() < 2
    grey = draw([ann], figures.convert("L"), height=128, width=128)
    assert np.array_equal(grey, draw([ann], figures.convert("L").convert("RGB"), height=128, width=128))
    assert np.array_equal(draw([ann], figures.convert("RGBA"), height=128, width=128), plain)
    two = controls.pose([points, points + [64, 0]], (192, 128))
    for people, image in (([ann], two), ([ann, bob], controls.pose([points], (192, 128)))):
        assert draw(people, image, height=128, width=192, columns=0).shape == (128, 192, 3)  # 0: routers decide
    with pytest.raises(TypeError, match="image must be passed"):  # diffusers' own, of no condition at all
        draw([ann], None)


def test_a_style_lora_takes_the_weight_that_its_user_gives_it_beside_identities(up):
    ann, folder = up.identity(FACES / "ann.png"), data_folder() / "lora"

    def draw() -> np.ndarray:
        return np.asarray(up("a woman", ann, seed=1, steps=4).images[0]).astype(int)

    before, pictures = draw(), {}
    up.pipe.load_lora_weights(str(folder), weight_name="glass.safetensors", adapter_name="glass")
    try:
        for weight in (0.0, 0.5, 1.0):
            up.pipe.set_adapters("glass", weight)  # which names the style alone: the identity's own LoRA stays in use
            pictures[weight] = draw()
    finally:
        up.pipe.delete_adapters("glass")
    away = {weight: np.abs(picture - before).mean() for weight, picture in pictures.items()}
    assert away[0.0] == 0 and 1 < away[0.5] < away[1.0]
    assert np.array_equal(draw(), before)


def test_a_lora_that_fits_nothing_is_an_error_of_the_libraries_and_changes_nothing(up, tmp_path):
    ann = up.identity(FACES / "ann.png")

    def draw() -> np.ndarray:
        return np.asarray(up("a woman", ann, seed=1, steps=2).images[0])

    before = draw()
    nowhere = {f"unet.nowhere.to_q.lora_{x}.weight": torch.ones(4, 4) for x in "AB"}
    save_file(nowhere, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="nowhere"):  # diffusers and peft say what they looked for
        up.pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors", adapter_name="odd")
    assert np.array_equal(draw(), before)
