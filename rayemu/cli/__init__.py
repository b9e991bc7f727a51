"""The `rayemu` command. Everything heavy is imported by the command that needs it: --help stays quick."""

from __future__ import annotations

from typing import Annotated

import typer

import rayemu
from rayemu.cli import hardware, loads, models, pricing, running
from rayemu.cli_errors import until_unread

app = typer.Typer(
    help="Runs a Mixture-of-Experts stack for real over emulated processing-in-memory modules on Ray.",
    epilog="Start with: rayemu run laptop",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
trace_app = typer.Typer(
    help="Expert loads, routing traces and plans of other systems: import, export, statistics.",
    no_args_is_help=True,
)
app.add_typer(trace_app, name="trace")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rayemu {rayemu.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


# In the order in which --help lists them.
app.command()(running.run)
app.command()(running.profile)
app.command("list")(running.list_strategies)
app.command()(running.doctor)
app.command()(models.codecs)
app.command()(models.routers)
app.command()(models.model)
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)(running.bench)
trace_app.command("import")(loads.trace_import)
trace_app.command("export")(loads.trace_export)
trace_app.command("stats")(loads.trace_stats)
app.command()(loads.plan)
app.command()(models.reproduce)
app.command()(hardware.hardware)
app.command()(pricing.price)
app.command()(hardware.calibrate)
app.command()(pricing.crossover)
app.command()(hardware.banks)
app.command()(hardware.tiers)
app.command()(hardware.router)
app.command()(pricing.whatif)


def main() -> None:
    """The entry point of the `rayemu` command."""
    until_unread(app)
