"""What an emulator's callers see: results by batch, from any thread, after interruptions, or a clear end.

The client's thread runs over a link without a cluster behind it; the rest over the memory transport.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest

from rayemu import Emulator, Scenario
from rayemu.cluster.client_runtime import ClientRuntime, ClusterError
from rayemu.cluster.link import QueueLink
from rayemu.drivers.record import Recorder
from rayemu.model.spec import ModelSpec
from rayemu.protocol.client import StalledError
from rayemu.protocol.config import TOTALS, ProtocolConfig
from rayemu.protocol.messages import COORDINATOR, Accepted, Ack, Notice, Result, Submit, Totals
from rayemu.protocol.wire import Wire

MEMORY = Scenario.load("smoke").with_overrides(["cluster.transport=memory"])


def inputs(count: int, width: int = 64) -> list[np.ndarray]:
    return [np.random.default_rng(n).standard_normal((24, width)).astype("f4") for n in range(count)]


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator(MEMORY) as running:
        yield running


def test_forward_inside_a_stream_gets_its_own_result(emulator: Emulator) -> None:
    x = inputs(8)
    stream = emulator.stream(x[:6])
    seen = [next(stream).y]
    assert np.array_equal(emulator.forward(x[7]), emulator.reference(x[7]))
    seen += [result.y for result in stream]
    for y, of in zip(seen, x[:6], strict=True):
        assert np.array_equal(y, emulator.reference(of))


def test_two_streams_take_turns(emulator: Emulator) -> None:
    x = inputs(8)
    both = zip(emulator.stream(x[:4]), emulator.stream(x[4:]), strict=True)
    for n, (one, other) in enumerate(both):
        assert np.array_equal(one.y, emulator.reference(x[n]))
        assert np.array_equal(other.y, emulator.reference(x[4 + n]))
    assert n == 3


def test_several_threads_each_get_their_own_results(emulator: Emulator) -> None:
    x = inputs(24)
    wrong: list[int] = []

    def work(first: int) -> None:
        for n in range(first, first + 3):
            if not np.array_equal(emulator.forward(x[n]), expected[n]):
                wrong.append(n)
        for n, result in enumerate(emulator.stream(x[first + 3 : first + 6]), first + 3):
            if not np.array_equal(result.y, expected[n]):
                wrong.append(n)

    expected = [emulator.reference(of) for of in x]
    threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 24, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == [] and not any(thread.is_alive() for thread in threads)


def test_an_interrupted_forward_leaves_no_result_for_the_next(emulator: Emulator) -> None:
    """A notebook's stop button: KeyboardInterrupt while the batch is under way."""
    large = np.random.default_rng(1).standard_normal((20_000, 64)).astype("f4")
    x = inputs(1)[0]
    timer = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        for _ in range(1000):
            emulator.forward(large)
    assert np.array_equal(emulator.forward(x), emulator.reference(x))


def test_a_batch_that_no_frame_holds_is_refused_and_the_emulator_goes_on(emulator: Emulator) -> None:
    x = inputs(1)[0]
    tokens = 2_170_000_000 // (4 * 64)
    with pytest.raises(ValueError, match=rf"x has {tokens} tokens, .* may have \d+ at most: cut it"):
        emulator.forward(np.broadcast_to(np.float32(0), (tokens, 64)))
    assert np.array_equal(emulator.forward(x), emulator.reference(x))


# -- the client's thread ------------------------------------------------------------------------------------
SPEC = ModelSpec("tiny", d_model=4, d_ff=4, experts=2, top_k=1)


class Coordinator:
    """Stands for the rest of the cluster: takes what the client sends, and answers as a test says."""

    def __init__(self, **settings: Any) -> None:
        config = ProtocolConfig.from_scenario(MEMORY)
        object.__setattr__(config, "retry_after", 0.02)
        for name, value in settings.items():
            object.__setattr__(config, name, value)
        self.wire = Wire(config.codecs)
        self.got: list[Any] = []
        self.link = QueueLink("client", lambda _, frame: self.got.append(self.wire.decode(frame)))
        self.link.connect(COORDINATOR, "coordinator")
        self.client = ClientRuntime(config, SPEC, 8, self.link, Recorder())
        self.client.start()

    def say(self, *messages: Any) -> None:
        for message in messages:
            self.link.post(self.wire.encode_pieces(message))

    def count(self, kind: type) -> int:
        return sum(isinstance(message, kind) for message in self.got)


@pytest.fixture
def quick() -> Iterator[Coordinator]:
    made = Coordinator(stall_after=0.4)
    yield made
    made.client.close()


def done(batch: int, rows: np.ndarray, slice: int = 0, start: int = 0) -> Result:
    return Result(batch, slice, start, 0, 1, rows, np.zeros((1, 2), np.int32))


def totals(rows: int = 0, waiting: list[list[int]] | None = None) -> Totals:
    """What the coordinator tells when one module has computed so many rows."""
    counts = np.array([[float(rows), *[0.0] * (len(TOTALS) - 1)]])
    return Totals(8, 0, 0, np.zeros(1, np.int32), counts, waiting or [])


ROWS = np.ones((6, 4), np.float32)


