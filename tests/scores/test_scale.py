"""Memory and pace: what travels together, what is read, and how much is ever held."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from psi_engine.config import ScoreConfig
from psi_engine.scores import inputs
from psi_engine.scores.inputs import survey
from psi_engine.scores.pool import Pool
from psi_engine.scores.psi import ScoreTable
from psi_engine.scores.score import channels_at_once, score

CPU = torch.device("cpu")
NONE = torch.empty(0, dtype=torch.int64)


def shaped(channels, patches, dim):
    """An array of this shape that holds a single number."""
    return torch.zeros(1).expand(channels, patches, dim)


def test_a_chunk_fits_its_memory_and_never_vanishes():
    config = ScoreConfig()
    for patches, dim in ((8, 16), (50, 512), (1000, 64), (1000, 512)):
        z = shaped(10**6, patches, dim)
        for memory in (1 << 20, 1 << 26, 1 << 32):
            at_once = channels_at_once(z, config, memory)
            held = patches * (dim * 16 + patches * 4) + 8 * config.replicates
            assert at_once == 1 or at_once * held <= memory
            assert 1 <= at_once <= 4096


def test_slow_nulls_report_more_often_than_quick_ones():
    z = shaped(3072, 50, 512)
    quick = channels_at_once(z, ScoreConfig(s_null="pool"), 1 << 32)
    slow = channels_at_once(z, ScoreConfig(s_null="rotation-samples", restarts=5), 1 << 32)
    slower = channels_at_once(z, ScoreConfig(s_null="rotation-samples", restarts=10), 1 << 32)
    assert quick > 500
    assert 1 < slower < slow < 50


def test_a_pool_skips_the_rows_that_are_missing():
    rows = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0))
    missing = torch.tensor([0, 1, 7, 8, 19])
    keep = [i for i in range(20) if i not in missing.tolist()]
    for kept in (0, 1 << 20):
        pool = Pool(rows, missing, CPU)
        pool.keep_within(kept)
        assert len(pool) == 15
        want = torch.nn.functional.normalize(rows.flatten(0, 1)[keep], dim=1)
        assert torch.allclose(pool.take(torch.arange(15)), want, atol=1e-7)
        some = torch.tensor([[14, 0], [3, 3]])
        assert torch.equal(pool.take(some), pool.take(torch.arange(15))[some])


def test_a_survey_hashes_no_more_rows_than_it_must(monkeypatch):
    z = torch.randn(30_000, 4, 6, generator=torch.Generator().manual_seed(0))
    z[3, 1] = torch.nan
    z[9, 2] = 0.0
    allowed = torch.ones(30_000, 4, dtype=torch.bool)
    allowed[5, 3] = False
    hashed = []
    row_keys = inputs.row_keys

    def count(rows):
        hashed.append(len(rows))
        return row_keys(rows)

    monkeypatch.setattr(inputs, "row_keys", count)
    pool, broken, distinct = survey(z, allowed, 40, CPU)
    assert (len(pool), broken) == (120_000 - 3, 2)
    assert distinct >= 40
    assert sum(hashed) <= 4 * 512
    assert survey(z[:1].expand(600, 4, 6), allowed[:600], 40, CPU)[2] == 4


def test_layout_and_chunks_of_the_pool_change_nothing(monkeypatch):
    z = torch.randn(40, 8, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(40, 8, generator=torch.Generator().manual_seed(1)) < 0.9
    config = ScoreConfig(replicates=20)
    want = score(z, mask=mask, config=config)
    transposed = z.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(score(transposed, mask=mask, config=config).psi, want.psi)
    monkeypatch.setattr("psi_engine.scores.arrays._READ", 500)
    monkeypatch.setattr("psi_engine.nulls.neighborhood._LOTS", 7)
    assert torch.equal(score(z, mask=mask, config=config).psi, want.psi)


def test_neighbours_of_a_large_pool_are_the_same_however_lots_are_drawn(monkeypatch):
    from psi_engine.nulls import neighborhood

    monkeypatch.setattr(neighborhood, "MOST_ROWS", 40)
    z = torch.randn(40, 8, 6, generator=torch.Generator().manual_seed(0))
    config = ScoreConfig(replicates=60, s_null="neighborhood")
    want = score(z, config=config)
    monkeypatch.setattr(neighborhood, "_LOTS", 7)
    assert torch.equal(score(z, config=config).psi, want.psi)


CHILD = """
import json, sys, threading, time
import numpy as np, torch
from psi_engine.config import ScoreConfig
from psi_engine.scores.score import score

torch.set_num_threads(1)
path, memory, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
replicates = options.pop("replicates")
z = np.load(path, mmap_mode="r")

def held():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

def watch():
    while not done:
        peak[0] = max(peak[0], held())
        time.sleep(0.002)

