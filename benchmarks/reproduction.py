"""The paper's tables beside ours: from validated run folders into docs/reproduction.md.

    psi-engine run … --out RUN;  psi-engine swap RUN;  psi-engine validate RUN
    python -m benchmarks.reproduction RUN --paper PAPER_RUN [--encoders ENCODER_RUN]

RUN was scored with the calibrated preset, PAPER_RUN with ``--preset paper``; ENCODER_RUN holds the
part ``encoder`` (RUN itself where nothing else is given). Writes the tables that the page is made
of to ``benchmarks/results/reproduction/`` and rewrites what stands between the marks of the page.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from benchmarks.harness import RESULTS
from benchmarks.pages import filled, markdown
from psi_engine.artifacts import Run, open_run, write_json
from psi_engine.report.parts import read_record, read_tables

PAGE = Path("docs/reproduction.md")
KEPT = {
    "null-baseline": ("areas",),
    "depth": ("layers", "pairs"),
    "k-hat": ("counts", "ranges"),
    "stability": ("correlations", "reasons"),
    "breadth": ("agreement",),
    "peers": ("correlations",),
    "encoder": ("agreement", "choices"),
}
"""Tables that are small enough for the repository, by part."""

PAPER_AREAS = {
    ("PSI", "layer4"): 0.987, ("PSI", "layer3"): 0.940, ("S", "layer4"): 1.000,
    ("S", "layer3"): 0.960, ("Q", "layer4"): 0.934, ("Q", "layer3"): 0.890,
    ("D", "layer4"): 0.874, ("D", "layer3"): 0.820,
}  # fmt: skip
"""Table 1 of the paper."""

PAPER_K = {"10": 0.21, "40": 0.42}
"""Spearman against K = 50 (appendix, Figure 4); the values between are in the figure only."""

_PRESETS = {
    "paper": {"PSI": "paper", "S": "rotation", "Q": "permutation", "D": "text-shuffle"},
    "calibrated": {"PSI": "calibrated", "S": "pool", "Q": "permutation", "D": "text-rotation"},
}

Rows = list[dict[str, Any]]


class Source:
    """A validated run: its manifest and the tables of its parts."""

    def __init__(self, path: Path) -> None:
        self.run: Run = open_run(path)
        self.records = {
            name: record for name in KEPT if (record := read_record(path, name)) is not None
        }

    def rows(self, part: str, table: str) -> Rows:
        """Rows of a part's table; none where the part was not made."""
        if part not in self.records:
            return []
        return read_tables(self.run.path, self.records[part])[table].to_pylist()

    def swaps(self) -> Rows:
        """Pooled tests of the swaps; none where nothing was swapped."""
        path = self.run.path / "causal_summary.parquet"
        if not path.exists():
            return []
        table = pq.read_table(path)
        return table.filter(pc.not_equal(table["level"], "channel")).to_pylist()

    def facts(self) -> dict[str, Any]:
        """What was run, without the folders of this machine."""
        manifest = self.run.manifest
        return {
            "config": _nameless(manifest["config"]),
            "identity": manifest["identity"],
            "fingerprints": manifest["fingerprints"],
            "versions": manifest["versions"],
            "device": manifest["device"],
            "stages": {
                name: {"seconds": stage.get("seconds")} | _some(stage, "images", "crops", "fields")
                for name, stage in manifest["stages"].items()
            },
            "parts": {
                name: _nameless(_some(record, "options", "seconds", "notes", "headline"))
                for name, record in self.records.items()
            },
        }

    def keep(self, out: Path) -> None:
        """Write the small tables and the facts into a folder."""
        out.mkdir(parents=True, exist_ok=True)
        for part, record in self.records.items():
            tables = read_tables(self.run.path, record)
            for name in KEPT[part]:
                pyarrow.csv.write_csv(tables[name], out / f"{part}-{name}.csv")
        if swaps := self.swaps():
            pyarrow.csv.write_csv(pa.Table.from_pylist(swaps), out / "causal-pooled.csv")
        write_json(out / "facts.json", self.facts())


