"""One random experiment in the simulator, fully determined by its seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from rayemu.alltoall import DEAD, EXCHANGES, ORDERS, RELAYS, REPLICAS
from rayemu.compression import make_policy
from rayemu.drivers.decided import DecisionCheck
from rayemu.drivers.simulator import Simulator
from rayemu.drivers.world import Network
from rayemu.faults import FAULTS as KINDS_OF_FAULTS
from rayemu.model.model import Model
from rayemu.model.reference import reference_forward
from rayemu.model.spec import ModelSpec
from rayemu.placement import PLACEMENTS, problem_of
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.messages import DROPPED
from rayemu.protocol.replay import PathReplay

CODECS = [  # module link, node link, and node link on the way back
    ("raw", "raw", "raw"),
    ("raw", "int8+zstd", "int8+zstd"),
    ("int8", "int8", "int8"),
    ("bf16", "fp16", "int8"),
    ("sparse", "zstd", "planes"),
    ({"by_size": [[3, "int8"], [6, "fp8"], "bf16"]}, {"by_size": [[4, "int4"], "fp16"]}, "raw"),
    ({"auto": ["raw", "bf16", "int8"]}, {"auto": ["planes", "int4"]}, "auto"),
    ("auto", {"deadline": {"within_ms": 0.5}}, {"auto": ["int8", "raw"]}),
]
KINDS: dict[str, dict[str, Any]] = {
    "usual": {},
    "gpt-oss": {"activation": "clamped_swiglu", "biases": True},
    "llama-4": {"weigh_input": True, "top_k": 1, "router": "sigmoid_group_topk"},
}
ROUTERS: list[tuple[str, dict[str, Any]]] = [  # of some stories, layer by layer: all but one by batch
    ("softmax_topk", {}),
    ("expert_choice", {}),
    ("expert_choice", {"capacity_factor": 0.4}),
    ("capacity_topk", {"capacity_factor": 0.7}),
    ("capacity_topk", {"capacity_factor": 0.5, "overflow": "next", "target_overflow": 0.1}),
    ("bias_balanced_topk", {"rate": 0.1}),
    ("locality_topk", {"module": 0.3, "node": 0.6}),
]
SHAPES = [EXCHANGES["flat"](), *(EXCHANGES["hierarchical"](relay) for relay in RELAYS)]
MESSAGE_FAULTS = ("drop", "delay", "duplicate", "corrupt", "reorder")  # of which stories draw, in this order
FAULTS = (
    "none",
    "crash",
    "silent crash",
    "hang",
    "two hangs",
    "crash of a replacement",
    "two crashes",
    "crash and hang",
    "bad weather",
)


@dataclass
class Outcome:
    simulator: Simulator
    fault: str
    lossy: bool
    copies: int
    traits: set[str]  # what else this story has that not every one has


def run(seed: int, batches: int = 4, experts: int = 4) -> Outcome:
    """Run a random configuration under random faults and check every promise. Raises where one breaks.

    With more experts than 4 a token has 4 to 8 of them, and every second story sends its rows raw.
    """
    rng = np.random.default_rng(seed)
    nodes = int(rng.integers(1, 4))
    modules = nodes * int(rng.integers(2 if nodes == 1 else 1, 4))
    layers = int(rng.integers(1, 4))
    spec = ModelSpec(
        name="tiny",
        d_model=16,
        d_ff=32,
        experts=experts,
        top_k=int(rng.integers(1, 4) if experts == 4 else rng.integers(4, 9)),
        layers=layers,
        shared_d_ff=int(rng.choice([0, 16])),
        dense_layers=int(rng.choice([0, 0, rng.integers(0, layers + 1)])),
        dense_d_ff=16,
        seed=seed,
    )
    kind = str(np.random.default_rng([seed, 1]).choice(list(KINDS)))
    spec = routed(replace(spec, **KINDS[kind]), np.random.default_rng([seed, 2]))
    spread = str(np.random.default_rng([seed, 3]).choice(["", "", "distributed", "hybrid"]))
    if spec.router != "softmax_topk" or spec.layer_routers:
        spread = ""
    elif spread == "hybrid" and spec.top_k <= experts // 2:
        limits = {"groups": 2, "top_groups": 1}
        spec = replace(spec, router="sigmoid_group_topk", router_params=limits)
    elif spread == "hybrid":
        spread = ""
    model = Model(spec)
    number = int(rng.integers(len(CODECS)))
    module_codec, node_codec, combine_codec = CODECS[number if experts == 4 or seed % 2 else 0]
    config = ProtocolConfig(
        exchange=SHAPES[int(rng.integers(len(SHAPES)))],
        replicas=REPLICAS[str(rng.choice(list(REPLICAS)))](),
        dispatch=(make_policy(module_codec), make_policy(node_codec)),
        combine=(make_policy(module_codec), make_policy(combine_codec)),
        order=list(ORDERS.values())[seed % len(ORDERS)],
        micro_batches=int(rng.choice([1, 2, 4, 64])),  # 64: more than a slice has rows
        min_slice_rows=int(rng.choice([1, 4, 64])),
        chunk_bytes=int(rng.choice([256, 1 << 20])),
        window_bytes=int(rng.choice([512, 1 << 20])),
        place=spread or ["modules", "coordinator"][int(rng.integers(2))],
        drop_lost_experts=bool(rng.integers(2)),
        replace_after=float(rng.choice([0.01, 0.3])),
    )
    fault = FAULTS[int(rng.integers(len(FAULTS)))]
    copies = int(rng.integers(1, 3))
    table = np.full((spec.layers, experts), copies)  # [L, E]
    table[: spec.dense_layers] = 0
    kinds = ["linear", "round_robin", "random", "balanced"]  # these need to know no more than the copies
    strategy = PLACEMENTS[str(rng.choice(kinds))]()
    placement = strategy.place(problem_of(table, modules, nodes, seed=int(rng.integers(99))))
    counts = placement.counts(spec.layers, experts)[spec.dense_layers :]
    copies = int(counts.min(initial=copies))  # some strategies choose them
    network = Network(
        loss=float(rng.choice([0, 0.02, 0.1])),
        duplicate=float(rng.choice([0, 0.1])),
        corrupt=float(rng.choice([0, 0.05])),
        straggle=float(rng.choice([0, 0.05])),
    )
    module_to_node = np.repeat(np.arange(nodes, dtype=np.int32), modules // nodes)
    simulator = Simulator(config, model, placement, module_to_node, seed=seed, network=network)
    inputs = [rng.standard_normal((int(rng.integers(1, 40)), 16), dtype=np.float32) for _ in range(batches)]
    numbers = [simulator.submit(x) for x in inputs]
    plan(simulator, fault, modules, rng)
    links(simulator, rng)
    traits = {kind, config.place, "dense"} if spec.dense_layers else {kind, config.place}
    may_lose = "crash" in fault and (copies == 1 or fault == "two crashes")
    check = DecisionCheck(model, module_to_node, simulator.client.epochs)
    whole = {n for n in range(spec.dense_layers, layers) if model.layers[n].router.scope == "batch"}
    for x, number in zip(inputs, numbers, strict=True):
        result = simulator.result(number)
        if result.failure is not None:
            assert may_lose and not config.drop_lost_experts, result.failure
            view = simulator.coordinator.membership.view
            died = np.flatnonzero((view.state == DEAD) | (view.incarnations > 0)).tolist()
            lost = result.failure
            holders = placement.module[(placement.layer == lost.layer) & (placement.expert == lost.expert)]
            assert {*holders.tolist()} <= {*died}, "failed for an expert that lives"
            traits.add("failed")
            continue
        assert (result.delivered == 1).all(), "a token was lost or delivered twice"
        decisions = result.decisions
        assert {part.layer for part, _ in decisions or ()} == whole, "choices were not recorded"
        for layer in range(spec.dense_layers, layers):
            chosen = len(x) * spec.top_k
            if decisions is not None and layer in whole:
                chosen = int((decisions.routing(layer, len(x)).experts >= 0).sum())
                traits.add("whole batches" if chosen == len(x) * spec.top_k else "no choice")
            assert result.expert_tokens[layer].sum() == chosen
        replay = PathReplay(result.dispatch_paths, result.combine_paths, config.codecs, decisions)
        if result.dispatch_paths is not None and (result.dispatch_paths == DROPPED).any():
            assert may_lose and config.drop_lost_experts, "dropped what lives"
            traits.add("dropped")
        assert np.array_equal(reference_forward(model, x, replay), result.y), "not bit-identical"
        if decisions is not None:
            check.take(number, decisions, replay.told)
    assert not check.wrong, f"batches and layers with other choices than their router's: {check.wrong}"
    if check.unchecked:
        calm = fault == "none" and not (network.loss or network.corrupt)
        assert not calm, "choices could not be made again"
        traits.add("unchecked")
    if any(notice.kind == "codec" for notice in simulator.take_notices()):
        traits.add("other codec")
    return Outcome(simulator, fault, not all(codec.lossless for codec in config.codecs), copies, traits)


def routed(spec: ModelSpec, rng: np.random.Generator) -> ModelSpec:
    """Half of the stories have routers by layer."""
    if rng.integers(2):
        return spec
    possible = [one for one in ROUTERS if not (spec.weigh_input and one[0] == "expert_choice")]
    drawn = [possible[n] for n in rng.integers(len(possible), size=spec.layers).tolist()]
    return replace(spec, layer_routers=dict(enumerate(drawn)))


def links(simulator: Simulator, rng: np.random.Generator) -> None:
    """Let adaptive policies measure links that change their speed: the simulated ones have none."""

    def measure(rate: float) -> None:
        for module in simulator.modules:
            for gauge in module.machine.gauges.values():
                for nbytes in (100, 100_000) * 40:
                    gauge.arrived(nbytes, nbytes / rate)

    for when in np.cumsum(rng.exponential(0.002, 6)).tolist():
        simulator.at(when, partial(measure, float(rng.choice([1e4, 1e12]))))


def plan(simulator: Simulator, fault: str, modules: int, rng: np.random.Generator) -> None:
    """Arrange a fault for a random moment of the first few milliseconds."""
    first, second = (int(m) for m in rng.permutation(modules)[:2])
    when, later = (float(t) for t in rng.exponential([0.005, 0.5]))
    noticed, length = (float(t) for t in rng.exponential([0.01, 0.6]))
    if fault in ("crash", "crash of a replacement", "two crashes", "crash and hang"):
        simulator.at(when, lambda: simulator.crash(first, noticed))
    if fault == "silent crash":
        simulator.at(when, lambda: simulator.crash(first))
    if fault == "two crashes":  # before, while or after the first is replaced
        simulator.at(when + later * float(rng.choice([0, 0.1, 1])), lambda: simulator.crash(second, noticed))
    if fault == "crash and hang":
        simulator.at(later * float(rng.choice([0, 0.1])), lambda: simulator.hang(second, length))
    if fault == "bad weather":
        for start, duration in rng.exponential([[0.005, 0.1]] * 5).tolist():
            kind = str(rng.choice(MESSAGE_FAULTS))
            given = {"rate": 0.2, "delay": 0.01}
            takes = {name: given[name] for name in KINDS_OF_FAULTS[kind].parameters()}
            facts = {"kind": kind, "for": duration, **takes}
            simulator.at(start, partial(simulator.inject, facts, [None, first][int(rng.integers(2))]))
    if fault in ("hang", "two hangs"):
        simulator.at(when, lambda: simulator.hang(first, length))
    if fault == "two hangs":  # also both copies of an expert at once
        simulator.at(when, lambda: simulator.hang(second, min(length, 0.8)))
    if fault == "crash of a replacement":
        simulator.at(when + later, lambda: simulator.crash(first, noticed))
