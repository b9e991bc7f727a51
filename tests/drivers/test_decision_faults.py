"""Choices for whole batches when things go wrong, and what is refused, forgotten or cannot be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from rayemu import Emulator, Scenario
from rayemu.alltoall import EXCHANGES, REPLICAS
from rayemu.compression import WireError, make_policy
from rayemu.drivers.decided import DecisionCheck, load_choices, save_choices, summed_up
from rayemu.drivers.record import SCORES
from rayemu.drivers.simulator import Simulator
from rayemu.model.model import Model
from rayemu.model.reference import reference_forward
from rayemu.model.spec import ModelSpec
from rayemu.placement import from_columns
from rayemu.protocol.client import MOST_EPOCHS, BatchResult, ClientMachine, most_tokens
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.decisions import Decider, Decisions, Part
from rayemu.protocol.messages import DROPPED, Epoch, Failure, Result, Scores
from rayemu.protocol.replay import PathReplay
from rayemu.routing import ROUTERS, Context, Gate, Routing
from rayemu.running.run import _await_counts
from rayemu.scenario import Fault, ScenarioError
from tests.drivers.test_decisions import ByRank, batches, by_rank, scenario
from tests.views import a_view, placed_on

__all__ = ["by_rank"]  # for every test here


@pytest.mark.parametrize(
    ("first", "then"), [(("softmax_topk", {}), ("by_rank", {})), (("one", {}), ("softmax_topk", {}))]
)
def test_paths_where_layers_differ_in_their_number_of_choices(
    monkeypatch: pytest.MonkeyPatch, first: Any, then: Any
) -> None:
    """What is noted of the first layer alone has the first layer's width; the next may be wider."""

    @dataclass(frozen=True)
    class One(ByRank):
        def most(self, experts: int) -> int:
            return 1

        def choose(self, scores: np.ndarray, gate: Gate, context: Context) -> Routing:
            best = scores.argmax(axis=1).astype(np.int32)[:, None]
            return Routing(best, np.ones(best.shape, np.float32))

    monkeypatch.setitem(ROUTERS, "one", One)
    spec = ModelSpec("two", 16, 16, 8, 2, layers=2, layer_routers={0: first, 1: then})
    # Module 0 holds some experts of the first layer alone, and is lost.
    table = [(0, e, 0 if e < 3 else 1) for e in range(8)] + [(1, e, 1 + e % 2) for e in range(8)]
    raw = make_policy("raw")
    policies = {"dispatch": (raw, raw), "combine": (raw, raw), "drop_lost_experts": True, "replace": False}
    config = ProtocolConfig(exchange=EXCHANGES["flat"](), replicas=REPLICAS["nearest"](), **policies)
    model, nodes = Model(spec), np.zeros(3, np.int32)
    simulator = Simulator(config, model, from_columns(*np.array(table).T), nodes)
    simulator.crash(0, noticed_after=0.0)
    simulator.wait(0.5)
    x = np.random.default_rng(6).standard_normal((40, 16), dtype=np.float32)
    result = simulator.result(simulator.submit(x))
    assert (result.dispatch_paths[0] == DROPPED).any() and not result.dispatch_paths[1].any()
    replay = PathReplay(result.dispatch_paths, result.combine_paths, config.codecs, result.decisions)
    assert np.array_equal(reference_forward(model, x, replay), result.y)


def test_routers_that_do_not_fit_the_model_are_refused() -> None:
    """Of rows that are weighed each goes to one expert; a dense layer has no router."""
    weighed = {"model": {"preset": "llama-4-scout", "scale": 256, "layers": 3}}
    for routing in ({"kind": "expert_choice"}, {"layers": {1: {"kind": "expert_choice"}}}):
        with pytest.raises(ScenarioError, match=r"kind: expert_choice is not allowed.*weigh_input"):
            Scenario.from_dict({**weighed, "routing": routing})
    Scenario.from_dict({**weighed, "routing": {"kind": "capacity_topk"}})
    dense = {"model": {"dense_layers": 2, "dense_d_ff": 16}}
    with pytest.raises(ScenarioError, match=r"routing.layers.0-1: layer 0 is dense"):
        scenario(**dense, routing={"kind": "softmax_topk", "layers": {"0-1": {"kind": "by_rank"}}})
    scenario(**dense, routing={"kind": "softmax_topk", "layers": {"2": {"kind": "by_rank"}}})


def told(start: int, scores: Any, home: int = 0, batch: int = 0, layer: int = 0) -> Scores:
    return Scores(home, batch, 0, 0, layer, start, np.asarray(scores, np.float32))


