import math

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score, silhouette_score

from psi_engine.config import ScoreConfig
from psi_engine.scores.score import score
from tests.reference import distinctness as reference
from tests.reference import statistics

QUICK = ScoreConfig(replicates=40, restarts=5)


def run(world, config=QUICK, rows=slice(None), **changes):
    arguments = {
        "embeddings": world.embeddings[rows],
        "labels": world.labels[rows],
        "text_embeddings": world.texts,
        "concept_ids": world.concept_ids,
        "pool": world.pool,
        "unrelated_text_embeddings": world.bank,
        "unrelated_concept_ids": world.bank_ids,
        "config": config,
    }
    return score(**(arguments | changes))


def same_bits(a, b, order=slice(None)):
    for name in a.to_arrow().schema.names:
        left, right = getattr(a, name), getattr(b, name)
        if isinstance(left, torch.Tensor):
            left = left[order]
            assert torch.equal(torch.nan_to_num(left), torch.nan_to_num(right)), name
            assert torch.equal(torch.isnan(left), torch.isnan(right)), name
    assert torch.equal(a.assignments[order], b.assignments)


def test_raw_scores_equal_scikit_learn_and_a_loop(world):
    got = run(world)
    texts = reference.concept_texts(world.texts.double().numpy(), world.concept_ids.numpy())
    pool = world.pool.double()
    centre = (pool / pool.norm(dim=1, keepdim=True)).mean(0).numpy()
    for c in range(12):
        z, a = world.embeddings[c].double().numpy(), got.assignments[c].numpy()
        assert float(got.s[c]) == pytest.approx(
            max(0, silhouette_score(z, a, metric="cosine")), abs=1e-6
        )
        nmi = normalized_mutual_info_score(world.labels[c].numpy(), a)
        assert float(got.q[c]) == pytest.approx(nmi, abs=1e-10)
        assert float(got.d[c]) == pytest.approx(reference.margin(z, a, texts, centre), abs=1e-6)
        unit = z / np.linalg.norm(z, axis=1, keepdims=True)
        clarity = (np.linalg.norm(unit.sum(0)) ** 2 - 20) / (20 * 19)
        assert float(got.clarity[c]) == pytest.approx(clarity, abs=1e-6)
        assert set(a.tolist()) == set(range(int(got.n_clusters[c])))


def test_psi_is_the_product_and_its_log_the_sum(world):
    got = run(world)
    assert got.available == ("s", "q", "d")
    product = got.s_hat * got.q_hat * got.d_hat
    assert torch.allclose(got.psi, product, rtol=1e-12)
    for c in range(12):
        z = [
            statistics.z_score(
                *(float(getattr(got, x + part)[c]) for part in ("", "_null_mean", "_null_std"))
            )
            for x in "sqd"
        ]
        assert float(got.log_psi[c]) == pytest.approx(sum(map(statistics.log_sigmoid, z)), rel=1e-9)
        assert float(got.psi_p[c]) == max(float(getattr(got, x + "_p")[c]) for x in "sqd")
    assert got.psi_p_adj.tolist() == pytest.approx(statistics.adjusted(got.psi_p.tolist(), "bh"))
    assert got.s_p_adj.tolist() == pytest.approx(statistics.adjusted(got.s_p.tolist(), "bh"))


def test_planted_kinds_come_apart(world):
    got = run(world, ScoreConfig(replicates=200))
    assert float(got.psi[4:8].min()) > float(got.psi[:4].max())
    assert set(got.verdict[:4]) == {"monosemantic"}


COMBINATIONS = [
    ScoreConfig(replicates=12, subsamples=8),
    ScoreConfig(replicates=12, s_null="neighborhood", d_null="neighborhood", q_null="exact"),
    ScoreConfig(replicates=12, s_null="rotation-samples", d_null="partition", d_measure="gap"),
    ScoreConfig(replicates=12, s_null="rotation-tangent", d_null="text-shuffle"),
    ScoreConfig.preset("paper", replicates=12),
    ScoreConfig(replicates=12, s_null="rotation", d_null="unrelated-text", d_level="prompt"),
]


@pytest.mark.parametrize("config", COMBINATIONS, ids=lambda c: f"{c.s_null},{c.q_null},{c.d_null}")
def test_neither_memory_nor_order_nor_company_changes_a_bit(world, config):
    from dataclasses import replace

    mask = torch.ones(12, 20, dtype=torch.bool)
    mask[3, 15:] = False
    whole = run(world, config, mask=mask)
    same_bits(whole, run(world, config, mask=mask))
    same_bits(whole, run(world, replace(config, memory=1 << 20), mask=mask))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    same_bits(whole, run(world, config, order, mask=mask[order]), order)


