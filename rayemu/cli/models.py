"""Commands about models and their activations, and about the texts' figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rayemu.cli.options import expanded
from rayemu.cli_errors import plain_errors, refuse


def codecs(
    scenario: Annotated[
        str, typer.Argument(help="Whose model and stream: a YAML file, or a name; default: laptop.")
    ] = "laptop",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, like model.layers=4; repeatable."),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--codec", metavar="CODEC", help='Only these, like "int8+zstd"; repeatable.'),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Rows to measure on; else one batch of the scenario.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", callback=expanded, help="Also write codecs.json and codecs.svg here."),
    ] = None,
) -> None:
    """What every codec saves and spoils on a stream's real activations, layer by layer.

    Bytes and speed, relative error of rows and of the layer's output when rows are coded on the way to the
    experts and back, and the link speed under which coding is quicker than sending float32.
    """
    with plain_errors():
        from rayemu.scenario import Scenario
        from rayemu.study.codecs import report

        report(Scenario.load(scenario).with_overrides(list(settings or [])), names, tokens, out)


def routers(
    scenario: Annotated[
        str, typer.Argument(help="Whose model and stream: a YAML file, or a name; default: laptop.")
    ] = "laptop",
    stream: Annotated[
        str | None, typer.Option(metavar="KIND", help="Another stream: text, uniform, zipf, ...")
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--router", metavar="NAME", help="Only these; NAME:PARAMETER=VALUE,... ; repeatable."),
    ] = None,
    batches: Annotated[
        int, typer.Option(min=1, max=1000, metavar="B", help="Batches of the stream, one after the other.")
    ] = 4,
    tokens: Annotated[
        int | None, typer.Option(min=1, metavar="T", help="Tokens of a batch; else the scenario's.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, like model.layers=4; repeatable."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON, with everything.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", callback=expanded, help="Also draw error against cost, as one page (bokeh)."
        ),
    ] = None,
) -> None:
    """Every router on the same activations: what its choices bring and cost beside the model's own.

    Agreement, output error, balance, remote and dropped choices, time; a router that cannot serve the
    scenario is there with its reason. Computed in this process: nothing is started.
    """
    with plain_errors():
        from rayemu.scenario import Scenario
        from rayemu.study.routers import report

        changes = [f"stream={{kind: {stream}}}"] if stream is not None else []
        chosen = Scenario.load(scenario).with_overrides([*changes, *(settings or [])])
        report(chosen, names or [], batches, tokens, json, plot)


def model(
    name: Annotated[str, typer.Argument(help="A preset, a scenario, or the directory of a checkpoint.")],
    modules: Annotated[
        int | None, typer.Option(metavar="M", help="Modules; else the scenario's, or 8.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help='Of a module, like "64 GB": does it fit?')
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(metavar="T", help="Tokens under way at once; else the scenario's, or 512.")
    ] = None,
    context: Annotated[int, typer.Option(metavar="C", help="Tokens in the key and value cache.")] = 2048,
    precision: Annotated[
        str, typer.Option(metavar="P", help="Of the weights: fp32, fp16, int8 or int4.")
    ] = "fp16",
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON, sizes in bytes.")] = False,
) -> None:
    """What a model takes: parameters, FLOPs, bytes, cache and activations, module by module; does it fit?

    Counted at full width, with attention and embeddings, which rayemu does not run.
    """
    with plain_errors():
        from rayemu.study.model import report

        report(name, modules, memory, tokens, context, precision, json)


def reproduce(
    only: Annotated[
        str | None, typer.Option(metavar="TEXT|ID", help="One text (000, 001, 002), or one row in full.")
    ] = None,
    differs: Annotated[bool, typer.Option("--differs", help="Without the rows that agree.")] = False,
    json: Annotated[bool, typer.Option("--json", help="As JSON, with inputs and formulas.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table of docs/reproduce.md.")] = False,
) -> None:
    """The figures of the texts that the project comes from, worked out again: theirs, ours, and why not."""
    with plain_errors():
        from rayemu.study.reproduce.show import report, select, unknown

        if json and markdown:
            refuse(["--json and --markdown exclude each other; give one"])
        if only is not None and (problem := unknown(only)):
            refuse([problem])
        report(select(only, differs), json, markdown)
