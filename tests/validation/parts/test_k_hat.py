"""Histograms of k̂: counts add up, and the run's own range gives the run's own k̂."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from psi_engine.validation.null_channels import null_channels
from psi_engine.validation.part import Context, Options
from psi_engine.validation.parts.k_hat import PART, k_ranges


def test_the_own_range_counts_the_runs_k(context: Context, tmp_path: Path) -> None:
    result = PART.compute(context)
    table = context.stored.run.channels.to_pylist()
    counts = result.tables["counts"].to_pylist()
    for layer in ("conv1", "conv2"):
        want = Counter(row["n_clusters"] for row in table if row["layer"] == layer)
        unscored = want.pop(0, 0)
        found = {
            row["k"]: row["channels"]
            for row in counts
            if (row["layer"], row["kind"], row["k_max"]) == (layer, "real", 5)
        }
        assert {k: n for k, n in found.items() if n} == want
        own = [
            row
            for row in result.tables["ranges"].to_pylist()
            if (row["layer"], row["kind"], row["k_max"]) == (layer, "real", 5)
        ]
        assert [row["unscored"] for row in own] == [unscored]
        assert own[0]["at_k_max"] == want[5] / sum(want.values())
    assert {
        row["channels"] for row in result.tables["ranges"].to_pylist() if row["kind"] == "null"
    } == {20}
    files = PART.draw(result.tables, tmp_path / "k-hat")
    assert [file.suffix for file in files] == [".png", ".svg", ".pdf"]
    again = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in PART.draw(result.tables, tmp_path / "k-hat")] == again


def test_ranges_fit_the_patches(context: Context) -> None:
    assert k_ranges(context.stored) == [(2, 3), (2, 5), (2, 8)]


def test_sets_are_of_other_images_than_the_pool(context: Context) -> None:
    layer = context.stored.layers["conv2"]
    sets = null_channels(layer, 30, seed=0)
    images = layer.pool_images[sets.rows]
    assert all(len(set(row)) == 12 for row in images.tolist())
    assert torch.equal(sets.embeddings, layer.pool[sets.rows])
    assert torch.equal(sets.labels, context.stored.labels[images])
    pooled = {row.tobytes() for row in sets.pool.numpy()}
    assert not pooled & {row.tobytes() for row in sets.embeddings.flatten(0, 1).numpy()}
    # a set is what its number makes it, however many there are, and every patch can be drawn
    assert torch.equal(null_channels(layer, 5, seed=0).rows, sets.rows[:5])
    assert not torch.equal(null_channels(layer, 5, seed=1).rows, sets.rows[:5])
    many = null_channels(layer, 400, seed=0)
    halves = torch.unique(many.rows)
    assert len(halves) + len(sets.pool) == len(layer.pool_images)
    assert any("not independent" in note for note in many.notes)


def test_too_few_images_are_told_before_work(context: Context) -> None:
    assert PART.needs(context) is None
    layer = context.stored.layers["conv2"]
    few = replace(context.stored, layers={"conv2": _with_images(layer, 20)})
    told = PART.needs(replace(context, stored=few, options=Options()))
    assert told is not None
    assert "fewer than the 12 patches of a channel" in told


def _with_images(layer, count):  # type: ignore[no-untyped-def]
    pool = layer.sites.pool
    pool = pool._replace(image_ids=pool.image_ids % count)
    return replace(layer, sites=replace(layer.sites, pool=pool))
