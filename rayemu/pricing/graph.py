"""The events of a run as a graph: what was done and sent, where, how much of it, and what came before it.

It is made from a record (`rayemu.pricing.recorded`) or drawn without a run (planning mode), and scheduled on
hardware. Times are left behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROUTE, MESSAGE, EXPERT, COMBINE = range(4)
KINDS = ("route", "message", "expert", "combine")
# What a message does, for the critical path: to the experts, back to the home, or with coordinator or client.
DISPATCH, REPLY, OTHER = range(3)


@dataclass(frozen=True, eq=False)
class EventGraph:
    """N events in an order in which causes come before what they cause. All figures at the full width.

    Work has src == dst; a message goes from one module to another (-1: the coordinator, the host for the
    hardware; -2: the client). An EXPERT event is one merged product; its batch is that of its first part.
    `expert` -1: the shared expert or the dense layer, or of a message what is for several or none.
    `causes[cause_start[n] : cause_start[n + 1]]` are the events that event n waited for. `gaps` counts causes
    that must have been and are not in the record, as of a process that died with it.
    """

    kind: np.ndarray  # [N] uint8: ROUTE, MESSAGE, EXPERT, COMBINE
    role: np.ndarray  # [N] uint8: of messages DISPATCH, REPLY or OTHER; OTHER elsewhere
    src: np.ndarray  # [N] int16
    dst: np.ndarray  # [N] int16
    batch: np.ndarray  # [N] int32
    layer: np.ndarray  # [N] int32
    expert: np.ndarray  # [N] int32
    rows: np.ndarray  # [N] int32
    bytes: np.ndarray  # [N] float64: what a message carries; 0 of work
    cause_start: np.ndarray  # [N + 1] int64
    causes: np.ndarray  # [C] int64: earlier events
    module_to_node: np.ndarray  # [M] int32
    flops: np.ndarray | None = None  # [N] float64: of work; None where nobody asked
    request: np.ndarray | None = None  # [N] int64: tells the messages of a home's request apart; -1 elsewhere
    gaps: int = 0

    def __len__(self) -> int:
        return len(self.kind)

    def causes_of(self, event: int) -> np.ndarray:
        """Return the events that an event waited for."""
        return self.causes[self.cause_start[event] : self.cause_start[event + 1]]
