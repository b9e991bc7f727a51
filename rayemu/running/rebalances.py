"""What moving experts did to a run: balance before and after, and what it cost while they moved.

Everything is measured from the rows that modules computed (the record) and from when batches finished; what
the planner promised stands beside it. L layers, M modules.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rayemu.balance.metrics import average, mean_over_max
from rayemu.drivers.record import GEMM
from rayemu.protocol.client import BatchResult
from rayemu.protocol.messages import Notice


def computed_rows(record: np.ndarray, batches: Sequence[int], layers: int, modules: int) -> np.ndarray:
    """Rows of routed experts [L, M] that each module computed of these batches."""
    mine = record[(record["kind"] == GEMM) & (record["expert"] >= 0) & np.isin(record["batch"], batches)]
    at = mine["layer"].astype(np.int64) * modules + mine["src"]
    return np.bincount(at, weights=mine["rows"], minlength=layers * modules).reshape(layers, modules)


def decisions(notices: Sequence[Notice]) -> dict[str, Any]:
    """How often a trigger led to which decision, and why the last that moved nothing did not."""
    made = [n.facts for n in notices if n.kind == "rebalance"]
    counts = {kind: sum(f["decision"] == kind for f in made) for kind in ("move", "stay", "failed")}
    why = {kind: next((f["why"] for f in reversed(made) if f["decision"] == kind), None) for kind in counts}
    return {**counts, "last_stay_why": why["stay"], "last_failed_why": why["failed"]}


def rebalances(
    notices: Sequence[Notice],
    results: Sequence[BatchResult],
    record: np.ndarray,
    layers: int,
    modules: int,
    window: int,
    clock: str,
) -> list[dict[str, Any]]:
    """List the moves of a run as summary.json has them; `clock` ("wall" or "virtual") is in the times' names.

    `batch` is the result that the move was decided at. Balance is the mean of the modules' rows over the
    maximum, of each layer, averaged over layers: `balance_before` of the `window` batches before the
    decision, `balance_after` of as many that were submitted once everything lay where it should, `promised`
    what a plan made from half of the window gave on the other half (see `Decision`). `moves` are slots that
    were loaded, `bytes` what went from module to module for them, both None of a move that the run ended in
    (`planned_moves` is what it was to load). `batch_p99_while_moving` and `batch_median_outside` are batch
    times (submitted to finished) of the batches that were under way during any move, and of all others;
    `slowdown` is the one over the other. `paid_after_batches`: after so many batches the time between two
    results that became shorter has made up for what was longer while experts moved; None if it did not
    become shorter.
    """
    done = [r for r in results if r.failure is None and len(r.delivered)]
    ends = {n.facts["number"]: n for n in notices if n.kind == "moved"}
    decided = [n for n in notices if n.kind == "rebalance" and n.facts.get("decision") == "move"]
    spans = [
        (n.wall_s, ends[n.facts["move"]].wall_s if n.facts["move"] in ends else float("inf")) for n in decided
    ]
    outside = [
        r.finished_at - r.submitted_at
        for r in done
        if not any(_overlaps(r, begin, end) for begin, end in spans)
    ]
    median = float(np.median(outside)) if outside else None
    entries = []
    for position, (notice, (begin, end)) in enumerate(zip(decided, spans, strict=True)):
        following = spans[position + 1][0] if position + 1 < len(spans) else float("inf")
        noted: dict[str, Any] = notice.facts
        before = [r for r in done if r.batch <= noted["batch"]][-window:]
        after = [r for r in done if end <= r.submitted_at and r.finished_at <= following][:window]
        during = [r.finished_at - r.submitted_at for r in done if _overlaps(r, begin, end)]
        p99 = float(np.percentile(during, 99)) if during else None
        status = ends.get(noted["move"])
        facts: dict[str, Any] = status.facts if status is not None else {}
        entries.append(
            {
                "batch": noted["batch"],
                "reason": noted["reason"],
                "balance_before": _balance(record, before, layers, modules),
                "balance_after": _balance(record, after, layers, modules),
                "promised": noted["promised"],
                "planned_moves": noted["planned_moves"],
                "moves": facts.get("loaded"),
                "dropped": facts.get("dropped"),
                "cancelled": facts.get("cancelled"),
                "bytes": facts.get("fetched"),
                f"took_{clock}_s": facts.get("seconds"),
                f"batch_p99_while_moving_{clock}_s": p99,
                f"batch_median_outside_{clock}_s": median,
                "slowdown": p99 / median if p99 is not None and median else None,
                "paid_after_batches": _paid_after(before, after, done, begin, end),
            }
        )
    return entries


def _overlaps(result: BatchResult, begin: float, end: float) -> bool:
    return result.submitted_at < end and result.finished_at > begin


def _balance(record: np.ndarray, results: Sequence[BatchResult], layers: int, modules: int) -> float | None:
    if not results:
        return None
    rows = computed_rows(record, [r.batch for r in results], layers, modules)
    return average(mean_over_max(rows), rows) if rows.any() else None


def _gaps(results: Sequence[BatchResult]) -> list[float]:
    """The time between two results, in the order in which they finished."""
    times = sorted(r.finished_at for r in results)
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def _paid_after(
    before: Sequence[BatchResult],
    after: Sequence[BatchResult],
    done: Sequence[BatchResult],
    begin: float,
    end: float,
) -> int | None:
    usual, new = _gaps(before), _gaps(after)
    if not usual or not new:
        return None
    was, saved = float(np.median(usual)), float(np.median(usual) - np.median(new))
    if saved <= 0:
        return None
    during = _gaps([r for r in done if begin <= r.finished_at <= end])
    lost = max(0.0, sum(gap - was for gap in during))
    return int(np.ceil(lost / saved))
