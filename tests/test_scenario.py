"""A scenario: what is read, changed and written."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rayemu.balance.rebalancer import RebalancePolicy
from rayemu.balance.triggers import TRIGGERS
from rayemu.placement import PLACEMENTS, Placement, PlacementProblem
from rayemu.scenario import FAULTS, Scenario, ScenarioError
from rayemu.scenario.errors import show
from tests.scenarios import EXAMPLE, TINY, problems


def test_the_example_is_understood() -> None:
    scenario = Scenario.from_dict(yaml.safe_load(EXAMPLE))
    assert scenario.name == "laptop"
    assert (scenario.cluster.nodes, scenario.cluster.modules_per_node, scenario.cluster.modules) == (2, 4, 8)
    assert (scenario.spec.d_model, scenario.spec.d_ff) == (4096 // 8, 14336 // 8)
    assert (scenario.spec.full_d_model, scenario.spec.full_d_ff) == (4096, 14336)
    assert (scenario.spec.experts, scenario.spec.top_k, scenario.spec.layers) == (8, 2, 2)
    assert scenario.spec.seed == 7
    assert scenario.stream.build().context == 0.5
    assert scenario.exchange.codec.node.dispatch == scenario.exchange.codec.node.combine == "int8+zstd"
    assert scenario.placement.copies_per_expert(8).tolist() == [2] * 8
    (fault,) = scenario.faults
    assert (fault.kind, fault.module, fault.at.batch, fault.at.time) == ("kill", 5, 3, None)
    assert (scenario.run.batches, scenario.run.batch_tokens, scenario.run.seed) == (50, 512, 7)


def test_the_packaged_laptop_scenario_is_the_example() -> None:
    assert Scenario.load("laptop") == Scenario.from_dict(yaml.safe_load(EXAMPLE))


@pytest.mark.parametrize("name", Scenario.packaged())
def test_packaged_scenarios_load_and_round_trip(name: str) -> None:
    scenario = Scenario.load(name)
    assert scenario.name == name
    assert Scenario.load(f"{name}.yaml") == scenario
    again = Scenario.from_dict(yaml.safe_load(scenario.to_yaml()))
    assert again == scenario
    assert again.to_yaml() == scenario.to_yaml()
    assert pickle.loads(pickle.dumps(scenario)) == scenario


def test_chaos_has_every_kind_of_fault() -> None:
    assert {fault.kind for fault in Scenario.load("chaos").faults} == set(FAULTS)


def test_the_resolved_yaml_shows_defaults_and_units() -> None:
    resolved = yaml.safe_load(Scenario.from_dict(TINY).to_yaml())
    assert resolved["cluster"]["heartbeat"] == "40 ms"
    assert resolved["exchange"]["window"] == "32 MiB"
    assert resolved["stream"] == {"kind": "zipf", "vocabulary": 32768, "alpha": 1.1, "context": 0.0}


def test_other_dumps_give_plain_numbers() -> None:
    fault = Scenario.load("chaos").with_overrides(["faults=[{kind: slow, module: 1, for: 500 ms}]"]).faults[0]
    assert fault.model_dump(by_alias=True, exclude_none=True, exclude={"at"}) == {
        "kind": "slow",
        "module": 1,
        "for": 0.5,
        "factor": 4.0,
    }


def test_quantities_accept_numbers_and_units() -> None:
    scenario = Scenario.from_dict(
        TINY
        | {
            "cluster": {"heartbeat": 0.01, "evict_after": "2 s", "memory": "1.5 GiB"},
            "exchange": {"chunk": 65536, "window": "1 MiB"},
            "faults": [{"kind": "hang", "module": "random", "at": {"time": "1.5 s"}, "for": "500 ms"}],
        }
    )
    assert (scenario.cluster.heartbeat, scenario.cluster.evict_after) == (0.01, 2.0)
    assert scenario.cluster.memory == 3 * 2**29
    assert (scenario.exchange.chunk, scenario.exchange.window) == (65536, 2**20)
    assert (scenario.faults[0].at.time, scenario.faults[0].duration) == (1.5, 0.5)


def test_a_scenario_cannot_be_changed() -> None:
    scenario = Scenario.from_dict(TINY)
    with pytest.raises(ValueError, match="frozen"):
        scenario.run.batches = 3  # type: ignore[misc]


def test_overrides_change_a_copy() -> None:
    scenario = Scenario.load("laptop")
    changed = scenario.with_overrides(
        [
            "model.top_k=4",
            "faults.0.at.batch=9",
            "faults.1={kind: drop, rate: 1e-3}",
            "placement.copies={0: 3}",
            "placement.copies.2=4",
            "cluster.heartbeat=5 ms",
            "run.seed = 8",
        ]
    )
    assert changed.spec.top_k == 4
    assert changed.spec.seed == 8
    assert changed.faults[0].at.batch == 9
    assert (changed.faults[1].kind, changed.faults[1].rate) == ("drop", 0.001)
    assert changed.placement.copies_per_expert(8).tolist() == [3, 1, 4, 1, 1, 1, 1, 1]
    assert changed.cluster.heartbeat == 0.005
    assert len(changed.faults) == 2, "the first was changed, not put before what was there"
    assert scenario == Scenario.load("laptop")
    assert scenario.with_overrides([]) == scenario


def test_overriding_a_kind_does_not_trip_over_the_old_ones_defaults() -> None:
    base = Scenario.from_dict(TINY | {"faults": [{"kind": "slow", "module": 1}], "stream": {"kind": "zipf"}})
    assert base.faults[0].factor == 4.0
    changed = base.with_overrides(["faults.0.kind=hang", "stream.kind=text"])
    assert changed.faults[0].factor is None
    assert changed.stream.build().path == "stdlib"


def test_a_first_fault_can_be_set_where_there_is_none() -> None:
    changed = Scenario.from_dict(TINY).with_overrides(["faults.0={kind: kill, module: 1, at: {batch: 2}}"])
    assert [(f.kind, f.module) for f in changed.faults] == [("kill", 1)]


def test_fault_defaults() -> None:
    faults = [{"kind": kind, "module": 0} for kind in FAULTS]
    made = {fault.kind: fault for fault in Scenario.from_dict(TINY | {"faults": faults}).faults}
    assert made["kill"].at.batch == 0
    assert made["slow"].factor == 4.0
    assert made["slow"].rate is None
    assert (made["delay"].rate, made["delay"].delay) == (0.05, 0.005)
    assert made["hang"].duration is None


def test_dimensions_beside_a_preset_replace_its_own() -> None:
    model = {"preset": "mixtral-8x7b", "scale": 4, "d_ff": 1024, "activation": "gelu", "layers": 3, "seed": 5}
    spec = Scenario.from_dict({"model": model}).spec
    assert (spec.d_model, spec.d_ff, spec.full_d_ff) == (1024, 256, 1024)
    assert (spec.activation, spec.layers, spec.seed, spec.scale) == ("gelu", 3, 5, 4)


def test_the_models_own_router_unless_the_scenario_names_another() -> None:
    own = {"preset": "deepseek-v3", "scale": 64, "layers": 4}
    spec = Scenario.from_dict({"model": own}).spec
    assert spec.router == "sigmoid_group_topk"
    assert spec.router_params["groups"] == 8
    spec = Scenario.from_dict({"model": own, "routing": {"groups": 4, "place": "modules"}}).spec
    assert (spec.router, spec.router_params["groups"], spec.router_params["top_groups"]) == (
        "sigmoid_group_topk",
        4,
        4,
    )
    spec = Scenario.from_dict({"model": own, "routing": {"kind": "softmax_topk", "renormalise": False}}).spec
    assert (spec.router, dict(spec.router_params)) == ("softmax_topk", {"renormalise": False})


def test_module_bytes_count_the_experts_where_they_are() -> None:
    data = TINY | {"cluster": {"nodes": 1, "modules_per_node": 2}, "placement": {"copies": {0: 2}}}
    scenario = Scenario.from_dict(data | {"run": {"batch_tokens": 1, "in_flight": 1}})
    needs = scenario.module_bytes()
    expert = 4 * 3 * 8 * 16  # float32, three matrices
    assert needs.shape == (2,)
    assert sorted(np.diff(needs).tolist()) in ([expert], [-expert])  # experts 0, 1 and 0, 2, 3
    assert needs.min() > 2 * expert


def test_memory_that_is_just_enough_is_enough() -> None:
    needs = int(Scenario.from_dict(TINY).module_bytes().max())
    Scenario.from_dict(TINY | {"cluster": {"memory": needs}})
    with pytest.raises(ScenarioError, match=r"cluster\.memory: .* is not enough"):
        Scenario.from_dict(TINY | {"cluster": {"memory": needs - 1}})


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("graph", "placement: graph placement needs which experts tokens choose together"),
        ("affinity", "placement: affinity placement needs which experts tokens choose layer after layer"),
        ("variance", "placement: variance placement needs how the experts' shares vary"),
        ("domains", "placement.failures: 1 takes 2 copies of each expert, 16 slots of a layer"),
    ],
)
def test_a_placement_that_needs_what_a_start_does_not_know_is_refused(kind: str, said: str) -> None:
    (line,) = problems(f"placement={{kind: {kind}}}")
    assert line.startswith(said)


def test_a_planner_that_needs_what_a_run_does_not_tell_is_refused() -> None:
    (line,) = problems("rebalance={every: 4, planner: graph}")
    assert line.startswith("rebalance.planner: graph placement needs which experts tokens choose together")
    Scenario.from_dict(TINY | {"rebalance": {"every": 4, "planner": "variance"}})  # it has the windows' loads


def test_a_planner_is_tried_on_the_plan_that_the_run_begins_with(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = []

    @dataclasses.dataclass(frozen=True)
    class Noting:
        def place(self, problem: PlacementProblem) -> Placement:
            problems.append(problem)
            return PLACEMENTS["linear"]().place(problem)  # type: ignore[no-any-return]

    monkeypatch.setitem(PLACEMENTS, "noting", Noting)
    scenario = Scenario.from_dict(TINY | {"rebalance": {"every": 4, "planner": "noting"}})
    assert problems[-1].present is scenario.placed()


def test_a_placement_is_made_once() -> None:
    scenario = Scenario.from_dict(TINY)
    assert scenario.placed() is scenario.placed()
    again = pickle.loads(pickle.dumps(scenario))
    assert again == scenario and again.placed().module.tolist() == scenario.placed().module.tolist()


def test_a_value_is_cut_where_it_would_hide_the_message() -> None:
    assert show("x" * 78) == repr("x" * 78)
    assert show("x" * 79) == "'" + "x" * 75 + " ..."
    assert show(list(range(3))) == "[0, 1, 2]"


def test_directions_are_shown_once_where_they_are_alike() -> None:
    scenario = Scenario.from_dict(TINY).with_overrides(
        ["exchange.codec.node={dispatch: int8, combine: bf16}", "exchange.codec.module=fp16"]
    )
    assert str(scenario.exchange.codec.node) == "int8 out, bf16 back"
    assert str(scenario.exchange.codec.module) == "fp16"


def test_a_rebalance_becomes_the_policy_that_it_says() -> None:
    every, imbalance = TRIGGERS["every"](7), TRIGGERS["imbalance"](over=1.5)
    balanced, replicator = PLACEMENTS["balanced"](), PLACEMENTS["replicator"](most=2)
    for given, policy in (
        ({"every": 7}, RebalancePolicy(every, balanced, 8, 0.2, None, 100e6)),
        (
            {
                "trigger": {"kind": "imbalance", "over": 1.5},
                "planner": {"kind": "replicator", "most": 2},
                "window": 4,
                "gain": None,
                "within": 90.0,
                "rate": "3 MB/s",
            },
            RebalancePolicy(imbalance, replicator, 4, None, 90.0, 3e6),
        ),
    ):
        rebalance = Scenario.from_dict(TINY | {"rebalance": given}).rebalance
        assert rebalance is not None and rebalance.policy() == policy


def test_a_run_has_no_more_batches_than_arrive(tmp_path: Path) -> None:
    (tmp_path / "times").write_text("0.1\n0.2\n0.5\n", encoding="utf-8")
    given = TINY | {"arrivals": {"kind": "file", "path": str(tmp_path / "times")}}
    Scenario.from_dict(given | {"run": {"batches": 3}})
    with pytest.raises(ScenarioError, match=r"^run\.batches: 4 is not allowed; allowed: 1 to 3, the times"):
        Scenario.from_dict(given | {"run": {"batches": 4}})


def test_a_written_scenario_has_letters_as_people_write_them() -> None:
    text = Scenario.from_dict(TINY | {"cluster": {"address": "größe"}}).to_yaml()
    assert "address: größe" in text


def test_copies_of_each_expert_are_whole_numbers() -> None:
    for copies in (2, {1: 2}):
        scenario = Scenario.from_dict(TINY | {"placement": {"copies": copies}})
        found = scenario.placement.copies_per_expert(4)
        assert found.dtype == np.int64 and found.tolist() == ([2] * 4 if copies == 2 else [1, 2, 1, 1])


def test_a_model_of_dimensions_is_named_custom() -> None:
    assert Scenario.from_dict(TINY).spec.name == "custom"


def test_a_line_stays_a_line_and_short() -> None:
    (line,) = problems(f"run.batches={list(range(1000))}")
    assert "\n" not in line
    assert len(line) < 200


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_what_is_no_mapping_is_refused(data: Any) -> None:
    with pytest.raises(ScenarioError, match=r"scenario: .* it should be a mapping"):
        Scenario.from_dict(data)


def test_a_scenario_without_model_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"^model: is missing$"):
        Scenario.from_dict({})


def test_a_scenario_error_is_a_value_error() -> None:
    assert issubclass(ScenarioError, ValueError)
