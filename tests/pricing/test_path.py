"""Critical paths: a chain by hand, a walk in plain Python, and that parts sum to the step."""

from __future__ import annotations

import numpy as np
import pytest

from rayemu.hardware import load_hardware
from rayemu.model.spec import ModelSpec
from rayemu.pricing import EventGraph, Schedule, schedule
from rayemu.pricing.graph import OTHER, REPLY
from rayemu.pricing.path import PARTS, critical_paths
from tests.pricing.graphs import TOY, Draft, drawn, step

MODEL = ModelSpec("m", 512, 256, 8, 2, layers=2, shared_d_ff=128)
PIM = load_hardware(TOY)


def test_a_chain_by_hand() -> None:
    draft = Draft([0, 0, 1])
    submit = draft.send(-2, -1, 1e6, OTHER)
    handed = draft.send(-1, 0, 64e3, OTHER, after=submit)  # 1 us of a 64 GB/s port, 1 us latency
    routed = draft.route(0, 32, after=handed)
    there = draft.send(0, 2, 12.5e3, after=routed)  # 1 us of a 12.5 GB/s link, 2 us latency
    other = draft.send(0, 1, 64e3, after=routed)
    busy = draft.expert(2, 3, 40, after=there)
    computed = draft.expert(2, 0, 32, after=there)
    aside = draft.expert(1, 1, 1, after=other)
    back = draft.send(2, 0, 25e3, REPLY, after=[busy, computed])
    combined = draft.combine(0, 32, after=[back, aside])
    draft.send(0, -2, 1e6, OTHER, after=combined)
    graph = draft.graph()
    paths = critical_paths(graph, schedule(graph, PIM, MODEL))
    parts = dict(zip(PARTS, paths.parts[0].tolist(), strict=True))
    assert parts["route"] == pytest.approx(2e-6 + PIM.route_seconds(512, 8, 32))
    assert parts["dispatch"] == pytest.approx(1e-6 + 2e-6)
    assert parts["compute"] == pytest.approx(PIM.expert_seconds(512, 256, 32))
    assert parts["queue"] == pytest.approx(PIM.expert_seconds(512, 256, 40))
    assert parts["combine"] == pytest.approx(2e-6 + 2e-6 + PIM.combine_seconds(512, 2, 32))
    assert paths.begin.tolist() == [0.0]
    assert paths.end[0] == pytest.approx(sum(parts.values()), rel=1e-12)


def slow_path(graph: EventGraph, plan: Schedule, batch: int, last: int, begin: float) -> dict[str, float]:
    """Second by second, in effect: each stretch of the chain is cut at the batch's beginning."""
    parts = dict.fromkeys(PARTS, 0.0)
    event = last
    while True:
        name = {0: "route", 2: "compute", 3: "combine"}.get(int(graph.kind[event]))
        if name is None:
            src, dst, role = int(graph.src[event]), int(graph.dst[event]), int(graph.role[event])
            coordinator = -1 in (src, dst) and -2 not in (src, dst)
            name = "dispatch" if role == 0 or (src == -2 and role) else "route" if coordinator else "combine"
        start, ready = plan.start[event], plan.ready[event]
        parts[name] += plan.end[event] - max(start, begin)
        parts["queue"] += max(start, begin) - max(ready, begin)
        causes = graph.causes[graph.cause_start[event] : graph.cause_start[event + 1]].tolist()
        if ready <= begin or not causes:
            return parts
        event = max(causes, key=lambda c: plan.end[c])


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_the_path_of_each_batch_of_a_run(in_flight: int) -> None:
    graph = step(batches=4, in_flight=in_flight, rows=32)
    plan = schedule(graph, PIM, MODEL)
    paths = critical_paths(graph, plan)
    assert paths.batch.tolist() == [0, 1, 2, 3]
    for batch in range(4):
        mine = np.flatnonzero((graph.batch == batch) & (graph.dst == -2))
        last = mine[np.argmax(plan.end[mine])]
        submitted = np.flatnonzero((graph.batch == batch) & (graph.src == -2))
        assert paths.begin[batch] == plan.ready[submitted[0]]
        assert paths.end[batch] == plan.end[last]
        expected = slow_path(graph, plan, batch, int(last), paths.begin[batch])
        assert dict(zip(PARTS, paths.parts[batch].tolist(), strict=True)) == pytest.approx(expected)
    np.testing.assert_allclose(paths.parts.sum(axis=1), paths.end - paths.begin, rtol=1e-12)
    assert (paths.parts.sum(axis=0) > 0).all()


@pytest.mark.parametrize("seed", range(8))
def test_the_parts_of_any_graph_sum_to_the_step(seed: int) -> None:
    graph = drawn(seed)
    paths = critical_paths(graph, schedule(graph, PIM, MODEL))
    np.testing.assert_allclose(paths.parts.sum(axis=1), paths.end - paths.begin, rtol=1e-12, atol=1e-18)
    assert (paths.parts >= 0).all()


def test_a_graph_without_a_client_ends_with_its_last_event() -> None:
    draft = Draft([0, 0])
    draft.expert(0, 0, 4, batch=1)
    draft.expert(0, 1, 4, batch=5)
    graph = draft.graph()
    paths = critical_paths(graph, schedule(graph, PIM, MODEL))
    once = PIM.expert_seconds(512, 256, 4)
    assert paths.batch.tolist() == [1, 5]
    assert paths.end.tolist() == pytest.approx([once, 2 * once])
    assert paths.parts[1].tolist() == pytest.approx([0, 0, once, once, 0])


def test_a_batch_without_results_is_left_out() -> None:
    draft = Draft([0])
    for batch in range(2):
        at = draft.expert(0, 0, 4, after=draft.send(-2, -1, 1.0, OTHER, batch=batch), batch=batch)
    draft.send(0, -2, 1.0, OTHER, after=at, batch=1)
    graph = draft.graph()
    assert critical_paths(graph, schedule(graph, PIM, MODEL)).batch.tolist() == [1]


def test_a_merged_pass_that_waited_for_an_earlier_batch_counts_from_its_own_beginning() -> None:
    """Batch 1 is submitted while batch 0 computes, and shares a pass with rows of batch 0 that come later."""
    draft = Draft([0, 0])
    first = draft.expert(0, 0, 4000, after=draft.send(-2, -1, 1.0, OTHER))
    gate = draft.expert(1, 1, 400)
    submit = draft.send(-2, -1, 1.0, OTHER, after=gate, batch=1)
    merged = draft.expert(1, 2, 8, after=[first, submit], batch=0)
    draft.send(1, -2, 1.0, OTHER, after=merged, batch=1)
    graph = draft.graph()
    plan = schedule(graph, PIM, MODEL)
    paths = critical_paths(graph, plan)
    long, short, both = (PIM.expert_seconds(512, 256, rows) for rows in (4000, 400, 8))
    assert paths.begin.tolist() == pytest.approx([short])
    assert paths.parts[0].tolist() == pytest.approx([0, 0, 0, long - short + both, 0])
