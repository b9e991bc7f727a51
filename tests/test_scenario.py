from __future__ import annotations

import dataclasses
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rayemu.balance.rebalancer import RebalancePolicy
from rayemu.balance.triggers import TRIGGERS
from rayemu.placement import PLACEMENTS, Placement, PlacementProblem
from rayemu.scenario import FAULTS, Scenario, ScenarioError
from rayemu.scenario.errors import problem_of, show

TINY: dict[str, Any] = {"model": {"d_model": 8, "d_ff": 16, "experts": 4, "top_k": 2}}

# As a user writes it; the same keys as in the documentation.
EXAMPLE = """
name: laptop
model: {preset: mixtral-8x7b, scale: 8, layers: 2}
cluster: {nodes: 2, modules_per_node: 4, transport: zmq}
stream: {kind: text, path: stdlib, context: 0.5}
routing: {kind: softmax_topk, place: coordinator}
placement: {kind: linear, copies: 2}
replicas: {kind: least_loaded}
exchange: {kind: hierarchical, micro_batches: 2, codec: {module: raw, node: int8+zstd}}
faults:
  - {kind: kill, module: 5, at: {batch: 3}}
run: {batches: 50, batch_tokens: 512, seed: 7, check: exact, on_lost_expert: fail}
"""


def problems(*assignments: str, base: str = EXAMPLE) -> list[str]:
    """The lines with which the example, so changed, is refused."""
    scenario = Scenario.from_dict(yaml.safe_load(base))
    with pytest.raises(ScenarioError) as refusal:
        scenario.with_overrides(assignments)
    assert str(refusal.value) == "\n".join(refusal.value.problems)
    return list(refusal.value.problems)


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


