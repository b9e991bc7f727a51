"""Choices made once for a whole batch: recorded, the same for whoever asks again, and replayed to the bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import yaml

from rayemu import Emulator, Scenario
from rayemu.drivers.decided import load_choices
from rayemu.drivers.record import DISPATCH, ROUTE, ROUTE_REPLY, SCORES
from rayemu.model.model import Model
from rayemu.model.reference import prepare, reference_forward, scored
from rayemu.pricing.recorded_graph import graph_of
from rayemu.protocol.decisions import Decider
from rayemu.routing import ROUTERS, Context, Gate, Router, Routing
from rayemu.running.folder import RunError
from rayemu.running.run import run_scenario
from rayemu.running.slow import slow_routers
from rayemu.scenario import Fault, ScenarioError
from rayemu.study.budget import budget

BASE: dict[str, Any] = {
    "model": {"d_model": 32, "d_ff": 32, "experts": 8, "top_k": 2, "layers": 3},
    "cluster": {"nodes": 2, "modules_per_node": 2, "transport": "memory"},
    "placement": {"copies": 2},
    "exchange": {"min_slice_rows": 8, "micro_batches": 2},
    "routing": {"kind": "by_rank"},
    "run": {"seed": 3},
}


@dataclass(frozen=True)
class ByRank(Router):
    """A token's place in the batch, by its first score, says how many choices it gets: 0 to 3.

    It counts its decisions, and shifts the experts by that: what it chooses depends on the whole batch and on
    what came before.
    """

    top_k: int = 2
    scope: ClassVar[str] = "batch"

    def check(self, experts: int) -> None:
        if experts < 8:
            raise ValueError(f"model.experts is {experts}; allowed: 8 and more")

    def most(self, experts: int) -> int:
        return 3

    def new_state(self, experts: int) -> list[int]:
        return [0]

    def choose(self, scores: np.ndarray, gate: Gate, context: Context) -> Routing:
        rank = scores[:, 0].argsort(kind="stable").argsort(kind="stable")
        best = (scores.argsort(axis=1, kind="stable")[:, ::-1][:, :3] + context.state[0]) % scores.shape[1]
        experts = np.where(np.arange(3) < rank[:, None] % 4, best, -1).astype(np.int32)
        context.state[0] += 1
        context.count("chosen", (experts >= 0).sum())
        return Routing(experts, (experts >= 0) / np.float32(3))


@pytest.fixture(autouse=True)
def by_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROUTERS, "by_rank", ByRank)


def scenario(**sections: dict[str, Any]) -> Scenario:
    return Scenario.from_dict(
        {key: {**BASE.get(key, {}), **sections.get(key, {})} for key in {**BASE, **sections}}
    )


def batches(count: int, rows: int = 64) -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    return [rng.standard_normal((rows, 32), dtype=np.float32) for _ in range(count)]


def check(emulator: Emulator, x: np.ndarray, result: Any) -> None:
    """The output is the recorded choices' own, and these are what the router says, all rows at once."""
    assert (result.delivered == 1).all()
    assert np.array_equal(emulator.reference(x, result), result.y)
    decisions = result.decisions
    h = x
    for layer in emulator.model.layers:
        routing = decisions.routing(layer.index, len(x))
        (order,) = {part.order for part, _ in decisions if part.layer == layer.index}
        alone = ByRank().choose(
            scored(layer, prepare(layer, h)), layer.gate, Context(layer.index, state=[order])
        )
        assert np.array_equal(alone.experts, routing.experts), layer.index
        assert np.array_equal(alone.weights, routing.weights)
        assert result.expert_tokens[layer.index].sum() == (alone.experts >= 0).sum()
        h = reference_one(emulator, layer.index, h, alone)


def reference_one(emulator: Emulator, layer: int, h: np.ndarray, routing: Routing) -> np.ndarray:
    """One layer, with these choices, by a loop over tokens."""
    from rayemu.model.expert import expert_forward
    from rayemu.model.reference import combine, finish

    of = emulator.model.layers[layer]
    x = prepare(of, h)
    rows = np.zeros((*routing.experts.shape, x.shape[1]), np.float32)
    for token, choice in np.argwhere(routing.experts >= 0).tolist():
        rows[token, choice] = expert_forward(
            of.experts[int(routing.experts[token, choice])], x[token : token + 1]
        )
    return finish(of, h, combine(routing.weights, rows))


