import pytest
import torch

from psi_engine import baselines
from psi_engine.errors import InputError
from psi_engine.ops.random import hash_keys, permutations, string_key
from tests.reference import baselines as reference


@pytest.fixture
def sides():
    """Channel 0: sides apart. Channel 1: alike."""
    generator = torch.Generator().manual_seed(3)
    top = torch.randn(2, 30, 16, generator=generator)
    bottom = torch.randn(2, 25, 16, generator=generator)
    top[0] += 3
    bottom[0] -= 3
    return top, bottom


@pytest.mark.parametrize("temperature", [None, 0.16, 6.25])
def test_it_equals_loops_on_the_same_draws(sides, temperature):
    got = baselines.interpretability(*sides, seed=4, trials=5, temperature=temperature)
    key = string_key("baseline.mis")
    for c in range(2):
        right = []
        for trial in range(5):
            drawn = []
            for side, images in enumerate(sides):
                order = permutations(hash_keys(4, key, trial, side), images.shape[1])
                drawn.append(images[c, order].double().numpy())
            high, low = drawn
            answer = reference.right_answer(high[0], low[0], high[1:10], low[1:10], temperature)
            right.append(answer)
        assert float(got[c]) == pytest.approx(sum(right) / 5, abs=1e-6)


@pytest.mark.parametrize("temperature", [None, 0.16])
def test_it_knows_separate_from_mixed(sides, temperature):
    got = baselines.interpretability(*sides, temperature=temperature)
    assert float(got[0]) > 0.95
    assert 0.3 < float(got[1]) < 0.7


def test_multiplying_by_a_small_constant_keeps_scores_near_chance(sides):
    got = baselines.interpretability(*sides, temperature=1 / 0.16)
    assert float(got.min()) >= 0.345
    assert float(got.max()) <= 0.655


def test_equal_images_are_chance():
    alike = torch.ones(1, 10, 4)
    for temperature in (None, 0.16):
        assert float(baselines.interpretability(alike, alike, temperature=temperature)) == 0.5


def test_what_does_not_fit_is_refused(sides):
    top, bottom = sides
    with pytest.raises(InputError, match="too few examples"):
        baselines.interpretability(top[:, :9], bottom)
    with pytest.raises(InputError, match="too few examples"):
        baselines.interpretability(top, bottom[:, :9])
    for wrong in (bottom[:1], bottom[..., :15], bottom[0]):
        with pytest.raises(InputError, match="top and bottom do not fit"):
            baselines.interpretability(top, wrong)
    with pytest.raises(InputError, match="no trials"):
        baselines.interpretability(top, bottom, trials=0)
    for temperature in (0, -1, float("nan")):
        with pytest.raises(InputError, match="temperature must be positive"):
            baselines.interpretability(top, bottom, temperature=temperature)
