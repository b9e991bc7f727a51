"""Commands about modelled hardware by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rayemu.cli.options import Experts, HardwareSettings, Json, OneHardware, TraceFormat, Window, expanded
from rayemu.cli_errors import plain_errors, refuse


def hardware(
    name: Annotated[
        str | None, typer.Argument(help="One of those, or a YAML file; else all are listed.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, like module.banks.count.value=32."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON, in SI units.")] = False,
) -> None:
    """Modelled hardware: a line for each that there is, or every number of one and where it is from."""
    with plain_errors():
        from rich.console import Console

        from rayemu.hardware import load_hardware, packaged
        from rayemu.hardware.describe import as_data
        from rayemu.report.hardware import print_list, print_one

        if name is None and settings:
            refuse(["--set: changes one hardware; name it"])
        names = packaged() if name is None else [name]
        chosen = [load_hardware(one, *(settings or [])) for one in names]
        if json:
            import json as text

            data = [as_data(one) for one in chosen]
            typer.echo(text.dumps(data if name is None else data[0], indent=1, ensure_ascii=False))
        elif name is None:
            print_list(chosen, Console())
        else:
            print_one(chosen[0], Console())


def calibrate(
    out: Annotated[
        Path,
        typer.Argument(metavar="FILE", callback=expanded, help="Where to write it (.yaml); is replaced."),
    ] = Path("this-machine.yaml"),
) -> None:
    """Measure this machine (a minute, best when it is quiet) and write it as a hardware to price runs on."""
    with plain_errors():
        from rich.console import Console

        from rayemu.calibration import calibrate as measured
        from rayemu.report.calibration import print_calibration

        if out.is_dir() or out.suffix not in (".yaml", ".yml"):
            refuse([f"{out}: is not the name of a YAML file; name one, like this-machine.yaml"])
        typer.echo("measuring; best with nothing else running")
        hardware, rates, runs = measured(out, typer.echo)
        print_calibration(hardware, rates, runs, Console())
        typer.echo(f"{out}: price runs with it: rayemu price RUN --hardware {out}")


def banks(
    hardware: OneHardware = "text-pim",
    lookahead: Annotated[
        int, typer.Option(min=1, metavar="N", help="Accesses of a bank that are sorted by row before served.")
    ] = 1,
    settings: HardwareSettings = None,
    json: Json = False,
) -> None:
    """Mappings of experts to a module's banks side by side: row-buffer hits, banks at work, bandwidth."""
    with plain_errors():
        from rayemu.hardware import load_hardware
        from rayemu.study.banks import report

        report(load_hardware(hardware, *(settings or [])), lookahead, json)


def tiers(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="TRACE",
            callback=expanded,
            help="Whatever trace import reads, or a scenario for its stream.",
        ),
    ],
    hardware: OneHardware = "text-pim",
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="A preset, for the bytes of an expert at full width.")
    ] = None,
    expert_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of an expert's weights, like 352 MB.")
    ] = None,
    bits: Annotated[int, typer.Option(min=1, max=64, help="Of a weight, with --model.")] = 16,
    capacity: Annotated[
        list[str] | None,
        typer.Option(metavar="TIER=N", help="Experts (or a size) that a tier holds instead; repeatable."),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only these of lru, lfu, predicted, belady; repeatable."),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, metavar="T", help="Tokens of a step, where FILE has their choices.")
    ] = 1,
    prefetch: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Also predictors that fetch N experts per token and layer."),
    ] = None,
    confidence: Annotated[
        float, typer.Option(min=0, max=1, metavar="P", help="Fetch only what is at least so likely.")
    ] = 0.0,
    settings: HardwareSettings = None,
    json: Json = False,
    format: TraceFormat = None,
    experts: Experts = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the first N tokens (scenarios, flame).")
    ] = None,
    window: Window = 65536,
) -> None:
    """An expert cache over a hardware's tiers on a routing trace: who is served from where, time and energy.

    Policies side by side, Belady's optimum among them as the bound.
    """
    with plain_errors():
        from rayemu.hardware import load_hardware
        from rayemu.study.tiers import expert_size, report

        known = dict(format=format, experts=experts, window=window)
        size = expert_size(model, expert_bytes, bits)
        chosen = load_hardware(hardware, *(settings or []))
        held, only = capacity or [], policy or []
        report(file, chosen, size, held, only, batch, json, tokens, known, prefetch, confidence)


def router(
    model: Annotated[str, typer.Argument(help="A preset, like deepseek-v3.")] = "mixtral-8x7b",
    hardware: OneHardware = "text-pim",
    tokens: Annotated[int, typer.Option(min=1, metavar="T", help="Tokens that are routed at once.")] = 64,
    modules: Annotated[int, typer.Option(min=1, max=1024, metavar="M", help="Modules that hold them.")] = 8,
    d_model: Annotated[int | None, typer.Option(min=1, metavar="D", help="Instead of the model's.")] = None,
    experts: Annotated[int | None, typer.Option(min=1, metavar="E", help="Instead of the model's.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, metavar="K", help="Instead of the model's.")] = None,
    settings: HardwareSettings = None,
    json: Json = False,
) -> None:
    """Where routing is computed, and at which precision: bytes on links, emulated time, energy.

    Then the router's silicon, where the hardware has it, and comparator trees, beside the texts' figures.
    """
    with plain_errors():
        from rayemu.hardware import load_hardware
        from rayemu.study.router import report, work_of

        work = work_of(model, tokens, modules, d_model, experts, top_k)
        report(load_hardware(hardware, *(settings or [])), work, json)
