"""Speed of a step: `python -m benchmarks.step`.

Compares the emulator, flat and hierarchical, with its bound (the bare GEMMs) and with what else one could run
(the single-process reference, plain Ray, the transformers block), in one run; shows how a step grows with the
number of modules, and what the fault machinery costs; with --recording, what the record costs. Prints tables
and writes JSON.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from .compare import EFFORT, Effort, Result, compare, processor_ratios, ratios
from .contenders import CONTENDERS, entrants
from .goals import goal_lines
from .output import busy_share, machine, noise_warning, results_file, write
from .overhead import overhead, overhead_ratios
from .processor import AVAILABLE, UNAVAILABLE
from .scaling import growth, scaling
from .tables import (
    modules_table,
    overhead_table,
    processor_table,
    scaling_table,
    speeds_table,
    times_table,
)
from .workload import SIZES, Workload

DESCRIPTION = (
    "Wall time of a step: the emulator against the bare GEMMs, the single-process reference, plain Ray and "
    "the transformers block; its growth with the number of modules; the cost of its fault machinery."
)
OVERHEAD_PAIRS = {"large": 3, "small": 6, "fine": 3, "deepseek": 2}
BATCHES = {"large": 2, "deepseek": 2}  # different inputs; 4 of other sizes


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.step", description=DESCRIPTION)
    p.add_argument(
        "--size",
        default="both",
        metavar="NAMES",
        help=f"by comma: {', '.join(SIZES)}; or all, or both, which is large and small; default: both",
    )
    p.add_argument(
        "--modules",
        default="8",
        metavar="NUMBERS",
        help="by comma, even: on how many modules the clusters are compared, in one run; default: 8",
    )
    p.add_argument(
        "--place",
        choices=["coordinator", "modules"],
        help="where the emulator routes; default: the scenario's, coordinator",
    )
    p.add_argument("--quick", action="store_true", help="a few samples, to see that it works, no more")
    parts = p.add_argument_group("parts", "with none of these all but --recording are run")
    parts.add_argument("--compare", action="store_true", help="against the bound and the baselines")
    parts.add_argument(
        "--scaling", action="store_true", help="growth over 2, 4, 8, 16 modules (default: small)"
    )
    parts.add_argument("--overhead", action="store_true", help="cost of the fault machinery without faults")
    parts.add_argument("--recording", action="store_true", help="cost of the record")
    p.add_argument(
        "--only",
        metavar="NAMES",
        help=f"contenders, by comma: {', '.join(CONTENDERS)}; default: all, ray-one-home for large and small",
    )
    p.add_argument("--rounds", type=int, metavar="N", help="rounds of every part")
    p.add_argument("--seed", type=int, default=0, help="of weights and inputs; default: 0")
    p.add_argument("--transport", choices=["zmq", "ray", "memory"], default="zmq", help="of the emulator")
    p.add_argument("--out", type=Path, metavar="FILE.json", help="default: benchmarks/results/step-TIME.json")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when every output of the emulator and the baseline was right."""
    p = parser()
    args = p.parse_args(argv)
    only = [n.strip() for n in args.only.split(",")] if args.only else []
    for name in only:
        if name not in CONTENDERS:
            p.error(f"--only: {name!r} is not a contender; known: {', '.join(CONTENDERS)}")
    words = {"all": list(SIZES), "both": ["large", "small"]}
    sizes = words.get(args.size) or [n.strip() for n in args.size.split(",")]
    for name in sizes:
        if name not in SIZES:
            p.error(f"--size: {name!r} is not a size; known: {', '.join([*SIZES, *words])}")
    modules = []
    for text in args.modules.split(","):
        if not text.strip().isdecimal() or not (count := int(text)) or count % 2:
            p.error(f"--modules: {text.strip()!r} is not allowed; give even numbers from 2, as in 8,32")
        modules.append(count)
    if len(set(modules)) < len(modules):
        p.error(f"--modules: {args.modules!r} names a number twice; leave one out")
    if args.rounds is not None and args.rounds < 1:
        p.error(f"--rounds: {args.rounds} is not allowed; at least 1")
    everything = not (args.compare or args.scaling or args.overhead or args.recording)
    console = Console()
    progress = Console(stderr=True)
    began = time.time()

    def say(text: str) -> None:
        progress.print(f"[dim]{time.time() - began:5.0f} s  {text}[/dim]", highlight=False)

    path = args.out or results_file("step")
    data: dict[str, Any] = {
        "benchmark": "step",
        "quick": args.quick,
        "started_unix_s": began,
        "machine": machine(),
        "sizes": {},
    }
    if warning := noise_warning(data["machine"]):
        progress.print(warning)
    made = data["machine"]["products"]
    progress.print(
        f"Exact products by {made['way']}: {made['time_against_plain']:.2f} times as long as plain ones here."
    )
    if not AVAILABLE:
        progress.print(f"[yellow]{UNAVAILABLE}: of clusters there is none[/yellow]", highlight=False)
    data["processor_time"] = "measured" if AVAILABLE else UNAVAILABLE
    right = True
    for name in sizes:
        workload = Workload(SIZES[name], args.seed, BATCHES.get(name, 4), args.transport, args.place)
        effort = _effort(EFFORT[name], args.quick, args.rounds)
        names = only or [n for n in CONTENDERS if n != "ray-one-home" or name in ("large", "small")]
        part: dict[str, Any] = {"size": workload.size.title, "routed_at": workload.place}
        data["sizes"][name] = part
        if args.compare or everything:
            results = compare(workload, entrants(names, workload, modules), effort, say)
            part["contenders"] = {n: r.as_dict() for n, r in results.items()}
            part["speed_relative_to"] = ratios(results)
            part["processor_relative_to_processes"] = processor_ratios(results)
            console.print(times_table(workload.size, results))
            console.print(speeds_table(results, part["speed_relative_to"]))
            if by_modules := modules_table(workload.size, results, part["speed_relative_to"]):
                console.print(by_modules)
            console.print(processor_table(workload.size, results, part["processor_relative_to_processes"]))
            part["goals"] = goal_lines(name, results, workload.place)
            for line in part["goals"]:
                console.print(line, highlight=False)
            right = right and _right(results)
        if args.scaling or (everything and name == "small"):
            right = _scaling(workload, names, effort, part, say, console) and right
        for key, without, asked in (
            ("overhead", "never", args.overhead or everything),
            ("recording", "unrecorded", args.recording),
        ):
            if not asked:
                continue
            rounds = args.rounds or (1 if args.quick else OVERHEAD_PAIRS[name])
            measured = overhead(workload, replace(effort, rounds=rounds), say, without)
            relative = overhead_ratios(measured, without)
            part[key] = {**{n: r.as_dict() for n, r in measured.items()}, "relative": relative}
            console.print(overhead_table(workload.size, measured, relative, key))
            right = right and _right(measured)
        write(path, data)  # after each size, so that an interrupted run leaves what it measured
    data["machine"]["busy_share_at_end"] = busy_share()
    data["wall_s"] = time.time() - began
    write(path, data)
    console.print(f"Written to {path}", highlight=False)
    return 0 if right else 1


