import pytest
import torch

from psi_engine import baselines
from psi_engine.baselines import measures
from psi_engine.errors import InputError


def test_broken_channels_are_nan_and_leave_the_others(two_modes):
    broken = two_modes.clone()
    broken[2, 3, 1] = float("nan")
    broken[4, 0] = 0.0
    weights = torch.ones(6, 24)
    for measure in (
        baselines.clarity,
        baselines.redundancy,
        baselines.semanticlens_polysemanticity,
        lambda z: baselines.monosemanticity(z, weights),
        lambda z: baselines.pure_ratio(z)[0],
        lambda z: baselines.interpretability(z, two_modes),
        lambda z: baselines.measure_peers(z)["pure_ratio"],
    ):
        got = measure(broken)
        assert torch.isnan(got).tolist() == [False, False, True, False, True, False]


@pytest.fixture
def splits(monkeypatch):
    """How many channels each call of 2-means got."""
    seen = []
    split = measures.split_in_two
    monkeypatch.setattr(
        measures, "split_in_two", lambda x, seed: seen.append(len(x)) or split(x, seed)
    )
    return seen


def test_all_measures_at_once_equal_each_alone_in_any_chunks(two_modes, monkeypatch, splits):
    whole = torch.tensor([True, True, False, True, True, True])
    weights = torch.rand(6, 24, generator=torch.Generator().manual_seed(4))
    z = two_modes[whole]
    intra, inter = baselines.pure_ratio(z)
    alone = {
        "semanticlens_polysemanticity": baselines.semanticlens_polysemanticity(z),
        "semanticlens_redundancy": baselines.redundancy(z),
        "monosemanticity": baselines.monosemanticity(z, weights[whole]),
        "pure_intra": intra,
        "pure_inter": inter,
    }
    for at_once, chunks in ((64, [5]), (2, [2, 2, 1])):
        monkeypatch.setattr("psi_engine.baselines.rows._MOST", at_once)
        splits.clear()
        got = baselines.measure_all(two_modes, weights, whole)
        assert splits == chunks  # once per channel, though two measures need it
        assert set(got) == set(baselines.MEASURES)
        for name, values in got.items():
            assert torch.isnan(values).tolist() == (~whole).tolist(), name
            assert torch.equal(values[whole], alone[name]), name
    none = baselines.measure_all(two_modes, weights, torch.zeros(6, dtype=torch.bool))
    assert all(torch.isnan(values).all() for values in none.values())


def test_peers_have_every_column_and_equal_each_alone(two_modes, splits):
    weights = torch.rand(6, 24, generator=torch.Generator().manual_seed(4))
    centre = two_modes.mean((0, 1))
    got = baselines.measure_peers(two_modes, weights=weights, centre=centre)
    assert splits == [6]
    assert list(got) == list(baselines.DIRECTIONS)
    intra, inter = baselines.pure_ratio(two_modes)
    want = {
        "clarity": baselines.clarity(two_modes),
        "one_minus_clarity": 1 - baselines.clarity(two_modes),
        "monosemanticity": baselines.monosemanticity(two_modes, weights),
        "semanticlens_polysemanticity": baselines.semanticlens_polysemanticity(two_modes),
        "semanticlens_polysemanticity_centred": baselines.semanticlens_polysemanticity(
            two_modes, centre=centre
        ),
        "semanticlens_redundancy": baselines.redundancy(two_modes),
        "pure_intra": intra,
        "pure_inter": inter,
        "pure_ratio": inter / intra,
    }
    for name, values in want.items():
        assert torch.equal(got[name], values), name


def test_peers_without_weights_and_centre(two_modes):
    got = baselines.measure_peers(two_modes)
    assert set(baselines.DIRECTIONS) - set(got) == {"semanticlens_polysemanticity_centred"}
    assert torch.allclose(got["monosemanticity"], got["clarity"], atol=1e-9)


def test_directions_hold_on_one_mode_against_two(two_modes):
    one_mode = two_modes[:, ::2].repeat_interleave(2, 1)
    centre = torch.full((8,), 0.5)
    one = baselines.measure_peers(one_mode, centre=centre)
    two = baselines.measure_peers(two_modes, centre=centre)
    for name, direction in baselines.DIRECTIONS.items():
        if direction:
            assert float((two[name] - one[name]).mean()) * direction > 0, name


def test_peers_refuse_what_does_not_fit(two_modes):
    with pytest.raises(InputError, match="the centre does not fit"):
        baselines.measure_peers(two_modes, centre=torch.zeros(7))
    with pytest.raises(InputError, match="embeddings have the wrong shape"):
        baselines.measure_peers(two_modes[0])
    with pytest.raises(InputError, match="activations do not fit"):
        baselines.measure_peers(two_modes, weights=torch.ones(6, 23))
