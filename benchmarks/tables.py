"""Results as Rich tables."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from .compare import Result
from .measure import pooled, summary
from .output import pair, show_ratio, show_time
from .workload import Size

OURS = ("hierarchical", "flat")
Ratios = dict[str, dict[str, dict[str, float | None]]]
ProcessorRatios = dict[str, dict[str, float | None]]


def times_table(size: Size, results: dict[str, Result]) -> Table:
    """All contenders of a size: wall times and what came out."""
    table = Table(title=f"Wall time of a step. {size.title}", title_justify="left")
    table.add_column("contender", no_wrap=True)
    for heading in ("alone:\nmedian", "\nbest", "stream:\nper batch", "\ntokens/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("output")
    for result in results.values():
        if result.unavailable:
            table.add_row(result.contender.title, "-", "-", "-", "-", result.unavailable)
            continue
        latency, stream = summary(pooled(result.latency)), summary(pooled(result.stream))
        seconds = stream.get("median_s") or latency.get("median_s")
        table.add_row(
            result.contender.title,
            show_time(latency.get("median_s")),
            show_time(latency.get("best_s")),
            show_time(stream.get("median_s")),
            f"{size.tokens / seconds:,.0f}" if seconds and result.exact is not None else "-",
            show_output(result),
        )
    return table


def speeds_table(results: dict[str, Result], ratios: Ratios) -> Table:
    """How many times as fast contenders are as the bound and the baselines: alone / in a stream."""
    table = Table(title="Relative speed: a step alone/in a stream", title_justify="left")
    table.add_column("contender", no_wrap=True)
    headings = {
        "gemms": "bare GEMMs",
        "processes": "processes",
        "ray": "plain Ray",
        "torch": "torch",
    }
    columns = [name for name in headings if name in results and not results[name].unavailable]
    for name in columns:
        table.add_column(headings[name], justify="right", no_wrap=True)
    for name, result in results.items():
        if result.unavailable or result.exact is None:
            continue
        cells = []
        for other in columns:
            both = ratios.get(name, {}).get(other, {})
            cells.append(pair(show_ratio(both.get("latency")), show_ratio(both.get("stream"))))
        table.add_row(result.contender.title, *cells)
    return table


def show_output(result: Result) -> str:
    """How the outputs compare with the reference's."""
    if result.exact is None:
        return "none"
    return "exact" if result.exact else f"off {result.difference:.0e}"


def modules_table(size: Size, results: dict[str, Result], ratios: Ratios) -> Table | None:
    """Throughput on more modules relative to that on the fewest; None where there is one number."""
    title = f"Throughput relative to that on the fewest modules. {size.title.rsplit(', ', 1)[0]}"
    table = Table(title=title, title_justify="left")
    table.add_column("contender", no_wrap=True)
    for heading in ("alone", "stream"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, result in results.items():
        if both := ratios.get(name, {}).get("fewest"):
            cells = [show_ratio(both[what]) for what in ("latency", "stream")]
            table.add_row(result.contender.title, *cells)
    return table if table.row_count else None


def processor_table(size: Size, results: dict[str, Result], ratios: ProcessorRatios) -> Table:
    """Processor time of a batch, of all processes and of the serial part: alone/in a stream."""
    title = f"Processor time of a batch, alone/in a stream. {size.title}"
    caption = "cpu ratio: to the GEMMs by processes"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("contender", no_wrap=True)
    for heading in ("all processes", "cpu ratio", "coordinator + driver"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, result in results.items():
        if result.unavailable or not result.processor:
            continue
        used = [result.processor.get(what, {}) for what in ("latency", "stream")]
        every, serial = (
            pair(*(show_time(summary(pooled(roles.get(what, []))).get("median_s")) for roles in used))
            for what in ("all", "serial")
        )
        relative = pair(*(show_ratio(ratios[name][what]) for what in ("latency", "stream")))
        table.add_row(result.contender.title, every, relative, serial)
    return table


def scaling_table(
    size: Size, results: dict[str, dict[int, Result]], growths: dict[str, dict[int, dict[str, float | None]]]
) -> Table:
    """Step time by number of modules; medians; growth is relative to the fewest, alone/in a stream."""
    title = f"Wall time of a step by number of modules. {size.title.rsplit(', ', 1)[0]}"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("modules", "alone", "stream", "growth"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("output")
    for kind, by_modules in results.items():
        for modules, result in by_modules.items():
            grown = growths[kind][modules]
            table.add_row(
                "plain Ray" if kind == "ray" else f"rayemu {kind}",
                str(modules),
                show_time(summary(pooled(result.latency)).get("median_s")),
                show_time(summary(pooled(result.stream)).get("median_s")),
                pair(show_ratio(grown["latency"]), show_ratio(grown["stream"])),
                show_output(result),
            )
        table.add_section()
    return table


OVERHEADS = {
    "overhead": "the fault machinery without faults (must 5 %, aim 2 %)",
    "recording": "the record (must 2 % of a stream)",
}


def overhead_table(
    size: Size, results: dict[str, Result], relative: dict[str, dict[str, Any]], what: str = "overhead"
) -> Table:
    """The two variants, and the overhead in percent; `what` is a key of OVERHEADS."""
    title = f"Cost of {OVERHEADS[what]}. {size.title}"
    table = Table(title=title, title_justify="left")
    for heading in ("", "alone: median (best)", "stream: per batch", "output"):
        table.add_column(heading, no_wrap=True)
    for result in results.values():
        latency, stream = summary(pooled(result.latency)), summary(pooled(result.stream))
        table.add_row(
            result.contender.title,
            f"{show_time(latency.get('median_s'))} ({show_time(latency.get('best_s'))})",
            show_time(stream.get("median_s")),
            show_output(result),
        )
    table.add_section()
    for what in ("median", "least", "most"):
        cells = [f"{100 * relative[kind][what]:+.1f} %" for kind in ("latency", "stream")]
        table.add_row(f"overhead, {what}", *cells, "")
    return table
