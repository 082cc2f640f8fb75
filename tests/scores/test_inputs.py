"""Every bad input, with its message, before any work.

Arrays of other libraries stand in test_arrays.py; data that cannot be scored (NaN, zero rows,
too few patches) in test_score.py and test_defects.py: they give a status, no error.
"""

import numpy as np
import pytest
import torch

from psi_engine.config import ScoreConfig
from psi_engine.errors import DeviceError, InputError
from psi_engine.scores.score import score

Z = torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(0))
T = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
BANK = torch.randn(20, 6, generator=torch.Generator().manual_seed(2))
UNRELATED = ScoreConfig(replicates=3, d_null="unrelated-text")
QUICK = {"config": ScoreConfig(replicates=3)}


def refuse(*_, **__):
    raise AssertionError("work began before the input was checked")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"embeddings": Z[0]},
            r"wrong rank; got \(8, 6\); expected \(channels, patches, dim\); add",
        ),
        ({"embeddings": Z[0, 0]}, "wrong rank"),
        ({"embeddings": [[1.0]]}, "embeddings is not an array; got list"),
        ({"embeddings": Z.long()}, "embeddings must be floating point; got torch.int64"),
        ({"embeddings": Z[:0]}, "embeddings are empty"),
        ({"embeddings": Z[:, :, :1]}, "embeddings are empty"),
        ({"embeddings": Z[:, :3]}, "too few patches; got 3 .* at least 4"),
        (
            {"labels": torch.zeros(3, 7, dtype=torch.long)},
            r"labels has the wrong shape; got \(3, 7\)",
        ),
        ({"labels": torch.zeros(3, 8)}, "labels must be integers; got torch.float32"),
        ({"labels": torch.full((3, 8), -2)}, "labels below -1; got -2"),
        ({"mask": torch.ones(3, 7, dtype=torch.bool)}, "mask has the wrong shape"),
        ({"mask": torch.ones(3, 8)}, "mask has the wrong dtype"),
        (
            {"channel_ids": torch.arange(4)},
            r"channel_ids has the wrong shape; got \(4,\); expected \(3,\)",
        ),
        ({"channel_ids": torch.rand(3)}, "channel_ids must be integers"),
        (
            {"channel_ids": torch.tensor([4, 7, 7])},
            "channel_ids are not distinct; got 7 2 times; expected a number of its own",
        ),
        ({"labels": torch.zeros(24, dtype=torch.long)}, r"wrong shape; got \(24,\)"),
        (
            {"labels": torch.zeros(3, 8, dtype=torch.bool)},
            "labels must be integers; got torch.bool",
        ),
        ({"labels": "cats"}, "labels is not an array; got str"),
        ({"mask": np.ones((3, 8), np.uint8)}, "got torch.uint8; expected torch.bool; convert"),
        ({"embeddings": Z.to(torch.complex64)}, "floating point; got torch.complex64; .*convert"),
        ({"embeddings": Z[None]}, r"wrong rank; got \(1, 3, 8, 6\)"),
        ({"embeddings": None}, "embeddings is not an array; got NoneType"),
        ({"embeddings": Z[:, :0]}, "too few patches; got 0"),
        ({"text_embeddings": T.long()}, "text_embeddings must be floating point"),
        ({"text_embeddings": T, "concept_ids": T[:, 0]}, "concept_ids must be integers"),
        ({"pool": Z}, r"pool does not fit the embeddings; got \(3, 8, 6\).*embed the pool"),
        ({"pool": torch.ones(50, 6).long()}, "pool must be floating point"),
        ({"unrelated_concept_ids": torch.arange(4)}, "given without unrelated_text_embeddings"),
        ({"text_embeddings": T[:1]}, "too few prompts; got 1; expected at least 2"),
        (
            {"text_embeddings": T[:, :5]},
            r"do not fit the embeddings; got \(4, 5\); expected \(prompts, 6\)",
        ),
        ({"text_embeddings": T[0]}, "do not fit the embeddings"),
        ({"text_embeddings": T * float("nan")}, "rows without a direction"),
        (
            {"text_embeddings": T, "concept_ids": torch.zeros(4, dtype=torch.long)},
            "a single concept",
        ),
        ({"text_embeddings": T, "concept_ids": torch.arange(3)}, "concept_ids has the wrong shape"),
        ({"concept_ids": torch.arange(4)}, "concept_ids given without text_embeddings"),
        (
            {"unrelated_text_embeddings": T, "config": UNRELATED},
            "unrelated_text_embeddings given without text_embeddings",
        ),
        (
            {"text_embeddings": T, "unrelated_text_embeddings": T[:3], "config": UNRELATED},
            "bank is smaller than the vocabulary; got 3 concepts for a vocabulary of 4",
        ),
        (
            {
                "text_embeddings": T,
                "concept_ids": torch.tensor([0, 0, 1, 1]),
                "unrelated_text_embeddings": BANK,
                "config": UNRELATED,
            },
            "not grouped alike; got concept_ids without unrelated_concept_ids; expected both",
        ),
        (
            {
                "text_embeddings": T,
                "unrelated_text_embeddings": BANK,
                "unrelated_concept_ids": torch.arange(20) // 2,
                "config": UNRELATED,
            },
            "got unrelated_concept_ids without concept_ids.*; pass concept_ids too",
        ),
        (
            {"pool": T},
            "pool is smaller than a channel; got 4 usable rows, 4 .*; expected at least 8",
        ),
        (
            {"pool": Z[0, :7].repeat(20, 1)},
            "got 140 usable rows, 7 of them distinct; expected at least 8 distinct rows, better 80",
        ),
        ({"pool": torch.zeros(50, 6)}, "got 0 usable rows"),
        ({"pool": torch.rand(50, 5)}, r"pool does not fit the embeddings; got \(50, 5\)"),
        ({"config": ScoreConfig(k_min=8, k_max=9)}, "k_min does not fit the patches; got 8"),
        ({"backend": "fortran"}, "unknown backend"),
    ],
)
def test_bad_input_is_refused_before_any_work(arguments, message, monkeypatch):
    monkeypatch.setattr("psi_engine.scores.score.observe", refuse)
    with pytest.raises(InputError, match=message):
        score(**({"embeddings": Z} | QUICK | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"replicates": 1}, "replicates is too small; got 1; expected at least 2"),
        ({"k_min": 1}, "k_min is too small"),
        ({"k_max": 1}, "k_max is too small"),
        ({"k_min": 3, "k_max": 2}, "k_max is below k_min"),
        ({"s_null": "rotaton"}, "unknown s_null"),
        ({"replicates": "many"}, "replicates is not a number"),
        ({"replicates": True}, "replicates is not a number"),
        ({"restarts": 0}, "restarts is too small"),
        ({"memory": 1000}, "memory is too small; got 1000; expected at least 1048576"),
        ({"alpha": 1.5}, "alpha is out of range"),
        ({"solver": "elkan"}, "unknown solver"),
        ({"q_null": "rotation"}, "unknown q_null"),
        ({"d_null": "rotation"}, "unknown d_null"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        ScoreConfig(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the CUDA device asked for")
def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(DeviceError, match="no CUDA device is usable"):
        score(Z, device="cuda", **QUICK)


def test_equal_pool_rows_count_once():
    """Whole-image crops repeat: a pool of many rows may hold few patches."""
    few = score(Z, pool=Z[0].repeat(100, 1), **QUICK)
    assert any("the pool has 8 distinct rows, fewer than ten times the 8" in x for x in few.notes)
    many = score(Z, pool=torch.randn(80, 6), **QUICK)
    assert not any("distinct" in note for note in many.notes)


def test_the_pool_need_hold_no_more_than_the_fullest_channel():
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[:, 6:] = False
    assert score(Z, pool=Z[0, :6].repeat(5, 1), mask=mask, **QUICK).status == ("short",) * 3


def test_a_call_that_is_its_own_pool_is_never_refused():
    same = Z[:1, :3].repeat(2, 4, 1)
    got = score(same, **QUICK)
    assert got.status == ("failed", "failed")
    assert any("the pool has 3 distinct rows" in note for note in got.notes)


def test_a_bank_that_is_not_used_is_not_judged():
    """One set of arguments serves every null: only unrelated-text draws from the bank."""
    config = ScoreConfig(replicates=3, d_null="text-shuffle")
    ids = torch.tensor([0, 0, 1, 1])
    for bank in (BANK[:1].repeat(2, 1), BANK):
        got = score(
            Z, text_embeddings=T, concept_ids=ids, unrelated_text_embeddings=bank, config=config
        )
        assert not any("bank" in note for note in got.notes)
    assert score(Z, unrelated_text_embeddings=BANK, config=config).d is None


def test_a_pool_that_is_the_channel_itself_is_told():
    alone = score(Z[:1], config=ScoreConfig(replicates=4))
    assert any("more than a third of the pool" in note for note in alone.notes)
    many = score(Z.repeat(4, 1, 1), config=ScoreConfig(replicates=4))
    assert not any("more than a third of the pool" in note for note in many.notes)
