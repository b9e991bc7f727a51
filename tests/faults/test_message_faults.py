"""Message faults by themselves, and every fault of a scenario in the simulator: begun, felt, and over."""

from __future__ import annotations

import numpy as np
import pytest

from rayemu import Emulator, Scenario
from rayemu.compression import WireError, make_codec
from rayemu.drivers.record import GEMM
from rayemu.faults import FAULTS, ActiveFaults, Corrupt, Delay, Drop, Duplicate, Fault, Reorder
from rayemu.faults.frames import FrameFault
from rayemu.model.reference import reference_forward
from rayemu.protocol.messages import Dispatch
from rayemu.protocol.wire import Wire
from rayemu.scenario import Fault as Planned
from tests.views import lots_of

WIRE = Wire((make_codec("raw"),))
FRAME = [np.zeros(8, np.uint8), np.zeros(100, np.uint8)]


def faults(*active: Fault) -> ActiveFaults:
    made = ActiveFaults(np.random.default_rng(1))
    for fault in active:
        made.begin(fault, 1.0)
    return made


def test_each_fault_does_its_own_and_leaves_the_sender_s_memory_alone() -> None:
    assert faults().through(FRAME, 0.0)[1] == [0.0]
    assert faults(Drop(1.0)).through(FRAME, 0.5)[1] == []
    assert faults(Delay(1.0, 0.5)).through(FRAME, 0.5)[1] == [0.5]
    assert faults(Duplicate(1.0), Delay(1.0, 0.5)).through(FRAME, 0.5)[1] == [0.5, 0.5]
    held = [faults(Reorder(1.0, 0.5)).through(FRAME, 0.5)[1][0]]
    assert 0 < held[0] < 0.5
    damaged, delays = faults(Corrupt(1.0)).through(FRAME, 0.5)
    assert delays == [0.0] and sum(int(np.unpackbits(p).sum()) for p in damaged) == 1
    assert not any(piece.any() for piece in FRAME)


def shared_dispatch() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """A frame of a dispatch of version 2, its rows and its index, each large enough to be lent."""
    rows = np.random.default_rng(0).standard_normal((1024, 16), dtype=np.float32)
    index = np.arange(16_384, dtype=np.int32) % 1024
    lots = lots_of([0, 1, 16_000], [0, 2, 384])
    message = Dispatch(0, 1, -1, 0, 0, 0, 0, 0, 0, 1, 0, rows, index, lots)
    return WIRE.encode_pieces(message, shared=True), rows, index


def test_corrupting_what_is_shared_damages_the_frame_and_never_the_rows_that_are_lent() -> None:
    pieces, *lent = shared_dispatch()
    assert [len(piece) >= 1 << 16 for piece in pieces] == [False, True, False, True, False]
    assert not len(pieces[2]), "two arrays side by side have nothing between them"
    kept = [piece.copy() for piece in pieces]
    weather = faults(Corrupt(1.0))
    hit = set()
    for _ in range(500):
        damaged, _ = weather.through(pieces, 0.5, shared=True)
        with pytest.raises(WireError):
            WIRE.decode(damaged)
        hit |= {n for n in range(5) if not np.array_equal(damaged[n], kept[n])}
        assert all(np.shares_memory(damaged[n], array) for n, array in zip((1, 3), lent, strict=True))
    assert hit == {0, 4} and all(np.array_equal(a, b) for a, b in zip(pieces, kept, strict=True))
    assert WIRE.decode(pieces) is not None


def test_corrupting_what_is_not_shared_may_hit_any_piece_of_a_copy() -> None:
    message = WIRE.decode(shared_dispatch()[0])
    pieces, hit = WIRE.encode_pieces(message), set()
    kept = [piece.copy() for piece in pieces]
    weather = faults(Corrupt(1.0))
    for _ in range(100):
        damaged, _ = weather.through(pieces, 0.5)
        with pytest.raises(WireError):
            WIRE.decode(damaged)
        hit |= {n for n in range(5) if not np.array_equal(damaged[n], kept[n])}
    assert hit == {0, 1, 3, 4} and all(np.array_equal(a, b) for a, b in zip(pieces, kept, strict=True))


