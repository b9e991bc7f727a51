"""The `rayemu` command. Everything heavy is imported by the command that needs it: --help stays quick."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

import rayemu
from rayemu.cli_errors import FAILED, plain_errors, refuse, until_unread

TRACE_FORMATS = "rayemu, eplb, vllm, sglang, trtllm, flame or npy"
BENCHMARKS = ("step", "recovery", "hang", "codecs", "products", "planner", "rebalance", "streams", "planning")

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

_Hardware = Annotated[
    list[str] | None,
    typer.Option("--hardware", metavar="NAME", help="Modelled hardware, a name or a YAML file; repeatable."),
]


def _folder(path: Path | None) -> Path | None:
    """The path with a ~ expanded, which no shell does in --out=~/x."""
    return None if path is None else Path(os.path.expanduser(path))


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


@app.command()
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
        Path | None, typer.Option(metavar="DIR", callback=_folder, help="The run folder; else runs/NAME.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished run.")] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Also write trace.json, for ui.perfetto.dev or chrome://tracing.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(metavar="RAY", help="A Ray cluster to use; else one is started here.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No live view; one line at the end.")] = False,
    hardware: _Hardware = None,
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


@app.command("list")
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


@app.command()
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


@app.command()
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
        typer.Option(metavar="DIR", callback=_folder, help="Also write codecs.json and codecs.svg here."),
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


@app.command()
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


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
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


_TraceFile = Annotated[
    Path,
    typer.Argument(metavar="FILE", callback=_folder, help="A file, or a folder (a run's, TensorRT-LLM's)."),
]
_TraceFormat = Annotated[
    str | None,
    typer.Option("--format", metavar="F", help=f"Of FILE, where it cannot be told: {TRACE_FORMATS}."),
]
_Experts = Annotated[
    int | None, typer.Option(min=1, metavar="E", help="Routed experts per layer, where FILE does not say.")
]
_Devices = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Devices that the slots of a plan are on.")
]
_Shared = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Shared experts, whose ids follow the routed ones.")
]
_IsPlan = Annotated[bool, typer.Option("--plan", help="FILE is a plan, where bare numbers could be loads.")]
_Tokens = Annotated[int | None, typer.Option(min=1, metavar="T", help="Only the first T tokens (flame).")]
_Window = Annotated[
    int, typer.Option(min=1, metavar="T", help="Tokens per window, where FILE has no batches.")
]


@trace_app.command("import")
def trace_import(
    file: _TraceFile,
    out: Annotated[
        Path | None, typer.Option(metavar="X.npz", callback=_folder, help="Else FILE with the ending .npz.")
    ] = None,
    format: _TraceFormat = None,
    plan: _IsPlan = False,
    experts: _Experts = None,
    devices: _Devices = None,
    shared: _Shared = None,
    tokens: _Tokens = None,
    window: _Window = 65536,
) -> None:
    """Read what another system or a run recorded, loads or a plan, and keep it in rayemu's own format."""
    with plain_errors():
        from rayemu.study.traces import convert, target

        known = dict(plan=plan, experts=experts, devices=devices, shared=shared, tokens=tokens, window=window)
        convert(file, format, target(file, out, ".npz"), "rayemu", known)


@trace_app.command("export")
def trace_export(
    file: _TraceFile,
    format: Annotated[str, typer.Option("--format", metavar="F", help=f"To write: {TRACE_FORMATS}.")],
    out: Annotated[Path, typer.Option(metavar="OUT", callback=_folder, help="What to write.")],
    from_format: Annotated[
        str | None, typer.Option("--from", metavar="F", help="Of FILE, where it cannot be told.")
    ] = None,
    plan: _IsPlan = False,
    experts: _Experts = None,
    devices: _Devices = None,
    shared: _Shared = None,
    tokens: _Tokens = None,
    window: _Window = 65536,
) -> None:
    """Write a trace or a plan for another system; FILE is anything that import reads."""
    with plain_errors():
        from rayemu.study.traces import convert

        known = dict(plan=plan, experts=experts, devices=devices, shared=shared, tokens=tokens, window=window)
        convert(file, from_format, out, format, known)


@trace_app.command("stats")
def trace_stats(
    file: _TraceFile,
    json: Annotated[bool, typer.Option("--json", help="As JSON, with everything.")] = False,
    format: _TraceFormat = None,
    plan: _IsPlan = False,
    experts: _Experts = None,
    devices: _Devices = None,
    shared: _Shared = None,
    tokens: _Tokens = None,
    window: _Window = 65536,
) -> None:
    """How skewed and how steady experts are, how soon used again, and how alike neighbours choose."""
    with plain_errors():
        from rayemu.study.traces import statistics

        known = dict(plan=plan, experts=experts, devices=devices, shared=shared, tokens=tokens, window=window)
        statistics(file, format, json, known)