def test_a_lost_acceptance_is_no_busy_loop(quick: Coordinator) -> None:
    """A part of the result says as much as Accepted: there is nothing to submit again, and no deadline."""
    number = quick.client.submit(ROWS)
    quick.say(done(number, ROWS[:3]))
    machine = quick.client.machine
    with mock.patch.object(machine, "tick", side_effect=machine.tick) as ticks:
        time.sleep(0.2)
    assert ticks.call_count < 20
    assert quick.client.machine.deadline() == float("inf") and quick.count(Submit) <= 2
    quick.say(done(number, ROWS[3:], 1, 3))
    assert np.array_equal(quick.client.result(number).y, ROWS)


def test_what_the_coordinator_does_not_accept_is_sent_again_and_then_given_up(quick: Coordinator) -> None:
    number = quick.client.submit(ROWS)
    began = time.monotonic()
    text = r"batch 0 made no progress for 0\.4 s .*: the coordinator has not accepted it; nothing was heard"
    with pytest.raises(StalledError, match=text):
        quick.client.result(number)
    assert 0.4 <= time.monotonic() - began < 5
    assert quick.count(Submit) > 2
    quick.client.abandon([number])
    again = quick.client.submit(ROWS)
    quick.say(done(number, -ROWS), Accepted(again), done(again, ROWS))
    assert np.array_equal(quick.client.result(again).y, ROWS)
    assert quick.client.machine.duplicate_results == 0


def test_a_batch_that_stalls_says_which_slice_waits_for_whom(quick: Coordinator) -> None:
    number = quick.client.submit(ROWS)
    quick.say(Accepted(number), done(number, ROWS[:3]), totals(waiting=[[number, 1, 7], [number, 0, 3]]))
    text = r"3 of its 6 rows have not come back; it waits with slice 1 for module 7$"
    with pytest.raises(StalledError, match=text):
        quick.client.result(number)


def test_computing_is_progress_but_not_for_ever(quick: Coordinator) -> None:
    """Rows that modules compute count until the batch could have been computed several times."""
    number = quick.client.submit(ROWS)
    quick.say(Accepted(number))
    began, rows = time.monotonic(), 0
    stop = threading.Event()

    def work() -> None:
        nonlocal rows
        while not stop.wait(0.1):
            rows += 4
            quick.say(totals(rows))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with pytest.raises(StalledError):
            quick.client.result(number)
    finally:
        stop.set()
        thread.join()
    assert time.monotonic() - began > 0.9  # 6 rows, of 1 choice and 1 shared, 4 times: 12 reports


def test_nothing_piles_up_while_nobody_waits(quick: Coordinator) -> None:
    for n in range(6000):
        quick.say(totals(n), Notice("suspected", float(n), {"module": 1}))
    deadline = time.monotonic() + 10
    while len(quick.client.machine.notices) < 4096 or not quick.client.machine.notices[-1].wall_s == 5999:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.05)
    assert not quick.link._frames
    notices = quick.client.take_notices()
    assert notices[0].facts == {"what": f"{6000 - 4096} earlier notices were dropped: nobody took them"}
    assert [n.wall_s for n in notices[1:]] == list(range(6000 - 4096, 6000))
    assert quick.client.take_notices() == []


def test_abandoned_batches_are_forgotten_on_both_sides(quick: Coordinator) -> None:
    number = quick.client.submit(ROWS)
    quick.client.abandon([number])
    assert quick.got[-1] == Ack(number, -1)
    with pytest.raises(LookupError):
        quick.client.result(number)
    assert not quick.client.machine.pending and not quick.client.machine.finished


def test_the_end_ends_all_waiting(quick: Coordinator) -> None:
    seen: list[str] = []

    def wait(number: int) -> None:
        try:
            quick.client.result(number)
        except ClusterError as error:
            seen.append(str(error))

    threads = [threading.Thread(target=wait, args=(quick.client.submit(ROWS),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    quick.client.fail("the coordinator died")
    for thread in threads:
        thread.join(5)
    assert seen == ["the coordinator died"] * 3
    with pytest.raises(ClusterError):
        quick.client.submit(ROWS)


def test_a_pause_lasts_holds_nobody_up_and_ends_with_the_cluster(quick: Coordinator) -> None:
    began = time.monotonic()
    quick.client.pause(0.05)
    assert time.monotonic() - began >= 0.05
    number = quick.client.submit(np.ones((1, 4), np.float32))
    threading.Timer(0.05, quick.say, [done(number, np.ones((1, 4), np.float32))]).start()
    threading.Timer(0.3, quick.client.fail, ["the end"]).start()
    with pytest.raises(ClusterError, match="the end"):
        quick.client.pause(60.0)
    assert time.monotonic() - began < 30.0
    assert number in quick.client.machine.finished, "what arrives meanwhile is handled"


def test_a_pause_can_be_interrupted(quick: Coordinator) -> None:
    threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        quick.client.pause(60.0)
    quick.client.pause(0.0)


def test_a_failing_client_thread_is_heard_of(quick: Coordinator) -> None:
    quick.client.machine.receive = None  # type: ignore[assignment]
    quick.say(Accepted(0))
    with pytest.raises(ClusterError, match="the client failed: TypeError"):
        quick.client.result(quick.client.submit(ROWS))
        raise AssertionError