def test_overlapping_faults_end_each_at_its_own_time() -> None:
    weather = faults(Drop(1.0))
    weather.begin(Duplicate(1.0), 2.0)
    assert [len(weather.through(FRAME, now)[1]) for now in (0.5, 1.5, 2.2)] == [0, 2, 1]
    weather.begin(Drop(1.0), 3.5)
    assert [len(weather.through(FRAME, now)[1]) for now in (3.0, 3.6)] == [0, 1]


def test_a_rate_is_the_share_of_frames() -> None:
    weather = faults(Drop(0.3))
    lost = sum(not weather.through(FRAME, 0.5)[1] for _ in range(2000))
    assert lost == weather.counts[Drop] and abs(lost / 2000 - 0.3) < 0.04


# -- in the simulator ---------------------------------------------------------------------------------------
def emulator() -> Emulator:
    return Emulator(
        Scenario.from_dict(
            {
                "model": {"d_model": 16, "d_ff": 32, "experts": 4, "top_k": 2, "layers": 2},
                "cluster": {"nodes": 2, "modules_per_node": 2, "transport": "memory"},
                "placement": {"copies": 2},
                "exchange": {"min_slice_rows": 4},
            }
        )
    )


def step(e: Emulator, batches: int = 1) -> float:
    """Run some batches, exact as ever; return how long (virtual seconds) the last one took."""
    for number in range(batches):
        x = np.random.default_rng(number).standard_normal((40, 16), dtype=np.float32)
        began = e.now
        assert np.array_equal(e.forward(x), reference_forward(e.model, x))
    return e.now - began


def lost_later(e: Emulator) -> int:
    before = e._backend.simulator.counters.lost
    step(e, 5)
    return int(e._backend.simulator.counters.lost - before)


def test_a_short_drop_is_over_though_another_fault_ends_later() -> None:
    with emulator() as e:
        e.inject(Planned.model_validate({"kind": "drop", "for": "1 s", "rate": 0.1}))
        e.inject(Planned.model_validate({"kind": "corrupt", "for": "2 s", "rate": 0.1}))
        assert lost_later(e) > 0
        while e.now < 2.5:
            step(e)
        assert lost_later(e) == 0
        refused = e._backend.simulator.counters.refused
        step(e, 5)
        assert e._backend.simulator.counters.refused == refused


@pytest.mark.parametrize("kind", [kind for kind, fault in FAULTS.items() if issubclass(fault, FrameFault)])
def test_a_message_fault_of_one_module_hits_only_what_that_sends(kind: str) -> None:
    with emulator() as e:
        e.inject(Planned.model_validate({"kind": kind, "module": 2, "rate": 0.2}))
        step(e, 5)
        simulator = e._backend.simulator
        pumps = [*(module.pump for module in simulator.modules), simulator.pump]
        hit = [pump.faults.counts[FAULTS[kind]] for pump in pumps]
        assert hit[2] > 0 and hit[0] == hit[1] == hit[3] == hit[4] == 0
        e.inject(Planned.model_validate({"kind": kind, "rate": 0.2}))
        step(e, 5)
        assert all(pump.faults.counts[FAULTS[kind]] > 0 for pump in pumps)


def test_delay_is_as_long_as_asked() -> None:
    with emulator() as e:
        usual = step(e)
        e.inject(Planned.model_validate({"kind": "delay", "rate": 1.0, "delay": "20 ms"}))
        # coordinator -> home -> module -> home (-> coordinator -> home) -> client: at least four hops
        assert step(e) > usual + 4 * 0.02


def test_a_slow_module_takes_so_many_times_as_long_until_it_is_over() -> None:
    with emulator() as e:
        e.inject(Planned.model_validate({"kind": "slow", "module": 1, "factor": 1000, "for": "3 s"}))
        step(e, 3)
        while e.now < 3.5:
            step(e)
        step(e, 3)
        record = e.record()
    jobs = record[(record["kind"] == GEMM) & (record["rows"] > 0)]
    took = jobs["end_virtual_s"] - jobs["start_virtual_s"]
    early = jobs["start_virtual_s"] < 3.0
    assert np.median(took[early & (jobs["src"] == 1)]) > 100 * np.median(took[jobs["src"] != 1])
    assert np.median(took[~early & (jobs["src"] == 1)]) < 10 * np.median(took[jobs["src"] != 1])


def test_an_unknown_fault_is_refused() -> None:
    with emulator() as e, pytest.raises(ValueError, match="'flood' is none"):
        e._backend.simulator.inject({"kind": "flood", "for": 1.0}, None)
