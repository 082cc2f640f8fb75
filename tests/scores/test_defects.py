"""Defects of data: each gives its channel a status and a reason, and leaves the others alone."""

import math

import pytest
import torch

from psi_engine.config import ScoreConfig
from psi_engine.scores.score import score

QUICK = ScoreConfig(replicates=5)
Z = torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(0))
POOL = torch.randn(90, 6, generator=torch.Generator().manual_seed(1))
ALL = torch.ones(3, 8, dtype=torch.bool)


def spoil(patches, value):
    z = Z.clone()
    z[1, patches] = value
    return z


def hide(*patches):
    mask = ALL.clone()
    mask[1, list(patches)] = False
    return mask


@pytest.mark.parametrize(
    ("embeddings", "mask", "status", "reason"),
    [
        pytest.param(
            spoil([3, 5], float("nan")),
            ALL,
            "failed",
            "2 of 8 embeddings hold NaN or infinite values",
            id="NaN",
        ),
        pytest.param(
            spoil(2, float("inf")),
            ALL,
            "failed",
            "1 of 8 embeddings hold NaN or infinite values",
            id="infinite",
        ),
        pytest.param(
            spoil(2, torch.tensor([0, 0, -torch.inf, torch.inf, 0, 0])),
            ALL,
            "failed",
            "1 of 8 embeddings hold NaN or infinite values",
            id="both infinities",
        ),
        pytest.param(
            spoil(0, 0.0),
            ALL,
            "failed",
            "1 of 8 embeddings are zero and have no direction",
            id="zero row",
        ),
        pytest.param(
            spoil(slice(3, 8), Z[1, 0]),
            ALL,
            "failed",
            "3 different patches, at least 4 are needed",
            id="three distinct patches",
        ),
        pytest.param(
            spoil(slice(0, 8), 1.0),
            ALL,
            "failed",
            "1 different patches, at least 4 are needed",
            id="one distinct patch",
        ),
        pytest.param(
            spoil(slice(3, 8), 2.0 ** torch.arange(5)[:, None] * Z[1, 0]),
            ALL,
            "failed",
            "3 different patches, at least 4 are needed",
            id="three directions of different lengths",
        ),
        pytest.param(spoil(slice(4, 8), Z[1, 0]), ALL, "ok", "", id="four distinct patches"),
        pytest.param(Z, hide(0, 7), "short", "scored on 6 of 8 patches", id="short"),
        pytest.param(
            Z,
            hide(0, 3, 6, 7),
            "short",
            "scored on 4 of 8 patches, k_max clipped to 3",
            id="short, k clipped",
        ),
        pytest.param(
            Z,
            hide(0, 1, 2, 3, 4),
            "failed",
            "3 different patches, at least 4 are needed",
            id="three patches",
        ),
        pytest.param(
            Z, hide(*range(8)), "failed", "no patches (a dead channel, or all masked)", id="dead"
        ),
        pytest.param(
            spoil([3, 5], float("nan")),
            hide(3, 5),
            "short",
            "scored on 6 of 8 patches",
            id="hidden",
        ),
        pytest.param(spoil(slice(0, 8), Z[1] * 1e-30), ALL, "ok", "", id="tiny rows"),
        pytest.param(spoil(slice(0, 8), Z[1] * 1e30), ALL, "ok", "", id="huge rows"),
    ],
)
def test_a_defect_gives_its_channel_a_status(embeddings, mask, status, reason):
    got = score(embeddings, pool=POOL, mask=mask, config=QUICK)
    assert got.status == ("ok", status, "ok")
    assert got.reason == ("", reason, "")
    assert math.isnan(got.psi[1]) == (status == "failed")
    assert (got.verdict[1] == "not scorable") == (status == "failed")
    want = score(Z, pool=POOL, config=QUICK)
    for name in ("s", "s_z", "s_p", "psi"):
        assert torch.equal(getattr(got, name)[::2], getattr(want, name)[::2]), name


def test_k_min_beyond_a_channels_patches_fails_that_channel():
    config = ScoreConfig(replicates=5, k_min=5, k_max=6)
    got = score(Z, pool=POOL, mask=hide(0, 1, 2), config=config)
    assert got.status == ("ok", "failed", "ok")
    assert got.reason[1] == "5 patches are too few for k_min = 5"


def test_all_channels_may_fail():
    got = score(torch.full((2, 8, 6), torch.nan), pool=POOL, config=QUICK)
    assert got.status == ("failed", "failed")
    assert torch.isnan(got.psi_p_adj).all()
    assert (got.n_clusters == 0).all()
    assert len(got.to_arrow()) == 2


def test_broken_rows_are_never_drawn_from_the_call_as_pool():
    """With pool=None the rows that nulls draw are those of the call that have a direction."""
    z = torch.randn(12, 8, 6, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(12, 8, dtype=torch.bool)
    mask[2, 4:] = False
    broken = z.clone()
    broken[2, 4:] = torch.nan
    broken[5, 1] = 0.0
    good = mask.clone()
    good[5, 1] = False
    got = score(broken, mask=mask, config=QUICK)
    want = score(z, pool=z[good], mask=good, config=QUICK)
    keep = [0, 1, 3, 4, 6, 7]
    assert torch.equal(got.s_z[keep], want.s_z[keep])
