"""ID routing: the router, its loss, and several people in the calls of a pipeline (small random networks)."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPAGPipeline
from method_parts import WIDTH, crop, small_pipe, small_unet, write_weights
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from uniportrait_lite import ConfigError, UniPortrait, WeightsError, attention, checkpoints
from uniportrait_lite.assignment import assign
from uniportrait_lite.attention import IDConditions, add_routers, attach_id_attention
from uniportrait_lite.distinct import one_region_each, settle
from uniportrait_lite.folders import data_folder
from uniportrait_lite.id_routing import (
    IDRouter,
    Routing,
    RoutingMaps,
    box_masks,
    columns,
    gumbel,
    layer_size,
    one_hot,
    routing_accuracy,
    routing_loss,
)
from uniportrait_lite.regions import regions

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
PROMPT = "two people in a park"


# --- the router -------------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_logits_are_the_papers_product_of_theta_and_phi():
    torch.manual_seed(0)
    router = IDRouter(8, WIDTH)
    positions, tokens = torch.randn(2, 5, 8), torch.randn(2, 3, 16, WIDTH)
    weights = router.aggregate.weight[0]
    one = torch.einsum("bntd,t->bnd", tokens, weights) + router.aggregate.bias
    expected = torch.einsum("blc,bnc->bnl", router.theta(positions), router.phi(one))
    torch.testing.assert_close(router.logits(positions, router.keys(tokens)), expected)
    hidden = {part: module[0].out_features for part, module in (("theta", router.theta), ("phi", router.phi))}
    assert hidden == {"theta": 16, "phi": 2 * WIDTH}
    assert router.theta[2].bias is None and router.phi[2].bias is None


def test_a_draw_is_one_hot_with_the_soft_draws_gradient():
    logits = torch.randn(2, 3, 7, requires_grad=True)
    weight = torch.randn(2, 3, 7)
    gradients = []
    for hard in (True, False):
        torch.manual_seed(1)
        drawn = gumbel(logits, temperature=0.7, hard=hard)
        torch.testing.assert_close(drawn.sum(1), torch.ones(2, 7))
        assert torch.equal(drawn.detach().round(decimals=5).unique(), torch.tensor([0.0, 1.0])) == hard
        gradients.append(torch.autograd.grad((drawn * weight).sum(), logits)[0])
    torch.testing.assert_close(*gradients)


def test_draws_follow_the_softmax_of_the_logits():
    torch.manual_seed(0)
    logits = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1).expand(1, 3, 20_000)
    torch.testing.assert_close(gumbel(logits).mean(2)[0], logits[0, :, 0].softmax(0), atol=0.02, rtol=0)


@torch.no_grad()
def test_each_location_takes_the_attention_of_its_own_identity_alone():
    unet = small_unet()
    layer = next(iter(attach_id_attention(unet).values()))
    attn = unet.get_submodule(layer.name)
    torch.manual_seed(0)
    hidden, tokens = torch.randn(1, 256, 8), torch.randn(1, 2, 16, WIDTH)
    masks = box_masks(torch.tensor([[LEFT, RIGHT]]), (16, 16))

    def branch(tokens, routing=None):
        conditions = IDConditions(tokens, routing=routing)
        psi = layer.psi(hidden, conditions)
        query = attention.split(attn.to_q(hidden), attn.heads)
        return attention.merge(layer.identity_branch(query, conditions, psi)).view(16, 16, -1)

    both = branch(tokens, Routing((16, 16), masks))
    torch.testing.assert_close(both[:, :8], branch(tokens[:, :1])[:, :8])
    torch.testing.assert_close(both[:, 8:], branch(tokens[:, 1:])[:, 8:])
    alone = branch(tokens[:, :1], Routing((16, 16), masks[:, :1]))
    torch.testing.assert_close(alone[:, :8], both[:, :8])
    assert not alone[:, 8:].any()


@torch.no_grad()
def test_without_noise_every_location_has_one_identity_and_with_it_too():
    unet = small_unet()
    id_attention = attach_id_attention(unet)
    add_routers(id_attention)
    layer = next(iter(id_attention.values()))
    hidden, tokens, seen = torch.randn(2, 256, 8), torch.randn(2, 3, 16, WIDTH), []
    for temperature in (None, 1.0):
        routing = Routing((16, 16), temperature=temperature, record=lambda *found: seen.append(found))
        layer.psi(hidden, IDConditions(tokens, routing=routing))
    for name, psi, logits in seen:
        assert name == layer.name and psi.shape == logits.shape == (2, 3, 16, 16)
        torch.testing.assert_close(psi.sum(1), torch.ones(2, 16, 16))
        torch.testing.assert_close(psi.amax(1), torch.ones(2, 16, 16))
    assert torch.equal(seen[0][1], one_hot(seen[0][2]))
    assert not torch.equal(seen[0][1], seen[1][1])


def test_levels_of_the_unet_are_told_by_their_length():
    assert [layer_size((16, 24), n) for n in (384, 96, 24)] == [(16, 24), (8, 12), (4, 6)]
    assert layer_size((15, 9), 8 * 5) == (8, 5)
    with pytest.raises(ConfigError, match="no level"):
        layer_size((16, 16), 100)


# --- the loss ---------------------------------------------------------------------------------------------------------
def test_the_routing_loss_is_nothing_where_the_map_is_the_masks_and_the_background_is_free():
    boxes = torch.tensor([[(0.0, 0.0, 0.25, 0.5), (0.5, 0.0, 1.0, 0.5)]])
    masks = box_masks(boxes, (4, 4))
    assert masks[0, 0].tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0] * 4, [0] * 4]
    background = masks.clone()
    background[:, 0][masks.sum(1) == 0] = 1
    assert routing_loss({"a": background, "b": box_masks(boxes, (8, 8))}, boxes) == 0
    # (1/N) of N squares of 1 where the map names the other, of 1/4 where it names nobody in particular
    assert routing_loss({"a": background.flip(1)}, boxes) == 1
    assert routing_loss({"a": torch.full((1, 2, 4, 4), 0.5)}, boxes) == 0.25
    assert routing_loss({"a": background.flip(1), "b": box_masks(boxes, (8, 8))}, boxes) == 0.5
    accuracy = routing_accuracy({"a": background, "b": background.flip(1)}, boxes)
    assert accuracy == {"a": 1, "b": 0}


def test_boxes_that_overlap_do_not_count_for_accuracy():
    boxes = torch.tensor([[(0.0, 0.0, 0.75, 1.0), (0.25, 0.0, 1.0, 1.0)]])
    left = box_masks(torch.tensor([[LEFT, RIGHT]]), (4, 4))
    assert routing_accuracy({"a": left}, boxes)["a"] == 1


# --- masks as users have them -----------------------------------------------------------------------------------------
def test_arrays_pictures_and_boxes_are_the_same_regions():
    half = np.zeros((128, 192), bool)
    half[:, :96] = True
    kinds = [half, half.astype(np.uint8) * 255, half * 1.0, torch.from_numpy(half), Image.fromarray(half)]
    kinds += [(0, 0, 96, 128), np.kron(half, np.ones((2, 2))), half[::8, ::8], torch.from_numpy(half).bfloat16()]
    white_first = Image.fromarray(np.where(half, 0, 1).astype(np.uint8), "P")  # whose 0 is white, as in GIFs
    white_first.putpalette([255, 255, 255, 0, 0, 0])
    kinds += [white_first, Image.fromarray(half).convert("RGBA")]
    for region in regions(kinds, (16, 24), 8)[0]:
        assert torch.equal(region[:, :12], torch.ones(16, 12)) and not region[:, 12:].any()
    cut = regions([(4, 4, 12, 8)], (16, 24), 8)[0, 0]
    assert cut[0, :3].tolist() == [0.25, 0.25, 0] and cut.sum() == 0.5


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (np.zeros((128, 192)), "leaves its person nothing"),
        ((200, 0, 300, 128), "leaves its person nothing"),
        (np.ones((128, 128)), "128x128 and the picture 192x128"),
        (np.ones((3, 128, 192)), "shape"),
        ((90, 0, 10, 128), "no box"),
        ((0, 0, float("nan"), 1), "no box"),
        (np.full((128, 192), np.nan), "values outside"),
        (np.full((128, 192), -1.0), "values outside"),
        ("left", "neither an array"),
        ([[1, 2], [3]], "neither an array|shape"),
        (Image.new("RGBA", (192, 128), (255, 255, 255, 0)), "partly transparent"),
        ((0, 0, 0.5, 1), "seems to be in shares of the picture, and a box is in pixels"),
        ({"left": 0}, "neither an array"),
    ],
)
def test_masks_that_cannot_be_are_errors_that_say_so(mask, says):
    with pytest.raises(ConfigError, match=says):
        regions([mask], (16, 24), 8)


def test_where_masks_overlap_people_share_and_where_none_is_nobody_is():
    masks = torch.tensor([[[[1.0, 1, 0]], [[0, 1, 0]]]])
    psi = Routing((1, 3), masks).choose("a", 2, 3, logits=None)
    assert psi[1].tolist() == [[1, 0.5, 0], [0, 0.5, 0]]
    half = Routing((1, 3), masks / 2).choose("a", 1, 3, logits=None)
    assert half[0].tolist() == [[0.5, 0.5, 0], [0, 0.5, 0]]


# --- several people in a call -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stack")
    write_weights(folder, several=True)
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    return small_pipe(folder / "tokenizer")


@pytest.fixture
def up(pipe, folder):
    up = UniPortrait.attach(pipe, folder / "uniportrait")
    yield up
    up.detach()


@pytest.fixture
def people(up):
    return [up.identity_of_crops([crop(k)]) for k in range(5)]


def draw(up, people, **knobs):
    knobs = {"seed": 0, "output_type": "latent", "height": 32, "width": 32, **knobs}
    return up(PROMPT, people, **knobs)


def test_two_to_five_people_and_the_order_they_are_named_in_does_not_matter(up, people):
    for count in (2, 5):
        there, back = (draw(up, order, routing=True) for order in (people[:count], people[:count][::-1]))
        torch.testing.assert_close(there.images, back.images, atol=1e-4, rtol=1e-4)
        assert there.images.isfinite().all()
        names = torch.stack([psi.argmax(1).flatten()[:64] for psi in there.routing.steps[0].values()])
        assert len(names.unique()) > 1
    assert not torch.allclose(draw(up, people[:2]).images, draw(up, people[1:3]).images, atol=1e-3)


def test_one_person_is_drawn_as_before_the_second_stage_to_the_bit(pipe, folder, tmp_path):
    config, tensors = checkpoints.load(folder / "uniportrait")
    encoders = {name: str((folder / "uniportrait" / path).resolve()) for name, path in config.encoders.items()}
    checkpoints.save(tmp_path / "first", dataclasses.replace(config, encoders=encoders), tensors)
    pictures = []
    for weights in (tmp_path / "first", folder / "uniportrait"):
        up = UniPortrait.attach(pipe, weights)
        pictures.append(draw(up, [up.identity_of_crops([crop(1)])]).images)
        up.detach()
    assert torch.equal(*pictures)


def test_pictures_of_several_do_not_change_those_of_one_that_follow(up, people):
    before = draw(up, people[:1]).images
    several = draw(up, people[:2]).images
    assert torch.equal(draw(up, people[:1]).images, before)
    assert torch.equal(draw(up, people[:2]).images, several)


def test_the_maps_of_a_call_come_by_step_and_layer(up, people):
    out = draw(up, people[:3], routing=True, num_images=2, width=48, height=32, steps=3)
    maps = out.routing
    assert len(maps.steps) == 3 and all(list(step) == maps.layers for step in maps.steps)
    assert [name.split("_")[0] for name in maps.layers] == ["down", "mid", "up", "up"]
    for psi in maps.steps[1].values():
        assert psi.shape[:2] == (2, 3)
        torch.testing.assert_close(psi.sum(1), torch.ones_like(psi[:, 0]))
    mean = maps.mean("up_blocks", slice(-1, None))
    height, width = maps.size
    assert mean.shape == (2, 3, height, width)
    torch.testing.assert_close(mean.sum(1), torch.ones(2, height, width))
    with pytest.raises(ConfigError, match="no routing maps"):
        maps.mean("nowhere")
    assert not hasattr(draw(up, people[:2]), "routing")


def test_masks_take_the_routers_place_in_every_layer_and_step(up, people):
    left, right = (0, 0, 16, 32), (16, 0, 32, 32)
    out = draw(up, people[:2], routing=True, masks=[left, right])
    for step in out.routing.steps:
        for psi in step.values():
            half = psi.shape[-1] // 2
            assert (psi[:, 0, :, :half] == 1).all() and (psi[:, 1, :, half:] == 1).all()
    swapped = draw(up, people[:2][::-1], masks=[right, left])
    torch.testing.assert_close(out.images, swapped.images, atol=1e-4, rtol=1e-4)
    everywhere = draw(up, people[:1], masks=[(0, 0, 32, 32)])
    plain = draw(up, people[:1])
    torch.testing.assert_close(everywhere.images, plain.images, atol=1e-4, rtol=1e-4)


def test_people_keep_to_columns_at_first_and_then_the_routers_decide(up, people):
    size = {"width": 48, "steps": 4, "routing": True}
    free, half = draw(up, people[:3], **size), draw(up, people[:3], columns=0.5, **size)
    for name, psi in (pair for chosen in half.routing.steps[:2] for pair in chosen.items()):
        place = (torch.arange(psi.shape[-1]) + 0.5) / psi.shape[-1] * 4  # faces are expected at 1, 2 and 3
        for person in range(3):  # the first and the last have what is beside them, too
            own = (place.clamp(1, 3) - person - 1).abs() < 0.4
            assert (psi[0].argmax(0)[:, own] == person).all(), name
    assert (free.routing.routed, half.routing.routed) == (slice(0, None), slice(2, None))
    routed = [torch.cat([psi.flatten() for psi in step.values()]) for step in half.routing.steps]
    assert torch.equal(routed[0], routed[1]) and not torch.equal(routed[1], routed[2])
    assert not torch.allclose(free.images, half.images, atol=1e-3)
    assert torch.equal(draw(up, people[:3], columns=0.0, **size).images, free.images)
    assert torch.equal(draw(up, people[:1], columns=0.5).images, draw(up, people[:1]).images)
    masks = [(0, 0, 16, 32), (16, 0, 32, 32)]
    assert torch.equal(*(draw(up, people[:2], masks=masks, columns=share).images for share in (0.0, 0.5)))
    with up.using(*people[:3], columns=0.5):  # the same for a pipeline called by itself
        arguments = {"num_inference_steps": 4, "guidance_scale": up.config.defaults.guidance, "output_type": "latent"}
        noise = [torch.Generator().manual_seed(0)]
        alone = up.pipe([PROMPT], generator=noise, width=48, height=32, **arguments).images
    assert torch.equal(alone, half.images)
    for wrong in (-0.1, 1.5):
        with pytest.raises(ConfigError, match="columns"):
            draw(up, people[:2], columns=wrong)


def test_columns_hold_by_the_noise_whatever_the_scheduler_and_to_the_end_at_1(up, people, monkeypatch):
    size = {"width": 48, "steps": 4, "routing": True}
    scheduler = EulerDiscreteScheduler.from_config(up.pipe.scheduler.config, timestep_spacing="linspace")
    monkeypatch.setattr(up.pipe, "scheduler", scheduler)  # its last timestep is 0
    maps = [draw(up, people[:2], columns=share, **size).routing for share in (0.4, 1.0)]
    assert maps[0].routed == slice(2, None) and maps[1].routed == slice(4, None)
    columned = [torch.cat([psi.flatten() for psi in step.values()]) for step in maps[1].steps]
    assert all(torch.equal(columned[0], other) for other in columned)
    masked = draw(up, people[:2], masks=[(0, 0, 24, 32), (24, 0, 48, 32)], **size).routing
    assert masked.routed == slice(len(masked.steps), None)


def test_a_pipeline_that_guides_by_three_kinds_of_rows_is_refused(folder):
    parts = {**small_pipe(folder / "tokenizer").components, "requires_safety_checker": False}
    perturbed = StableDiffusionPAGPipeline(**parts, pag_applied_layers="mid")
    up = UniPortrait.attach(perturbed, folder / "uniportrait")
    person = [up.identity_of_crops([crop(0)])]
    assert draw(up, person, steps=1, pag_scale=0.0).images.isfinite().all()
    with pytest.raises(ConfigError, match="StableDiffusionPAGPipeline guides by three kinds of rows"):
        draw(up, person, steps=1, pag_scale=3.0)


def test_a_pipeline_without_a_scheduler_is_attached_to_as_any_other(folder):
    pipe = small_pipe(folder / "tokenizer")
    pipe.scheduler = None
    up = UniPortrait.attach(pipe, folder / "uniportrait")
    assert up.injection.timesteps == 1000
    up.detach()


def test_crops_that_are_none_are_refused_in_words(up):
    for crops in ([], [crop(0), crop(0).resize((112, 112))], [crop(0).convert("L")]):
        with pytest.raises(ConfigError, match="crop"):
            up.identity_of_crops(crops)


def test_columns_are_around_evenly_placed_faces_and_cover_the_picture():
    for count, width in ((2, 24), (3, 32), (5, 48), (2, 3), (5, 6), (3, 64)):
        masks = columns(count, (4, width))
        assert masks.shape == (1, count, 4, width) and (masks.sum(1) == 1).all()
        wide = masks[0, :, 0].sum(1).tolist()
        step = width / (count + 1)
        expected = [1.5 * step, *[step] * (count - 2), 1.5 * step]
        assert min(wide) >= 1 and np.allclose(wide, expected, atol=1), wide
        assert (masks[0].argmax(0).diff(dim=1) >= 0).all()
    with pytest.raises(ConfigError, match="5 people do not fit side by side into 5 latents: give a larger width"):
        columns(5, (4, 5))
    routing = Routing((4, 24), columns=0.5)
    assert routing.at(0.5, 2).masks is None and torch.equal(routing.at(0.49, 2).masks, columns(2, (4, 24)))
    with pytest.raises(ConfigError, match="columns is a share"):
        checkpoints.CallDefaults(columns=1.2)


def test_masks_serve_several_people_before_the_second_stage(pipe, folder, tmp_path):
    write_weights(tmp_path)
    up = UniPortrait.attach(pipe, tmp_path / "uniportrait")
    people = [up.identity_of_crops([crop(k)]) for k in range(2)]
    with pytest.raises(ConfigError, match="train the multi-ID stage"):
        draw(up, people)
    both = draw(up, people, masks=[(0, 0, 16, 32), (16, 0, 32, 32)])
    assert both.images.isfinite().all()
    up.detach()


@pytest.mark.parametrize("count", [1, 3])
def test_each_person_needs_a_mask(up, people, count):
    with pytest.raises(ConfigError, match=f"masks: {count} for 2 people"):
        draw(up, people[:2], masks=[(0, 0, 9, 9)] * count)


def test_routing_maps_of_one_person_say_that_there_is_nothing_to_route(up, people):
    with pytest.raises(ConfigError, match="one person alone is everywhere"):
        draw(up, people[:1], routing=True).routing.mean()
    begun = draw(up, people[:2], columns=1, routing=True).routing
    with pytest.raises(ConfigError, match="no step is left to the routers"):
        begun.mean("up_blocks", begun.routed)


def test_people_and_masks_of_another_kind_are_refused_in_words(up, people):
    for given in (["ann"], "ann", [None]):
        for distinct in (False, True):
            with pytest.raises(ConfigError, match="is no identity: make one with identity"):
                up(PROMPT, given, distinct=distinct)
    for masks in (5, (mask for mask in ()), {"left": 0}):
        with pytest.raises(ConfigError, match="masks are a list, with one for each person"):
            draw(up, people[:2], masks=masks)
    assert people[0] in people and people[0] != people[1]


def test_pictures_tell_what_was_said_and_that_masks_were_given(up, people):
    said = up(PROMPT, [people[0], people[1].saying("in a red hat")], seed=0, steps=1).images[0].info
    assert said["said"] == "person 2: in a red hat" and "regions" not in said
    masks = [(0, 0, 16, 32), (16, 0, 32, 32)]
    told = up(PROMPT, people[:2], seed=0, steps=1, masks=masks, height=32, width=32).images[0].info
    assert told["regions"] == "masks" and "columns" not in told and "said" not in told


def test_the_same_person_twice_is_drawn(up, people):
    out = draw(up, [people[0], people[0]], routing=True)
    assert out.images.isfinite().all() and out.routing.steps[0][out.routing.layers[0]].shape[1] == 2


def test_more_people_than_fit_are_refused_unless_a_width_is_given(up, people, monkeypatch):
    defaults = dataclasses.replace(up.config.defaults, widths=(32, 48))
    monkeypatch.setattr(up, "config", dataclasses.replace(up.config, defaults=defaults))
    pictures = up(PROMPT, people[:2], steps=1).images, up(PROMPT, people[:2], steps=1, height=16).images
    assert [picture[0].size for picture in pictures] == [(48, 32), (48, 16)]
    for size in ({}, {"height": 16}):
        with pytest.raises(ConfigError, match="3 people are more than the 2 that fit here: give a width"):
            up(PROMPT, people[:3], **size)
    sizes = [
        (people[:3], {"width": 64}, (64, 32)),
        (people[:1], {"width": 64}, (64, 32)),
        ([], {"height": 16}, (32, 16)),
    ]
    for some, given, expected in sizes:  # of one side alone diffusers itself makes nothing
        assert up(PROMPT, some, steps=1, **given).images[0].size == expected


def test_detaching_takes_both_stages_off(pipe, folder):
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    up = UniPortrait.attach(pipe, folder / "uniportrait")
    up.detach()
    assert list(pipe.unet.state_dict()) == list(weights) and not getattr(pipe.unet, "peft_config", None)
    assert all(torch.equal(value, weights[name]) for name, value in pipe.unet.state_dict().items())


# --- a sentence for one of them ---------------------------------------------------------------------------------------
def test_a_sentence_is_read_only_where_its_person_is(up, people):
    """With masks: changing what is said of the second person leaves the first one's half of a layer as it was."""
    layer = next(iter(up.id_attention.values()))
    attn = up.unet.get_submodule(layer.name)
    torch.manual_seed(0)
    hidden, text = torch.randn(2, 256, 8), torch.randn(2, 48, WIDTH)
    masks = box_masks(torch.tensor([[LEFT, RIGHT]]), (16, 16))

    def layer_output(*identities):
        conditions = dataclasses.replace(up.conditions(*identities), routing=Routing((16, 16), masks))
        return layer(attn, hidden, text, identities=conditions).view(2, 16, 16, -1)

    with torch.no_grad():
        ann, bob = people[:2]
        plain, said = layer_output(ann, bob), layer_output(ann, bob.saying("wearing a red hat"))
        other = layer_output(ann, bob.saying("wearing a green hat"))
    torch.testing.assert_close(said[:, :, :8], plain[:, :, :8])
    masks[:, :, 4:] = 0  # below nobody is: the prompt is read there as ever
    with torch.no_grad():
        spared, heard = layer_output(ann, bob), layer_output(ann, bob.saying("wearing a red hat"))
    torch.testing.assert_close(heard[:, 4:], spared[:, 4:])
    assert not torch.allclose(heard[1, :4, 8:], spared[1, :4, 8:], atol=1e-4)
    torch.testing.assert_close(said[0], plain[0])  # the unconditional row hears nothing
    assert not torch.allclose(said[1, :, 8:], plain[1, :, 8:], atol=1e-4)
    assert not torch.allclose(said[1, :, 8:], other[1, :, 8:], atol=1e-4)


