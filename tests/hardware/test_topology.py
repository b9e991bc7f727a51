"""Topologies: hops against a breadth-first search of graphs made here, and loads against closed forms."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from rayemu.hardware.spec import Topology
from rayemu.hardware.topology import Network, least_loads, network


def ring(ends: int) -> dict[int, set[int]]:
    return {e: {(e + 1) % ends, (e - 1) % ends} - {e} for e in range(ends)}


def torus(rows: int, columns: int) -> dict[int, set[int]]:
    graph = {}
    for r in range(rows):
        for c in range(columns):
            near = {((r + 1) % rows, c), ((r - 1) % rows, c), (r, (c + 1) % columns), (r, (c - 1) % columns)}
            graph[r * columns + c] = {a * columns + b for a, b in near} - {r * columns + c}
    return graph


def fat_tree(arity: int) -> dict[object, set[object]]:
    """As its paper draws it: k pods of k/2 edge and k/2 middle switches, (k/2)^2 cores, k/2 ends an edge."""
    half = arity // 2
    graph: dict[object, set[object]] = {}

    def join(a: object, b: object) -> None:
        graph.setdefault(a, set()).add(b)
        graph.setdefault(b, set()).add(a)

    for pod in range(arity):
        for edge in range(half):
            for port in range(half):
                join((pod * half + edge) * half + port, ("edge", pod, edge))
                join(("edge", pod, edge), ("middle", pod, port))
        for middle in range(half):
            for port in range(half):
                join(("middle", pod, middle), ("core", middle, port))
    return graph


def distances(graph: dict, start: object) -> dict:
    far, waiting = {start: 0}, deque([start])
    while waiting:
        at = waiting.popleft()
        for there in graph[at]:
            if there not in far:
                far[there] = far[at] + 1
                waiting.append(there)
    return far


JOINED = {
    "ring of 2": (Topology(kind="ring"), 2, ring(2)),
    "ring of 7": (Topology(kind="ring"), 7, ring(7)),
    "ring of 8": (Topology(kind="ring"), 8, ring(8)),
    "torus 3 x 5": (Topology(kind="torus", dimensions=(3, 5)), 15, torus(3, 5)),
    "torus 4 x 4": (Topology(kind="torus", dimensions=(4, 4)), 16, torus(4, 4)),
    "torus of 12, found": (Topology(kind="torus"), 12, torus(3, 4)),
    "fat tree of 4": (Topology(kind="fat_tree", arity=4), 16, fat_tree(4)),
    "fat tree of 6": (Topology(kind="fat_tree", arity=6), 54, fat_tree(6)),
    "fat tree, found, not full": (Topology(kind="fat_tree"), 11, fat_tree(4)),
}


def pairs(ends: int) -> tuple[np.ndarray, np.ndarray]:
    return np.divmod(np.arange(ends * ends), ends)


@pytest.mark.parametrize("name", JOINED)
def test_every_route_has_as_many_hops_as_the_shortest_path(name: str) -> None:
    topology, ends, graph = JOINED[name]
    net = network(topology, ends)
    src, dst = pairs(ends)
    expected = [distances(graph, s)[d] for s, d in zip(src.tolist(), dst.tolist(), strict=True)]
    routes = net.routes(src, dst)
    np.testing.assert_array_equal(routes.hops, expected)
    away = np.array(expected)[src != dst]
    assert net.hops() == (pytest.approx(away.mean()), away.max())


@pytest.mark.parametrize("name", [*JOINED, "full"])
def test_a_route_leads_from_its_source_to_its_destination(name: str) -> None:
    topology, ends = (None, 6) if name == "full" else JOINED[name][:2]
    net = network(topology, ends)
    src, dst = pairs(ends)
    routes = net.routes(src, dst)
    assert (np.diff(routes.of) >= 0).all()
    flow = np.zeros((len(src), net.links.max() + 1))  # of each message, what leaves each node less what comes
    np.add.at(flow, (routes.of, net.links[routes.link, 0]), routes.part)
    np.add.at(flow, (routes.of, net.links[routes.link, 1]), -routes.part)
    expected = np.zeros_like(flow)
    expected[np.arange(len(src)), src] += 1
    expected[np.arange(len(src)), dst] -= 1
    np.testing.assert_allclose(flow, expected, atol=1e-12)


@pytest.mark.parametrize("ends", [2, 3, 8, 9, 64])
def test_hops_of_a_ring_are_those_of_its_formula(ends: int) -> None:
    average = ends**2 / 4 / (ends - 1) if ends % 2 == 0 else (ends + 1) / 4
    assert network(Topology(kind="ring"), ends).hops() == (pytest.approx(average), ends // 2)


@pytest.mark.parametrize("side", [2, 4, 8])
def test_hops_of_a_square_torus_are_those_of_its_formula(side: int) -> None:
    """Each of two dimensions has side / 4 on average, an end to itself among them."""
    ends = side**2
    average = 2 * side / 4 * ends / (ends - 1)
    net = network(Topology(kind="torus", dimensions=(side, side)), ends)
    assert net.hops() == (pytest.approx(average), side)


@pytest.mark.parametrize("arity", [2, 4, 8])
def test_hops_of_a_fat_tree_are_those_of_its_formula(arity: int) -> None:
    edge, pod, ends = arity // 2, arity**2 // 4, arity**3 // 4
    average = (2 * (edge - 1) + 4 * (pod - edge) + 6 * (ends - pod)) / (ends - 1)
    net = network(Topology(kind="fat_tree", arity=arity), ends)
    assert net.hops() == (pytest.approx(average), 6)


def test_a_crossbar_has_one_hop_and_nobody_in_the_way() -> None:
    net = network(None, 5)
    assert net.hops() == (1.0, 1)
    np.testing.assert_array_equal(net.loads(np.ones((5, 5))), np.full(10, 4.0))


@pytest.mark.parametrize("ends", [2, 6, 8, 32])
def test_an_even_exchange_puts_an_eighth_of_the_square_on_every_link_of_a_ring(ends: int) -> None:
    loads = network(Topology(kind="ring"), ends).loads(np.full((ends, ends), 3.0))
    np.testing.assert_allclose(loads, 3.0 * ends**2 / 8)


def test_an_even_exchange_fills_the_links_of_a_fat_tree_and_a_torus_evenly() -> None:
    """Of 16 ends each sends 15, 14 of them beyond its edge switch and 12 beyond its pod."""
    tree = network(Topology(kind="fat_tree", arity=4), 16).loads(np.ones((16, 16))).reshape(6, 16)
    np.testing.assert_allclose(tree, np.repeat([15, 14, 12, 15, 14, 12], 16).reshape(6, 16))
    torus44 = network(Topology(kind="torus", dimensions=(4, 4)), 16).loads(np.ones((16, 16)))
    np.testing.assert_allclose(torus44, 16 * 4 / 8)  # rows of 4, four messages for each pair of columns


def single(ends: int, *messages: tuple[int, int, float]) -> np.ndarray:
    sizes = np.zeros((ends, ends))
    for src, dst, size in messages:
        sizes[src, dst] = size
    return sizes


def test_loads_of_messages_by_hand() -> None:
    net = network(Topology(kind="ring"), 5)
    loads = net.loads(single(5, (0, 2, 10.0), (1, 2, 1.0), (0, 3, 7.0)))
    np.testing.assert_array_equal(loads, [10, 11, 0, 0, 0, 7, 0, 0, 0, 7])  # clockwise, then the other way


def test_equal_routes_share_until_the_fullest_link_has_least() -> None:
    """On a torus two routes lead round the corner: fixed all goes by one of them, shared half by each."""
    net = network(Topology(kind="torus", dimensions=(5, 5)), 25)
    sizes = single(25, (0, 6, 8.0))
    assert sorted(net.loads(sizes)[net.loads(sizes) > 0]) == [8, 8]
    shared = least_loads(net, sizes)
    np.testing.assert_allclose(np.sort(shared[shared > 1e-9]), [4, 4, 4, 4])
    crowded = single(
        25, (0, 1, 8.0), (0, 6, 8.0)
    )  # the first has no choice, so the second goes the other way
    assert net.loads(crowded).max() <= 16
    assert least_loads(net, crowded).max() == pytest.approx(8)


def test_an_exchange_without_bytes_fills_no_link() -> None:
    net = network(Topology(kind="ring"), 4)
    np.testing.assert_array_equal(least_loads(net, np.zeros((4, 4))), np.zeros(8))


@pytest.mark.parametrize("name", ["ring of 7", "torus 3 x 5", "torus 4 x 4", "fat tree of 4"])
def test_shared_routes_are_as_short_and_never_fuller(name: str) -> None:
    topology, ends, _ = JOINED[name]
    net = network(topology, ends)
    sizes = np.random.default_rng(4).integers(0, 1000, (ends, ends)).astype(float)
    np.fill_diagonal(sizes, 0)
    fixed, shared = net.loads(sizes), least_loads(net, sizes)
    assert shared.sum() == pytest.approx(fixed.sum())  # bytes times hops: both are shortest
    assert shared.max() <= fixed.max() * (1 + 1e-9)
    net_out = np.zeros(net.links.max() + 1)
    np.add.at(net_out, net.links[:, 0], shared)
    np.add.at(net_out, net.links[:, 1], -shared)
    np.testing.assert_allclose(net_out[:ends], sizes.sum(1) - sizes.sum(0), atol=1e-3)


@pytest.mark.parametrize(
    ("topology", "ends", "says"),
    [
        (Topology(kind="torus", dimensions=(3, 5)), 16, r"dimensions: \[3, 5\] join 15 ends, not 16"),
        (Topology(kind="fat_tree", arity=4), 17, "arity: 4 joins 16 ends; it must be even and join 17"),
        (Topology(kind="fat_tree", arity=5), 17, "arity: 5 .* must be even"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(topology: Topology, ends: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        network(topology, ends)


def test_a_crossbar_has_nothing_to_share() -> None:
    full: Network = network(None, 4)
    with pytest.raises(ValueError, match="full has one route"):
        least_loads(full, np.ones((4, 4)))


def test_on_a_fat_tree_a_destination_has_one_way_down_and_shifts_never_meet() -> None:
    net = network(Topology(kind="fat_tree", arity=4), 16)
    everyone = net.loads(single(16, *((src, 5, 1.0) for src in range(16) if src // 4 != 1)))
    down = everyone.reshape(6, 16)[3:]
    np.testing.assert_array_equal((down > 0).sum(1), [1, 1, 1])  # to the end, its edge switch, its pod
    for shift in range(1, 16):
        loads = net.loads(single(16, *((src, (src + shift) % 16, 1.0) for src in range(16))))
        assert loads.max() == 1
