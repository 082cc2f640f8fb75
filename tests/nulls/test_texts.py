"""The D-nulls that change the texts or the partition instead of the patches."""

from itertools import permutations as permutations_of

import numpy as np
import pytest
import torch

from psi_engine.nulls.draws import without_replacement
from psi_engine.nulls.partition import partition
from psi_engine.nulls.registry import nulls_of
from psi_engine.nulls.text_rotation import text_rotation
from psi_engine.nulls.text_shuffle import text_shuffle
from psi_engine.nulls.unrelated_text import restricted_measure, unrelated_text
from psi_engine.ops.exact import cosines, quantise, unit_rows
from psi_engine.ops.naming import measure
from psi_engine.ops.random import permutations
from psi_engine.scores.distinctness import partition_distinctness, texts_at_level
from tests.nulls.call import make_batch, make_call, normal
from tests.reference import distinctness as reference

Z, TEXTS, BANK = normal(0, 4, 14, 9), normal(1, 11, 9), normal(2, 40, 9)


@pytest.mark.parametrize("kind", ["gap", "contrast"])
def test_unrelated_text_equals_a_loop_over_the_drawn_concepts(kind):
    call = make_call(None, TEXTS, BANK, d_measure=kind, replicates=7)
    batch = make_batch(Z, call)
    got = unrelated_text(batch, call)
    drawn = without_replacement(call.keys("null.d.unrelated", torch.arange(7)), 40, 11)
    for c in range(4):
        a = batch.assignments[c].numpy()
        values = [
            reference.MEASURES[kind](Z[c].numpy(), a, BANK[sorted(drawn[r].tolist())].numpy())
            for r in range(7)
        ]
        assert float(got.mean[c]) == pytest.approx(np.mean(values), abs=1e-6)
        assert float(got.std[c]) == pytest.approx(np.std(values, ddof=1), abs=1e-6)


def test_concepts_are_drawn_whole():
    ids = torch.arange(60) // 3
    call = make_call(None, TEXTS, None, d_level="prompt")
    call.unrelated = texts_at_level(normal(3, 60, 9), ids, "prompt", "bank")
    from psi_engine.nulls.unrelated_text import _drawn_texts

    drawn = _drawn_texts(call).unflatten(1, (20, 3))
    assert (drawn.all(-1) | ~drawn.any(-1)).all()
    assert (drawn[..., 0].sum(-1) == 11).all()


@pytest.mark.parametrize("kind", ["gap", "contrast", "margin"])
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_looking_at_the_best_texts_first_changes_nothing(kind, share):
    """Few texts drawn: most replicates must look at the whole row; ties included."""
    generator = torch.Generator().manual_seed(4)
    similarities = quantise(torch.rand(6, 3, 300, generator=generator, dtype=torch.float64))
    similarities[:, :, 100:200] = (similarities[:, :, 100:200] * 8).round() / 8
    weights = torch.tensor([[3.0, 1.0, 2.0]], dtype=torch.float64).repeat(6, 1)
    weights[2, 2] = 0
    chosen = torch.rand(25, 300, generator=generator) < share
    chosen[:, :2] = True
    got = restricted_measure(similarities, weights, chosen, kind, make_call())
    for r in range(25):
        assert torch.equal(got[:, r], measure(similarities[:, :, chosen[r]], weights, kind))


def test_without_a_bank_texts_are_shuffled_and_it_is_said():
    call = make_call(None, TEXTS, None, replicates=5, d_null="unrelated-text")
    assert nulls_of(call)["d"] == ("text-shuffle", 5)
    assert "'text-shuffle' was used" in call.notes[0]
    call = make_call(None, TEXTS, BANK, replicates=5, d_null="unrelated-text")
    assert nulls_of(call)["d"] == ("unrelated-text", 5)
    assert not call.notes


def test_text_shuffle_equals_a_loop():
    call = make_call(None, TEXTS, None, replicates=5, d_measure="gap")
    batch = make_batch(Z, call)
    got = text_shuffle(batch, call)
    plain = (TEXTS / TEXTS.norm(dim=1, keepdim=True)).numpy()
    for c in range(4):
        values = []
        for r in range(5):
            shuffled = np.empty_like(plain)
            for j in range(9):
                order = permutations(call.keys("null.d.shuffle", r, j), 11)
                shuffled[:, j] = plain[order.numpy(), j]
            values.append(reference.gap(Z[c].numpy(), batch.assignments[c].numpy(), shuffled))
        assert float(got.mean[c]) == pytest.approx(np.mean(values), abs=1e-6)


def test_partition_equals_a_loop_and_warns():
    call = make_call(None, TEXTS, None, replicates=9, d_measure="contrast")
    batch = make_batch(Z, call)
    got = partition(batch, call)
    for c in range(4):
        values = []
        for r in range(9):
            order = permutations(call.keys("null.d.partition", batch.ids[c], r), 14)
            shuffled = batch.assignments[c][order].numpy()
            values.append(reference.contrast(Z[c].numpy(), shuffled, TEXTS.numpy()))
        assert float(got.mean[c]) == pytest.approx(np.mean(values), abs=1e-6)
    assert "without looking at the embeddings" in call.notes[0]


@pytest.mark.parametrize("kind", ["gap", "contrast", "margin"])
def test_partition_counts_the_observed_partition_among_its_draws(kind):
    """Four patches in two clusters have few partitions: p is one of few exact shares."""
    z = normal(3, 60, 4, 9)
    call = make_call(normal(4, 30, 9), TEXTS, replicates=1999, d_measure=kind, k_max=2)
    batch = make_batch(z, call)
    got = partition(batch, call)
    for c in range(60):
        a, units = batch.assignments[c], batch.units[c : c + 1]
        every = torch.tensor(list({tuple(a[list(o)].tolist()) for o in permutations_of(range(4))}))
        named = cosines(units, call.texts.rows)
        values = partition_distinctness(
            named, batch.grams[c : c + 1], every[None], 2, kind, call.centre_similarities
        )[0]
        own = values[(every == a).all(1)]
        share = float((values >= own - 1e-9).double().mean())
        assert float(got.p[c]) == pytest.approx(
            share, abs=4 * (share * (1 - share) / 2000) ** 0.5 + 1e-3
        )


@pytest.mark.parametrize("null", [text_rotation, unrelated_text, text_shuffle, partition])
def test_memory_changes_no_bit(null):
    results = []
    for memory in (1 << 13, 1 << 30):
        call = make_call(None, TEXTS, BANK, memory=memory, replicates=20)
        results.append(null(make_batch(Z, make_call(None, TEXTS, BANK)), call))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_shuffled_order_of_whole_prompts_changes_no_measure():
    """Why "shuffle the text assignments" cannot be a null: D does not see the order."""
    units, texts = unit_rows(Z[0]).rows, unit_rows(TEXTS).rows
    order = torch.randperm(11, generator=torch.Generator().manual_seed(5))
    weights = torch.ones(1, 14, dtype=torch.float64)
    for kind in ("gap", "contrast", "margin"):
        a = measure(cosines(units, texts)[None], weights, kind)
        assert torch.equal(a, measure(cosines(units, texts[order])[None], weights, kind))
