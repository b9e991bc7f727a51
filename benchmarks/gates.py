"""What a gate's choices lose by fewer bits: `python -m benchmarks.gates`.

Rows of the `text` stream through seeded gates; through those of a checkpoint with `--checkpoint DIR` (its
weights, but not its activations, for attention is not run); through trained ones, with what they were given
there, with `--gates GATES.npz`, which `python -m benchmarks.trained_router` writes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rayemu.model.checkpoint import load_checkpoint
from rayemu.model.model import Model
from rayemu.model.reference import prepare
from rayemu.model.spec import ModelSpec
from rayemu.routing import Gate, QuantisedTopK, agreement
from rayemu.routing.quantised_topk import Precision
from rayemu.streams import STREAMS

from .output import machine, results_file, write

# Of the project's texts, without a source: Top-1, Top-2 in %, KL divergence.
SAID = {"fp16": (99.8, 99.9, 0.002), "int8": (97.2, 98.5, 0.015), "int4": (91.3, 95.7, 0.042)}
GROUP = 64
THRESHOLDS = (0.01, 0.03, 0.1, 0.3)  # of the margin, in deviations of the logits
NOISE = {"none": 0.0, "0.5/127, as said": 0.5 / 127, "0.5/7": 0.5 / 7, "1": 1.0}
Source = tuple[str, Gate, np.ndarray]


def text(tokens: int, width: int) -> np.ndarray:
    """Rows [T, D] of the standard library's source, half of each from the words before."""
    rows: np.ndarray = next(STREAMS["text"](context=0.5).batches(tokens, width, 0))  # type: ignore[call-arg]
    return rows


def of_model(name: str, model: Model, tokens: int) -> Iterator[Source]:
    """Each layer's gate and the text's rows, normalised as the layer does it."""
    rows = text(tokens, model.spec.d_model)
    for layer in model.layers:
        if layer.gate is not None:
            yield f"{name}, layer {layer.index}", layer.gate, prepare(layer, rows)


def sources(args: argparse.Namespace) -> Iterator[Source]:
    """What is asked for."""
    if args.checkpoint:
        yield from of_model(args.checkpoint.name, load_checkpoint(args.checkpoint, False), args.tokens)
    if args.gates:
        with np.load(args.gates, allow_pickle=False) as kept:
            for layer in range(sum(name.startswith("weight_") for name in kept)):
                rows = kept[f"rows_{layer}"][: args.tokens]
                yield f"{args.gates.name}, layer {layer}", Gate(kept[f"weight_{layer}"]), rows
    if not args.checkpoint and not args.gates:
        for experts in (8, 64, 128):
            spec = ModelSpec("seeded", args.width, 1, experts, 2)
            yield from of_model(f"text, seeded gate of {experts} experts", Model(spec), args.tokens)


def by_precision(gate: Gate, rows: np.ndarray) -> list[dict[str, Any]]:
    """How far each precision agrees with float32, of the weights alone and of the rows too."""
    full, found = gate.logits(rows), []
    for precision in get_args(Precision):
        for group in (0, GROUP) if precision.startswith("int") else (0,):
            for both in (False, True):
                logits = QuantisedTopK(2, precision, group, both).scores(rows, gate)
                name = f"{precision}{f' by {group}' if group else ''}{', rows too' if both else ''}"
                said = SAID.get(precision) if not group and not both else None
                found.append({"way": name, "said": said, **agreement(full, logits, 2)._asdict()})
    return found


def by_importance(gate: Gate, rows: np.ndarray, precision: Precision = "int4") -> list[dict[str, Any]]:
    """The same of few bits, but with full precision for some rows: of a small margin, of a high norm.

    Norms are cut so that as many rows are precise as with the margin beside them.
    """
    full, found = gate.logits(rows), []
    norms = np.sqrt(np.square(rows, dtype=np.float64).mean(axis=1))
    for threshold in THRESHOLDS:
        margin = QuantisedTopK(2, precision, 0, False, "margin", float(threshold * full.std()))
        share = float(margin.important(rows, margin.coarse(gate).logits(rows)).mean())
        cut = QuantisedTopK(2, precision, 0, False, "norm", float(np.quantile(norms, 1 - share)))
        for name, router in (("margin", margin), ("norm", cut)):
            way = f"{precision}, {share:.0%} by {name}"
            found.append(
                {"way": way, "said": None, **agreement(full, router.scores(rows, gate), 2)._asdict()}
            )
    return found