@pytest.mark.parametrize("config", COMBINATIONS[:2], ids=["pool", "neighborhood"])
def test_a_channel_scores_alike_alone_but_for_adjustment(world, config):
    whole, alone = run(world, config), run(world, config, slice(5, 6))
    for name in ("s_z", "q_z", "d_z", "psi", "psi_p", "clarity"):
        assert torch.equal(getattr(whole, name)[5:6], getattr(alone, name)), name


def test_backends_agree(world):
    for config in COMBINATIONS[:3]:
        same_bits(run(world, config, backend="torch"), run(world, config, backend="numba"))


def test_another_seed_draws_other_nulls(world):
    one, other = (run(world, ScoreConfig(replicates=40, s_null="pool", seed=s)) for s in (0, 1))
    assert not torch.equal(one.s_null_mean, other.s_null_mean)
    assert torch.allclose(one.s_null_mean, other.s_null_mean, atol=0.05)


def test_channel_ids_key_the_randomness(world):
    config = ScoreConfig(replicates=12, s_null="rotation-samples")
    ids = torch.arange(12)
    a = run(world, config, channel_ids=ids)
    assert torch.equal(a.s_null_mean, run(world, config, channel_ids=ids).s_null_mean)
    assert not torch.equal(a.s_null_mean, run(world, config, channel_ids=ids + 1).s_null_mean)


def test_missing_components_are_left_out_and_said(world):
    got = score(world.embeddings, pool=world.pool, config=QUICK)
    assert got.available == ("s",)
    assert torch.equal(got.psi, got.s_hat)
    assert got.q is None
    assert got.d_p_adj is None
    assert any("no labels" in note for note in got.notes)
    assert any("no text" in note for note in got.notes)
    unknown = score(
        world.embeddings, torch.full_like(world.labels, -1), pool=world.pool, config=QUICK
    )
    assert unknown.q is None
    assert got.to_arrow()["q_z"].null_count == 12


def test_without_a_pool_the_call_is_the_pool(world):
    got = run(world, pool=None)
    assert any("every embedding of this call" in note for note in got.notes)
    explicit = run(world, pool=world.embeddings.flatten(0, 1))
    assert torch.equal(got.s_z, explicit.s_z)


def test_broken_channels_keep_a_row_and_a_reason(world):
    z = world.embeddings.clone()
    z[0, 3, 2] = float("nan")
    z[1, 0] = 0.0
    z[2] = z[2, :1]
    z[3, 3:] = z[3, :1]
    mask = torch.ones(12, 20, dtype=torch.bool)
    mask[4, 13:] = False
    mask[5, 4:] = False
    mask[6, 3:] = False
    mask[7] = False
    z[4, 13:] = float("nan")  # outside the mask: nobody looks
    got = run(world, embeddings=z, mask=mask, config=ScoreConfig(replicates=40, subsamples=5))
    assert got.status == ("failed",) * 4 + ("short", "short", "failed", "failed") + ("ok",) * 4
    assert got.reason[0] == "1 of 20 embeddings hold NaN or infinite values"
    assert got.reason[1] == "1 of 20 embeddings are zero and have no direction"
    assert got.reason[2] == "1 different patches, at least 4 are needed"
    assert got.reason[3].startswith("3 different patches")
    assert got.reason[4] == "scored on 13 of 20 patches"
    assert got.reason[5] == "scored on 4 of 20 patches, k_max clipped to 3"
    assert got.reason[6].startswith("3 different patches")
    assert got.reason[7].startswith("no patches")
    assert got.reason[8:] == ("",) * 4
    for c in (0, 1, 2, 3, 6, 7):
        assert got.verdict[c] == "not scorable"
        assert got.n_clusters[c] == 0
        assert (got.assignments[c] == -1).all()
        for name in ("psi", "s", "q", "d", "s_z", "psi_p_adj", "clarity", "psi_low"):
            assert math.isnan(getattr(got, name)[c]), name
    for c in (4, 5, 8):
        assert math.isfinite(got.psi[c])
    assert got.n_patches[4] == 13
    assert (got.assignments[4, 13:] == -1).all()
    assert torch.isnan(got.silhouettes[4, 13:]).all()
    assert (got.assignments[4, :13] >= 0).all()


