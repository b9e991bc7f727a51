"""The tables of strategies, as `rayemu list` prints them: names, and what each is for."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

TRANSPORTS = {
    "zmq": "Frames over ZeroMQ: ipc sockets on one machine, encrypted tcp between machines (default).",
    "ray": "Frames as Ray actor calls, for clusters where no other port is open.",
    "memory": "No Ray: the same state machines in one process, over a seeded network and a virtual clock.",
}


def families() -> dict[str, dict[str, str]]:
    """Every family of strategies: scenario key -> name -> one line."""
    from rayemu.alltoall import EXCHANGES, ORDERS, RELAYS, REPLICAS
    from rayemu.arrivals import ARRIVALS
    from rayemu.balance.triggers import TRIGGERS
    from rayemu.compression import STAGES
    from rayemu.faults import FAULTS
    from rayemu.model.presets import PRESETS
    from rayemu.placement import PLACEMENTS
    from rayemu.routing import ROUTERS
    from rayemu.streams import STREAMS
    from rayemu.traces import FORMATS

    return {
        "scenarios": dict(_scenarios()),
        "model.preset": {name: dimensions(spec) for name, spec in PRESETS.items()},
        "routing.kind": first_lines(ROUTERS),
        "placement.kind": first_lines(PLACEMENTS),
        "rebalance.trigger": first_lines(TRIGGERS),
        "replicas.kind": first_lines(REPLICAS),
        "exchange.kind": first_lines(EXCHANGES),
        "exchange.codec": {name: f"{first_line(stage)} [{stage.kind}]" for name, stage in STAGES.items()},
        "exchange.relay": first_lines(RELAYS),
        "exchange.order": first_lines(ORDERS),
        "cluster.transport": TRANSPORTS,
        "stream.kind": first_lines(STREAMS),
        "arrivals.kind": first_lines(ARRIVALS),
        "faults.kind": first_lines(FAULTS),
        "trace --format": first_lines(FORMATS),
    }


def first_line(strategy: Any) -> str:
    """What a strategy is for, as its docstring says."""
    return (inspect.getdoc(strategy) or "").partition("\n")[0]


def first_lines(table: Mapping[str, Any]) -> dict[str, str]:
    """Names of a table with their first docstring lines."""
    return {name: first_line(strategy) for name, strategy in table.items()}


def dimensions(spec: Any) -> str:
    """A model in one line."""
    extras = []
    if spec.shared_d_ff:
        extras.append(f"shared expert {spec.shared_d_ff}")
    if spec.dense_layers:
        extras.append(f"{spec.dense_layers} dense layers first")
    if spec.biases:
        extras.append("biases")
    if spec.weigh_input:
        extras.append("weights on the inputs")
    listed = f", {', '.join(extras)}" if extras else ""
    return (
        f"D={spec.d_model} F={spec.d_ff} E={spec.experts} K={spec.top_k} L={spec.layers}, {spec.activation}, "
        f"{spec.router}{listed}"
    )


def _scenarios() -> Iterator[tuple[str, str]]:
    """Packaged scenarios and the first sentence of the comment at their top."""
    from rayemu.scenario import Scenario

    for name in Scenario.packaged():
        text = resources.files("rayemu.scenarios").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
        comment = " ".join(
            line.lstrip("# ") for line in text.partition("\nname:")[0].splitlines() if line.startswith("#")
        )
        sentence = re.match(r".*?[.?!](?= |$)", comment)
        yield name, sentence[0] if sentence else comment
