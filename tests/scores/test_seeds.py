"""Two seeds change the solver's restarts and the null's draws: how far z may move for that."""

import pytest
import torch

from psi_engine.config import ScoreConfig
from psi_engine.scores.score import score
from psi_engine.types import Scores

PATCHES, DIM, M = 50, 96, 1000


def features(*shape: int, seed: int) -> torch.Tensor:
    """Directions with the falling spectrum of a network's features, most of them positive."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, DIM + 1, dtype=torch.float64) ** -0.7
    turn, _ = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0)))
    rows = torch.randn(*shape, DIM, generator=generator, dtype=torch.float64) * spectrum
    return rows @ turn.double() + 0.1


def channels(each: int) -> torch.Tensor:
    """Random sets, and sets of one, two, three and five kinds."""
    kinds = [features(each, PATCHES, seed=1)]
    for count in (1, 2, 3, 5):
        centres = 0.7 * features(each, count, seed=10 + count)
        noise = 0.7 * features(each, PATCHES, seed=20 + count)
        kinds.append(noise + centres[:, torch.arange(PATCHES) % count])
    return torch.cat(kinds)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("null", "each"), [("pool", 20), ("rotation", 20), ("rotation-samples", 3)]
)
def test_two_seeds_agree_on_z(null: str, each: int) -> None:
    """By 0.5 where |z| ≤ 3, beyond by five standard errors of a z from M draws."""
    z, pool = channels(each), features(2000, seed=2)

    def scored(seed: int) -> Scores:
        config = ScoreConfig(s_null=null, replicates=M, seed=seed, restarts=20)
        return score(z, pool=pool, channel_ids=torch.arange(len(z)), config=config)

    one, other = scored(1).s_z, scored(2).s_z
    assert one is not None
    assert other is not None
    assert not torch.equal(one, other)
    nearer = torch.minimum(one.abs(), other.abs())
    error = 5 * (2 * (1 + nearer.square() / 2) / M).sqrt()
    allowed = torch.where(nearer <= 3, torch.tensor(0.5), error)
    assert (one - other).abs().div(allowed).max() <= 1
