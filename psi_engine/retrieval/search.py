"""The entry: runs and a question in, neurons out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from psi_engine.artifacts import Run, open_run
from psi_engine.errors import EncoderError, InputError
from psi_engine.report.tables import find_channel
from psi_engine.retrieval.queries import image_embedding, text_direction
from psi_engine.retrieval.run_index import RunIndex, open_index
from psi_engine.types import VERDICTS

Per = Literal["cluster", "channel"]

_OF_CHANNELS = ("psi", "log_psi", "psi_p_adj", "verdict")
_OF_CLUSTERS = ("size", "silhouette", "concepts", "medoid_rank")


@dataclass(frozen=True)
class Found:
    """What a search found.

    query : what was looked for, in words. table : one row per cluster (or channel), nearest
    first: ``rank, run, layer, channel, cluster, similarity, by, size, silhouette, concepts,
    medoid_rank, psi, log_psi, psi_p_adj, verdict``. ``similarity`` is a cosine, both sides less
    their mean; ``by`` is the cluster of the example that came nearest, null without one. notes :
    indexes that were made anew.
    """

    query: str
    table: pa.Table
    notes: tuple[str, ...]

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame (pandas must be installed)."""
        return self.table.to_pandas()


@dataclass(frozen=True)
class _Question:
    """Directions to look in, in one run: unit rows; what to call each; channels to leave out."""

    directions: Tensor
    names: list[str] | None
    left_out: NDArray[np.bool_] | None


class Searcher:
    """Runs opened for many searches; :func:`search` is one.

    Parameters
    ----------
    runs : Run, path, or a sequence of them
        Made with one and the same encoder.

    Raises
    ------
    EncoderError
        The runs' encoders differ.
    RunFolderError
        As :func:`psi_engine.open_run`; or a run is unfinished or keeps no embeddings.
    """

    def __init__(self, runs: Run | str | Path | Sequence[Run | str | Path]) -> None:
        given = [runs] if isinstance(runs, Run | str | Path) else list(runs)
        if not given:
            raise InputError("no run to search", expected="one or more run folders")
        opened = [run if isinstance(run, Run) else open_run(run) for run in given]
        self._notes: list[str] = []
        self._runs = [open_index(run, self._notes.append) for run in opened]
        self._refuse_other_encoders()

    def _refuse_other_encoders(self) -> None:
        first = self._runs[0]
        others = [held for held in self._runs if held.encoder != first.encoder]
        if others:
            raise EncoderError(
                "the runs were made with different encoders: their embeddings cannot be compared",
                got="; ".join(
                    f"{held.run.path}: {held.run.manifest['encoder']['name']} {held.encoder[:16]}"
                    for held in (first, *others)
                ),
                expected="one encoder with the same weights",
                fix="search them one by one",
            )

    def search(
        self,
        text: str | None = None,
        *,
        like: str | Sequence[str] = (),
        image: str | Path | None = None,
        top: int = 10,
        layers: Sequence[str] = (),
        verdict: str | None = None,
        per: Per = "cluster",
        device: str = "auto",
    ) -> Found:
        """Find neurons; see :func:`search`."""
        like = [like] if isinstance(like, str) else list(like)
        self._check(text, like, image, top, layers, verdict, per)
        if text is not None:
            said = f"text {' '.join(text.split())!r}"
            direction = text_direction(self._runs[0].run, text, device)
            questions = [_Question(direction, None, None) for _ in self._runs]
        elif image is not None:
            said = f"image {image}"
            embedded = image_embedding(self._runs[0].run, Path(image), device)
            questions = [_Question(held.centred(embedded), None, None) for held in self._runs]
        else:
            said = f"like {', '.join(like)}"
            questions = self._examples(like)
        parts = [
            self._of_run(held, question, top, layers, verdict, per)
            for held, question in zip(self._runs, questions, strict=True)
        ]
        table = pa.concat_tables(parts)
        order = np.argsort(-table["similarity"].to_numpy(), kind="stable")[:top]
        table = table.take(order).add_column(0, "rank", pa.array(np.arange(1, 1 + len(order))))
        notes, self._notes = tuple(self._notes), []
        return Found(said, table, notes)

    def _check(
        self,
        text: str | None,
        like: Sequence[str],
        image: str | Path | None,
        top: int,
        layers: Sequence[str],
        verdict: str | None,
        per: str,
    ) -> None:
        given = [text is not None, bool(like), image is not None]
        if sum(given) != 1:
            raise InputError(
                "what is searched for is not clear" if any(given) else "nothing is searched for",
                got=", ".join(
                    name for name, x in zip(("text", "like", "image"), given, strict=True) if x
                )
                or "no query",
                expected="one of a text, --like LAYER:CHANNEL and --image FILE",
            )
        if top < 1:
            raise InputError("too few results", got=top, expected="at least 1")
        if per not in get_args(Per):
            raise InputError("unknown grouping", got=repr(per), expected="cluster or channel")
        if verdict is not None and verdict not in VERDICTS[:-1]:
            raise InputError(
                "unknown verdict", got=repr(verdict), expected=", ".join(VERDICTS[:-1])
            )
        held = list(dict.fromkeys(name for run in self._runs for name in run.layer_names))
        if unknown := [name for name in layers if name not in held]:
            raise InputError("no such layer", got=", ".join(unknown), expected=", ".join(held))

    def _examples(self, like: Sequence[str]) -> list[_Question]:
        """The clusters of the named channels as directions, and where those channels stand."""
        directions, names = [], []
        left_out = [np.zeros(len(held.rows), bool) for held in self._runs]
        for address in like:
            at, rows = self._rows_of(address)
            left_out[at][rows] = True
            held = self._runs[at]
            directions.append(held.nearest.rows[torch.from_numpy(rows)])
            names += [f"{address}/{held.rows['cluster'][int(row)].as_py()}" for row in rows]
        every = torch.cat(directions)
        return [_Question(every, names, out) for out in left_out]

    def _rows_of(self, address: str) -> tuple[int, NDArray[np.int64]]:
        """Which run an address ``[RUN/]LAYER:CHANNEL`` means, and its rows there."""
        at, inner = 0, address
        folder, _, rest = address.rpartition("/")
        for number, held in enumerate(self._runs):
            if folder and folder in (str(held.run.path), held.run.path.name):
                at, inner = number, rest
                break
        held = self._runs[at]
        row = find_channel(held.run, inner)
        mine = np.asarray(pa.compute.equal(held.rows["layer"], row["layer"]))
        mine &= held.rows["channel"].to_numpy() == row["channel"]
        rows = np.flatnonzero(mine)
        if not len(rows):
            raise InputError(
                f"{address} has no clusters to search like",
                got=f"{row['status']}: {row['reason']}",
                expected="a scored channel",
            )
        return at, rows

    def _of_run(
        self,
        held: RunIndex,
        question: _Question,
        top: int,
        layers: Sequence[str],
        verdict: str | None,
        per: Per,
    ) -> pa.Table:
        allowed = np.ones(len(held.rows), bool)
        if layers:
            allowed &= np.asarray(pa.compute.is_in(held.rows["layer"], pa.array(layers)))
        if verdict is not None:
            fits = np.asarray(pa.compute.equal(held.channels["verdict"], verdict))
            allowed &= fits[held.channel_rows]
        if question.left_out is not None:
            allowed &= ~question.left_out
        each = 1
        if per == "channel":  # so many clusters may belong to one channel
            each = int(np.bincount(held.channel_rows).max(initial=1))
        rows, similarity, by = _best(held, question, top * each, allowed)
        if per == "channel":
            _, first = np.unique(held.channel_rows[rows], return_index=True)
            first.sort()
            rows, similarity, by = rows[first], similarity[first], by[first]
        return _table(held, question, rows[:top], similarity[:top], by[:top])


