"""Events and figures as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayemu.faults import FAULTS
from rayemu.units import format_bytes, format_rate, format_seconds

_PARAMETERS = {"factor": "by {:g}", "rate": "of {:.0%}", "delay_s": "by {:g} s", "for_s": "for {:g} s"}


def describe(event: Mapping[str, Any]) -> str:
    """One line for an event of the journal, without its time; empty for what need not be shown."""
    kind = event["kind"]
    where = "all modules" if event.get("module") is None else f"module {event['module']}"
    if kind == "fault":
        names = [*FAULTS[event["fault"]].parameters().values(), "for_s"]
        told = [_PARAMETERS.get(key, f"{key} {{:g}}").format(event[key]) for key in names if key in event]
        return " ".join([f"{where}: fault injected:", event["fault"], *told])
    if kind in ("suspected", "dead", "recovered", "joined"):
        reason = f": {event['reason']}" if event.get("reason") else ""
        return f"{where} {kind} (signal: {event['signal']}), epoch {event['epoch']}{reason}"
    if kind == "replace":
        return f"{where}: a replacement is being started"
    if kind == "replacement_failed":
        reason = event.get("reason") or f"signal: {event['signal']}"
        return f"{where}: its replacement died before it joined, and is tried again: {reason}"
    if kind == "failed":
        expert = f"expert {event['expert']} (layer {event['layer']})"
        return f"batch {event['batch']} failed: every copy of {expert} is dead"
    if kind == "mismatch":
        where = f", layer {event['layer']}" if "layer" in event else ""
        return f"batch {event['batch']}{where}: {event['why']}"
    if kind == "choices_checked":
        left = f", {event['unchecked']} could not be" if event["unchecked"] else ""
        return f"{event['checked']} choices for whole batches were made once more{left}"
    if kind == "slow_batch":
        took, median = format_seconds(event["took_s"]), format_seconds(event["median_s"])
        return f"batch {event['batch']} was slow: {took}, the median is {median}"
    if kind == "fault_never_due":
        return f"the fault {event['fault']} at {_at(event['due'])} was never due: the run was over"
    if kind == "codec":
        link = f"{event['level']} link, {event['direction']}"
        times = ", ".join(f"{codec} {format_seconds(s)}" for codec, s in event["seconds"].items())
        why = f"link {format_rate(event['link_bytes_per_s'])}; {format_bytes(event['nbytes'])} take: {times}"
        why += "; hidden behind work" if event["hidden"] else ""
        return f"{where}: {link}: {event['before']} -> {event['after']} ({why})"
    if kind == "fallback":
        return f"fallback: {event['what']}"
    if kind in ("record_cut", "slow_routers"):
        return str(event["what"])
    if kind == "rebalance":
        return _decision(event)
    if kind == "moving":
        return f"experts begin to move (move {event['move']}), epoch {event['epoch']}"
    if kind == "moved":
        return f"experts moved (move {event['number']}): {_moved(event)}"
    return ""


def _decision(event: Mapping[str, Any]) -> str:
    """What a rebalancer decided; what it planned if experts move."""
    after = f"rebalance after batch {event['batch']}"
    if event["decision"] == "failed":
        return f"{after} failed, experts stay: {event['why']}"
    if event["decision"] == "stay":
        return f"{after} ({event['reason']}): experts stay: {event['why']}"
    moves = f"{event['planned_moves']} copies of experts move, {format_bytes(event['planned_bytes'])}"
    balance = f"balance {event['balance_before']:.2f}, {event['promised']:.2f} promised"
    return f"{after} ({event['reason']}): {moves}, {balance}: {event['why']}"


def _moved(event: Mapping[str, Any]) -> str:
    text = f"{event['loaded']} copies loaded, {format_bytes(event['fetched'])} between modules"
    text += f", {event['dropped']} dropped, in {format_seconds(event['seconds'])}"
    return f"{text}; {event['cancelled']} given up, since their module died" if event["cancelled"] else text


def _at(at: Mapping[str, Any]) -> str:
    return f"batch {at['batch']}" if "batch" in at else f"{at['time_s']:g} s"


def since_start(event: Mapping[str, Any]) -> str:
    """The event's time from the first batch, with its clock if that is not the wall's."""
    if "since_start_s" in event:
        return f"{event['since_start_s']:+.3f} s"
    if "since_start_virtual_s" in event:
        return f"{event['since_start_virtual_s']:+.3f} virtual s"
    return ""


def count(number: float) -> str:
    """A count for a person to read: 950, 12.3 k, 4.56 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size * 0.9995:
            scaled = number / size
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f} {unit}"
    return f"{number:.0f}"
