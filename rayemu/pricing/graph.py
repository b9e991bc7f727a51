"""The events of a run as a graph: what was done and sent, where, how much of it, and what had to come before.

It is made from a record (`graph_of`) or drawn without a run (planning mode), and scheduled on hardware.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROUTE, MESSAGE, EXPERT, COMBINE = range(4)
KINDS = ("route", "message", "expert", "combine")
# What a message does, for the critical path: to the experts, back to the home, or with the coordinator.
DISPATCH, REPLY, OTHER = range(3)


@dataclass(frozen=True)
class EventGraph:
    """N events in an order in which causes come before what they cause. All figures at the full width.

    Work has src == dst; a message goes from one module to another (-1: the coordinator or, for the hardware,
    the host; -2: the client, whose messages cost nothing). An EXPERT event is one merged product: its `batch`
    is that of most of its rows. `expert` -1: the shared expert, or the dense layer.
    """

    kind: np.ndarray  # [N] uint8
    role: np.ndarray  # [N] uint8: of messages, DISPATCH, REPLY or OTHER; 0 elsewhere
    src: np.ndarray  # [N] int16
    dst: np.ndarray  # [N] int16
    batch: np.ndarray  # [N] int32
    layer: np.ndarray  # [N] int16
    expert: np.ndarray  # [N] int32
    rows: np.ndarray  # [N] int64
    bytes: np.ndarray  # [N] float64: what a message carries
    cause_start: np.ndarray  # [N + 1] int64: causes of event i are causes[cause_start[i]:cause_start[i + 1]]
    causes: np.ndarray  # [C] int64: earlier events
    module_to_node: np.ndarray  # [M] int32

    def __len__(self) -> int:
        return len(self.kind)