@pytest.mark.parametrize("copies", [1, 2])
def test_choices_for_a_batch_are_made_once_recorded_and_replayed(copies: int) -> None:
    with Emulator(scenario(placement={"copies": copies})) as emulator:
        inputs = batches(6)
        results = list(emulator.stream(inputs))
        for x, result in zip(inputs, results, strict=True):
            check(emulator, x, result)
        orders = [{p.order for p, _ in r.decisions if p.layer == 1}.pop() for r in results]
        assert sorted(orders) == list(range(6))
        record = emulator.record()
        chosen = sum(int((r.decisions.routing(0, 64).experts >= 0).sum()) for r in results)
        assert emulator.totals["routing"]["chosen"] >= chosen
    decided = record[(record["kind"] == ROUTE) & (record["src"] == -1)]
    assert len(decided) == 6 * 3 and (decided["rows"] == 64).all()
    assert (record["kind"] == SCORES).sum() == (record["kind"] == ROUTE_REPLY).sum() == 6 * 3 * 8
    graph = graph_of(record, emulator.spec)
    assert graph.gaps == 0
    # No dispatch goes before the choice for its batch and layer was made.
    for number in np.flatnonzero((record["kind"] == DISPATCH) & (record["layer"] == 1)).tolist():
        row = record[number]
        made = decided[(decided["batch"] == row["batch"]) & (decided["layer"] == 1)]
        assert made["start_virtual_s"] <= row["start_virtual_s"]


def test_one_choice_for_a_slice_that_is_issued_again_and_for_lost_frames() -> None:
    settings = {"cluster": {"evict_after": "200 ms", "retry_after": "20 ms"}}
    with Emulator(scenario(**settings)) as emulator:
        emulator.inject(Fault.model_validate({"kind": "drop", "rate": 0.05, "for": "1 s"}))
        emulator.inject(Fault.model_validate({"kind": "duplicate", "rate": 0.05, "for": "1 s"}))
        inputs = batches(8)

        def feed() -> Iterator[np.ndarray]:
            for number, x in enumerate(inputs):
                if number == 3:
                    emulator.inject(Fault.model_validate({"kind": "kill", "module": 1}))
                yield x

        results = list(emulator.stream(feed()))
        for x, result in zip(inputs, results, strict=True):
            check(emulator, x, result)
        assert emulator.totals["reissued"] > 0


def test_lossy_codecs_and_dropped_experts_are_replayed_beside_the_choices() -> None:
    lossy = {"exchange": {"codec": {"module": "int8", "node": "fp8"}}}
    with Emulator(scenario(**lossy)) as emulator:
        for x, result in zip(inputs := batches(3), emulator.stream(inputs), strict=True):
            assert result.dispatch_paths is not None and result.decisions is not None
            assert np.array_equal(emulator.reference(x, result), result.y)
    lost = {"placement": {"copies": 1}, "cluster": {"replace": False}, "run": {"on_lost_expert": "drop"}}
    with Emulator(scenario(**lost)) as emulator:
        emulator.inject(Fault.model_validate({"kind": "kill", "module": 0}))
        for x, result in zip(inputs := batches(3), emulator.stream(inputs), strict=True):
            assert np.array_equal(emulator.reference(x, result), result.y)


def test_layers_with_routers_of_their_own() -> None:
    layers = {"0": {"kind": "softmax_topk", "renormalise": False}, "1-2": {"kind": "by_rank"}}
    with Emulator(scenario(routing={"kind": "softmax_topk", "layers": layers})) as emulator:
        kinds = [type(layer.router).__name__ for layer in emulator.model.layers]
        assert kinds == ["SoftmaxTopK", "ByRank", "ByRank"]
        assert emulator.model.layers[0].router.renormalise is False  # type: ignore[attr-defined]
        x = batches(1)[0]
        (result,) = emulator.stream([x])
        assert {part.layer for part, _ in result.decisions} == {1, 2}
        assert np.array_equal(emulator.reference(x, result), result.y)
        own = emulator.model.layers[0]
        assert np.array_equal(
            result.expert_tokens[0],
            np.bincount(own.router.route(prepare(own, x), own.gate).experts.ravel(), minlength=8),
        )


def test_a_batch_of_which_no_token_has_a_choice_in_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(self: ByRank, scores: np.ndarray, gate: Gate, context: Context) -> Routing:
        return Routing(np.zeros((len(scores), 0), np.int32), np.zeros((len(scores), 0), np.float32))

    monkeypatch.setattr(ByRank, "choose", nobody)
    with Emulator(scenario()) as emulator:
        x = batches(1)[0]
        (result,) = emulator.stream([x])
        assert not result.expert_tokens.any() and np.array_equal(result.y, x)  # the residual alone
        assert np.array_equal(reference_forward(emulator.model, x), x)


