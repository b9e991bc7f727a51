"""The client's protocol: submits batches, takes each row's result once, in batch order. Sans-IO."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rayemu.compression import WireError
from rayemu.protocol.messages import (
    COORDINATOR,
    Accepted,
    Ack,
    Epoch,
    Failure,
    Message,
    Notice,
    Result,
    Send,
    Submit,
    Totals,
)


@dataclass(slots=True, eq=False)
class BatchResult:
    """A finished batch."""

    batch: int
    y: np.ndarray  # [T, D]
    expert_tokens: np.ndarray  # [L, E] int64
    delivered: np.ndarray  # [T] how often each row was taken: 1 everywhere, or the protocol is broken
    dispatch_paths: np.ndarray | None = None  # [L, T, K], see `replay`
    combine_paths: np.ndarray | None = None
    failure: Failure | None = None
    submitted_at: float = 0.0
    finished_at: float = 0.0


@dataclass(slots=True, eq=False)
class _Pending:
    rows: np.ndarray
    result: BatchResult
    retry_at: float
    accepted: bool = False
    shards: set[int] = field(default_factory=set)
    left: int = 0


class ClientMachine:
    """State machine of the client: one per emulator. `receive` raises WireError for rows of no batch."""

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        self.pending: dict[int, _Pending] = {}
        self.finished: dict[int, BatchResult] = {}
        self.next_batch = 0
        self.next_out = 0
        self.duplicate_results = 0
        self.epoch: Epoch | None = None
        self.notices: list[Notice] = []
        self.totals: Totals | None = None

    def submit(self, rows: np.ndarray, layers: int, experts: int, now: float) -> tuple[int, list[Send]]:
        """Submit a batch x [T, D], T > 0; return its number."""
        number = self.next_batch
        self.next_batch += 1
        result = BatchResult(
            number,
            np.empty(rows.shape, np.float32),
            np.zeros((layers, experts), np.int64),
            np.zeros(len(rows), np.int32),
            submitted_at=now,
        )
        self.pending[number] = _Pending(rows, result, now + 4 * self.retry_after, left=len(rows))
        return number, [Send(COORDINATOR, Submit(number, rows))]

    def receive(self, message: Message, now: float) -> list[Send]:
        """Handle one message."""
        if isinstance(message, Result):
            return self._on_result(message, now)
        if isinstance(message, Accepted) and message.batch in self.pending:
            self.pending[message.batch].accepted = True
        elif isinstance(message, Failure):
            return self._on_failure(message, now)
        elif isinstance(message, Epoch):
            if self.epoch is None or message.epoch > self.epoch.epoch:
                self.epoch = message
        elif isinstance(message, Totals):
            self.totals = message
        elif isinstance(message, Notice):
            self.notices.append(message)
        return []

    def tick(self, now: float) -> list[Send]:
        """Submit again what the coordinator has not accepted."""
        sends = []
        for number, p in self.pending.items():
            if not p.accepted and not p.shards and p.retry_at <= now:
                p.retry_at = now + 4 * self.retry_after
                sends.append(Send(COORDINATOR, Submit(number, p.rows)))
        return sends

    def deadline(self) -> float:
        """When `tick` is due."""
        return min((p.retry_at for p in self.pending.values() if not p.accepted), default=float("inf"))

    def take(self) -> BatchResult | None:
        """Return the next batch in order, if it is finished."""
        result = self.finished.pop(self.next_out, None)
        if result is not None:
            self.next_out += 1
        return result

    def _on_result(self, m: Result, now: float) -> list[Send]:
        ack = Send(COORDINATOR, Ack(m.batch, m.shard))
        p = self.pending.get(m.batch)
        if p is None or m.shard in p.shards:
            self.duplicate_results += 1
            return [ack]
        rows = slice(m.start, m.start + len(m.rows))
        if not 0 <= rows.start <= rows.stop <= len(p.rows):
            raise WireError(f"result: rows {rows.start} to {rows.stop} of a batch of {len(p.rows)}")
        p.shards.add(m.shard)
        r = p.result
        r.y[rows] = m.rows
        r.delivered[rows] += 1
        r.expert_tokens += m.expert_tokens
        if m.dispatch_paths is not None and m.combine_paths is not None:
            if r.dispatch_paths is None or r.combine_paths is None:
                layers, _, choices = m.dispatch_paths.shape
                r.dispatch_paths = np.zeros((layers, len(r.y), choices), np.uint8)
                r.combine_paths = np.zeros((layers, len(r.y), choices), np.uint8)
            r.dispatch_paths[:, rows] = m.dispatch_paths
            r.combine_paths[:, rows] = m.combine_paths
        p.left -= len(m.rows)
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
