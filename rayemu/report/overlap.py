"""How far the stages of different units overlap, by a run's record: what routing costs that nobody waits for.

A unit (one micro-batch of a slice) passes through each layer in four stages:

- `route`: from when its home begins to choose, or asks for choices, until it has them;
- `dispatch`: from then until its last rows have arrived where they are computed;
- `compute`: while its rows are computed, in whichever module;
- `combine`: from the end of the last of that until its outputs are summed.

One unit's stages follow each other (but for the shared expert, which is computed while it routes). What
overlaps are those of different units: other micro-batches, slices and batches. Seconds on the record's clock.

Shapes: S stages, n intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rayemu.drivers.record import (
    COMBINE,
    DISPATCH,
    GEMM,
    OFFER,
    OFFER_REQUEST,
    ROUTE,
    ROUTE_REQUEST,
    SCORES,
    clock_of,
    ends,
    queued,
    starts,
)

STAGES = ("route", "dispatch", "compute", "combine")
_UNIT = ("home", "batch", "slice", "micro", "layer")
_ASKING = (ROUTE, ROUTE_REQUEST, OFFER_REQUEST, OFFER, SCORES)


@dataclass(frozen=True, eq=False)
class Intervals:
    """When units were in a stage: `low` [n] to `high` [n], disjoint for each `unit` [n]."""

    unit: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, eq=False)
class Overlap:
    """Time in each stage, summed over units, and what others did meanwhile."""

    clock: str  # "wall" or "virtual"
    seconds: np.ndarray  # [S]
    shares: np.ndarray  # [S, S]: of the time in a stage, how much some other unit was in each; NaN of no time

    @property
    def hidden(self) -> float:
        """Of routing's time, the share in which experts worked for other units; NaN if it takes none."""
        return float(self.shares[STAGES.index("route"), STAGES.index("compute")])

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain data; None where a stage takes no time."""
        shares = [[None if np.isnan(s) else float(s) for s in row] for row in self.shares]
        return {
            f"stage_{self.clock}_s": dict(zip(STAGES, self.seconds.tolist(), strict=True)),
            "meanwhile": {
                stage: dict(zip(STAGES, row, strict=True)) for stage, row in zip(STAGES, shares, strict=True)
            },
        }


def overlap(record: np.ndarray) -> Overlap:
    """How the stages of different units overlap in a record, as `collected` or `load_columns` give it."""
    stages = intervals(record)
    seconds = np.array([float((s.high - s.low).sum()) for s in stages])
    meanwhile = np.array([[_with_others(one, other) for other in stages] for one in stages])
    with np.errstate(invalid="ignore"):
        shares = np.where(seconds[:, None] > 0, meanwhile / seconds[:, None], np.nan)
    return Overlap(clock_of(record), seconds, shares)


def intervals(record: np.ndarray) -> tuple[Intervals, ...]:
    """When each unit was in each of the STAGES. A unit is one row of `_UNIT`: each layer is another."""
    kind = record["kind"]
    keys = np.stack([record[name].astype(np.int64) for name in _UNIT])
    unit = np.unique(keys, axis=1, return_inverse=True)[1].reshape(-1)  # [N]
    units = int(unit.max(initial=-1)) + 1
    at_home = record["src"] == record["home"]
    begins, ready, done = starts(record), queued(record), ends(record)

    def first(rows: np.ndarray, times: np.ndarray) -> np.ndarray:
        found = np.full(units, np.inf)
        np.minimum.at(found, unit[rows], times[rows])
        return found

    def last(rows: np.ndarray, times: np.ndarray) -> np.ndarray:
        found = np.full(units, -np.inf)
        np.maximum.at(found, unit[rows], times[rows])
        return found

    gemm = kind == GEMM
    routed = gemm & (record["request"] >= 0)
    known = first((kind == DISPATCH) | (routed & at_home), ready)
    arrived = last(routed, ready)
    finished = last(gemm, done)
    summed = last(kind == COMBINE, done)
    asked = first(np.isin(kind, _ASKING) & at_home & ((kind != OFFER) | (record["request"] < 0)), begins)
    # With the slice come choices of its rows that the coordinator has made.
    given = (kind == ROUTE) & (record["src"] < 0) & (record["micro"] < 0) & (record["slice"] >= 0)
    number = np.arange(units)
    return (
        _merged(
            np.concatenate([number, unit[given]]),
            np.concatenate([asked, ready[given]]),
            np.concatenate([known, done[given]]),
        ),
        _merged(number, known, arrived),
        _merged(unit[gemm], begins[gemm], done[gemm]),
        _merged(number, finished, summed),
    )


def _merged(unit: np.ndarray, low: np.ndarray, high: np.ndarray) -> Intervals:
    """Join what overlaps of a unit; what is not known at one end, or empty, is left out."""
    there = np.isfinite(low) & np.isfinite(high) & (high > low)
    unit, low, high = unit[there], low[there], high[there]
    if not len(unit):
        return Intervals(unit, low, high)
    order = np.lexsort((low, unit))
    unit, low, high = unit[order], low[order], high[order]
    # With the units one behind the other in time, a running maximum does not reach from one to the next.
    began, length = low.min(), high.max() - low.min() + 1.0
    shift = (np.cumsum(np.diff(unit, prepend=unit[0]) > 0) * length) - began
    reached = np.maximum.accumulate(high + shift)
    new = np.flatnonzero(np.append(True, (low + shift)[1:] > reached[:-1]))
    return Intervals(unit[new], low[new], np.maximum.reduceat(high, new))


def _with_others(one: Intervals, other: Intervals) -> float:
    """Of the intervals of `one`, the time during which some other unit was in one of `other`."""
    if not len(one.unit) or not len(other.unit):
        return 0.0
    times = np.concatenate([other.low, other.high])
    steps = np.repeat([1, -1], len(other.unit))
    order = np.argsort(times, kind="stable")
    times, active = times[order], np.cumsum(steps[order])[:-1]  # units in the stage, between two times
    length = np.diff(times)

    def passed(counts: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Time before `at` during which `counts` holds."""
        return np.interp(at, times, np.concatenate([[0.0], np.cumsum(length * counts)]))

    some = passed(active > 0, one.high) - passed(active > 0, one.low)
    # Less what only the unit itself was in.
    mine, theirs = _pairs(one.unit, other.unit)
    low, high = np.maximum(one.low[mine], other.low[theirs]), np.minimum(one.high[mine], other.high[theirs])
    both = high > low
    alone = passed(active == 1, high[both]) - passed(active == 1, low[both])
    return float(some.sum() - alone.sum())


def _pairs(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All places in `one` and in `other` that have the same value; both are sorted."""
    low, high = np.searchsorted(other, one, "left"), np.searchsorted(other, one, "right")
    count = high - low
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(np.arange(len(one)), count), np.repeat(low, count) + within