def test_a_run_saves_its_choices_and_makes_them_once_more(tmp_path: Path) -> None:
    run = {"batches": 5, "batch_tokens": 40, "check": "exact"}
    summary = run_scenario(scenario(run=run), tmp_path / "run")
    assert summary["passed"] and summary["exact"]
    routing = summary["routing"]
    assert routing["decisions"] == 15 and routing["chosen"] == np.sum(summary["expert_tokens"])
    assert routing["choices_per_token"] == pytest.approx(np.sum(summary["expert_tokens"]) / (5 * 3 * 40))
    assert routing["tokens_without_expert"] == 5 * 3 * 10  # every fourth by rank
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [(e["checked"], e["unchecked"]) for e in events if e["kind"] == "choices_checked"] == [(15, 0)]
    saved = load_choices(tmp_path / "run" / "choices.npz")
    assert sorted(saved) == list(range(5))
    tokens = np.zeros((3, 8), np.int64)
    for decisions in saved.values():
        for part, routed in decisions:
            np.add.at(tokens[part.layer], routed.experts[routed.experts >= 0], 1)
    assert tokens.tolist() == summary["expert_tokens"]


def test_choices_that_are_not_the_router_s_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator that hands out other choices than its router's: the output is exact all the same."""
    original = Decider._decide

    def wrong(self: Decider, batch: int, layer: int, *rest: Any) -> Any:
        decided = original(self, batch, layer, *rest)
        if (batch, layer) == (2, 1):
            decided.routing.experts[5] = [7, -1, -1]
        return decided

    monkeypatch.setattr(Decider, "_decide", wrong)
    with Emulator(scenario()) as emulator:
        inputs = batches(4)
        results = list(emulator.stream(inputs))
        check = emulator.check_choices(inputs, results)
    assert all(np.array_equal(emulator.reference(x, r), r.y) for x, r in zip(inputs, results, strict=True))
    assert check.wrong == [(2, 1)] and (check.checked, check.unchecked) == (12, 0)
    # Without a batch's decisions, those after it cannot be made again.
    later = emulator.check_choices(inputs[1:], results[1:])
    before = sum({part.layer: part.order for part, _ in results[0].decisions}.values())
    assert (later.checked, later.unchecked) == (before, 9 - before)


