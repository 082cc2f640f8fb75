"""What swaps and validation found, for the page: headlines, notes, figures, pooled tests."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from psi_engine.artifacts import Run
from psi_engine.report.page.details import swap_rows
from psi_engine.report.parts import finished_parts

FIGURES = "figures"

_LARGEST_SVG = 400_000
# Past this a figure holds pictures, which PNG packs better.


def pooled_swaps(table: pa.Table | None) -> list[dict[str, Any]]:
    """The tests pooled over a layer's channels, with ``layer``; none without swaps."""
    if table is None:
        return []
    own = table.filter(pc.equal(table["level"], "layer"))
    layers = own["layer"].to_pylist()
    return [{"layer": layer} | row for layer, row in zip(layers, swap_rows(own), strict=True)]


def validation_parts(run: Run, folder: Path) -> list[dict[str, Any]]:
    """The parts of the run's validation; copies their figures into the report.

    Parameters
    ----------
    run : Run
    folder : Path
        Of the report that is being made.

    Returns
    -------
    list of dict
        ``part``, ``current`` (made from these scores), ``headline``, ``notes`` and ``figures``
        (``file``, ``width``, ``height``). SVG where it is small, else PNG.
    """
    if "key" not in run.manifest["stages"]["score"]:
        return []
    return [
        {
            "part": record["part"],
            "current": record["current"],
            "headline": record["headline"],
            "notes": record["notes"],
            "figures": [_copied(run.path / stem, folder) for stem in _stems(run, record)],
        }
        for record in finished_parts(run)
    ]


def _stems(run: Run, record: dict[str, Any]) -> list[str]:
    """Figures of a part without their endings, those of single channels left out."""
    stems = dict.fromkeys(name.rpartition(".")[0] for name in record["figures"])
    main = [stem for stem in stems if stem.count("/") == 1]
    return [stem for stem in main if (run.path / f"{stem}.png").is_file()]


def _copied(stem: Path, folder: Path) -> dict[str, Any]:
    svg, png = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
    small = svg.is_file() and svg.stat().st_size <= _LARGEST_SVG
    source = svg if small else png
    width, height = _svg_size(svg) if small else _png_size(png)
    (folder / FIGURES).mkdir(exist_ok=True)
    shutil.copyfile(source, folder / FIGURES / source.name)
    return {"file": f"{FIGURES}/{source.name}", "width": width, "height": height}


def _svg_size(path: Path) -> tuple[int, int]:
    """Width and height in CSS pixels, from the view box, which matplotlib gives in points."""
    with path.open(encoding="utf-8") as file:
        found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', file.read(4000))
    if found is None:
        return 800, 500
    return tuple(round(float(x) * 4 / 3) for x in found.groups())  # type: ignore[return-value]


def _png_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return round(picture.width * 0.6), round(picture.height * 0.6)