REFUSED = [
    # unknown keys, with the known ones
    (["run.batchs=3"], ["run.batchs: unknown key; known: batches, batch_tokens", "did you mean batches?"]),
    (["modle={}"], ["modle: unknown key; known: name, model", "did you mean model?"]),
    (["exchange.codec.nodes=raw"], ["exchange.codec.nodes: unknown key; known: module, node"]),
    (["faults.0.modul=3"], ["faults.0.modul: unknown key; known: kind, module, at, for"]),
    # wrong types are not converted
    (["run.batches=many"], ["run.batches: 'many' is not allowed; it should be a valid integer"]),
    (["run.batches='3'"], ["run.batches: '3' is not allowed"]),
    (["run.batches=3.0"], ["run.batches: 3.0 is not allowed"]),
    (["run.batches=true"], ["run.batches: True is not allowed"]),
    (["run=5"], ["run: 5 is not allowed; it takes keys: batches"]),
    (["faults={}"], ["faults: {} is not allowed; allowed: a list"]),
    (["faults.0=3"], ["faults.0: 3 is not allowed; it takes keys: kind"]),
    (["cluster.replace=1"], ["cluster.replace: 1 is not allowed"]),
    (["model=7"], ["model: 7 is not allowed; it takes keys: preset"]),
    # ranges
    (["run.batches=0"], ["run.batches: 0 is not allowed", "greater than or equal to 1"]),
    (["run.seed=-1"], ["run.seed: -1 is not allowed"]),
    (["exchange.micro_batches=0"], ["exchange.micro_batches: 0 is not allowed"]),
    (
        ["exchange.chunk=64 MiB"],
        ["exchange.chunk: 64 MiB is not allowed; allowed: 1 B to 32 MiB, the window"],
    ),
    (["cluster.nodes=0"], ["cluster.nodes: 0 is not allowed"]),
    (
        ["cluster.suspect_after=20 ms"],
        ["cluster.suspect_after: 20 ms is not allowed; allowed: more than 40 ms"],
    ),
    (["cluster.evict_after=1 ms"], ["cluster.evict_after: 1 ms is not allowed; allowed: at least 120 ms"]),
    (["cluster.heartbeat=0"], ["cluster.heartbeat: 0 s is not allowed"]),
    (["name=a/b"], ["name: 'a/b' is not allowed"]),
    # units
    (["exchange.window=32 Mb"], ["exchange.window: '32 Mb' is not a size", "MiB"]),
    (["cluster.heartbeat=10 sec"], ["cluster.heartbeat: '10 sec' is not a time", "ms"]),
    # names in tables
    (
        ["model.preset=mixtral"],
        ["model.preset: 'mixtral' is not a preset; known: mixtral-8x7b, mixtral-8x22b"],
    ),
    (["stream.kind=zipff"], ["stream.kind: 'zipff' is not a stream; known: zipf, uniform, text"]),
    (["routing.kind=best"], ["routing.kind: 'best' is not a router; known: softmax_topk"]),
    (["placement.kind=x"], ["placement.kind: 'x' is not a placement; known: linear, round_robin, random"]),
    (
        ["replicas.kind=x"],
        ["replicas.kind: 'x' is not a replica choice; known: nearest, least_loaded, even"],
    ),
    (["exchange.kind=x"], ["exchange.kind: 'x' is not an exchange; known: flat, hierarchical"]),
    (["exchange.relay=x"], ["exchange.relay: 'x' is not a relay choice; known: spread, first"]),
    (
        ["cluster.transport=zmk"],
        ["cluster.transport: 'zmk' is not allowed; allowed: 'zmq', 'ray' or 'memory'"],
    ),
    (["routing.place=here"], ["routing.place: 'here' is not allowed; allowed: 'coordinator' or 'modules'"]),
    (["run.check=maybe"], ["run.check: 'maybe' is not allowed; allowed: 'exact' or 'none'"]),
    (["run.on_lost_expert=cry"], ["run.on_lost_expert: 'cry' is not allowed; allowed: 'fail' or 'drop'"]),
    # codecs
    (["exchange.codec.node=int9"], ["exchange.codec.node: ", "'int9'", "known", "int8", "zstd"]),
    (["exchange.codec.module=zstd+int8"], ["exchange.codec.module: ", "int8", "zstd"]),
    (["exchange.codec.node=[raw]"], ["exchange.codec.node: ['raw'] is not a codec", "int8+zstd"]),
    # parameters of strategies
    (
        ["stream.alpha=2"],
        ["stream.alpha: is not a parameter of text, which takes: path, vocabulary, context"],
    ),
    (["stream.vocabulary=many"], ["stream.vocabulary: 'many' is not allowed; it should be a valid integer"]),
    (["stream.vocabulary='64'"], ["stream.vocabulary: '64' is not allowed; it should be a valid integer"]),
    (["stream={kind: uniform, alpha: 1}"], ["stream.alpha: is not a parameter of uniform, which takes"]),
    (["stream.context=1"], ["stream.context: 1 is not allowed; allowed: 0 up to"]),
    (["stream.path=/no/such/text"], ["stream.path: '/no/such/text' does not exist"]),
    (
        ["routing.renormalize=true"],
        ["routing.renormalize: is not a parameter of softmax_topk", "renormalise"],
    ),
    (["routing.top_k=3"], ["routing.top_k: is not a parameter of softmax_topk"]),
    (["routing.renormalise=3"], ["routing.renormalise: 3 is not allowed"]),
    (
        ["routing={kind: sigmoid_group_topk, groups: 3}"],
        ["routing.groups: 3 is not allowed; allowed: a divisor of 8"],
    ),
    # impossible models
    (["model.top_k=9"], ["model.top_k: 9 is not allowed; allowed: at most experts = 8"]),
    (["model.scale=3"], ["model.scale: 3 is not allowed; allowed: a divisor of d_model = 4096"]),
    (["model={}"], ["model: give preset, or checkpoint, or d_model, d_ff, experts, top_k"]),
    (["model={d_model: 8, d_ff: 8, experts: 2}"], ["model.top_k: is missing"]),
    (["model.checkpoint=/x"], ["model: preset and checkpoint exclude each other"]),
    (["model={checkpoint: /no/such, layers: 2}"], ["model.layers: is set by the checkpoint"]),
    (["model={checkpoint: /no/such}"], ["model.checkpoint: ", "/no/such"]),
    (["cluster.memory=1 MiB"], ["cluster.memory: 1.00 MiB is not enough: module 0 needs 4", "MiB; raise it"]),
    # copies
    (["placement.copies=9"], ["placement.copies: 9 is not allowed; allowed: 1 to 8, the number of modules"]),
    (["placement.copies={2: 9}"], ["placement.copies.2: 9 is not allowed; allowed: 1 to 8"]),
    (["placement.copies={8: 2}"], ["placement.copies.8: there is no expert 8; the model has 8"]),
    (["placement.copies=0"], ["placement.copies: 0 is not allowed"]),
    (["placement.copies=two"], ["placement.copies: 'two' is not allowed"]),
    # faults
    (["faults.0.kind=boom"], ["faults.0.kind: 'boom' is not allowed; allowed: 'kill', 'hang'"]),
    (["faults.0.module=8"], ["faults.0.module: 8 is not allowed; allowed: 0 to 7, or random"]),
    (["faults.0.module=-1"], ["faults.0.module: -1 is not allowed"]),
    (["faults.0.module=somewhere"], ["faults.0.module: 'somewhere' is not allowed", "random"]),
    (["faults.0.module=null"], ["faults.0.module: is missing; kill needs a module number or random"]),
    (["faults.0.rate=0.5"], ["faults.0.rate: is not a parameter of kill, which takes: module, at"]),
    (["faults.0={kind: hang, module: 1, for: 0}"], ["faults.0.for: 0 is not allowed"]),
    (["faults.0={kind: drop, rate: 1.5}"], ["faults.0.rate: 1.5 is not allowed"]),
    (["faults.0={kind: slow, module: 1, factor: .inf}"], ["faults.0.factor: inf is not allowed"]),
    (["faults.0.at={}"], ["faults.0.at: give either batch (a number) or time"]),
    (["faults.0.at={batch: 1, time: 1 s}"], ["faults.0.at: give either batch (a number) or time"]),
    (["faults.0.at.batch=-1"], ["faults.0.at.batch: -1 is not allowed"]),
    (["cluster.links.node=0"], ["cluster.links.node: 0 is not a rate", "200 MB/s"]),
    (["cluster.links.node=5 MB/h"], ["cluster.links.node: '5 MB/h' is not a rate"]),
    (["cluster={transport: memory, links: {node: 1 MB/s}}"], ["cluster.links: ", "zmq or ray"]),
    (["exchange.codec.node={deadline: {within_ms: 0}}"], ["exchange.codec.node", "within_ms"]),
    (["exchange.codec.node={auto: [raw, delta]}"], ["exchange.codec.node", "delta"]),
    (
        ["exchange.codec.node=delta"],
        [
            "exchange.codec.node: delta looks at several rows at once",
            "; leave out delta and project here",
        ],
    ),
    # what cannot be meant
    (
        ["run.batches=" + "9" * 60],
        ["run.batches: 99999999999999999999... is not allowed", "less than or equal to 2147483647"],
    ),
    (["model.experts=4294967296"], ["model.experts: 4294967296 is not allowed", "65536"]),
    (["model.d_model=" + "9" * 400], ["model.d_model: a number of more than 3", "digits is not allowed"]),
    # 2 GiB without 1 MiB hold (2^31 - 2^20 - 64) / 2064 rows of 512 values and two choices of 8 bytes
    (
        ["run.batch_tokens=1100000"],
        ["run.batch_tokens: 1100000 is not allowed; allowed: 1 to 1039939", "what a frame holds"],
    ),
    (
        ["stream.vocabulary=" + "9" * 20],
        ["stream.vocabulary: 999", "is not allowed; allowed: less than 2**63"],
    ),
    (["run.seed=" + "9" * 30], ["run.seed: 999", "less than 9223372036854775808"]),
    (["model.norm_eps=1e-320"], ["model.norm_eps: 1e-320 is not allowed"]),  # 0 in float32
    (["cluster.nodes=5000"], ["cluster: nodes x modules_per_node = 20000", "allowed: up to 4096"]),
    (["cluster.heartbeat=1 us"], ["cluster.heartbeat: 1 us is not allowed; allowed: at least 1 ms"]),
    (["cluster.address=' '"], ["cluster.address: ' ' is not allowed"]),
    (["cluster.replace=no"], ["cluster.replace: 'no' is not allowed; allowed: true or false"]),
    (["cluster.evict_after=1:30"], ["cluster.evict_after: '1:30' is not a time"]),
    (["run.batches=1_000"], ["run.batches: '1_000' is not allowed"]),
    (["run.batches=!!int x"], ["run.batches:1:1: 'x' cannot be read as !!int"]),
    (["run.batches=" + "9" * 5000], ["run.batches:1:1: '999", "cannot be read as !!int"]),
    (["run.batches=!!timestamp x"], ["run.batches:1:1: 'x' cannot be read as !!timestamp"]),
    (["run.batches={[1]: 2}"], ["run.batches:1:2: [1] is not a key"]),
    (["run.batches=" + "[" * 3000], ["run.batches: lists or mappings lie too deep"]),
    (["run.batches=&a [*a, *a]"], ["run.batches: [[", "... is not allowed; it should be a valid integer"]),
    (["run.batches=3 # three"], ["run.batches: '3 # three' is not allowed"]),  # no comments here
    (["stream.path=&anchor # all"], ["stream.path: '# all' would be a comment"]),
    (["faults.0={kind: drop} # all"], ["faults.0: '# all' would be a comment"]),
    (["faults.x.rate=1"], ["'x' is not a position in a list of 1"]),
    (["x." * 3000 + "y=1"], ["x." * 38 + " ...: is not an assignment"]),
    (["stream.path=''"], ["stream.path: '' does not exist"]),
    (["model={checkpoint: ''}"], ["model.checkpoint: '' is not allowed"]),
    (["model.d_model.x=1"], ["model.d_model: {'x': 1} is not allowed"]),
    # assignments
    (["top_k"], ["top_k: is not an assignment"]),
    (["run..seed=1"], ["is not an assignment"]),
    (["faults.5.module=1"], ["'5' is not a position in a list of 1"]),
    (["name.x=1"], ["'laptop' has no key 'x'"]),
    (["run.seed={"], ["run.seed:1:2: "]),
]


