"""The demo as a run: its options, and what its scores are worth."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from psi_engine.demo.assets import card, images_path
from psi_engine.demo.truth import auroc

if TYPE_CHECKING:
    from psi_engine.artifacts import Run

PLANTED = "planted"
"""Layer of the planted units."""

RUN_OPTIONS = MappingProxyType(
    {
        "model": "psi_engine.demo:classifier",
        "layers": ("stage3", "stage4", PLANTED),
        "data": str(images_path()),
        "encoder": "psi_engine.demo:encoder",
        "top_k": 50,
        "sites": "per-image",
    }
)
"""Options of the run, by the names of :meth:`psi_engine.config.RunConfig.from_options`."""


def judge(run: Run) -> dict[str, Any]:
    """Hold a finished run of the demo against what was planted.

    Parameters
    ----------
    run : Run
        A run with every planted unit scored.

    Returns
    -------
    dict
        ``auroc`` as :func:`psi_engine.demo.auroc` computes it from the run's table, and
        ``accuracy``, what the demo's networks reached on the run's images when they were made.
    """
    rows = run.channels
    planted = [position for position, layer in enumerate(rows["layer"]) if layer.as_py() == PLANTED]
    table = rows.take(planted).sort_by("channel")
    return {"auroc": auroc(table), "accuracy": card()["accuracy"]}
