"""The schedule against one made event by event in plain Python, closed forms, and cases by hand."""

from __future__ import annotations

import heapq
import re
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from rayemu.hardware import Hardware, load_hardware
from rayemu.model.spec import ModelSpec
from rayemu.pricing import schedule
from rayemu.pricing.graph import COMBINE, EXPERT, ROUTE, EventGraph
from tests.pricing.graphs import TOY, Draft, drawn, step

MODEL = ModelSpec("m", 512, 256, 8, 2, layers=2, shared_d_ff=128)


@pytest.fixture(scope="module")
def pim() -> Hardware:
    return load_hardware(TOY)


def asked(graph: EventGraph, event: int, hw: Hardware, model: ModelSpec) -> tuple[list[tuple], float]:
    """What an event asks: (resource, seconds) each, and its latency. Only ports and links of nodes."""
    kind, src, dst = int(graph.kind[event]), int(graph.src[event]), int(graph.dst[event])
    rows, nodes = int(graph.rows[event]), graph.module_to_node.tolist()
    if kind == ROUTE:
        host = ("host", -1) if src < 0 else ("host", nodes[src])
        return [(host, hw.route_seconds(model.d_model, model.experts, rows))], 0.0
    if kind == COMBINE:
        return [(("module", src), hw.combine_seconds(model.d_model, model.top_k, rows))], 0.0
    if kind == EXPERT:
        width = model.d_ff if graph.expert[event] >= 0 else model.shared_d_ff
        return [(("module", src), hw.expert_seconds(model.d_model, width, rows))], 0.0
    if src == dst or -2 in (src, dst):
        return [], 0.0
    a, b = (0 if end < 0 else nodes[end] for end in (src, dst))
    near, far, size = hw.spec.links.module, hw.spec.links.node, float(graph.bytes[event])
    ports = [
        (("out", src), size / near.bandwidth + near.overhead * (a == b)),
        (("in", dst), size / near.bandwidth),
    ]
    if a == b:
        return ports, near.latency
    way = [(("up", a), size / far.bandwidth + far.overhead), (("down", b), size / far.bandwidth)]
    return [*way, *ports], far.latency


def slow_schedule(graph: EventGraph, hw: Hardware, model: ModelSpec) -> tuple[list, list, list, dict]:
    """One event after the other: whoever is ready first, at each resource."""
    size = len(graph)
    causes = [graph.causes[graph.cause_start[i] : graph.cause_start[i + 1]].tolist() for i in range(size)]
    effects: list[list[int]] = [[] for _ in range(size)]
    for event in range(size):
        for cause in causes[event]:
            effects[cause].append(event)
    waits = [len(c) for c in causes]
    ready, alone, end = [0.0] * size, [0.0] * size, [0.0] * size
    free: dict[tuple, float] = {}
    busy: dict[tuple, float] = {}
    front = [(0.0, event) for event in range(size) if not waits[event]]
    heapq.heapify(front)
    while front:
        at, event = heapq.heappop(front)
        entries, latency = asked(graph, event, hw, model)
        last = at
        for resource, seconds in entries:
            free[resource] = max(free.get(resource, 0.0), at) + seconds
            busy[resource] = busy.get(resource, 0.0) + seconds
            last = max(last, free[resource])
        end[event] = last + latency
        alone[event] = max((seconds for _, seconds in entries), default=0.0) + latency
        for effect in effects[event]:
            ready[effect] = max(ready[effect], end[event])
            waits[effect] -= 1
            if not waits[effect]:
                heapq.heappush(front, (ready[effect], effect))
    return ready, [e - a for e, a in zip(end, alone, strict=True)], end, busy


