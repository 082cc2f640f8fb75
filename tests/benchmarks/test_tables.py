"""README and docs against what the tracked results make; an altered result is noticed."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import figures, goals, tables
from benchmarks.details import gpu as gpu_table
from benchmarks.harness import Spread
from benchmarks.overview import overview
from benchmarks.pages import blocks, device, filled, measured, number, origin, seconds

PROJECT = tables.PROJECT


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Pages, figures and results, to be changed."""
    (tmp_path / "docs/assets").mkdir(parents=True)
    for name in (*tables.PAGES, *(f"docs/assets/{x.name}" for x in _figures())):
        shutil.copy(PROJECT / name, tmp_path / name)
    shutil.copytree(tables.RESULTS, tmp_path / "results")
    return tmp_path


def _figures() -> list[Path]:
    return sorted((PROJECT / "docs/assets").glob("speed-*.svg"))


def _alter(copy: Path, name: str, change: Any) -> None:
    path = copy / "results" / f"{name}.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    change(result)
    path.write_text(json.dumps(result), encoding="utf-8")


def test_pages_and_figures_are_what_the_results_make() -> None:
    assert tables.differing(PROJECT, tables.RESULTS) == [], "run python -m benchmarks.tables"
    held = tables.read(tables.RESULTS)
    assert {path.stem for path in _figures()} == {f"speed-{x}" for x in figures.wanted(held)}
    assert all(path.stat().st_size < 40_000 for path in _figures())
    there = {name for page in tables.PAGES for name in blocks((PROJECT / page).read_text())}
    assert there == set(tables.made(held))


def test_an_altered_figure_is_noticed_and_written_anew(copy: Path) -> None:
    def slower(result: dict[str, Any]) -> None:
        (row,) = [
            row for row in result["rows"]
            if (row["null"], row["what"], row["route"]) == ("rotation-samples", "SQD", "psi-engine")
        ]  # fmt: skip
        row["seconds_p50"] = 98.7

    _alter(copy, "scoring", slower)
    where = [
        "README.md: overview", "docs/speed.md: scoring", "docs/assets/speed-peers.svg",
    ]  # fmt: skip
    assert tables.differing(copy, copy / "results") == where
    tables.write(copy, copy / "results")
    assert tables.differing(copy, copy / "results") == []
    for page in ("README.md", "docs/speed.md"):
        assert "98.7" in (copy / page).read_text(encoding="utf-8")
    assert figures.data_of(copy / "docs/assets/speed-peers.svg")["rotation-samples"][
        "psi-engine"
    ] == 98.7  # fmt: skip


def test_prose_around_the_blocks_stays(copy: Path) -> None:
    page = copy / "README.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("<!-- begin overview -->\n", "<!-- begin overview -->\nold\n"))
    assert tables.differing(copy, copy / "results") == ["README.md: overview"]
    tables.write(copy, copy / "results")
    assert page.read_text(encoding="utf-8") == text


def test_what_has_no_results_is_not_measured(copy: Path) -> None:
    held = dict.fromkeys(tables.NAMES)
    for name, make in tables.made(held).items():
        assert "not measured" in make(), name
    assert figures.wanted(held) == {}
    lines = overview(held).splitlines()
    assert sum("not measured" in line for line in lines) == len(lines) - 2


