"""What batches waited for, from a run's record: wall time along each batch's path of last causes.

Between a row of the record and the one that it waited for last (its `cause`) lie three spans: from the end
of the cause until the row could begin (a frame on its way, or something done that nobody looked at yet),
until it began (a queue), and until it ended. Going back from a batch's last result to its submission, they
fill the batch's time without gap or overlap.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from rayemu.drivers.record import (
    COMBINE,
    CONTROL,
    DECODE,
    ENCODE,
    GEMM,
    KINDS,
    OFFER,
    RESULT,
    ROUTE,
    SUBMIT,
    ends,
    queued,
    starts,
)

_WORK = (GEMM, COMBINE, ROUTE, OFFER)  # what is no frame
_ASIDE = (ENCODE, DECODE, CONTROL)
_NAMES = {
    "dispatch waits": "dispatch waits for its window",
    "gemm waits": "in the expert server's queue",
    "gemm": "in its job",
    "gemm is done": "job done, its reply not begun",
    "reply waits": "reply waits to be sent",
    "route is done": "choices made, what follows not begun",
    "combine is done": "combined, what follows not begun",
    "combine waits": "all is in, combine not begun",
    "submit is on its way": "batch on its way",
    "slice waits": "slice waits to be sent",
    "result is on its way": "result on its way, and taken",
}
UNKNOWN = "not known"


def queue_times(record: np.ndarray, finished: Mapping[int, float]) -> dict[str, Any]:
    """Seconds that batches spent in each span; `finished`: when each batch was, on the record's clock.

    Of a span: its `share` of the time of batches, `batch_p50_s` and `batch_p95_s` of what one batch spent
    there on its path, `per_batch` times on average; and of all rows, on a path or not, `each_p50_s`,
    `each_p95_s`.
    """
    spans = _Spans(record)
    paths = [path for batch, at in finished.items() if (path := spans.path(batch, at)) is not None]
    if not paths:
        return {"batches": 0, "spans": {}}
    mine = np.isin(record["batch"], list(finished)) & ~np.isin(record["kind"], _ASIDE)
    each = spans.each(np.flatnonzero(mine))
    whole = [sum(seconds.values()) for seconds, _ in paths]
    found: dict[str, dict[str, Any]] = {}
    for name in {name: None for seconds, _ in paths for name in seconds}:
        took = [seconds.get(name, 0.0) for seconds, _ in paths]
        total = sum(took)
        all_rows = each.get(name, np.zeros(0))
        found[name] = {
            "share": total / sum(whole) if sum(whole) else 0.0,
            **_spread("batch", np.array(took)),
            "per_batch": sum(times[name] for _, times in paths) / len(paths),
            **_spread("each", all_rows),
        }
    ordered = dict(sorted(found.items(), key=lambda item: -item[1]["share"]))
    return {"batches": len(paths), **_spread("batch", np.array(whole)), "spans": ordered}


def _spread(what: str, seconds: np.ndarray) -> dict[str, float | None]:
    p50, p95 = np.percentile(seconds, [50, 95]).tolist() if len(seconds) else (None, None)
    return {f"{what}_p50_s": p50, f"{what}_p95_s": p95}


class _Spans:
    """A record's rows with their times; the parts of GEMMs have those of the whole job that they are of."""

    def __init__(self, record: np.ndarray) -> None:
        self.record = record
        self.begin, self.end = starts(record).copy(), ends(record).copy()
        self.ready, self.cause, self.kind = queued(record), record["cause"], record["kind"]
        jobs = np.flatnonzero((self.kind == GEMM) & (record["job"] >= 0))
        jobs = jobs[np.lexsort((self.begin[jobs], record["job"][jobs], record["src"][jobs]))]
        if len(jobs):
            # A job has a GEMM for each expert, and a row for each part of it: one begins as the other ends.
            src, layer = record["src"][jobs], record["layer"][jobs]
            new = (src[1:] != src[:-1]) | (layer[1:] != layer[:-1])
            first = np.flatnonzero([True, *(new | (self.begin[jobs][1:] != self.end[jobs][:-1]))])
            rows = np.diff(first, append=len(jobs))
            self.begin[jobs] = np.repeat(np.minimum.reduceat(self.begin[jobs], first), rows)
            self.end[jobs] = np.repeat(np.maximum.reduceat(self.end[jobs], first), rows)

    def path(self, batch: int, finished_s: float) -> tuple[dict[str, float], Counter[str]] | None:
        """Seconds by span on a batch's path, and how often each was on it; None without its result."""
        mine = self.record["batch"] == batch
        results = np.flatnonzero(mine & (self.kind == RESULT))
        submits = np.flatnonzero(mine & (self.kind == SUBMIT))
        if not len(results) or not len(submits):
            return None
        began_s = float(self.begin[submits[0]])
        seconds: dict[str, float] = defaultdict(float)
        times: Counter[str] = Counter()
        at = finished_s

        def back_to(then: float, name: str) -> None:
            nonlocal at
            then = min(at, max(then, began_s))
            if then < at:
                seconds[name] += at - then
                times[name] += 1
                at = then

        row = int(results[np.argmax(self.end[results])])
        back_to(float(self.end[row]), _after(RESULT))
        for _ in range(len(self.record)):
            cause = int(self.cause[row])
            kind = int(self.kind[row])
            back_to(float(self.begin[row]), _name(KINDS[kind]))
            if kind == SUBMIT:
                break
            ended = float(self.end[cause]) if cause >= 0 else -np.inf
            back_to(max(float(self.ready[row]), ended), _name(f"{KINDS[kind]} waits"))
            if cause < 0:
                break
            back_to(ended, _after(int(self.kind[cause])))
            row = cause
        back_to(began_s, UNKNOWN)
        return seconds, times

    def each(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Seconds of every row's spans by their names."""
        found: dict[str, np.ndarray] = {}
        for kind in np.unique(self.kind[rows]).tolist():
            of = rows[self.kind[rows] == kind]
            found[_name(KINDS[kind])] = self.end[of] - self.begin[of]
            of = of[self.cause[of] >= 0]
            ended = self.end[self.cause[of]]
            ready = np.minimum(np.maximum(self.ready[of], ended), self.begin[of])
            found[_name(f"{KINDS[kind]} waits")] = self.begin[of] - ready
        effects = rows[self.cause[rows] >= 0]
        causes = self.cause[effects]
        for kind in np.unique(self.kind[causes]).tolist():
            here = self.kind[causes] == kind
            passed = self.ready[effects[here]] - self.end[causes[here]]
            found[_after(kind)] = np.maximum(passed, 0.0)
        return found


def _after(kind: int) -> str:
    """The span after a row of a kind: a frame travels, what is done waits to be seen."""
    return _name(f"{KINDS[kind]} is done" if kind in _WORK else f"{KINDS[kind]} is on its way")


def _name(span: str) -> str:
    return _NAMES.get(span, span)
