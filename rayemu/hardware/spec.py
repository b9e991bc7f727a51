"""What hardware is, as data: modules with banks, links by level, router, energy, price. No formula is here.

Every number of a file is written with its unit and its source; in Python it is in SI units (bytes, bytes/s,
seconds, FLOP/s, joules, watts, US dollars). A field that is None is not known of this hardware.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rayemu.hardware import quantities as q
from rayemu.scenario.base import Section

LEVELS = ("bank", "module", "node", "cluster")  # inside a bank's module, module to module, node to node
Count = Annotated[int, Field(ge=1, le=1 << 20)]
Share = Annotated[float, Field(gt=0, le=1)]
Precision = Literal["fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "int8", "int4"]
BITS: dict[str, int] = {
    "fp64": 64,
    "fp32": 32,
    "tf32": 32,
    "fp16": 16,
    "bf16": 16,
    "fp8": 8,
    "int8": 8,
    "int4": 4,
}
TOPOLOGIES = ("full", "ring", "torus", "fat_tree")


class RowBuffer(Section):
    """Timing of a bank's rows: what a row holds, to open and close one, and one burst from an open one."""

    row: q.Size  # bytes that one activation opens
    burst: q.Size  # bytes of one column access
    activate: q.Time  # tRCD: from activation to the first access
    precharge: q.Time  # tRP: to close a row
    access: q.Time  # tCL: from a column access to its data
    gap: q.Time  # tCCD: between two accesses to an open row
    active: q.Time = 0.0  # tRAS: a row stays open for so long at least


class Banks(Section):
    """The memory that holds the weights: `count` banks of a module, read at once, each at `bandwidth`.

    A GPU is one bank. `limit` is what the module's power lets all banks together read, where that is less.
    """

    count: Count
    bandwidth: q.Rate
    capacity: q.Size  # of the module: all banks together
    limit: q.Rate | None = None
    share: Share = 1.0  # of the bandwidth that a pass over weights reaches
    rows: RowBuffer | None = None


class Fetch(Section):
    """Weights that are not in the module's memory but come over a link for every pass."""

    bandwidth: q.Rate
    latency: q.Time
    share: Share = 1.0
    capacity: q.Size | None = None  # of what they come from, for each module


class Compute(Section):
    """What a module computes with. `rates` are peaks by precision; `precision` is what experts use.

    `inputs` is how many input rows one pass over the weights serves, by registers or buffers: a PIM unit has
    few, a GPU as many as there are (None). `tile` rows are computed where fewer are wanted. With an `overlap`
    p, memory and arithmetic take the p-norm of their times (1: one after the other); None: the longer one.
    `activations` says where rows are between products. A pass takes `overhead` beside that, and no less than
    `launch` for each of its `kernels`.
    """

    rates: dict[Precision, q.Operations]
    precision: Precision
    share: Share = 1.0  # of the peak that large products reach
    inputs: Count | None = None
    tile: Count = 1
    kernels: Count = 1
    launch: q.Time = 0.0
    overhead: q.Time = 0.0
    overlap: Annotated[float, Field(ge=1, le=100)] | None = None
    activations: Literal["buffer", "memory"] = "buffer"


class Module(Section):
    """One module: a PIM device, a GPU, a processor."""

    banks: Banks
    compute: Compute
    external: q.Rate | None = None  # bytes/s in and out of the module's memory from outside
    buffer: q.Size | None = None  # on-chip memory beside the banks
    fetch: Fetch | None = None


class Topology(Section):
    """How the ends of a level are joined: full is a crossbar that never blocks. Routes: `topology.network`.

    `dimensions` of a torus, None: the squarest; `arity` of a fat tree's switches, None: the smallest.
    """

    kind: Literal["full", "ring", "torus", "fat_tree"]
    dimensions: tuple[Count, ...] | None = None
    arity: Count | None = None
    hop: q.Time = 0.0  # latency of each hop after the first


class Level(Section):
    """A link of each end, each way. `shared`: one link of a node carries what all its modules send.

    `floor` is what the smallest message takes, where more than latency: launching a collective, for one.
    """

    latency: q.Time
    floor: q.Time = 0.0
    bandwidth: q.Rate
    share: Share = 1.0  # of the bandwidth that large messages reach
    overhead: q.Time = 0.0  # of each message, at its sender, beside the latency
    shared: bool = False
    topology: Topology | None = None  # None: full


class Links(Section):
    """Links by level: between the banks of a module, modules of a node, and nodes; cluster: beyond that."""

    bank: Level | None = None
    module: Level
    node: Level | None = None
    cluster: Level | None = None


class Host(Section):
    """What routes tokens where the hardware has no router: a processor with its memory.

    One for each node, or with `each` one for each module, as a GPU that routes its own tokens.
    """

    rate: q.Operations
    bandwidth: q.Rate
    overhead: q.Time  # of each batch that is routed
    each: bool = False


class Processors(Section):
    """Processors of one machine that do everything in turn: the modules of all nodes, the host, the messages.

    Only of a machine that emulates modules by processes. Every message costs `frame` and its bytes over
    `bandwidth` at either end; what a process is to do that has nothing else to do costs `wake` beside that.
    Passes of less than `turn` operations are interrupted by all others, and reach a `share` of the rates;
    those from there on hold a processor until they are done.
    """

    count: Count
    frame: q.Time
    bandwidth: q.Rate
    wake: q.Time
    share: Share = 1.0
    turn: q.Work = 0.0


class RouterAccelerator(Section):
    """Silicon that scores experts and selects: `macs` a cycle, a comparator tree of `comparators` inputs."""

    macs: Count
    comparators: Count
    clock: q.Frequency
    area: q.Area | None = None
    power: q.Power | None = None


class Energy(Section):
    """Energy by component. `static` is a module's power when it does nothing, `busy` its limit, if known."""

    weights: q.EnergyPerBit  # to read weights for computing
    compute: q.EnergyPerOperation
    activations: q.EnergyPerBit | None = None  # to read and write rows in the module's memory
    links: dict[Literal["bank", "module", "node", "cluster"], q.EnergyPerBit] = Field(default_factory=dict)
    fetch: q.EnergyPerBit | None = None
    static: q.Power = 0.0
    busy: q.Power | None = None
    parts: dict[str, q.EnergyPerBit] = Field(default_factory=dict)  # what `weights` is made of, to be shown


class Tier(Section):
    """A place for experts' weights, of one module: how long until they come, how fast, and at what cost."""

    size: q.Size
    latency: q.Time
    bandwidth: q.Rate
    energy: q.EnergyPerBit | None = None


class Price(Section):
    """What it costs to buy and to run."""

    module: q.Money
    energy: q.EnergyPrice
    host: q.Money = 0.0  # of each node
    overhead: Annotated[float, Field(ge=1, le=10)] = 1.0  # power drawn for each watt used (PUE)


class Hardware(Section):
    """A machine of equal modules, see `load_hardware`. How many there are is a run's business."""

    name: str
    about: str
    remark: str = ""
    module: Module
    modules_per_node: Count
    links: Links
    host: Host
    energy: Energy
    router: RouterAccelerator | None = None
    processors: Processors | None = None
    price: Price | None = None
    tiers: dict[str, Tier] | None = None  # where weights can be, fastest first; the last holds all