def test_a_channel_its_null_refuses_is_empty_and_counts_in_no_adjustment(world):
    config = ScoreConfig(replicates=40, s_null="rotation-tangent", subsamples=5)
    z = world.embeddings.clone() + 2.0
    z[3, 4:7] = -z[3, :3]  # opposite the others: no tangent plane holds them all
    ids = torch.arange(12)
    got = run(world, config, embeddings=z, channel_ids=ids)
    assert got.status[3] == "failed"
    assert "points away from the mean direction" in got.reason[3]
    assert got.verdict[3] == "not scorable"
    for name, column in zip(got.to_arrow().schema.names, got.to_arrow().columns, strict=True):
        if name.startswith(("s", "q", "d", "psi", "log_psi", "clarity")) and name != "status":
            assert column[3].as_py() is None or math.isnan(column[3].as_py()), name
    assert got.n_clusters[3] == 0
    assert (got.assignments[3] == -1).all()
    assert torch.isnan(got.silhouettes[3]).all()
    keep = ids != 3
    assert all(got.status[c] == "ok" for c in ids[keep])
    for part in ("s", "q", "d", "psi"):
        p, adjusted = getattr(got, f"{part}_p")[keep], getattr(got, f"{part}_p_adj")[keep]
        assert adjusted.tolist() == pytest.approx(statistics.adjusted(p.tolist(), "bh")), part


def test_a_short_channel_scores_as_if_it_were_alone_with_its_patches(world):
    mask = torch.ones(12, 20, dtype=torch.bool)
    keep = torch.tensor([0, 2, 3, 5, 7, 8, 9, 11, 14, 15, 18, 19])
    mask[4] = False
    mask[4, keep] = True
    ids = torch.arange(12)
    long = run(world, mask=mask, channel_ids=ids)
    cut = run(
        world,
        rows=slice(4, 5),
        embeddings=world.embeddings[4:5, keep],
        labels=world.labels[4:5, keep],
        channel_ids=ids[4:5],
    )
    for name in ("s", "q", "d", "s_z", "q_z", "d_z", "psi"):
        assert torch.equal(getattr(long, name)[4:5], getattr(cut, name)), name
    assert torch.equal(long.assignments[4, keep], cut.assignments[0])


def test_unknown_labels_are_left_out_of_the_table(world):
    labels = world.labels.clone()
    labels[5, ::3] = -1
    labels[6] = -1
    got = run(world, labels=labels)
    known = labels[5] >= 0
    want = normalized_mutual_info_score(labels[5, known].numpy(), got.assignments[5, known].numpy())
    assert float(got.q[5]) == pytest.approx(want, abs=1e-10)
    assert (float(got.q[6]), float(got.q_z[6]), float(got.q_hat[6]), float(got.q_p[6])) == (
        0,
        0,
        0.5,
        1,
    )


def test_channels_without_any_label_are_counted(world):
    labels, mask = world.labels.clone(), torch.ones(12, 20, dtype=torch.bool)
    assert not any("known label" in note for note in run(world).notes)
    labels[6] = labels[8] = -1
    mask[8] = False  # no patches, so none to label
    labels[2] = torch.where(torch.arange(20) < 3, labels[2], -1)
    mask[2, :3] = False  # labels of patches that do not exist
    notes = run(world, labels=labels, mask=mask).notes
    assert any(note.startswith("channels without a known label: 2;") for note in notes)


def test_intervals_hold_psi_and_are_wider_for_fewer_patches(world):
    config = ScoreConfig(replicates=40, subsamples=100)
    got = run(world, config)
    assert (got.psi_low <= got.psi).all()
    assert (got.psi <= got.psi_high).all()
    assert (got.psi_low < got.psi_high).all()
    assert torch.isnan(run(world).psi_low).all()


def test_few_replicates_and_clipped_k_are_noted(world):
    notes = " | ".join(run(world, ScoreConfig(replicates=20, k_max=25)).notes)
    assert "no p is below 1/21" in notes
    assert "k_max = 25 was clipped to 19" in notes


def test_progress_ends_with_all_channels(world):
    seen = []
    run(world, progress=lambda *x: seen.append(x), config=ScoreConfig(replicates=4, memory=1 << 20))
    assert seen[-1] == ("score", 12, 12)
    assert [x[1] for x in seen] == sorted(x[1] for x in seen)