def run(rows, replicates):
    generator = torch.Generator().manual_seed(0)
    k, d = rows.shape[1:]
    return score(
        rows,
        labels=torch.randint(0, 9, rows.shape[:2], generator=generator, dtype=torch.int16),
        text_embeddings=torch.randn(100, d, generator=generator),
        pool=torch.randn(max(1000, k), d, generator=generator),
        config=ScoreConfig(replicates=replicates, memory=memory, **options),
    )

run(z[:2], 3)  # compiled code and tables of the libraries are no temporaries
done, peak, before = [], [0], held()
threading.Thread(target=watch, daemon=True).start()
scores = run(z, replicates)
done.append(1)
outputs = sum(v.nbytes for v in vars(scores).values() if isinstance(v, torch.Tensor))
print(json.dumps({"held": peak[0] - before - outputs, "outputs": outputs}))
"""

CONSTANT = 64 << 20
"""What the scorer may hold beyond its budget: allocator slack, strings of the status columns."""


def measure(tmp_path, shape, memory, **options):
    path = tmp_path / "z.npy"
    if not path.exists():
        z = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        generator = np.random.default_rng(0)
        for at in range(0, shape[0], 1000):
            z[at : at + 1000] = generator.standard_normal(z[at : at + 1000].shape)
        z.flush()
    got = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(memory), json.dumps(options)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert got.returncode == 0, got.stderr
    return json.loads(got.stdout)["held"]


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory", "options"),
    [
        (16 << 20, {"s_null": "pool", "d_null": "pool", "q_null": "exact"}),
        (64 << 20, {"s_null": "pool", "d_null": "pool", "q_null": "exact"}),
        (256 << 20, {"s_null": "pool", "d_null": "pool", "q_null": "exact"}),
        (16 << 20, {"s_null": "neighborhood", "d_null": "neighborhood"}),
        (16 << 20, {"s_null": "rotation", "d_null": "text-shuffle", "subsamples": 20}),
        (16 << 20, {"s_null": "rotation-samples", "d_null": "partition"}),
    ],
    ids=lambda x: str(x >> 20) if isinstance(x, int) else "-".join(map(str, x.values())),
)
def test_memory_beyond_inputs_and_outputs_is_the_budget_and_a_constant(tmp_path, memory, options):
    held = measure(tmp_path, (400, 40, 128), memory, replicates=100, **options)
    assert held <= memory + CONSTANT


@linux
@pytest.mark.slow
@pytest.mark.parametrize("s_null", ["pool", "rotation-samples"])
def test_a_thousand_patches_fit_the_budget(tmp_path, s_null):
    held = measure(tmp_path, (2, 1000, 32), 128 << 20, replicates=4, s_null=s_null)
    assert held <= (128 << 20) + CONSTANT


@linux
@pytest.mark.slow
def test_a_thousand_replicates_of_neighbourhoods_fit_the_budget(tmp_path):
    nulls = {"s_null": "neighborhood", "d_null": "neighborhood"}
    held = measure(tmp_path, (400, 40, 128), 16 << 20, replicates=1000, **nulls)
    assert held <= (16 << 20) + CONSTANT


def test_the_mean_of_a_large_pool_holds_no_index_of_it(monkeypatch):
    """Also: it is the exact mean, whatever is read together."""
    rows = torch.randn(2000, 50, 4, generator=torch.Generator().manual_seed(0))
    pool = Pool(rows, torch.tensor([3, 70_001]), CPU)
    pool.keep_within(0)
    most, arange = [0], torch.arange

    def watched(*args, **options):
        got = arange(*args, **options)
        most[0] = max(most[0], len(got))
        return got

    monkeypatch.setattr(torch, "arange", watched)
    got = pool.mean()
    assert most[0] <= 1 << 16
    monkeypatch.undo()
    keep = torch.ones(100_000, dtype=torch.bool)
    keep[[3, 70_001]] = False
    units = torch.nn.functional.normalize(rows.flatten(0, 1)[keep].double(), dim=1)
    assert torch.allclose(got.double(), units.mean(0), atol=1e-7)
    monkeypatch.setattr("psi_engine.scores.pool.near", lambda _rows, _numbers: 777)
    assert torch.equal(pool.mean(), got)


@linux
@pytest.mark.slow
def test_many_channels_take_no_more_memory_than_few(tmp_path):
    held = measure(tmp_path, (200_000, 4, 8), 64 << 20, replicates=4)
    assert held <= (64 << 20) + CONSTANT


def test_results_are_not_copied_where_no_other_rank_wants_them(monkeypatch):
    """They are as large as all that is held beside them once channels are many."""
    monkeypatch.setattr(ScoreTable, "rows", None)
    z = torch.randn(3, 12, 8, generator=torch.Generator().manual_seed(0))
    found = score(z, config=ScoreConfig(replicates=20, restarts=1), device="cpu")
    assert found.status == ("ok",) * 3
