import numpy as np
import pytest
import torch

from psi_engine.config import ScoreConfig
from psi_engine.errors import InputError
from psi_engine.scores.describe import describe_clusters
from psi_engine.scores.score import score
from tests.reference import distinctness as reference

QUICK = ScoreConfig(replicates=4, restarts=5, d_measure="contrast")


def test_clusters_equal_a_loop(world):
    mask = torch.ones(12, 20, dtype=torch.bool)
    mask[2, 2:] = False  # not scorable: no clusters
    mask[7, 15:] = False
    scores = score(world.embeddings, pool=world.pool, mask=mask, config=QUICK)
    got = describe_clusters(world.embeddings, scores, world.texts, world.concept_ids)
    texts = reference.concept_texts(world.texts.double().numpy(), world.concept_ids.numpy())
    row = 0
    for c in range(12):
        z = world.embeddings[c].double().numpy()
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
        for j in range(int(scores.n_clusters[c])):
            members = [i for i in range(20) if scores.assignments[c, i] == j]
            assert (int(got.channel[row]), int(got.cluster[row])) == (c, j)
            assert int(got.size[row]) == len(members)
            mean = np.mean([float(scores.silhouettes[c, i]) for i in members])
            assert float(got.silhouette[row]) == pytest.approx(mean, abs=1e-12)
            closeness = [sum(z[i] @ z[m] for m in members if m != i) for i in members]
            assert int(got.medoid[row]) == members[int(np.argmax(np.round(closeness, 9)))]
            prototype = reference.unit(sum(z[i] for i in members))
            assert np.abs(got.prototypes[row].numpy() - prototype).max() < 1e-6
            similar = texts @ prototype
            order = np.argsort(-similar)[:5]
            assert got.concepts[row].tolist() == (order * 10).tolist()
            assert np.abs(got.similarities[row].numpy() - similar[order]).max() < 1e-6
            row += 1
    assert row == len(got.channel)
    assert 2 not in got.channel


def test_clusters_have_the_names_that_d_gave_them(world):
    """Under the margin: by what sets a cluster's mean apart from the pool's."""
    config = ScoreConfig(replicates=4, restarts=5, d_measure="margin")
    scores = score(world.embeddings, pool=world.pool, text_embeddings=world.texts, config=config)
    pool = world.pool.double()
    centre = (pool / pool.norm(dim=1, keepdim=True)).mean(0).numpy()
    assert np.abs(scores.centre.numpy() - centre).max() < 1e-6
    got = describe_clusters(world.embeddings, scores, world.texts)
    texts = [reference.unit(t) for t in world.texts.double().numpy()]
    for row, channel in enumerate(got.channel.tolist()):
        z = world.embeddings[channel].double().numpy()
        members = scores.assignments[channel].numpy() == int(got.cluster[row])
        apart = np.mean([reference.unit(x) for x in z[members]], 0) - centre
        similar = np.array(texts) @ reference.unit(apart)
        assert int(got.concepts[row, 0]) == int(np.argmax(similar))
        assert float(got.similarities[row, 0]) == pytest.approx(float(similar.max()), abs=1e-6)


def test_memory_changes_no_bit(world, monkeypatch):
    from psi_engine.scores import describe

    scores = score(world.embeddings, pool=world.pool, config=QUICK)
    many = describe_clusters(world.embeddings, scores, world.texts)
    monkeypatch.setattr(describe, "_BYTES", 1)
    one = describe_clusters(world.embeddings, scores, world.texts)
    for name in ("channel", "cluster", "size", "silhouette", "medoid", "prototypes", "concepts"):
        assert torch.equal(getattr(many, name), getattr(one, name)), name


def test_a_wide_call_is_described_in_little_memory(monkeypatch):
    """A copy of the patches per cluster would take 16 times the embeddings."""
    from psi_engine.scores import describe

    z = torch.randn(40, 20, 256, generator=torch.Generator().manual_seed(0))
    config = ScoreConfig(replicates=2, k_min=8, k_max=8)
    scores = score(z, config=config)
    largest = []
    gather = describe.fold_sum
    monkeypatch.setattr(describe, "fold_sum", lambda x: largest.append(x.numel()) or gather(x))
    describe_clusters(z, scores)
    assert max(largest) < z.numel()


def test_fewer_than_five_concepts_leave_empty_places(world):
    scores = score(world.embeddings, pool=world.pool, config=QUICK)
    got = describe_clusters(world.embeddings, scores, world.texts[:3])
    assert (got.concepts[:, 3:] == -1).all()
    assert torch.isnan(got.similarities[:, 3:]).all()
    assert (got.concepts[:, :3] >= 0).all()
    assert describe_clusters(world.embeddings, scores).concepts is None


def test_what_does_not_fit_is_refused(world):
    scores = score(world.embeddings, pool=world.pool, config=QUICK)
    with pytest.raises(InputError, match="do not fit the scores"):
        describe_clusters(world.embeddings[:3], scores)
    with pytest.raises(InputError, match="text_embeddings do not fit"):
        describe_clusters(world.embeddings, scores, world.texts[:, :3])
    with pytest.raises(InputError, match="concept_ids has the wrong shape"):
        describe_clusters(world.embeddings, scores, world.texts, torch.arange(3))
