"""Commands that price runs, scenarios and models on modelled hardware."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rayemu.cli.options import HardwareNames, expanded
from rayemu.cli_errors import plain_errors, refuse


def price(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", callback=expanded, help="The folder of a finished run.")
    ],
    hardware: HardwareNames = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON, with everything.")] = False,
    overfull: Annotated[
        bool, typer.Option("--allow-overfull", help="Also where modules cannot hold their experts.")
    ] = False,
) -> None:
    """What a run would have taken on modelled hardware, at the model's full width, side by side.

    Emulated step time with its critical path, tokens per emulated second, utilisation, energy, memory, cost.
    """
    with plain_errors():
        from rayemu.hardware import packaged
        from rayemu.study.price import report

        if not hardware:
            refuse([f"--hardware is missing; one or more of {', '.join(packaged())}, or a YAML file"])
        report(run, hardware or [], json, overfull)


def whatif(
    scenario: Annotated[
        str,
        typer.Argument(help="A YAML file, - for standard input, or the name of a scenario of rayemu's own."),
    ],
    hardware: HardwareNames = None,
    modules: Annotated[
        str, typer.Option(metavar="M", help="How many: 8..4096 (doubling), 8,16,32 or one number.")
    ] = "8..4096",
    nodes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Nodes that the modules are in.")
    ] = None,
    modules_per_node: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Modules of a node; else the scenario's.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, metavar="T", help="Tokens of a batch; else the scenario's.")
    ] = None,
    batches: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="B", help="Batches; else the scenario's, fewer where that would be long."
        ),
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Also the bandwidth that a layer's dispatch needs to end in it."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, like model.scale=1; repeatable."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="A list with an object for each, as price prints.")
    ] = False,
    overfull: Annotated[
        bool, typer.Option("--allow-overfull", help="Also where modules cannot hold their experts.")
    ] = False,
) -> None:
    """A scenario on modelled hardware that nobody has yet, by number of modules; nothing is started.

    The same policies as a run's, on drawn routing, priced as `rayemu price` prices a run's record.
    """
    with plain_errors():
        from rayemu.hardware import packaged
        from rayemu.study.whatif import Machines, parse_modules, whatif
        from rayemu.units import parse_seconds

        if not hardware:
            refuse([f"--hardware is missing; one or more of {', '.join(packaged())}, or a YAML file"])
        if nodes is not None and modules_per_node is not None:
            refuse(["--nodes and --modules-per-node exclude each other; give one"])
        try:
            machines = Machines(parse_modules(modules), nodes, modules_per_node)
        except ValueError as error:
            refuse([f"--modules: {error}"])
        try:
            within = None if deadline is None else parse_seconds(deadline)
        except ValueError as error:
            refuse([f"--deadline: {deadline} {error}"])
        whatif(scenario, hardware or [], machines, tokens, batches, settings or [], overfull, json, within)


def crossover(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A preset, a checkpoint or a scenario.")],
    hardware: HardwareNames = None,
    modules: Annotated[int | None, typer.Option(metavar="M", help="Modules of each; else 8.")] = None,
    zipf: Annotated[float, typer.Option(metavar="S", help="Exponent of the experts' popularity.")] = 0.0,
    json: Annotated[bool, typer.Option("--json", help="As JSON, with everything.")] = False,
) -> None:
    """One layer on hardwares side by side, 1 to 4096 tokens: time, energy, and where they change places."""
    with plain_errors():
        from rayemu.study.crossover import report

        report(model, hardware or [], modules, zipf, json)
