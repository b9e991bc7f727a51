"""Stories of experts that move while tokens flow and things go wrong, each from a seed."""

from __future__ import annotations

from functools import partial

import numpy as np

from rayemu.alltoall import ALIVE, EXCHANGES, READY, REPLICAS
from rayemu.compression import make_policy
from rayemu.drivers.decided import DecisionCheck
from rayemu.drivers.simulator import Simulator
from rayemu.drivers.world import Network
from rayemu.model.model import Model
from rayemu.model.reference import reference_forward
from rayemu.model.spec import ModelSpec
from rayemu.placement import PLACEMENTS, Placement, from_columns, problem_of
from rayemu.protocol.client import BatchResult
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.replay import PathReplay
from tests.drivers import chaos

FAULTS = ("none", *chaos.FAULTS)
IN_FLIGHT = 3


def run(seed: int, batches: int = 6) -> set[str]:
    """Run a story and check every promise; return what it had that not every one has."""
    rng = np.random.default_rng([seed, 14])
    nodes = int(rng.integers(1, 4))
    modules = nodes * int(rng.integers(2, 4))
    layers, experts = int(rng.integers(1, 4)), int(rng.integers(2, 9))
    dense, biases = int(rng.integers(0, layers)), bool(rng.integers(2))
    spec = ModelSpec(
        name="tiny", d_model=16, d_ff=16, experts=experts, top_k=min(2, experts), layers=layers, seed=seed,
        dense_layers=dense, dense_d_ff=16, biases=biases,
    )  # fmt: skip
    spec = chaos.routed(spec, np.random.default_rng([seed, 2]))
    raw = make_policy("raw")
    spread = np.random.default_rng([seed, 15]).random() < 0.4
    config = ProtocolConfig(
        exchange=[EXCHANGES["flat"](), EXCHANGES["hierarchical"]()][int(rng.integers(2))],
        replicas=REPLICAS[str(rng.choice(list(REPLICAS)))](),
        dispatch=(raw, raw),
        combine=(raw, raw),
        min_slice_rows=int(rng.choice([1, 8])),
        chunk_bytes=int(rng.choice([256, 1 << 20])),
        place=["modules", "coordinator", "distributed", "distributed"][int(rng.integers(2)) + 2 * spread],
        replace_after=float(rng.choice([0.01, 0.3])),
        move_rate=float(rng.choice([3e4, 1e6, 1e9])),
    )
    model = Model(spec)
    least = int(rng.integers(1, 3))  # copies that each expert always has
    copies = np.full((layers, experts), least)
    copies[:dense] = 0
    network = Network(
        loss=float(rng.choice([0, 0.05])),
        duplicate=float(rng.choice([0, 0.1])),
        corrupt=float(rng.choice([0, 0.05])),
        straggle=float(rng.choice([0, 0.05])),
    )
    first = PLACEMENTS["linear"]().place(problem_of(copies, modules, nodes))
    module_to_node = np.repeat(np.arange(nodes, dtype=np.int32), modules // nodes)
    simulator = Simulator(config, model, first, module_to_node, seed=seed, network=network)
    fault = FAULTS[int(rng.integers(len(FAULTS)))]
    chaos.plan(simulator, fault, modules, rng)
    may_lose = "crash" in fault and (least == 1 or fault in ("two crashes", "crash and hang"))
    wanted = [anywhere(rng, copies, modules) for _ in range(int(rng.integers(1, 4)))]
    for when, placement in zip(np.cumsum(rng.exponential(0.02, len(wanted))).tolist(), wanted, strict=True):
        simulator.at(when, partial(simulator.move, placement))
    inputs = [rng.standard_normal((int(rng.integers(1, 40)), 16), dtype=np.float32) for _ in range(batches)]
    numbers: list[int] = []
    traits = {fault}
    check = DecisionCheck(model, module_to_node, simulator.client.epochs)

    def exact(x: np.ndarray, result: BatchResult) -> bool:
        replay = PathReplay(None, None, config.codecs, result.decisions)
        y = reference_forward(model, x, replay)
        if result.decisions is not None:
            check.take(result.batch, result.decisions, replay.told)
        return np.array_equal(y, result.y)

    for at in range(batches):
        while len(numbers) < min(batches, at + IN_FLIGHT):
            numbers.append(simulator.submit(inputs[len(numbers)]))
        result = simulator.result(numbers[at])
        if result.failure is not None:
            assert may_lose, result.failure
            traits.add("failed")
            continue
        assert (result.delivered == 1).all(), "a token was lost or delivered twice"
        assert exact(inputs[at], result), "not bit-identical"
        if any(state.machine.loader.busy for state in simulator.modules):
            traits.add("while loading")
        slow = float(rng.exponential(0.02))
        end = simulator.now + slow
        simulator.world.run_until(lambda end=end: simulator.now >= end, 1.0)  # type: ignore[misc]
    settle(simulator, len(wanted) - 1)
    coordinator = simulator.coordinator
    view, mover = coordinator.membership.view, coordinator.mover
    assert mover is not None
    if not mover.cancelled:
        assert rows(view.placement) == rows(wanted[-1]), "it is not where it was to be"
    counts = view.placement.counts(layers, experts)
    assert (counts[dense:] > 0).all(), "an expert was lost from the table"
    for state in simulator.modules:
        if state.up and view.state[state.machine.me] == ALIVE:
            mine = {
                (layer, expert)
                for layer, expert, module in rows(view.placement)
                if module == state.machine.me
            }
            assert set(state.machine.holdings) == mine, "it holds other experts than its slots say"
            for layer, expert in mine:
                held, own = state.machine.holdings[layer, expert], model.layers[layer].experts[expert]
                assert np.array_equal(held.up, own.up) and np.array_equal(held.down, own.down)
                assert not biases or np.array_equal(held.down_bias, own.down_bias)
    traits |= {"cancelled"} if mover.cancelled else set()
    traits |= {"fetched"} if mover.fetched else set()
    x = rng.standard_normal((9, 16), dtype=np.float32)
    last = simulator.result(simulator.submit(x))
    assert last.failure is None and exact(x, last)
    assert not check.wrong, f"batches and layers with other choices than their router's: {check.wrong}"
    if check.checked:
        traits.add("whole batches")
    if check.unchecked:
        calm = fault == "none" and not (network.loss or network.corrupt)
        assert not calm, "choices could not be made again"
    return traits


def settle(simulator: Simulator, move: int) -> None:
    """Run on until nothing is left to move, all modules live and hold what they should."""

    def settled() -> bool:
        view = simulator.coordinator.membership.view
        status = simulator.moved(move) if move in simulator.client.moves else None
        mover = simulator.coordinator.mover
        if status is None or mover is None or not (status.done and mover.idle) or (view.state != ALIVE).any():
            return False
        machines = [state.machine for state in simulator.modules]
        return bool((view.slot_state == READY).all()) and all(
            machine.view.epoch == view.epoch and not machine.loader.busy for machine in machines
        )

    simulator.world.run_until(settled, 300.0)


def rows(placement: Placement) -> set[tuple[int, int, int]]:
    columns = placement.layer.tolist(), placement.expert.tolist(), placement.module.tolist()
    return set(zip(*columns, strict=True))


def anywhere(rng: np.random.Generator, copies: np.ndarray, modules: int) -> Placement:
    """At least as many copies of each expert [L, E], and at most three, anywhere."""
    table = [
        (layer, expert, module)
        for layer, expert in np.argwhere(copies > 0).tolist()
        for module in rng.permutation(modules)[: int(rng.integers(copies[layer, expert], 4))].tolist()
    ]
    return from_columns(*np.array(table).T)
