"""`auto` and `deadline`: what they choose is right by hand-made arithmetic, and they do not flap."""

from __future__ import annotations

import math
from time import thread_time
from typing import Any

import numpy as np
import pytest

from rayemu.compression import CodecError, Coders, Gauge, make_codec, make_policy
from rayemu.compression.adaptive import EVERY, WINS
from rayemu.compression.gauge import DOUBTS, ENOUGH, FRESH, LEAST, WINDOW, Line

RNG = np.random.default_rng(5)
ROWS = np.random.default_rng(0).standard_normal((256, 256), dtype=np.float32)  # 256 KiB


class Fixed(Coders):
    """Coders whose speed is given: seconds per byte, encoding and decoding together; sizes are sampled."""

    def __init__(self, per_byte: dict[str, float]) -> None:
        super().__init__(lambda: 0.0)
        self.per_byte = per_byte

    def seconds(self, codec: Any, nbytes: int) -> float:
        return nbytes * self.per_byte.get(codec.name, 0.0)


SPEEDS = {"bf16": 1e-9, "int8": 2e-9, "int4": 4e-9}


def feed(gauge: Gauge, rate: float, seed: int = 0, latency: float = 2e-4, frames: int = 200) -> None:
    """Frames of all sizes over a link of this rate; a busy machine delays most of them, by milliseconds."""
    rng = np.random.default_rng(seed)
    for _ in range(frames):
        size = int(rng.integers(2_000, 600_000))
        late = float(rng.exponential(2e-3)) if rng.random() < 0.8 else 0.0
        gauge.arrived(size, latency + size / rate + late)


def chosen(spec: Any, rate: float | None, calls: int = EVERY * (WINS + 1), **feeding: Any) -> str:
    policy, gauge = make_policy(spec), Gauge(Fixed(SPEEDS), RNG)
    if rate is not None:
        feed(gauge, rate, **feeding)
    chooser = policy.chooser(gauge)
    for _ in range(calls):
        index = chooser.choose(ROWS)
    return str(policy.codecs[index])


@pytest.mark.parametrize(("rate", "most"), [(5e6, 1.7), (50e6, 1.7), (500e6, 3)])  # in doubt it is fast
@pytest.mark.parametrize("seed", range(5))
def test_the_rate_of_a_link_is_found_behind_a_busy_machine(rate: float, most: float, seed: int) -> None:
    gauge = Gauge(Coders(thread_time), RNG)
    feed(gauge, rate, seed)
    assert gauge.rate is not None and 0.6 < gauge.rate / rate < most


@pytest.mark.parametrize("seed", range(5))
def test_latency_is_not_taken_for_a_slow_link(seed: int) -> None:
    gauge = Gauge(Coders(thread_time), RNG)
    feed(gauge, 20e9, seed, latency=1e-3)
    assert gauge.rate is not None and gauge.rate > 1.5e9


def test_nothing_is_said_too_early_and_a_crowded_link_does_not_lose_its_rate() -> None:
    gauge = Gauge(Coders(thread_time), RNG)
    feed(gauge, 50e6, frames=LEAST * FRESH - 1)
    assert gauge.rate is None
    feed(gauge, 50e6)
    feed(gauge, 50e6, latency=0.1)  # a queue: even the soonest frame waited
    assert gauge.rate is not None and 0.6 < gauge.rate / 50e6 < 3
    crowded = Gauge(Coders(thread_time), RNG)
    feed(crowded, 50e6, latency=0.1)  # from the beginning: at least it is not fast
    assert crowded.rate is not None and crowded.rate < 50e6


def test_a_clock_that_was_set_back_does_no_harm() -> None:
    gauge = Gauge(Coders(thread_time), RNG)
    for number in range(200):
        gauge.arrived(1000 + 100 * number, 0.1 if number % 3 else -5.0)
    assert gauge.rate is not None and gauge.rate > 0


