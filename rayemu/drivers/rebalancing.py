"""Carries out what a rebalancer decides, beside the batches: plans in a thread of its own, moves, tells.

Triggers (a predictor may train for seconds) and planners run in that thread, where results arrive: neither
the coordinator, nor any module, nor who takes the results waits for them.
"""

from __future__ import annotations

import itertools
import statistics
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from rayemu.balance.rebalancer import Decision, Rebalancer
from rayemu.drivers.backend import Backend
from rayemu.protocol.client import BatchResult
from rayemu.protocol.messages import Notice

RECENT = 16  # batches whose intervals tell how long one takes


class Rebalancing:
    """Watches the results of a backend. Any thread may call anything.

    `at_once` makes plans in the caller's thread: then a simulation gives the same run again.
    """

    def __init__(self, rebalancer: Rebalancer, backend: Backend, at_once: bool) -> None:
        self.rebalancer, self._backend = rebalancer, backend
        self._thread = None if at_once else ThreadPoolExecutor(1, "planner")
        self._lock = threading.Lock()
        self._planning: Future[Decision | None] | None = None
        self._batch = -1  # that the plan under way was asked for at
        self._move: int | None = None  # the move under way
        self._finished: deque[float] = deque(maxlen=RECENT)
        self._notices: list[Notice] = []

    def observe(self, result: BatchResult) -> None:
        """Take in a result; plan if that is due, and move if a plan is worth it."""
        if result.failure is not None or not len(result.delivered):
            return
        with self._lock:
            self.rebalancer.observe(result.expert_tokens)
            self._finished.append(result.finished_at)
            if self._planning is not None and self._planning.done():
                self._act(self._planning)
            if self._move is not None:
                status = self._backend.moved(self._move)
                if status is None or not status.done:
                    return
                self._move = None
            if self._planning is None:
                self._ask(result.batch)

    def take_notices(self) -> list[Notice]:
        """Return and forget what was decided."""
        with self._lock:
            taken, self._notices = self._notices, []
            return taken

    def close(self) -> None:
        """Let go of the thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _ask(self, batch: int) -> None:
        self._batch = batch
        loads, since = self.rebalancer.recall()
        present, batch_s = self._backend.placement, self._batch_s()

        def plan() -> Decision | None:
            return self.rebalancer.consider(loads, since, present, batch_s)

        self._planning = _done(plan) if self._thread is None else self._thread.submit(plan)
        if self._planning.done():
            self._act(self._planning)

    def _act(self, planned: Future[Decision | None]) -> None:
        self._planning = None
        try:
            decision = planned.result()
        except Exception as error:  # of a trigger or planner: the run goes on as it is, and says so
            why = f"{type(error).__name__}: {error}"
            self._note({"batch": self._batch, "decision": "failed", "why": why})
            return
        if decision is None:
            return
        facts: dict[str, object] = {"batch": self._batch, **decision.facts()}
        if decision.plan is not None:
            self._move = self._backend.move(decision.plan)
            facts["move"] = self._move
        self._note(facts)

    def _note(self, facts: dict[str, object]) -> None:
        self._notices.append(Notice("rebalance", self._backend.now, facts))

    def _batch_s(self) -> float | None:
        """How long a batch takes at present: the median of the time between two results.

        Results are taken in the order of submission, but need not have finished in it.
        """
        gaps = [after - before for before, after in itertools.pairwise(sorted(self._finished))]
        return statistics.median(gaps) if gaps else None


def _done(work: Callable[[], Decision | None]) -> Future[Decision | None]:
    future: Future[Decision | None] = Future()
    try:
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)
    return future
