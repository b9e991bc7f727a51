"""The graph of events that a record tells of."""

from __future__ import annotations

import numpy as np

from rayemu.drivers.causes import causes_of, choices
from rayemu.drivers.record import COMBINE as COMBINE_ROW
from rayemu.drivers.record import (
    CONTROL,
    DECODE,
    ENCODE,
    FORWARD,
    GEMM,
    OFFER,
    OFFER_REQUEST,
    RESULT,
    ROUTE_REQUEST,
    SLICE,
    SUBMIT,
    starts,
)
from rayemu.drivers.record import DISPATCH as DISPATCH_ROW
from rayemu.drivers.record import REPLY as REPLY_ROW
from rayemu.drivers.record import ROUTE as ROUTE_ROW
from rayemu.model.model import routers_of
from rayemu.model.spec import ModelSpec
from rayemu.pricing.graph import COMBINE, DISPATCH, EXPERT, MESSAGE, OTHER, REPLY, ROUTE, EventGraph

_ROLE_OF = {DISPATCH_ROW: DISPATCH, FORWARD: DISPATCH, REPLY_ROW: REPLY}  # all others are OTHER
_KIND_OF = {ROUTE_ROW: ROUTE, OFFER: ROUTE, GEMM: EXPERT, COMBINE_ROW: COMBINE}  # all others are messages
_CARRYING_ROWS = (DISPATCH_ROW, FORWARD, REPLY_ROW, SUBMIT, SLICE, ROUTE_REQUEST, OFFER_REQUEST, RESULT)
_NOT_PRICED = (ENCODE, DECODE, CONTROL)


def graph_of(
    record: np.ndarray,
    spec: ModelSpec,
    in_flight: int | None = None,
    module_to_node: np.ndarray | None = None,
) -> EventGraph:
    """Make the graph of a record (as `collected` or `load_columns` give it) of a run of this model.

    `spec` may be the model as run or at its full widths. A batch's submission waits for the results of the
    batch `in_flight` before it (by default as many as ever were under way at once). Bytes at full width: a
    frame that went raw has its rows at full width and the rest as it was; of one that a codec coded, all is
    as much more as the rows are wider.
    `module_to_node` [M] is the run's; without it all modules of the record are on one node.
    Raises ValueError where the record is not one of this model.
    """
    if module_to_node is None:
        module_to_node = np.zeros(max(int(record[end].max(initial=-1)) for end in ("src", "dst")) + 1)
    full = spec.full()
    scale = _scale(record, full)
    found = causes_of(record, in_flight)
    priced = np.flatnonzero(~np.isin(record["kind"], _NOT_PRICED))
    rows = record[priced]
    event = _events(rows)  # [rows]
    first = np.unique(event, return_index=True)[1]  # the first row of each
    size = len(first)
    number = np.full(len(record), -1)
    number[priced] = event
    kept = (number[found.cause] >= 0) & (number[found.effect] >= 0)
    edges = np.stack([number[found.effect[kept]], number[found.cause[kept]]])
    edges = np.unique(edges[:, edges[0] != edges[1]], axis=1)  # [2, C], by effect
    began = np.full(size, np.inf)
    np.minimum.at(began, event, starts(rows))
    level, edges, cut = _levels(edges, began)
    order = np.lexsort((began, level))
    place = np.empty(size, np.int64)
    place[order] = np.arange(size)
    effect, cause = place[edges]
    by_effect = np.lexsort((cause, effect))
    lead = rows[first][order]
    total = np.bincount(event, rows["rows"], size).astype(np.int32)[order]
    kind = np.full(size, MESSAGE, np.uint8)
    for recorded, priced_as in _KIND_OF.items():
        kind[lead["kind"] == recorded] = priced_as
    role = np.where(kind == MESSAGE, OTHER, 0).astype(np.uint8)
    for recorded, priced_as in _ROLE_OF.items():
        role[lead["kind"] == recorded] = priced_as
    return EventGraph(
        kind=kind,
        role=role,
        src=lead["src"],
        dst=lead["dst"],
        batch=lead["batch"],
        layer=lead["layer"].astype(np.int32),
        expert=lead["expert"],
        rows=total,
        bytes=np.where(kind == MESSAGE, _bytes(lead, full, scale), 0.0),
        flops=_flops(kind, lead, total, full, scale),
        request=np.where((kind == MESSAGE) & (role != OTHER), _requests(lead), -1),
        cause_start=np.concatenate([[0], np.cumsum(np.bincount(effect, minlength=size))]),
        causes=cause[by_effect],
        module_to_node=np.asarray(module_to_node, np.int32),
        gaps=found.gaps + cut,
    )


