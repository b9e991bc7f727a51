"""Messages and exchanges on modelled links: cases by hand, and a schedule served message by message here."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rayemu.benchmarks import validation_links
from rayemu.benchmarks.checks import Check
from rayemu.hardware import Hardware, load_hardware, transfers
from rayemu.hardware.transfers import FREE, HOST, Services, hierarchical, pairwise, phases_seconds, services

GB = 1e9
SOURCE = "source: made up for a test"
MODULE = "latency: {value: 1 us, SOURCE}, bandwidth: {value: 10 GB/s, SOURCE}"
NODE = "latency: {value: 3 us, SOURCE}, bandwidth: {value: 2 GB/s, SOURCE}"


def machine(*, module: str = MODULE, node: str = NODE, each: int = 2) -> Hardware:
    """Nodes of `each` modules, joined inside by `module` and with one another by `node`."""
    module, node = (level.replace("SOURCE", SOURCE) for level in (module, node))
    return load_hardware(
        "text-pim", f"modules_per_node.value={each}", f"links.module={{{module}}}", f"links.node={{{node}}}"
    )


def exchange(modules: int, *messages: tuple[int, int, float]) -> np.ndarray:
    sizes = np.zeros((modules, modules))
    for src, dst, size in messages:
        sizes[src, dst] = size
    return sizes


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], 0.0),
        ([(2, 2, 1e6)], 0.0),  # stays at home
        ([(0, 1, 1e4)], 1e-6 + 1e-6),
        ([(0, 1, 1e4), (1, 0, 3e4)], 1e-6 + 3e-6),  # both ways at once
        ([(0, 2, 1e4)], 3e-6 + 5e-6),
        ([(0, 2, 1e4), (0, 3, 1e4)], 3e-6 + 10e-6),  # one port out
        ([(0, 2, 1e4), (1, 2, 1e4)], 3e-6 + 10e-6),  # one port in
        ([(0, 2, 1e4), (1, 3, 1e4)], 3e-6 + 5e-6),  # a port each
        ([(0, 1, 2e5), (0, 2, 1e4)], 1e-6 + 20e-6),  # the level inside does not wait for that between
    ],
)
def test_an_exchange_by_hand(messages: list[tuple[int, int, float]], expected: float) -> None:
    assert machine().all_to_all_seconds(exchange(4, *messages)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([(0, 2, 1e4), (1, 3, 1e4)], 3e-6 + 10e-6),  # up one link of the node
        ([(0, 2, 1e4), (4, 3, 1e4)], 3e-6 + 10e-6),  # down one link of node 1
        ([(0, 2, 1e4), (2, 0, 1e4)], 3e-6 + 5e-6),  # up and down are two
        ([(0, 2, 1e4), (0, 1, 2e5)], 3e-6 + 21e-6),  # its own port carries both
        ([(2, 0, 1e4), (1, 0, 2e5)], 3e-6 + 21e-6),  # and so does the one that takes them in
        ([(2, 0, 1e4), (0, 1, 2e5)], 1e-6 + 20e-6),  # out and in are two
    ],
)
def test_a_shared_link_carries_what_all_of_a_node_send(
    messages: list[tuple[int, int, float]], expected: float
) -> None:
    hw = machine(node=f"{NODE}, shared: true")
    assert hw.all_to_all_seconds(exchange(6, *messages)) == pytest.approx(expected)


def test_every_message_costs_its_sender_the_overhead() -> None:
    hw = machine(module=f"{MODULE}, overhead: {{value: 2 us, SOURCE}}", each=4)
    fan_out = exchange(4, (0, 1, 1e4), (0, 2, 1e4), (0, 3, 1e4))
    assert hw.all_to_all_seconds(fan_out) == pytest.approx(1e-6 + 3 * (2e-6 + 1e-6))
    assert hw.all_to_all_seconds(fan_out.T) == pytest.approx(1e-6 + 3 * 1e-6)  # nobody receives for it


def test_the_overhead_is_at_the_senders_own_port_where_its_nodes_link_is_shared() -> None:
    hw = machine(node=f"{NODE}, shared: true, overhead: {{value: 50 us, SOURCE}}")
    both = exchange(4, (0, 2, 1e4), (1, 3, 1e4))  # 5 us each on the link, and 50 us at ports of their own
    assert hw.all_to_all_seconds(both) == pytest.approx(3e-6 + 51e-6)


def test_the_smallest_message_takes_the_floor() -> None:
    hw = machine(module=f"{MODULE}, floor: {{value: 5 us, SOURCE}}")
    assert hw.all_to_all_seconds(exchange(2, (0, 1, 1.0))) == pytest.approx(5e-6)
    assert hw.all_to_all_seconds(exchange(2, (0, 1, 1e5))) == pytest.approx(11e-6)


def test_a_share_of_the_bandwidth_is_what_messages_get() -> None:
    hw = machine(module=f"{MODULE}, share: {{value: 0.5, SOURCE}}")
    assert hw.all_to_all_seconds(exchange(2, (0, 1, 1e4))) == pytest.approx(1e-6 + 2e-6)


def test_each_hop_after_the_first_takes_its_latency() -> None:
    ring = f"{MODULE}, topology: {{kind: ring, hop: {{value: 7 us, SOURCE}}}}"
    hw = machine(module=ring, each=8)
    assert hw.all_to_all_seconds(exchange(8, (1, 4, 1e4))) == pytest.approx(1e-6 + 2 * 7e-6 + 1e-6)
    # 0 -> 2 and 1 -> 2 share the link from 1 to 2; 0 -> 4 is as far both ways and goes by halves.
    assert hw.all_to_all_seconds(exchange(8, (0, 1, 2e5), (1, 2, 1e4))) == pytest.approx(1e-6 + 20e-6)
    assert hw.all_to_all_seconds(exchange(8, (0, 4, 4e5))) == pytest.approx(1e-6 + 3 * 7e-6 + 20e-6)


def test_the_host_is_on_node_0_and_the_client_costs_nothing() -> None:
    hw = machine()
    node_of = np.array([0, 0, 1, 1])
    src, dst = np.array([HOST, HOST, 1, 0, -2, 0, 3]), np.array([0, 3, HOST, -2, 1, 0, 2])
    asked = services(hw.spec, src, dst, np.full(7, 1e4), node_of)
    module, node = 1, 2
    np.testing.assert_array_equal(asked.level, [module, node, module, FREE, FREE, FREE, module])
    np.testing.assert_allclose(asked.latency, [1e-6, 3e-6, 1e-6, 0, 0, 0, 1e-6])
    np.testing.assert_array_equal(np.diff(asked.start), [2, 2, 2, 0, 0, 0, 2])
    np.testing.assert_allclose(asked.seconds, np.repeat([1e-6, 5e-6, 1e-6, 1e-6], 2))
    assert len(np.unique(asked.resource)) == 8  # nobody is in another's way


def served(asked: Services) -> float:
    """Seconds until all messages are there: resources serve in the order given, all ready at 0."""
    free: dict[int, float] = {}
    worst = 0.0
    for i in range(len(asked.level)):
        end = 0.0
        for k in range(asked.start[i], asked.start[i + 1]):
            free[asked.resource[k]] = free.get(asked.resource[k], 0.0) + asked.seconds[k]
            end = max(end, free[asked.resource[k]])
        worst = max(worst, asked.floor[i], end + asked.latency[i])
    return worst


KINDS = ("full", "ring", "torus", "fat_tree")


@pytest.mark.parametrize("inside", KINDS)
@pytest.mark.parametrize("between", KINDS)
@pytest.mark.parametrize("shared", ["true", "false"])
def test_an_exchange_takes_as_long_as_its_messages_served_one_by_one(
    inside: str, between: str, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those with the longest way last, which is the worst of all orders."""
    hop = "hop: {value: 400 ns, SOURCE}"
    hw = machine(
        module=f"{MODULE}, topology: {{kind: {inside}, {hop}}}, overhead: {{value: 30 ns, SOURCE}}",
        node=f"{NODE}, topology: {{kind: {between}, {hop}}}, shared: {shared}",
    )
    rng = np.random.default_rng(7)
    node_of = np.array([0, 2, 1, 1, 0, 2, 2, 3])  # not in order, and not as many in each
    sizes = rng.integers(0, 3, (8, 8)) * rng.random((8, 8)) * 1e5
    src, dst = np.nonzero(sizes)
    by_latency = np.argsort(services(hw.spec, src, dst, sizes[src, dst], node_of).latency, kind="stable")
    src, dst = src[by_latency], dst[by_latency]
    asked = services(hw.spec, src, dst, sizes[src, dst], node_of)
    known = [set(ids) & set(asked.resource.tolist()) for ids in asked.resources.values()]
    assert all(known) and set.union(*known) == set(asked.resource.tolist())
    took = hw.all_to_all_seconds(sizes, node_of)
    assert took == pytest.approx(served(asked))
    monkeypatch.setattr(transfers, "_AT_ONCE", 9)  # rows one by one
    assert hw.all_to_all_seconds(sizes, node_of) == pytest.approx(took)


