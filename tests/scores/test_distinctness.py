import numpy as np
import pytest
import torch

from psi_engine.errors import InputError
from psi_engine.ops.exact import cosines, gram, quantise, unit_rows
from psi_engine.scores.distinctness import (
    distinctness,
    named_rows,
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


@pytest.mark.parametrize("kind", ["gap", "contrast", "margin"])
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


@pytest.mark.parametrize("kind", ["gap", "contrast", "margin"])
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


def test_clusters_with_one_name_have_no_contrast_but_may_have_a_gap():
    z = torch.tensor([[[1.0, 0.1], [1.0, 0.1], [1.0, -0.1], [1.0, -0.1]]])
    texts = texts_at_level(torch.eye(2), torch.arange(2), "prompt", "texts")
    a = torch.tensor([[0, 0, 1, 1]])
    units = unit_rows(z).rows
    assert float(distinctness(units, a, 2, texts, "gap")) > 0.8
    assert abs(float(distinctness(units, a, 2, texts, "contrast"))) < 1e-6
    assert abs(float(distinctness(units, a, 2, texts, "margin"))) < 1e-6


def test_the_margin_takes_off_what_the_pool_has_in_common():
    """A text that every patch resembles names nobody, once the pool's mean is gone."""
    common = torch.tensor([1.0, 0.0, 0.0])
    z = torch.stack([common + torch.tensor([0.0, 0.3, 0.0]), common + torch.tensor([0, 0, 0.3])])
    units, a = unit_rows(z[None].repeat(1, 3, 1)).rows, torch.tensor([[0, 1, 0, 1, 0, 1]])
    texts = texts_at_level(torch.eye(3), torch.arange(3), "prompt", "texts")
    assert float(distinctness(units, a, 2, texts, "margin")) == 0.0  # both are named "common"
    centre = quantise(units[0].double().mean(0))
    got = float(distinctness(units, a, 2, texts, "margin", centre))
    want = reference.margin(units[0].double().numpy(), a[0].numpy(), np.eye(3), centre.numpy())
    assert got == pytest.approx(want, abs=1e-6)
    assert got > 0.25
    many = a[:, None]
    named = cosines(units, texts.rows)
    again = partition_distinctness(
        named, gram(units), many, 2, "margin", cosines(centre[None], texts.rows)[0]
    )
    assert float(again) == pytest.approx(got, abs=1e-6)


def test_rows_far_from_the_centre_do_not_overflow_the_grid():
    units = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]])
    named = named_rows(units, torch.tensor([[0, 0, 1, 1]]), 2, "margin", torch.tensor([-1.0, 0.0]))
    assert named.rows[0].tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert named.scale == 2.0


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