def test_a_share_of_the_texts_attention_goes_to_what_is_said_of_the_person_there(up, people):
    """The same words as the prompt's change nothing; others take their share, also where two people overlap."""
    layer = next(iter(up.id_attention.values()))
    attn = up.unet.get_submodule(layer.name)
    torch.manual_seed(0)
    query, prompt, other = torch.randn(1, 256, 8), torch.randn(1, 48, WIDTH), torch.randn(1, 48, WIDTH)
    conditions = up.conditions(*people[:2])

    def attended(text):
        return attention.attend(attn, query, attn.to_k(text), attn.to_v(text))

    with torch.no_grad():
        plain, told = attended(prompt), attended(other)
        psi = torch.rand(1, 2, 256).softmax(dim=1) * 0.9  # everywhere shared, and a tenth nobody's
        for text, said, share in ((prompt, (1, 1), 0), (other, (1, 0), psi[:, 0]), (other, (1, 1), psi.sum(1))):
            sentences = text.unsqueeze(1).expand(-1, 2, -1, -1)
            given = dataclasses.replace(conditions, sentences=sentences, said=torch.tensor([said]).bool())
            heads = (attention.split(x, attn.heads) for x in (query, plain))
            out = attention.merge(layer.with_sentences(attn, *heads, given, psi))
            share = attention.SENTENCE_SHARE * torch.as_tensor(share).unsqueeze(-1)
            torch.testing.assert_close(out, (1 - share) * plain + share * told, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="go together"):
        dataclasses.replace(conditions, sentences=sentences)


