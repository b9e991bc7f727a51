"""The times at which batches arrive: what every strategy promises, and the law of each."""

from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rayemu.arrivals import ARRIVALS, Bursts, Closed, File, Poisson


@pytest.fixture(params=sorted(set(ARRIVALS) - {"closed"}))
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param != "file":
        return ARRIVALS[request.param]()
    (tmp_path / "times").write_text("\n".join(map(str, range(200))))
    return File(str(tmp_path / "times"))


def test_times_begin_at_zero_or_later_go_on_and_repeat(made: Any) -> None:
    first, again = (list(islice(made.times(seed=4), 100)) for _ in range(2))
    assert first == again and len(first) == 100
    assert first[0] >= 0 and (np.diff(first) >= 0).all() and np.isfinite(first).all()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.seed = 1


def test_another_seed_gives_other_random_times() -> None:
    for random in (Poisson(), Bursts()):
        assert next(random.times(1)) != next(random.times(2))


def test_a_closed_loop_has_no_times() -> None:
    assert Closed().times(3) is None


def test_poisson_gaps_are_exponential_and_independent() -> None:
    gaps = np.diff(list(islice(Poisson(rate=40.0).times(1), 20_001)))
    assert stats.kstest(gaps, "expon", args=(0, 1 / 40)).pvalue > 1e-3
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.03


def test_bursts_have_their_rate_and_pauses() -> None:
    arrivals = Bursts(rate=100.0, on=0.5, off=1.5)
    times = np.array(list(islice(arrivals.times(2), 40_000)))
    assert len(times) / times[-1] == pytest.approx(100 * 0.5 / 2.0, rel=0.08)
    # Of an interrupted Poisson process the gaps are hyperexponential (Kuczura, 1973). Those without a pause
    # are exponential at rate + 1/on; one is without with probability rate / (rate + 1/on).
    gaps = np.diff(times)
    short = gaps < 0.05
    assert short.mean() == pytest.approx(100 / 102 * (1 - np.exp(-102 * 0.05)) + 2 / 102 * 0.03, abs=0.005)
    assert gaps[~short].mean() > 1.0


def test_a_file_may_have_comments_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "times").write_text("# recorded\n0\n\n0.5  # two at once\n0.5\n1e1\n")
    assert File(str(tmp_path / "times")).times(0) == [0.0, 0.5, 0.5, 10.0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1\n0.5\n", "line 2: '0.5' is not allowed; allowed: a number of seconds from 1"),
        ("-1\n", "line 1: '-1'"),
        ("soon\n", "line 1: 'soon'"),
        ("nan\n", "line 1: 'nan'"),
        ("inf\n", "line 1: 'inf'"),
        ("\xff\n", "cannot be read"),
    ],
)
def test_times_that_are_none_are_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "times").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"^path: .*{says}"):
        File(str(tmp_path / "times"))


@pytest.mark.parametrize("path", ["", "/no/such/file"])
def test_a_file_must_be_there(path: str) -> None:
    with pytest.raises(ValueError, match=r"^path: "):
        File(path)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("poisson", {"rate": 0.0}),
        ("poisson", {"rate": np.nan}),
        ("bursts", {"on": 0.0}),
        ("bursts", {"off": -1}),
    ],
)
def test_parameters_are_checked(kind: str, wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}: "):
        ARRIVALS[kind](**wrong)
