"""What each stream does to the load of the first layer's experts: `python -m benchmarks.streams`.

No cluster: the batches go through the model's own router. Columns: rows of the fullest expert over the mean,
and of the fullest module (for which a batch waits), averaged over the batches; of the modules' sums over all
batches; the share of rows that the next batch has at other experts, mean and most; the share of neighbouring
tokens that have an expert in common.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rayemu.model.model import Model
from rayemu.model.spec import ModelSpec
from rayemu.placement import Linear
from rayemu.placement.problem import problem_of
from rayemu.streams import STREAMS
from rayemu.streams.aim import aim, first_choices

from .output import results_file, write

MODELS = {"8 experts, 2 chosen": (8, 2), "64 experts, 6 chosen": (64, 6)}
WIDTH, MODULES, TOKENS, SEED = 128, 8, 512, 0
COLUMNS = {
    "expert": "expert,\nbatch",
    "module": "module,\nbatch",
    "all": "module,\nall",
    "step": "moves,\nmean",
    "largest": "moves,\nmost",
    "neighbours": "share an\nexpert",
}


def measure(stream: Any, spec: ModelSpec, batches: int) -> dict[str, float]:
    """What COLUMNS says of so many batches, with linear placement on MODULES modules."""
    placement = Linear().place(problem_of(np.ones(spec.experts), MODULES))
    model = Model(spec)
    aimed = aim(stream, spec, placement, SEED)
    x = np.concatenate(list(islice(aimed.batches(TOKENS, spec.d_model, SEED), batches)))
    chosen = first_choices(model, x)  # [batches * T, K]
    per_batch = chosen.reshape(batches, -1)
    experts = np.array([np.bincount(ids, minlength=spec.experts) for ids in per_batch])  # [batches, E]
    modules = np.array([placement.module_loads(load[None], MODULES)[0] for load in experts])  # [batches, M]
    share = experts / experts.sum(axis=1, keepdims=True)
    steps = np.abs(np.diff(share, axis=0)).sum(axis=1) / 2  # [batches - 1]
    alike = (chosen[1:, :, None] == chosen[:-1, None, :]).any(axis=(1, 2))
    return {
        "expert": float((experts.max(axis=1) / experts.mean(axis=1)).mean()),
        "module": float((modules.max(axis=1) / modules.mean(axis=1)).mean()),
        "all": float(modules.sum(axis=0).max() / modules.sum(axis=0).mean()),
        "step": float(steps.mean()),
        "largest": float(steps.max()),
        "neighbours": float(alike.mean()),
    }


def save_trace(path: Path, experts: int) -> str:
    """A trace of four windows, each with Zipf's law (exponent 0.8) over experts in another order."""
    rng = np.random.default_rng(SEED)
    law = np.arange(2, experts + 2) ** -0.8
    np.save(path, np.array([[rng.permutation(law)] for _ in range(4)]))
    return str(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streams", description="Measures the expert load that each stream makes."
    )
    parser.add_argument("--batches", type=int, default=100, help=f"of {TOKENS} tokens each; default: 100")
    parser.add_argument("--out", type=Path, help="JSON file; default: benchmarks/results/streams-TIME.json")
    args = parser.parse_args(argv)
    if args.batches < 2:
        parser.error(f"--batches {args.batches}: it takes 2 or more to compare")
    console = Console()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, (experts, top_k) in MODELS.items():
        spec = ModelSpec("router", WIDTH, 1, experts, top_k, seed=SEED)
        table = Table("stream", *COLUMNS.values(), title=f"{name}, {MODULES} modules")
        found[name] = {}
        with tempfile.TemporaryDirectory() as folder:
            for kind, strategy in STREAMS.items():
                given = {"every": 10, "path": save_trace(Path(folder) / "trace.npy", experts)}
                line = measure(strategy(**given) if kind == "trace" else strategy(), spec, args.batches)
                found[name][kind] = line
                ratios = ("expert", "module", "all")
                table.add_row(
                    kind, *(f"{line[key]:.2f}" if key in ratios else f"{line[key]:.1%}" for key in COLUMNS)
                )
        console.print(table)
    path = args.out or results_file("streams")
    write(path, {"benchmark": "streams", "batches": args.batches, "tokens": TOKENS, "streams": found})
    console.print(f"{path}")
    return 0


if __name__ == "__main__":
    from rayemu.cli_errors import until_unread

    until_unread(main)
