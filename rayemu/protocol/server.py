"""The expert server: merges requests for an expert into one GEMM and answers each.

Pure in the protocol's sense: a reply is a function of the request's rows alone, so asking twice is
harmless. The server decides what to compute next; whoever drives it runs the job and hands it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from rayemu.model.expert import Expert, expert_forward, scratch
from rayemu.model.holdings import Holdings, Key
from rayemu.model.model import Model
from rayemu.model.reference import shared_forward
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.memory import NewRows, fresh_rows
from rayemu.protocol.messages import Dispatch, Refusal, Reply, Send

SHARED = -1  # pseudo expert id: the shared expert or the dense FFN of a layer, computed by the home
# Rows of a job, give or take half a request: twice as many would save at most 3 % of its time. Two batches of
# some 1024 rows each fit in, though one is a little larger.
JOB_ROWS = 2176
WEIGHT_BYTES_PER_S = 5e9  # at which BLAS reads and packs weights, once per GEMM: what merging saves
TURN_FLOPS = 1e9  # jobs below this, some 10 ms, do not wait for a turn at a core
OTHERS_WORK = 3.0  # a module that shares its core computes for this many such times before it waits in turn


@dataclass(slots=True, eq=False)
class Work:
    """One accepted request: where its reply rows gather and who gets them."""

    dispatch: Dispatch
    rows: np.ndarray | None  # [n, D] reply rows; None until its only lot is computed
    lots_left: int


@dataclass(slots=True, eq=False)
class Part:
    """A lot waiting for its GEMM: `rows[index]` (or `rows`) in, `out` to fill."""

    work: Work | None  # None for the home's own shared part
    rows: np.ndarray  # [r, D]
    index: np.ndarray | None  # [n] rows of the lot, None: all, in order
    out: np.ndarray | None  # [n, D]; None: the result itself becomes the reply, or goes to `tag`'s owner
    tag: object = None
    since: float = 0.0  # when it came, by the clock of deadlines

    @property
    def count(self) -> int:
        return len(self.rows) if self.index is None else len(self.index)


@dataclass(slots=True, eq=False)
class Job:
    """One grouped GEMM, everything merged for one expert of one layer; or the making of an expert."""

    layer: int
    expert: int
    parts: list[Part]
    rows: int
    flops: float
    weights: Expert | None = None  # what the rows are for; of a job that makes an expert, what it made
    make: Callable[[int, int], Expert] | None = None  # for a job without rows: builds the expert
    result: np.ndarray | None = None  # of a SHARED job, [n, D]


@dataclass(slots=True, eq=False)
class _Group:
    first: float  # arrival time of the oldest part
    expected: int  # requests that this batch may send here
    parts: list[Part] = field(default_factory=list)
    rows: int = 0


class ExpertServer:
    """Queues lots by (layer, expert) and offers jobs, oldest group first."""

    def __init__(
        self,
        me: int,
        config: ProtocolConfig,
        model: Model,
        holdings: Holdings,
        new_rows: NewRows = fresh_rows,
    ) -> None:
        self.me = me
        self.model = model
        self.holdings = holdings
        self.new_rows = new_rows  # makes what becomes replies
        stream_time = model.spec.expert_bytes() / WEIGHT_BYTES_PER_S
        others = max(0.0, config.modules_per_core - 1)  # they have the core meanwhile
        self.linger = min(config.linger, stream_time * (1 + OTHERS_WORK * others))
        self.groups: dict[tuple[int, int], _Group] = {}
        self.works: dict[tuple[int, int, int], Work] = {}
        self.grace = config.retry_after / 2  # an answer is on its way for this long at most
        self._answered: dict[tuple[int, int], float] = {}  # (home, request) -> when, oldest first

    def accept(self, dispatch: Dispatch, now: float) -> list[Send]:
        """Queue a request whose lots are all for this module; a repeated one is ignored.

        One with experts that are not held is refused as a whole.
        """
        key = (dispatch.home, dispatch.request, dispatch.start)
        if key in self.works:
            return []
        lacking = [lot[1] for lot in dispatch.lots if (dispatch.layer, lot[1]) not in self.holdings]
        if lacking:
            refusal = Refusal(dispatch.home, dispatch.request, dispatch.start, self.me, lacking)
            return [Send(dispatch.via if dispatch.via >= 0 else dispatch.home, refusal)]
        rows = None
        if len(dispatch.lots) > 1:
            total = sum(lot[2] for lot in dispatch.lots)
            rows = self.new_rows(total, dispatch.rows.shape[1])
        work = Work(dispatch, rows, len(dispatch.lots))
        self.works[key] = work
        for expert, index, span in lots_of(dispatch):
            given = dispatch.rows if index is not None else dispatch.rows[span]
            part = Part(work, given, index, None if rows is None else rows[span])
            self._queue((dispatch.layer, expert), part, dispatch.slices, now)
        return []

    def accept_shared(self, layer: int, rows: np.ndarray, tag: object, now: float) -> None:
        """Queue the home's own rows [t, D] for the layer's shared expert or dense FFN."""
        self._queue((layer, SHARED), Part(None, rows, None, None, tag), 1, now)

    def awaits(self, key: Key) -> bool:
        """Tell whether rows wait for this (layer, expert)."""
        return key in self.groups

    def knows(self, home: int, request: int, now: float) -> bool:
        """Tell whether some part of the request is still queued or being computed, or was answered just now.

        A probe may cross the answer: without the last, what is on its way would be computed once more.
        """
        if self._answered.get((home, request), float("-inf")) > now - self.grace:
            return True
        return any(key[0] == home and key[1] == request for key in self.works)

    def next_job(self, now: float) -> Job | None:
        """Take the oldest group that is worth starting, as one merged job."""
        ready = [(g.first, key) for key, g in self.groups.items() if self._ready_at(g) <= now]
        if not ready:
            return None
        layer, expert = min(ready)[1]
        weights = None if expert == SHARED else self.holdings[layer, expert]
        job = Job(layer, expert, [], 0, 0.0, weights)
        self.fill(job)
        return job

    def fill(self, job: Job) -> None:
        """Add to a job that has not begun what waits for its expert, up to JOB_ROWS or so."""
        key = job.layer, job.expert
        group = self.groups.get(key)
        if group is None:
            return
        # Jobs alike: a small last one would read all weights for a few rows.
        rows = job.rows + group.rows
        share = 0.0 if job.expert == SHARED else rows / max(1, -(-rows // JOB_ROWS))
        while group.parts and (not job.parts or job.rows + group.parts[0].count / 2 <= share):
            part = group.parts.pop(0)
            job.parts.append(part)
            job.rows += part.count
            group.rows -= part.count
        if not group.parts:
            del self.groups[key]
        per_row = self.model.spec.flops_per_row()
        if job.expert == SHARED:
            shared = self.model.layers[job.layer].shared
            assert shared is not None
            per_row = self.model.spec.ffn_flops(len(shared.down))
        job.flops = float(per_row) * job.rows

    def deadline(self) -> float:
        """When the earliest group becomes worth starting."""
        return min((self._ready_at(g) for g in self.groups.values()), default=float("inf"))

    def finish(self, job: Job, now: float) -> list[Send]:
        """Answer the requests that the finished job completed."""
        sends = []
        while self._answered and next(iter(self._answered.values())) <= now - self.grace:
            del self._answered[next(iter(self._answered))]
        for part in job.parts:
            work = part.work
            if work is None:
                continue
            work.lots_left -= 1
            if work.lots_left:
                continue
            d = work.dispatch
            assert work.rows is not None
            if self.works.pop((d.home, d.request, d.start), None) is None:
                continue
            self._answered.pop((d.home, d.request), None)
            self._answered[d.home, d.request] = now
            spans = [[d.start, len(work.rows), d.path, 0]]
            reply = Reply(d.home, d.request, d.batch, d.micro, d.layer, self.me, work.rows, spans)
            sends.append(Send(d.via if d.via >= 0 else d.home, reply))
        return sends

    def _queue(self, key: tuple[int, int], part: Part, expected: int, now: float) -> None:
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = _Group(now, expected)
        part.since = now
        group.parts.append(part)
        group.rows += part.count

    def _ready_at(self, group: _Group) -> float:
        if len(group.parts) >= group.expected or group.rows >= JOB_ROWS:
            return group.first
        return group.first + self.linger


def lots_of(dispatch: Dispatch) -> Iterator[tuple[int, np.ndarray | None, slice]]:
    """Yield (expert, row indices or None, slice of the pairs) for each lot of a request."""
    low = 0
    for _, expert, rows in dispatch.lots:
        span = slice(low, low + rows)
        yield expert, None if dispatch.row_of_pair is None else dispatch.row_of_pair[span], span
        low += rows


def run_job(model: Model, job: Job, new_rows: NewRows = fresh_rows) -> None:
    """Compute a job: gather the rows of all parts, one forward of the expert, scatter to the parts.

    Or make the expert that it is for.

    `new_rows` makes the memory for a result of which replies will be slices.
    """
    if job.make is not None:
        job.weights = job.make(job.layer, job.expert)
        return
    if job.expert == SHARED:
        job.result = shared_forward(model.layers[job.layer], job.parts[0].rows)
        return
    x = _gathered(job)
    kept = any(part.out is None for part in job.parts)
    assert job.weights is not None
    y = expert_forward(job.weights, x, out=new_rows(*x.shape) if kept else scratch("result", *x.shape))
    low = 0
    for part in job.parts:
        rows = y[low : low + part.count]
        low += part.count
        if part.out is not None:
            part.out[:] = rows
        elif part.work is not None:
            part.work.rows = rows


def _gathered(job: Job) -> np.ndarray:
    """Return the rows [n, D] of all parts in order: a view of the only part, or this thread's scratch."""
    first = job.parts[0]
    if len(job.parts) == 1 and first.index is None:
        return first.rows
    x = scratch("gathered", job.rows, first.rows.shape[1])
    low = 0
    for part in job.parts:
        high = low + part.count
        if part.index is None:
            x[low:high] = part.rows
        else:
            np.take(part.rows, part.index, axis=0, out=x[low:high], mode="clip")  # in range, see wire
        low = high
    return x
