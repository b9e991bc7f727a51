"""The summary of a run as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rayemu.report.wording import count
from rayemu.units import format_bytes, format_joules, format_seconds

_FAILURES = {
    "exact": "not exact",
    "nothing_lost": "tokens lost",
    "nothing_duplicated": "tokens duplicated",
}
SHOWN_MOVES = 8


def verdict(summary: Mapping[str, Any]) -> str:
    """Whether the run held what it promised, in a few words."""
    failed = [_FAILURES[name] for name, held in summary["checks"].items() if held is False]
    if failed:
        return f"FAILED: {', '.join(failed)}"
    exact = "exact, " if summary["exact"] else "not compared with the reference, "
    return f"{exact}nothing lost, nothing duplicated"


def one_line(summary: Mapping[str, Any], folder: Path) -> str:
    """The shortest account of a run."""
    rate = f", {count(summary['tokens_per_wall_s'])} tokens/s" if summary["tokens_per_wall_s"] else ""
    cut = f"; {summary['record_cut']}" if summary["record_cut"] else ""
    priced = "".join(f"; {name}: {text}" for name, text, _ in _priced(summary))
    return (
        f"{summary['name']}: {verdict(summary)}; {summary['tokens_out']} tokens{rate}"
        f"{_left_out(summary.get('routing', {}))}{priced}; {folder}{cut}"
    )


def print_summary(summary: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Print a summary (see `run_scenario`) and where the run folder is."""
    style = "bold green" if summary["passed"] else "bold red"
    table = Table(title=Text(verdict(summary), style=style), show_header=False, title_justify="left")
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in _rows(summary):
        table.add_row(name, escape(value))
    table.add_row("run folder", escape(str(folder)))
    console.print(table)


def _rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    s = summary
    names = ("in", "out", "lost", "duplicated")
    yield "tokens", ", ".join(f"{s[f'tokens_{name}']} {name}" for name in names)
    if s["failed_batches"]:
        shown = [f"{f['batch']} (layer {f['layer']} expert {f['expert']})" for f in s["failed_batches"][:5]]
        more = f" and {len(s['failed_batches']) - 5} more" if len(s["failed_batches"]) > 5 else ""
        yield "failed batches", f"{', '.join(shown)}{more}: every copy of the expert was dead"
    if s["dropped_choices"]:
        yield "dropped choices", f"{s['dropped_choices']}: every copy of their expert was dead"
    if (routing := s.get("routing", {})) and (len(routing) > 1 or routing["choices_per_token"] % 1):
        yield "routing", _routing(routing)
    if s["wall_s"] and s["tokens_per_wall_s"]:
        yield "wall time", f"{format_seconds(s['wall_s'])}, {count(s['tokens_per_wall_s'])} tokens/s"
    yield "start and check", f"{format_seconds(s['start_wall_s'])}, {format_seconds(s['check_wall_s'])}"
    for what, words in (("batch", "time of a batch"), ("latency", "from its arrival")):
        for clock in ("wall", "virtual"):
            if f"{what}_p50_{clock}_s" in s:
                keys = {name: f"{what}_{name}_{clock}_s" for name in ("p50", "p90", "p99", "max")}
                took = [f"{name} {format_seconds(s[key])}" for name, key in keys.items() if key in s]
                yield words, ", ".join(took) + (" (virtual)" if clock == "virtual" else "")
    for name, text, parts in _priced(s):
        yield f"emulated on {name}", text
        if parts:
            yield "  critical path", parts
    if s["record_cut"]:
        yield "record", f"{s['record_cut']}; nor are the figures below complete"
    if copied := s.get("ingest_copied_bytes"):
        yield "batches copied", ", ".join(f"{format_bytes(n)} by the {who}" for who, n in copied.items())
    if s["bytes_sent"] is not None:
        yield (
            "module frames",
            f"{format_bytes(s['bytes_raw'])} raw, {format_bytes(s['bytes_sent'])} sent{_ratio(s)}",
        )
        yield "", "(frames of the client and the coordinator are not counted)"
        for level, of in s["bytes_by_level"].items():
            name = {"module": "  between modules", "node": "  between nodes"}[level]
            sizes = f"{format_bytes(of['raw'])} raw, {format_bytes(of['sent'])} sent"
            yield name, f"{sizes} in {of['frames']} frames{_ratio(of)}, {of['codec']}"
        if s.get("encode_wall_s") or s.get("decode_wall_s"):
            times = format_seconds(s["encode_wall_s"]), format_seconds(s["decode_wall_s"])
            yield "  coding", f"{times[0]} to encode, {times[1]} to decode, all modules together"
    if s["module_rows"] is not None:
        rows = " ".join(count(r) for r in s["module_rows"])
        balance = f", balance by batch and layer {s['balance']:.2f}" if s["balance"] is not None else ""
        yield "rows by module", f"{rows}{balance}"
    if "rebalance_decisions" in s:
        yield "rebalancing", _decisions(s["rebalance_decisions"])
        for entry in s["rebalances"][:SHOWN_MOVES]:
            yield f"  batch {entry['batch']}", _move(entry)
        if len(s["rebalances"]) > SHOWN_MOVES:
            yield "", f"and {len(s['rebalances']) - SHOWN_MOVES} more in summary.json"
    for fault in s["faults"]:
        yield f"fault: {fault['kind']}", _fault(fault)


