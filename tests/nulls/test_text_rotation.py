from dataclasses import fields

import pytest
import torch

from psi_engine.nulls.base import Batch
from psi_engine.nulls.draws import frames
from psi_engine.nulls.text_rotation import gram_roots, text_rotation
from psi_engine.ops.exact import cosines, quantise, unit_rows
from psi_engine.ops.naming import measure
from psi_engine.scores.distinctness import named_rows, texts_at_level
from tests.nulls.calibration import assert_super_uniform, assert_uniform, seen_ties
from tests.nulls.call import make_batch, make_call, normal

KINDS = ["gap", "contrast", "margin"]
POOL = normal(1, 300, 12) + normal(2, 12)
Z = normal(3, 6, 24, 12) + 2 * normal(2, 12)
TEXTS = normal(4, 40, 12)
SYNONYMS = TEXTS[:5].repeat_interleave(8, 0) + 0.1 * TEXTS
# what the texts keep when they turn together, and lose when each turns by itself
OWN = [
    pytest.param(400, 99, id="quick"),
    pytest.param(4000, 199, id="long", marks=pytest.mark.slow),
]


def one_channel(batch, c):
    values = {field.name: getattr(batch, field.name) for field in fields(Batch)}
    return Batch(**{name: x if x is None else x[c : c + 1] for name, x in values.items()})


@pytest.mark.parametrize("dim", [3, 9])
def test_roots_have_the_rows_gram_matrix_where_rows_vanish_repeat_or_outnumber_dimensions(dim):
    rows = unit_rows(normal(5, 4, 5, dim)).rows
    rows[1, 2] = 0
    rows[2, 3] = rows[2, 0]
    root = gram_roots(rows).double()
    assert torch.equal(root, root.tril())
    gram = rows.double() @ rows.double().mT
    assert float((root @ root.mT - gram).abs().max()) < 1e-6


def test_roots_do_not_depend_on_the_batch():
    rows = unit_rows(normal(6, 50, 5, 32)).rows
    assert torch.equal(gram_roots(rows)[17:18], gram_roots(rows[17:18]))


def test_frames_are_orthonormal_and_point_everywhere():
    got = frames(torch.arange(4000), 3, 5)
    assert float((got @ got.mT - torch.eye(3, dtype=torch.float64)).abs().max()) < 1e-12
    # mean 0 and covariance I/5 of each coordinate, within four standard errors
    assert float(got.mean(0).abs().max()) < 4 * (0.2 / 4000) ** 0.5
    square = (got**2).mean(0)
    assert float((square - 0.2).abs().max()) < 4 * 0.23 / 4000**0.5


def assert_distributed_as_d_with_texts_truly_turned(z, call):
    """Moments against 4000 full rotations of the texts, one channel at a time.

    Within four standard errors of a difference of two means and of a ratio of two sds.
    """
    kind, (size, dim) = call.config.d_measure, call.texts.rows.shape
    batch = make_batch(z, call)
    summary = text_rotation(batch, call)
    turns = frames(torch.arange(4000) + 10**6, dim, dim)
    turned = torch.einsum("td,mde->mte", call.texts.rows.double(), turns)
    texts = quantise(turned).flatten(0, 1)
    for c in range(len(z)):
        k, one = int(batch.n_clusters[c]), slice(c, c + 1)
        named = named_rows(batch.units[one], batch.assignments[one], k, kind, call.centre)
        found = cosines(named.rows[0], texts).unflatten(1, (4000, size)).movedim(1, 0)
        draws = named.scale * measure(found, named.weights.expand(4000, -1), kind)
        mean, std = draws.mean(), draws.std()
        assert abs(float(summary.mean[c] - mean)) < 4 * float(std) * (2 / 4000) ** 0.5
        kurtosis = float(((draws - mean) ** 4).mean() / std**4)
        error = ((kurtosis - 1) / (4 * 4000) * 2) ** 0.5
        assert float(summary.std[c] / std) == pytest.approx(1, abs=4 * error)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_distributed_as_d_with_texts_truly_turned(kind):
    call = make_call(POOL, SYNONYMS, d_measure=kind, replicates=4000)
    assert_distributed_as_d_with_texts_truly_turned(Z[:2], call)


