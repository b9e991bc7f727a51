"""The ledger: which batch was cut into which slices, who is home for them, which have arrived."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rayemu.alltoall import ALIVE, View, cut_slices
from rayemu.protocol.messages import Send, Slice, SliceProbe

NUDGE = 4.0  # slices are probed after this many retry times, doubling


@dataclass(slots=True, eq=False)
class _Entry:
    slice: int
    low: int
    high: int
    home: int
    incarnation: int
    deadline: float
    probes: int = 0


@dataclass(slots=True, eq=False)
class _Batch:
    rows: np.ndarray  # [T, D]
    slices: int
    open: dict[int, _Entry] = field(default_factory=dict)


class Ledger:
    """Keeps every batch until all of its slices are acknowledged; re-issues those of dead homes."""

    def __init__(self, min_slice_rows: int | None, retry_after: float, choices: int = 1) -> None:
        self.min_slice_rows, self.choices = min_slice_rows, choices
        self.nudge_after = NUDGE * retry_after
        self.batches: dict[int, _Batch] = {}
        self.complete_below = 0  # all batches below are complete
        self.completed: set[int] = set()  # and these above it
        self.reissued = 0

    def submit(self, number: int, rows: np.ndarray, view: View, now: float) -> list[Send]:
        """Cut a batch into slices and assign them, starting at another module for each batch."""
        if number in self.batches or number in self.completed or number < self.complete_below:
            return []
        live = np.flatnonzero(view.state == ALIVE)
        returned = rows.nbytes * self.choices
        cuts = cut_slices(len(rows), max(1, len(live)), self.min_slice_rows, returned)
        batch = self.batches[number] = _Batch(rows, len(cuts))
        for index, (low, high) in enumerate(cuts):
            batch.open[index] = _Entry(index, low, high, -1, 0, now)
        return self._assign(number, batch, list(batch.open.values()), view, now)

    def acknowledge(self, number: int, index: int) -> None:
        """Tick slice `index` off; -1 forgets the batch."""
        batch = self.batches.get(number)
        if batch is None:
            return
        batch.open.pop(index, None)
        if index < 0 or not batch.open:
            del self.batches[number]
            self.completed.add(number)
            self._advance()

    def forget_below(self, number: int) -> None:
        """Take all batches below a number for complete, also those that never came here."""
        if number > self.complete_below:
            self.complete_below = number
            self.batches = {n: batch for n, batch in self.batches.items() if n >= number}
            self.completed = {n for n in self.completed if n >= number}
            self._advance()

    def _advance(self) -> None:
        while self.complete_below in self.completed:
            self.completed.remove(self.complete_below)
            self.complete_below += 1

    def on_view(self, view: View, now: float) -> list[Send]:
        """Give the slices of dead or hanging homes to live ones."""
        sends = []
        for number, batch in self.batches.items():
            orphans = [e for e in batch.open.values() if e.home < 0 or not view.serves(e.home, e.incarnation)]
            sends += self._assign(number, batch, orphans, view, now)
        return sends

    def on_status(
        self, number: int, index: int, home: int, known: bool, view: View, now: float
    ) -> list[Send]:
        """A home answered a probe: wait on, or send it the slice again."""
        batch = self.batches.get(number)
        entry = batch.open.get(index) if batch else None
        if batch is None or entry is None or entry.home != home:
            return []
        entry.probes = 0
        entry.deadline = now + self.nudge_after
        if known:
            return []
        again = self._send(number, batch, entry)
        assert isinstance(again.message, Slice)
        again.message.rows = again.message.rows.copy()  # if it could not reach them where they lie
        return [again]

    def tick(self, view: View, now: float) -> list[Send]:
        """Probe homes whose slices are overdue."""
        sends = []
        for number, batch in self.batches.items():
            for entry in batch.open.values():
                if entry.home >= 0 and entry.deadline <= now:
                    entry.probes += 1
                    entry.deadline = now + self.nudge_after * 2 ** min(entry.probes, 3)
                    sends.append(Send(entry.home, SliceProbe(number, entry.slice)))
        return sends

    def deadline(self) -> float:
        """When `tick` has something to do: a slice without a home is no one's to be probed."""
        entries = (e for b in self.batches.values() for e in b.open.values())
        return min((e.deadline for e in entries if e.home >= 0), default=float("inf"))

    def _assign(
        self, number: int, batch: _Batch, entries: list[_Entry], view: View, now: float
    ) -> list[Send]:
        live = np.flatnonzero(view.state == ALIVE).tolist()
        sends = []
        for entry in entries:
            entry.deadline = now + self.nudge_after
            if entry.home >= 0 and live:
                self.reissued += 1
            if not live:
                entry.home = -1  # assigned when someone joins
                continue
            stride = max(1, len(live) // batch.slices)
            entry.home = live[(number + entry.slice * stride) % len(live)]
            entry.incarnation = int(view.incarnations[entry.home])
            sends.append(self._send(number, batch, entry))
        return sends

    def _send(self, number: int, batch: _Batch, entry: _Entry) -> Send:
        rows = batch.rows[entry.low : entry.high]
        return Send(
            entry.home, Slice(number, entry.slice, entry.low, batch.slices, self.complete_below, rows)
        )
