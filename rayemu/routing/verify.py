"""What choices must hold whoever made them, which rows break it, and choices in their place.

Shapes: T tokens, K places of a row, E experts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing
from rayemu.routing.router import Context
from rayemu.routing.row_bits import U64, keys, row_hash
from rayemu.routing.softmax_topk import SoftmaxTopK

Rows = npt.NDArray[np.intp]


def violations(
    routing: Routing,
    experts: int,
    most: int,
    least: int | None = None,
    total: float | None = None,
    ordered: bool = True,
) -> dict[str, Rows]:
    """Each invariant that is violated, with the rows that violate it, ascending; empty where all hold.

    `range`: an expert is below -1, or not below `experts`. `repeated`: one expert twice in a row.
    `gap`: a choice after a -1. `count`: fewer choices than `least` (by default as many as `most`) or more
    than `most`. `finite`: a weight is NaN or infinite. `negative`: one is below 0. `idle`: a place of -1 has
    a weight. `order`: a choice weighs more than the one before it, looked at if `ordered`. `sum`: the weights
    do not sum to `total`, looked at if it is given, in rows that have choices and finite weights.

    A sum may be off by (2 K + 2) 2^-24 of the total. Renormalised float32 weights are within half of that:
    K - 1 additions, a division and a product by the scaling, each within 2^-24; votes round twice.
    """
    chosen, weights = routing
    there = chosen != -1
    width = chosen.shape[1]
    low = np.sort(chosen, axis=1)
    counts = there.sum(axis=1)
    broken = {
        "range": _any((chosen < -1) | (chosen >= experts)),
        "repeated": _any((low[:, 1:] == low[:, :-1]) & (low[:, 1:] != -1)),
        "gap": _any(there[:, 1:] & ~there[:, :-1]),
        "count": (counts < (most if least is None else least)) | (counts > most),
        "finite": _any(~np.isfinite(weights)),
        "negative": _any(weights < 0),
        "idle": _any(~there & (weights != 0)),
    }
    if ordered:
        both = there[:, 1:] & there[:, :-1]
        broken["order"] = _any(both & (weights[:, 1:] > weights[:, :-1]))
    if total is not None:
        with np.errstate(invalid="ignore"):  # inf - inf, of rows that are not finite
            off = np.abs(np.add.reduce(weights, axis=1, dtype=np.float64) - total)
        broken["sum"] = (off > (2 * width + 2) * 2**-24 * abs(total)) & ~broken["finite"] & (counts > 0)
    return {name: np.flatnonzero(rows) for name, rows in broken.items() if rows.any()}


def _any(places: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    return np.asarray(places.any(axis=1))


def broken_rows(found: dict[str, Rows]) -> Rows:
    """The rows that violate anything, ascending and each once."""
    return np.unique(np.concatenate([np.zeros(0, np.intp), *found.values()]))


def recovered(
    routing: Routing, logits: F32, rows: Rows, top_k: int, total: float = 1.0, bits: U64 | None = None
) -> Routing:
    """The routing with stated choices in `rows` [n]; all other rows keep their bits.

    A row gets the `top_k` experts of the highest logits, with the softmax of these times `total`. Where one
    of its logits [T, E] is NaN they say nothing, and it gets `top_k` experts in turn from one that its
    `bits` [T] give (by default those of its logits), so that broken rows spread, with equal weights.
    Places after `top_k` are -1.
    """
    chosen, weights = routing.experts.copy(), routing.weights.copy()
    if not rows.size:
        return Routing(chosen, weights)
    experts = logits.shape[1]
    told = np.ascontiguousarray(logits[rows])  # a copy
    lost = _any(np.isnan(told))
    start = (keys(row_hash(told, 0)) if bits is None else bits[rows]) % np.uint64(experts)  # [n]
    nothing = Gate(np.zeros((0, experts), np.float32))
    best = SoftmaxTopK(top_k, scaling=total).choose(told, nothing, Context())
    turn = (start[:, None].astype(np.int64) + np.arange(top_k)) % experts  # [n, top_k]
    chosen[rows, :], weights[rows, :] = -1, 0
    chosen[rows, :top_k] = np.where(lost[:, None], turn, best.experts)
    weights[rows, :top_k] = np.where(lost[:, None], np.float32(total / top_k), best.weights)
    return Routing(chosen, weights)