def test_one_person_may_have_a_sentence_and_none_may_be_empty(up, people):
    plain, said = draw(up, people[:1]), draw(up, [people[0].saying("wearing a red hat")])
    assert not torch.equal(plain.images, said.images)
    assert draw(up, [people[0].saying("wearing a red hat"), people[1]]).images.isfinite().all()
    with pytest.raises(ConfigError, match="at most 46 words"):
        draw(up, [people[0].saying("red " * 60)])
    assert (
        people[0].saying("sad").mix(people[1], 0.5).sentence
        == "sad"
        == people[1].mix(people[0].saying("sad"), 0).sentence
    )
    for nothing in ("", "  ", None, 3):
        with pytest.raises(ConfigError, match="a sentence about a person"):
            people[0].saying(nothing)


# --- weights ----------------------------------------------------------------------------------------------------------
def test_routers_fit_only_the_weights_they_were_trained_on(folder, pipe, tmp_path):
    write_weights(tmp_path, several=True)
    place = tmp_path / "uniportrait"
    assert checkpoints.load_multi(place).keys() == checkpoints.load_multi(folder / "uniportrait").keys()
    tensors = load_file(place / checkpoints.MODEL)
    tensors["id_embedding.queries"] += 1
    save_file(tensors, place / checkpoints.MODEL)
    with pytest.raises(WeightsError, match="train the multi-ID stage again"):
        UniPortrait.attach(pipe, place)
    assert not getattr(pipe.unet, "peft_config", None)
    config, tensors = checkpoints.load(place)
    checkpoints.save(place, config, tensors)  # the single-ID stage, trained anew, takes them away
    assert checkpoints.load_multi(place) is None


