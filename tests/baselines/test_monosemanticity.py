import sys

import pytest
import torch

from psi_engine import baselines
from psi_engine.baselines import MonosemanticitySums
from psi_engine.errors import InputError
from tests.reference import baselines as reference


@pytest.fixture
def data():
    """100 images: embeddings (100, 8) in a cone, activations (100, 5), one channel sparse."""
    generator = torch.Generator().manual_seed(7)
    z = torch.randn(100, 8, generator=generator) + 1
    a = torch.randn(100, 5, generator=generator) * torch.tensor([1.0, 1e-3, 1e4, 1, 1])
    a[:, 3] = a[:, 3].relu()
    a[:, 4] = torch.where(z[:, 0] > 1.5, z[:, 0], 0.0)
    return z, a


def sums(z, a):
    return MonosemanticitySums(a.amin(0), a.amax(0), z.shape[1])


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_the_closed_form_equals_loops(two_modes, dtype, atol):
    z = two_modes.to(dtype)
    a = torch.rand(6, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = baselines.monosemanticity(z, a)
    for c in range(6):
        want = reference.monosemanticity(z[c].double().numpy(), a[c].double().numpy())
        assert float(got[c]) == pytest.approx(want, abs=atol)


def test_equal_weights_make_ms_clarity(two_modes):
    got = baselines.monosemanticity(two_modes, torch.full((6, 24), 0.3))
    assert torch.allclose(got, baselines.clarity(two_modes), atol=1e-9)


def test_a_nan_weight_leaves_the_patch_out(two_modes):
    weights = torch.ones(6, 24)
    weights[1, 3] = float("nan")
    got = baselines.monosemanticity(two_modes, weights)
    want = baselines.monosemanticity(two_modes, weights.nan_to_num(0.0))
    assert torch.equal(got, want)
    assert torch.isfinite(got).all()
    assert torch.isnan(baselines.monosemanticity(two_modes, torch.zeros(6, 24))).all()


def test_weights_that_do_not_fit_are_refused(two_modes):
    with pytest.raises(InputError, match="activations do not fit"):
        baselines.monosemanticity(two_modes, torch.ones(6, 23))
    with pytest.raises(InputError, match="activations are negative"):
        baselines.monosemanticity(two_modes, -torch.ones(6, 24))


def test_the_stream_equals_loops_over_the_whole_data_set(data):
    z, a = data
    stream = sums(z, a)
    for part in torch.arange(100).split(41):
        stream.add(z[part], a[part])
    for c, got in enumerate(stream.score().tolist()):
        weights = reference.scaled(a[:, c].double().numpy())
        want = reference.monosemanticity(z.double().numpy(), weights)
        assert got == pytest.approx(want, abs=1e-6)


def test_batches_their_order_and_shards_change_no_bit(data):
    z, a = data
    at_once = sums(z, a)
    at_once.add(z, a)
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(8))
    shards = [sums(z, a), sums(z, a)]
    for at, part in enumerate(shuffled.split(7)):
        shards[at % 2].add(z[part], a[part])
    shards[1].merge(shards[0])
    assert torch.equal(shards[1].score(), at_once.score())


def test_sums_beyond_the_mantissa_of_a_float_stay_exact():
    """3000 weights near 1 on rows near (1, 0): in one float64 sum the last bits would round."""
    generator = torch.Generator().manual_seed(10)
    z = torch.randn(3000, 2, generator=generator) * 1e-3 + torch.tensor([1.0, 0.0])
    a = torch.rand(3000, 4, generator=generator) * 1e-3 + 1
    bounds = torch.zeros(4), torch.full((4,), 1.001)
    at_once, one_by_one = (MonosemanticitySums(*bounds, 2) for _ in range(2))
    at_once.add(z, a)
    for image in range(3000):
        one_by_one.add(z[image : image + 1], a[image : image + 1])
    assert torch.equal(at_once.score(), one_by_one.score())
    for got, want in zip(
        (at_once._whole, at_once._square), (one_by_one._whole, one_by_one._square), strict=True
    ):
        assert torch.equal(got[0] * 2**24 + got[1], want[0] * 2**24 + want[1])


def test_chunks_of_channels_change_no_bit(data, monkeypatch):
    z, a = data
    want = sums(z, a)
    want.add(z, a)
    # the package's attribute of that name is the function
    monkeypatch.setattr(sys.modules[MonosemanticitySums.__module__], "_NUMBERS", 17)
    got = sums(z, a)
    got.add(z, a)
    assert torch.equal(got.score(), want.score())


def test_broken_images_and_activations_are_left_out(data):
    z, a = data
    want = sums(z, a)
    want.add(z[10:], a[10:])
    broken = z.clone()
    broken[:5] = 0
    broken[5:10, 2] = float("inf")
    got = sums(z, a)
    got.add(broken, a)
    assert torch.equal(got.score(), want.score())

    gap = a.clone()
    gap[:10, 1] = torch.tensor([float("nan"), float("inf")]).repeat(5)
    got = sums(z, a)
    got.add(z, gap)
    score, without = got.score(), want.score()
    assert float(score[1]) == float(without[1])
    assert not torch.equal(score, without)


def test_a_channel_without_two_weighted_images_has_no_score(data):
    z, a = data
    a = a.clone()
    a[:, 0] = 3.0
    a[:, 1] = float("nan")
    a[:, 2] = 0.0
    a[17, 2] = 1.0
    stream = sums(z, a)
    stream.add(z, a)
    assert torch.isnan(stream.score()).tolist() == [True, True, True, False, False]
    assert torch.isnan(sums(z, a).score()).all()


def test_what_does_not_fit_the_stream_is_refused(data):
    z, a = data
    stream = sums(z, a)
    with pytest.raises(InputError, match="embeddings and activations do not fit"):
        stream.add(z, a[:, :4])
    with pytest.raises(InputError, match="embeddings and activations do not fit"):
        stream.add(z[:, :7], a)
    with pytest.raises(InputError, match="activation of channel 1 lies outside its range"):
        stream.add(z[:2], torch.tensor([[0.0] * 5, [0, 9, 0, 0, 0]]))
    with pytest.raises(InputError, match="ranges of the activations do not fit"):
        MonosemanticitySums(torch.zeros(3), torch.ones(4), 8)
    with pytest.raises(InputError, match="different channels or ranges"):
        stream.merge(MonosemanticitySums(a.amin(0), a.amax(0) + 1, 8))
    with pytest.raises(InputError, match="different channels or ranges"):
        stream.merge(MonosemanticitySums(a.amin(0), a.amax(0), 9))
