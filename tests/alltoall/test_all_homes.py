"""All homes at once against every home by itself: the same modules, parcels, lots and rows."""

import numpy as np
import pytest

from rayemu.alltoall import EXCHANGES, RELAYS, REPLICAS, Flat, Hierarchical, View, plan_parcels
from rayemu.alltoall.all_homes import Exchange, Units, choose_modules, plan_exchange
from rayemu.placement import PlacementProblem, from_columns
from rayemu.placement.linear import Linear
from tests.views import a_view

SHAPES = [Flat(), *(Hierarchical(relay) for relay in RELAYS)]


def some_view(rng: np.random.Generator, layers: int = 2) -> View:
    """Nodes of unlike sizes, experts with 1 to M copies in any order of modules."""
    nodes = np.repeat(np.arange(rng.integers(1, 5)), 1)
    nodes = np.sort(np.concatenate([nodes, rng.integers(0, len(nodes), rng.integers(0, 6))]))
    modules, experts = len(nodes), int(rng.integers(4, 20))
    columns = []
    for layer in range(layers):
        for expert in range(experts):
            copies = int(rng.integers(1, min(modules, 5) + 1))
            for module in rng.choice(modules, copies, replace=False).tolist():
                columns.append((layer, expert, module))
    layer, expert, module = np.array(columns).T
    return a_view(from_columns(layer, expert, module), nodes, experts)


def some_units(rng: np.random.Generator, view: View, micro: int) -> Units:
    """Slices on any homes, each of 1 to `micro` micro-batches of 1 to 9 tokens."""
    home, number, part, size = [], [], [], []
    for slice in range(int(rng.integers(1, 7))):
        at = int(rng.integers(view.modules))
        for index in range(int(rng.integers(1, micro + 1))):
            home.append(at)
            number.append(slice)
            part.append(index)
            size.append(int(rng.integers(1, 10)))
    return Units(np.array(home), np.array(number), np.array(part), np.concatenate([[0], np.cumsum(size)]))


def some_choices(rng: np.random.Generator, tokens: int, experts: int, top_k: int) -> np.ndarray:
    """Choices [T * K], each token's different, the first experts more often."""
    weight = 1.0 / np.arange(1, experts + 1)
    weight /= weight.sum()
    return np.concatenate([rng.choice(experts, top_k, replace=False, p=weight) for _ in range(tokens)])


@pytest.mark.parametrize("name", REPLICAS)
def test_the_modules_are_those_that_each_home_chooses(name: str) -> None:
    strategy = REPLICAS[name]()
    for seed in range(25 if name != "split" else 4):
        rng = np.random.default_rng(seed)
        view = some_view(rng)
        units = some_units(rng, view, micro=3)
        layer, top_k = int(rng.integers(2)), int(rng.integers(1, 4))
        experts = some_choices(rng, int(units.start[-1]), view.experts, top_k)
        of_pair = units.of_pairs(top_k)
        found = choose_modules(strategy, layer, units, of_pair, experts, view)
        load = np.zeros(view.modules, np.int64)
        for unit in range(len(units)):
            if units.micro[unit] == 0:
                load = np.zeros(view.modules, np.int64)
            mine = of_pair == unit
            slots = strategy.choose(layer, experts[mine][:, None], view, int(units.home[unit]), load)
            expected = view.slot_to_module[slots[:, 0]]
            assert (found[mine] == expected).all(), (name, seed, unit)
            load += np.bincount(expected, minlength=view.modules)


def parcels_of(plan: Exchange, unit: int) -> list[tuple]:
    """Hop, lots and distinct rows of the parcels of a unit; parts likewise."""
    found = []
    for a in np.flatnonzero(plan.parcel_unit == unit):
        parts, lots = [], []
        for b in range(plan.part_start[a], plan.part_start[a + 1]):
            mine = range(plan.lot_start[b], plan.lot_start[b + 1])
            lots += [(plan.part_module[b], plan.lot_expert[c], plan.lot_pairs[c]) for c in mine]
            parts.append((plan.part_module[b], plan.part_pairs[b], plan.part_rows[b]))
        found.append((plan.parcel_hop[a], lots, plan.parcel_pairs[a], plan.parcel_rows[a], parts))
    return found


@pytest.mark.parametrize("exchange", SHAPES, ids=str)
@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_the_parcels_are_those_that_each_home_plans(exchange: Flat | Hierarchical, chunk: int) -> None:
    assert {type(shape).__name__.lower() for shape in SHAPES} == set(EXCHANGES)
    for seed in range(25):
        rng = np.random.default_rng(seed)
        view = some_view(rng)
        units = some_units(rng, view, micro=2)
        top_k = int(rng.integers(1, 4))
        experts = some_choices(rng, int(units.start[-1]), view.experts, top_k)
        of_pair = units.of_pairs(top_k)
        modules = choose_modules(REPLICAS["even"](), 1, units, of_pair, experts, view)
        plan = plan_exchange(exchange, units, of_pair, modules, experts, top_k, chunk, view)
        for unit in range(len(units)):
            mine = np.flatnonzero(of_pair == unit)
            hops = exchange.first_hops(modules[mine], view, int(units.home[unit]))
            found = parcels_of(plan, unit)
            real = plan_parcels(mine, hops, modules[mine], experts[mine], chunk)
            assert len(real) == len(found)
            for parcel, (hop, lots, pairs, rows, parts) in zip(real, found, strict=True):
                assert (hop, [list(lot) for lot in lots]) == (parcel.hop, parcel.lots.tolist())
                assert pairs == len(parcel.pairs)
                assert rows == len(set((parcel.pairs // top_k).tolist()))
                low = 0
                for module, count, distinct in parts:
                    part = parcel.pairs[low : low + count]
                    assert (parcel.modules[low : low + count] == module).all()
                    assert distinct == len(set((part // top_k).tolist()))
                    low += count


def test_a_linear_placement_has_its_experts_on_every_sixteenth_of_4096_modules() -> None:
    """The case that matters: one copy each, and the modules in between idle."""
    nodes = np.repeat(np.arange(512, dtype=np.int32), 8)
    ones = np.ones((1, 256), np.int64)
    placed = Linear().place(PlacementProblem(ones.astype(float), ones, nodes, 256, 1))
    view = a_view(placed, nodes, 256)
    units = Units(np.array([0, 4095]), np.array([0, 1]), np.array([0, 0]), np.array([0, 1, 2]))
    experts = np.array([0, 255, 0, 1])
    of_pair = units.of_pairs(2)
    modules = choose_modules(REPLICAS["nearest"](), 0, units, of_pair, experts, view)
    assert modules.tolist() == [0, 4080, 0, 16]
    plan = plan_exchange(Hierarchical(), units, of_pair, modules, experts, 2, 1 << 20, view)
    assert plan.parcel_hop.tolist() == [0, 4080, 7, 23]  # home 4095 relays by the last of each node
    assert plan.part_module.tolist() == [0, 4080, 0, 16]