def test_phases_of_a_pairwise_exchange_are_permutations_and_lose_nothing() -> None:
    sizes = np.random.default_rng(1).random((6, 6)) + 1
    phases = list(pairwise(sizes))
    assert len(phases) == 5
    for phase in phases:
        assert ((phase > 0).sum(0) == 1).all() and ((phase > 0).sum(1) == 1).all()
    np.testing.assert_array_equal(sum(phases), sizes * (1 - np.eye(6)))


def test_relays_take_every_byte_to_its_node_and_then_to_its_module() -> None:
    """Hop by hop here: module h has in another node the relay h modulo its members."""
    node_of = np.array([0, 1, 1, 0, 1, 2])
    sizes = np.random.default_rng(2).random((6, 6))
    between, inside = np.zeros((2, 6, 6))
    for home, goal in itertools.product(range(6), range(6)):
        members = np.flatnonzero(node_of == node_of[goal])
        at = home
        if node_of[home] != node_of[goal]:
            at = members[home % len(members)]
            between[home, at] += sizes[home, goal]
        inside[at, goal] += sizes[home, goal]
    found = hierarchical(sizes, node_of)
    np.testing.assert_allclose(found[0], between)
    np.testing.assert_allclose(found[1], inside)
    hw = machine()
    each = sum(hw.all_to_all_seconds(phase, node_of) for phase in (between, inside))
    assert phases_seconds(hw.spec, found, node_of) == pytest.approx(each)


