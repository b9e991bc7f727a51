"""Drawn graphs: a step by hand, the record of the same scenario as it ran, and what no run is needed for."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from rayemu.drivers.simulator import Simulator
from rayemu.hardware import load_hardware
from rayemu.model.model import Model
from rayemu.model.spec import ModelSpec
from rayemu.placement import from_columns
from rayemu.pricing import schedule
from rayemu.pricing.choices import chosen_by_model
from rayemu.pricing.draw import Plan, draw_graph
from rayemu.pricing.graph import COMBINE, DISPATCH, EXPERT, MESSAGE, OTHER, REPLY, ROUTE, EventGraph
from rayemu.pricing.memory import PricingError
from rayemu.pricing.price import price
from rayemu.pricing.recorded_graph import graph_of
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.server import JOB_ROWS
from rayemu.scenario import Scenario
from tests.pricing.graphs import TOY

BASE = {
    "model": {"d_model": 64, "d_ff": 128, "experts": 8, "top_k": 2, "layers": 3},
    "cluster": {"nodes": 2, "modules_per_node": 4, "transport": "memory"},
    "stream": {"kind": "zipf", "vocabulary": 512},
    "run": {"batches": 2, "batch_tokens": 48, "in_flight": 1, "seed": 3},
}


def a_scenario(*changes: str) -> Scenario:
    return Scenario.from_dict(BASE).with_overrides(changes)


def plan_of(scenario: Scenario, config: ProtocolConfig | None = None) -> Plan:
    run = scenario.run
    nodes = scenario.placement_problem().module_to_node
    config = config or ProtocolConfig.from_scenario(scenario)
    return Plan(scenario.spec, config, scenario.placed(), nodes, run.batch_tokens, run.batches, run.in_flight)


def facts(graph: EventGraph) -> list[tuple]:
    """What each event is, and what it waits for."""
    columns = (graph.kind, graph.role, graph.src, graph.dst, graph.layer, graph.expert, graph.rows)
    each = zip(*(column.tolist() for column in columns), strict=True)
    return [(*event, sorted(graph.causes_of(i).tolist())) for i, event in enumerate(each)]


def test_a_step_by_hand() -> None:
    """Two tokens at home on module 0; expert 0 is there, expert 1 on module 1 of the same node."""
    spec = ModelSpec("m", 64, 128, experts=2, top_k=1, layers=1)
    placed = from_columns([0, 0], [0, 1], [0, 1])
    scenario = a_scenario("exchange.kind=flat")
    plan = Plan(spec, ProtocolConfig.from_scenario(scenario), placed, np.zeros(2, np.int32), batch_tokens=2)
    graph = draw_graph(plan, lambda batches, layer: np.array([[0], [1]]))
    assert facts(graph) == [
        (MESSAGE, OTHER, -2, -1, -1, -1, 2, []),
        (ROUTE, 0, -1, -1, 0, -1, 2, [0]),
        (MESSAGE, OTHER, -1, 0, -1, -1, 2, [1]),
        (MESSAGE, DISPATCH, 0, 1, 0, -1, 1, [2]),
        (EXPERT, 0, 0, 0, 0, 0, 1, [2]),
        (EXPERT, 0, 1, 1, 0, 1, 1, [3]),
        (MESSAGE, REPLY, 1, 0, 0, -1, 1, [5]),
        (COMBINE, 0, 0, 0, 0, -1, 2, [4, 6]),
        (MESSAGE, OTHER, 0, -2, -1, -1, 2, [7]),
    ]
    row = 4 * 64
    assert (graph.bytes[[3, 6]] > row).all() and (graph.bytes[[3, 6]] < 2 * row).all()
    hw = load_hardware(TOY)
    found = price(graph, schedule(graph, hw, spec), hw, spec, 2)
    links = graph.bytes[[2, 3, 6]] / 64e9 + 1e-6
    work = hw.route_seconds(64, 2, 2), hw.expert_seconds(64, 128, 1), hw.combine_seconds(64, 1, 2)
    assert found["step_emu_s"] == pytest.approx(links.sum() + sum(work))


def test_a_relay_by_hand() -> None:
    """Home 0 on node 0, experts on modules 2 and 3 of node 1: one frame to the relay, which is module 2."""
    spec = ModelSpec("m", 64, 128, experts=2, top_k=2, layers=1)
    placed = from_columns([0, 0], [0, 1], [2, 3])
    config = ProtocolConfig.from_scenario(a_scenario("routing.place=modules"))
    plan = Plan(spec, config, placed, np.array([0, 0, 1, 1], np.int32), batch_tokens=3)
    graph = draw_graph(plan, lambda batches, layer: np.array([[0, 1], [1, 0], [0, 1]]))
    assert facts(graph)[1:] == [
        (MESSAGE, OTHER, -1, 0, -1, -1, 3, [0]),
        (ROUTE, 0, 0, 0, 0, -1, 3, [1]),
        (MESSAGE, DISPATCH, 0, 2, 0, -1, 3, [2]),  # three rows for six pairs
        (MESSAGE, DISPATCH, 2, 3, 0, -1, 3, [3]),
        (EXPERT, 0, 2, 2, 0, 0, 3, [3]),
        (EXPERT, 0, 3, 3, 0, 1, 3, [4]),
        (MESSAGE, REPLY, 3, 2, 0, -1, 3, [6]),
        (MESSAGE, REPLY, 2, 0, 0, -1, 6, [5, 7]),
        (COMBINE, 0, 0, 0, 0, -1, 3, [8]),
        (MESSAGE, OTHER, 0, -2, -1, -1, 3, [9]),
    ]


def events(graph: EventGraph) -> Counter:
    """How often there is what event, regardless of order."""
    columns = (
        graph.kind,
        graph.role,
        graph.src,
        graph.dst,
        graph.expert * (graph.kind == EXPERT),
        graph.rows,
    )
    return Counter(zip(*(column.tolist() for column in columns), strict=True))


def recorded(
    scenario: Scenario, model: Model, batches: list[np.ndarray], config: ProtocolConfig
) -> EventGraph:
    """The graph of the scenario as the simulator runs it, its expert servers waiting for all requests."""
    simulator = Simulator(config, model, scenario.placed(), scenario.placement_problem().module_to_node)
    simulator.settle()
    for x in batches:
        simulator.result(simulator.submit(x))
    nodes = scenario.placement_problem().module_to_node
    return graph_of(simulator.record(), scenario.spec, in_flight=1, module_to_node=nodes)


CASES = [
    ["exchange.min_slice_rows=48"],
    ["exchange.min_slice_rows=12"],
    ["exchange.min_slice_rows=12", "exchange.kind=flat", "routing.place=modules"],
    ["exchange.min_slice_rows=24", "placement.copies=2", "replicas.kind=least_loaded"],
    ["exchange.min_slice_rows=12", "exchange.order=rotation", "placement.kind=round_robin"],
    ["exchange.min_slice_rows=24", "placement.copies=3", "replicas.kind=even", "exchange.relay=first"],
    ["exchange.min_slice_rows=6", "exchange.micro_batches=2", "placement.copies=2", "replicas.kind=hash"],
    ["model.layers=1", "exchange.codec.node=int8", "exchange.codec.module={by_size: [[4, int8], bf16]}"],
    ["model.shared_d_ff=64", "model.dense_layers=1", "model.dense_d_ff=256", "exchange.min_slice_rows=24"],
    ["model.d_model=128", "model.d_ff=256", "model.scale=2"],
    ["model.layers=1", "model.d_model=128", "model.d_ff=256", "model.scale=2", "exchange.codec.node=int8"],
]  # fmt: skip


@pytest.mark.parametrize("changes", CASES, ids=lambda changes: " ".join(c.split(".")[-1] for c in changes))
def test_it_is_the_graph_of_the_run(changes: list[str]) -> None:
    scenario = a_scenario(*changes)
    # Servers that share their core with so many others wait out `linger`, and so for all requests of a batch.
    config = dataclasses.replace(
        ProtocolConfig.from_scenario(scenario), modules_per_core=1e6, retry_after=5.0
    )
    run, model = scenario.run, Model(scenario.spec)
    stream = scenario.stream.build()
    batches = list(islice(stream.batches(run.batch_tokens, scenario.spec.d_model, run.seed), run.batches))
    ran = recorded(scenario, model, batches, config)
    found = chosen_by_model(model, batches)
    drawn = draw_graph(
        plan_of(scenario, config), lambda which, layer: np.concatenate([found[b][layer] for b in which])
    )
    assert events(drawn) == events(ran)
    assert drawn.bytes.sum() == pytest.approx(ran.bytes.sum(), rel=0.005)
    tokens = run.batches * run.batch_tokens
    near = 0.005 if config.micro_batches == 1 else 0.02  # who is served first of equals is chance in a run
    for name in ("text-pim", "h100-sxm"):
        hw = load_hardware(name)
        figures = [price(g, schedule(g, hw, scenario.spec), hw, scenario.spec, tokens) for g in (ran, drawn)]
        for what in ("step_emu_s", "tokens_per_emu_s", "joules_per_token"):
            assert figures[1][what] == pytest.approx(figures[0][what], rel=near), (name, what)


def test_causes_come_first_and_every_choice_is_computed_once() -> None:
    scenario = a_scenario("run.batches=5", "run.in_flight=2", "exchange.min_slice_rows=6")
    rng = np.random.default_rng(0)

    def choices(batches: range, layer: int) -> np.ndarray:
        return np.argsort(rng.random((48 * len(batches), 8)), axis=1)[:, :2]

    graph = draw_graph(plan_of(scenario), choices)
    assert (graph.causes < np.repeat(np.arange(len(graph)), np.diff(graph.cause_start))).all()
    experts = graph.kind == EXPERT
    assert np.bincount(graph.batch[experts], graph.rows[experts]).tolist() == [48 * 2 * 3] * 5
    submits = np.flatnonzero(graph.src == -2)
    freed = [set(graph.batch[graph.causes_of(i)].tolist()) for i in submits]
    assert freed == [set(), set(), {0}, {1}, {2}]  # two batches are under way


def test_many_rows_of_an_expert_are_cut_in_jobs_that_are_alike() -> None:
    spec = ModelSpec("m", 8, 8, experts=1, top_k=1, layers=1)
    placed = from_columns([0], [0], [0])
    config = ProtocolConfig.from_scenario(a_scenario("exchange.min_slice_rows=64", "exchange.kind=flat"))
    tokens = 3 * JOB_ROWS - 10
    plan = Plan(spec, config, placed, np.zeros(64, np.int32), batch_tokens=tokens)
    graph = draw_graph(plan, lambda batches, layer: np.zeros((tokens, 1), int))
    rows = graph.rows[graph.kind == EXPERT]
    assert len(rows) == 3 and rows.sum() == tokens and rows.max() - rows.min() <= 2 * (tokens // 64 + 1)


def test_a_codec_that_goes_by_measurements_is_refused() -> None:
    scenario = a_scenario("exchange.codec.node=auto")
    with pytest.raises(PricingError, match=r"exchange\.codec\.node\.dispatch: .*name a codec, or by_size"):
        draw_graph(plan_of(scenario), lambda batches, layer: np.zeros((48, 2), int))
