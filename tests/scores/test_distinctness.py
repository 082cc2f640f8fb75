import numpy as np
import pytest
import torch

from psi_engine.errors import InputError
from psi_engine.ops.exact import cosines, gram, unit_rows
from psi_engine.scores.distinctness import (
    distinctness,
    measure,
    partition_distinctness,
    prototypes,
    texts_at_level,
)
from tests.reference import distinctness as reference


def problem(seed, dtype, channels=5, n=17, k=4):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(channels, n, 12, generator=generator, dtype=torch.float64).to(dtype)
    t = torch.randn(30, 12, generator=generator, dtype=torch.float64).to(dtype)
    a = torch.randint(0, k, (channels, n), generator=generator)
    a[0] %= 2  # a channel with fewer clusters than the others
    return z, t, a


@pytest.mark.parametrize("kind", ["gap", "contrast"])
@pytest.mark.parametrize("level", ["prompt", "concept"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_d_equals_a_loop(kind, level, dtype, atol):
    z, t, a = problem(0, dtype)
    ids = torch.arange(30) // 3
    texts = texts_at_level(t, ids, level, "texts")
    got = distinctness(unit_rows(z).rows, a, 4, texts, kind)
    plain = t.double().numpy()
    rows = reference.concept_texts(plain, ids.numpy()) if level == "concept" else plain
    for c in range(len(z)):
        want = reference.MEASURES[kind](z[c].double().numpy(), a[c].numpy(), rows)
        assert float(got[c]) == pytest.approx(want, abs=atol)


@pytest.mark.parametrize("kind", ["gap", "contrast"])
def test_many_partitions_equal_a_loop(kind):
    z, t, a = problem(1, torch.float64)
    units = unit_rows(z).rows
    texts = texts_at_level(t, torch.arange(30), "prompt", "texts")
    generator = torch.Generator().manual_seed(2)
    many = torch.stack([a[:, torch.randperm(17, generator=generator)] for _ in range(6)], 1)
    many[:, 0, :3] = -1
    got = partition_distinctness(cosines(units, texts.rows), gram(units), many, 4, kind)
    for c in range(5):
        for r in range(6):
            want = reference.MEASURES[kind](z[c].numpy(), many[c, r].numpy(), t.numpy())
            assert float(got[c, r]) == pytest.approx(want, abs=1e-6)


def test_prototypes_of_empty_and_cancelling_clusters_are_absent():
    z = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]]])
    rows, present = prototypes(unit_rows(z).rows, torch.tensor([[0, 0, 1]]), 3)
    assert present.tolist() == [[False, True, False]]
    assert rows[0].tolist() == [[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]


def test_contrast_of_one_cluster_is_zero_and_ties_take_the_first_text():
    similarities = torch.tensor([[[0.5, 0.5, 0.1], [0.25, 0.125, 0.75]]])
    both = torch.tensor([[True, True]])
    # cluster 0 names itself with text 0, where cluster 1 has 0.25; cluster 1 with text 2
    assert float(measure(similarities, both, "contrast")) == pytest.approx((0.25 + 0.65) / 2)
    one = torch.tensor([[True, False]])
    assert float(measure(similarities, one, "contrast")) == 0.0
    assert float(measure(similarities, one, "gap")) == 0.0


def test_clusters_with_one_name_have_no_contrast_but_may_have_a_gap():
    z = torch.tensor([[[1.0, 0.1], [1.0, 0.1], [1.0, -0.1], [1.0, -0.1]]])
    texts = texts_at_level(torch.eye(2), torch.arange(2), "prompt", "texts")
    a = torch.tensor([[0, 0, 1, 1]])
    units = unit_rows(z).rows
    assert float(distinctness(units, a, 2, texts, "gap")) > 0.8
    assert abs(float(distinctness(units, a, 2, texts, "contrast"))) < 1e-6


def test_concepts_keep_the_callers_ids_in_ascending_order():
    texts = texts_at_level(torch.eye(4), torch.tensor([7, 3, 7, 3]), "concept", "texts")
    assert texts.concept_ids.tolist() == [3, 7]
    assert np.allclose(texts.rows[0].numpy(), [0, 0.5**0.5, 0, 0.5**0.5], atol=1e-7)


@pytest.mark.parametrize("bad", [float("nan"), 0.0])
def test_texts_without_a_direction_are_refused(bad):
    t = torch.ones(3, 4)
    t[1] = bad
    with pytest.raises(InputError, match="1 of 3 rows NaN, infinite or zero"):
        texts_at_level(t, torch.arange(3), "prompt", "text_embeddings")
    with pytest.raises(InputError, match="template means"):
        texts_at_level(
            torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]),
            torch.tensor([0, 0, 1]),
            "concept",
            "t",
        )