def _nameless(value: Any) -> Any:
    """The value with every absolute path cut to its last name."""
    if isinstance(value, dict):
        return {name: _nameless(x) for name, x in value.items()}
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def _some(entry: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: entry[name] for name in names if name in entry}


def _area(row: dict[str, Any] | None, name: str = "auroc") -> str:
    if row is None or row[name] is None:
        return "–"
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


def _rho(row: dict[str, Any] | None) -> str:
    if row is None or row["spearman"] is None:
        return "–"
    return f"{row['spearman']:.2f} [{row['spearman_low']:.2f}, {row['spearman_high']:.2f}]"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"


def _find(rows: Rows, **wanted: Any) -> dict[str, Any] | None:
    return next((row for row in rows if all(row[k] == x for k, x in wanted.items())), None)


def areas(main: Source, paper: Source) -> str:
    """Table 1: real channels against random sets."""
    of = {"paper": paper.rows("null-baseline", "areas"), "calibrated": main.rows("null-baseline", "areas")}  # fmt: skip  # noqa: E501
    rows = []
    for (measure, layer), theirs in PAPER_AREAS.items():
        cells = [
            _area(_find(of[name], layer=layer, measure=measure, null=nulls[measure]))
            for name, nulls in _PRESETS.items()
        ]
        rows.append([f"{measure}, {layer}", f"{theirs:.3f}", *cells])
    return markdown(["", "the paper", "paper preset", "calibrated preset"], rows)


def families(main: Source) -> str:
    """The components under every null."""
    found = main.rows("null-baseline", "areas")
    layers = list(dict.fromkeys(row["layer"] for row in found))
    kinds = sorted({(row["measure"], row["null"]) for row in found}, key=_family_order)
    rows = []
    for measure, null in kinds:
        cells = []
        for layer in layers:
            row = _find(found, layer=layer, measure=measure, null=null)
            called = (
                "" if row is None or row["called_null"] is None else f"{row['called_null']:.0%}"
            )
            real = "" if row is None or row["called_real"] is None else f"{row['called_real']:.0%}"
            cells += [_area(row), real, called]
        rows.append([f"{measure} `{null}`", *cells])
    header = [""]
    for layer in layers:
        header += [f"{layer}: AUROC", "channels called", "random called"]
    return markdown(header, rows)


def _family_order(kind: tuple[str, str]) -> tuple[int, bool, str]:
    return ["PSI", "S", "Q", "D"].index(kind[0]), kind[1] != "raw", kind[1]


def depth(main: Source, paper: Source) -> str:
    """Log PSI by layer and the tests between layers."""
    rows = []
    for name, source in (("calibrated", main), ("paper", paper)):
        layers = {
            r["layer"]: r for r in source.rows("depth", "layers") if r["measure"] == "log_psi"
        }
        for pair in source.rows("depth", "pairs"):
            if pair["measure"] != "log_psi":
                continue
            cells = [
                "{median:.2f} ({lower_quartile:.2f} to {upper_quartile:.2f})".format(**layers[x])
                for x in (pair["earlier"], pair["later"])
            ]
            above = "yes" if pair["above_upper_quartile"] else "no"
            tests = [_p(pair["ks_p_adj"]), _p(pair["mann_whitney_p_adj"])]
            rows.append([f"{name}, {pair['later']} / {pair['earlier']}", *cells, above, _area(pair), *tests])  # fmt: skip  # noqa: E501
    header = ["", "earlier: median (quartiles)", "later", "later median above earlier's upper quartile", "AUROC", "KS p", "Mann–Whitney p"]  # fmt: skip  # noqa: E501
    return markdown(header, rows)


