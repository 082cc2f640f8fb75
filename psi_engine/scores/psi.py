"""PSI: the product of the calibrated components, and the table of results it stands in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from psi_engine.config import ScoreConfig
from psi_engine.statistics import (
    QUANTILES,
    NullSummary,
    adjust,
    calibrate,
    intersection_union,
    verdicts,
)
from psi_engine.types import NullDraws, Scores

_QUANTILES = "_null_quantiles"
_PER_ROW = ("n_patches", "n_clusters", "assignments", "silhouettes")


class ScoreTable:
    """Columns of a call, filled batch by batch; CPU, NaN where nothing was put."""

    def __init__(self, channels: int, patches: int, available: tuple[str, ...]) -> None:
        self.available = available
        self.status = ["ok"] * channels
        self.reason = [""] * channels
        self.n_patches = torch.zeros(channels, dtype=torch.int64)
        self.n_clusters = torch.zeros(channels, dtype=torch.int64)
        self.assignments = torch.full((channels, patches), -1, dtype=torch.int64)
        self.silhouettes = torch.full((channels, patches), torch.nan, dtype=torch.float64)
        names = ["psi", "log_psi", "psi_low", "psi_high", "psi_p", "clarity", "clarity_p"]
        for component in available:
            names += [
                component + suffix for suffix in ("", "_null_mean", "_null_std", "_z", "_p", "_hat")
            ]
        self._columns = {
            name: torch.full((channels,), torch.nan, dtype=torch.float64) for name in names
        } | {
            component + _QUANTILES: torch.full((channels, QUANTILES), torch.nan)
            for component in available
        }

    def put(self, name: str, rows: Tensor, values: Tensor) -> None:
        """Set a column at some rows."""
        self._columns[name][rows.cpu()] = values.cpu()

    def rows(self, part: slice) -> dict[str, Any]:
        """What was put at some consecutive rows, for :meth:`take`."""
        tensors = {name: getattr(self, name)[part].clone() for name in _PER_ROW}
        columns = {name: values[part].clone() for name, values in self._columns.items()}
        words = {"status": self.status[part], "reason": self.reason[part]}
        return {"tensors": tensors, "columns": columns, "words": words}

    def take(self, part: slice, rows: dict[str, Any]) -> None:
        """Put what another table's :meth:`rows` gave at these rows."""
        for name, values in rows["tensors"].items():
            getattr(self, name)[part] = values
        for name, values in rows["columns"].items():
            self._columns[name][part] = values
        self.status[part], self.reason[part] = rows["words"]["status"], rows["words"]["reason"]

    def fail(self, rows: Tensor, reason: str) -> None:
        """Empty some rows, so that they count in no adjustment, and say why."""
        for values in (*self._columns.values(), self.silhouettes):
            values[rows] = torch.nan
        self.n_clusters[rows] = 0
        self.assignments[rows] = -1
        for row in rows.tolist():
            self.status[row], self.reason[row] = "failed", reason

    def put_components(
        self, rows: Tensor, observed: dict[str, Tensor], nulls: dict[str, NullSummary]
    ) -> Tensor:
        """Set every component's columns and PSI's at some rows; PSI comes back.

        PSI = Π x̂, log PSI = Σ log σ(z): a product of small numbers would underflow, a sum of
        logarithms does not. PSI's p is the largest of the components'.
        """
        psi = torch.ones_like(observed["s"])
        log_psi = torch.zeros_like(psi)
        for component in self.available:
            null = nulls[component]
            scores = calibrate(observed[component], null.mean, null.std)
            psi, log_psi = psi * scores.hat, log_psi + scores.log_hat
            self.put(component, rows, observed[component])
            for suffix, values in (
                ("_null_mean", null.mean),
                ("_null_std", null.std),
                (_QUANTILES, null.quantiles),
                ("_z", scores.z),
                ("_p", null.p),
                ("_hat", scores.hat),
            ):
                self.put(component + suffix, rows, values)
        self.put("psi", rows, psi)
        self.put("log_psi", rows, log_psi)
        self.put("psi_p", rows, intersection_union([nulls[x].p for x in self.available]))
        return psi

    def finish(
        self,
        config: ScoreConfig,
        nulls: Mapping[str, NullDraws],
        centre: Tensor | None,
        notes: tuple[str, ...],
    ) -> Scores:
        """Adjust the p-values over the call and decide the verdicts."""
        columns = dict(self._columns)
        for component in self.available:
            columns[component + "_p_adj"] = adjust(columns[component + "_p"], config.adjust)
        psi_p_adj = adjust(columns["psi_p"], config.adjust)
        clarity_p_adj = adjust(columns.pop("clarity_p"), config.adjust)
        return Scores(
            **columns,
            psi_p_adj=psi_p_adj,
            clarity_p_adj=clarity_p_adj,
            n_patches=self.n_patches,
            n_clusters=self.n_clusters,
            assignments=self.assignments,
            silhouettes=self.silhouettes,
            verdict=verdicts(psi_p_adj, clarity_p_adj, config.alpha),
            status=tuple(self.status),
            reason=tuple(self.reason),
            centre=None if centre is None else centre.cpu(),
            nulls={component: nulls[component] for component in self.available},
            notes=notes,
        )
