"""The tables of docs/speed.md: everything the results hold that tells how fast it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.goals import AIMS, CHANNELS, NEAR, STEEPEST, Aim, aim_of
from benchmarks.pages import (
    ABSENT,
    Result,
    exactly,
    first,
    markdown,
    middle,
    number,
    rows,
    seconds,
    taken,
)


def scoring(result: Mapping[str, Any]) -> str:
    """Every null, part and route; ratios with their spread."""
    lines = []
    every = result["facts"]["settings"]["channels"]
    for row in result["rows"]:
        if row["what"] == "agreement":
            continue
        if "seconds_p50" not in row:
            continue
        what = ", ".join(row["what"]) if row["what"] in ("SQD", "S", "Q", "D") else row["what"]
        null = f"`{row['null']}`" if row["null"] != "none" else ""
        times = middle(row, "times") if "times_p50" in row else ""
        lines.append([null, what, row["route"], _how(row, every), middle(row, "seconds"), times])
    return markdown(["null of S", "scores", "route", "", "seconds", "psi-engine's speed-up"], lines)


def _how(row: Mapping[str, Any], every: int) -> str:
    """Processes, threads, and the channels that seconds for every channel are scaled from."""
    counts = {"process": row.get("processes"), "thread": row.get("threads")}
    parts = [f"{n} {name}{'es' if name[-1] == 's' else 's'}" if n != 1 else f"1 {name}"
             for name, n in counts.items() if n]  # fmt: skip
    if row.get("processes", 1) > 1 and row.get("threads"):
        parts[-1] += " each"
    if row.get("channels", every) != every:
        parts.append(f"scaled from {row['channels']}")
    return ", ".join(parts)


def agreement(result: Mapping[str, Any]) -> str:
    """How near the scores are for the same assignments, and whose optima are better."""
    lines = []
    for row in rows(result, what="agreement"):
        if row.get("left_out"):
            null = f"`{row['null']}`" if row["null"] != "none" else ""
            lines.append([null, row["route"], row["left_out"], "", "", ""])
            continue
        if "s" not in row:  # SemanticLens' measure; its own table has more of it
            continue
        apart = [f"{row[x]:.1e}" for x in "sqd"]
        share = f"{row['better']:.0%}"
        if "problems" in row:
            share += f" of {row['problems']}"
        lines.append([f"`{row['null']}`", row["route"], *apart, share])
    head = ["null of S", "route", "S apart", "Q apart", "D apart", "objective at least as good"]
    return markdown(head, lines)


def solver(result: Mapping[str, Any]) -> str:
    """Least and largest share over k, for each kind of data."""
    lines = []
    for data in dict.fromkeys(row["data"] for row in result["rows"]):
        found = rows(result, data=data, solver="hartigan")
        cells = []
        for peer in ("scikit-learn", "faiss"):
            share = [row[f"at_least_{peer}"] for row in found]
            cells.append(f"{min(share):.0%}–{max(share):.0%}")
        worst = min(row["worst_of_best"] for row in found)
        lines.append([data, f"{found[0]['problems']} × {len(found)}", *cells, f"{worst:.4f}"])
    head = ["data", "problems × k", "≥ scikit-learn", "≥ faiss", "worst objective over best known"]
    return markdown(head, lines)


def replicates(result: Mapping[str, Any]) -> str:
    """Seconds of nulls of their own and of shared ones, and memory."""
    lines = []
    for row in rows(result, what="own null"):
        times = f"{middle(row, 'times')}× M = 20"
        lines.append([f"`{row['null']}`", row["parts"], f"{row['channels']}", f"{row['draws']}",
                      middle(row, "seconds"), times])  # fmt: skip
    for row in rows(result, what="shared null"):
        times = f"{middle(row, 'times')}× no null"
        names = " and ".join(f"`{x}`" for x in (row["null"], row["d_null"]) if x)
        lines.append([names, row["parts"], f"{row['channels']}", f"{row['draws']}",
                      middle(row, "seconds"), times])  # fmt: skip
    for row in rows(result, what="peak memory"):
        note = f" ({row['note']})" if row["note"] else ""
        lines.append([f"`{row['null']}`{note}", "S", f"{row['channels']}", f"{row['draws']}",
                      "", f"peak {row['bytes'] / 2**30:.2f} GiB"])  # fmt: skip
    return markdown(["nulls", "scores", "channels", "M", "seconds", ""], lines)


def mining(result: Mapping[str, Any]) -> str:
    """CPU time, the shares that collecting adds to it; memory by channels and images."""
    lines = [
        [
            row["collector"], f"{row['side']} px, {row['images']} images",
            number(1e3 * row["cpu_seconds_p50"] / row["images"]),
            *(["", ""] if row["collector"] in LOOPS else
              [middle(row, "keeping", percent), middle(row, "beyond", percent)]),
        ]
        for row in rows(result, what="speed")
    ]  # fmt: skip
    text = markdown(["collector", "", "CPU ms an image", "in hooks", "whole call"], lines)
    text += (
        "\n*In hooks*: CPU time inside the collector's hooks over that outside them, in the same "
        "call. *Whole call*: CPU time of a call over that of the same loop without a collector in "
        "the same round, less one; it misses nothing and varies more, so that it can be below 0.\n"
    )
    kept = rows(result, what="memory")
    sizes = list(dict.fromkeys((row["channels"], row["images"]) for row in kept))
    lines = []
    for name in dict.fromkeys(row["collector"] for row in kept):
        own = [row for row in kept if row["collector"] == name]
        mib = {(row["channels"], row["images"]): row["buffers_mib"] for row in own}
        cells = (f"{mib[size]:.0f} MiB" if size in mib else ABSENT for size in sizes)
        lines.append([name, *cells])
    head = [f"{channels} channels, {images} images" for channels, images in sizes]
    return f"{text}\nWhat the process grows by:\n\n" + markdown(["collector", *head], lines)


def percent(value: float) -> str:
    """A share with one decimal."""
    return f"{value:.1%}"


def stages(result: Mapping[str, Any]) -> str:
    """A run's long stages beside the forward pass or the encoder alone."""
    about = result["facts"]["settings"]
    networks = {"mine": about["model"], "embed": about["encoder"]}
    lines = [
        [
            f"{row['stage']}, {networks[row['stage']]}", f"{row['items']:,}",
            seconds(row["seconds"]), middle(row, "alone_seconds"), middle(row, "ratio"),
        ]
        for row in result["rows"]
    ]  # fmt: skip
    return markdown(["stage", "images or crops", "took", "alone, s", "ratio"], lines)


