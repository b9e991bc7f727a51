"""Which functions are which phase of a batch: one table, to be mended where functions get other names.

A path of calls belongs to the first row of the table that has one of its functions, so what is told apart
within something else stands above it: a router's product is routing. A name is a module, a colon and a
function, which is no generator. A test sees to it that every name exists.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

PRODUCTS, GARBAGE, OTHER = "products", "garbage", "other"

_NOTES = "rayemu.drivers.notes"
_HOME = "rayemu.protocol.home:Home"
_SERVER = "rayemu.protocol.server"

TABLE: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "record",
        (
            *(f"{_NOTES}:ActorRecord.{name}" for name in ("frame", "control", "routed")),
            *(
                f"{_NOTES}:ModuleRecord.{name}"
                for name in ("worked", "encoded", "decoded", "sent", "computed")
            ),
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
        ),
    ),
    ("activation", ("rayemu.model.expert:activated",)),
    (PRODUCTS, ("rayemu.numerics.products:exact_matmul", "rayemu.numerics.products:_part")),
    (
        "gather",
        (
            f"{_SERVER}:_run_experts",
            f"{_SERVER}:run_job",
            "rayemu.protocol.slices:dispatch_of",
            "rayemu.protocol.lending:gather",
        ),
    ),
    ("combine", ("rayemu.model.reference:combine_from", "rayemu.model.reference:finish")),
    (
        "send",
        (
            "rayemu.protocol.wire:Wire.encode_pieces",
            "rayemu.cluster.port:Port.send",
            "rayemu.cluster.port:Port.release",
            "rayemu.cluster.link:ZmqLink.send",
            "rayemu.cluster.link:ZmqLink.wake",
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
            "rayemu.cluster.module_runtime:ModuleRuntime._gauge_load",
            "rayemu.cluster.coordinator_runtime:CoordinatorRuntime._feel_pulses",
            "rayemu.cluster.coordinator_runtime:CoordinatorRuntime._report",
            "rayemu.protocol.coordinator:CoordinatorMachine.tick",
            "rayemu.protocol.module:ModuleMachine.tick",
        ),
    ),
    ("stream", ("rayemu.running.profile:_taken",)),
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
    ("queue", ("rayemu.drivers.pump:ModulePump.work", "rayemu.drivers.pump:ModulePump.finished")),
    ("life", ("rayemu.drivers.pump:ModulePump.tick", "rayemu.drivers.pump:CoordinatorPump.tick")),
)
THREADS: Mapping[str, str] = {
    "heartbeat": "life"
}  # of which all that is in no function of the table is one phase
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
    GARBAGE: "Python's garbage collector",
    OTHER: "in no function of the table",
}


def found(name: str) -> tuple[Any, str, Callable[..., Any]]:
    """Whose attribute a function of the table is, its name there, and the function itself.

    Raises ImportError, AttributeError or TypeError where there is no such function.
    """
    module, _, path = name.partition(":")
    owner: Any = importlib.import_module(module)
    *above, last = path.split(".")
    for part in above:
        owner = getattr(owner, part)
    function = inspect.getattr_static(owner, last)
    if not inspect.isfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(f"{name} is no plain function")
    return owner, last, function


def phase_of(path: Iterable[str]) -> str:
    """The phase of a path of calls."""
    names = set(path)
    if GARBAGE in names:
        return GARBAGE
    return next((phase for phase, functions in TABLE if not names.isdisjoint(functions)), OTHER)
