"""A home's outstanding requests: the window of bytes per hop, reply times, and who is overdue.

Every request is kept until all of its pairs have a valid reply. Credit is by bytes: what is under way to one
first hop stays below `window_bytes`, so a slow module slows its senders instead of filling memory.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

import numpy as np

from rayemu.alltoall import ALIVE, Parcel, View
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.messages import Dispatch, Send
from rayemu.protocol.relay import INCARNATION_SHIFT
from rayemu.protocol.slices import Unit

MOST_PATIENT = 20  # replies are waited for at most this many times `retry_after` before a probe


class Stage(Enum):
    """How far a request has come."""

    QUEUED = "it waits for room in its hop's window"
    SENT = "it is under way and holds some of the window"
    SETTLED = "nothing is waited for any more; a late answer is still welcome"


@dataclass(slots=True, eq=False)
class Request:
    """One parcel of a unit's pairs on its way."""

    unit: Unit
    parcel: Parcel
    view: View  # when it was planned
    size: int  # bytes of rows
    active: np.ndarray  # [n] bool: pairs that were not asked for again elsewhere
    message: Dispatch | None  # while it is queued: what must be asked for again is gathered again
    stage: Stage = Stage.QUEUED
    sent: float = 0.0
    deadline: float = float("inf")
    silent_probes: int = 0

    def open(self) -> np.ndarray:
        """Return which pairs [n] only this request can still bring."""
        assert self.unit.have is not None
        return self.active & ~self.unit.have[self.parcel.pairs]


class ReplyTime:
    """How long a reply may take before it is asked about: smoothed time and deviation, as in RFC 6298.

    Under load a reply takes as long as the queue in front of it; probing all of it would only add to it.
    """

    def __init__(self, least: float) -> None:
        self.least = least
        self.smoothed = self.deviation = 0.0

    def saw(self, seconds: float) -> None:
        """Take in how long a reply took."""
        if not self.smoothed:
            self.smoothed, self.deviation = seconds, seconds / 2
            return
        self.deviation += (abs(seconds - self.smoothed) - self.deviation) / 4
        self.smoothed += (seconds - self.smoothed) / 8

    def patience(self) -> float:
        """Seconds to wait for a reply."""
        return min(max(self.least, self.smoothed + 4 * self.deviation), MOST_PATIENT * self.least)


class Requests:
    """All outstanding requests of a home, by number. What they want sent is in `out` until it is taken."""

    def __init__(self, incarnation: int, config: ProtocolConfig) -> None:
        self.config = config
        self.out: list[Send] = []
        self.by_number: dict[int, Request] = {}
        self.next_number = incarnation << INCARNATION_SHIFT
        self.reply_time = ReplyTime(config.retry_after)
        self.wake = float("inf")
        self._in_flight: dict[int, int] = {}  # hop -> bytes outstanding
        self._waiting: dict[int, deque[int]] = {}  # hop -> requests that wait for window

    def number(self) -> int:
        """Return a number that no other request of this home has, in any incarnation."""
        self.next_number += 1
        return self.next_number - 1

    def add(self, number: int, request: Request, now: float) -> None:
        """Send a request, or keep it until its hop's window has room."""
        self.by_number[number] = request
        request.unit.requests.append(number)
        if self._fits(request):
            self._transmit(request, now)
        else:
            self._waiting.setdefault(request.parcel.hop, deque()).append(number)

    def answered(self, number: int, now: float) -> None:
        """Close a request if nothing of it is open any more."""
        request = self.by_number[number]
        request.silent_probes = 0
        if not request.open().any():
            del self.by_number[number]
            if request.stage is Stage.SENT:
                self.reply_time.saw(now - request.sent)
            self._release(request, now)

    def let_go(self, request: Request, missing: np.ndarray, now: float) -> None:
        """Stop waiting for pairs of a request; a late answer is still welcome."""
        request.active &= ~missing
        if not request.open().any():
            self._release(request, now)

    def close(self, unit: Unit, now: float) -> None:
        """Forget all requests of a unit."""
        for number in unit.requests:
            request = self.by_number.pop(number, None)
            if request is not None:
                self._release(request, now)
        unit.requests = []

    def load(self, modules: int) -> np.ndarray:
        """Return the rows [M] that are outstanding at each module."""
        load = np.zeros(modules, np.int64)
        for request in self.by_number.values():
            if request.stage is not Stage.SETTLED:
                np.add.at(load, request.parcel.lots[:, 0], request.parcel.lots[:, 2])
        return load

    def wait_on(self, request: Request, now: float, doublings: int = 0) -> None:
        """Put the request's deadline off."""
        request.deadline = now + self.reply_time.patience() * 2**doublings
        self.wake = min(self.wake, request.deadline)

    def overdue(self, now: float) -> list[tuple[int, Request]]:
        """Return the requests whose deadline is past; the caller puts it off or asks elsewhere.

        One of which another brought all the pairs meanwhile only gives its window back: what waits for that
        may be what the unit still lacks, and nobody will answer it.
        """
        late = [(n, r) for n, r in self.by_number.items() if r.deadline <= now]
        for _, request in late:
            if not request.open().any():
                self._release(request, now)
        self.wake = min(
            (r.deadline for r in self.by_number.values() if r.deadline > now), default=float("inf")
        )
        return [(n, r) for n, r in late if r.stage is not Stage.SETTLED]

    def orphans(self, request: Request, view: View) -> np.ndarray:
        """Return which pairs [n] of a request nobody will answer any more, or better someone else."""
        parcel, then = request.parcel, request.view.incarnations
        missing = request.open()
        if view.serves(parcel.hop, then[parcel.hop]):
            lost = [m for m in set(parcel.lots[:, 0].tolist()) if not view.serves(m, then[m])]
            missing &= np.isin(parcel.modules, lost)
        if not missing.any():
            return missing
        if (then == view.incarnations).all() and (view.state[parcel.modules] != ALIVE).any():
            missing &= _has_other(request, view)
        return missing

    def _fits(self, request: Request) -> bool:
        held = self._in_flight.get(request.parcel.hop, 0)
        return not held or held + request.size <= self.config.window_bytes

    def _transmit(self, request: Request, now: float) -> None:
        hop = request.parcel.hop
        assert request.message is not None
        self._in_flight[hop] = self._in_flight.get(hop, 0) + request.size
        request.stage, request.sent = Stage.SENT, now
        self.wait_on(request, now)
        self.out.append(Send(hop, request.message))
        request.message = None

    def _release(self, request: Request, now: float) -> None:
        """Give the hop's window back, once, and send what waits for it."""
        if request.stage is Stage.SETTLED:
            return
        hop = request.parcel.hop
        if request.stage is Stage.SENT:
            self._in_flight[hop] -= request.size
        request.stage, request.deadline, request.message = Stage.SETTLED, float("inf"), None
        queue = self._waiting.get(hop)
        while queue:
            following = self.by_number.get(queue[0])
            if following is not None and following.stage is Stage.QUEUED:
                if not self._fits(following):
                    break
                self._transmit(following, now)
            queue.popleft()


def _has_other(request: Request, view: View) -> np.ndarray:
    """Tell for each pair whether asking again could reach another module than the one it waits for.

    A merely suspected module keeps the requests that no one else can answer.
    """
    lots = request.parcel.lots
    useful = np.ones(len(lots), bool)
    for number, (module, expert, _) in enumerate(lots.tolist()):
        copies = view.placement.module[view.copies.of(request.unit.layer, expert)]
        useful[number] = request.parcel.hop != module or not len(copies) or (copies != module).any()
    return np.repeat(useful, lots[:, 2])
