"""The expert server: merges what waits for the experts of a layer into one job and answers each request.

Pure in the protocol's sense: a reply is a function of the request's rows alone, so asking twice is
harmless. The server decides what to compute next; whoever drives it runs the job and hands it back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from rayemu.model.expert import Expert, expert_forward, scratch
from rayemu.model.holdings import Holdings, Key
from rayemu.model.model import Model
from rayemu.model.reference import shared_forward
from rayemu.numerics import row_multiple
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.memory import NewRows, fresh_rows
from rayemu.protocol.messages import Dispatch, Refusal, Reply, Send

SHARED = -1  # pseudo expert id: the shared expert or the dense FFN of a layer, computed by the home
ROUTED = -2  # pseudo expert id: those that requests name
# Rows of an expert in a job, give or take half a request: twice as many would save at most 3 % of its time.
# Two batches of some 1024 rows each fit in, though one is a little larger.
JOB_ROWS = 2176
JOB_BYTES = 32 << 20  # of a job's result, where several experts have so many rows: homes hold all of it
WEIGHT_BYTES_PER_S = 5e9  # at which BLAS reads and packs weights, once per GEMM: what merging saves
TURN_FLOPS = 1e9  # jobs below this, some 10 ms, do not wait for a turn at a core
OTHERS_WORK = 3.0  # a module that shares its core computes for this many such times before it waits in turn


@dataclass(slots=True, eq=False)
class Work:
    """One accepted request, until it is answered."""

    dispatch: Dispatch
    since: float  # when it came, by the clock of deadlines
    rows: np.ndarray | None = None  # [r, D] once it is computed: of its pairs, or those that ...
    row_of_pair: np.ndarray | None = None  # ... this [n] int32 picks

    @property
    def pairs(self) -> int:
        d = self.dispatch
        return len(d.rows if d.row_of_pair is None else d.row_of_pair)


@dataclass(slots=True, eq=False)
class Own:
    """A home's own rows [t, D] for a layer's shared expert or dense FFN; `tag` says whose they are."""

    rows: np.ndarray
    tag: object
    since: float


@dataclass(slots=True, eq=False)
class Job:
    """What is computed at once: all experts that some requests of a layer want; a home's own rows; or the
    making of an expert."""

    layer: int
    expert: int  # ROUTED, SHARED, or the one that is to be made
    rows: int = 0
    flops: float = 0.0
    works: list[Work] = field(default_factory=list)  # of a ROUTED job
    experts: dict[int, Expert] = field(default_factory=dict)  # that these want
    own: Own | None = None  # of a SHARED job
    make: Callable[[int, int], Expert] | None = None  # for a job without rows: builds the expert
    made: Expert | None = None
    result: np.ndarray | None = None  # [t, D] of a SHARED job


@dataclass(slots=True, eq=False)
class _Group:
    first: float  # when the oldest came
    expected: int  # units of its batch: as many may send something
    works: list[Work] = field(default_factory=list)
    units: set[tuple[int, int, int]] = field(default_factory=set)  # that have sent something
    experts: set[int] = field(default_factory=set)  # that are wanted
    rows: int = 0


class ExpertServer:
    """Queues requests by layer and offers jobs, oldest first."""

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
        self.new_rows = new_rows  # makes what is sent
        stream_time = model.spec.expert_bytes() / WEIGHT_BYTES_PER_S
        others = max(0.0, config.modules_per_core - 1)  # they have the core meanwhile
        self.linger = stream_time * (1 + OTHERS_WORK * others)  # for each expert that is waited with
        self.most_linger = config.linger
        self.job_rows, self.most_rows = JOB_ROWS, JOB_BYTES // (4 * model.spec.d_model)
        self.groups: dict[int, _Group] = {}  # by layer
        self.own: list[tuple[int, Own]] = []  # by layer, oldest first
        self.works: dict[tuple[int, int, int], Work] = {}
        self.grace = config.retry_after / 2  # an answer is on its way for this long at most
        self._answered: dict[tuple[int, int], float] = {}  # (home, request) -> when, oldest first

    def accept(self, dispatch: Dispatch, now: float) -> list[Send]:
        """Queue a request whose lots are all for this module; a repeated one is ignored.

        One with experts that are not held is refused as a whole.
        """
        d, layer = dispatch, dispatch.layer
        key = (d.home, d.request, d.start)
        if key in self.works:
            return []
        wanted = d.lots[:, 1].tolist()
        lacking = [expert for expert in wanted if (layer, expert) not in self.holdings]
        if lacking:
            refusal = Refusal(d.home, d.request, d.start, self.me, lacking)
            return [Send(d.via if d.via >= 0 else d.home, refusal)]
        work = self.works[key] = Work(d, now)
        group = self.groups.get(layer)
        if group is None:
            group = self.groups[layer] = _Group(now, d.slices)
        group.works.append(work)
        group.units.add((d.batch, d.slice, d.micro))
        group.experts.update(wanted)
        group.rows += work.pairs
        return []

    def accept_shared(self, layer: int, rows: np.ndarray, tag: object, now: float) -> None:
        """Take the home's own rows [t, D] for the layer's shared expert or dense FFN."""
        self.own.append((layer, Own(rows, tag, now)))

    def awaits(self, key: Key) -> bool:
        """Tell whether rows wait for this (layer, expert)."""
        layer, expert = key
        group = self.groups.get(layer)
        return group is not None and any((work.dispatch.lots[:, 1] == expert).any() for work in group.works)

    def knows(self, home: int, request: int, now: float) -> bool:
        """Tell whether some part of the request is still queued or being computed, or was answered just now.

        A probe may cross the answer: without the last, what is on its way would be computed once more.
        """
        if self._answered.get((home, request), float("-inf")) > now - self.grace:
            return True
        return any(key[0] == home and key[1] == request for key in self.works)

    def next_job(self, now: float) -> Job | None:
        """Take the oldest of what is worth starting, merged with what waits for the same layer."""
        ready = [(g.first, layer) for layer, g in self.groups.items() if self._ready_at(g) <= now]
        oldest = min(ready, default=None)
        if self.own and (oldest is None or self.own[0][1].since <= oldest[0]):
            layer, own = self.own.pop(0)
            shared = self.model.layers[layer].shared
            assert shared is not None
            flops = float(self.model.spec.ffn_flops(len(shared.down))) * len(own.rows)
            return Job(layer, SHARED, len(own.rows), flops, own=own)
        if oldest is None:
            return None
        job = Job(oldest[1], ROUTED)
        self.fill(job)
        return job

    def fill(self, job: Job) -> None:
        """Add to a job that has not begun what waits for its layer, up to `_room` or so."""
        group = self.groups.get(job.layer) if job.expert == ROUTED else None
        if group is None:
            return
        # Jobs alike: a small last one would read all weights for a few rows.
        rows = job.rows + group.rows
        share = rows / max(1, -(-rows // self._room(group.experts.union(job.experts))))
        taken = 0
        for work in group.works:
            pairs = work.pairs
            if job.works and job.rows + pairs / 2 > share:
                break
            taken += 1
            job.works.append(work)
            job.rows += pairs
            group.rows -= pairs
            for expert in work.dispatch.lots[:, 1].tolist():
                if expert not in job.experts:
                    job.experts[expert] = self.holdings[job.layer, expert]
        del group.works[:taken]
        if not group.works:
            del self.groups[job.layer]
        job.flops = float(self.model.spec.flops_per_row()) * job.rows

    def deadline(self) -> float:
        """When the earliest of what waits becomes worth starting."""
        groups = min((self._ready_at(g) for g in self.groups.values()), default=float("inf"))
        return min(groups, self.own[0][1].since) if self.own else groups

    def finish(self, job: Job, now: float) -> list[Send]:
        """Answer the requests of a finished job."""
        sends = []
        while self._answered and next(iter(self._answered.values())) <= now - self.grace:
            del self._answered[next(iter(self._answered))]
        for work in job.works:
            d, rows, index = work.dispatch, work.rows, work.row_of_pair
            assert rows is not None
            del self.works[d.home, d.request, d.start]
            self._answered.pop((d.home, d.request), None)
            self._answered[d.home, d.request] = now
            spans = [[d.start, len(rows if index is None else index), d.path, 0]]
            reply = Reply(d.home, d.request, d.batch, d.micro, d.layer, self.me, rows, spans, 0.0, index)
            sends.append(Send(d.via if d.via >= 0 else d.home, reply))
        return sends

    def _room(self, experts: Collection[int]) -> int:
        """Rows of a job for these experts."""
        return max(self.job_rows, min(self.job_rows * len(experts), self.most_rows))

    def _ready_at(self, group: _Group) -> float:
        if len(group.units) >= group.expected or group.rows >= self._room(group.experts):
            return group.first
        return group.first + min(self.most_linger, self.linger * len(group.experts))


def run_job(model: Model, job: Job, new_rows: NewRows = fresh_rows) -> None:
    """Compute a job: for each expert gather its rows of all requests, and one forward.

    Or make the expert that it is for.

    `new_rows` makes the memory for a result of which replies will be slices.
    """
    if job.make is not None:
        job.made = job.make(job.layer, job.expert)
    elif job.own is not None:
        job.result = shared_forward(model.layers[job.layer], job.own.rows)
    else:
        _run_experts(job, new_rows)


def _run_one(job: Job, new_rows: NewRows) -> None:
    """The same for a job of one lot."""
    (work,) = job.works
    d, (expert,) = work.dispatch, job.experts.values()
    x = d.rows
    if d.row_of_pair is not None:
        x = np.take(x, d.row_of_pair, axis=0, out=scratch("gathered", job.rows, x.shape[1]), mode="clip")
    work.rows = expert_forward(expert, x, out=new_rows(*x.shape))


def _run_experts(job: Job, new_rows: NewRows) -> None:
    """Compute the rows of all works of a job, expert after expert, each a multiple of `row_multiple`."""
    if len(job.works) == 1 and len(job.works[0].dispatch.lots) == 1:
        _run_one(job, new_rows)
        return
    given = [work.dispatch for work in job.works]
    lots = np.concatenate([d.lots[:, 1:] for d in given])  # [m, 2] expert, pairs
    asker = np.repeat(np.arange(len(given)), [len(d.lots) for d in given])
    ends = np.cumsum(lots[:, 1])  # among the pairs of all requests
    first = np.concatenate([[0], np.cumsum([work.pairs for work in job.works])])  # pair of each request
    start = ends - lots[:, 1] - first[asker]  # of each lot among its request's pairs
    order = np.argsort(lots[:, 0], kind="stable")
    experts, begins = np.unique(lots[order, 0], return_index=True)
    counts = lots[order, 1]
    rows = np.add.reduceat(counts, begins)  # of each expert
    multiple = row_multiple()
    room = -(-rows // multiple) * multiple
    base = np.cumsum(room) - room  # of each expert in the result
    within = np.cumsum(counts) - counts  # of each lot, in order
    number = np.repeat(np.arange(len(experts)), np.diff(begins, append=len(counts)))
    place = np.empty(len(lots), np.int64)  # of each lot in the result
    place[order] = base[number] + within - within[begins][number]
    shift = np.repeat(place - (ends - lots[:, 1]), lots[:, 1])
    index = (np.arange(len(shift)) + shift).astype(np.int32)
    width = given[0].rows.shape[1]
    y = new_rows(int(room.sum()), width)
    x = scratch("gathered", int(room.max()), width)
    table = np.stack([asker, start, lots[:, 1]], axis=1)[order].tolist()
    for n, (low, high) in enumerate(pairwise([*begins.tolist(), len(table)])):
        filled = 0
        for who, begin, count in table[low:high]:
            d, rows_of = given[who], x[filled : filled + count]
            if d.row_of_pair is None:
                rows_of[...] = d.rows[begin : begin + count]
            else:  # in range, see wire
                np.take(d.rows, d.row_of_pair[begin : begin + count], axis=0, out=rows_of, mode="clip")
            filled += count
        whole, at = int(room[n]), int(base[n])
        x[filled:whole] = 0
        expert_forward(job.experts[int(experts[n])], x[:whole], out=y[at : at + whole])
    for work, (low, high) in zip(job.works, pairwise(first.tolist()), strict=True):
        mine = index[low:high]
        if len(work.dispatch.lots) == 1:  # which lies together
            work.rows = y[mine[0] : mine[0] + len(mine)]
        else:
            work.rows, work.row_of_pair = y, mine
