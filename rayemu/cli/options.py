"""Options and arguments that several commands have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

TRACE_FORMATS = "rayemu, eplb, vllm, sglang, trtllm, flame or npy"


def expanded(path: Path | None) -> Path | None:
    """The path with a ~ expanded, which no shell does in --out=~/x."""
    return None if path is None else Path(os.path.expanduser(path))


HardwareNames = Annotated[
    list[str] | None,
    typer.Option("--hardware", metavar="NAME", help="Modelled hardware, a name or a YAML file; repeatable."),
]
OneHardware = Annotated[
    str, typer.Option("--hardware", metavar="NAME", help="One of `rayemu hardware`, or a YAML file.")
]
HardwareSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one of its values, like module.banks.count.value=32."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="As JSON, in SI units.")]
TraceFile = Annotated[
    Path,
    typer.Argument(metavar="FILE", callback=expanded, help="A file, or a folder (a run's, TensorRT-LLM's)."),
]
TraceFormat = Annotated[
    str | None,
    typer.Option("--format", metavar="F", help=f"Of FILE, where it cannot be told: {TRACE_FORMATS}."),
]
Experts = Annotated[
    int | None, typer.Option(min=1, metavar="E", help="Routed experts per layer, where FILE does not say.")
]
Devices = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Devices that the slots of a plan are on.")
]
Shared = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Shared experts, whose ids follow the routed ones.")
]
IsPlan = Annotated[bool, typer.Option("--plan", help="FILE is a plan, where bare numbers could be loads.")]
Tokens = Annotated[int | None, typer.Option(min=1, metavar="T", help="Only the first T tokens (flame).")]
Window = Annotated[
    int, typer.Option(min=1, metavar="T", help="Tokens per window, where FILE has no batches.")
]
