"""The report page of a run: find what it is made of, and write it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from psi_engine.artifacts import Run, open_run
from psi_engine.data import needs_download
from psi_engine.errors import InputError, PsiEngineError
from psi_engine.inputs import config_of, reopen_images
from psi_engine.report.page import MAX_SIZE, Pictures, Report, Sources, held_report, write_report
from psi_engine.report.plots.run import draw_run
from psi_engine.stored import StoredLayer, StoredRun, load_stored
from psi_engine.types import Progress

FOLDER = "report"
"""Of the report, in the run folder."""

FIGURES = "figures"
"""Of the figures, in the run folder."""

_BYTES = 1 << 26
# Embeddings gathered together while they are averaged.


def report(
    path: str | Path,
    out: Path | None = None,
    *,
    max_size: int = MAX_SIZE,
    progress: Progress | None = None,
) -> Report:
    """Write a run's report: a folder whose ``index.html`` opens from disk, without a network.

    Beside it ``RUN/figures`` gets the run's figures for papers, drawn from the same tables. Nothing
    is scored again. A report that shows what the run holds now is kept as it is; one of
    older scores is replaced.

    Parameters
    ----------
    path : str or Path
        Finished run folder.
    out : Path, optional
        Folder of the report; None = ``RUN/report``.
    max_size : int
        Megabytes it may take. Host images are left out first, then patches.
    progress : callable, optional
        ``progress(what, done, total)``.

    Returns
    -------
    Report
        With notes on what could not be shown: images that are gone, a run without images.

    Raises
    ------
    RunFolderError
        Not a run, an unfinished one, or ``out`` holds something else.
    InputError
        ``max_size`` is below 1.
    """
    if max_size < 1:
        raise InputError("--max-size is too small", got=max_size, expected="at least 1 (megabyte)")
    run = open_run(path)
    run.channels  # noqa: B018  (an unfinished run is refused before any work)
    out = run.path / FOLDER if out is None else out
    held = held_report(run, out, max_size)
    if held is not None:
        return held
    draw_run(run, run.path / FIGURES)
    return write_report(run, _sources(run, progress), out, max_size=max_size, progress=progress)


def _sources(run: Run, progress: Progress | None) -> Sources:
    if "file" in run.manifest["identity"]:
        return Sources(
            no_pictures="the embeddings came from a file, without images",
            no_map="a scored file keeps no embeddings",
        )
    pictures, no_pictures = _pictures(run, progress)
    try:
        stored = load_stored(run.path)
    except PsiEngineError as error:
        return Sources(pictures, no_pictures, None, str(error))
    return Sources(pictures, no_pictures, _vectors(run, stored), "", stored.class_names)


def _pictures(run: Run, progress: Progress | None) -> tuple[Pictures | None, str]:
    """The run's images, or why they cannot be had; nothing is downloaded for a report."""
    config = config_of(run)
    if needs_download(config.data):
        return None, f"{config.data} is not on this machine any more"
    try:
        inputs = reopen_images(run, progress)
    except PsiEngineError as error:
        return None, str(error)
    return Pictures(
        inputs.source, inputs.model.preprocess, config.mine.batch_size, config.workers
    ), ""


def _vectors(run: Run, stored: StoredRun) -> NDArray[np.float32]:
    """Mean embedding of each channel's patches, in the order of ``channels.parquet``."""
    table = run.channels.select(["layer", "channel"])
    found = {
        (name, channel): vector
        for name, layer in stored.layers.items()
        for channel, vector in zip(layer.sites.channels.tolist(), channel_means(layer), strict=True)
    }
    keys = zip(table["layer"].to_pylist(), table["channel"].to_pylist(), strict=True)
    return np.stack([found[key] for key in keys])


def channel_means(layer: StoredLayer) -> NDArray[np.float32]:
    """Mean embedding of the patches of each channel, of length one.

    Returns
    -------
    ndarray, float32 (channels, dim)
        NaN for a channel without patches.
    """
    rows, mask = layer.rows, layer.mask
    step = max(1, _BYTES // (4 * rows.shape[1] * layer.all_embeddings.shape[1]))
    parts = []
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        chosen = layer.all_embeddings[rows[part].clamp(min=0)] * mask[part, :, None]
        sums = chosen.double().sum(1)
        parts.append((sums / torch.linalg.norm(sums, dim=1, keepdim=True)).float())
    return torch.cat(parts).numpy()
