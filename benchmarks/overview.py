"""README's table of speed: what a user would ask first, one line each."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.goals import AIMS
from benchmarks.harness import SEEDINGS
from benchmarks.pages import (
    ABSENT,
    Result,
    exactly,
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
    found += [*_keeping(held["mining"]), *_measures(held["peers"]), *_searches(held["search"])]
    found += _gpu_goals(held["gpu"])
    return markdown(["", "psi-engine", "instead", "ratio", "measured on"], found)


def _lacking(what: str) -> list[list[str]]:
    return [[what, ABSENT, "", "", ""]]


def _scores(result: Result) -> list[list[str]]:
    if result is None:
        return _lacking("S, Q and D beside the loops one would write")
    settings = result["facts"]["settings"]
    null = settings["nulls"][0]
    found = {row["route"]: row for row in rows(result, null=null, what="SQD")}  # most processes
    ours = found.pop("psi-engine")
    what = f"S, Q, D of {settings['channels']} channels, M = 20, null `{null}`"
    return [
        [
            what, seconds(ours["seconds_p50"]), f"{route}: {seconds(row['seconds_p50'])}",
            f"{number(row['times_p50'])}×", measured(result["facts"]),
        ]
        for route, row in found.items()
    ]  # fmt: skip


def _optima(result: Result) -> list[list[str]]:
    what = f"clusters with {SEEDINGS} seedings at least as good as the best of 10 of"
    if result is None:
        return _lacking(what + " peers")
    lines = []
    for peer in ("scikit-learn", "faiss"):
        share = [row[f"at_least_{peer}"] for row in rows(result, solver="hartigan")]
        part = f"in {min(share):.0%} to {max(share):.0%} of problems"
        lines.append([f"{what} {peer}", part, "", "", measured(result["facts"])])
    return lines


def _draws(result: Result) -> list[list[str]]:
    if result is None:
        return _lacking("M = 1000 draws beside M = 20, or beside no null")
    where = measured(result["facts"])
    compared = [
        (row, f"M = 20: {seconds(row['seconds_at_20_p50'])}")
        for row in rows(result, what="own null")[:1]
    ]
    (none,) = rows(result, what="no null", parts="S")
    compared += [
        (row, f"no null: {seconds(none['seconds_p50'])}")
        for row in rows(result, what="shared null", null="pool", parts="S")
    ]
    return [
        [
            f"S of {row['channels']} channels, M = {row['draws']}, null `{row['null']}`",
            seconds(row["seconds_p50"]), other, f"{number(row['times_p50'])}× as long", where,
        ]
        for row, other in compared
    ]  # fmt: skip


def _keeping(result: Result) -> list[list[str]]:
    if result is None:
        return _lacking("keeping sites, share of the forward pass")
    side = max(row["side"] for row in rows(result, what="speed"))
    share = {
        row["collector"]: f"{row['keeping_p50']:.1%}"
        for row in rows(result, what="speed", side=side)
    }
    theirs = ", ".join(f"{x}: {share[x]}" for x in ("semanticlens", "zennit-crp") if x in share)
    what = f"mining's cost beside the forward pass, {result['facts']['settings']['model']}"
    return [[f"{what}, {side} px", share["all sets"], theirs, "", measured(result["facts"])]]


def _measures(result: Result) -> list[list[str]]:
    if result is None:
        return _lacking("the measures of SemanticLens")
    lines = []
    for measure in ("polysemanticity", "clarity"):
        row = rows(result, measure=measure)[0]
        lines.append([
            f"{measure} of {row['channels']} channels", seconds(row["seconds_p50"]),
            f"semanticlens: {seconds(row['their_seconds_p50'])}", f"{number(row['times_p50'])}×",
            measured(result["facts"]),
        ])  # fmt: skip
    return lines


def _searches(result: Result) -> list[list[str]]:
    if result is None:
        return _lacking("a search among prototypes")
    most = max(row["rows"] for row in result["rows"])
    every, parts = (rows(result, rows=most, route=x)[0] for x in ("exact", "parts"))
    return [[
        f"a search among {most:,} prototypes, one core", seconds(parts["query_ms_p50"] / 1e3),
        f"every row compared: {seconds(every['query_ms_p50'] / 1e3)}",
        f"{number(every['query_ms_p50'] / parts['query_ms_p50'])}×", measured(result["facts"]),
    ]]  # fmt: skip


def _gpu_goals(result: Result) -> list[list[str]]:
    where = measured(result["facts"]) if result else "GPU"
    lines = []
    for name, aim in AIMS.items():
        row = whole(result, name)
        found = seconds(taken(row)) if row else ABSENT
        ratio = f"{number(aim.goal / taken(row))}×" if row else ""
        lines.append([_said(name), found, f"goal on an H200: {exactly(aim.goal)}", ratio, where])
    return lines


def _said(name: str) -> str:
    if name[0] in "SQD":
        return f"{name[0]} of 3072 channels{name[1:]}"
    return name.replace("all images", "100,000 images").replace("run ", "the paper's run, ")
