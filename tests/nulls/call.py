"""A call of the scorer without a scorer: what the nulls need, made by hand."""

import torch

from psi_engine.config import ScoreConfig
from psi_engine.nulls.base import Batch, Call
from psi_engine.ops.exact import unit_rows
from psi_engine.scores.distinctness import texts_at_level
from psi_engine.scores.observe import observe
from psi_engine.scores.pool import Pool

CPU = torch.device("cpu")


def make_call(pool=None, texts=None, bank=None, memory=1 << 30, **settings):
    rows = torch.eye(8 if texts is None else texts.shape[1]) if pool is None else pool
    config = ScoreConfig(**({"replicates": 60, "restarts": 5} | settings))

    def text(x):
        return x if x is None else texts_at_level(x, torch.arange(len(x)), config.d_level, "texts")

    return Call(
        config=config,
        device=CPU,
        backend="numba",
        memory=memory,
        pool=Pool(rows[:, None], torch.empty(0, dtype=torch.int64), CPU),
        texts=text(texts),
        unrelated=text(bank),
        notes=[],
    )


def make_batch(embeddings, call, labels=None) -> Batch:
    ids = torch.arange(len(embeddings)) * 7919
    return observe(ids, unit_rows(embeddings).rows, labels, call)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