@pytest.mark.parametrize(
    ("routing", "told"),
    [
        (
            {"place": "modules"},
            "routing.place: modules is not allowed with by_rank, which chooses for a whole",
        ),
        (
            {"kind": "softmax_topk", "place": "modules", "layers": {1: {"kind": "by_rank"}}},
            "routing.place: mod",
        ),
        (
            {"layers": {"3": {"kind": "softmax_topk"}}},
            "routing.layers.3: there is no layer 3; the model has 3",
        ),
        ({"layers": {"2-1": {}}}, "'2-1' is not allowed; allowed: a layer like 0, or some like 1-3"),
        ({"layers": {"all": {}}}, "'all' is not allowed; allowed: a layer like 0"),
        ({"layers": {"0": {"kind": "best"}}}, "routing.layers.0.kind"),
        ({"layers": {"0": {"kind": "softmax_topk", "scale": 2.0}}}, "routing.layers.0.scale"),
        ({"layers": {"0-99999999": {}}}, "routing.layers.0-99999999: there is no layer 99999999"),
        ({"layers": {"9" * 99: {}}}, "allowed: a layer like 0"),
        ({"layers": {-1: {}}}, "routing.layers.-1: -1 is not allowed; allowed: a layer like 0"),
        ({"layers": {0: {"kind": "hash"}, "0": {}}}, "routing.layers: 0 is given twice; leave one out"),
        ({"layers": {"1": {}, "01": {}}}, "routing.layers: 1 is given twice"),
        ({"layers": None}, "routing.layers: None is not allowed; allowed: a mapping"),
        ({"layers": {0: "hash"}}, "it takes keys: kind (did you mean {kind: hash}?)"),
        (
            {"layers": {"0": {"kind": "softmax_group_topk", "groups": 3}}},
            "routing.layers.0.groups: 3 is not allowed; allowed: a divisor of 8",
        ),
    ],
)
def test_bad_routing_is_refused_with_path_and_remedy(routing: dict[str, Any], told: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        scenario(routing=routing)
    assert told in str(refused.value)


def test_a_dense_layer_has_no_router() -> None:
    model = {
        "d_model": 8,
        "d_ff": 8,
        "experts": 4,
        "top_k": 1,
        "layers": 3,
        "dense_layers": 1,
        "dense_d_ff": 8,
    }
    with pytest.raises(ScenarioError, match=r"layers\.0-1: layer 0 is dense .*; allowed: 1 to 2, which have"):
        Scenario.from_dict({"model": model, "routing": {"layers": {"0-1": {"kind": "hash"}}}})
    found = Scenario.from_dict({"model": model, "routing": {"layers": {"1-2": {"kind": "hash"}}}})
    assert sorted(found.spec.layer_routers) == [1, 2]


@pytest.mark.parametrize("layers", [{}, {1: {"kind": "expert_choice"}}])
def test_a_router_that_gives_more_experts_than_a_weighed_row_can_have(layers: dict[int, Any]) -> None:
    model = {"preset": "llama-4-scout", "scale": 64, "layers": 2}
    routing = {"layers": layers} if layers else {"kind": "expert_choice"}
    with pytest.raises(
        ScenarioError, match=r"kind: expert_choice .* up to 16 experts; allowed: routers of one"
    ):
        Scenario.from_dict({"model": model, "routing": routing})


def test_what_routers_of_rows_count_is_in_the_summary(tmp_path: Path) -> None:
    voting = {
        "kind": "voting",
        "liar": 1,
        "lie": "flip",
    }  # 3 - e for e: no row's two experts stay as they are
    changed = {
        "routing": voting,
        "run": {"batches": 2, "batch_tokens": 32},
        "cluster": {"transport": "memory"},
    }
    liars = run_scenario(_smoke(changed), tmp_path / "liar")["routing"]
    assert liars["choices_per_token"] == 2.0 and set(liars) == {
        "outvoted_0",
        "outvoted_1",
        "outvoted_2",
        "choices_per_token",
    }
    assert liars["outvoted_0"] == liars["outvoted_2"] == 0
    # flipped, the sets {0, 3} and {1, 2} stay what they are, and only their weights may be off
    assert 64 <= liars["outvoted_1"] <= 2 * 64
    few = run_scenario(_smoke(changed | {"routing": {"kind": "top_p", "p": 0.01}}), tmp_path / "few")
    assert few["routing"] == {"choices_per_token": 1.0}


def _smoke(changed: dict[str, dict[str, Any]]) -> Scenario:
    return Scenario.load("smoke").with_overrides(
        f"{section}.{name}={json.dumps(value)}"
        for section, values in changed.items()
        for name, value in values.items()
    )


def test_a_parameter_of_null_is_kept_in_the_resolved_scenario() -> None:
    routing = {"kind": "capacity_topk", "target_overflow": 0.02, "layers": {0: {"target_overflow": None}}}
    found = Scenario.load("smoke").with_overrides([f"routing={json.dumps(routing)}"])
    again = Scenario.from_dict(yaml.safe_load(found.to_yaml()))
    assert again == found and again.spec.layer_routers[0] == ("capacity_topk", {"target_overflow": None})


def test_a_slow_router_says_so_beforehand_and_one_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    # of the docstring's 1.5 s and 270 MB a round at 4,096 tokens: 2 rounds x 1 layer x 4 batches
    slow = {
        "routing": {"kind": "softmax_topk", "layers": {1: {"kind": "base"}}},
        "run": {"batch_tokens": 4096},
    }
    said = slow_routers(_smoke(slow))
    assert "base about 3.00 s for each batch, 12.0 s in all, and as long again to check" in said
    assert "softmax" not in said and slow_routers(Scenario.load("smoke")) == ""
    huge = {"routing": {"kind": "base"}, "run": {"batch_tokens": 2_000_000}}
    with pytest.raises(RunError, match="for the choice of experts"):
        run_scenario(_smoke(huge), tmp_path / "huge")


def test_codecs_are_measured_with_a_router_of_whole_batches() -> None:
    chosen = _smoke({"routing": {"kind": "capacity_topk"}})
    x = np.random.default_rng(0).standard_normal((32, chosen.spec.d_model), np.float32)
    entries = list(budget(Model(chosen.spec), x, ["int8"]))
    assert entries and all(not entry.refused and 0 < entry.output_error < 0.1 for entry in entries)
