"""Contact sheets show the channels they should, and the patches that are theirs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image

from psi_engine.report.plots.examples import SHOWN, sheet_name
from psi_engine.validation.part import Context
from psi_engine.validation.parts.examples import PART, choose
from tests import toy


def row(channel: int, log_psi: float | None, verdict: str) -> dict[str, Any]:
    blank = dict.fromkeys(
        ("psi", "psi_low", "psi_high", "s_hat", "q_hat", "d_hat", "psi_p_adj", "clarity")
    )
    about = {"layer": "a", "channel": channel, "verdict": verdict, "log_psi": log_psi}
    return blank | about | {"n_clusters": 2, "n_patches": 12}


def test_channels_are_chosen_by_psi_each_once_and_ties_by_channel() -> None:
    rows = [
        row(0, -1.0, "monosemantic"),
        row(1, -0.1, "polysemantic"),
        row(2, None, "not scorable"),
        row(3, -9.0, "random-like"),
        row(4, -0.1, "polysemantic"),
        row(5, -5.0, "monosemantic"),
        row(6, -7.0, "monosemantic"),
    ]
    chosen = choose(rows, 2)
    assert [(c["channel"], c["why"], c["place"]) for c in chosen] == [
        (1, "highest PSI", 1),
        (4, "highest PSI", 2),
        (3, "lowest PSI", 1),
        (6, "lowest PSI", 2),
        (5, "lowest PSI of those called monosemantic", 1),
        (0, "lowest PSI of those called monosemantic", 2),
    ]
    assert {c["of"] for c in chosen} == {6}
    assert [c["channel"] for c in choose(rows[2:4], 3)] == [3]
    assert choose(rows[2:3], 3) == []


@pytest.fixture(scope="module")
def computed(toy_stored: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from psi_engine.validation.part import Options

    folder = tmp_path_factory.mktemp("examples")
    return PART.compute(Context(toy_stored, Options(examples=1), folder))


def test_patches_are_the_strongest_of_their_cluster_with_the_pictures_they_come_from(
    computed: Any, toy_stored: Any
) -> None:
    channels, clusters, patches = (
        computed.tables[name].to_pylist() for name in ("channels", "clusters", "patches")
    )
    sites = toy_stored.run.sites.filter(pc.field("kind").cast("string") == "top").to_pylist()
    for channel in channels:
        own = ("layer", "channel")
        parts = [c for c in clusters if all(c[k] == channel[k] for k in own)]
        assert len(parts) == channel["n_clusters"]
        assert [c["size"] for c in parts] == sorted((c["size"] for c in parts), reverse=True)
        for part in parts:
            mine = [
                s for s in sites
                if all(s[k] == part[k] for k in (*own, "cluster"))
            ]  # fmt: skip
            shown = [p for p in patches if all(p[k] == part[k] for k in (*own, "cluster"))]
            assert [p["rank"] for p in shown] == sorted(s["rank"] for s in mine)[:SHOWN]
            labels = [s["label"] for s in mine]
            label = toy_stored.class_names.index(part["label"])
            assert labels.count(label) == max(map(labels.count, labels))
            assert part["label_share"] == labels.count(label) / len(labels)
    for patch in patches:
        number = int(Path(patch["key"]).stem)
        expected = np.asarray(toy.draw(number, number % 3), np.float64)
        with Image.open(io.BytesIO(patch["image"])) as image:
            assert abs(np.asarray(image, np.float64) - expected).mean() < 12


@pytest.mark.slow
def test_sheets_are_drawn_from_the_tables_alone_the_same_each_time(
    computed: Any, tmp_path: Path
) -> None:
    files = PART.draw(dict(computed.tables), tmp_path / "examples")
    names = [sheet_name(c) for c in computed.tables["channels"].to_pylist()]
    assert {file.relative_to(tmp_path).as_posix() for file in files} == {
        "examples.png",
        "examples.svg",
        "examples.pdf",
        *(f"examples/{name}.{end}" for name in names for end in ("png", "svg", "pdf")),
    }
    first = files[0].read_bytes()
    few = dict(computed.tables)
    few["channels"] = few["channels"].slice(0, 1)
    one = PART.draw(few, tmp_path / "again")
    assert len(one) == 6
    assert one[3].read_bytes() == (tmp_path / "examples" / f"{names[0]}.png").read_bytes()
    with Image.open(io.BytesIO(first)) as image:
        assert image.size[0] > 1000
    assert "href" in files[1].read_text()
