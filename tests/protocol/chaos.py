"""One random experiment in the simulator, fully determined by its seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.alltoall import EXCHANGES, REPLICAS
from rayemu.compression import make_policy
from rayemu.model.model import Model
from rayemu.model.reference import reference_forward
from rayemu.model.spec import ModelSpec
from rayemu.placement import PLACEMENTS
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.replay import PathReplay
from rayemu.protocol.simulator import Network, Simulator

CODECS = [  # module link, node link, and node link on the way back
    ("raw", "raw", "raw"),
    ("raw", "int8+zstd", "int8+zstd"),
    ("int8", "int8", "int8"),
    ("bf16", "fp16", "int8"),
    ("sparse", "zstd", "planes"),
    ({"by_size": [[3, "int8"], [6, "fp8"], "bf16"]}, {"by_size": [[4, "int4"], "fp16"]}, "raw"),
]
FAULTS = ("none", "crash", "silent crash", "hang", "two hangs", "crash of a replacement")


@dataclass
class Outcome:
    simulator: Simulator
    fault: str
    lossy: bool


def run(seed: int, batches: int = 4) -> Outcome:
    """Run a random configuration under random faults and check every promise. Raises where one breaks."""
    rng = np.random.default_rng(seed)
    nodes = int(rng.integers(1, 4))
    modules = nodes * int(rng.integers(2 if nodes == 1 else 1, 4))
    spec = ModelSpec(
        name="tiny",
        d_model=16,
        d_ff=32,
        experts=4,
        top_k=int(rng.integers(1, 4)),
        layers=int(rng.integers(1, 3)),
        shared_d_ff=int(rng.choice([0, 16])),
        dense_layers=0,
        seed=seed,
    )
    model = Model(spec)
    module_codec, node_codec, combine_codec = CODECS[int(rng.integers(len(CODECS)))]
    config = ProtocolConfig(
        exchange=EXCHANGES[str(rng.choice(list(EXCHANGES)))](relay=str(rng.choice(["spread", "first"]))),
        replicas=REPLICAS[str(rng.choice(list(REPLICAS)))](),
        dispatch=(make_policy(module_codec), make_policy(node_codec)),
        combine=(make_policy(module_codec), make_policy(combine_codec)),
        micro_batches=int(rng.choice([1, 2, 4])),
        min_shard_rows=int(rng.choice([1, 4, 64])),
        chunk_bytes=int(rng.choice([256, 1 << 20])),
        window_bytes=int(rng.choice([512, 1 << 20])),
        route_at_coordinator=bool(rng.integers(2)),
    )
    fault = FAULTS[int(rng.integers(len(FAULTS)))]
    copies = 2 if "crash" in fault else int(rng.integers(1, 3))
    placement = PLACEMENTS[str(rng.choice(list(PLACEMENTS)))]().place(np.full(4, copies), modules, rng)
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
    for x, number in zip(inputs, numbers, strict=True):
        result = simulator.result(number)
        assert result.failure is None, result.failure
        assert (result.delivered == 1).all(), "a token was lost or delivered twice"
        assert result.expert_tokens.sum() == len(x) * spec.top_k * spec.layers
        replay = None
        if result.dispatch_paths is not None and result.combine_paths is not None:
            replay = PathReplay(result.dispatch_paths, result.combine_paths, config.codecs)
        assert np.array_equal(reference_forward(model, x, replay), result.y), "not bit-identical"
    return Outcome(simulator, fault, not all(codec.lossless for codec in config.codecs))


def plan(simulator: Simulator, fault: str, modules: int, rng: np.random.Generator) -> None:
    """Arrange a fault for a random moment of the first few milliseconds."""
    first, second = (int(m) for m in rng.permutation(modules)[:2])
    when, later = (float(t) for t in rng.exponential([0.005, 0.5]))
    noticed, length = (float(t) for t in rng.exponential([0.01, 0.6]))
    if fault in ("crash", "crash of a replacement"):
        simulator.at(when, lambda: simulator.crash(first, noticed))
    if fault == "silent crash":
        simulator.at(when, lambda: simulator.crash(first))
    if fault in ("hang", "two hangs"):
        simulator.at(when, lambda: simulator.hang(first, length))
    if fault == "two hangs":  # also both copies of an expert at once
        simulator.at(when, lambda: simulator.hang(second, min(length, 0.8)))
    if fault == "crash of a replacement":
        simulator.at(when + later, lambda: simulator.crash(first, noticed))