def test_a_decider_takes_each_row_once_and_says_whose_scores_it_used() -> None:
    decider, view = Decider(Model(scenario().spec)), a_view(placed_on(range(8), [0, 1] * 4), [0, 0], 8)
    rows = np.random.default_rng(7).standard_normal((6, 8)).astype(np.float32)
    assert decider.on_scores(told(0, rows[:4]), 6, view) == []
    for wrong in (
        told(3, rows[3:]),  # row 3 is there
        told(0, rows[:2]),  # so are these, as four
        told(4, rows[:3]),  # the batch has but six
        told(4, rows[:0]),
        told(4, rows[4:, :7]),
    ):
        with pytest.raises(WireError):
            decider.on_scores(wrong, 6, view)
    assert decider.on_scores(told(0, rows[:4], home=1), 6, view) == []  # its slice was issued again
    first, last = decider.on_scores(told(4, rows[4:]), 6, view)
    assert (first.to, last.to, first.message.asked_by, last.message.asked_by) == (1, 0, 1, 0)
    expected = ByRank().choose(rows.copy(), None, Context(state=[0]))  # type: ignore[arg-type]
    assert np.array_equal(np.concatenate([first.message.experts, last.message.experts]), expected.experts)
    other = rows[:4] + np.float32(1e-3)  # as lossy codecs on another way make them
    for scores, home, own in ((rows[:4], 1, True), (other, 0, False)):
        (again,) = decider.on_scores(told(0, scores, home), 6, view)
        assert again.to == home and again.message.own == own and again.message.asked_by == 1
        assert np.array_equal(again.message.experts, first.message.experts)
    assert decider.counts["decisions"] == 1
    dense = Decider(Model(scenario(model={"dense_layers": 1, "dense_d_ff": 16}).spec))
    with pytest.raises(WireError):
        dense.on_scores(told(0, rows), 6, view)


def test_what_is_over_is_forgotten_and_nobody_asks_for_it_for_ever() -> None:
    """A batch that failed: homes that wait for its choices are told, also where nothing else happens."""
    lost = {"placement": {"copies": 1, "kind": "linear"}, "cluster": {"replace": False}}
    with Emulator(scenario(**lost)) as emulator:
        emulator.inject(Fault.model_validate({"kind": "kill", "module": 0}))
        emulator.wait(5.0)  # everyone is told of that: nothing else will be announced
        inputs = batches(8, rows=4)  # a token of each has no choice, and goes on to wait for the others
        results = list(emulator.stream(inputs, in_flight=8, yield_failed=True))
        assert results[-1].failure is not None
        simulator = emulator._backend.simulator  # type: ignore[attr-defined]
        assert any(one.machine.home.chooser.waiting for one in simulator.modules if one.up)
        emulator.wait(30.0)
        asked = (emulator.record()["kind"] == SCORES).sum()
        emulator.wait(60.0)
        assert (emulator.record()["kind"] == SCORES).sum() == asked
        decider = simulator.coordinator.decider
        assert not decider._asked and not decider._decided
        assert not any(one.machine.home.chooser.waiting for one in simulator.modules if one.up)
        assert not emulator.check_choices(inputs, results).wrong


def test_a_finished_batch_s_choices_are_forgotten_with_it() -> None:
    with Emulator(scenario()) as emulator:
        list(emulator.stream(batches(2)))
        emulator.wait(0.1)
        decider = emulator._backend.simulator.coordinator.decider  # type: ignore[attr-defined]
        assert not decider._asked and not decider._decided


def checked(parts: list[Part], routing: Routing, scores: np.ndarray, epochs: dict[int, Any]) -> DecisionCheck:
    check = DecisionCheck(Model(scenario().spec), np.zeros(4, np.int32), epochs)
    for number, part in enumerate(parts):
        check.take(number, Decisions.of([(part, routing)]), {0: scores})
    return check


def test_what_cannot_be_made_again_is_not_called_wrong() -> None:
    rows = np.random.default_rng(7).standard_normal((6, 8)).astype(np.float32)
    no_gate: Any = None
    made = [ByRank().choose(rows.copy(), no_gate, Context(state=[n])) for n in range(2)]
    simulated = Emulator(scenario())
    with simulated:
        simulated.wait(0.1)
        epochs = dict(simulated._backend.epochs)
    known = max(epochs)
    own, others = Part(0, 0, 6, 3, 0, 0, known, 1), Part(0, 0, 6, 3, 0, 0, known, 0)
    for parts, routing, found in (
        ([own], made[0], (1, 0, [])),
        ([own], made[1], (1, 0, [(0, 0)])),
        ([others], made[1], (0, 1, [])),
        ([own._replace(epoch=99)], made[0], (1, 0, [])),
        # A choice that cannot be made again leaves a state that nobody knows: so those after it.
        ([own._replace(epoch=99), own._replace(order=1)], made[1], (0, 2, [])),
        ([others, own._replace(order=1)], made[1], (0, 2, [])),
        ([own._replace(order=1)], made[1], (0, 1, [])),
    ):
        check = checked(parts, routing, rows, epochs)
        assert (check.checked, check.unchecked, check.wrong) == found
    nobody = checked([own], made[0], rows, {})
    assert (nobody.checked, nobody.unchecked) == (0, 1)


