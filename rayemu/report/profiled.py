"""The figures of `rayemu profile` as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rayemu.units import format_seconds

ROLES = ("modules", "coordinator", "driver", "Ray")
SHOWN_FUNCTIONS = 12
SHORT_S = 10.0  # a measured part in which the second that meters run on for would show
LEAST_SHARE = 0.005  # of what gets a row


def print_profile(figures: Mapping[str, Any], console: Console) -> None:
    """Print what a batch cost, and what it waited for."""
    batches, layers = figures["batches"], figures["layers"]
    plural = "" if batches == 1 else "es", "" if layers == 1 else "s"
    console.print(
        f"[bold]{escape(figures['name'])}[/bold]: {batches} batch{plural[0]} of {layers} layer{plural[1]} in "
        f"{format_seconds(figures['window_wall_s'])} on {figures['cores']} cores, after "
        f"{figures['warm_up']} to warm up",
        highlight=False,
    )
    for line in figures["left_out"]:
        console.print(f"[yellow]left out: {escape(line)}[/yellow]", highlight=False)
    for table in (_processes(figures), _phases(figures), _functions(figures), _queues(figures)):
        if table is not None:
            console.print(table)
    for line in _remarks(figures):
        console.print(escape(line), highlight=False)


def overhead(figures: Mapping[str, Any]) -> str:
    """How many times the products' processor time all processes took."""
    factor = figures["processor_to_products"]
    return "not known" if factor is None else f"{factor:.2f}"


