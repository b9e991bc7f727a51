"""The memory transport for several threads: its end, interruptions, and what is given up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from rayemu import Emulator, Scenario
from rayemu.protocol.client import StalledError
from rayemu.scenario import Fault
from tests.forks import in_a_fork

SCENARIO = Scenario.from_dict(
    {
        "model": {"d_model": 16, "d_ff": 32, "experts": 4, "top_k": 2, "layers": 2},
        "cluster": {"transport": "memory", "nodes": 2, "modules_per_node": 2, "stall_after": "20 s"},
    }
)
X = np.random.default_rng(0).standard_normal((40, 16), dtype=np.float32)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(SCENARIO) as emulator:
        yield emulator


def test_after_the_end_all_say_so(emulator: Emulator) -> None:
    """Those that wait in the queue, those that come later, and a stream that is left alone."""
    stream = emulator.stream([X] * 5)
    next(stream)
    begun, hold = threading.Event(), threading.Event()
    emulator._backend._thread.submit(lambda: (begun.set(), hold.wait()))  # type: ignore[attr-defined]
    begun.wait()
    errors = []

    def wait() -> None:
        with pytest.raises(StalledError) as raised:
            emulator.forward(X)
        errors.append(str(raised.value))

    waiting = [threading.Thread(target=wait) for _ in range(2)]
    for thread in waiting:
        thread.start()
    closing = threading.Thread(target=emulator.close)
    closing.start()
    for thread in waiting:
        thread.join()
    hold.set()
    closing.join()
    assert errors == ["the emulator was closed"] * 2
    with pytest.raises(StalledError, match="the emulator was closed"):
        emulator.forward(X)
    stream.close()


def test_an_interrupted_submission_leaves_nothing_behind(emulator: Emulator) -> None:
    begun, hold = threading.Event(), threading.Event()
    emulator._backend._thread.submit(lambda: (begun.set(), hold.wait()))  # type: ignore[attr-defined]
    begun.wait()
    threading.Timer(0.2, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        emulator.forward(X)
    hold.set()
    assert np.array_equal(emulator.forward(X), emulator.reference(X))
    client = emulator._backend.simulator.client  # type: ignore[attr-defined]
    assert not client.pending and not client.finished


def test_no_progress_is_a_bounded_failure_that_blocks_no_forgetting(emulator: Emulator) -> None:
    """The frames of a batch that is given up may never come to the coordinator: all later ones go on."""
    emulator.inject(Fault.model_validate({"kind": "drop", "rate": 1.0, "for": "30 s"}))
    began = emulator._backend.now
    with pytest.raises(StalledError, match=r"batch 0 made no progress for 20 s \(cluster.stall_after\)"):
        emulator.forward(X)
    assert 20 <= emulator._backend.now - began < 30
    simulator = emulator._backend.simulator  # type: ignore[attr-defined]
    simulator.client.submit(X, simulator.now)  # one whose frame is lost ...
    emulator._backend.abandon([1])  # ... and that is given up
    for _ in range(30):
        assert np.array_equal(emulator.forward(X), emulator.reference(X))
    assert simulator.coordinator.ledger.complete_below > 25
    assert sum(len(state.machine.home.slices) for state in simulator.modules) < 10


def test_a_forked_child_is_told_that_the_emulator_is_its_parents(emulator: Emulator) -> None:
    y = emulator.forward(X)
    own = "of which this one was forked; make an emulator of its own"
    assert own in in_a_fork(lambda: emulator.forward(X))
    assert own in in_a_fork(lambda: emulator.totals)
    assert in_a_fork(emulator.close) == "None"

    def another() -> bool:
        with Emulator(SCENARIO) as other:
            return np.array_equal(other.forward(X), y)

    assert in_a_fork(another) == "True"
    assert np.array_equal(emulator.forward(X), y)


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "3"])
def test_in_flight_is_a_whole_number(emulator: Emulator, wrong: object) -> None:
    with pytest.raises(ValueError, match=f"in_flight is {wrong!r}; allowed: a whole number from 1 up"):
        next(emulator.stream([X], in_flight=wrong))  # type: ignore[arg-type]
