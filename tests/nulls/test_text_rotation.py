import pytest
import torch

from psi_engine.nulls.draws import frames
from psi_engine.nulls.text_rotation import gram_roots, text_rotation
from psi_engine.ops.exact import cosines, quantise, unit_rows
from psi_engine.ops.naming import measure
from psi_engine.scores.distinctness import named_rows, texts_at_level
from tests.nulls.call import make_batch, make_call, normal

POOL = normal(1, 300, 12) + normal(2, 12)
Z = normal(3, 6, 24, 12) + 2 * normal(2, 12)
TEXTS = normal(4, 40, 12)


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


@pytest.mark.parametrize("kind", ["gap", "contrast", "margin"])
def test_draws_are_distributed_as_d_with_texts_truly_turned(kind):
    """Moments against 4000 full rotations of the texts, one channel at a time."""
    call = make_call(POOL, TEXTS, d_measure=kind, replicates=4000)
    batch = make_batch(Z[:2], call)
    summary = text_rotation(batch, call)
    turns = frames(torch.arange(4000) + 10**6, 12, 12)
    turned = torch.einsum("td,mde->mte", call.texts.rows.double(), turns)
    texts = quantise(turned).flatten(0, 1)
    for c in range(2):
        k, one = int(batch.n_clusters[c]), slice(c, c + 1)
        named = named_rows(batch.units[one], batch.assignments[one], k, kind, call.centre)
        found = cosines(named.rows[0], texts).unflatten(1, (4000, 40)).movedim(1, 0)
        draws = named.scale * measure(found, named.weights.expand(4000, -1), kind)
        error = float(draws.std()) * (2 / 4000) ** 0.5
        assert abs(float(summary.mean[c] - draws.mean())) < 4 * error
        assert float(summary.std[c] / draws.std()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", ["gap", "contrast", "margin"])
def test_more_clusters_than_dimensions(kind):
    call = make_call(POOL[:, :3], TEXTS[:, :3], d_measure=kind, k_min=4, k_max=6)
    summary = text_rotation(make_batch(Z[:, :, :3], call), call)
    assert bool((summary.std > 0).all())


@pytest.mark.parametrize("kind", ["gap", "contrast", "margin"])
def test_a_channel_whose_texts_are_turned_is_one_of_its_draws(kind):
    """Any p is as likely as any other: the observed rank among 39 draws is uniform.

    But for ``contrast``, which is exactly 0 where two clusters have one name: ties raise p.
    """
    ranks = []
    for seed in range(200):
        turn = frames(torch.tensor([seed]), 12, 12)[0]
        call = make_call(POOL, TEXTS @ turn, d_measure=kind, replicates=39, seed=seed)
        ranks.append(float(text_rotation(make_batch(Z[seed % 6][None], call), call).p))
    p = torch.tensor(ranks)
    for level in (0.05, 0.1, 0.5, 0.9):
        error = (level * (1 - level) / 200) ** 0.5
        excess = float((p <= level).double().mean()) - level
        assert excess < 3.3 * error
        assert kind == "contrast" or excess > -3.3 * error


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


def test_concept_level_texts_are_turned_as_a_whole():
    texts = texts_at_level(TEXTS, torch.arange(40) // 4, "concept", "texts")
    call = make_call(POOL, TEXTS, d_measure="margin")
    call.texts = texts
    assert bool((text_rotation(make_batch(Z, call), call).std > 0).all())