@pytest.mark.parametrize("kind", KINDS)
def test_more_clusters_than_dimensions(kind):
    settings = {"d_measure": kind, "replicates": 4000, "k_min": 4, "k_max": 6}
    call = make_call(POOL[:, :3], SYNONYMS[:, :3], **settings)
    assert_distributed_as_d_with_texts_truly_turned(Z[:2, :, :3], call)


@pytest.mark.parametrize("kind", KINDS)
def test_concept_level_texts_are_turned_as_a_whole(kind):
    """Two templates a concept, four synonyms a meaning."""
    call = make_call(POOL, SYNONYMS, d_measure=kind, replicates=4000)
    call.texts = texts_at_level(SYNONYMS, torch.arange(40) // 2, "concept", "texts")
    assert_distributed_as_d_with_texts_truly_turned(Z[:2], call)


@pytest.mark.parametrize("level", ["prompt", "concept"])
@pytest.mark.parametrize("dim", [3, 12], ids=["more-clusters", "more-dims"])
def test_parallel_texts_stay_parallel(level, dim):
    """Every text has an equal: no draw has a gap, as no text turns by itself."""
    call = make_call(POOL[:, :dim], TEXTS[:, :dim], d_measure="gap", k_min=4, k_max=6)
    concepts = torch.arange(40) if level == "prompt" else torch.arange(40) // 2
    twice = torch.cat([TEXTS[:, :dim], TEXTS[:, :dim]])
    call.texts = texts_at_level(twice, torch.cat([concepts, concepts + 40]), level, "texts")
    summary = text_rotation(make_batch(Z[:, :, :dim], call), call)
    assert (summary.mean == 0).all()
    assert (summary.std == 0).all()


@pytest.mark.parametrize(("channels", "replicates"), OWN)
@pytest.mark.parametrize("kind", KINDS)
def test_a_channel_whose_texts_are_turned_is_one_of_its_draws(
    kind, channels, replicates, monkeypatch
):
    """Each channel is observed with texts turned for it alone, and compared in a call of its own.

    Turns shared by two channels would give their first clusters, which the roots put on one
    axis, the same similarities: their ranks would not be independent.
    """
    settings = {"d_measure": kind, "replicates": replicates, "k_max": 3}
    call = make_call(POOL[:, :8], SYNONYMS[:, :8], **settings)
    batch = make_batch(normal(13, channels, 10, 8) + normal(2, 12)[:8], call)
    named = named_rows(batch.units, batch.assignments, 3, kind, call.centre)
    turns = frames(torch.arange(channels) + 10**6, 8, 8)
    turned = quantise(call.texts.rows.double() @ turns)
    found = torch.cat(
        [cosines(row, texts)[None] for row, texts in zip(named.rows, turned, strict=True)]
    )
    batch.d = named.scale * measure(found, named.weights, kind)
    p, equal = [], []
    for c in range(channels):
        own = make_call(POOL[:, :8], SYNONYMS[:, :8], seed=c, **settings)
        result, ties = seen_ties(text_rotation, one_channel(batch, c), own, monkeypatch)
        p.append(result.p)
        equal.append(ties)
    assert_super_uniform(torch.cat(p), replicates, shared=False)
    assert_uniform(torch.cat(p), replicates, shared=False, equal=torch.cat(equal))


def test_named_clusters_beat_turned_texts_and_unnamed_do_not():
    """Clusters that lie on texts, against the same clusters with texts from nowhere."""
    centres = unit_rows(normal(7, 2, 32)).rows.double()
    z = centres[torch.arange(20) % 2] + 0.1 * normal(8, 30, 20, 32)
    on_them = torch.cat([centres + 0.05 * normal(9, 2, 32), normal(10, 60, 32)])
    pool = normal(11, 200, 32)
    for texts, low, high in ((on_them, 0.95, 1.0), (normal(12, 62, 32), 0.0, 0.5)):
        call = make_call(pool, texts, d_measure="margin", replicates=99, k_max=2)
        rate = float((text_rotation(make_batch(z, call), call).p <= 0.05).double().mean())
        assert low <= rate <= high