def test_routers_cut_short_are_named(pipe, tmp_path):
    write_weights(tmp_path, several=True)
    path = tmp_path / "uniportrait" / checkpoints.MULTI
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="multi_id.safetensors is cut short"):
        UniPortrait.attach(pipe, tmp_path / "uniportrait")


# --- who is where -----------------------------------------------------------------------------------------------------
def test_faces_and_people_are_matched_one_to_one_by_the_best_sum():
    references = np.eye(3, dtype=np.float32)
    faces = np.array([[0.9, 0.8, 0], [0.8, 0.1, 0], [0, 0, 0.7]], np.float32)
    found = assign(np.zeros((3, 4)), faces, references)
    assert found.face_of == (1, 0, 2)  # 0.8 + 0.8 + 0.7, though face 0 is nearest to person 0
    assert found.matched == pytest.approx((0.8, 0.8, 0.7))
    assert (found.counts, found.missing, found.doubled, found.distinct) == ((2, 0, 1), (1,), (0,), False)


def test_a_person_without_a_face_counts_as_a_stranger():
    references = np.eye(3, dtype=np.float32)
    found = assign(np.zeros((1, 4)), references[1:2], references)
    assert found.face_of == (None, 0, None) and found.matched == (0, 1, 0) and found.missing == (0, 2)
    nobody = assign(np.zeros((0, 4)), np.zeros((0, 3)), references)
    assert nobody.face_of == (None, None, None) and nobody.missing == (0, 1, 2) and not nobody.distinct
    assert assign(np.zeros((3, 4)), references[::-1], references).distinct