def test_weights_that_are_not_numbers_are_equal_to_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ByRank.choose

    def broken(self: ByRank, *given: Any) -> Routing:
        routing = original(self, *given)
        routing.weights[routing.experts[:, 0] >= 0, 0] = np.nan
        return routing

    monkeypatch.setattr(ByRank, "choose", broken)
    with Emulator(scenario(model={"layers": 1})) as emulator:
        results = list(emulator.stream(inputs := batches(2)))
        check = emulator.check_choices(inputs, results)
    assert (check.checked, check.wrong) == (2, [])


def test_the_client_keeps_the_last_memberships_and_no_frames() -> None:
    whole, by_row = scenario().spec, scenario(routing={"kind": "softmax_topk"}).spec
    client = ClientMachine(whole, 0.1)
    frame = np.arange(64, dtype=np.uint8)
    for number in range(MOST_EPOCHS + 5):
        states = frame[:4], frame[4:8].view(np.int32)
        client.receive(
            Epoch(number, 0, frame[8:20], *states, frame[20:40].view(np.uint16).reshape(5, 2)), 0.0
        )
    assert sorted(client.epochs) == list(range(5, MOST_EPOCHS + 5))
    kept = client.epochs[MOST_EPOCHS]
    assert kept.endpoints is None and not any(
        np.shares_memory(frame, array) for array in (kept.state, kept.incarnations, kept.slots)
    )
    client.submit(np.zeros((2, 32), np.float32), 0.0)
    chosen = np.zeros(8, np.int32)
    parts = np.array([[0, 0, 2, 3, 0, 0, 1, 1]])
    counts = np.zeros((3, 8), np.int32)
    rows = np.zeros((2, 32), np.float32)
    client.receive(
        Result(0, 0, 0, 0, 1, rows, counts, None, None, parts, chosen[:6], chosen[:6].astype(np.float32)), 0.0
    )
    result = client.take(0)
    assert result is not None and result.decisions is not None
    assert not np.shares_memory(result.decisions.experts, chosen)
    other = ClientMachine(by_row, 0.1)
    other.receive(kept, 0.0)
    assert not other.epochs
    # A frame of 2^31 bytes, less a reserve, holds 3 x (3 choices and weights) and 3 x 3 paths of two bytes.
    assert most_tokens(whole) == (2**31 - 2**20 - 4 * 3 * 8) // (4 * 32 + 8 * 9 + 2 * 9)
    assert most_tokens(by_row) == (2**31 - 2**20 - 4 * 3 * 8) // (4 * 32 + 8 * 2)


def test_a_run_waits_for_counts_of_its_own_choices() -> None:
    """A cluster's totals come now and then: those of before the run look as if all were done."""

    class Told:
        totals: ClassVar = {}
        coming: ClassVar = [
            {"open_batches": 0, "routing": {}},
            {"open_batches": 1, "routing": {"decisions": 2.0}},
            {"open_batches": 0, "routing": {"decisions": 2.0}},
            None,
        ]

        def wait(self, seconds: float) -> None:
            Told.totals = self.coming.pop(0)

    routing = Routing(np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32))
    parts = [(Part(layer, 0, 1, 1, 0, 0, 0, 1), routing) for layer in (0, 2)]
    measured: Any = SimpleNamespace(results=[SimpleNamespace(decisions=Decisions.of(parts))])
    emulator: Any = Told()
    _await_counts(emulator, measured)
    assert Told.coming == [None]


def test_what_a_failed_batch_recorded_is_neither_saved_nor_summed_up(tmp_path: Path) -> None:
    """Some of its slices may have come: their choices are a part of a decision."""
    routing = Routing(np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32))
    recorded = Decisions.of([(Part(0, 0, 1, 1, 0, 0, 0, 1), routing)])
    y, counts, delivered = np.zeros((2, 4), np.float32), np.zeros((1, 8), np.int64), np.ones(2, np.int32)
    failed, fine = (
        BatchResult(n, y, counts, delivered, decisions=recorded, failure=failure)
        for n, failure in enumerate((Failure(0, 1, 0, 0, 0), None))
    )
    save_choices(tmp_path / "none.npz", [failed])
    assert not (tmp_path / "none.npz").exists() and summed_up([failed], {"dropped": 1.0}, 1) == {}
    save_choices(tmp_path / "one.npz", [failed, fine])
    assert list(load_choices(tmp_path / "one.npz")) == [1]
    assert summed_up([failed, fine], {}, 1)["routing"]["decisions"] == 1


def test_a_late_answer_of_the_layer_before_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    original, earlier = Decider.on_scores, {}

    def late(self: Decider, m: Scores, *rest: Any) -> list[Any]:
        sends = original(self, m, *rest)
        for send in sends:
            told = send.message
            earlier[told.batch, told.slice, told.micro, told.layer] = send
        again = [earlier.get((s.message.batch, s.message.slice, s.message.micro, m.layer - 1)) for s in sends]
        return [send for send in again if send is not None] + sends

    monkeypatch.setattr(Decider, "on_scores", late)
    with Emulator(scenario()) as emulator:
        inputs = batches(2)
        results = list(emulator.stream(inputs))
        found = emulator.check_choices(inputs, results)
    assert (found.checked, found.wrong) == (6, [])