def trained(rows: np.ndarray, classes: np.ndarray, experts: int, noise: float, steps: int) -> Gate:
    """A gate [D, E] that learns by gradient descent rows' classes, with noise on its logits."""
    rng = np.random.default_rng(0)
    weight = np.zeros((rows.shape[1], experts), np.float32)
    speed = np.zeros_like(weight)
    wanted = np.eye(experts, dtype=np.float32)[classes]
    for _ in range(steps):
        logits = rows @ weight + np.float32(noise) * rng.standard_normal(wanted.shape, np.float32)
        logits -= logits.max(axis=1, keepdims=True)
        likely = np.exp(logits)
        likely /= likely.sum(axis=1, keepdims=True)
        speed = np.float32(0.9) * speed - rows.T @ (likely - wanted) / np.float32(len(rows))
        weight += np.float32(0.5) * speed
    return Gate(weight)


def hardened(tokens: int, steps: int, width: int = 256, experts: int = 64) -> list[dict[str, Any]]:
    """Does noise in training, as the texts have it, help against rounding? Gates that foretell the next word.

    That is its class, the id modulo the number of experts. Each gate is compared with itself in float32.
    """
    rows = text(tokens, width)
    classes = next(STREAMS["text"]().tokens(tokens + 1))[1:] % experts  # type: ignore[attr-defined]
    found = []
    for name, noise in NOISE.items():
        gate = trained(rows, classes, experts, noise, steps)
        full = gate.logits(rows)
        for precision in ("int8", "int4"):
            logits = QuantisedTopK(2, precision).scores(rows, gate)  # type: ignore[arg-type]
            way = f"{precision}, noise {name}"
            found.append({"way": way, "said": None, **agreement(full, logits, 2)._asdict()})
    return found


def table(title: str, lines: Sequence[dict[str, Any]]) -> Table:
    """Ways as rows: same best, best among the other's two, same two; beside them what the texts say."""
    shown = Table(title=title, box=SIMPLE_HEAD, title_justify="left", caption_justify="left")
    said = any(line["said"] for line in lines)
    for heading in ("", "Top-1", "in 2", "same 2", "KL", *(("said",) if said else ())):
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for line in lines:
        shares = [f"{line[name]:.1%}" for name in ("top1", "within", "sets")]
        texts = [" ".join(map(str, line["said"] or ()))] if said else []
        shown.add_row(line["way"], *shares, f"{line['divergence']:.1e}", *texts)
    if said:
        shown.caption = "N% by margin, by norm: so many rows in float32. Said: Top-1 %, Top-2 %, KL."
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gates", description="Compares gates of few bits with float32."
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="with config.json and safetensors")
    parser.add_argument("--gates", type=Path, metavar="GATES.npz", help="of benchmarks.trained_router")
    parser.add_argument("--tokens", type=int, default=8192, help="default: %(default)s")
    parser.add_argument("--width", type=int, default=1024, help="of seeded gates; default: %(default)s")
    parser.add_argument("--steps", type=int, default=150, help="of training gates; default: %(default)s")
    parser.add_argument("--json", type=Path, default=None, help="default: benchmarks/results/gates-*.json")
    args = parser.parse_args(argv)
    console, results = Console(), {}
    for name, gate, rows in sources(args):
        results[name] = by_precision(gate, rows) + by_importance(gate, rows)
        console.print(table(name, results[name]))
    if not args.checkpoint and not args.gates:
        name = "gates that learned to foretell words, 64 experts, each against itself in float32"
        results[name] = hardened(args.tokens, args.steps)
        console.print(table(name, results[name]))
    path = args.json or results_file("gates")
    write(path, {"machine": machine(), "tokens": args.tokens, "sources": results})
    console.print(f"Results in {path}")
    return 0


if __name__ == "__main__":
    from rayemu.cli_errors import until_unread

    until_unread(main)
