"""Commands that run something: scenarios, benchmarks, the machine's examination."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rayemu.cli.options import HardwareNames, Json, expanded
from rayemu.cli_errors import FAILED, plain_errors, refuse

BENCHMARKS = (
    "step",
    "recovery",
    "hang",
    "codecs",
    "products",
    "planner",
    "rebalance",
    "streams",
    "planning",
    "profile",
)


def run(
    scenario: Annotated[
        str,
        typer.Argument(help="A YAML file, - for standard input, or the name of a scenario of rayemu's own."),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, like model.top_k=4; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", callback=expanded, help="The run folder; else runs/NAME.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished run.")] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Also write trace.json, for ui.perfetto.dev or chrome://tracing.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(metavar="RAY", help="A Ray cluster to use; else one is started here.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No live view; one line at the end.")] = False,
    hardware: HardwareNames = None,
) -> None:
    """Run a scenario, check its output, and keep what happened in a run folder.

    The exit code is 0 if every check of the run held, 1 if one did not, 2 if it could not be run, and 130
    after Ctrl-C.
    """
    import json

    changes = list(settings or [])
    if address is not None:
        changes.append(f"cluster.address={json.dumps(address)}")
    with plain_errors():
        from rayemu.hardware import load_hardware
        from rayemu.report.live import ViewConsole, make_view
        from rayemu.report.table import one_line, print_summary
        from rayemu.running.run import run_scenario
        from rayemu.scenario import Scenario

        chosen = Scenario.load(scenario).with_overrides(changes)
        modelled = [load_hardware(name) for name in hardware or []]
        console = ViewConsole()
        folder = out or Path("runs") / chosen.name
        with make_view(chosen, console, quiet, [one.name for one in modelled]) as view:
            summary = run_scenario(chosen, folder, view, trace, overwrite, modelled)
        if quiet:
            typer.echo(one_line(summary, folder))
        else:
            print_summary(summary, folder, console)
    if not summary["passed"]:
        raise typer.Exit(FAILED)


def profile(
    scenario: Annotated[
        str,
        typer.Argument(help="A YAML file, - for standard input, or the name of a scenario of rayemu's own."),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, like run.batches=20; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", callback=expanded, help="Else runs/NAME-profile.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier profile.")] = False,
    warm_up: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many of the scenario's batches are not measured.")
    ] = 3,
    json: Json = False,
) -> None:
    """Run a scenario to see where its batches' time goes: processor time, queues, a flame graph.

    Processor time by process, thread, phase and function; wall time by what batches waited for. Writes
    profile.json and profile.speedscope.json (for speedscope.app). Faults and arrival times are left out.
    """
    with plain_errors():
        from json import dumps

        from rayemu.report.live import ViewConsole, make_view
        from rayemu.report.profiled import print_profile
        from rayemu.running.profile import profile_scenario
        from rayemu.scenario import Scenario

        chosen = Scenario.load(scenario).with_overrides(list(settings or []))
        console = ViewConsole()
        with make_view(chosen, console, quiet=json) as view:
            figures = profile_scenario(chosen, out, view, overwrite, warm_up)
        if json:
            typer.echo(dumps(figures, indent=1))
        else:
            print_profile(figures, console)


def list_strategies(
    family: Annotated[
        str | None, typer.Argument(help="Only this one, like placement.kind or scenarios.")
    ] = None,
) -> None:
    """List what a scenario can choose from: strategies, presets, codecs, faults, packaged scenarios."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from rayemu.report.catalog import families

    tables = families()
    if family is not None and family not in tables:
        refuse([f"{family} is not a family; known: {', '.join(tables)}"])
    console = Console()
    for name, members in tables.items():
        if family in (None, name):
            table = Table.grid(padding=(0, 2))
            table.add_column(style="cyan", no_wrap=True)
            table.add_column()
            for member, line in members.items():
                table.add_row(f"  {escape(member)}", escape(line))
            console.print(f"[bold]{name}[/bold]")
            console.print(table)


def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Remove what killed runs left behind.")] = False,
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="Also start a small emulation on Ray.")] = True,
) -> None:
    """Check whether this machine can run an emulation; exit code 1 if something is wrong."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(soft_wrap=True)
    colours = {"ok": "green", "warning": "yellow", "wrong": "red"}
    wrong = 0
    with plain_errors():
        from rayemu.doctor import WRONG, examine

        for finding in examine(fix, ray):
            wrong += finding.state == WRONG
            mark = f"[{colours[finding.state]}]{finding.state:7}[/]"
            console.print(f"{mark}  {finding.name}: {escape(finding.text)}", highlight=False)
            if finding.remedy:
                console.print(f"         {escape(finding.remedy)}", highlight=False)
    if wrong:
        raise typer.Exit(FAILED)


def bench(context: typer.Context) -> None:
    """Benchmarks: step (the default), recovery, hang, codecs, products, planner, planning, ...; see --help.

    step compares the speed with the bare GEMMs, the reference and plain Ray.
    """
    from importlib import import_module

    name, *options = (
        context.args if context.args[:1] and context.args[0] in BENCHMARKS else ["step", *context.args]
    )
    with plain_errors():
        code = import_module(f"rayemu.benchmarks.{name}").main(options)
    if code:
        raise typer.Exit(int(code))