def test_the_check_says_what_differs(copy: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(tables, "PROJECT", copy)
    monkeypatch.setattr(tables, "RESULTS", copy / "results")
    assert tables.main(["--check"]) == 0
    (copy / "results/solver.json").unlink()
    assert tables.main(["--check"]) == 1
    told = capsys.readouterr().out
    assert "docs/speed.md: solver differs" in told
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0


GPU_SIZE = {"device": "cuda", "channels": 3072, "images": 100_000}


def _gpu(**facts: Any) -> dict[str, Any]:
    about = {
        "benchmark": "gpu", "settings": GPU_SIZE, "gpu": "NVIDIA H200", "commit": "abc",
        "cpu": "x", "cores": 16,
    } | facts  # fmt: skip
    work = {
        "what": "S, M = 1000", "backend": "cuda", "problems": 3072, "floor": 0.2, "of_floor": 0.4,
        "bytes_per_second": 2e12, "copy_share": 0.5, "peak_mib": 12.0,
        **{f"seconds_{x}": y for x, y in Spread(0.4, 0.5, 0.6)._asdict().items()},
    }  # fmt: skip
    return {"facts": about, "rows": [work, {"what": "Q, M = 1000", "failed": "other bits"}]}


def test_a_gpu_s_figures_stand_beside_floors_and_goals() -> None:
    held = dict.fromkeys(tables.NAMES) | {"gpu": _gpu()}
    text = gpu_table(held["gpu"])
    (line,) = [x for x in text.splitlines() if x.startswith("| S, M = 1000")]
    for part in (
        "500 ms [400 ms, 600 ms]",
        "200 ms (bytes alone)",
        "40%",
        "no",
        "2000 (50%)",
        "120 ms",
        "1 s",
    ):
        assert f"| {part} |" in line, part
    assert "**Q, M = 1000 failed**: other bits" in text
    (line,) = [x for x in overview(held).splitlines() if "S of 3072 channels, M = 1000" in x]
    assert "| 500 ms | goal on an H200: 1 s | 2.00× | NVIDIA H200; abc |" in line
    (line,) = [x for x in overview(held).splitlines() if "Q of 3072 channels" in x]
    assert "not measured" in line


@pytest.mark.parametrize("facts", [{"settings": {"device": "cpu"}}, {"gpu": None}])
def test_the_gpu_s_benchmark_on_a_cpu_is_no_gpu_figure(tmp_path: Path, facts: Any) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps(_gpu(**facts)))
    assert tables.read(tmp_path)["gpu"] is None
    (tmp_path / "gpu.json").write_text(json.dumps(_gpu()))
    assert tables.read(tmp_path)["gpu"] is not None


FACTS = {
    "benchmark": "x", "settings": {"nulls": ["a"], "channels": 64, "model": "m", "encoder": "e"},
    "gpu": None, "cpu": "C", "cores": 2, "commit": "abc",
}  # fmt: skip


def _about(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"facts": FACTS, "rows": list(rows)}


def _spread(name: str, value: float) -> dict[str, float]:
    return {f"{name}_p20": value, f"{name}_p50": value, f"{name}_p80": value}


def test_a_peer_that_was_left_out_says_why_and_the_most_processes_count() -> None:
    peer = {"null": "a", "what": "SQD", "route": "p", "threads": 1, "channels": 2}
    scoring = _about(
        {"null": "a", "what": "agreement", "route": "absent", "left_out": "not installed: absent"},
        {"null": "none", "what": "agreement", "route": "semanticlens", "difference": 0.0},
        {"null": "a", "what": "SQD", "route": "psi-engine", **_spread("seconds", 2.0)},
        {**peer, "processes": 1, **_spread("seconds", 90.0), **_spread("times", 45.0)},
        {**peer, "processes": 2, **_spread("seconds", 50.0), **_spread("times", 25.0)},
    )
    held = dict.fromkeys(tables.NAMES) | {"scoring": scoring}
    made = tables.made(held)
    assert "not installed: absent" in made["agreement"]()
    assert "semanticlens" not in made["agreement"]()
    assert "| 2 processes, 1 thread each, scaled from 2 | 50.0 [50.0, 50.0] |" in made["scoring"]()
    (line,) = [x for x in made["overview"]().splitlines() if "p: " in x]
    assert "| 2.00 s | p: 50.0 s, scaled from 2 | 25.0× |" in line
    assert figures.wanted(held) == {"peers": {"a": {"psi-engine": 2.0, "p": 50.0}}}