def _scaling(
    workload: Workload, names: list[str], effort: Effort, part: dict[str, Any], say: Any, console: Console
) -> bool:
    kinds: list[str] = [kind for kind in ("hierarchical", "flat", "ray") if kind in names]
    if workload.transport == "memory":
        kinds = [kind for kind in kinds if kind != "ray"]
    if not kinds:
        return True
    measured = scaling(workload, kinds, replace(effort, rounds=min(effort.rounds, 2)), say)
    growths = {kind: growth(results) for kind, results in measured.items()}
    part["scaling"] = {
        kind: {
            str(m): {**result.as_dict(), "time_relative_to_fewest": growths[kind][m]}
            for m, result in results.items()
        }
        for kind, results in measured.items()
    }
    console.print(scaling_table(workload.size, measured, growths))
    return all(_right({str(m): r for m, r in results.items()}) for results in measured.values())


def _effort(effort: Effort, quick: bool, rounds: int | None) -> Effort:
    effort = effort.quick() if quick else effort
    return replace(effort, rounds=rounds) if rounds else effort


def _right(results: dict[str, Result]) -> bool:
    """Whether all that must equal the reference does; torch rounds in its own way."""
    return all(r.exact is not False for r in results.values() if r.contender.name != "torch")


if __name__ == "__main__":
    from rayemu.cli_errors import until_unread

    until_unread(main)