def test_maps_of_one_step_end_where_a_layer_comes_again():
    maps = RoutingMaps()
    maps.size = (2, 2)
    for step in range(2):
        for name in ("down", "up"):
            maps.add(name, torch.full((1, 2, 1, 1), float(step)))
    assert maps.layers == ["down", "up"] and len(maps.steps) == 2
    assert maps.mean(steps=slice(1, 2)).unique() == 1 and maps.mean("up").unique() == 0.5


# --- nobody twice, nobody missing -------------------------------------------------------------------------------------
def found_at(*centres: int, alike: np.ndarray):
    """Faces 20 pixels wide at these places of a picture of 192x128, with embeddings."""
    boxes = np.array([[x - 10, 50, x + 10, 74] for x in centres], np.float32).reshape(-1, 4)
    return assign(boxes, alike, np.eye(alike.shape[1], dtype=np.float32))


def test_everyone_gets_what_is_nearest_to_their_face_or_a_column():
    found = found_at(60, 140, alike=np.array([[0.1, 0.9], [0.2, 0.8]]))
    assert found.face_of == (1, 0) and found.doubled == (1,)
    first, second = one_region_each(found, (192, 128))
    assert (second == (np.arange(192) < 100)).all() and (first == ~second).all()
    first, second = one_region_each(found, (192, 128), around_faces=False)
    assert (second == (np.arange(192) < 96)).all() and (first == ~second).all()
    lacking = found_at(100, alike=np.array([[0.0, 0.9, 0.1]]))
    columns = one_region_each(lacking, (192, 128))
    assert [int(region[0].argmax()) for region in columns] == [72, 0, 120]
    assert (sum(region.astype(int) for region in columns) == 1).all()


