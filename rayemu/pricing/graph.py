"""A run as a graph of events with costs, at the model's full width, recorded or drawn.

Times are left behind: what is left is who did what, how much of it, and what waited for what.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROUTE, MESSAGE, EXPERT, COMBINE = range(4)
KINDS = ("route", "message", "expert", "combine")
# What a message does, for the critical path: to the experts, back to the home, or with the coordinator.
DISPATCH, REPLY, OTHER = range(3)


@dataclass(frozen=True, eq=False)
class EventGraph:
    """N events, causes first, as flat arrays.

    `src` and `dst` [N] are modules, -1 the coordinator and -2 the client, equal for work. `expert` is -1 of
    what is for several or none, and of the shared expert or dense FFN. A merged GEMM is one event; its batch
    is that of its first part. `bytes` [N] is what a message carries at the model's full width, 0 of work;
    `flops` [N] likewise, 0 of messages. `request` [N] is one number for all messages of a request, -1
    elsewhere. `causes[cause_start[n] : cause_start[n + 1]]` are the events that event n waited for.
    `gaps` counts causes that must have been and are not in the record, as of a process that died with it.
    """

    kind: np.ndarray  # [N] uint8: ROUTE, MESSAGE, EXPERT, COMBINE
    role: np.ndarray  # [N] uint8: of messages, DISPATCH, REPLY or OTHER; 0 elsewhere
    src: np.ndarray  # [N] int16
    dst: np.ndarray  # [N] int16
    batch: np.ndarray  # [N] int32
    layer: np.ndarray  # [N] int32
    expert: np.ndarray  # [N] int32
    rows: np.ndarray  # [N] int32
    bytes: np.ndarray  # [N] float64
    flops: np.ndarray  # [N] float64
    request: np.ndarray  # [N] int64
    cause_start: np.ndarray  # [N + 1] int64, or int32
    causes: np.ndarray  # [C] int64, or int32
    module_to_node: np.ndarray  # [M] int32
    gaps: int = 0

    def __len__(self) -> int:
        return len(self.kind)

    def causes_of(self, event: int) -> np.ndarray:
        """Return the events that an event waited for."""
        return self.causes[self.cause_start[event] : self.cause_start[event + 1]]
