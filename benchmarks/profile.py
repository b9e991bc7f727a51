"""Where the time of the benchmarks' batches goes: `python -m benchmarks.profile --size large,small`.

Profiles each size in a stream, as `rayemu profile` does with a scenario, and prints the sizes side by side as
the Markdown table of docs/profile.md, processor milliseconds a batch and layer.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rayemu.report.profiled import markdown, print_profile
from rayemu.running.profile import WARM_UP, profile_scenario

from .output import machine, results_file, write
from .workload import SIZES

BATCHES, ROWS = 20, 40960  # that are measured at least


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    p.add_argument("--size", metavar="NAMES", default=",".join(SIZES), help=f"by comma: {', '.join(SIZES)}")
    p.add_argument("--modules", metavar="NUMBERS", help="by comma, like 8,32; default: the size's own")
    p.add_argument("--batches", type=int, metavar="N", help="measured; default: some seconds' worth")
    p.add_argument("--place", metavar="PLACE", help="routing.place; default: the scenario's")
    p.add_argument("--verbose", action="store_true", help="also the tables of each size, on standard error")
    p.add_argument(
        "--out", type=Path, metavar="FILE.json", help="default: benchmarks/results/profile-TIME.json"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Profile the sizes and print the table."""
    p = parser()
    args = p.parse_args(argv)
    names = [name.strip() for name in args.size.split(",")]
    for name in names:
        if name not in SIZES:
            p.error(f"--size: {name!r} is not a size; known: {', '.join(SIZES)}")
    if args.batches is not None and args.batches < 1:
        p.error(f"--batches: {args.batches} is not allowed; at least 1")
    counts: list[int | None] = [None]
    if args.modules:
        try:
            counts = [int(number) for number in args.modules.split(",")]
        except ValueError:
            p.error(f"--modules: {args.modules!r} is not allowed; numbers by comma, like 8,32")
        if any(number < 2 or number % 2 for number in counts if number is not None):
            p.error(f"--modules: {args.modules} is not allowed; even numbers from 2, for two nodes")
    progress = Console(stderr=True)
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        for modules in counts:
            batches = args.batches or max(BATCHES, ROWS // SIZES[name].tokens)
            changes = [f"run.batches={batches + WARM_UP}"]
            if args.place:
                changes.append(f"routing.place={args.place}")
            scenario = SIZES[name].scenario(modules=modules).with_overrides(changes)
            title = f"{name}, {scenario.cluster.modules} modules"
            progress.print(f"[dim]{title}[/dim]", highlight=False)
            with tempfile.TemporaryDirectory() as folder:
                found[title] = profile_scenario(scenario, Path(folder) / "profile")
            if args.verbose:
                print_profile(found[title], progress)
    path = args.out or results_file("profile")
    write(path, {"benchmark": "profile", "machine": machine(), "sizes": found})
    print(markdown(found))
    progress.print(f"Written to {path}", highlight=False)
    return 0


if __name__ == "__main__":
    from rayemu.cli_errors import until_unread

    until_unread(main)
