"""Whether `auto` pays: `python -m benchmarks.links`.

Two emulators of the same scenario, one with `raw` and one with `auto` on every link, take streams in turn,
so that noise hits both alike. First with links as fast as the machine, where auto must not cost more than
2 %, then with slow links between the nodes, where it must find the gain. Outputs are checked: what lossy
codecs did is replayed by the reference.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rayemu.cluster import local_ray
from rayemu.emulator import Emulator

from .output import machine, results_file, show_ratio, show_time, write
from .workload import SIZES, Size

SIZE = Size("links", tokens=512, d_model=512, d_ff=512)
SETTLE = 4  # streams before the timing: policies have to see the link first
CODECS = ("raw", "auto")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when every checked output was exact."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.links", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--rates", default="none,50 MB/s,3 MB/s", help="of the node links; default: %(default)s"
    )
    parser.add_argument("--streams", type=int, default=10, help="timed streams of each; default: 10")
    parser.add_argument("--batches", type=int, default=64, help="batches of a stream; default: 64")
    parser.add_argument(
        "--size", choices=["links", *SIZES], default="links", help="of the block; default: links"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", default=None)
    args = parser.parse_args(argv)
    size = SIZES.get(args.size, SIZE)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((size.tokens, size.d_model), dtype=np.float32) for _ in range(args.batches)]
    facts, results = machine(), []
    for text in args.rates.split(","):
        rate = None if text.strip() == "none" else text.strip()
        print(f"node links: {rate or 'as fast as the machine'}", file=sys.stderr, flush=True)
        results.append(compare(size, rate, inputs, args.streams))
    Console().print(table(size, results))
    path = args.out or results_file("links")
    write(path, {"machine": facts, "size": size.title, "results": results})
    print(f"Written to {path}")
    return 0 if all(r["exact"] for r in results) else 1


@contextlib.contextmanager
def _room(cpus: int) -> Iterator[None]:
    """A local Ray for several emulators at once."""
    directory = Path(tempfile.mkdtemp(prefix="rayemu-bench-"))
    connection = local_ray.Connection(directory)
    try:
        connection.open(None, cpus)
        yield
    finally:
        connection.close()
        shutil.rmtree(directory, ignore_errors=True)


def compare(size: Size, rate: str | None, inputs: list[np.ndarray], streams: int) -> dict[str, Any]:
    """Time streams of both emulators in turn at one rate of the node links."""
    taken: dict[str, list[float]] = {codec: [] for codec in CODECS}
    sent: dict[str, float] = {}
    exact = True
    cluster = {"links": {"node": rate}} if rate else {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(_room(2 * size.modules + 2))
        emulators = {
            codec: stack.enter_context(
                Emulator(size.scenario(cluster=cluster, codec={"module": codec, "node": codec}))
            )
            for codec in CODECS
        }
        for number in range(SETTLE + streams):
            for codec in CODECS if number % 2 else reversed(CODECS):
                began = time.perf_counter()
                results = list(emulators[codec].stream(inputs))
                seconds = time.perf_counter() - began
                if number >= SETTLE:
                    taken[codec].append(seconds / len(inputs))
                exact &= np.array_equal(emulators[codec].reference(inputs[0], results[0]), results[0].y)
        for codec, emulator in emulators.items():
            record = emulator.record()
            late = record[record["batch"] >= SETTLE * len(inputs)]
            sent[codec] = float(late["sent_bytes"][late["level"] == 2].sum()) / (streams * len(inputs))
    speedups = [raw / auto for raw, auto in zip(taken["raw"], taken["auto"], strict=True)]
    return {
        "node_link": rate,
        "seconds_per_batch": taken,
        "speedup_median": statistics.median(speedups),
        "speedups": speedups,
        "node_bytes_per_batch": sent,
        "exact": bool(exact),
    }


def table(size: Size, results: list[dict[str, Any]]) -> Table:
    """The results as a table."""
    caption = "sent: bytes between nodes, of raw's"
    view = Table(title=f"auto against raw, in streams. {size.title}", caption=caption)
    for column in (
        "node links",
        "raw",
        "auto",
        "speedup",
        "quartiles",
        "sent",
        "output",
    ):
        view.add_column(column, justify="left" if column in ("node links", "output") else "right")
    for r in results:
        raw, auto = (statistics.median(r["seconds_per_batch"][codec]) for codec in CODECS)
        low, _, high = statistics.quantiles(r["speedups"], n=4)
        raw_bytes, auto_bytes = (r["node_bytes_per_batch"][codec] for codec in CODECS)
        view.add_row(
            r["node_link"] or "unpaced",
            show_time(raw),
            show_time(auto),
            show_ratio(r["speedup_median"]) + "x",
            f"{show_ratio(low)}-{show_ratio(high)}",
            f"{auto_bytes / raw_bytes:.0%}" if raw_bytes else "-",
            "exact" if r["exact"] else "WRONG",
        )
    return view


if __name__ == "__main__":
    from rayemu.cli_errors import until_unread

    until_unread(main)
