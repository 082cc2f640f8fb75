"""What must not matter: the frame of the space, the order of patches and channels, names, memory.

Given assignments nothing changes beyond rounding (``TOLERANCE``); chunks and the order of the
channels change no bit; the clustering itself may settle in another optimum, as good within 1 %.
"""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psi_engine.config import ScoreConfig
from psi_engine.nulls.base import Batch
from psi_engine.nulls.exact_moments import nmi_moments
from psi_engine.nulls.registry import NULLS
from psi_engine.ops.contingency import normalized_mutual_information
from psi_engine.ops.exact import clarity_of, cosines, gram, quantise, unit_rows
from psi_engine.ops.silhouette import silhouette
from psi_engine.scores.distinctness import distinctness, partition_distinctness, texts_at_level
from psi_engine.scores.score import score
from tests.nulls.call import make_batch, make_call, normal
from tests.reference.clustering import objective

TOLERANCE = 1e-6
CHANNELS, N, DIM, K = 3, 13, 7, 4
BANK, POOL = normal(1, 45, DIM), normal(2, 120, DIM)
KINDS = ("gap", "contrast", "margin")
seeds = st.integers(0, 2**31)


class World:
    """Channels with assignments, labels and texts; about a tenth of the labels are unknown."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.z = self.normal(CHANNELS, N, DIM)
        self.texts, self.bank, self.pool = self.normal(12, DIM), BANK, POOL
        self.assignments = torch.randint(0, K, (CHANNELS, N), generator=self.generator)
        self.assignments[:, :K] = torch.arange(K)  # every cluster has a member
        self.labels = torch.randint(-1, 9, (CHANNELS, N), generator=self.generator)
        self.order = torch.randperm(N, generator=self.generator)

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def turned(self):
        turn = torch.linalg.qr(self.normal(DIM, DIM)).Q
        self.z, self.texts = self.z @ turn, self.texts @ turn
        self.bank, self.pool = self.bank @ turn, self.pool @ turn

    def reordered(self):
        self.z, self.assignments, self.labels = (
            x[:, self.order] for x in (self.z, self.assignments, self.labels)
        )

    def renamed(self):
        names = torch.randperm(50, generator=self.generator)
        self.labels = torch.where(self.labels >= 0, names[self.labels], -1)

    def scores(self):
        """Every score that looks at given assignments, (channels,) each."""
        units = unit_rows(self.z).rows
        grams = gram(units)
        found = {
            "s": silhouette(grams, self.assignments).mean(1),
            "q": normalized_mutual_information(self.assignments, self.labels),
            "clarity": clarity_of(grams),
        }
        found["mean"], found["std"] = nmi_moments(self.assignments, self.labels)
        texts = texts_at_level(self.texts, torch.arange(12) // 2, "concept", "texts")
        middle = quantise(unit_rows(self.pool).rows.double().mean(0))
        for kind in KINDS:
            centre = middle if kind == "margin" else None
            found[kind] = distinctness(units, self.assignments, K, texts, kind, centre)
            parts = self.assignments[:, None]
            named = cosines(units, texts.rows)
            off = None if centre is None else cosines(centre[None], texts.rows)[0]
            by_gram = partition_distinctness(named, grams, parts, K, kind, off)
            found[kind + " by Gram"] = by_gram[:, 0]
        return found

    def null(self, name, kind):
        """A text null of the given assignments: its draws depend on keys, not on the frame."""
        call = make_call(self.pool, self.texts, self.bank, replicates=9, d_measure=kind)
        batch = make_batch(self.z, call, self.labels)
        d = distinctness(batch.units, self.assignments, K, call.texts, kind, call.centre)
        count = torch.full((CHANNELS,), K)
        batch = replace(batch, assignments=self.assignments, n_clusters=count, d=d)
        return NULLS["d"][name](batch, call)


CHANGES = [World.turned, World.reordered, World.renamed]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=seeds, change=st.sampled_from(CHANGES))
def test_given_assignments_neither_frame_nor_order_nor_names_matter(seed, change):
    world = World(seed)
    before = world.scores()
    change(world)
    for name, value in world.scores().items():
        assert torch.allclose(value, before[name], rtol=0, atol=TOLERANCE), name


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=seeds)
def test_names_of_clusters_do_not_matter(seed):
    world = World(seed)
    before = world.scores()
    world.assignments = torch.randperm(K, generator=world.generator)[world.assignments]
    for name, value in world.scores().items():
        assert torch.allclose(value, before[name], rtol=0, atol=TOLERANCE), name


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("unrelated-text", World.turned),
        ("unrelated-text", World.reordered),
        ("text-rotation", World.reordered),  # draws turns in the frame it is given
        ("text-shuffle", World.reordered),  # coordinates are shuffled: it knows the frame
        ("partition", World.turned),
    ],
)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=seeds, kind=st.sampled_from(KINDS))
def test_given_assignments_text_nulls_do_not_change(name, change, seed, kind):
    world = World(seed)
    before = world.null(name, kind)
    change(world)
    for old, new in zip(before, world.null(name, kind), strict=True):
        assert torch.allclose(old, new, rtol=0, atol=TOLERANCE)


def taken(batch, rows):
    """Some channels of a batch, in some order."""
    values = {f.name: getattr(batch, f.name) for f in fields(Batch)}
    return Batch(**{name: x if x is None else x[rows] for name, x in values.items()})


ALL_NULLS = [(component, name) for component in "sqd" for name in NULLS[component]]


@pytest.mark.parametrize(("component", "name"), ALL_NULLS, ids=lambda x: x)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    seed=seeds,
    memory=st.integers(10, 24).map(lambda bits: 1 << bits),
    backend=st.sampled_from(["torch", "numba"]),
)
def test_no_null_sees_memory_channel_order_or_backend(component, name, seed, memory, backend):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(6, N, DIM, generator=generator, dtype=torch.float64) + 1.5
    labels = torch.randint(-1, 5, (6, N), generator=generator)
    kind = KINDS[seed % 3]
    # turned texts are drawn 128 at a time
    replicates = 150 if name == "text-rotation" else 7

    def fresh(memory=1 << 30, backend="numba"):
        texts, settings = BANK[:10], {"replicates": replicates, "d_measure": kind, "k_max": 4}
        call = make_call(POOL, texts, BANK, memory=memory, **settings)
        call.backend = backend
        return call

    null, batch = NULLS[component][name], make_batch(z, fresh(), labels)
    whole = null(batch, fresh())
    rows = torch.randperm(6, generator=generator)[: 1 + seed % 6]
    some = null(taken(batch, rows), fresh(memory, backend))
    for together, apart in zip(whole, some, strict=True):
        assert torch.equal(together[rows], apart)
        assert torch.isfinite(apart).all()


@pytest.mark.parametrize("kind", KINDS)
def test_channels_of_other_sizes_in_one_call_change_nothing(kind):
    """Fewer patches, fewer clusters: each size has turned texts of its own."""
    sizes = torch.tensor([4, 13, 5, 9, 4, 13])
    z, mask = normal(8, 6, 13, DIM) + 1.5, torch.arange(13) < sizes[:, None]
    config = ScoreConfig(
        d_measure=kind, d_null="text-rotation", s_null="rotation", replicates=150, k_max=5
    )

    def scored(rows):
        return score(
            z[rows], None, BANK[:10], pool=POOL, mask=mask[rows], channel_ids=rows, config=config
        )

    together = scored(torch.arange(6))
    for c in range(6):
        alone = scored(torch.tensor([c]))
        for name in ("d", "d_z", "d_p"):
            assert getattr(together, name)[c] == getattr(alone, name)[0], (c, name)


@pytest.mark.parametrize("k", [2, 3, 4, 5])
@pytest.mark.parametrize("change", ["order", "frame"])
def test_the_scorer_finds_as_good_clusters_in_any_order_and_frame(k, change):
    """One, two, three or five kinds of patches per channel: one kind is the hardest to settle."""
    channels, n, dim = 200, 50, 24
    kinds = torch.tensor([1, 2, 3, 5]).repeat(channels // 4)
    which = torch.rand(channels, n, generator=torch.Generator().manual_seed(3)) * kinds[:, None]
    centres = normal(4, channels, 5, dim)
    z = centres[torch.arange(channels)[:, None], which.long()] + normal(5, channels, n, dim)
    config = ScoreConfig(k_min=k, k_max=k, replicates=2, s_null="rotation")
    if change == "order":
        order = torch.randperm(n, generator=torch.Generator().manual_seed(6))
        other = z[:, order]
    else:
        order, other = torch.arange(n), z @ torch.linalg.qr(normal(7, dim, dim)).Q
    first, second = (score(x, pool=z[0], config=config).assignments for x in (z, other))
    units = (z / z.norm(dim=-1, keepdim=True)).numpy()
    worse = 0
    for c in range(channels):
        one = objective(units[c], first[c].numpy())
        two = objective(units[c][order.numpy()], second[c].numpy())
        worse += abs(one - two) > 0.01 * max(one, two)
    assert worse <= 0.05 * channels
