"""README's table of speed: what a user would ask first, one line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.goals import AIMS, CHANNELS, IMAGES, aim_of
from benchmarks.harness import SEEDINGS
from benchmarks.pages import (
    ABSENT,
    Result,
    exactly,
    first,
    markdown,
    measured,
    number,
    rows,
    seconds,
    taken,
    whole,
)


def overview(held: Mapping[str, Result]) -> str:
    """README's table: what a user would ask first, one line each."""
    found = [*_scores(held["scoring"]), *_optima(held["solver"]), *_draws(held["replicates"])]
    found += [*_many(held["curves"]), *_keeping(held["mining"]), *_measures(held["peers"])]
    found += [*_searches(held["search"]), *_gpu_goals(held["gpu"])]
    return markdown(["", "psi-engine", "instead", "ratio", "measured on"], found)


def _lacking(what: str) -> list[list[str]]:
    return [[what, ABSENT, "", "", ""]]


def _scores(result: Result) -> list[list[str]]:
    lacking = _lacking("S, Q and D beside the loops one would write")
    if result is None:
        return lacking
    settings = result["facts"]["settings"]
    null, draws = settings["nulls"][0], settings.get("replicates", 20)
    found = {row["route"]: row for row in rows(result, null=null, what="SQD")}  # most processes
    ours = found.pop("psi-engine", None)
    if not (ours and found):
        return lacking
    what = f"S, Q, D of {settings['channels']} channels, M = {draws}, null `{null}`"
    return [
        [
            what, seconds(ours["seconds_p50"]),
            f"{route}: {seconds(row['seconds_p50'])}, scaled from {row['channels']}",
            f"{number(row['times_p50'])}×", measured(result["facts"]),
        ]
        for route, row in found.items()
    ]  # fmt: skip


def _optima(result: Result) -> list[list[str]]:
    settings = result["facts"]["settings"] if result else {}
    seedings = settings.get("seedings", SEEDINGS)
    what = f"clusters with {seedings} seedings at least as good as the best of 10 of"
    found = rows(result, solver="hartigan")
    if result is None or not found:
        return _lacking(what + " peers")
    lines = []
    for peer in ("scikit-learn", "faiss"):
        share = [row[f"at_least_{peer}"] for row in found]
        part = f"in {min(share):.0%} to {max(share):.0%} of problems"
        lines.append([f"{what} {peer}", part, "", "", measured(result["facts"])])
    return lines


def _draws(result: Result) -> list[list[str]]:
    lacking = _lacking("M = 1000 draws beside M = 20, or beside no null")
    if result is None:
        return lacking
    where = measured(result["facts"])
    compared = [
        (row, f"M = 20: {seconds(row['seconds_at_20_p50'])}")
        for row in rows(result, what="own null")[:1]
    ]
    if none := first(result, what="no null", parts="S"):
        compared += [
            (row, f"no null: {seconds(none['seconds_p50'])}")
            for row in rows(result, what="shared null", null="pool", parts="S")
        ]
    return lacking if not compared else [
        [
            f"S of {row['channels']} channels, M = {row['draws']}, null `{row['null']}`",
            seconds(row["seconds_p50"]), other, f"{number(row['times_p50'])}× as long", where,
        ]
        for row, other in compared
    ]  # fmt: skip


def _many(result: Result) -> list[list[str]]:
    """The most channels of any curve, and how cost grows towards them."""
    sizes = rows(result, what="size", curve="channels")
    if result is None or not sizes:
        return _lacking("S of a million channels")
    most = max(sizes, key=lambda row: row["channels"])
    slope = first(result, what="slope", curve="channels", null=most["null"], parts=most["parts"])
    held = most["beyond_bytes"]
    parts = [f"slope {number(slope['slope_p50'])} of channels"] if slope else []
    parts += [f"{held >> 20} MiB beyond the scores"] if held is not None else []
    what = (
        f"{', '.join(most['parts'])} of {most['channels']:,} channels, M = {most['draws']}, "
        f"null `{most['null']}`"
    )
    return [[what, seconds(most["seconds_p50"]), "; ".join(parts), "", measured(result["facts"])]]


