"""Timing and the arithmetic on timings. Times in seconds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Run:
    """Samples taken together. `position` orders runs in time: close ones saw the same noise."""

    position: float
    seconds: tuple[float, ...]


def repeat(call: Callable[[int], object], least: int, seconds: float) -> list[float]:
    """Time call(0), call(1), ... until there are `least` samples and `seconds` have passed."""
    samples: list[float] = []
    start = time.perf_counter()
    while len(samples) < least or time.perf_counter() - start < seconds:
        began = time.perf_counter()
        call(len(samples))
        samples.append(time.perf_counter() - began)
    return samples


def percentile(samples: Sequence[float], q: float) -> float:
    """Smallest sample that at least q percent of the samples do not exceed (nearest rank).

    It never interpolates: the p99 of 50 samples is their maximum. Raises ValueError for no samples.
    """
    if not samples:
        raise ValueError("a percentile of no samples")
    rank = max(1, math.ceil(q / 100 * len(samples)))
    return sorted(samples)[rank - 1]


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Count, median, best and worst of samples."""
    if not samples:
        return {"count": 0}
    return {
        "count": len(samples),
        "median_s": statistics.median(samples),
        "best_s": min(samples),
        "worst_s": max(samples),
    }


def spread(samples: Sequence[float]) -> dict[str, Any]:
    """Count, p50, p99 and maximum of samples (nearest rank)."""
    if not samples:
        return {"count": 0}
    return {
        "count": len(samples),
        "p50_s": percentile(samples, 50),
        "p99_s": percentile(samples, 99),
        "max_s": max(samples),
    }


def pooled(runs: Sequence[Run]) -> list[float]:
    """All samples of the runs."""
    return [s for run in runs for s in run.seconds]


def speeds(of: Sequence[Run], against: Sequence[Run]) -> list[float]:
    """How many times as fast as `against` each run of `of` is, by medians.

    A run is compared with the runs of `against` that lie nearest to it in time (two where it lies midway),
    so that slow drift of the machine cancels.
    """
    found = []
    for run in of:
        if not run.seconds or not against:
            continue
        nearest = min(abs(other.position - run.position) for other in against)
        near = pooled([o for o in against if abs(o.position - run.position) <= nearest + 1e-9])
        found.append(statistics.median(near) / statistics.median(run.seconds))
    return found


def speed(of: Sequence[Run], against: Sequence[Run]) -> float | None:
    """Median of `speeds`, or None where either was not measured."""
    found = speeds(of, against)
    return statistics.median(found) if found else None