def test_auto_compresses_where_the_link_is_slower_than_the_coder() -> None:
    # Seconds per byte: raw 1/r; bf16 0.5/r + 1e-9; int8 0.25/r + 2e-9 (and a bit: its scales). A change must
    # bring a fifth: from raw to int8 below 0.275e9 B/s, to bf16 between that and 0.3e9.
    assert chosen("auto", None) == "raw"
    assert chosen("auto", 2e9) == "raw"
    assert chosen("auto", 400e6) == "raw"
    assert chosen("auto", 100e6) == "int8"
    assert chosen("auto", 1e6) == "int8"
    assert chosen({"auto": ["raw", "bf16"]}, 100e6) == "bf16"
    assert chosen({"auto": ["raw", "sparse"]}, 1e6) == "raw"  # rows without zeros
    assert chosen({"auto": ["raw", "fp16"]}, 1e6) == "fp16"


def test_auto_leaves_the_processor_alone_while_the_link_keeps_up() -> None:
    policy, gauge = make_policy("auto"), Gauge(Fixed(SPEEDS), RNG)
    chooser = policy.chooser(gauge)
    feed(gauge, 50e6)

    def after(seconds: float, busy: float) -> int:
        """Choose many times; each time so many seconds pass, with so busy a processor."""
        for _ in range(8):
            for _ in range(200):
                index = chooser.choose(ROWS)
            gauge.measured(200 * seconds, busy)
        return index

    # ROWS in 20 ms: 13 MB/s, a quarter of the link. In 6 ms: 44 MB/s, nearly all of it.
    assert after(0.02, 0.3) == 2  # time to spare: int8 brings rows across sooner
    assert after(0.02, 1.0) == 0
    assert chooser.changes()[-1].hidden
    assert after(0.006, 1.0) == 2
    assert not chooser.changes()[-1].hidden


def test_a_codec_that_cannot_carry_the_rows_is_passed_over() -> None:
    policy, gauge = make_policy({"auto": ["raw", "fp16"]}), Gauge(Fixed({}), RNG)
    feed(gauge, 1e6)
    chooser = policy.chooser(gauge)
    for _ in range(EVERY * (WINS + 1)):
        assert chooser.choose(ROWS * 1e6) == 0


def test_deadline_takes_the_mildest_that_is_in_time() -> None:
    # 256 KiB at 100 MB/s: raw 2.62 ms, bf16 1.57 ms, int8 1.19 ms, int4 1.42 ms.
    for within_ms, expected in [(3.5, "raw"), (2, "bf16"), (1.4, "int8"), (0.1, "int8")]:
        assert chosen({"deadline": {"within_ms": within_ms}}, 100e6) == expected, within_ms
    assert chosen({"deadline": {"within_ms": 0.1, "codecs": ["raw", "bf16"]}}, 100e6) == "bf16"


def test_deadline_goes_back_to_a_milder_codec_only_with_a_fifth_to_spare() -> None:
    pick = make_policy({"deadline": {"within_ms": 2, "codecs": ["raw", "bf16", "int8"]}}).pick  # type: ignore[attr-defined]
    assert pick([3e-3, 1.9e-3, 1e-3], 2, False) == 2
    assert pick([3e-3, 1.5e-3, 1e-3], 2, False) == 1
    assert pick([3e-3, 1.9e-3, 1e-3], 1, False) == 1, "where it is, it need only be in time"
    assert pick([3e-3, 1.9e-3, 1e-3], 0, False) == 1, "so need a stronger one"


def test_a_codec_must_win_in_a_row() -> None:
    class Link(Gauge):
        rate = 0.0

    policy, link = make_policy("auto"), Link(Fixed(SPEEDS), RNG)
    chooser = policy.chooser(link)

    def decide(rate: float) -> str:
        link.rate = rate
        for _ in range(EVERY):
            index = chooser.choose(ROWS)
        return str(policy.codecs[index])

    slow, fast = 1e6, 2e9  # int8 is best, raw is
    assert [decide(rate) for rate in [slow, slow, fast] * 5] == ["raw"] * 15
    assert [decide(slow) for _ in range(WINS)] == ["raw"] * (WINS - 1) + ["int8"]