def _best(
    held: RunIndex, question: _Question, count: int, allowed: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Rows nearest to any of the directions, their similarities, and which direction it was."""
    everything = bool(allowed.all())
    rows, similarity = held.nearest.nearest(
        question.directions, count, None if everything else allowed
    )
    by = np.broadcast_to(np.arange(len(rows))[:, None], rows.shape)[rows >= 0]
    rows, similarity = rows[rows >= 0], similarity[rows >= 0]
    order = np.lexsort((by, rows, -similarity))
    rows, similarity, by = rows[order], similarity[order], by[order]
    _, first = np.unique(rows, return_index=True)
    first.sort()
    return rows[first], similarity[first], by[first]


def _table(
    held: RunIndex,
    question: _Question,
    rows: NDArray[np.int64],
    similarity: NDArray[np.float32],
    by: NDArray[np.int64],
) -> pa.Table:
    names = question.names
    found = held.rows.take(rows)
    columns = {
        "run": pa.array([str(held.run.path)] * len(rows), pa.string()),
        **{name: found[name] for name in ("layer", "channel", "cluster")},
        "similarity": pa.array(similarity.astype(np.float64)),
        "by": pa.array([None if names is None else names[i] for i in by], pa.string()),
    }
    clusters = held.clusters.take(held.cluster_rows[rows])
    channels = held.channels.take(held.channel_rows[rows])
    columns |= {name: clusters[name] for name in _OF_CLUSTERS}
    columns |= {name: channels[name] for name in _OF_CHANNELS}
    return pa.table(columns)


def search(
    runs: Run | str | Path | Sequence[Run | str | Path],
    text: str | None = None,
    *,
    like: str | Sequence[str] = (),
    image: str | Path | None = None,
    top: int = 10,
    layers: Sequence[str] = (),
    verdict: str | None = None,
    per: Per = "cluster",
    device: str = "auto",
) -> Found:
    """Find the neurons whose clusters lie nearest to a text, an image or other neurons.

    Parameters
    ----------
    runs : Run, path, or a sequence of them
        Made with one encoder. Their index is made at the first search and kept in the folder.
    text : str, optional
        See :func:`psi_engine.retrieval.queries.text_direction`.
    like : str or sequence of str, optional
        ``LAYER:CHANNEL``; of another run than the first ``RUN/LAYER:CHANNEL``. Every cluster of
        these channels is looked for; the channels themselves are left out.
    image : path, optional
        Embedded whole by the run's encoder. One of text, like and image is given.
    top : int
        Results.
    layers : sequence of str
        Search only these; none = all.
    verdict : {"polysemantic", "monosemantic", "random-like"}, optional
        Search only channels found to be that.
    per : {"cluster", "channel"}
        ``channel``: each channel once, by its nearest cluster.
    device : str
        Of the encoder.

    Returns
    -------
    Found

    Raises
    ------
    InputError
        No query or several, an empty one, an unknown name, channel, layer or verdict, or an
        image that cannot be read.
    EncoderError
        The runs' encoders differ, or theirs has no text side.
    RunFolderError
        A run is unfinished or keeps no embeddings.

    Notes
    -----
    ``similarity = cos(p − c, q − m)`` for a prototype p (:func:`psi_engine.prototypes.prototypes`)
    and a query q; c is the mean of the run's pool patches, m that of the vocabulary's concepts
    for a text, c for an image, and examples are prototypes themselves.
    """
    return Searcher(runs).search(
        text, like=like, image=image, top=top, layers=layers, verdict=verdict, per=per,
        device=device,
    )  # fmt: skip
