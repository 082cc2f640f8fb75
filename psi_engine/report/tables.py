"""Summaries of a run, as plain data: what ``--json`` prints and the terminal draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from psi_engine.artifacts import Run
from psi_engine.errors import InputError
from psi_engine.types import COMPONENTS, VERDICTS


def summarise(run: Run, top: int = 10) -> dict[str, Any]:
    """Summarise a run: layers, the channels with the highest PSI, notes, where time went.

    Parameters
    ----------
    run : Run
    top : int
        Channels listed, best log PSI first.

    Returns
    -------
    dict
        JSON-able, with the keys ``run``, ``layers``, ``top``, ``notes``, ``skipped`` (images that
        cannot be read), ``set_aside`` (saved mining that was not taken), ``seconds``.
    """
    channels, mined = run.channels, run.manifest["stages"].get("mine", {})
    return {
        "run": str(run.path),
        "layers": [_layer(channels, name) for name in pc.unique(channels["layer"]).to_pylist()],
        "top": top_channels(run, top),
        "notes": notes(run),
        "skipped": mined.get("skipped", []),
        "set_aside": mined.get("set_aside", []),
        "seconds": seconds(run),
    }


def top_channels(run: Run, count: int) -> list[dict[str, Any]]:
    """Return the scored channels of highest log PSI, with the names of their clusters."""
    channels = run.channels
    scored = channels.filter(pc.is_valid(channels["log_psi"]))
    keys = [("log_psi", "descending"), ("layer", "ascending"), ("channel", "ascending")]
    best = scored.take(pc.sort_indices(scored, sort_keys=keys)[:count])
    wanted = ["layer", "channel", "psi", "log_psi", "s_hat", "q_hat", "d_hat"]
    wanted += ["psi_p_adj", "n_clusters", "verdict"]
    rows = best.select(wanted).to_pylist()
    for row in rows:
        row["concepts"] = [
            cluster["concepts"][0]["concept"] if cluster["concepts"] else None
            for cluster in channel_clusters(run, row["layer"], row["channel"])
        ]
    return rows


def channel_clusters(run: Run, layer: str, channel: int) -> list[dict[str, Any]]:
    """Return the rows of ``clusters.parquet`` of one channel, in cluster order."""
    table = run.clusters
    mine = pc.and_(pc.equal(table["layer"], layer), pc.equal(table["channel"], channel))
    return table.filter(mine).sort_by("cluster").to_pylist()


def find_channel(run: Run, address: str) -> dict[str, Any]:
    """Return the row of ``channels.parquet`` that an address names.

    Parameters
    ----------
    address : str
        ``layer:channel``, such as ``layer4:1680``.

    Raises
    ------
    InputError
        For an address that is not of that form, or not in the run.
    """
    layer, _, number = address.rpartition(":")
    if not layer or not number.isdigit():
        raise InputError(
            "not a channel's address",
            got=repr(address),
            expected="layer:channel, such as layer4:1680",
        )
    table = run.channels
    names = pc.unique(table["layer"]).to_pylist()
    if layer not in names:
        raise InputError("the layer is not in this run", got=layer, expected=" or ".join(names))
    of_layer = table.filter(pc.equal(table["layer"], layer))
    rows = of_layer.filter(pc.equal(of_layer["channel"], int(number))).to_pylist()
    if not rows:
        held = of_layer["channel"].to_numpy()
        raise InputError(
            f"the channel is not in this run's {layer}",
            got=number,
            expected=f"one of its {len(held)} channels between {held.min()} and {held.max()}",
        )
    return rows[0]


def channel_details(run: Run, address: str) -> dict[str, Any]:
    """Return everything the run knows of one channel.

    Parameters
    ----------
    address : str
        ``layer:channel``, such as ``layer4:1680``.

    Raises
    ------
    InputError
        As :func:`find_channel`.
    """
    scores = find_channel(run, address)
    layer, channel = scores["layer"], scores["channel"]
    sites = run.sites
    mine = pc.and_(pc.equal(sites["layer"], layer), pc.equal(sites["channel"], channel))
    top = sites.filter(pc.and_(mine, pc.equal(sites["kind"].cast(pa.string()), "top")))
    return {
        "scores": scores,
        "clusters": channel_clusters(run, layer, channel),
        "sites": top.sort_by("rank").to_pylist(),
    }


def notes(run: Run) -> list[str]:
    """Return what a reader must know: unavailable components, fallbacks, skipped images."""
    stages = run.manifest["stages"]
    said: dict[str, list[str]] = {}
    for layer, lines in stages.get("score", {}).get("notes", {}).items():
        for line in lines:
            said.setdefault(line, []).append(layer)
    result = [f"{line} ({', '.join(layers)})" for line, layers in said.items()]
    left_out = run.manifest.get("layers", {}).get("left_out", {})
    if left_out:
        shown = "; ".join(f"{name}: {reason}" for name, reason in [*left_out.items()][:3])
        result.append(f"{len(left_out)} layers found by globs left out ({shown})")
    for stage in ("mine", "embed"):
        result += stages.get(stage, {}).get("notes", [])
    skipped = stages.get("mine", {}).get("skipped", [])
    if skipped:
        shown = "; ".join(f"{item['key']}: {item['reason']}" for item in skipped[:3])
        result.append(f"{len(skipped)} unreadable images skipped ({shown})")
    return result


def seconds(run: Run) -> dict[str, float]:
    """Return where time went, by stage; stages taken from an earlier run keep their old time."""
    stages = run.manifest["stages"].items()
    spent = {name: entry["seconds"] for name, entry in stages if entry["status"] == "done"}
    if "preparation_seconds" in run.manifest:
        spent = {"prepare": run.manifest["preparation_seconds"], **spent}
    return spent


def _layer(channels: pa.Table, name: str) -> dict[str, Any]:
    table = channels.filter(pc.equal(channels["layer"], name))
    verdicts = table["verdict"].to_pylist()
    log_psi = np.array(table["log_psi"].drop_null().to_pylist())
    present = [x for x in COMPONENTS if table[f"{x}_hat"].null_count < len(table)]
    return {
        "layer": name,
        "channels": len(table),
        "components": present,
        "median_log_psi": float(np.median(log_psi)) if len(log_psi) else None,
        **{verdict: verdicts.count(verdict) for verdict in VERDICTS},
    }
