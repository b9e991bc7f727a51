"""The processors of a machine that emulates modules by processes: what is asked of them, and who sleeps."""

from __future__ import annotations

import numpy as np

from rayemu.hardware.spec import Processors
from rayemu.pricing.graph import EventGraph

Array = np.ndarray


def on_processors(
    sizes: Array,
    message: Array,
    took: Array,
    processors: Processors,
    start: Array,
    resource: Array,
    seconds: Array,
    together: int,
) -> tuple[Array, Array, Array, Array]:
    """What n events ask of the processors too, at both ends of a message; with the latency [n].

    Work takes `took`. They are one resource, `together`, that is as quick as all of them; that one of them is
    slower than all is latency. Returns the starts, resources and seconds of all that is asked, and latency.
    """
    own = processors.frame + sizes / processors.bandwidth  # [n] at each end
    own[~message] = took
    count = np.diff(start)
    place = np.cumsum(np.where(message, 2, 1) + count)
    place = np.concatenate([[0], place])
    new_resource = np.full(place[-1], together)
    new_seconds = np.empty(place[-1])
    kept = np.ones(place[-1], bool)
    at = place[1:] - 1
    new_seconds[at] = own / processors.count
    kept[at] = False
    at = at[message] - 1
    new_seconds[at] = own[message] / processors.count
    kept[at] = False
    new_resource[kept], new_seconds[kept] = resource, seconds
    late = own * (1 - 1 / processors.count)
    return place, new_resource, new_seconds, np.where(message, 2, 1) * late


class Processes:
    """Until when each process has something to do: what finds it asleep wakes it.

    All are modules, the coordinator and the client. A message wakes who gets it, work who does it.
    """

    def __init__(self, graph: EventGraph, processors: Processors) -> None:
        self.who = graph.dst.astype(np.int64) + 2  # [N] from the client, -2, on
        self.until = np.full(len(graph.module_to_node) + 2, -1.0)  # asleep before the first event
        self.wake, self.count = processors.wake, processors.count

    def woken(self, events: Array, ready: Array) -> Array:
        """Tell which of the events [n], all ready before any of them ends, find their process asleep.

        Of each process that can only be the first.
        """
        who = self.who[events]
        order = np.argsort(ready, kind="stable")
        first = order[np.unique(who[order], return_index=True)[1]]
        found = np.zeros(len(events), bool)
        found[first] = ready[first] > self.until[who[first]]
        return found

    def awake(self, events: Array, end: Array) -> None:
        """Note that the processes have something to do until the events [n] end."""
        np.maximum.at(self.until, self.who[events], end)
