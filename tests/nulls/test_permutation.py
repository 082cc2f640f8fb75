import importlib

import pytest
import torch

from psi_engine.nulls.permutation import permutation
from tests.nulls.call import make_batch, make_call, normal


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_the_callers_backend_and_memory_are_used(backend, monkeypatch):
    module = importlib.import_module("psi_engine.nulls.permutation")
    asked = []
    draw = module.permutation_nmi

    def spy(*arguments, **options):
        asked.append((options["backend"], options["memory"]))
        return draw(*arguments, **options)

    monkeypatch.setattr(module, "permutation_nmi", spy)
    call = make_call(memory=1 << 22)
    call.backend = backend
    labels = torch.randint(0, 4, (3, 14), generator=torch.Generator().manual_seed(0))
    got = permutation(make_batch(normal(1, 3, 14, 8), call, labels), call)
    assert asked == [(backend, 1 << 22)]
    assert ((got.p > 0) & (got.p <= 1)).all()
