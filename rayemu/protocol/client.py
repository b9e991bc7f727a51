"""The client's protocol: submits batches, takes each row's result once, and keeps them by number. Sans-IO."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from rayemu.compression import WireError
from rayemu.compression.wire import MAX_FRAME_BYTES
from rayemu.model.model import routers_of
from rayemu.model.spec import ModelSpec
from rayemu.placement import Placement
from rayemu.protocol.config import TOTALS
from rayemu.protocol.decisions import Decisions
from rayemu.protocol.epochs import placement_of, slots_of
from rayemu.protocol.messages import (
    COORDINATOR,
    Accepted,
    Ack,
    Epoch,
    Failure,
    Message,
    Move,
    Moved,
    Notice,
    Result,
    Send,
    Submit,
    Totals,
)
from rayemu.protocol.slices import widened

CLOSED = "the emulator was closed"
MOST_NOTICES = 4096  # that wait to be taken; then the oldest go
MOST_EPOCHS = 1024  # that are kept for those who make choices again; then the oldest go
REPEATS = 4  # times that the rows of the batches under way may be computed before that is no progress
_FRAME_SLACK = 1 << 20  # bytes of a frame that are not rows


class StalledError(RuntimeError):
    """A batch makes no progress: says which, for how long, and what waits for whom."""


def most_tokens(spec: ModelSpec) -> int:
    """Return how many tokens a batch may have: its frames must hold the rows and what goes with each.

    A slice brings K choices and weights per row, its result two bytes per layer and choice; of a layer that
    is routed for the whole batch, its choices and weights too.
    """
    fixed = _FRAME_SLACK + 4 * spec.layers * spec.experts
    whole = [router.most(spec.experts) for router in routers_of(spec) if router.scope == "batch"]
    noted = 2 * spec.layers * max(spec.top_k, *whole, 0) + 8 * sum(whole)
    per_token = 4 * spec.d_model + max(8 * spec.top_k, noted)
    return max(1, (MAX_FRAME_BYTES - fixed) // per_token)


@dataclass(slots=True, eq=False)
class BatchResult:
    """A finished batch."""

    batch: int
    y: np.ndarray  # [T, D]
    expert_tokens: np.ndarray  # [L, E] int64
    delivered: np.ndarray  # [T] how often each row was taken: 1 everywhere, or the protocol is broken
    dispatch_paths: np.ndarray | None = None  # [L, T, K], see `replay`
    combine_paths: np.ndarray | None = None
    decisions: Decisions | None = None  # choices that were made for the whole batch
    failure: Failure | None = None
    submitted_at: float = 0.0
    finished_at: float = 0.0


@dataclass(slots=True, eq=False)
class _Pending:
    rows: np.ndarray
    result: BatchResult
    retry_at: float
    accepted: bool = False
    slices: set[int] = field(default_factory=set)
    left: int = 0


class ClientMachine:
    """State machine of the client: one per emulator. `receive` raises WireError for rows of no batch."""

    def __init__(self, spec: ModelSpec, retry_after: float, stall_after: float = float("inf")) -> None:
        self.spec = spec
        self.retry_after, self.stall_after = retry_after, stall_after
        self.pending: dict[int, _Pending] = {}
        self.finished: dict[int, BatchResult] = {}
        self.next_batch = 0
        self.duplicate_results = 0
        self.epoch: Epoch | None = None
        self.epochs: dict[int, Epoch] = {}  # the last, where choices for whole batches may name them
        routers = routers_of(spec)
        self._decides = any(router.scope == "batch" for router in routers)
        self._most = max(router.most(spec.experts) for router in routers)  # choices of a token
        self.totals: Totals | None = None  # as last reported
        self.notices: deque[Notice] = deque()
        self.notices_dropped = 0
        self.moves: dict[int, Moved | None] = {}  # by number: the last that was told of it
        self._move: tuple[Move, float] | None = None  # that is not done, and when to ask after it
        self._abandoned: set[int] = set()
        self._heard_at = self._progress_at = float("-inf")
        self._rows = 0.0  # that the modules had computed, as last reported
        self._rows_to_come = 0.0  # computing more than these without a result is no progress

    def submit(self, rows: np.ndarray, now: float) -> tuple[int, list[Send]]:
        """Submit a batch x [T, D], T > 0; return its number."""
        number = self.next_batch
        self.next_batch += 1
        result = BatchResult(
            number,
            np.empty(rows.shape, np.float32),
            np.zeros((self.spec.layers, self.spec.experts), np.int64),
            np.zeros(len(rows), np.int32),
            submitted_at=now,
        )
        if not self.pending:
            self._heard_at = now
        self.pending[number] = _Pending(rows, result, now + 4 * self.retry_after, left=len(rows))
        self._advanced(now)
        return number, [Send(COORDINATOR, Submit(number, min(self.pending), rows))]

    def move(self, placement: Placement, now: float) -> tuple[int, list[Send]]:
        """Have the experts brought to other slots, whatever move is under way; return the move's number."""
        if self._move is not None:
            last = self._move[0].number
            known = self.moves[last] or Moved(last, False, 0, 0, 0, 0, 0.0)
            self._end_move(replace(known, done=True, superseded=True), now)
        number = len(self.moves)
        self.moves[number] = None
        message = Move(number, slots_of(placement))
        self._move = message, now + 4 * self.retry_after
        return number, [Send(COORDINATOR, message)]

    def receive(self, message: Message, now: float) -> list[Send]:
        """Handle one message."""
        self._heard_at = now
        if isinstance(message, Result):
            return self._on_result(message, now)
        if isinstance(message, Accepted) and message.batch in self.pending:
            if not self.pending[message.batch].accepted:
                self.pending[message.batch].accepted = True
                self._advanced(now)
        elif isinstance(message, Failure):
            return self._on_failure(message, now)
        elif isinstance(message, Epoch):
            if self.epoch is None or message.epoch > self.epoch.epoch:
                self.epoch = message
            if self._decides and message.epoch not in self.epochs:
                # Copied: the frame may lie in memory that its sender wants back.
                arrays = (np.array(a) for a in (message.state, message.incarnations, message.slots))
                self.epochs[message.epoch] = Epoch(message.epoch, message.complete_below, None, *arrays)
                while len(self.epochs) > MOST_EPOCHS:
                    del self.epochs[min(self.epochs)]
        elif isinstance(message, Moved):
            if self._move is not None and self._move[0].number == message.number:
                self.moves[message.number] = message
                if message.done:
                    self._end_move(message, now)
        elif isinstance(message, Totals):
            self._on_totals(message, now)
        elif isinstance(message, Notice):
            self._note(message)
        return []

    def moved(self, number: int) -> Moved | None:
        """How far a move is, as last told; None before it is told at all. LookupError for none that is."""
        if number not in self.moves:
            raise LookupError(f"there is no move {number!r}; {len(self.moves)} were asked for, from 0 on")
        return self.moves[number]

    def _end_move(self, status: Moved, now: float) -> None:
        """Take the last word on a move: whoever counts moves must not miss it, so the notice is made here."""
        self.moves[status.number], self._move = status, None
        self._note(Notice("moved", now, asdict(status)))

    def _note(self, notice: Notice) -> None:
        self.notices.append(notice)
        if len(self.notices) > MOST_NOTICES:
            self.notices.popleft()
            self.notices_dropped += 1

    @property
    def placement(self) -> Placement | None:
        """Where the experts are, also those that are on their way there or leave; None before it is told."""
        return None if self.epoch is None else placement_of(self.epoch.slots)

    def tick(self, now: float) -> list[Send]:
        """Submit again what the coordinator has not accepted, and ask after a move."""
        sends = []
        for number, p in self.pending.items():
            if not p.accepted and p.retry_at <= now:
                p.retry_at = now + 4 * self.retry_after
                sends.append(Send(COORDINATOR, Submit(number, min(self.pending), p.rows)))
        if self._move is not None and self._move[1] <= now:
            message = self._move[0]
            self._move = message, now + 4 * self.retry_after
            sends.append(Send(COORDINATOR, message))
        return sends

    def deadline(self) -> float:
        """When `tick` is due."""
        submits = (p.retry_at for p in self.pending.values() if not p.accepted)
        return min(submits, default=float("inf")) if self._move is None else min([self._move[1], *submits])

    def take(self, number: int) -> BatchResult | None:
        """Return a batch's result if it is finished, once."""
        return self.finished.pop(number, None)

    def abandon(self, numbers: Iterable[int]) -> list[Send]:
        """Forget batches that nobody waits for any more; the coordinator shall do so too."""
        sends = []
        for number in numbers:
            self.finished.pop(number, None)
            if self.pending.pop(number, None) is not None:
                self._abandoned.add(number)
                sends.append(Send(COORDINATOR, Ack(number, -1)))
        return sends

    def take_notices(self) -> list[Notice]:
        """Return and forget what was reported; of very many the oldest are gone, which is said."""
        notices = list(self.notices)
        self.notices.clear()
        if self.notices_dropped and notices:
            what = f"{self.notices_dropped} earlier notices were dropped: nobody took them"
            notices.insert(0, Notice("fallback", notices[0].wall_s, {"what": what}))
        self.notices_dropped = 0
        return notices

    def stalled(self, number: int, now: float) -> StalledError | None:
        """Return the error for a batch if nothing has gone on for `stall_after` seconds.

        Progress is what brings a batch nearer its end: it is accepted, a slice of any batch arrives, or
        modules compute rows, as long as these are not more than the batches under way can need.
        """
        p = self.pending.get(number)
        if p is None or now - max(self._progress_at, p.result.submitted_at) <= self.stall_after:
            return None
        return StalledError(
            f"batch {number} made no progress for {self.stall_after:g} s (cluster.stall_after): "
            f"{self.waits_for(number, now)}"
        )

    def waits_for(self, number: int, now: float) -> str:
        """Say what an unfinished batch waits for, as far as is known here."""
        p = self.pending[number]
        silent = f"nothing was heard from the coordinator for {now - self._heard_at:.1f} s"
        if not p.accepted:
            return f"the coordinator has not accepted it; {silent}"
        open_slices = [
            f"slice {index} for {f'module {home}' if home >= 0 else 'any live module'}"
            for batch, index, home in (self.totals.waiting if self.totals is not None else [])
            if batch == number and index not in p.slices
        ]
        rows = f"{p.left} of its {len(p.rows)} rows have not come back"
        return f"{rows}; it waits with {', '.join(open_slices)}" if open_slices else f"{rows}; {silent}"

    def _advanced(self, now: float) -> None:
        self._progress_at = now
        tokens = sum(p.left for p in self.pending.values())
        self._rows_to_come = float(REPEATS * tokens * self.spec.layers * (self._most + 1))

    def _on_totals(self, totals: Totals, now: float) -> None:
        self.totals = totals
        rows = float(totals.counts[:, TOTALS.index("rows")].sum())
        new, self._rows = max(0.0, rows - self._rows), rows
        if new and self._rows_to_come > 0:
            self._rows_to_come -= new
            self._progress_at = now

    def _on_result(self, m: Result, now: float) -> list[Send]:
        ack = Send(COORDINATOR, Ack(m.batch, m.slice))
        p = self.pending.get(m.batch)
        if p is None or m.slice in p.slices:
            self.duplicate_results += m.batch not in self._abandoned
            return [ack]
        rows = slice(m.start, m.start + len(m.rows))
        if not 0 <= rows.start <= rows.stop <= len(p.rows):
            raise WireError(f"result: rows {rows.start} to {rows.stop} of a batch of {len(p.rows)}")
        p.slices.add(m.slice)
        p.accepted = True  # or there would be no result
        r = p.result
        r.y[rows] = m.rows
        r.delivered[rows] += 1
        r.expert_tokens += m.expert_tokens
        if m.dispatch_paths is not None and m.combine_paths is not None:
            layers, _, choices = m.dispatch_paths.shape
            if r.dispatch_paths is None or r.combine_paths is None:
                r.dispatch_paths = np.zeros((layers, len(r.y), choices), np.uint8)
                r.combine_paths = np.zeros((layers, len(r.y), choices), np.uint8)
            r.dispatch_paths = widened(r.dispatch_paths, choices)
            r.combine_paths = widened(r.combine_paths, choices)
            r.dispatch_paths[:, rows, :choices] = m.dispatch_paths
            r.combine_paths[:, rows, :choices] = m.combine_paths
        if m.parts is not None and m.experts is not None and m.weights is not None:
            # Copied, as the rows are: the frame may lie in memory that its sender wants back.
            r.decisions = (r.decisions or Decisions()).joined(Decisions(m.parts, m.experts, m.weights))
        p.left -= len(m.rows)
        self._advanced(now)
        if p.left == 0:
            self._finish(m.batch, now)
        return [ack]

    def _on_failure(self, m: Failure, now: float) -> list[Send]:
        p = self.pending.get(m.batch)
        if p is not None:
            p.result.failure = m
            self._finish(m.batch, now)
        return [Send(COORDINATOR, Ack(m.batch, -1))]

    def _finish(self, batch: int, now: float) -> None:
        result = self.pending.pop(batch).result
        result.finished_at = now
        self.finished[batch] = result
