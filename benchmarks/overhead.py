"""What the fault machinery costs while nothing fails, and what recording costs.

The same run with heartbeats, deadlines and retries as they are by default, with such long ones that they
never act, and without a record; the runs alternate. What cannot be switched off (checksums, requests kept
until they are answered, the ledger) is in all and shows in the comparison with the bare GEMMs.
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


WITHOUT = {
    "never": Contender(
        "never", "deadlines never act", False, partial(emulated, exchange="hierarchical", cluster=NEVER)
    ),
    "unrecorded": Contender(
        "unrecorded", "without a record", False, partial(emulated, exchange="hierarchical", record=False)
    ),
}


def overhead(
    workload: Workload, effort: Effort, say: Callable[[str], None], without: str = "never"
) -> dict[str, Result]:
    """Measure the default and the variant of that name in WITHOUT in turns (A B B A ...)."""
    default = partial(emulated, exchange="hierarchical")
    variants = [Contender("default", "as it is by default", False, default), WITHOUT[without]]
    results = {c.name: Result(c) for c in variants}
    position = 0
    for number in range(effort.rounds):
        for contender in variants if number % 2 == 0 else variants[::-1]:
            say(f"overhead, {workload.size.name}: pair {number + 1} of {effort.rounds}, {contender.name}")
            with contender.open(workload) as subject:
                measure(workload, subject, results[contender.name], effort, position)
            position += 1
    return results


def overhead_ratios(results: dict[str, Result], without: str = "never") -> dict[str, dict[str, Any]]:
    """Time by default over time without, less one, per pair: median, least and most."""
    table = {}
    for what in ("latency", "stream"):
        default, other = getattr(results["default"], what), getattr(results[without], what)
        found = [ratio - 1.0 for a, b in zip(default, other, strict=True) for ratio in speeds([b], [a])]
        table[what] = {"median": statistics.median(found), "least": min(found), "most": max(found)}
    return table