def test_in_doubt_a_link_is_fast_until_all_looks_agree() -> None:
    gauge = Gauge(Coders(thread_time), RNG)

    def frames(count: int, rate: float) -> None:
        for number in range(count):
            size = 1000 if number % 2 else 500_000
            gauge.arrived(size, 1e-4 + size / rate)

    frames(8 * FRESH, 50e6)
    assert gauge.rate is not None and gauge.rate < 60e6
    frames(FRESH, 1e12)
    assert gauge.rate > 1e10, "one look says that it is fast"
    frames(WINDOW + (DOUBTS - 1) * FRESH - FRESH, 50e6)  # while fast frames are seen, and three looks after
    assert gauge.rate > 1e10
    frames(FRESH, 50e6)
    assert gauge.rate < 60e6


def test_larger_frames_are_decided_anew_though_the_link_is_as_before() -> None:
    policy, gauge = make_policy({"deadline": {"within_ms": 1}}), Gauge(Fixed(SPEEDS), RNG)
    chooser = policy.chooser(gauge)
    feed(gauge, 50e6)
    for rows, name in ((ROWS[:1], "raw"), (ROWS, "int4"), (ROWS[:1], "raw")):  # raw: 20 us, 5 ms
        for _ in range(EVERY * (WINS + 1)):
            index = chooser.choose(rows)
        assert str(policy.codecs[index]) == name


def test_it_predicts_again_only_when_the_rate_is_another() -> None:
    class Link(Gauge):
        rate = 0.0
        predictions = 0

        def seconds(self, *given: Any) -> float:
            self.predictions += 1
            return super().seconds(*given)

    link = Link(Fixed(SPEEDS), RNG)
    chooser = make_policy("auto").chooser(link)
    made = []
    for rate in (1.6e10, 1.61e10, 1.59e10, 3.2e10):
        link.rate, before = rate, link.predictions
        for _ in range(2 * EVERY):
            chooser.choose(ROWS)
        made.append(link.predictions - before)
    assert made == [3, 0, 0, 3]  # of each of the three codecs, once


def test_of_a_fast_stream_only_some_frames_are_timed_and_of_a_slow_one_all() -> None:
    gauge = Gauge(Coders(thread_time), RNG)
    chooser = make_policy("auto").chooser(gauge)

    def timed(frames: int) -> int:
        """How many of so many frames in the next second."""
        count = 0
        for _ in range(frames):
            chooser.choose(ROWS)
            count += chooser.timed
        gauge.measured(1.0, 0.5)
        return count

    assert timed(20 * ENOUGH) == 20 * ENOUGH  # nothing is known of the stream yet
    assert timed(20 * ENOUGH) == pytest.approx(ENOUGH, rel=0.4)
    assert gauge.frames / (40 * ENOUGH) == pytest.approx(1, rel=0.2)  # each stands for those before it
    assert gauge.offered == gauge.frames * ROWS.nbytes
    for _ in range(5):  # what was to be left out still is
        timed(ENOUGH)
    assert timed(ENOUGH) == ENOUGH
    assert not make_policy("int8").chooser(gauge).timed


def test_it_says_why_it_changed_and_goes_back_when_the_link_recovers() -> None:
    policy, gauge = make_policy("auto"), Gauge(Fixed(SPEEDS), RNG)
    chooser = policy.chooser(gauge)
    seen = []
    for number, rate in enumerate([20e6, 10e9]):
        feed(gauge, rate, seed=number, frames=400)
        for _ in range(EVERY * (WINS + 1)):
            chooser.choose(ROWS)
        seen += chooser.changes()
    assert [(c.before, c.after) for c in seen] == [("raw", "int8"), ("int8", "raw")]
    first = seen[0]
    assert first.nbytes == ROWS.nbytes and 0.6 < first.link_bytes_per_s / 20e6 < 1.7
    assert first.seconds["raw"] == pytest.approx(ROWS.nbytes / first.link_bytes_per_s)
    assert first.seconds["int8"] < 0.8 * first.seconds["raw"]
    assert chooser.changes() == []