CONSTANTS = {
    "decode and resize": "t_decode",
    "forward pass": "t_forward",
    "keep the best": "t_keep",
    "merge two miners": "t_merge",
    "embed": "t_crop",
    "score, preset calibrated": "t_score",
}
"""The names that docs/scaling.md has for what is measured, by how its row begins."""


def scaling(result: Mapping[str, Any]) -> str:
    """What an image, a crop and a channel cost one thread, and what that makes of many."""
    lines, one = [], {}
    for row in result["rows"]:
        if "microseconds_p50" not in row:
            continue
        (name,) = [x for start, x in CONSTANTS.items() if row["what"].startswith(start)] or [""]
        one[name] = row["microseconds_p50"] / 1e6
        shown = middle(row, "microseconds", lambda value: seconds(value / 1e6))
        lines.append([name, row["what"], row["per"], shown])
    table = markdown(["", "what", "per", "one thread"], lines)
    if not {"t_decode", "t_forward", "t_keep"} <= one.keys():
        return table
    hours = 1.28e6 * one["t_forward"] / 3600
    told = (
        f"By these, {CHANNELS} channels of 8 × 8 sites cost {seconds(CHANNELS * one['t_keep'])} an "
        f"image beside {seconds(one['t_forward'])} of forward pass. The forward passes of "
        f"ImageNet's 1.28 million images at 64 pixels take {number(hours, 2)} hours of one thread, "
        f"those of 4·10⁸ images {number(4e8 / 1.28e6 * hours / 24, 2)} days, divided by the ranks; "
        f"decoding takes {one['t_decode'] / one['t_forward']:.0%} of that.\n"
    )
    return f"{table}\n{told}"


