"""The tables of docs/speed.md: everything the results hold that tells how fast it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.goals import AIMS, NEAR
from benchmarks.pages import ABSENT, Result, exactly, markdown, middle, number, rows, seconds, taken


def scoring(result: Mapping[str, Any]) -> str:
    """Every null, part and route; ratios with their spread."""
    lines = []
    for row in result["rows"]:
        if row["what"] == "agreement":
            continue
        what = ", ".join(row["what"]) if row["what"] in ("SQD", "S", "Q", "D") else row["what"]
        null = f"`{row['null']}`" if row["null"] != "none" else ""
        times = middle(row, "times") if "times_p50" in row else ""
        lines.append([null, what, row["route"], _how(row), middle(row, "seconds"), times])
    return markdown(["null of S", "scores", "route", "", "seconds", "psi-engine's speed-up"], lines)


def _how(row: Mapping[str, Any]) -> str:
    """Processes, threads, and the channels that a slow route is scaled from."""
    counts = {"process": row.get("processes"), "thread": row.get("threads")}
    parts = [f"{n} {name}{'es' if name[-1] == 's' else 's'}" if n != 1 else f"1 {name}"
             for name, n in counts.items() if n]  # fmt: skip
    if row.get("processes", 1) > 1 and row.get("threads"):
        parts[-1] += " each"
    if row.get("channels"):
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
        lines.append([f"`{row['null']}`", row["route"], *apart, f"{row['better']:.0%}"])
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
    """Images a second and the share of keeping; memory by channels and images."""
    lines = [
        [
            row["collector"], f"{row['side']} px, {row['images']} images",
            middle(row, "images_per_second"), f"{row['keeping_p50']:.1%}",
        ]
        for row in rows(result, what="speed")
    ]  # fmt: skip
    text = markdown(["collector", "", "images/s", "keeping, of the forward pass"], lines)
    kept = rows(result, what="memory")
    sizes = list(dict.fromkeys((row["channels"], row["images"]) for row in kept))
    lines = []
    for name in dict.fromkeys(row["collector"] for row in kept):
        own = [row for row in kept if row["collector"] == name]
        mib = {(row["channels"], row["images"]): row["buffers_mib"] for row in own}
        lines.append([name, *(f"{mib[size]:.0f} MiB" for size in sizes)])
    head = [f"{channels} channels, {images} images" for channels, images in sizes]
    return f"{text}\nWhat the process grows by:\n\n" + markdown(["collector", *head], lines)


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


def peers(result: Mapping[str, Any]) -> str:
    """The measures of the package semanticlens."""
    lines = [
        [row["measure"], row["source"], f"{row['difference']:.1e}", middle(row, "seconds"),
         middle(row, "their_seconds"), middle(row, "times")]
        for row in result["rows"]
    ]  # fmt: skip
    head = ["measure", "data", "largest difference", "seconds", "semanticlens", "faster by"]
    return markdown(head, lines)


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
    """Every curve's ends, its slope against what grows, and the memory it took."""
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
            f"{middle(row, 'slope')} of {grows}{power}", f"{row['most_beyond_bytes'] >> 20} MiB",
        ])  # fmt: skip
    head = ["what grows", "what stays", "scores", "null of S", "seconds", "slope", "memory"]
    return markdown(head, lines)


def kills(result: Mapping[str, Any]) -> str:
    """What twenty kills left behind."""
    (end,) = rows(result, what="verdict")
    (calm,) = rows(result, what="undisturbed")
    head = ["kills", "in mining", "in embedding", "in scoring", "files that differ", "kills that lost more than the interval", "undisturbed run"]  # fmt: skip  # noqa: E501
    cells = [end["kills"], end["in_mine"], end["in_embed"], end["in_score"], end["different"], end["lost_too_much"]]  # fmt: skip  # noqa: E501
    return markdown(head, [[*(str(x) for x in cells), seconds(calm["seconds"])]])


GPU_HEAD = (
    "work", "by", "problems", "seconds", "floor", "of the floor", "within 2×", "GB/s", "TFLOP/s",
    "peak", "floor by arithmetic", "goal",
)  # fmt: skip


def gpu(result: Result) -> str:
    """Every operation beside its floors and goals; the aims alone where nothing was measured."""
    if result is None:
        lines = [
            [name, "", "", ABSENT, *[""] * 6, *_aims(name)]
            for name in AIMS
        ]  # fmt: skip
        return markdown(GPU_HEAD, lines)
    lines = []
    for row in result["rows"]:
        if row.get("failed") or ("floor" not in row and row["what"] not in AIMS):
            continue
        floor, part = row.get("floor"), row.get("of_floor")
        lines.append([
            row["what"] + (f", {row['dtype']}" if "dtype" in row else ""), row.get("backend", ""),
            str(row.get("problems", "")),
            middle(row, "seconds", seconds) if "seconds_p50" in row else seconds(taken(row)),
            seconds(floor) if floor else "", f"{part:.0%}" if floor else "",
            ("yes" if part * NEAR >= 1 else "no") if floor else "",
            _rate(row, "bytes_per_second", 1e9, "copy_share"),
            _rate(row, "flop_per_second", 1e12, "product_share"),
            f"{row['peak_mib']:.0f} MiB" if row.get("peak_mib") is not None else "",
            *_aims(row["what"]),
        ])  # fmt: skip
    wrong = [row for row in result["rows"] if row.get("failed")]
    told = "".join(f"\n**{row['what']} failed**: {row['failed']}\n" for row in wrong)
    return markdown(GPU_HEAD, lines) + told


def _aims(name: str) -> list[str]:
    aim = AIMS.get(name)
    return [exactly(x) if x else "" for x in (aim or (None, None))]


def _rate(row: Mapping[str, Any], name: str, unit: float, share: str) -> str:
    return f"{number(row[name] / unit)} ({row[share]:.0%})" if row.get(name) else ""


def profiles(result: Result) -> str:
    """Where the GPU's time went, by kernel."""
    found = rows(result, what="profile")
    if not found:
        return f"\n*{ABSENT}: `python -m benchmarks.gpu` on a GPU does.*\n"
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
