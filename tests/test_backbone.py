"""The face backbone, its CurricularFace head, and the scoring of face recognition."""

import math

import pytest
import torch
from torch import nn

from uniportrait_lite.backbone import (
    CurricularFace,
    IRConfig,
    IRResNet,
    PReLU,
    verification,
    with_margin,
)
from uniportrait_lite.errors import ConfigError, WeightsError


@pytest.fixture(scope="module")
def tiny() -> IRResNet:
    torch.manual_seed(0)
    network = IRResNet()
    network(torch.randn(8, 3, 112, 112))  # gives the norms statistics of their own
    return network.eval()


@pytest.mark.parametrize("config", [IRConfig(), IRConfig.ir101()], ids=["tiny", "ir101"])
def test_stages_come_out_at_56_28_14_and_7_at_both_scales(config):
    with torch.device("meta"):
        network = IRResNet(config).eval()
        maps = network.features(torch.zeros(2, 3, 112, 112))
        embedding = network(torch.zeros(2, 3, 112, 112))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, s, s) for c, s in zip(config.channels, (56, 28, 14, 7), strict=True)
    ]
    assert embedding.shape == (2, config.embedding)


def test_ir101_has_the_published_number_of_tensors_and_bytes():
    with torch.device("meta"):
        state = IRResNet(IRConfig.ir101()).state_dict()
    assert len(state) == 917
    assert round(sum(4 * v.numel() for v in state.values()) / 1e6, 1) == 260.9


def test_the_embedding_is_made_from_the_last_stage_alone(tiny):
    x = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(tiny.head(tiny.features(x)[-1]), tiny(x))


def test_prelu_and_its_gradients_are_those_of_torch():
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    results = []
    for kind in (nn.PReLU, PReLU):
        layer = kind(4).double()
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([0.25, -0.5, 0.0, 2.0]))
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.square().sum().backward()
        results.append((y, leaf.grad, layer.weight.grad))
    torch.testing.assert_close(results[1], results[0])


def test_saved_weights_give_the_same_embeddings_to_half_precision(tiny, tmp_path):
    tiny.save(tmp_path / "net")
    loaded = IRResNet.from_pretrained(tmp_path / "net")
    assert not loaded.training and {p.dtype for p in loaded.parameters()} == {torch.float32}
    x = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        assert torch.cosine_similarity(loaded(x), tiny(x)).min() > 0.9999
    assert (tmp_path / "net" / "model.safetensors").stat().st_size < 2.2 * sum(p.numel() for p in tiny.parameters())
    assert not list((tmp_path / "net").glob("*.tmp"))


def test_missing_truncated_and_foreign_weights_are_named(tiny, tmp_path):
    with pytest.raises(WeightsError, match=r"no config.json in .*nowhere"):
        IRResNet.from_pretrained(tmp_path / "nowhere")
    tiny.save(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cut short or damaged"):
        IRResNet.from_pretrained(tmp_path)
    file.write_bytes(whole)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("128", "256"))
    with pytest.raises(WeightsError, match="another network"):
        IRResNet.from_pretrained(tmp_path)


def test_impossible_sizes_are_refused():
    with pytest.raises(ConfigError, match="four stages"):
        IRConfig(channels=(16, 32, 64))
    with pytest.raises(ConfigError, match="stem_stride"):
        IRConfig(stem_stride=4)


def head_at(angles: list[float], margin: float) -> CurricularFace:
    """A head with scale 1 whose class centres lie in a plane, at these angles."""
    head = CurricularFace(2, len(angles), scale=1.0, margin=margin)
    with torch.no_grad():
        head.centres.copy_(torch.tensor([[math.cos(a), math.sin(a)] for a in angles]))
    return head


def test_curricularface_spares_easy_and_reweighs_hard_negatives():
    head = head_at([0.3, 0.5, 1.2], margin=0.4).eval()  # from the embedding at angle 0
    head.t.fill_(0.25)
    logits = head(torch.tensor([[3.0, 0.0]]), torch.tensor([0]))[0]
    assert math.cos(0.5) > math.cos(0.3 + 0.4) > math.cos(1.2)  # so class 1 is hard, class 2 easy
    hard = math.cos(0.5) * (0.25 + math.cos(0.5))
    torch.testing.assert_close(logits, torch.tensor([math.cos(0.7), hard, math.cos(1.2)]))


def test_curricularface_tracks_the_mean_positive_cosine_in_training_only():
    head = head_at([0.0, math.pi / 3], margin=0.1)
    embeddings, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])  # positive cosines 1 and 0.5
    head(embeddings, labels)
    torch.testing.assert_close(head.t, torch.tensor(0.01 * 0.75))
    head.eval()(embeddings, labels)
    torch.testing.assert_close(head.t, torch.tensor(0.01 * 0.75))
    assert "t" in head.state_dict()


def test_without_a_margin_easy_negatives_and_the_target_are_plain_cosines():
    head = CurricularFace(8, 5, scale=10.0).eval()
    x, y = torch.randn(4, 8), torch.tensor([0, 1, 2, 3])
    plain = 10 * torch.cosine_similarity(x[:, None], head.centres[None], dim=-1)
    easy = plain <= plain.gather(1, y[:, None])
    torch.testing.assert_close(head(x, y, margin=0.0)[easy], plain[easy], atol=1e-3, rtol=0)


def test_a_margin_never_rewards_a_wider_angle():
    cosines = torch.linspace(1, -1, 1001)
    assert (with_margin(cosines, 0.5).diff() < 0).all()


def test_verification_counts_pairs_exactly():
    angles = torch.tensor([0.0, 0.1, 0.3, 1.0])
    embeddings = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [5.0], [2.0], [0.1]])
    scores = verification(embeddings, torch.tensor([7, 7, 9, 9]))
    # the same person: 0.1 and 0.7 apart; different ones: 0.3, 1.0, 0.2, 0.9: of the 8 comparisons 6 are right
    assert scores["auc"] == pytest.approx(6 / 8)
    assert scores["same"] == pytest.approx((math.cos(0.1) + math.cos(0.7)) / 2, abs=1e-6)
    assert scores["different"] == pytest.approx(sum(map(math.cos, (0.3, 1.0, 0.2, 0.9))) / 4, abs=1e-6)
    assert scores["accuracy"] == pytest.approx(3 / 4)


def test_verification_without_two_pictures_of_one_person_says_so():
    with pytest.raises(ConfigError, match="two pictures of one person"):
        verification(torch.eye(3), torch.tensor([1, 2, 3]))