def test_a_picture_is_drawn_again_until_everyone_is_there_once_and_the_best_is_kept():
    twice, nobody, right = np.array([[1, 0], [0.9, 0]]), np.zeros((0, 2)), np.array([[1, 0], [0, 1]])
    views = {"first": (60, 140, twice), "second": (nobody,), "third": (60, 140, right)}
    asked = []

    def look(image):
        *centres, alike = views[image.info["name"]]
        return found_at(*centres, alike=alike.astype(np.float32))

    def picture(name):
        image = Image.new("RGB", (192, 128))
        image.info["name"] = name
        return image

    def again(attempt, masks):
        asked.append((attempt, masks[0].sum()))
        return picture(["second", "third"][attempt])

    image, found, tries = settle(picture("first"), look, again)
    assert (image.info["name"], found.distinct, tries, [a for a, _ in asked]) == ("third", True, 2, [0, 1])
    image, found, tries = settle(picture("first"), look, again, tries=1)
    assert (image.info["name"], found.distinct, tries) == ("first", False, 1)  # of two that are wrong the better one
    assert settle(picture("third"), look, again)[2] == 0


def test_one_person_who_is_missing_is_drawn_again_from_other_noise_without_a_region():
    asked = []

    def again(noise, masks):
        asked.append((noise, masks))
        return Image.new("RGB", (128, 128))

    _, found, tries = settle(
        Image.new("RGB", (128, 128)), lambda image: found_at(alike=np.zeros((0, 1), np.float32)), again, tries=2
    )
    assert (asked, tries, found.missing) == ([(1, None), (2, None)], 2, (0,))


