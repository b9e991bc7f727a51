"""What exactness costs: `python -m benchmarks.products`.

Expert FFNs, as modules compute them, against the same two products by plain np.matmul with the same
activation between them, by turns, with one BLAS thread. The environment can choose other kernels:

    OPENBLAS_CORETYPE=Haswell python -m benchmarks.products
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from rayemu.model.expert import Expert, activated, expert_forward
from rayemu.numerics import F32, kernels, way

from .output import machine, noise_warning, results_file, show_ratio, show_time, write

SHAPES = {"large": (1024, 3584), "small": (256, 512), "fine": (1024, 384)}  # D, F as in the other benchmarks
ROWS = (1, 8, 16, 64, 256, 1024)


def compare(d_model: int, d_ff: int, rows: int, rounds: int) -> dict[str, float]:
    """Best times of an exact and of a plain FFN of `rows` rows, in seconds."""
    rng = np.random.default_rng([d_model, d_ff])
    expert = Expert(
        rng.standard_normal((d_model, 2 * d_ff), dtype=np.float32) / np.float32(d_model**0.5),
        rng.standard_normal((d_ff, d_model), dtype=np.float32) / np.float32(d_ff**0.5),
    )
    x = rng.standard_normal((rows, d_model), dtype=np.float32)
    hidden, y = np.empty((rows, 2 * d_ff), np.float32), np.empty((rows, d_model), np.float32)

    def plain(given: F32) -> None:
        np.matmul(given, expert.up, out=hidden)
        np.matmul(activated(expert, hidden), expert.down, out=y)

    exact_s, plain_s = [], []
    for _ in range(rounds + 1):  # the first round touches the memory
        exact_s.append(_time(lambda: expert_forward(expert, x, y)))
        plain_s.append(_time(lambda: plain(x)))
    return {"exact_s": min(exact_s[1:]), "plain_s": min(plain_s[1:])}


def _time(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.products", description="Compares exact expert FFNs with plain products."
    )
    parser.add_argument("--rounds", type=int, default=15, help="of each shape; default: 15")
    parser.add_argument("--out", type=Path, help="JSON file; default: benchmarks/results/products-TIME.json")
    args = parser.parse_args(argv)
    console = Console()
    facts = machine()
    if warning := noise_warning(facts):
        console.print(warning)
    title = f"{kernels()}: {way().name}, one thread; speed relative to plain products"
    table = Table("rows", *(f"{name} (D={d}, F={f})" for name, (d, f) in SHAPES.items()), title=title)
    results: dict[str, dict[int, dict[str, float]]] = {name: {} for name in SHAPES}
    with threadpool_limits(1, user_api="blas"):
        for rows in ROWS:
            cells = []
            for name, (d_model, d_ff) in SHAPES.items():
                timed = results[name][rows] = compare(d_model, d_ff, rows, args.rounds)
                share = timed["plain_s"] / timed["exact_s"]
                cells.append(f"{show_ratio(share)} ({show_time(timed['plain_s'])})")
            table.add_row(str(rows), *cells)
    console.print(table)
    data: dict[str, Any] = {"benchmark": "products", "machine": facts, "way": way().name, "ffn": results}
    path = args.out or results_file("products")
    write(path, data)
    console.print(f"{path}")
    return 0


if __name__ == "__main__":
    from rayemu.cli_errors import until_unread

    until_unread(main)