def peers(result: Mapping[str, Any]) -> str:
    """The measures of the package semanticlens; where 2-means stop elsewhere, how often."""
    lines = []
    for row in result["rows"]:
        apart = row["difference"]
        difference = ABSENT if apart is None else f"{apart:.1e}"
        elsewhere = [""] * 3
        if "differ" in row:
            difference += ", same clusters only"
            elsewhere = [f"{row[name]:.0%}" for name in ("differ", "lower", "higher")]
        lines.append([row["measure"], row["source"], difference, *elsewhere,
                      middle(row, "seconds"), middle(row, "their_seconds"), middle(row, "times")])  # fmt: skip  # noqa: E501
    head = [
        "measure", "data", "largest difference", "channels > 0.001 apart",
        "sum of squares lower here", "higher here", "seconds", "semanticlens", "faster by",
    ]  # fmt: skip
    return markdown(head, lines)


def stability(result: Mapping[str, Any]) -> str:
    """Change of z between two seeds; bounds that some channels miss are told."""
    about, lines = result["facts"]["settings"], []
    for row in result["rows"]:
        within = row["within"]
        missed = round((1 - within) * row["channels"])
        lines.append([
            row["component"].upper(), f"`{row['null']}`", row["size"].replace("|", "\\|"),
            f"{row['channels']}", "all" if within == 1 else f"{within:.1%}: **{missed} missed**",
            f"{row['same_raw']:.1%}",
            *(number(row[f"change_{x}"]) for x in ("p50", "p95", "max")),
            number(row["deviations_max"]),
        ])  # fmt: skip
    head = [
        "component", "null", "size of z", "channels", "within the bound", "same observed value",
        "change, median", "95th percentile", "largest", "largest, in standard deviations",
    ]  # fmt: skip
    text = f"M = {about['replicates']}, generated embeddings of {about['dim']} dimensions.\n\n"
    return text + markdown(head, lines)


def search(result: Mapping[str, Any]) -> str:
    """Milliseconds of a query, recall, build and memory."""
    lines = [
        [f"{row['rows']:,}", row["route"], middle(row, "query_ms"), f"{row['recall_like']:.3f}",
         f"{row['recall_text']:.3f}", number(row["build_seconds"]), f"{row['ask_peak_gb']:.2f} GB"]
        for row in result["rows"]
    ]  # fmt: skip
    head = ["prototypes", "route", "ms a query", "recall@10, patches", "texts", "build, s", "peak"]
    return markdown(head, lines)


def curves(result: Mapping[str, Any]) -> str:
    """Every curve's ends, its slope against what grows, the memory it took, and their bounds."""
    lines = []
    for row in rows(result, what="slope"):
        grows = row["curve"]
        sizes = rows(result, what="size", curve=grows, null=row["null"], parts=row["parts"])
        first, last = sizes[0], sizes[-1]
        others = [f"{last[x]:,} {x}" for x in ("channels", "patches", "draws") if x != grows]
        power = {1: "", 2: "²"}[row["power"]]
        lines.append([
            f"{first[grows]:,} to {last[grows]:,} {grows}", ", ".join(others),
            ", ".join(row["parts"]), f"`{row['null']}`",
            f"{seconds(first['seconds_p50'])} to {seconds(last['seconds_p50'])}",
            f"{middle(row, 'slope')} of {grows}{power}",
            f"{STEEPEST}, " + ("kept" if row["slope_p50"] <= STEEPEST else "**missed**"),
            *_held([x["beyond_bytes"] for x in sizes], row.get("bound_bytes")),
        ])  # fmt: skip
    head = [
        "what grows", "what stays", "scores", "null of S", "seconds", "slope", "bound of slopes",
        "memory", "bound of memory",
    ]  # fmt: skip
    return markdown(head, lines) + (
        "\nSlopes: median of all pairs of sizes in the upper range, with the 20th and 80th "
        "percentile over these pairs, not over rounds.\n"
    )