def test_curves_show_their_ends_their_slope_and_memory(tmp_path: Path) -> None:
    about = {"curve": "patches", "null": "a", "parts": "SQ"}
    sizes = [
        about | {"what": "size", "channels": 8, "patches": n, "draws": 20, "beyond_bytes": held}
        | _spread("seconds", n / 1e3)
        for n, held in ((20, None), (100, 9 << 20))
    ]  # fmt: skip
    slope = about | {"what": "slope", "power": 2, "bound_bytes": 8 << 20}
    held = dict.fromkeys(tables.NAMES) | {"curves": _about(*sizes, slope | _spread("slope", 0.5))}
    text = tables.made(held)["curves"]()
    assert "| 20 to 100 patches | 8 channels, 20 draws | S, Q | `a` | 20.0 ms to 100 ms |" in text
    assert "of patches² | 1.1, kept | unknown | 8 MiB, **missed** |" in text
    known = sizes[0] | {"beyond_bytes": 0}
    for first, most, bound in ((known, "9 MiB", 8), (known, "9 MiB", 9), (sizes[0], "unknown", 9)):
        rows = (first, sizes[1], slope | {"bound_bytes": bound << 20} | _spread("slope", 1.2))
        text = tables.made(held | {"curves": _about(*rows)})["curves"]()
        verdict = "" if most == "unknown" else ", **missed**" if bound == 8 else ", kept"
        assert f"| 1.1, **missed** | {most} | {bound} MiB{verdict} |" in text
    assert "over these pairs, not over rounds" in text
    (data,) = figures.wanted(held).values()
    assert data == {"patches": {"S, Q: a": [[20, 0.02, None], [100, 0.1, 9]]}}
    path = tmp_path / "curves.svg"
    figures.draw("curves", data, path)
    first = path.read_bytes()
    figures.draw("curves", data, path)
    assert (figures.data_of(path), path.read_bytes()) == (data, first)


def test_unknown_memory_has_no_point() -> None:
    from matplotlib import pyplot

    made = figures._draw_curves({"draws": {"S: a": [[20, 0.1, None], [200, 1.0, 0], [300, 2, 9]]}})
    (line,) = made.axes[1].lines
    assert np.asarray(line.get_ydata(), float) == pytest.approx([np.nan, 1, 9], nan_ok=True)
    pyplot.close(made)


def test_readme_has_the_most_channels_and_how_cost_grows() -> None:
    about = {"curve": "channels", "null": "a"}
    size = about | {"what": "size", "draws": 200, "beyond_bytes": 216 << 20}
    curves = _about(
        size | {"parts": "SQD", "channels": 10} | _spread("seconds", 1.0),
        about | {"what": "slope", "parts": "SQD"} | _spread("slope", 2.0),
        size | {"parts": "S", "channels": 1_000_000} | _spread("seconds", 429.4),
        about | {"what": "slope", "parts": "S"} | _spread("slope", 0.987),
    )
    text = tables.made(dict.fromkeys(tables.NAMES) | {"curves": curves})["overview"]()
    assert (
        "| S of 1,000,000 channels, M = 200, null `a` | 429 s | slope 0.987 of channels; "
        "216 MiB beyond the scores |  | C, 2 cores; abc |"
    ) in text


def test_stages_stand_beside_their_networks() -> None:
    row = {"stage": "mine", "items": 2000, "seconds": 134.4}
    stages = _about(row | _spread("alone_seconds", 119.3) | _spread("ratio", 1.13))
    text = tables.made(dict.fromkeys(tables.NAMES) | {"stages": stages})["stages"]()
    assert "| mine, m | 2,000 | 134 s | 119 [119, 119] | 1.13 [1.13, 1.13] |" in text