def causal(main: Source) -> str:
    """Aligned against each control, pooled over channels, with hard edges."""
    rows = []
    for row in main.swaps():
        if row["blend"] != "hard":
            continue
        where = "all layers" if row["layer"] is None else row["layer"]
        cells = [
            f"{row['mean_aligned']:+.3f}",
            f"{row['mean_control']:+.3f}",
            f"{row['mean_difference']:+.3f} "
            f"[{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]",
            "–" if row["dz"] is None else f"{row['dz']:+.2f}",
            _p(row["t_p_holm"]),
            _p(row["wilcoxon_p_holm"]),
        ]
        rows.append([f"{where}, {row['hosts']}", row["control"], str(row["n"]), *cells])  # fmt: skip  # noqa: E501
    header = ["channels, hosts", "control", "n", "aligned", "control's", "difference", "dz", "t p", "Wilcoxon p"]  # fmt: skip  # noqa: E501
    return markdown(header, rows)


def stability(main: Source) -> str:
    """Spearman of log PSI between settings."""
    found = [r for r in main.rows("stability", "correlations") if r["measure"] == "log_psi"]
    layers = list(dict.fromkeys(row["layer"] for row in found))
    pairs = list(dict.fromkeys((r["axis"], r["one"], r["other"]) for r in found))
    rows = []
    for axis, one, other in pairs:
        if axis == "K" and other != "50":
            continue
        cells = [_rho(_find(found, layer=x, axis=axis, one=one, other=other)) for x in layers]
        theirs = f"{PAPER_K[one]:.2f}" if axis == "K" and one in PAPER_K else ""
        rows.append([f"{axis}: {one} / {other}", *cells, theirs])
    return markdown(["", *layers, "the paper"], rows)


def k_hat(main: Source) -> str:
    """Share of channels by k̂, real and random."""
    found = [r for r in main.rows("k-hat", "counts") if (r["k_min"], r["k_max"]) == (2, 5)]
    kinds = list(dict.fromkeys((r["layer"], r["kind"]) for r in found))
    rows = [
        [f"{layer}, {kind}"]
        + [f"{r['share']:.0%}" for r in found if (r["layer"], r["kind"]) == (layer, kind)]
        for layer, kind in kinds
    ]
    return markdown(["", "k̂ = 2", "3", "4", "5"], rows)


def peers(main: Source) -> str:
    """Rank agreement of PSI with the peers' measures."""
    found = [r for r in main.rows("peers", "correlations") if r["measure"] == "log_psi"]
    layers = list(dict.fromkeys(row["layer"] for row in found))
    rows = [
        [f"`{peer}`", *(_rho(_find(found, layer=layer, peer=peer)) for layer in layers)]
        for peer in dict.fromkeys(row["peer"] for row in found)
    ]
    return markdown(["", *layers], rows)


def encoders(source: Source) -> str:
    """D and PSI under two encoders."""
    found = source.rows("encoder", "agreement")
    layers = list(dict.fromkeys(row["layer"] for row in found))
    rows = [
        [f"`{measure}`", *(_rho(_find(found, layer=layer, measure=measure)) for layer in layers)]
        for measure in dict.fromkeys(row["measure"] for row in found)
    ]
    return markdown(["", *layers], rows)


def main() -> None:
    """Write the small tables and the page's tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--paper", type=Path, required=True)
    parser.add_argument("--encoders", type=Path)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--out", type=Path, default=RESULTS / "reproduction")
    arguments = parser.parse_args()
    ours, paper = Source(arguments.run), Source(arguments.paper)
    two = Source(arguments.encoders or arguments.run)
    folders = {"calibrated": ours, "paper": paper} | (
        {"encoders": two} if arguments.encoders else {}
    )
    for name, source in folders.items():
        source.keep(arguments.out / name)
    made: dict[str, Callable[[], str]] = {
        "areas": lambda: areas(ours, paper),
        "families": lambda: families(ours),
        "depth": lambda: depth(ours, paper),
        "causal": lambda: causal(ours),
        "stability": lambda: stability(ours),
        "k-hat": lambda: k_hat(ours),
        "peers": lambda: peers(ours),
        "encoders": lambda: encoders(two),
    }
    text = arguments.page.read_text(encoding="utf-8")
    arguments.page.write_text(filled(text, made), encoding="utf-8")


if __name__ == "__main__":
    main()