def _keeping(result: Result) -> list[list[str]]:
    lacking = _lacking("collecting sites, CPU time beside the forward pass")
    ours = rows(result, what="speed", collector="all sets")
    if result is None or not ours:
        return lacking
    side = max(row["side"] for row in ours)
    share = {
        row["collector"]: f"{row['keeping_p50']:.1%} in hooks, whole call {row['beyond_p50']:+.1%}"
        for row in rows(result, what="speed", side=side)
    }
    theirs = "; ".join(f"{x}: {share[x]}" for x in ("semanticlens", "zennit-crp") if x in share)
    model = result["facts"]["settings"]["model"]
    what = f"collecting sites, CPU time beside the forward pass of {model}, {side} px"
    return [[what, share["all sets"], theirs, "", measured(result["facts"])]]


def _measures(result: Result) -> list[list[str]]:
    if result is None:
        return _lacking("the measures of SemanticLens")
    lines = []
    for measure in ("polysemanticity", "clarity"):
        row = first(result, measure=measure)
        if row is None:
            lines += _lacking(f"{measure}, as SemanticLens has it")
            continue
        what = f"{measure} of {row['channels']} channels{_elsewhere(row)}"
        lines.append([
            what, seconds(row["seconds_p50"]),
            f"semanticlens: {seconds(row['their_seconds_p50'])}", f"{number(row['times_p50'])}×",
            measured(result["facts"]),
        ])  # fmt: skip
    return lines


def _elsewhere(row: Mapping[str, Any]) -> str:
    """How often 2-means stop elsewhere on the two sides, for a measure that rests on them."""
    if "differ" not in row:
        return ""
    return (
        f" ({row['differ']:.0%} are > 0.001 apart, as 2-means stop elsewhere: "
        f"sum of squares lower here in {row['lower']:.0%}, higher in {row['higher']:.0%})"
    )


def _searches(result: Result) -> list[list[str]]:
    found = rows(result, route="parts")
    if result is None or not found:
        return _lacking("a search among prototypes")
    parts = max(found, key=lambda row: row["rows"])
    (every,) = rows(result, rows=parts["rows"], route="exact")  # comes first
    found_again = f"recall@10 {parts['recall_like']:.3f}, of texts {parts['recall_text']:.3f}"
    return [[
        f"a search among {parts['rows']:,} prototypes, one core, {found_again}",
        seconds(parts["query_ms_p50"] / 1e3),
        f"every row compared: {seconds(every['query_ms_p50'] / 1e3)}",
        f"{number(every['query_ms_p50'] / parts['query_ms_p50'])}×", measured(result["facts"]),
    ]]  # fmt: skip


def _gpu_goals(result: Result) -> list[list[str]]:
    where = measured(result["facts"]) if result else "GPU"
    settings = result["facts"]["settings"] if result else {}
    lines = []
    for name in AIMS:
        row = whole(result, name)
        aim = aim_of(row or {"what": name}, settings)
        goal = f"goal on an H200: {exactly(aim.goal)}" if aim else ""
        ratio = f"{number(aim.goal / taken(row))}×" if row and aim else ""
        found = seconds(taken(row)) if row else ABSENT
        lines.append([_said(name, row or {}, settings), found, goal, ratio, where])
    return lines


def _said(name: str, row: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The work of a row and the sizes that it was run with; those of the goals before any run."""
    channels, images = settings.get("channels", CHANNELS), settings.get("images", IMAGES)
    if name.startswith("run "):
        return f"the paper's run, {name[4:]}, {images:,} images"
    if name.startswith("mining"):
        return f"mining {row.get('images', images):,} {name.removeprefix('mining all ')}"
    part, _, draws = name.removeprefix("score ").partition(", ")
    return f"{part} of {row.get('problems', channels)} channels, {draws}"
