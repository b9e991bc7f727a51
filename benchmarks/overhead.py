"""What the fault machinery costs while nothing fails.

The same run with heartbeats, deadlines and retries as they are by default, and with such long ones that they
never act; the runs alternate. What cannot be switched off (checksums, requests kept until they are answered,
the ledger) is in both and shows in the comparison with the bare GEMMs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from .compare import Effort, Result, measure
from .contenders import Contender, emulated
from .measure import speeds
from .workload import Workload

NEVER = {
    "heartbeat": "1 h",
    "suspect_after": "2 h",
    "evict_after": "3 h",
    "retry_after": "1 h",
    "stall_after": "2 h",
    "replace_after": "1 h",
}


def overhead(workload: Workload, effort: Effort, say: Callable[[str], None]) -> dict[str, Result]:
    """Measure the default and the silent variant in turns (A B B A ...)."""
    default = partial(emulated, exchange="hierarchical")
    never = partial(emulated, exchange="hierarchical", cluster=NEVER)
    variants = [
        Contender("default", "deadlines by default", False, default),
        Contender("never", "deadlines never act", False, never),
    ]
    results = {c.name: Result(c) for c in variants}
    position = 0
    for number in range(effort.rounds):
        for contender in variants if number % 2 == 0 else variants[::-1]:
            say(f"overhead, {workload.size.name}: pair {number + 1} of {effort.rounds}, {contender.name}")
            with contender.open(workload) as subject:
                measure(workload, subject, results[contender.name], effort, position)
            position += 1
    return results


def overhead_ratios(results: dict[str, Result]) -> dict[str, dict[str, Any]]:
    """Time by default over time without, less one, per pair: median, least and most."""
    table = {}
    for what in ("latency", "stream"):
        default, never = getattr(results["default"], what), getattr(results["never"], what)
        found = [ratio - 1.0 for a, b in zip(default, never, strict=True) for ratio in speeds([b], [a])]
        table[what] = {"median": statistics.median(found), "least": min(found), "most": max(found)}
    return table