def test_distinct_draws_the_very_picture_again_that_is_wrong(up, people, monkeypatch):
    """Picture 2 of 4 (prompt 1, noise 2) lacks somebody until it is drawn from other noise."""
    size = {"height": 32, "width": 32, "negative_prompt": "sad"}
    prompts, pair = [PROMPT, "two women"], people[:2]
    plain = up(prompts, pair, seed=4, num_images=2, **size).images
    wrong = np.asarray(plain[2]).tobytes()

    def assignment(image, references):
        assert len(references) == 2
        alike = np.eye(2, dtype=np.float32) if np.asarray(image).tobytes() != wrong else np.zeros((0, 2))
        return found_at(*[10, 20][: len(alike)], alike=alike)

    monkeypatch.setattr(up, "_assignment", assignment)
    flags = iter([[False] * 4, [True], [True]])  # of all pictures, of the one that is drawn again, of the expected
    monkeypatch.setattr(up.pipe, "run_safety_checker", lambda image, *where: (image, next(flags)))
    out = up(prompts, pair, seed=4, num_images=2, distinct=True, **size)
    assert out.tries == [0, 0, 1, 0] and all(found.distinct for found in out.assignment)
    columns = [(0, 0, 16, 32), (16, 0, 32, 32)]
    expected = up("two women", pair, seed=6, masks=columns, **size).images[0]
    assert [np.array_equal(a, b) for a, b in zip(plain, out.images, strict=True)] == [True, True, False, True]
    assert out.nsfw_content_detected == [False, False, True, False]
    assert [image.info.get("regions") for image in out.images] == [None, None, "of distinct", None]
    assert np.abs(np.asarray(expected, int) - np.asarray(out.images[2], int)).max() <= 1


def test_distinct_reports_what_it_could_not_mend(pipe, folder):
    """The random network draws no faces: three more attempts, and a report that says that nobody is there."""
    up = UniPortrait.attach(pipe, folder / "uniportrait", faces=data_folder("tiny") / "face")
    people = [up.identity_of_crops([crop(k)]) for k in range(2)]
    size = {"height": 32, "width": 32}
    plain = up([PROMPT, "one"], people, seed=4, **size)
    out = up([PROMPT, "one"], people, seed=4, distinct=True, **size)
    assert out.tries == [3, 3] and [found.missing for found in out.assignment] == [(0, 1), (0, 1)]
    assert [np.array_equal(a, b) for a, b in zip(plain.images, out.images, strict=True)] == [True, True]
    for wrong, says in (
        ({"masks": [(0, 0, 16, 32), (16, 0, 32, 32)]}, "masks, or distinct"),
        ({"generator": torch.Generator()}, "leave the noise"),
    ):
        with pytest.raises(ConfigError, match=says):
            up(PROMPT, people, distinct=True, **wrong, **size)
    for twice in (people[0], people[0].saying("smiling"), up.identity_of_crops([crop(0)]), people[0].mix(people[1], 0)):
        with pytest.raises(ConfigError, match="given twice"):
            up(PROMPT, [people[0], twice], distinct=True, **size)
    with pytest.raises(ConfigError, match="one of them"):
        up(PROMPT, people, distinct=True, routing=True, **size)
    with pytest.raises(ConfigError, match="give some"):
        up(PROMPT, distinct=True, **size)
    up.detach()


# --- the LoRA fused into the weights ---------------------------------------------------------------------------------


