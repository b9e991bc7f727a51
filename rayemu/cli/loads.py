"""Commands about expert loads, routing traces and plans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rayemu.cli.options import (
    TRACE_FORMATS,
    Devices,
    Experts,
    IsPlan,
    Shared,
    Tokens,
    TraceFile,
    TraceFormat,
    Window,
    expanded,
)
from rayemu.cli_errors import plain_errors, refuse


def trace_import(
    file: TraceFile,
    out: Annotated[
        Path | None, typer.Option(metavar="X.npz", callback=expanded, help="Else FILE with the ending .npz.")
    ] = None,
    format: TraceFormat = None,
    plan: IsPlan = False,
    experts: Experts = None,
    devices: Devices = None,
    shared: Shared = None,
    tokens: Tokens = None,
    window: Window = 65536,
) -> None:
    """Read what another system or a run recorded, loads or a plan, and keep it in rayemu's own format."""
    with plain_errors():
        from rayemu.study.traces import convert, target

        known = dict(plan=plan, experts=experts, devices=devices, shared=shared, tokens=tokens, window=window)
        convert(file, format, target(file, out, ".npz"), "rayemu", known)


def trace_export(
    file: TraceFile,
    format: Annotated[str, typer.Option("--format", metavar="F", help=f"To write: {TRACE_FORMATS}.")],
    out: Annotated[Path, typer.Option(metavar="OUT", callback=expanded, help="What to write.")],
    from_format: Annotated[
        str | None, typer.Option("--from", metavar="F", help="Of FILE, where it cannot be told.")
    ] = None,
    plan: IsPlan = False,
    experts: Experts = None,
    devices: Devices = None,
    shared: Shared = None,
    tokens: Tokens = None,
    window: Window = 65536,
) -> None:
    """Write a trace or a plan for another system; FILE is anything that import reads."""
    with plain_errors():
        from rayemu.study.traces import convert

        known = dict(plan=plan, experts=experts, devices=devices, shared=shared, tokens=tokens, window=window)
        convert(file, from_format, out, format, known)


def trace_stats(
    file: TraceFile,
    json: Annotated[bool, typer.Option("--json", help="As JSON, with everything.")] = False,
    format: TraceFormat = None,
    plan: IsPlan = False,
    experts: Experts = None,
    devices: Devices = None,
    shared: Shared = None,
    tokens: Tokens = None,
    window: Window = 65536,
) -> None:
    """How skewed and how steady experts are, how soon used again, and how alike neighbours choose."""
    with plain_errors():
        from rayemu.study.traces import statistics

        known = dict(plan=plan, experts=experts, devices=devices, shared=shared, tokens=tokens, window=window)
        statistics(file, format, json, known)


def plan(
    file: Annotated[
        Path, typer.Argument(metavar="LOADS", callback=expanded, help="Loads: whatever trace import reads.")
    ],
    modules: Annotated[int, typer.Option(min=1, max=65536, metavar="M", help="Modules (devices).")],
    nodes: Annotated[int, typer.Option(min=1, metavar="N", help="Nodes that the modules are dealt to.")] = 1,
    slots: Annotated[
        int | None, typer.Option(min=1, metavar="R", help="Slots per layer; else one per expert.")
    ] = None,
    groups: Annotated[int, typer.Option(min=1, metavar="G", help="Groups that stay on one node.")] = 1,
    keep: Annotated[
        Path | None, typer.Option(metavar="PLAN", callback=expanded, help="The plan that there is.")
    ] = None,
    planners: Annotated[
        list[str] | None, typer.Option("--planner", metavar="NAME", help="Only these; repeatable.")
    ] = None,
    expert_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of an expert's weights, like 44 MiB.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", callback=expanded, help="Write the best plan here.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(metavar="F", help="Of what is written: eplb, vllm, sglang, trtllm, npy.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The table as JSON.")] = False,
    experts: Experts = None,
    tokens: Tokens = None,
    window: Window = 65536,
) -> None:
    """Planners side by side on recorded loads, best first: balance, bound, moves, bytes moved, time.

    With --keep, moves are counted from that plan, and planners may start from it.
    """
    with plain_errors():
        from rayemu.study.plan import Machine, plan
        from rayemu.units import parse_bytes

        try:
            size = 0 if expert_bytes is None else parse_bytes(expert_bytes)
        except ValueError as error:
            refuse([f"--expert-bytes: {expert_bytes} {error}"])
        known = dict(experts=experts, tokens=tokens, window=window)
        plan(file, Machine(modules, nodes, slots, groups, size), keep, planners, out, format, json, known)
