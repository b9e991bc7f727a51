"""Thousands of seeds through the real state machines: exact, nothing lost, nothing twice, and an end."""

import collections
import gc
from collections.abc import Iterator

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from rayemu import Emulator, Scenario
from rayemu.alltoall import ORDERS
from rayemu.drivers.pump import ModulePump
from rayemu.model.reference import reference_forward
from rayemu.protocol import answers
from rayemu.protocol import home as home_machine
from rayemu.protocol import module as module_machine
from rayemu.protocol.config import PLACES
from rayemu.protocol.messages import Dispatch, Reply, Send
from rayemu.protocol.module import ModuleMachine
from rayemu.scenario import Fault
from tests.drivers import chaos, moving

BLOCK = 60


@pytest.fixture(autouse=True)
def one_blas_thread() -> Iterator[None]:
    """Tiny GEMMs on several threads spend their time waiting for each other."""
    with threadpool_limits(1):
        yield


@pytest.fixture(autouse=True)
def lent(monkeypatch: pytest.MonkeyPatch) -> collections.Counter[str]:
    """Let rows of these tiny batches be lent, too, where the simulator lends; how often they were."""
    found: collections.Counter[str] = collections.Counter()
    usual = ModuleMachine._lends

    def lends(self: ModuleMachine, to: int, message: Dispatch | Reply) -> bool:
        found[type(message).__name__] += usual(self, to, message)
        return usual(self, to, message)

    monkeypatch.setattr(ModuleMachine, "_lends", lends)
    monkeypatch.setattr(module_machine, "LEAST_LENT", 0)
    monkeypatch.setattr(home_machine, "LEAST_LENT", 0)
    monkeypatch.setattr(answers, "FEW_BYTES", 2048)  # of 32 answers: more are left where they lie
    return found


@pytest.mark.parametrize("first", range(0, 360, BLOCK))
def test_seeds(first: int, lent: collections.Counter[str]) -> None:
    seen: set[str] = set()
    for seed in range(first, first + BLOCK):
        try:
            outcome = chaos.run(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        seen |= {outcome.fault, f"copies: {outcome.copies}", *outcome.traits}
    traits = {
        "copies: 1",
        "copies: 2",
        "dense",
        "dropped",
        "failed",
        "other codec",
        "whole batches",
        "no choice",
        *PLACES,
    }
    assert seen >= {*chaos.FAULTS, *chaos.KINDS, *traits}, "the seeds cover too little"
    assert lent["Dispatch"] > 100, f"rows were not lent: {lent}"


def test_seeds_with_many_experts_on_few_modules(lent: collections.Counter[str]) -> None:
    for seed in range(30):
        try:
            chaos.run(seed, batches=3, experts=24)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    assert min(lent["Dispatch"], lent["Reply"]) > 100, f"rows were not lent: {lent}"


@pytest.mark.parametrize("seed", [1965])
def test_stories_that_once_failed(seed: int) -> None:
    """1965: answers came twice, and the requests that nothing was left of held the window for ever."""
    chaos.run(seed, batches=6)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 6000, 100))
def test_many_seeds(first: int) -> None:
    for seed in range(first, first + 100):
        try:
            chaos.run(seed, batches=6)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def move(seeds: range) -> set[str]:
    """Run stories of moving experts; return what they had."""
    seen: set[str] = set()
    for seed in seeds:
        try:
            seen |= moving.run(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    return seen


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_experts_move_through_every_fault(first: int) -> None:
    seen = move(range(first, first + 50))
    assert seen >= {*chaos.FAULTS, "whole batches", "fetched", "while loading", "cancelled", "failed"}, (
        "the seeds cover too little"
    )


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 3000, 100))
def test_experts_move_through_many_seeds(first: int) -> None:
    move(range(first, first + 100))


def test_a_seed_replays_to_the_event() -> None:
    one, two = chaos.run(11).simulator, chaos.run(11).simulator
    assert one.counters == two.counters and one.now == two.now


def test_the_network_really_misbehaves() -> None:
    total: collections.Counter[str] = collections.Counter()
    for seed in range(12):
        total.update(vars(chaos.run(seed).simulator.counters))
    for count in ("lost", "duplicated", "corrupted", "refused"):
        assert total[count] > 0, f"no frame was {count}"
    assert total["crashes"] + total["hangs"] > 3