@app.command()
def plan(
    file: Annotated[
        Path, typer.Argument(metavar="LOADS", callback=_folder, help="Loads: whatever trace import reads.")
    ],
    modules: Annotated[int, typer.Option(min=1, max=65536, metavar="M", help="Modules (devices).")],
    nodes: Annotated[int, typer.Option(min=1, metavar="N", help="Nodes that the modules are dealt to.")] = 1,
    slots: Annotated[
        int | None, typer.Option(min=1, metavar="R", help="Slots per layer; else one per expert.")
    ] = None,
    groups: Annotated[int, typer.Option(min=1, metavar="G", help="Groups that stay on one node.")] = 1,
    keep: Annotated[
        Path | None, typer.Option(metavar="PLAN", callback=_folder, help="The plan that there is.")
    ] = None,
    planners: Annotated[
        list[str] | None, typer.Option("--planner", metavar="NAME", help="Only these; repeatable.")
    ] = None,
    expert_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of an expert's weights, like 44 MiB.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", callback=_folder, help="Write the best plan here.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(metavar="F", help="Of what is written: eplb, vllm, sglang, trtllm, npy.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The table as JSON.")] = False,
    experts: _Experts = None,
    tokens: _Tokens = None,
    window: _Window = 65536,
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


@app.command()
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


@app.command()
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


@app.command()
def price(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", callback=_folder, help="The folder of a finished run.")
    ],
    hardware: _Hardware = None,
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


@app.command()
def calibrate(
    out: Annotated[
        Path, typer.Argument(metavar="FILE", callback=_folder, help="Where to write it (.yaml); is replaced.")
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


@app.command()
def crossover(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A preset, a checkpoint or a scenario.")],
    hardware: _Hardware = None,
    modules: Annotated[int | None, typer.Option(metavar="M", help="Modules of each; else 8.")] = None,
    zipf: Annotated[float, typer.Option(metavar="S", help="Exponent of the experts' popularity.")] = 0.0,
    json: Annotated[bool, typer.Option("--json", help="As JSON, with everything.")] = False,
) -> None:
    """One layer on hardwares side by side, 1 to 4096 tokens: time, energy, and where they change places."""
    with plain_errors():
        from rayemu.study.crossover import report

        report(model, hardware or [], modules, zipf, json)


_OneHardware = Annotated[
    str, typer.Option("--hardware", metavar="NAME", help="One of `rayemu hardware`, or a YAML file.")
]
_HardwareSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one of its values, like module.banks.count.value=32."
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="As JSON, in SI units.")]


@app.command()
def banks(
    hardware: _OneHardware = "text-pim",
    lookahead: Annotated[
        int, typer.Option(min=1, metavar="N", help="Accesses of a bank that are sorted by row before served.")
    ] = 1,
    settings: _HardwareSettings = None,
    json: _Json = False,
) -> None:
    """Mappings of experts to a module's banks side by side: row-buffer hits, banks at work, bandwidth."""
    with plain_errors():
        from rayemu.hardware import load_hardware
        from rayemu.study.banks import report

        report(load_hardware(hardware, *(settings or [])), lookahead, json)


@app.command()
def tiers(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="TRACE",
            callback=_folder,
            help="Whatever trace import reads, or a scenario for its stream.",
        ),
    ],
    hardware: _OneHardware = "text-pim",
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
    settings: _HardwareSettings = None,
    json: _Json = False,
    format: _TraceFormat = None,
    experts: _Experts = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the first N tokens (scenarios, flame).")
    ] = None,
    window: _Window = 65536,
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
        report(file, chosen, size, capacity or [], policy or [], batch, json, tokens, known)


@app.command()
def router(
    model: Annotated[str, typer.Argument(help="A preset, like deepseek-v3.")] = "mixtral-8x7b",
    hardware: _OneHardware = "text-pim",
    tokens: Annotated[int, typer.Option(min=1, metavar="T", help="Tokens that are routed at once.")] = 64,
    modules: Annotated[int, typer.Option(min=1, max=1024, metavar="M", help="Modules that hold them.")] = 8,
    d_model: Annotated[int | None, typer.Option(min=1, metavar="D", help="Instead of the model's.")] = None,
    experts: Annotated[int | None, typer.Option(min=1, metavar="E", help="Instead of the model's.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, metavar="K", help="Instead of the model's.")] = None,
    settings: _HardwareSettings = None,
    json: _Json = False,
) -> None:
    """Where routing is computed, and at which precision: bytes on links, emulated time, energy.

    Then the router's silicon, where the hardware has it, and comparator trees, beside the texts' figures.
    """
    with plain_errors():
        from rayemu.hardware import load_hardware
        from rayemu.study.router import report, work_of

        work = work_of(model, tokens, modules, d_model, experts, top_k)
        report(load_hardware(hardware, *(settings or [])), work, json)


@app.command()
def whatif(
    scenario: Annotated[
        str,
        typer.Argument(help="A YAML file, - for standard input, or the name of a scenario of rayemu's own."),
    ],
    hardware: _Hardware = None,
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


def main() -> None:
    """The entry point of the `rayemu` command."""
    until_unread(app)


if __name__ == "__main__":
    main()
