"""What the faults of a run did: when each was noticed, and when the run had got over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rayemu.protocol.client import BatchResult
from rayemu.protocol.messages import Notice
from rayemu.scenario import FAULTS, Fault


@dataclass(frozen=True)
class Injected:
    """A fault of the plan: its module ("random" is resolved) and when it began; None if it never did."""

    fault: Fault
    module: int | None
    began: float | None = None


def due(fault: Fault) -> dict[str, float]:
    """When a fault was planned to begin: batch, or time_s after the first one."""
    times = {"batch": fault.at.batch, "time_s": fault.at.time}
    return {name: value for name, value in times.items() if value is not None}


def parameters(fault: Fault) -> dict[str, float]:
    """What a fault was told beside its kind, module and time."""
    names = FAULTS[fault.kind].parameters()
    given = {names[name]: value for name, value in fault.parameters.items()}
    return given if fault.duration is None else {**given, "for_s": fault.duration}


def fault_times(
    injected: Injected, notices: Sequence[Notice], results: Sequence[BatchResult], run_began: float
) -> dict[str, float | str | None]:
    """When a fault began, was detected and was recovered from; None for what did not happen.

    All times are of one clock. `began` counts from the first batch of the run, the others from the fault's
    beginning. *Detected*: the coordinator first called the fault's module suspected or dead. *Recovered*:
    the first batch finished (its last row reached the client) after the detection; that batch was in flight
    when the fault began, or was submitted later, and need not have used the module. *Rejoined*: the module,
    or its replacement, was back. Message faults hit no one module and are not detected as such.
    """
    times: dict[str, float | str | None] = dict.fromkeys(
        ("began", "detected", "signal", "recovered", "rejoined")
    )
    start = injected.began
    if start is None:
        return times
    times["began"] = start - run_began
    after = [n for n in notices if n.facts.get("module") == injected.module and n.wall_s >= start]
    detected = min((n for n in after if n.kind in ("suspected", "dead")), key=_time, default=None)
    if detected is None:
        return times
    times |= {"detected": detected.wall_s - start, "signal": str(detected.facts.get("signal"))}
    finished = [r.finished_at for r in results if r.failure is None and r.finished_at >= detected.wall_s]
    back = [n.wall_s for n in after if n.kind in ("joined", "recovered") and n.wall_s >= detected.wall_s]
    if finished:
        times["recovered"] = min(finished) - start
    if back:
        times["rejoined"] = min(back) - start
    return times


def fault_entry(
    injected: Injected,
    notices: Sequence[Notice],
    results: Sequence[BatchResult],
    run_began: float,
    clock: str,
) -> dict[str, Any]:
    """A fault as summary.json lists it; `clock` ("wall" or "virtual") is in the names of its times."""
    times = fault_times(injected, notices, results, run_began)
    entry: dict[str, Any] = {"kind": injected.fault.kind, "module": injected.module}
    entry |= {"at": due(injected.fault), **parameters(injected.fault)}
    entry["signal"] = times.pop("signal")
    return entry | {f"{name}_{clock}_s": value for name, value in times.items()}


def _time(notice: Notice) -> float:
    return notice.wall_s