def test_start_up_takes_frames_in_proportion_to_the_modules_up_to_4096() -> None:
    frames = {}
    for modules in (64, 512, 4096):
        scenario = Scenario.from_dict(
            {
                "model": {"d_model": 16, "d_ff": 16, "experts": 64, "top_k": 2, "layers": 1},
                "cluster": {"nodes": modules // 64, "modules_per_node": 64, "transport": "memory"},
                "placement": {"copies": 2},
            }
        )
        with Emulator(scenario) as emulator:
            frames[modules] = emulator._backend.simulator.counters.frames / modules
            assert emulator.totals["live"] == modules and len(emulator.totals["modules"]) == modules
            if modules == 4096:
                x = np.random.default_rng(0).standard_normal((512, 16), dtype=np.float32)
                assert np.array_equal(emulator.forward(x), reference_forward(emulator.model, x))
                assert [n.kind for n in emulator.take_notices()] == ["joined"] * modules
    assert max(frames.values()) <= 5, frames  # each joins, is answered, is told of all; the client of it


def test_finished_batches_leave_no_garbage() -> None:
    """What a batch took is free with its last slice, not when the garbage collector comes by."""
    dimensions = {"d_model": 16, "d_ff": 32, "experts": 4, "top_k": 2, "layers": 2, "shared_d_ff": 32}
    cluster = {"nodes": 2, "modules_per_node": 2, "transport": "memory"}
    scenario = Scenario.from_dict(
        {"name": "garbage", "model": dimensions, "cluster": cluster, "exchange": {"micro_batches": 2}}
    )
    batches = np.random.default_rng(1).standard_normal((30, 256, 16), dtype=np.float32)
    with Emulator(scenario) as emulator:
        gc.collect()
        gc.disable()
        try:
            for _ in emulator.stream(batches, in_flight=2):
                pass
            held = collections.Counter(type(o).__name__ for o in gc.get_objects())
        finally:
            gc.enable()
    # Of 120 and 240; the simulation, in a thread of its own, may be a message ahead of whoever reads results.
    assert 0 < held["HeldSlice"] <= 5 * 4 and held["Unit"] <= 2 * 5 * 4
    assert max(held[kind] for kind in ("Dispatch", "Reply", "Work", "Job")) < len(batches)


@pytest.mark.parametrize("place", ["coordinator", "modules"])
@pytest.mark.parametrize("codec", ["raw", "int8"])
@pytest.mark.parametrize("preset", ["gpt-oss-20b", "llama-4-scout"])
def test_biases_and_weighed_inputs_stay_exact_through_a_kill(preset: str, codec: str, place: str) -> None:
    scenario = Scenario.from_dict(
        {
            "model": {"preset": preset, "scale": 160 if preset == "gpt-oss-20b" else 256, "layers": 3},
            "cluster": {"nodes": 2, "modules_per_node": 2, "transport": "memory"},
            "placement": {"copies": 2},
            "routing": {"place": place},
            "exchange": {"micro_batches": 3, "codec": {"module": codec, "node": codec}},
        }
    )
    spec = scenario.spec
    rng = np.random.default_rng(8)
    batches = [rng.standard_normal((60, spec.d_model), dtype=np.float32) for _ in range(6)]
    with Emulator(scenario) as emulator:
        for number, result in enumerate(emulator.stream(batches, in_flight=3)):
            if number == 1:
                emulator.inject(Fault.model_validate({"kind": "kill", "module": 1}))
            x = batches[number]
            assert np.array_equal(result.y, emulator.reference(x, result))
            far = np.abs(result.y - reference_forward(emulator.model, x)).max()
            assert far == 0 if codec == "raw" else far > 0
        assert emulator._backend.simulator.counters.crashes == 1


@pytest.mark.parametrize("order", ORDERS)
def test_homes_send_in_the_order_that_the_scenario_names(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rotation the n-th frames of all homes go to modules that are all different; exact either way."""
    scenario = Scenario.from_dict(
        {
            "model": {"d_model": 16, "d_ff": 16, "experts": 6, "top_k": 3, "layers": 2},
            "cluster": {"nodes": 2, "modules_per_node": 3, "transport": "memory"},
            "exchange": {"kind": "flat", "order": order, "min_slice_rows": 1},
        }
    )
    sent: dict[tuple[int, int], list[tuple[int, int]]] = {}  # (layer, home): (module, pairs)
    emit = ModulePump.emit

    def watched(pump: ModulePump, sends: list[Send], start_s: float) -> None:
        for send in sends:
            if isinstance(m := send.message, Dispatch) and m.home == pump.machine.me:
                sent.setdefault((m.layer, m.home), []).append((send.to, int(m.lots[:, 2].sum())))
        emit(pump, sends, start_s)

    monkeypatch.setattr(ModulePump, "emit", watched)
    x = np.random.default_rng(5).standard_normal((6 * 40, 16), dtype=np.float32)
    with Emulator(scenario) as emulator:
        emulator.forward(x)  # in the first batch a home may not know yet that all have joined
        sent.clear()
        assert np.array_equal(emulator.forward(x), reference_forward(emulator.model, x))
    assert sorted(sent) == [(layer, home) for layer in range(2) for home in range(6)]
    steps = {key: [module for module, _ in frames if module != key[1]] for key, frames in sent.items()}
    for (_, home), modules in steps.items():
        assert sorted(modules) == [m for m in range(6) if m != home], "a frame for each module"
        in_turn = [(home + step) % 6 for step in range(1, 6)]
        assert (modules == in_turn) or order != "rotation"
    if order == "largest_first":
        pairs = [[n for module, n in frames if module != home] for (_, home), frames in sent.items()]
        assert all(sizes == sorted(sizes, reverse=True) for sizes in pairs)
    met = [len({steps[layer, home][step] for home in range(6)}) for layer in range(2) for step in range(5)]
    assert (met == [6] * 10) == (order == "rotation"), "largest first, some meet at a module"