@pytest.mark.parametrize("seed", range(12))
def test_any_graph_is_scheduled_as_one_event_after_the_other(seed: int, pim: Hardware) -> None:
    graph = drawn(seed)
    found = schedule(graph, pim, MODEL, windows=0)
    ready, start, end, busy = slow_schedule(graph, pim, MODEL)
    np.testing.assert_allclose(found.ready, ready, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(found.start, start, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(found.end, end, rtol=1e-9, atol=1e-15)
    for module in range(6):
        assert found.busy["modules"][module] == pytest.approx(busy.get(("module", module), 0.0))
    assert found.busy["node"].sum() == pytest.approx(
        sum(s for r, s in busy.items() if r[0] in ("up", "down"))
    )
    assert found.busy["routing"].sum() == pytest.approx(sum(s for r, s in busy.items() if r[0] == "host"))


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_a_run_s_steps_are_scheduled_as_one_event_after_the_other(in_flight: int, pim: Hardware) -> None:
    graph = step(batches=4, in_flight=in_flight)
    found = schedule(graph, pim, MODEL, windows=0)
    ready, start, end, _ = slow_schedule(graph, pim, MODEL)
    np.testing.assert_allclose(found.ready, ready, rtol=1e-9)
    np.testing.assert_allclose(found.start, start, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(found.end, end, rtol=1e-9)


def test_windows_change_little_and_the_default_of_a_small_graph_nothing(pim: Hardware) -> None:
    graph = step(batches=12, modules=8, per_node=4, rows=64, in_flight=4)
    exact, default, coarse = (schedule(graph, pim, MODEL, windows) for windows in (0, None, 64))
    np.testing.assert_array_equal(default.end, exact.end)
    assert coarse.end.max() == pytest.approx(exact.end.max(), rel=0.05)
    assert (coarse.end != exact.end).any(), "else this test tests nothing"
    for group, busy in exact.busy.items():
        np.testing.assert_allclose(coarse.busy[group], busy)


def test_a_batch_that_is_ahead_does_not_wait_for_one_that_is_behind(pim: Hardware) -> None:
    """Order is by time, not by how many events came before: the second of a chain may be the sooner one."""
    draft = Draft([0, 0, 0])
    late = draft.expert(1, 0, 4000)
    first = draft.expert(0, 1, 4, after=late)
    one = draft.expert(2, 2, 1)
    two = draft.expert(2, 3, 1, after=one)
    soon = draft.expert(0, 4, 4, after=two)
    found = schedule(draft.graph(), pim, MODEL)
    assert found.start[soon] == pytest.approx(found.end[two]) and found.end[soon] < found.start[first]


def test_it_does_not_matter_how_many_events_are_looked_up_at_once(
    pim: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = step(batches=3)
    whole = schedule(graph, pim, MODEL)
    monkeypatch.setattr(sys.modules[schedule.__module__], "_AT_ONCE", 7)
    monkeypatch.setattr(sys.modules[schedule.__module__], "_MOST_ENTRIES", 0)
    np.testing.assert_array_equal(schedule(graph, pim, MODEL).end, whole.end)


def test_two_passes_on_one_module_wait_for_each_other_and_others_do_not(pim: Hardware) -> None:
    draft = Draft([0, 0])
    draft.expert(0, 0, 4)
    draft.expert(0, 1, 8)
    draft.expert(1, 2, 4)
    found = schedule(draft.graph(), pim, MODEL)
    four, eight = (pim.expert_seconds(512, 256, rows) for rows in (4, 8))
    assert found.end.tolist() == pytest.approx([four, four + eight, four])
    assert found.start.tolist() == pytest.approx([0.0, four, 0.0])
    assert found.busy["modules"].tolist() == pytest.approx([four + eight, four])


def test_whoever_is_ready_first_is_served_first(pim: Hardware) -> None:
    draft = Draft([0, 0, 0])
    late = draft.expert(1, 0, 64)
    soon = draft.expert(2, 1, 1)
    draft.expert(0, 2, 4, after=late)
    draft.expert(0, 3, 4, after=soon)
    found = schedule(draft.graph(), pim, MODEL)
    one, four, many = (pim.expert_seconds(512, 256, rows) for rows in (1, 4, 64))
    assert found.end.tolist() == pytest.approx([many, one, max(many, one + four) + four, one + four])


def test_a_message_between_nodes_takes_the_slowest_link_and_the_latency(pim: Hardware) -> None:
    draft = Draft([0, 0, 1])
    draft.send(0, 2, 12.5e6)
    draft.send(0, 1, 64e6)
    found = schedule(draft.graph(), pim, MODEL)
    # 12.5 MB at 12.5 GB/s; 64 MB at 64 GB/s behind the first one's 12.5 MB at the port of module 0
    assert found.end.tolist() == pytest.approx([1e-3 + 2e-6, 12.5e6 / 64e9 + 1e-3 + 1e-6])
    assert found.start.tolist() == pytest.approx([0.0, 12.5e6 / 64e9], abs=1e-12)


def test_a_node_s_shared_link_carries_what_its_modules_send_one_after_the_other(pim: Hardware) -> None:
    draft = Draft([0, 0, 1, 1])
    draft.send(0, 2, 12.5e6)
    draft.send(1, 3, 12.5e6)
    assert schedule(draft.graph(), pim, MODEL).end.tolist() == pytest.approx([1e-3 + 2e-6, 2e-3 + 2e-6])


@pytest.mark.parametrize("name", [TOY, "text-pim", "h100-sxm", "hbm2-pim"])
@pytest.mark.parametrize("seed", range(2))
def test_an_exchange_takes_what_the_hardware_says_of_one(name: str | Path, seed: int) -> None:
    hw = load_hardware(name)
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 1 << 20, (6, 6)) * (rng.random((6, 6)) < 0.7)
    nodes = [0, 0, 0, 1, 1, 1]
    draft = Draft(nodes)
    for src, dst in zip(*np.nonzero(sizes), strict=True):
        draft.send(int(src), int(dst), float(sizes[src, dst]))
    longest = schedule(draft.graph(), hw, MODEL).end.max()
    assert longest == pytest.approx(hw.all_to_all_seconds(sizes, np.array(nodes)), rel=1e-9)


def test_no_message_takes_less_than_the_floor_of_its_link() -> None:
    hw = load_hardware(TOY, "links.module.floor={value: 50 us, source: t}")
    draft = Draft([0, 0])
    draft.expert(1, 1, 3, after=draft.send(0, 1, 64.0))
    plan = schedule(draft.graph(), hw, MODEL)
    assert plan.end.tolist() == pytest.approx([50e-6, 50e-6 + float(hw.expert_seconds(512, 256, 3))])


def test_a_machine_of_processors_by_hand() -> None:
    """Work alone takes what it takes one of them; they serve all as one that is twice as quick."""
    times = "count: N 2, frame: N 1 us, bandwidth: N 1 GB/s, wake: N 3 us"
    times = re.sub(r"N ([^,}]+)", r"{value: \1, source: t}", times)
    hw = load_hardware(TOY, f"processors={{{times}}}")
    took = hw.expert_seconds(512, 256, 5)
    job = took + 3e-6  # whose process slept
    behind = max(2 * took, 1.5 * took + 1.5e-6)  # the second of one process, which is awake
    cases = [([0], job), ([0, 1], 1.5 * job), ([0, 1, 2], 2 * job), ([0, 0], behind)]
    for modules, last in cases:
        draft = Draft([0, 0, 0])
        for expert, module in enumerate(modules):
            draft.expert(module, expert, 5)
        plan = schedule(draft.graph(), hw, MODEL)
        assert plan.span == pytest.approx(last, rel=1e-9), modules
        np.testing.assert_allclose((plan.end - plan.start)[:1], took)
    draft = Draft([0, 0])
    draft.send(0, 1, 1e3)  # 2 us at each end, 1 us of latency, and 3 us to wake who gets it
    assert schedule(draft.graph(), hw, MODEL).span == pytest.approx(2 * 2e-6 + 1e-6 + 3e-6, rel=1e-9)


def test_a_process_is_woken_only_where_it_sleeps_and_large_passes_keep_their_processor() -> None:
    times = "count: N 2, frame: N 1 us, bandwidth: N 1 GB/s, wake: N 3 us, share: N 0.5, turn: N 4 MFLOP"
    times = re.sub(r"N ([^,}]+)", r"{value: \1, source: t}", times)
    hw = load_hardware(TOY, f"processors={{{times}}}")
    small, large = (float(hw.expert_seconds(512, 256, rows)) for rows in (5, 6))  # 3.9 and 4.7 MFLOP
    for rows, took in ((5, 2 * small), (6, large)):
        draft = Draft([0, 0])
        sent = draft.send(0, 1, 0.0)
        draft.send(1, 0, 0.0, after=draft.expert(1, 0, rows, after=sent))
        plan = schedule(draft.graph(), hw, MODEL)
        # The pass finds its module awake, as the message has just come; module 0 has been asleep.
        assert plan.span == pytest.approx(2 * (2e-6 + 1e-6 + 3e-6) + took, rel=1e-9)
        served = plan.busy["processors"][0] * 2
        assert served == pytest.approx(2 * (2e-6 + 3e-6) + took, rel=1e-9)


def test_there_is_a_host_for_each_node_and_one_for_the_coordinator(pim: Hardware) -> None:
    assert len(schedule(drawn(0, modules=6, nodes=3), pim, MODEL).busy["routing"]) == 3 + 1


def test_shared_and_dense_passes_have_their_own_width(pim: Hardware) -> None:
    model = replace(MODEL, dense_layers=1, dense_d_ff=1024)
    draft = Draft([0, 0, 0])
    draft.expert(0, 3, 16, layer=1)
    draft.expert(1, -1, 16, layer=1)
    draft.expert(2, -1, 16, layer=0)
    found = schedule(draft.graph(), pim, model)
    assert found.end.tolist() == pytest.approx([pim.expert_seconds(512, w, 16) for w in (256, 128, 1024)])


def test_the_model_is_taken_at_its_full_width(pim: Hardware) -> None:
    graph = step()
    whole, narrow = (schedule(graph, pim, spec) for spec in (MODEL, MODEL.scaled(8)))
    np.testing.assert_array_equal(whole.end, narrow.end)


def test_the_client_and_oneself_cost_nothing(pim: Hardware) -> None:
    draft = Draft([0])
    sent = draft.send(-2, -1, 1e9)
    here = draft.send(0, 0, 1e9, after=sent)
    draft.send(0, -2, 1e9, after=here)
    assert not schedule(draft.graph(), pim, MODEL).end.any()


def test_nothing_to_do_takes_no_time(pim: Hardware) -> None:
    assert schedule(Draft([0]).graph(), pim, MODEL).span == 0.0


def test_a_cause_that_comes_later_is_refused(pim: Hardware) -> None:
    draft = Draft([0])
    draft.expert(0, 0, 1)
    draft.expert(0, 1, 1, after=0)
    wrong = replace(draft.graph(), causes=np.array([1]))
    with pytest.raises(ValueError, match="event 1 has cause 1"):
        schedule(wrong, pim, MODEL)


def test_a_shared_pass_of_a_model_without_one_is_refused(pim: Hardware) -> None:
    draft = Draft([0])
    draft.expert(0, -1, 1)
    with pytest.raises(ValueError, match="m has none"):
        schedule(draft.graph(), pim, replace(MODEL, shared_d_ff=0))


def test_a_million_messages_in_a_few_seconds(pim: Hardware) -> None:
    """The target is one second on one core; the bound here only catches a loop over events."""
    modules, count, half = 256, 1 << 17, 1 << 16
    rng = np.random.default_rng(0)
    src, dst = rng.integers(modules, size=(2, count))
    draft = Draft([module // 8 for module in range(modules)])
    for number in range(2):
        draft.send(0, 1, 1.0, after=[0] * number)
    two = draft.graph()
    columns = {f.name: getattr(two, f.name) for f in fields(two)}
    columns = {n: np.repeat(c, half) for n, c in columns.items() if isinstance(c, np.ndarray) and len(c) == 2}
    columns |= {"src": src.astype(np.int16), "dst": dst.astype(np.int16), "bytes": rng.random(count) * 1e6}
    starts = np.concatenate([np.zeros(half, np.int64), np.arange(half + 1)])
    graph = replace(two, **columns, cause_start=starts, causes=np.arange(half))
    began = time.process_time()
    schedule(graph, pim, MODEL)
    assert time.process_time() - began < 8 * count / 1e6


def test_a_message_takes_its_level_s_floor_at_least() -> None:
    """640 B are 10 ns and 1 us of latency; 640 kB are 10 us."""
    hardware = load_hardware(TOY, "links.module.floor={value: 5 us, source: t}")
    draft = Draft([0, 0])
    small = draft.send(0, 1, 640.0)
    draft.send(1, 0, 640e3, after=small)
    found = schedule(draft.graph(), hardware, MODEL)
    assert found.end.tolist() == pytest.approx([5e-6, 5e-6 + 11e-6])
    assert (found.end - found.start).tolist() == pytest.approx([5e-6, 11e-6])
