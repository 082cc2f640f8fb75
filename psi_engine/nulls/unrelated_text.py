"""D-null ``unrelated-text``: the same clusters named with text that has nothing to do with them.

Each replicate draws as many concepts as the vocabulary holds from a bank of unrelated domains,
with all their templates. The draws are shared by the channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psi_engine.config import DMeasure
from psi_engine.nulls.base import Batch, Call
from psi_engine.nulls.draws import without_replacement
from psi_engine.ops.exact import cosines
from psi_engine.ops.naming import apart, mean_over
from psi_engine.scores.distinctness import named_rows
from psi_engine.statistics import NullSummary, summarise

_FIRST_LOOK = 32
# Best texts per cluster that are looked at before the rest: with a third of the bank drawn, two
# of them are nearly always among these.


def unrelated_text(batch: Batch, call: Call) -> NullSummary:
    """Compare D with D against random parts of the unrelated bank.

    Notes
    -----
    Exact for a vocabulary that is itself a random part of the bank. One that only has the bank's
    law differs more from the draws than they from each other: with a bank of b times the
    vocabulary, z spreads by up to √((b + 1)/(b − 1)) instead of 1. On Gaussian texts 14 % are
    rejected at 5 % for b = 3 and 6 to 8 % for b = 10 (``contrast``; ``gap`` 7 to 11 % and 4 to
    5 %).
    """
    if batch.d is None or call.unrelated is None:
        raise ValueError("unrelated-text needs D and a bank")
    chosen = call.once("unrelated-text", lambda: _drawn_texts(call))
    k = int(batch.n_clusters.max())
    kind = call.config.d_measure
    named = named_rows(batch.units, batch.assignments, k, kind, call.centre)
    rows = named.rows
    bank = call.unrelated.rows
    draws = []
    each = k * (len(bank) * 40 + call.config.replicates * (64 + 32 * k))
    for part in torch.arange(len(rows), device=call.device).split(
        min(call.chunk(each), 8 * call.near_chunk(each))
    ):
        found = cosines(rows[part], bank)
        draws.append(restricted_measure(found, named.weights[part], chosen, kind, call))
    return summarise(batch.d, named.scale * torch.cat(draws))


def _drawn_texts(call: Call) -> Tensor:
    """Which bank rows each replicate holds: bool (replicates, texts)."""
    bank, texts = call.unrelated, call.texts
    if bank is None or texts is None:
        raise ValueError("unrelated-text needs a bank and a vocabulary")
    size, need = len(bank.concept_ids), len(texts.concept_ids)
    concepts = without_replacement(call.keys("null.d.unrelated", call.replicates()), size, need)
    drawn = torch.zeros(len(concepts), size, dtype=torch.bool, device=call.device)
    return drawn.scatter_(1, concepts, True)[:, bank.concept]


def restricted_measure(
    similarities: Tensor, weights: Tensor, chosen: Tensor, kind: DMeasure, call: Call
) -> Tensor:
    """D of each channel when only some texts may be used.

    Parameters
    ----------
    similarities : Tensor, float32 (n, k, texts)
    weights : Tensor, float64 (n, k)
        See :func:`psi_engine.ops.naming.measure`.
    chosen : Tensor, bool (replicates, texts)
    kind : {"gap", "contrast", "margin"}

    Returns
    -------
    Tensor
        float64 (n, replicates).
    """
    n, k, _ = similarities.shape
    flat = similarities.flatten(0, 1)
    first, second = _best_two(flat, chosen, call)  # each int64 (n·k, replicates)
    best = flat.gather(1, first).unflatten(0, (n, k)).movedim(2, 1)  # (n, replicates, k)
    here = weights[:, None, :].expand_as(best)
    if kind == "gap":
        runner = flat.gather(1, second).unflatten(0, (n, k)).movedim(2, 1)
        return mean_over(best.to(torch.float64) - runner, here)
    own = first.unflatten(0, (n, k)).movedim(2, 1)  # (n, replicates, k)
    # to_own[i, r, l, j] = similarity of cluster l to the best text of cluster j in replicate r
    wide = own.flatten(1)[:, None, :].expand(n, k, own.shape[1] * k)
    to_own = similarities.gather(2, wide).unflatten(2, (own.shape[1], k)).movedim(2, 1)
    return apart(best, to_own, here, kind)


def _best_two(rows: Tensor, chosen: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Positions of the best and second chosen text of each row: int64 (rows, replicates) twice.

    Notes
    -----
    The best few texts of a row are sorted once; each replicate takes the first two of them that
    it drew, and only a replicate that drew fewer looks at the whole row.
    """
    count, texts = rows.shape
    replicates = len(chosen)
    look = min(_FIRST_LOOK, texts)
    # value and position in one exact float64 key, so that equal values fall in text order
    position = torch.arange(texts, device=rows.device)
    order = (rows.to(torch.float64) * 2.0**48 - position).topk(look, dim=1).indices
    result = torch.empty(2, count, replicates, dtype=torch.int64, device=rows.device)
    place = torch.arange(look, dtype=torch.int16, device=rows.device)
    step = call.near_chunk(count * look * 8)
    for start in range(0, replicates, step):
        part = slice(start, start + step)
        drawn = chosen[part][:, order].movedim(0, 1)  # (rows, replicates, look)
        at = torch.where(drawn, place, look)
        one = at.amin(-1)
        two = torch.where(at == one[..., None], look, at).amin(-1)
        for which, hit in enumerate((one, two)):
            result[which, :, part] = order.gather(1, hit.long().clamp(max=look - 1))
        missing = torch.nonzero(two == look)
        for some in missing.split(call.chunk(texts * 24)):
            row, replicate = some.unbind(1)
            allowed = torch.where(chosen[replicate + start], rows[row], -torch.inf)
            found = (allowed.to(torch.float64) * 2.0**48 - position).topk(2, dim=1).indices
            result[:, row, replicate + start] = found.T
    return result[0], result[1]