def _held(beyond: list[int | None], bound: int | None) -> list[str]:
    """The most memory of any size and its bound; unknown where any size's is."""
    known = [x for x in beyond if x is not None]
    sure = len(known) == len(beyond)
    limit = f"{bound >> 20} MiB" if bound else ""
    if bound and (max(known, default=0) > bound or sure):
        limit += ", kept" if max(known) <= bound else ", **missed**"
    return [f"{max(known) >> 20} MiB" if sure else "unknown", limit]


def kills(result: Mapping[str, Any]) -> str:
    """What twenty kills left behind."""
    end, calm = (first(result, what=name) for name in ("verdict", "undisturbed"))
    if not (end and calm):
        return f"\n*{ABSENT}: no verdict.*\n"
    head = ["kills", "in mining", "in embedding", "in scoring", "files that differ", "kills that lost more than the interval", "undisturbed run"]  # fmt: skip  # noqa: E501
    cells = [end["kills"], end["in_mine"], end["in_embed"], end["in_score"], end["different"], end["lost_too_much"]]  # fmt: skip  # noqa: E501
    return markdown(head, [[*(str(x) for x in cells), seconds(calm["seconds"])]])


LOOPS = ("forward", "whole")
"""Loops without a collector, that collectors are held against."""

GPU_HEAD = (
    "work", "by", "size", "seconds", "floor", "of the floor", "within 2×", "GB/s", "TFLOP/s",
    "peak", "floor by arithmetic", "goal",
)  # fmt: skip


def gpu(result: Result) -> str:
    """Every operation beside its floors and goals; the aims alone where nothing was measured."""
    if result is None:
        lines = [
            [name, "", "", ABSENT, *[""] * 6, *_aims(aim)]
            for name, aim in AIMS.items()
        ]  # fmt: skip
        return markdown(GPU_HEAD, lines)
    lines, settings = [], result["facts"]["settings"]
    for row in result["rows"]:
        if row.get("failed") or ("floor" not in row and row["what"] not in AIMS):
            continue
        floor, part = row.get("floor"), row.get("of_floor")
        alone = "" if row.get("flop_per_second") else " (bytes alone)"
        lines.append([
            row["what"] + (f", {row['dtype']}" if "dtype" in row else ""), row.get("backend", ""),
            _size(row, settings),
            middle(row, "seconds", seconds) if "seconds_p50" in row else seconds(taken(row)),
            seconds(floor) + alone if floor else "", f"{part:.0%}" if floor else "",
            ("yes" if part * NEAR >= 1 else "no") if floor else "",
            _rate(row, "bytes_per_second", 1e9, "copy_share"),
            _rate(row, "flop_per_second", 1e12, "product_share"),
            f"{row['peak_mib']:.0f} MiB" if row.get("peak_mib") is not None else "",
            *_aims(aim_of(row, settings)),
        ])  # fmt: skip
    wrong = [row for row in result["rows"] if row.get("failed")]
    told = "".join(f"\n**{row['what']} failed**: {row['failed']}\n" for row in wrong)
    return markdown(GPU_HEAD, lines) + told


def _size(row: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """What a row was run on."""
    if "problems" in row:
        return f"{row['problems']:,}"
    if row["what"].startswith(("run ", "mining", "top-K")):
        return f"{row.get('images', settings['images']):,} images"
    return f"{settings['channels']:,} channels"


def _aims(aim: Aim | None) -> list[str]:
    return [exactly(x) if x else "" for x in (aim or (None, None))]


def _rate(row: Mapping[str, Any], name: str, unit: float, share: str) -> str:
    return f"{number(row[name] / unit)} ({row[share]:.0%})" if row.get(name) else ""


def profiles(result: Result) -> str:
    """Where the GPU's time went, by kernel."""
    found = rows(result, what="profile")
    if not found:
        return f"\n*{ABSENT}: `python -m benchmarks.gpu --out benchmarks/results` on a GPU does.*\n"
    lines = [
        [
            row["of"],
            f"`{row['kernel']}`",
            f"{row['calls']}",
            number(row["ms"]),
            f"{row['share']:.1%}",
        ]
        for row in found
    ]
    return markdown(["of", "kernel", "calls", "ms", "share"], lines)
