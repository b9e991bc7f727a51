"""What the texts' placements save: `python -m benchmarks.placements`.

Every strategy plans on the first half of a routing trace and is measured on the second, which it has not
seen: on tokens with planted communities of experts, whose gain is known beforehand, and on the choices of
real routers (with random gates) over the standard library's source. The texts claim that graph partitioning
saves "45-60 %" and "30-40 %" of the traffic between modules. With `--trace` it takes any routing trace, such
as that of a trained router (`python -m benchmarks.trained_router`).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rayemu.model import PRESETS
from rayemu.model.model import Model
from rayemu.model.reference import finish, moe_forward, prepare, route
from rayemu.placement import PLACEMENTS, Domains, problem_of
from rayemu.streams.text import Text
from rayemu.study.strategies import Line, compare, learned, table
from rayemu.traces import read_trace
from rayemu.traces.trace import Trace, from_choices

from .output import machine, results_file, write

WINDOWS = 16  # of each half, for how shares vary


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 always, since it has no goal but to know."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.placements", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--tokens", type=int, default=16384, help="of a trace; default: %(default)s")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--trace", type=Path, help="one with choices, instead of these cases; 8 modules")
    parser.add_argument("--out", type=Path, metavar="FILE.json", default=None)
    args = parser.parse_args(argv)
    console = Console(width=150)
    results = []
    cases = CASES if args.trace is None else [(args.trace.name, lambda n: _read(args.trace, n), MIDDLE)]
    for name, make, size in cases:
        if args.only not in name:
            continue
        trace = make(args.tokens)
        lines, linear = measure(trace, **size)
        console.print(table(lines, f"{name}: {linear}"))
        results.append({"case": name, "size": size, "lines": [dataclasses.asdict(line) for line in lines]})
    path = args.out or results_file("placements")
    write(path, {"machine": machine(), "tokens": args.tokens, "results": results})
    console.print(f"written to {path}")
    return 0


def measure(trace: Trace, modules: int, nodes: int, extra: int) -> tuple[list[Line], str]:
    """Plan on the first half of a trace and judge on the second, with `extra` slots a layer for replicas."""
    experts, layers = trace.experts, trace.loads.shape[1]
    assert trace.choices is not None
    half = len(trace.choices) // 2
    seen, unseen = (_trace(part, experts) for part in (trace.choices[:half], trace.choices[half:]))
    base = problem_of(np.ones((layers, experts), int), modules, nodes, slots=experts + extra)
    base = dataclasses.replace(base, expert_bytes=1 << 20)
    problem, judged = learned(base, seen), learned(base, unseen)
    strategies: dict[str, Any] = {kind: PLACEMENTS[kind]() for kind in PLACEMENTS if kind != "domains"}
    lines = list(compare(problem, strategies, judged, unseen.choices))
    spread = dataclasses.replace(problem, copies=2 * problem.copies, slots=2 * experts)
    lines += compare(spread, {"domains": Domains()}, judged, unseen.choices)
    return lines, f"{experts} experts, {modules} modules, {nodes} nodes, {experts + extra} slots"


def planted(tokens: int, inside: float, experts: int = 64, top_k: int = 8, layers: int = 4) -> Trace:
    """Choices of experts in communities of 8, shuffled in each layer.

    A token has a community in all layers; each of its choices is one of it with probability `inside`, else
    any. Popularity is level.
    """
    rng = np.random.default_rng(0)
    communities = experts // 8
    of_token = rng.integers(communities, size=tokens)
    choices = np.empty((tokens, layers, top_k), np.int64)
    for layer in range(layers):
        member = rng.permutation(experts).reshape(communities, 8)
        own = np.zeros((tokens, experts), bool)
        np.put_along_axis(own, member[of_token], True, axis=1)
        # The keys of a draw without replacement: those drawn from the community come first.
        first = rng.random((tokens, top_k)) < inside
        key = rng.random((tokens, experts)) + np.where(own, 0.0, 2.0)
        from_own = np.argsort(key, axis=1)[:, :top_k]
        taken = np.zeros((tokens, experts), bool)
        rows = np.arange(tokens)[:, None]
        count = first.sum(axis=1)
        kept = np.arange(top_k) < np.minimum(count, 8)[:, None]
        taken[np.broadcast_to(rows, kept.shape)[kept], from_own[kept]] = True
        rest = np.argsort(rng.random((tokens, experts)) + 2.0 * taken, axis=1)[:, :top_k]
        choices[:, layer] = np.where(kept, from_own, np.take_along_axis(rest, np.arange(top_k)[None], axis=1))
    return _trace(choices, experts)


def on_text(preset: str, tokens: int, scale: int, layers: int = 4, context: float = 0.5) -> Trace:
    """The choices of a preset's router, with random gates, over the standard library's source."""
    spec = PRESETS[preset]
    spec = dataclasses.replace(spec, layers=spec.dense_layers + layers).scaled(scale)
    model, batch = Model(spec), 1024
    batches = Text(context=context).batches(batch, spec.d_model, 0)
    found = []
    for _ in range(-(-tokens // batch)):
        x, chosen = next(batches), []
        for layer in model.layers:
            given = prepare(layer, x)
            if layer.has_experts:
                chosen.append(route(layer, given).experts)
            x = finish(layer, x, moe_forward(layer, given))
        found.append(np.stack(chosen, axis=1))
    return _trace(np.concatenate(found)[:tokens].astype(np.int64), spec.experts)


def _read(path: Path, tokens: int) -> Trace:
    trace = read_trace(path)
    if trace.choices is None:
        raise SystemExit(f"{path}: it has loads only; give a trace with the choices of each token")
    return _trace(trace.choices[:tokens].astype(np.int64), trace.experts)


def _trace(choices: np.ndarray, experts: int) -> Trace:
    borders = np.linspace(0, len(choices), WINDOWS + 1).astype(np.int64)
    return from_choices(choices, borders, experts)


SMALL = {"modules": 4, "nodes": 2, "extra": 4}
MIDDLE = {"modules": 8, "nodes": 2, "extra": 8}
LARGE = {"modules": 32, "nodes": 4, "extra": 32}
CASES: list[tuple[str, Any, dict[str, int]]] = [
    *(
        (
            f"planted {inside:.0%}",
            lambda tokens, inside=inside: planted(tokens, inside),
            MIDDLE,
        )
        for inside in (1.0, 0.75, 0.5, 0.0)
    ),
    ("mixtral-8x7b on text", lambda n: on_text("mixtral-8x7b", n, 32), SMALL),
    ("olmoe on text", lambda n: on_text("olmoe", n, 16), MIDDLE),
    ("deepseek-v3 on text", lambda n: on_text("deepseek-v3", n, 32), LARGE),
]


if __name__ == "__main__":
    from rayemu.cli_errors import until_unread

    until_unread(main)
