"""Which functions are which phase of a batch: one table, to be mended where functions get other names.

A stack belongs to the first row of the table that has one of its functions, so what is told apart within
something else stands above it: a router's product is routing. A name is a module, a colon and a function, or a
package, for all that is in it. A test sees to it that every name exists.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import CodeType
from typing import Any

from rayemu.profiling.sampler import GARBAGE, Frame

PRODUCTS, GARBAGE_PHASE, OTHER = "products", "garbage", "other"

_NOTES = "rayemu.drivers.notes"
_HOME = "rayemu.protocol.home:Home"
_SERVER = "rayemu.protocol.server"

TABLE: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "record",
        (
            *(f"{_NOTES}:ActorRecord.{name}" for name in ("frame", "control", "routed")),
            *(f"{_NOTES}:ModuleRecord.{name}" for name in ("worked", "encoded", "decoded", "sent", "computed")),
        ),
    ),
    (
        "route",
        (
            *(f"rayemu.model.reference:{name}" for name in ("prepare", "route", "scored", "open_groups")),
            "rayemu.protocol.choosing:Chooser.begin",
            "rayemu.protocol.choosing:Chooser.on_choices",
            "rayemu.protocol.offers:score",
            "rayemu.protocol.coordinator:CoordinatorMachine._with_routing",
            "rayemu.protocol.coordinator:CoordinatorMachine._route",
            "rayemu.protocol.coordinator:CoordinatorMachine._on_scores",
            "rayemu.routing",
        ),
    ),
    ("activation", ("rayemu.model.expert:activated",)),
    (PRODUCTS, ("rayemu.numerics.products:exact_matmul", "rayemu.numerics.products:_part")),
    (
        "gather",
        (
            f"{_SERVER}:_gathered",
            f"{_SERVER}:run_job",
            "rayemu.protocol.slices:dispatch_of",
            "rayemu.protocol.relay:Relay._rows_for",
        ),
    ),
    ("combine", ("rayemu.model.reference:combine", "rayemu.model.reference:finish")),
    (
        "send",
        (
            "rayemu.protocol.wire:Wire.encode_pieces",
            "rayemu.cluster.port:Port.send",
            "rayemu.cluster.port:Port.release",
            "rayemu.cluster.link:ZmqLink.send",
            "rayemu.cluster.link:QueueLink.send",
        ),
    ),
    (
        "receive",
        (
            "rayemu.protocol.wire:Wire.decode",
            "rayemu.cluster.link:ZmqLink.receive",
            "rayemu.cluster.link:QueueLink.receive",
            "rayemu.cluster.link:QueueLink.post",
        ),
    ),
    ("relay", ("rayemu.protocol.relay:Relay.accept", "rayemu.protocol.relay:Relay.gather")),
    (
        "plan",
        (
            f"{_HOME}._dispatch",
            f"{_HOME}._plan",
            "rayemu.protocol.requests:Requests.add",
            "rayemu.protocol.requests:Requests.answered",
        ),
    ),
    (
        "queue",
        tuple(
            f"{_SERVER}:ExpertServer.{name}"
            for name in ("accept", "accept_shared", "next_job", "fill", "finish", "deadline")
        ),
    ),
    (
        "settle",
        (f"{_HOME}.on_reply", f"{_HOME}.on_shared", f"{_HOME}.on_slice", f"{_HOME}.forget_below"),
    ),
    (
        "batches",
        (
            "rayemu.protocol.ledger:Ledger.submit",
            "rayemu.protocol.ledger:Ledger.acknowledge",
            "rayemu.protocol.ledger:Ledger.forget_below",
            "rayemu.protocol.client:ClientMachine.submit",
            "rayemu.protocol.client:ClientMachine.receive",
            "rayemu.emulator:as_rows",
        ),
    ),
    (
        "life",
        (
            "rayemu.cluster.module_runtime:ModuleRuntime._beat",
            "rayemu.cluster.module_runtime:ModuleRuntime._gauge_load",
            "rayemu.cluster.coordinator_runtime:CoordinatorRuntime._feel_pulses",
            "rayemu.cluster.coordinator_runtime:CoordinatorRuntime._report",
            "rayemu.protocol.coordinator:CoordinatorMachine.tick",
            "rayemu.protocol.module:ModuleMachine.tick",
        ),
    ),
    ("stream", ("rayemu.streams",)),
    # What leads to all that, where it is not in any of it just now.
    (
        "send",
        (
            "rayemu.drivers.pump:ModulePump.emit",
            "rayemu.drivers.pump:CoordinatorPump.emit",
            "rayemu.protocol.module:ModuleMachine._settle",
        ),
    ),
    (
        "receive",
        ("rayemu.drivers.pump:ModulePump.on_frame", "rayemu.drivers.pump:CoordinatorPump.on_frame"),
    ),
)
MEANS: Mapping[str, str] = {
    PRODUCTS: "matrix products of experts, shared experts and dense FFNs, with their padding",
    "activation": "SwiGLU and the like",
    "gather": "rows copied together for a frame or a job, and results put where replies are made",
    "route": "what a layer does before experts: norm, gate, choice, asking for choices",
    "plan": "replicas, parcels, windows",
    "queue": "the expert servers' books: taking requests, making jobs, making replies",
    "send": "encoding, codecs, sockets and shared memory",
    "receive": "sockets and shared memory, decoding, checking",
    "relay": "splitting dispatches and gathering replies for neighbours",
    "settle": "putting replies to their rows, and what a slice's begin and end need",
    "combine": "the weighted sum, the residual",
    "record": "writing record.npz's rows",
    "batches": "the ledger, and batches copied in and results taken by the driver",
    "life": "heartbeats, membership, totals, ticks",
    "stream": "making the batches",
    GARBAGE_PHASE: "Python's garbage collector",
    OTHER: "no function of the table",
}


def code_of(name: str) -> CodeType | None:
    """The code of a function of the table; None for a package. Raises where there is no such name."""
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    if not path:
        return None
    for part in path.split("."):
        found = inspect.getattr_static(found, part)
    code: CodeType = inspect.unwrap(found).__code__
    return code


def phase_finder() -> Callable[[Iterable[Frame]], str]:
    """What tells the phase of a stack."""
    exact: dict[tuple[str, str, int], int] = {}  # (module, function, first line) -> row of the table
    packages: dict[str, int] = {}
    for row, (_, names) in enumerate(TABLE):
        for name in names:
            code = code_of(name)
            if code is None:
                packages[name] = row
            else:
                exact[name.partition(":")[0], code.co_name, code.co_firstlineno] = row

    def find(stack: Iterable[Frame]) -> str:
        first = len(TABLE)
        for frame in stack:
            if frame == GARBAGE:
                return GARBAGE_PHASE
            module, function, _, line = frame
            first = min(first, exact.get((module, function.rpartition(".")[2], line), first))
            first = min(first, *(row for package, row in packages.items() if _within(module, package)), first)
        return TABLE[first][0] if first < len(TABLE) else OTHER

    return find


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