def test_a_fused_lora_draws_the_same_and_leaves_the_weights_as_they_were(up, people):
    before = {name: weight.clone() for name, weight in up.unet.state_dict().items()}
    for some in (people[:1], people[:2]):
        plain = up(PROMPT, some, seed=0, output_type="np").images
        with up.fused(len(some)):
            assert any(not torch.equal(weight, before[name]) for name, weight in up.unet.state_dict().items())
            assert np.allclose(up(PROMPT, some, seed=0, output_type="np").images, plain, atol=1e-4)
        after = up.unet.state_dict()
        assert all(torch.equal(weight, before[name]) for name, weight in after.items())
        assert np.array_equal(up(PROMPT, some, seed=0, output_type="np").images, plain)


def test_one_attention_with_the_others_masked_is_that_of_each_added_up_by_psi(up, people):
    """What is asked of the routers at inference, beside what they do where masks, sentences or maps want psi."""
    layer = next(iter(up.id_attention.values()))
    attn = up.unet.get_submodule(layer.name)
    torch.manual_seed(0)
    hidden, text = torch.randn(4, 256, 8), torch.randn(4, 48, WIDTH)
    conditions = up.conditions(*people).rows(torch.tensor([0, 0, 1, 1]))
    conditions = dataclasses.replace(conditions, routing=Routing((16, 16)), id_scale=torch.rand(4))
    assert conditions.one_each
    with torch.no_grad():
        assert layer.psi(hidden, conditions)[2:].any(dim=-1).all()  # everyone is somewhere
        fast = layer(attn, hidden, text, identities=conditions)
        slow = layer(attn, hidden, text, identities=dataclasses.replace(conditions, others=None))
        alone = layer(attn, hidden, text)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(fast, alone, rtol=1e-3)


def test_a_fused_lora_costs_no_more_operations_than_a_call_without_people(up, people):
    """Of one person, from the second step on: the prompt's keys and values are there, and peft is passed by."""
    latents, prompt, timestep = torch.zeros(2, 4, 16, 16), torch.zeros(2, 48, WIDTH), torch.tensor(9)
    layers = [module for module in up.unet.modules() if hasattr(module, "lora_A")]

    def draw_a_step(prompt=prompt):
        return up.unet(latents, timestep, prompt).sample

    with torch.no_grad(), Operations() as alone:
        draw_a_step()
    for count in (1, 2):
        with torch.no_grad(), up.using(*people[:count], guided=True, columns=0):
            plain = draw_a_step()
            with up.fused(count):
                torch.testing.assert_close(draw_a_step(), plain, rtol=1e-4, atol=1e-5)
                with Operations() as ours:
                    again = draw_a_step()
                torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-5)
                assert len(ours.found) <= len(alone.found) * (1 if count == 1 else 1.15)
                assert all("forward" in vars(layer) for layer in layers if layer.merged) and layers[0].merged
                with torch.autocast("cpu", torch.bfloat16):
                    draw_a_step()
                torch.testing.assert_close(draw_a_step(), plain, rtol=1e-4, atol=1e-5)
                prompt.add_(1)  # in place, and still another prompt
                other = draw_a_step()
                torch.testing.assert_close(other, draw_a_step(prompt.clone()))
                assert not torch.allclose(other, plain)
                prompt.sub_(1)
            assert not any("forward" in vars(layer) for layer in layers)
            assert torch.equal(draw_a_step(), plain)


def test_what_is_kept_of_a_prompt_while_a_lora_is_fused_ends_with_it(up, people):
    latents, prompt, timestep = torch.zeros(2, 4, 16, 16), torch.ones(2, 48, WIDTH), torch.tensor(9)
    for count in (1, 2):  # the same prompt, last inside the one and first inside the other
        with torch.no_grad(), up.using(*people[:count], guided=True, columns=0):
            plain = up.unet(latents, timestep, prompt).sample
            with up.fused(count):
                torch.testing.assert_close(up.unet(latents, timestep, prompt).sample, plain, rtol=1e-4, atol=1e-5)
    with torch.inference_mode(), up.using(people[0], guided=True), up.fused(1):
        prompt = torch.zeros(2, 48, WIDTH)  # an inference tensor has no version
        first = up.unet(latents, timestep, prompt).sample
        changed = up.unet(latents, timestep, prompt.add_(1)).sample
        assert torch.equal(changed, up.unet(latents, timestep, prompt.clone()).sample)
        assert not torch.allclose(changed, first)


class Operations(TorchDispatchMode):
    """Those of torch inside it, in `found`."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found.append(function)
        return function(*args, **(kwargs or {}))

    def __enter__(self):
        self.found = []
        return super().__enter__()


def test_inside_a_fused_lora_nothing_else_is_drawn(up, people):
    before = {name: weight.clone() for name, weight in up.unet.state_dict().items()}
    for wrong in (people[:2], []):
        with pytest.raises(ConfigError, match="another number of people is fused"), up.fused(1):
            up(PROMPT, wrong)
    with up.fused(2):
        for attempt in (up.detach, up.fused(2).__enter__):
            with pytest.raises(ConfigError, match="fused.*leave that first"):
                attempt()
    assert all(torch.equal(weight, before[name]) for name, weight in up.unet.state_dict().items())
    with pytest.raises(ConfigError, match="people is a whole number from 1"), up.fused(0):
        pass
