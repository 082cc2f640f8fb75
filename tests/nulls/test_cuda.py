"""Every null on a GPU: the draws, and what is made of them, are those of the CPU."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

import psi_engine
from psi_engine.config import ScoreConfig
from tests.nulls.call import normal

NULLS = [
    ("pool", "permutation", "text-rotation"),
    ("rotation-samples", "exact", "text-shuffle"),
    ("rotation-tangent", "permutation", "partition"),
    ("rotation", "permutation", "unrelated-text"),
    ("neighborhood", "permutation", "pool"),
    ("rotation-shared", "permutation", "neighborhood"),
]


def differing(one: psi_engine.Scores, other: psi_engine.Scores) -> list[str]:
    """Names of the tensors that are not equal bit for bit, NaN apart."""
    found = []
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor) and not torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)):
            found.append(field.name)
    return found


def scores(nulls: tuple[str, str, str], dim: int, kind: str, **where: str) -> psi_engine.Scores:
    """30 channels of 16 patches, four labels, 40 texts."""
    s_null, q_null, d_null = nulls
    return psi_engine.score(
        normal(0, 30, 16, dim) + normal(1, dim),
        torch.arange(16).expand(30, -1) // 4,
        normal(2, 40, dim),
        unrelated_text_embeddings=normal(3, 160, dim),
        config=ScoreConfig(
            s_null=s_null, q_null=q_null, d_null=d_null, d_measure=kind, replicates=99, restarts=3
        ),
        **where,
    )


def test_what_differs_is_seen() -> None:
    """The comparison itself, on the CPU: two backends agree, two nulls do not."""
    one = scores(NULLS[0], 24, "margin", device="cpu", backend="numba")
    assert differing(one, scores(NULLS[0], 24, "margin", device="cpu", backend="torch")) == []
    other = scores(NULLS[3], 24, "margin", device="cpu", backend="numba")
    assert {"d_null_mean", "d_null_quantiles", "s_z"} <= set(differing(one, other))


@pytest.mark.gpu
@pytest.mark.parametrize("nulls", NULLS, ids="-".join)
@pytest.mark.parametrize(("dim", "kind"), [(24, "margin"), (24, "gap"), (8, "contrast")])
@pytest.mark.parametrize("backend", ["cuda", "torch"])
def test_scores_have_the_bits_of_the_cpu(nulls, dim: int, kind: str, backend: str) -> None:
    want = scores(nulls, dim, kind, device="cpu")
    assert differing(want, scores(nulls, dim, kind, device="cuda", backend=backend)) == []