def _priced(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What modelled hardware would have taken: its name, the figures, and the parts of a step."""
    priced = summary.get("priced", [])
    for of in priced if isinstance(priced, list) else [priced]:
        if "refused" in of:
            yield of["hardware"], f"not priced: {of['refused']}", ""
            continue
        rate, step = of["tokens_per_emu_s"], of["step_emu_s"]
        figures = [f"step {format_seconds(step)}", f"{format_joules(of['joules_per_token'])} per token"]
        if rate is not None:
            figures.insert(1, f"{count(rate)} tokens per emulated s")
        parts = [f"{part} {format_seconds(s)}" for part, s in of["critical_path"].items()]
        yield of["hardware"], ", ".join(figures), ", ".join(parts)


def _routing(of: Mapping[str, float]) -> str:
    """What the routers did: choices per token, and whatever they count."""
    others = {name: n for name, n in of.items() if name not in ("choices_per_token", "decisions")}
    counted = [f"{name.replace('_', ' ')} {count(n)}" for name, n in others.items()]
    return "; ".join([f"{of['choices_per_token']:.3g} choices per token", *counted])


def _left_out(of: Mapping[str, float]) -> str:
    """What routers gave to nobody; empty for nothing."""
    names = [name for name in ("dropped_choices", "tokens_without_expert") if of.get(name)]
    return "".join(f"; {name.replace('_', ' ')} {count(of[name])}" for name in names)


def _ratio(of: Mapping[str, Any]) -> str:
    raw, sent = of.get("raw", of.get("bytes_raw")), of.get("sent", of.get("bytes_sent"))
    return f" (raw/sent {raw / sent:.2f})" if raw and sent else ""


def _fault(fault: Mapping[str, Any]) -> str:
    where = "all modules" if fault["module"] is None else f"module {fault['module']}"
    clock = "virtual" if "began_virtual_s" in fault else "wall"
    began, detected = fault[f"began_{clock}_s"], fault[f"detected_{clock}_s"]
    if began is None:
        return f"{where}, never due: the run was over"
    text = f"{where} after {format_seconds(began)}"
    if detected is not None:
        text += f"; detected in {format_seconds(detected)} ({fault['signal']})"
        for key, words in (("recovered", "next batch finished in"), ("rejoined", "module back in")):
            if fault[f"{key}_{clock}_s"] is not None:
                text += f"; {words} {format_seconds(fault[f'{key}_{clock}_s'])}"
    return text + (" (virtual)" if clock == "virtual" else "")


def _decisions(of: Mapping[str, Any]) -> str:
    if not of["move"] + of["stay"] + of["failed"]:
        return "never due in this run, so nothing moved"
    times = [f"{of['move']} x experts moved", f"{of['stay']} x they stayed"]
    text = ", ".join(times)
    if of["failed"]:
        text += f"; {of['failed']} x PLANNING FAILED, so they stayed, last: {of['last_failed_why']}"
    return f"{text}; last stayed: {of['last_stay_why']}" if of["stay"] and not of["move"] else text


def _move(entry: Mapping[str, Any]) -> str:
    clock = "virtual" if "took_virtual_s" in entry else "wall"
    before, after = (
        "(no batch)" if value is None else f"{value:.2f}"
        for value in (entry["balance_before"], entry["balance_after"])
    )
    if entry["moves"] is None:
        text = f"{entry['planned_moves']} copies were still on their way when the run ended"
        return f"{text}; balance {before} before, {entry['promised']:.2f} promised"
    text = f"balance {before} -> {after} ({entry['promised']:.2f} promised)"
    took = format_seconds(entry[f"took_{clock}_s"]) + (" (virtual)" if clock == "virtual" else "")
    text += f"; {entry['moves']} copies, {format_bytes(entry['bytes'])}, in {took}"
    if entry["cancelled"]:
        text += f", {entry['cancelled']} given up"
    if entry["slowdown"] is not None:
        text += f"; p99 of batches meanwhile {entry['slowdown']:.2f} x the median of others"
    paid = entry["paid_after_batches"]
    if paid is None:
        return text if entry["balance_after"] is None else f"{text}; results came no quicker after it"
    return f"{text}; paid at once" if paid == 0 else f"{text}; paid after {paid} batch{'es' * (paid > 1)}"
