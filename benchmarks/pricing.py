"""How quick pricing is: `python -m benchmarks.pricing`, in processor time of one core.

The graph is that of layers of DeepSeek-V3 one after the other, 4,096 tokens on as many modules by default;
exit code 1 below a million messages a second.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from rayemu.hardware import load_hardware
from rayemu.model.presets import PRESETS
from rayemu.pricing import EventGraph, schedule
from rayemu.pricing.crossover import draw, layer_graph
from rayemu.pricing.graph import COMBINE, MESSAGE, ROUTE

GOAL = 1e6  # messages per second


def layers(count: int, modules: int, tokens: int) -> EventGraph:
    """The events of `count` layers: a home routes when it has combined the layer before."""
    model = PRESETS["deepseek-v3"].full()
    nodes = np.arange(modules, dtype=np.int32) // 8
    graph = layer_graph(model, draw(model, tokens, None, 0), nodes, 2.0 * model.d_model)
    size, homes = len(graph), int((graph.kind == ROUTE).sum())
    combines = np.flatnonzero(graph.kind == COMBINE) - size  # of the layer before
    waits = np.diff(graph.cause_start)
    waits[:homes] = 1
    chained = np.concatenate([combines, graph.causes])
    first = np.diff(graph.cause_start)
    causes = [graph.causes, *(chained + layer * size for layer in range(1, count))]
    apart = ("cause_start", "causes", "module_to_node")
    columns: dict[str, Any] = {f.name: getattr(graph, f.name) for f in fields(graph) if f.name not in apart}
    tiled: dict[str, Any] = {
        name: np.tile(c, count) for name, c in columns.items() if isinstance(c, np.ndarray)
    }
    start = np.concatenate([[0], np.cumsum(np.concatenate([first, np.tile(waits, count - 1)]))])
    return replace(graph, **tiled, cause_start=start, causes=np.concatenate(causes))


def main(options: Sequence[str] | None = None) -> int:
    """Schedule the graph once and tell how long it took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pricing", description=__doc__)
    parser.add_argument("--layers", type=int, default=58)
    parser.add_argument("--modules", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hardware", default="text-pim")
    given = parser.parse_args(options)
    graph = layers(given.layers, given.modules, given.tokens)
    hardware, model = load_hardware(given.hardware), PRESETS["deepseek-v3"]
    began = time.process_time()
    plan = schedule(graph, hardware, model)
    took = time.process_time() - began
    messages = int((graph.kind == MESSAGE).sum())
    print(
        f"{messages} messages, {len(graph)} events: {took:.2f} s of one core, {messages / took / 1e6:.2f} M "
        f"messages/s (goal {GOAL / 1e6:.0f}); {plan.span * 1e3:.1f} ms emulated on {hardware.name}"
    )
    return int(messages / took < GOAL)


if __name__ == "__main__":
    sys.exit(main())