def _table(title: str, first: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")  # a narrow terminal gets more lines; nothing is cut off
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _processes(figures: Mapping[str, Any]) -> Table | None:
    """Processor time by kind of process and by thread."""
    total, batches, layers = figures["processor_s"], figures["batches"], figures["layers"]
    if not total:
        return None
    table = _table("Processor time by process and thread", "", ("a batch", "and layer", "share", "no core"))
    sums: dict[str, list[float]] = {}
    for process, of in figures["processes"].items():
        role = process if process in ROLES else "modules"
        entry = sums.setdefault(role, [0.0, 0])
        entry[0] += of["processor_s"]
        entry[1] += 1
    for role in (role for role in ROLES if role in sums):
        seconds, count = sums[role]
        name = f"{role} ({int(count)})" if role == "modules" else role
        table.add_row(name, *_times(seconds, batches, layers), f"{seconds / total:.1%}", "", style="bold")
        for thread, of in figures["threads"].get(role, {}).items():
            used = of["processor_s"]
            if role != "Ray" and used >= LEAST_SHARE * total / 5 and thread != "profiler":
                ready = format_seconds(of["ready_wall_s"] / batches)
                table.add_row(f"  {thread}", *_times(used, batches, layers), f"{used / total:.1%}", ready)
    table.add_row("all", *_times(total, batches, layers), "100.0%", "", style="bold")
    return table


def _phases(figures: Mapping[str, Any]) -> Table | None:
    """Processor time by phase, and in which processes."""
    whole = sum(figures["phases"]["all"].values())
    batches, layers = figures["batches"], figures["layers"]
    if not whole:
        return None
    table = _table(
        "Processor time by phase", "", ("a batch", "and layer", "share", "modules", "coord.", "driver")
    )
    for phase, seconds in figures["phases"]["all"].items():
        of = [figures["phases"].get(role, {}).get(phase, 0.0) / batches for role in ROLES[:3]]
        where = [format_seconds(s) if s > 1e-6 else "-" for s in of]
        table.add_row(phase, *_times(seconds, batches, layers), f"{seconds / whole:.1%}", *where)
    return table


def _functions(figures: Mapping[str, Any]) -> Table:
    """The functions that take most, without what they call."""
    batches, layers = figures["batches"], figures["layers"]
    table = _table("Functions, without what they call", "", ("phase", "calls", "each", "and layer"))
    for of in figures["functions"][:SHOWN_FUNCTIONS]:
        calls, seconds = of["calls"], of["own_processor_s"]
        name = of["function"].rpartition(":")[2]
        each = format_seconds(seconds / calls) if calls else "-"
        per = calls / batches / layers
        table.add_row(name, of["phase"], f"{per:.1f}", each, format_seconds(seconds / batches / layers))
    return table


def _queues(figures: Mapping[str, Any]) -> Table | None:
    """What a batch's last result waited for."""
    queues = figures["queues"]
    if not queues["batches"]:
        return None
    title = (
        f"Wall time of a batch: median {format_seconds(queues['batch_p50_s'])}, "
        f"p95 {format_seconds(queues['batch_p95_s'])}; what its last result waited for"
    )
    table = _table(title, "", ("share", "times", "median", "p95", "each"))
    for name, of in queues["spans"].items():
        if of["share"] >= LEAST_SHARE:
            figures_of = (of[key] for key in ("batch_p50_s", "batch_p95_s", "each_p50_s"))
            shown = ["-" if s is None else format_seconds(s) for s in figures_of]
            table.add_row(name, f"{of['share']:.1%}", f"{of['per_batch']:.1f}", *shown)
    return table


def _times(seconds: float, batches: int, layers: int) -> tuple[str, str]:
    return format_seconds(seconds / batches), format_seconds(seconds / batches / layers)


def _remarks(figures: Mapping[str, Any]) -> list[str]:
    total, batches = figures["processor_s"], figures["batches"]
    if not total:
        return ["Processor time of processes and threads is not known on this system (it needs Linux)."]
    others = ", ".join(f"{name} {format_seconds(s / batches)}" for name, s in figures["other"].items())
    off = list(figures["off_processor_wall_s"].items())[:5]
    waits = ", ".join(f"{name.replace('rayemu.', '')} {format_seconds(s / batches)}" for name, s in off)
    short = (
        "The measured part is short: phases, and waits off the processor, hold up to 1.5 s of idling; "
        "raise run.batches."
    )
    return [
        *([short] if figures["window_wall_s"] < SHORT_S else []),
        f"All processor time is {overhead(figures)} times that of the products.",
        f"Phases are {figures['phases_to_processes']:.1%} of what the kernel counted; meters took "
        f"{figures['meters_s'] / total:.1%} of it, and their writers besides "
        f"{figures['profiler_thread_s'] / total:.1%}.",
        f"Other, a batch: {others or 'nothing'}.",
        f"Off the processor, a batch: {waits}.",
        f"Figures: {figures['files']['figures']}. Flame graph, for speedscope.app: "
        f"{figures['files']['flames']}",
    ]


def markdown(all_figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Sizes side by side, as a Markdown table: milliseconds of processor time a batch and layer."""
    names = list(all_figures)
    lines = [f"| ms a batch and layer | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]

    def row(title: str, values: Sequence[float | None], digits: int = 2) -> None:
        cells = ["-" if value is None else f"{value:.{digits}f}" for value in values]
        lines.append(f"| {title} | {' | '.join(cells)} |")

    def scale(of: Mapping[str, Any]) -> float:
        return 1e3 / (of["batches"] * of["layers"])

    figures = list(all_figures.values())
    row("wall time of a batch (median)", [_ms(f["queues"].get("batch_p50_s"), f["layers"]) for f in figures])
    row("wall time between batches", [f["window_wall_s"] * scale(f) for f in figures])
    row("all processor time", [f["processor_s"] * scale(f) for f in figures])
    row("of that of the products (times)", [f["processor_to_products"] for f in figures])
    for role in ROLES:
        used = [_role_s(f, role) * scale(f) for f in figures]
        row(f"{role}", used)
    phases: dict[str, float] = {}
    for f in figures:
        for phase, seconds in f["phases"]["all"].items():
            phases[phase] = phases.get(phase, 0.0) + seconds * scale(f)
    for phase in sorted(phases, key=lambda p: -phases[p]):
        row(f"phase {phase}", [f["phases"]["all"].get(phase, 0.0) * scale(f) for f in figures])
    spans: dict[str, float] = {}
    for f in figures:
        for span, of in f["queues"]["spans"].items():
            spans[span] = max(spans.get(span, 0.0), of["share"])
    for span in [s for s in sorted(spans, key=lambda s: -spans[s]) if spans[s] >= 0.03]:
        shares = [f["queues"]["spans"].get(span, {}).get("share", 0.0) * 100 for f in figures]
        row(f"% of wall time: {span}", shares, 1)
    return "\n".join(lines)


def _ms(seconds: float | None, layers: int) -> float | None:
    return None if seconds is None else 1e3 * seconds / layers


def _role_s(figures: Mapping[str, Any], role: str) -> float:
    named = (name if name in ROLES else "modules" for name in figures["processes"])
    used = (of["processor_s"] for of in figures["processes"].values())
    return sum(s for name, s in zip(named, used, strict=True) if name == role)
