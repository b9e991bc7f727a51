"""Arithmetic on timings, against hand-made cases."""

from __future__ import annotations

import pytest

from rayemu.benchmarks.measure import Run, percentile, repeat, speed, speeds, spread, summary


@pytest.mark.parametrize(
    ("samples", "q", "expected"),
    [
        ([5.0], 50, 5.0),
        ([4.0, 1.0, 3.0, 2.0], 50, 2.0),
        ([4.0, 1.0, 3.0, 2.0], 51, 3.0),
        ([4.0, 1.0, 3.0, 2.0], 0, 1.0),
        ([4.0, 1.0, 3.0, 2.0], 100, 4.0),
        ([float(i) for i in range(1, 101)], 99, 99.0),
        ([float(i) for i in range(1, 51)], 99, 50.0),  # of 50 the p99 is the worst: nothing is interpolated
    ],
)
def test_percentile_is_the_nearest_rank(samples: list[float], q: float, expected: float) -> None:
    assert percentile(samples, q) == expected


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)
    assert summary([]) == {"count": 0}
    assert spread([]) == {"count": 0}


def test_summaries() -> None:
    assert summary([3.0, 1.0, 2.0]) == {"count": 3, "median_s": 2.0, "best_s": 1.0, "worst_s": 3.0}
    assert spread([3.0, 1.0, 2.0]) == {"count": 3, "p50_s": 2.0, "p99_s": 3.0, "max_s": 3.0}


def test_a_run_is_compared_with_its_neighbours_in_time() -> None:
    """The machine becomes half as fast in the middle; the ratio stays 2."""
    bound = [Run(0, (1.0,)), Run(2, (1.0,)), Run(4, (2.0,)), Run(6, (2.0,))]
    ours = [Run(1, (2.0, 2.0)), Run(5, (4.0,))]
    assert speeds(ours, bound) == [0.5, 0.5]
    assert speed(ours, bound) == 0.5
    assert speeds([Run(3, (3.0,))], bound) == [0.5]  # midway: the median of both neighbours


def test_speed_of_what_was_not_measured() -> None:
    assert speed([], [Run(0, (1.0,))]) is None
    assert speed([Run(0, (1.0,))], []) is None


def test_repeat_counts_and_numbers_its_calls() -> None:
    calls: list[int] = []
    samples = repeat(calls.append, 3, 0.0)
    assert calls == [0, 1, 2]
    assert len(samples) == 3
    assert all(s >= 0 for s in samples)