@pytest.mark.parametrize("shared", ["true", "false"])
def test_with_the_bandwidth_that_is_needed_the_deadline_is_met_to_the_point(shared: str) -> None:
    node = f"{NODE}, shared: {shared}"
    sizes = np.random.default_rng(3).random((6, 6)) * 1e6
    needed = machine(node=node).bandwidth_needed(sizes, 100e-6)
    assert sorted(needed) == ["module", "node"]
    for name, rate in needed.items():
        changed = {
            "module": MODULE.replace("10 GB/s", f"{needed['module'] * 1.0001} B/s"),
            "node": node.replace("2 GB/s", f"{needed['node'] * 1.0001} B/s"),
        }
        assert machine(**changed).all_to_all_seconds(sizes) == pytest.approx(100e-6, rel=1e-3)
        changed[name] = changed[name].replace(f"{rate * 1.0001} B/s", f"{rate * 0.9} B/s")
        assert machine(**changed).all_to_all_seconds(sizes) > 100e-6


def test_overheads_take_their_time_of_a_deadline_and_no_bandwidth() -> None:
    """Two messages of 10 kB in 100 us: 1 us is latency, 2 x 20 us are overhead, and 59 us are left."""
    hw = machine(module=f"{MODULE}, overhead: {{value: 20 us, SOURCE}}", each=3)
    needed = hw.bandwidth_needed(exchange(3, (0, 1, 1e4), (0, 2, 1e4)), 100e-6)
    assert needed == {"module": pytest.approx(2e4 / 59e-6)}


def test_a_deadline_shorter_than_the_latency_is_refused() -> None:
    with pytest.raises(ValueError, match=r"deadline: 2e-06 s is not allowed; .* takes 3e-06 s"):
        machine().bandwidth_needed(exchange(4, (0, 2, 1.0)), 2e-6)


def test_an_even_exchange_scales_by_what_leaves_the_node() -> None:
    hw = machine()
    for modules in (2, 4, 64):
        far = (modules - 2) / modules * 1e6 / (2 * GB)
        expected = 3e-6 + far if modules > 2 else 1e-6 + 0.5e6 / (10 * GB)
        assert transfers.even_exchange_seconds(hw.spec, 1e6, modules) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("src", "dst", "says"),
    [([4], [0], "src: module 4 .* there are 4 modules"), ([0], [-3], "dst: module -3 is not allowed")],
)
def test_a_module_that_is_not_there_is_refused(src: list[int], dst: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        services(machine().spec, np.array(src), np.array(dst), np.ones(1), np.array([0, 0, 1, 1]))


def test_a_node_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match="module_to_node: node -1 is not allowed"):
        machine().all_to_all_seconds(np.ones((2, 2)), np.array([0, -1]))


def test_no_messages_ask_nothing() -> None:
    none = np.zeros(0, int)
    asked = services(machine().spec, none, none, none, np.array([0, 0, 1]))
    assert len(asked.resource) == 0 and asked.start.tolist() == [0]


@pytest.mark.parametrize("check", validation_links.checks(), ids=lambda check: check.name)
def test_published_and_measured_figures_are_met(check: Check) -> None:
    assert check.passed, [(row.what, row.predicted, row.published) for row in check.rows]
