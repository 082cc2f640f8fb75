"""Cluster prototypes of stored runs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import psi_engine as psi
from psi_engine import prototypes as module
from psi_engine.errors import InputError
from psi_engine.prototypes import Prototypes, prototypes
from psi_engine.scores.describe import describe_clusters
from psi_engine.stored import StoredLayer
from tests.reference import prototypes as reference

CHANNELS, PATCHES, DIM = 7, 9, 5


def layer_of(embeddings: torch.Tensor, channels: torch.Tensor) -> StoredLayer:
    """A layer that holds nothing but what prototypes are made of, every row used once."""
    count, patches, dim = embeddings.shape
    rows = torch.arange(count * patches).view(count, patches)
    return StoredLayer(
        "layer",
        sites=SimpleNamespace(channels=channels),  # type: ignore[arg-type]
        field=None,  # type: ignore[arg-type]
        patches=SimpleNamespace(rows={("layer", "top"): rows}),  # type: ignore[arg-type]
        all_embeddings=embeddings.reshape(-1, dim),
        image_labels=None,
    )


@pytest.fixture(scope="module")
def embeddings() -> torch.Tensor:
    draws = np.random.default_rng(0).normal(size=(CHANNELS, PATCHES, DIM))
    return torch.tensor(draws / np.linalg.norm(draws, axis=2, keepdims=True), dtype=torch.float32)


@pytest.fixture(scope="module")
def assignments() -> torch.Tensor:
    found = torch.tensor(np.random.default_rng(1).integers(-1, 3, (CHANNELS, PATCHES)))
    found[2] = -1  # not scored
    found[4, :] = 0
    found[5][found[5] == 1] = 2  # a number without members
    return found


IDS = torch.tensor([3, 4, 9, 2, 40, 41, 7])


def test_prototypes_are_the_mean_directions(
    embeddings: torch.Tensor, assignments: torch.Tensor
) -> None:
    found = prototypes(layer_of(embeddings, IDS), assignments)
    expected = reference.prototypes(
        embeddings.double().tolist(), assignments.tolist(), IDS.tolist()
    )
    assert list(zip(found.channel.tolist(), found.cluster.tolist(), strict=True)) == [
        (channel, cluster) for channel, cluster, _ in expected
    ]
    assert 9 not in found.channel.tolist()
    assert found.vectors.dtype == torch.float32
    np.testing.assert_allclose(found.vectors, [row[2] for row in expected], atol=3e-7, rtol=0)


def test_they_are_those_the_clusters_are_described_with(embeddings: torch.Tensor) -> None:
    scores = psi.score(embeddings, config=psi.ScoreConfig(replicates=2, s_null="rotation"))
    described = describe_clusters(embeddings, scores)
    found = prototypes(layer_of(embeddings, torch.arange(CHANNELS)), scores.assignments)
    assert torch.equal(found.channel, described.channel)
    assert torch.equal(found.cluster, described.cluster)
    assert torch.equal(found.vectors, described.prototypes)


def test_neither_chunks_nor_the_order_of_channels_change_bits(
    embeddings: torch.Tensor, assignments: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prototypes(layer_of(embeddings, IDS), assignments)
    order = torch.arange(CHANNELS - 1, -1, -1)
    turned = prototypes(layer_of(embeddings[order], IDS[order]), assignments[order])
    monkeypatch.setattr(module, "_BYTES", 1)  # one channel at a time
    pieces = prototypes(layer_of(embeddings, IDS), assignments)
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))
    ids = [turned.channel.tolist().index(c) for c in whole.channel.tolist()]
    place = torch.tensor(ids) + torch.tensor(
        [whole.channel.tolist()[:i].count(c) for i, c in enumerate(whole.channel.tolist())]
    )
    assert torch.equal(whole.vectors, turned.vectors[place])


def test_what_has_no_direction_has_no_prototype(embeddings: torch.Tensor) -> None:
    rows = embeddings[:2].clone()
    rows[0, 1] = -rows[0, 0]
    labels = torch.full((2, PATCHES), -1)
    labels[0, :2] = 0
    labels[0, 2:4] = 1
    found = prototypes(layer_of(rows, torch.tensor([5, 6])), labels)
    assert found.channel.tolist() == [5]
    assert found.cluster.tolist() == [1]


def test_no_clusters_are_no_rows(embeddings: torch.Tensor) -> None:
    found = prototypes(layer_of(embeddings, IDS), torch.full((CHANNELS, PATCHES), -1))
    assert found.vectors.shape == (0, DIM)
    assert isinstance(found, Prototypes)


def test_assignments_of_another_shape_are_refused(embeddings: torch.Tensor) -> None:
    with pytest.raises(InputError, match="assignments do not fit layer"):
        prototypes(layer_of(embeddings, IDS), torch.zeros(CHANNELS, PATCHES - 1, dtype=torch.int64))