def test_constants_have_their_names_and_what_follows_from_them() -> None:
    costs = {
        "decode and resize": 400.0, "forward pass": 20_000.0, "keep the best, 8 × 8 sites": 0.25,
        "merge two miners": 80.0, "save a state": 20.0, "embed, an encoder": 1000.0,
        "score, preset calibrated, M = 1000": 500.0, "score, preset paper, M = 20": 300.0,
    }  # fmt: skip
    made = [{"what": x, "per": "image"} | _spread("microseconds", y) for x, y in costs.items()]
    scaling = _about(*made, {"what": "saved state", "per": "channel", "bytes": 2800.0})
    text = tables.made(dict.fromkeys(tables.NAMES) | {"scaling": scaling})["constants"]()
    assert "| t_keep | keep the best, 8 × 8 sites | image | 0.250 µs [0.250 µs, 0.250 µs] |" in text
    assert "|  | save a state | image | 20.0 µs" in text
    assert "| t_score | score, preset calibrated" in text
    assert "|  | score, preset paper" in text
    assert "3072 channels of 8 × 8 sites cost 768 µs an image beside 20.0 ms" in text
    assert "7.1 hours of one thread, those of 4·10⁸ images 93 days" in text
    assert "decoding takes 2% of that" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2609.5, "2610"), (16.197, "16.2"), (0.07146, "0.0715"), (1.0, "1.00"), (0.1, "0.100"),
        (0.9999, "1.00"), (-0.2299, "-0.230"), (0.0, "0"), (float("nan"), "–"), (None, "–"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_seconds_have_the_unit_that_keeps_them_readable() -> None:
    assert [seconds(x) for x in (2609.5, 0.0715, 3.2e-6)] == ["2610 s", "71.5 ms", "3.20 µs"]


def test_devices_are_named_plainly() -> None:
    facts = {"settings": {}, "cpu": "Intel(R) Xeon(R) Processor @ 2.50GHz", "cores": 2, "gpu": "G"}
    assert device(facts) == "Intel Xeon 2.50GHz, 2 cores"
    assert device(facts | {"settings": {"device": "cuda:0"}}) == "G"


def test_threads_changes_and_what_was_cut_short_are_told() -> None:
    facts = FACTS | {"threads": {"torch": 1, "numba": 1}, "changed_since": True}
    assert measured(facts) == "C, 2 cores, 1 thread; abc with changes"
    assert measured(FACTS | {"threads": {"torch": 2, "numba": 2}}) == "C, 2 cores; abc"
    facts = FACTS | {"threads": {"torch": 1, "numba": 2}, "commit": "abc with x", "finished": False}
    where = "C, 2 cores, torch 1 thread, numba 2 threads"
    assert measured(facts) == f"{where}; abc with changes, cut short"
    settings = {"rounds": 2}
    text = origin(facts | {"settings": settings})
    assert f"on {where}; 2 rounds." in text
    assert "**Cut short**" in text
    facts = FACTS | {"finished": True, "settings": settings | {"patience": 3.0}}
    assert "2 cores; at most 2 rounds.\n" in origin(facts)
    assert "Cut short" not in origin(facts) + origin(FACTS)


@pytest.mark.parametrize("name", tables.NAMES)
def test_what_was_cut_short_anywhere_still_makes_its_pages(name: str) -> None:
    whole = tables.read(tables.RESULTS)[name]
    if whole is None:
        pytest.skip("no results yet")
    for count in range(len(whole["rows"])):
        facts = whole["facts"] | {"finished": False}
        part = {"facts": facts, "rows": whole["rows"][:count]}
        held = dict.fromkeys(tables.NAMES) | {name: part}
        told = [make() for make in tables.made(held).values()]
        assert any("**Cut short**" in text for text in told)
        assert all(figures.wanted(held).values())


def _ends(parse: Any, taken: list[Any]) -> Any:
    def parsed(*given: Any) -> Any:
        taken.append(parse(*given))
        raise KeyboardInterrupt

    return parsed


def test_every_command_of_the_pages_is_one_that_its_benchmark_takes(monkeypatch: Any) -> None:
    texts = [(PROJECT / page).read_text(encoding="utf-8") for page in tables.PAGES]
    texts += [make() for make in tables.made(dict.fromkeys(tables.NAMES)).values()]
    commands = set(re.findall(r"`python -m (benchmarks\.\w+)([^`]*)`", "\n".join(texts)))
    assert {f"benchmarks.{x}" for x in tables.NAMES} <= {name for name, _ in commands}
    parse = argparse.ArgumentParser.parse_args
    for name, options in commands:
        taken: list[Any] = []
        monkeypatch.setattr(sys, "argv", [name, *options.split()])
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", _ends(parse, taken))
        with pytest.raises(KeyboardInterrupt):
            importlib.import_module(name).main()
        assert len(taken) == 1, (name, options)


def test_marks_that_nothing_fills_are_an_error() -> None:
    with pytest.raises(KeyError, match="nothing"):
        filled("<!-- begin nothing -->\n<!-- end -->", {})


def test_every_goal_of_the_gpu_has_its_line() -> None:
    text = gpu_table(None)
    assert all(f"| {name} |" in text for name in goals.AIMS)