@pytest.mark.parametrize("spec", ["auto", {"deadline": {"within_ms": 2}}])
def test_it_does_not_flap_at_the_break_even(spec: Any) -> None:
    policy, gauge = make_policy(spec), Gauge(Fixed(SPEEDS), RNG)
    chooser, rng = policy.chooser(gauge), np.random.default_rng(1)
    changes = []
    even = 270e6 if spec == "auto" else 131e6  # where the rules above change their mind
    for step in range(100):
        feed(gauge, even * float(rng.uniform(0.95, 1.05)), seed=step)
        for _ in range(EVERY):
            chooser.choose(ROWS)
        changes += chooser.changes()
    assert len(changes) <= 3


def test_line_separates_fixed_cost_from_cost_per_byte() -> None:
    line = Line()
    assert line.at(1000) == 0
    line.add(1000, 3e-3)
    assert line.at(2000) == pytest.approx(6e-3)  # of one size: all in proportion
    for size in (1e3, 5e4, 2e5) * 50:
        line.add(size, 1e-4 + 2e-9 * size)
    assert line.at(1e5) == pytest.approx(3e-4, rel=0.02)
    flat = Line()
    for size in (1e3, 1e6) * 20:
        flat.add(size, 2e-3 - 1e-9 * size)  # noise that falls with size
    assert flat.at(1e9) == pytest.approx(flat.at(1.0)) and flat.at(1.0) > 0


def test_frames_of_about_one_size_say_what_a_byte_costs_and_no_more() -> None:
    line = Line()
    for turn in range(1000):  # a two-thousandth apart, the larger one sooner by chance
        line.add(1_000_500 if turn % 2 else 1_000_000, 1e-3 if turn % 2 else 2e-3)
    assert line.at(2_000_000) == pytest.approx(2 * 1.5e-3, rel=0.05)
    assert line.at(100_000) == pytest.approx(0.1 * 1.5e-3, rel=0.05)


@pytest.mark.parametrize(
    ("milliseconds", "current", "picked"),
    [
        ([10, 9, 8.1], 0, 0),  # a fifth sooner is worth a change, less is not
        ([10, 9, 7.9], 0, 2),
        ([10, 7.9, 7.8], 1, 1),
        ([0.5, 9, 10], 2, 0),
    ],
)
def test_deadline_missed_by_all_takes_what_is_sooner_by_a_fifth(
    milliseconds: list[float], current: int, picked: int
) -> None:
    policy = make_policy({"deadline": {"within_ms": 1, "codecs": ["raw", "int8", "int4"]}})
    assert policy.pick([m / 1e3 for m in milliseconds], current, hidden=False) == picked


def test_coders_are_sampled_once_and_learn_from_use() -> None:
    coders, codec = Coders(thread_time), make_codec("int8")
    assert not coders.knows(codec)
    coders.sample(codec, ROWS)
    assert coders.knows(codec) and 0.25 < coders.ratio(codec) < 0.3
    assert 0 < coders.seconds(codec, 1 << 18) < 1
    for _ in range(300):
        coders.used(codec, 1 << 18, 0.25, False)
        coders.used(codec, 1 << 18, 0.5, True)
    assert coders.seconds(codec, 1 << 18) == pytest.approx(0.75, rel=0.01)
    coders.sample(make_codec("raw"), ROWS)
    assert coders.seconds(make_codec("raw"), 1 << 18) == 0
    coders.sample(make_codec("fp16"), ROWS * 1e6)
    assert coders.ratio(make_codec("fp16")) == math.inf


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"auto": []}, "auto: "),
        ({"auto": "int8"}, "auto: 'int8' is not a list"),
        ({"auto": ["raw", "raw"]}, "twice"),
        ({"auto": ["raw", "int9"]}, "int9"),
        ("deadline", "within_ms"),
        ({"deadline": {"within_ms": 0}}, "within_ms must be .* not 0"),
        ({"deadline": {"within_ms": True}}, "not True"),
        ({"deadline": {"within_ms": 2, "codec": []}}, "is not a mapping like"),
        ({"deadline": {"within_ms": 2, "codecs": []}}, "deadline: "),
    ],
)
def test_bad_policies_are_refused(spec: Any, text: str) -> None:
    with pytest.raises(CodecError, match=text):
        make_policy(spec)
