"""The parts of ``psi-engine validate RUN``: one file each, listed here in the order they run.

To add a part:

1. ``psi_engine/validation/parts/NAME.py`` (``-`` of the name as ``_``) with::

       PART = Part("my-part", compute, draw, needs=needs, options=("bootstrap", "seed"))

   ``compute(context) -> Result`` makes the tables from ``context.stored`` (the run),
   ``context.options`` and ``context.progress``, and may keep files of its own, so that it can
   resume, under ``context.folder``. ``draw(tables, stem) -> list[Path]`` makes the figures from
   the tables alone, read back from the folder. ``needs(context) -> str | None`` says, before any
   work, why the part cannot be had on this run; None where it can. ``options`` names the fields
   of :class:`~psi_engine.validation.part.Options` that the tables depend on: a change of one of
   them, of ``version`` or of the run's scores computes the part again, nothing else does.
2. the drawing in ``psi_engine/report/plots/NAME.py``, with ``figure``, ``panels`` and ``save`` of
   :mod:`psi_engine.report.plots.style`.
3. its name in :data:`NAMES` below; new settings in ``Options`` and in ``psi-engine validate``.
4. tests in ``tests/validation/parts/`` and ``tests/report/plots/``.

The framework (:mod:`psi_engine.validation.run_parts`) writes each table of the result to
``RUN/validation/PART-TABLE.parquet`` and ``.csv``, the figures to ``RUN/figures/PART.png``,
``.svg`` and ``.pdf``, and what was done to ``RUN/validation/PART.json``.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module

from psi_engine.errors import InputError
from psi_engine.validation.part import Part

NAMES: tuple[str, ...] = (
    "null-baseline",
    "depth",
    "k-hat",
    "peers",
    "causal",
    "encoder",
    "examples",
    "stability",
    "breadth",
    "ground-truth",
)
"""Every part, in the order they run."""


def load(name: str) -> Part:
    """Import a part by its name.

    Raises
    ------
    InputError
        For a name nobody knows, with the close ones.
    """
    if name not in NAMES:
        close = get_close_matches(name, NAMES, n=3) or NAMES
        raise InputError(
            "unknown part of the validation", got=repr(name), expected="one of " + ", ".join(close)
        )
    part: Part = import_module(f"{__name__}.{name.replace('-', '_')}").PART
    return part