@pytest.mark.parametrize(("assignments", "expected"), REFUSED, ids=[case[0][0][:60] for case in REFUSED])
def test_refused_with_path_value_and_what_is_allowed(assignments: list[str], expected: list[str]) -> None:
    (line,) = problems(*assignments)
    for part in expected:
        assert part in line


def test_all_problems_come_at_once_one_line_each() -> None:
    found = problems("run.batches=x", "cluster.nodes=0", "exchange.codec.node=int9", "faults.0.factor=2")
    assert [line.split(":")[0] for line in found] == [
        "cluster.nodes",
        "exchange.codec.node",
        "faults.0.factor",
        "run.batches",
    ]
    found = problems("placement.copies={1: 9, 20: 1}", "faults.0.module=9")
    assert [line.split(":")[0] for line in found] == [
        "placement.copies.1",
        "placement.copies.20",
        "faults.0.module",
    ]


def test_all_assignments_that_are_none_come_at_once() -> None:
    found = problems("top_k", "faults.7.module=1", "a..b=1", "run.seed={")
    assert [line.split(":")[0] for line in found] == ["top_k", "faults.7.module", "a..b=1", "run.seed"]


def test_numbers_are_shown_with_their_digits_or_how_many_these_are() -> None:
    assert show(10**75) == "1" + "0" * 75
    for exponent in (100, 101, 1000):
        found = re.fullmatch(r"a number of more than (\d+) digits", show(-(10**exponent)))
        assert found and 0.98 * exponent < int(found[1]) < exponent + 1


@pytest.mark.parametrize(
    ("text", "path", "says"),
    [
        ("model.top_k is 9; allowed: 1 to 8", ("model", "top_k"), "9 is not allowed; allowed: 1 to 8"),
        ("model.name is no preset; allowed: a, b", ("model", "name"), "is no preset; allowed: a, b"),
        ("model.name is no preset; allowed: no a", ("model", "name"), "is no preset; allowed: no a"),
        ("model.name is 3; allowed: no 3", ("model", "name"), "3 is not allowed; allowed: no 3"),
        ("model.name is 'a\nb'; allowed: c", ("model", "name"), "'a\nb' is not allowed; allowed: c"),
        ("context: 1.5 is too much", ("stream", "context"), "1.5 is too much"),
        ("something else", ("stream",), "something else"),
    ],
)
def test_where_other_modules_say_that_something_is_wrong(text: str, path: tuple[str, ...], says: str) -> None:
    assert problem_of(ValueError(text), "stream") == (path, says)


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
