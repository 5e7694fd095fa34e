"""The ID embedding module and the features it reads."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from method_parts import BACKBONE, CLIP, EMBEDDING, crop, small_backbone, small_clip_vision

from uniportrait_lite.features import CLIP_MEAN, CLIP_STD, FaceFeatures, IDFeatures
from uniportrait_lite.id_embedding import IDEmbedding, IDEmbeddingConfig, StructureDrop


def embedding(**changes) -> IDEmbedding:
    torch.manual_seed(0)
    return IDEmbedding(dataclasses.replace(EMBEDDING, **changes)).eval()


def random_features(batch: int = 2, references: int = 1, seed: int = 0) -> IDFeatures:
    g = torch.Generator().manual_seed(seed)
    intrinsic = torch.randn(batch, 49 * references, EMBEDDING.intrinsic_dim, generator=g)
    return IDFeatures(intrinsic, torch.randn(batch, 256 * references, EMBEDDING.structure_dim, generator=g))


def pixels(*seeds: int) -> torch.Tensor:
    import numpy as np

    return torch.stack([torch.from_numpy(np.array(crop(s))).permute(2, 0, 1) / 255 for s in seeds])


@pytest.fixture(scope="module")
def encoders() -> FaceFeatures:
    return FaceFeatures(small_backbone(), small_clip_vision())


def test_tiny_defaults_give_16_tokens_of_the_unets_width():
    module = IDEmbedding(IDEmbeddingConfig()).eval()
    assert module(torch.randn(3, 49, 128), torch.randn(3, 256, 208)).shape == (3, 16, 128)


@torch.no_grad()
def test_features_are_the_deep_map_and_the_shallow_maps_followed_by_clip(encoders):
    x = pixels(1, 2)
    features = encoders(x)
    *shallow, deep = encoders.backbone.features(F.interpolate(x, size=(112, 112), mode="bilinear") * 2 - 1)
    normalised = (x - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    clip = encoders.clip_vision(normalised, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert features.intrinsic.shape == (2, 49, BACKBONE.channels[3])
    assert features.structure.shape == (2, 256, sum(BACKBONE.channels[:3]) + CLIP)
    row, column = 3, 5  # position (3, 5) of a map is token 3 * width + 5
    torch.testing.assert_close(features.intrinsic[:, row * 7 + column], deep[:, :, row, column])
    start = 0
    for feature_map in shallow:
        end = start + feature_map.shape[1]
        resized = F.interpolate(feature_map, size=(16, 16), mode="bilinear")
        torch.testing.assert_close(features.structure[:, row * 16 + column, start:end], resized[:, :, row, column])
        start = end
    torch.testing.assert_close(features.structure[..., start:], clip)


def test_global_intrinsic_features_are_the_backbones_embedding():
    global_ = FaceFeatures(small_backbone(), small_clip_vision(), intrinsic="global")
    x = pixels(1, 2)
    expected = global_.backbone(F.interpolate(x, size=(112, 112), mode="bilinear") * 2 - 1)
    torch.testing.assert_close(global_(x).intrinsic, expected[:, None].detach())


@torch.no_grad()
def test_nobody_is_zeros_and_clip_of_a_zero_image(encoders):
    nobody = encoders.unconditional(2)
    clip = encoders.clip_vision(torch.zeros(1, 3, 224, 224), output_hidden_states=True).hidden_states[-2][:, 1:]
    assert not nobody.intrinsic.any() and nobody.intrinsic.shape == encoders(pixels(1, 2)).intrinsic.shape
    assert not nobody.structure[..., :-CLIP].any()
    torch.testing.assert_close(nobody.structure[..., -CLIP:], clip.expand(2, -1, -1))


def test_encoders_stay_frozen_and_in_evaluation_mode(encoders):
    encoders.train()
    assert not any(module.training for module in encoders.modules())
    assert not any(parameter.requires_grad for parameter in encoders.parameters())


@torch.no_grad()
def test_structure_scale_zero_leaves_intrinsic_features_alone():
    module, ours, other = embedding(), random_features(seed=0), random_features(seed=1)
    same = module(ours.intrinsic, ours.structure, structure_scale=0.0)
    assert torch.equal(same, module(ours.intrinsic, other.structure, structure_scale=0.0))
    assert torch.equal(same, module(ours.intrinsic, None, structure_scale=0.0))
    torch.testing.assert_close(same, module(ours.intrinsic, ours.structure, structure_scale=1e-9))
    assert not torch.allclose(same, module(ours.intrinsic, ours.structure, structure_scale=0.5))
    assert not torch.allclose(same, module(other.intrinsic, ours.structure, structure_scale=0.0))


@torch.no_grad()
def test_without_structure_branch_structure_features_do_not_matter_and_have_no_weights():
    module, ours, other = embedding(structure=False), random_features(seed=0), random_features(seed=1)
    assert torch.equal(module(*ours), module(ours.intrinsic, other.structure))
    assert not any("structure" in name for name, _ in module.named_parameters())


@torch.no_grad()
def test_references_are_a_set_whose_order_does_not_matter():
    module = embedding()
    ann, ann_again = random_features(seed=0), random_features(seed=1)
    both = module(*IDFeatures.of_references([ann, ann_again]))
    torch.testing.assert_close(both, module(*IDFeatures.of_references([ann_again, ann])), atol=1e-5, rtol=1e-5)
    assert both.shape == (2, EMBEDDING.queries, EMBEDDING.out_dim)
    assert not torch.allclose(both, module(*ann), atol=1e-3)


def test_drops_come_in_the_papers_three_shares():
    drop = StructureDrop.draw(EMBEDDING, 20_000, 64, torch.Generator().manual_seed(0))
    kept = drop.tokens.float().mean(1)
    path_dropped = ~drop.path
    thinned = drop.path & (kept < 1)
    assert path_dropped.float().mean() == pytest.approx(0.33, abs=0.01)
    assert thinned.float().mean() == pytest.approx(0.33, abs=0.01)
    assert (drop.path & (kept == 1)).float().mean() == pytest.approx(0.34, abs=0.01)
    assert kept[thinned].mean() == pytest.approx(1 - EMBEDDING.token_drop_rate, abs=0.01)


def test_a_dropped_path_is_structure_scale_zero_and_dropped_tokens_are_as_if_absent():
    module, features = embedding().train(), random_features(batch=3)
    tokens = torch.ones(3, 256, dtype=torch.bool)
    tokens[1, 100:] = False
    out = module(*features, drop=StructureDrop(path=torch.tensor([False, True, True]), tokens=tokens))
    module.eval()
    intrinsic, structure = features
    torch.testing.assert_close(out[:1], module(intrinsic[:1], structure[:1], structure_scale=0.0))
    torch.testing.assert_close(out[1:2], module(intrinsic[1:2], structure[1:2, :100]))
    torch.testing.assert_close(out[2:], module(intrinsic[2:], structure[2:]))


@torch.no_grad()
def test_drops_repeat_with_their_generator_and_do_not_happen_in_evaluation():
    module, features = embedding().train(), random_features(batch=8)
    first, again, other = (module(*features, drop=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    module.eval()
    assert torch.equal(module(*features), module(*features, drop=torch.Generator().manual_seed(1)))


def test_every_weight_learns():
    module = embedding().train()
    everything = StructureDrop(torch.ones(2, dtype=torch.bool), torch.ones(2, 256, dtype=torch.bool))
    (module(*random_features(), drop=everything) * torch.randn(2, 16, EMBEDDING.out_dim)).sum().backward()
    assert not [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize(
    "wrong", [{"drop_path": 0.7, "drop_token": 0.5}, {"token_drop_rate": 1.5}, {"drop_path": -0.1}]
)
def test_impossible_rates_are_errors(wrong):
    with pytest.raises(ValueError):
        embedding(**wrong)