def _scale(record: np.ndarray, full: ModelSpec) -> int:
    """How much wider the model is than it was run; ValueError where the record is of another one."""
    wide = (record["rows"] > 0) & np.isin(
        record["kind"], (GEMM, COMBINE_ROW, DISPATCH_ROW, REPLY_ROW, SUBMIT)
    )
    widths = np.unique(record["raw_bytes"][wide] // (4 * record["rows"][wide]))
    combines = record[(record["kind"] == COMBINE_ROW) & (record["layer"] >= full.dense_layers)]
    top_k = np.unique(np.rint(choices(combines) / np.maximum(combines["rows"], 1))).astype(int)
    layers, experts = int(record["layer"].max(initial=-1)) + 1, int(record["expert"].max(initial=-1)) + 1
    most = [full.top_k, full.top_k]  # choices of a row, at least and at most
    for router in routers_of(full):
        if router.varies or router.scope == "batch":
            most = [0, max(most[1], router.most(full.experts))]
    fits = len(widths) <= 1 and all(w > 0 and full.d_model % w == 0 for w in widths)
    told = {
        "d_model": (widths.tolist(), f"{full.d_model} or a divisor", fits),
        "layers": (layers, full.layers, layers <= full.layers),
        "experts": (experts, full.experts, experts <= full.experts),
        "top_k": (
            top_k.tolist(),
            full.top_k,
            bool(((most[0] <= top_k) & (top_k <= most[1])).all()),
        ),
    }
    for name, (found, allowed, holds) in told.items():
        if not holds:
            raise ValueError(
                f"the record is of another model than {full.name}: {name} is {found}; allowed: {allowed}; "
                "price it with the scenario that it was made with"
            )
    return full.d_model // int(widths[0]) if len(widths) else 1


def _events(rows: np.ndarray) -> np.ndarray:
    """Number the events of rows: those of a merged GEMM are one."""
    gemms = np.flatnonzero((rows["kind"] == GEMM) & (rows["job"] >= 0))
    event = np.arange(len(rows))
    keys = np.stack([rows["src"][gemms].astype(np.int64), rows["job"][gemms]])
    lead, job = np.unique(keys, axis=1, return_index=True, return_inverse=True)[1:]
    event[gemms] = gemms[lead][job.reshape(-1)]
    return np.unique(event, return_inverse=True)[1].reshape(-1)


def _requests(rows: np.ndarray) -> np.ndarray:
    """Number the requests of all homes; -1 where there is none."""
    keys = np.stack([rows["home"].astype(np.int64), rows["request"]])
    number = np.unique(keys, axis=1, return_inverse=True)[1].reshape(-1)
    return np.where(rows["request"] >= 0, number, -1)


def _bytes(rows: np.ndarray, full: ModelSpec, scale: int) -> np.ndarray:
    """What each message [N] carries at full width."""
    carried = np.where(np.isin(rows["kind"], _CARRYING_ROWS), rows["rows"], 0) * (4.0 * full.d_model)
    raw = rows["sent_bytes"] + carried * (1.0 - 1.0 / scale)
    return np.where(rows["codec"] > 0, rows["sent_bytes"] * float(scale), raw)


def _flops(kind: np.ndarray, lead: np.ndarray, rows: np.ndarray, full: ModelSpec, scale: int) -> np.ndarray:
    """What each event [N] computes at full width, run at 1 / `scale` of it."""
    dense = lead["layer"] < full.dense_layers
    own = np.where(dense, full.ffn_flops(full.dense_d_ff), full.ffn_flops(full.shared_d_ff))
    noted = lead["flops"] / np.maximum(lead["rows"], 1)
    chosen = (kind == ROUTE) & (lead["kind"] == ROUTE_ROW) & (noted <= full.experts)  # from scores alone
    per_row = np.select(
        [
            chosen,
            lead["kind"] == OFFER,
            kind == ROUTE,
            (kind == EXPERT) & (lead["expert"] >= 0),
            kind == EXPERT,
            kind == COMBINE,
        ],
        [
            np.float64(full.experts),
            noted * scale,
            np.float64(2 * full.d_model * full.experts),
            np.float64(full.flops_per_row()),
            own.astype(np.float64),
            2.0 * full.d_model * np.where(dense, 1, full.top_k),
        ],
    )
    return per_row * rows


def _levels(edges: np.ndarray, began: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Give each event a level [N] above those of its causes.

    Where events wait for each other in a circle, as clocks that differ can make it seem, the edges that go
    back in time are cut. Returns the levels, the edges [2, C] that are left, and how many were cut.
    """
    size, cut = len(began), 0
    while True:
        by_cause = np.argsort(edges[1], kind="stable")
        effects = edges[0][by_cause]
        begin = np.concatenate([[0], np.cumsum(np.bincount(edges[1], minlength=size))])
        waits = np.bincount(edges[0], minlength=size)
        level = np.full(size, -1)
        ready = np.flatnonzero(waits == 0)
        depth = 0
        while len(ready):
            level[ready] = depth
            count = begin[ready + 1] - begin[ready]
            step = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            reached, times = np.unique(effects[np.repeat(begin[ready], count) + step], return_counts=True)
            waits[reached] -= times
            ready = reached[waits[reached] == 0]
            depth += 1
        stuck = (level[edges] < 0).all(axis=0)
        if not stuck.any():
            return level, edges, cut
        back = stuck & (began[edges[1]] > began[edges[0]])
        if not back.any():
            back = stuck & (edges[1] > edges[0])
        cut += int(back.sum())
        edges = edges[:, ~back]
