"""Tables and lines that must not hide what a result says against psi-engine, or its sizes."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import goals, tables
from benchmarks.overview import overview

FACTS = {
    "benchmark": "x", "settings": {"model": "m", "dim": 8, "replicates": 1000, "channels": 64},
    "gpu": None, "cpu": "C", "cores": 2, "commit": "abc",
}  # fmt: skip


def _spread(**values: float) -> dict[str, float]:
    return {f"{name}_{x}": y for name, y in values.items() for x in ("p20", "p50", "p80")}


def _pages(**held: Any) -> tuple[Any, str]:
    every = dict.fromkeys(tables.NAMES) | held
    return tables.made(every), overview(every)


def _result(*rows: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"facts": FACTS | {"settings": FACTS["settings"] | settings}, "rows": list(rows)}


def test_optima_that_differ_stand_beside_the_difference_of_those_that_agree() -> None:
    about = {"source": "s", "channels": 64, "difference": 2e-16}
    times = _spread(seconds=1.0, their_seconds=2.0, times=2.0)
    row = about | {"measure": "polysemanticity", "differ": 0.42, "lower": 0.29, "higher": 0.27}
    made, lines = _pages(peers=_result(row | times, about | {"measure": "clarity"} | times))
    cells = "| 2.0e-16, same clusters only | 42% | 29% | 27% | 1.00"
    assert f"| polysemanticity | s {cells}" in made["peers"]()
    assert "| clarity | s | 2.0e-16 |  |  |  | 1.00" in made["peers"]()
    assert "of 64 channels (42% are > 0.001 apart" in lines
    assert "lower here in 29%, higher in 27%)" in lines


def test_mining_shows_the_whole_call_beside_its_hooks() -> None:
    row = {"what": "speed", "side": 64, "images": 100}
    ours = _spread(cpu_seconds=2.0, keeping=0.022, beyond=0.108, images_per_second=7.77)
    bare = _spread(cpu_seconds=1.0, keeping=0.0, beyond=0.0, images_per_second=7.77)
    made, lines = _pages(
        mining=_result(
            row | {"collector": "forward"} | bare,
            row | {"collector": "all sets"} | ours,
            row | {"collector": "zennit-crp"} | ours,
        )
    )
    shares = "2.2% [2.2%, 2.2%] | 10.8% [10.8%, 10.8%]"
    assert f"| all sets | 64 px, 100 images | 20.0 | {shares} |" in made["mining"]()
    assert "| forward | 64 px, 100 images | 10.0 |  |  |" in made["mining"]()
    assert "7.77" not in made["mining"]()  # a loaded machine's
    assert "| 2.2% in hooks, whole call +10.8% | zennit-crp: 2.2% in hooks, whole" in lines


def test_bounds_of_stability_that_are_missed_are_told() -> None:
    row = {
        "component": "d", "null": "n", "size": "|z| <= 3", "channels": 24, "within": 22 / 24,
        "same_raw": 0.5, "change_p50": 0.1, "change_p95": 1.5, "change_max": 2.3,
        "deviations_max": 43.4,
    }  # fmt: skip
    made, _ = _pages(stability=_result(row, row | {"within": 1.0}))
    text = made["stability"]()
    assert r"| D | `n` | \|z\| <= 3 | 24 | 91.7%: **2 missed** | 50.0% | 0.100 |" in text
    assert "| 24 | all | 50.0%" in text
    assert text.startswith("M = 1000,")


def test_scores_show_the_draws_they_had_and_what_is_scaled() -> None:
    about = {"null": "a", "what": "SQD"}
    times = _spread(seconds=2.0, times=3.0)
    rows = (
        about | {"route": "psi-engine", "channels": 64} | _spread(seconds=2.0),
        {"null": "a", "what": "S", "route": "psi-engine", "channels": 16} | _spread(seconds=2.0),
        about | {"route": "p", "channels": 4} | times,
    )
    made, lines = _pages(scoring=_result(*rows, nulls=["a"], replicates=77))
    assert "S, Q, D of 64 channels, M = 77, null `a`" in lines
    assert "| S, Q, D | psi-engine |  |" in made["scoring"]()
    assert "| S | psi-engine | scaled from 16 |" in made["scoring"]()


def _gpu(*rows: dict[str, Any], **settings: Any) -> dict[str, Any]:
    sizes = {"device": "cuda", "channels": 3072, "images": 100_000} | settings
    facts = FACTS | {"benchmark": "gpu", "gpu": "G", "settings": sizes}
    return {"facts": facts, "rows": list(rows)}


def _work(what: str, seconds: float, **more: Any) -> dict[str, Any]:
    return {"what": what, "floor": 0.1, "of_floor": 0.5} | _spread(seconds=seconds) | more


def test_a_gpu_s_rows_have_their_sizes_and_only_those_of_the_goals_have_goals() -> None:
    rows = (
        _work("S, M = 1000", 0.5, backend="cuda", problems=3072, flop_per_second=1e12,
              product_share=0.1),
        _work("S, M = 1000", 0.25, backend="torch", problems=64),
        _work("mining all images", 0.05, images=99_968),
    )  # fmt: skip
    made, lines = _pages(gpu=_gpu(*rows))
    ours, theirs, mining = made["gpu"]().splitlines()[2:5]
    assert "| cuda | 3,072 | 500 ms [500 ms, 500 ms] | 100 ms | 50% |" in ours
    assert ours.endswith("| 120 ms | 1 s |")
    assert "| torch | 64 |" in theirs
    assert theirs.endswith("|  |  |")
    assert "| 99,968 images |" in mining
    assert "| 100 ms (bytes alone) |" in mining
    assert mining.endswith("| 12.5 ms | 100 ms |")
    assert "| mining 99,968 images | 50.0 ms | goal on an H200: 100 ms | 2.00× |" in lines


def test_a_smaller_run_on_a_gpu_is_held_against_no_goal() -> None:
    rows = (
        _work("S, M = 1000", 0.5, backend="cuda", problems=128),
        _work("mining all images", 0.05, images=5120),
        {"what": "run fp16", "seconds": 3.0},
    )
    made, lines = _pages(gpu=_gpu(*rows, channels=128, images=5200))
    assert all(line.endswith("|  |  |") for line in made["gpu"]().splitlines()[2:5])
    assert "| S of 128 channels, M = 1000 | 500 ms |  |  | G; abc |" in lines
    assert "| mining 5,120 images | 50.0 ms |  |  |" in lines
    assert "| the paper's run, fp16, 5,200 images | 3.00 s |  |  |" in lines


def test_the_line_of_d_is_the_whole_of_it() -> None:
    rows = (
        _work("D, M = 1000", 0.001, backend="cuda", problems=3072),
        {"what": "score D, M = 1000"} | _spread(seconds=0.2),
    )
    made, lines = _pages(gpu=_gpu(*rows))
    alone, whole = made["gpu"]().splitlines()[2:4]
    assert alone.endswith("|  |  |")
    assert "| score D, M = 1000 |  | 3,072 channels | 200 ms" in whole
    assert whole.endswith("| 41 ms | 300 ms |")
    assert "| D of 3072 channels, M = 1000 | 200 ms | goal on an H200: 300 ms | 1.50× |" in lines


@pytest.mark.parametrize(
    ("row", "settings", "held"),
    [
        ({"what": "S, M = 20", "problems": 3072}, {}, True),
        ({"what": "S, M = 20", "problems": 64}, {"channels": 3072}, False),
        ({"what": "score D, M = 1000"}, {"channels": 3072}, True),
        ({"what": "score D, M = 1000"}, {"channels": 64}, False),
        ({"what": "mining all images", "images": 99_968}, {"channels": 4}, True),
        ({"what": "run fp32"}, {"images": 30}, False),
        ({"what": "silhouette", "problems": 3072}, {}, False),
    ],
)
def test_goals_are_for_the_sizes_they_were_set_for(row: Any, settings: Any, held: bool) -> None:
    assert (goals.aim_of(row, settings) is not None) == held
