"""The sections of a scenario, one class each; `Scenario` puts them together and checks them as a whole."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from rayemu.alltoall import EXCHANGES, ORDERS, REPLICAS
from rayemu.arrivals import ARRIVALS
from rayemu.compression import make_policy
from rayemu.model.presets import PRESETS
from rayemu.model.spec import ModelSpec
from rayemu.placement import PLACEMENTS
from rayemu.routing import ROUTERS
from rayemu.scenario.base import Bytes, Rate, Seconds, Section, Strategy, known_in
from rayemu.scenario.errors import Problem, refuse, show
from rayemu.streams import STREAMS
from rayemu.units import exact_bytes, exact_seconds

# Numbers beyond these are typing mistakes, and some would only fail as arrays are made.
MOST = 2**31 - 1
MOST_MODULES = 4096
Positive = Annotated[int, Field(ge=1, le=MOST)]
NotNegative = Annotated[int, Field(ge=0, le=MOST)]
Few = Annotated[int, Field(ge=1, le=2**16)]  # of layers, experts, batches under way: there is a row for each
Seed = Annotated[int, Field(ge=0, lt=2**63)]

_DIMENSIONS = ("d_model", "d_ff", "experts", "top_k")


def _not_allowed(key: str, value: str, allowed: str) -> Problem:
    return Problem((key,), f"{value} is not allowed; allowed: {allowed}")


class Model(Section):
    """What is run: a preset, dimensions, or a checkpoint folder.

    A dimension given beside a preset replaces the preset's. Widths are those of the full model; it runs at
    width / `scale`. Without a `seed` the run's is used.
    """

    preset: Annotated[str | None, known_in(PRESETS, "a preset")] = None
    checkpoint: Annotated[str, Field(min_length=1)] | None = None
    scale: Positive = 1
    layers: Few | None = None
    d_model: Positive | None = None
    d_ff: Positive | None = None
    experts: Few | None = None
    top_k: Few | None = None
    activation: Literal["swiglu", "gelu", "relu", "clamped_swiglu"] | None = None
    biases: bool | None = None
    weigh_input: bool | None = None
    shared_d_ff: NotNegative | None = None
    shared_gate: bool | None = None
    dense_layers: NotNegative | None = None
    dense_d_ff: NotNegative | None = None
    norm: bool | None = None
    norm_eps: float | None = Field(default=None, ge=1e-30, le=1)
    residual: bool | None = None
    seed: Seed | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        given = [key for key in ("preset", "checkpoint") if getattr(self, key) is not None]
        if len(given) == 2:
            raise ValueError("preset and checkpoint exclude each other; give one")
        if self.checkpoint is not None:
            refuse(
                Problem((key,), "is set by the checkpoint; leave it out")
                for key in type(self).model_fields
                if key in self.model_fields_set - {"checkpoint"} and getattr(self, key) is not None
            )
        elif not given:
            missing = [key for key in _DIMENSIONS if getattr(self, key) is None]
            if len(missing) == len(_DIMENSIONS):
                raise ValueError(f"give preset, or checkpoint, or {', '.join(_DIMENSIONS)}")
            refuse(Problem((key,), "is missing; a model without preset needs it") for key in missing)
        return self

    def spec(self, seed: int) -> ModelSpec:
        """The model as plain data; `seed` is used where the section has none. Raises ValueError."""
        if self.checkpoint is not None:
            from rayemu.model.checkpoint import load_checkpoint

            path = os.path.abspath(os.path.expanduser(self.checkpoint))
            return load_checkpoint(path, all_values=False).spec  # the modules look at their experts'
        own = {f.name for f in dataclasses.fields(ModelSpec)} - {"name", "scale", "checkpoint"}
        given = {
            key: value
            for key in own & set(type(self).model_fields)
            if (value := getattr(self, key)) is not None
        }
        given.setdefault("seed", seed)
        if self.preset is None:
            spec = ModelSpec(name="custom", **given)
        else:
            spec = dataclasses.replace(PRESETS[self.preset], **given)
        return spec.scaled(self.scale)


class Links(Section):
    """Bytes per second that a module can send on each link level; without a figure, as fast as it goes."""

    module: Rate | None = None
    node: Rate | None = None


class Cluster(Section):
    """Where it runs: modules by node, how frames travel, and when a silent module is given up."""

    nodes: Positive = 2
    modules_per_node: Positive = 4
    transport: Literal["zmq", "ray", "memory"] = "zmq"
    sockets: Literal["auto", "ipc", "tcp"] = "auto"
    address: Annotated[str, Field(pattern=r"^\S+$")] | None = None
    blas_threads: Few | None = None
    links: Links = Links()
    memory: Bytes | None = None
    heartbeat: Seconds = 0.04
    suspect_after: Seconds = 0.12
    evict_after: Seconds = 5.0
    replace: bool = True
    replace_after: Seconds = 0.3
    retry_after: Seconds = 0.25
    stall_after: Seconds = 60.0  # without any progress, a batch is given up

    @model_validator(mode="after")
    def _in_order(self) -> Cluster:
        order = [
            ("heartbeat", "at least", ""),
            ("retry_after", "at least", ""),
            ("suspect_after", "more than", "heartbeat"),
            ("evict_after", "at least", "suspect_after"),
            ("stall_after", "more than", "retry_after"),
        ]
        problems = []
        for key, relation, other in order:
            value, least = getattr(self, key), getattr(self, other) if other else 1e-3
            if value < least or (value == least and relation == "more than"):
                allowed = f"{relation} {exact_seconds(least)}" + (f", the {other}" if other else "")
                problems.append(_not_allowed(key, exact_seconds(value), allowed))
        if self.modules > MOST_MODULES:
            text = f"nodes x modules_per_node = {self.modules} is not allowed; allowed: up to {MOST_MODULES}"
            problems.append(Problem((), text))
        if self.transport == "memory" and (self.links.module or self.links.node):
            problems.append(
                Problem(("links",), "the memory transport moves no bytes; use transport zmq or ray")
            )
        refuse(problems)
        return self

    @property
    def modules(self) -> int:
        """Modules in all (M)."""
        return self.nodes * self.modules_per_node


class Stream(Strategy):
    """What is fed in: a strategy of `rayemu.streams` and its parameters.

    It has `batches(batch_tokens, d_model, seed)`, which gives activations [T, D] without end.
    """

    FAMILY = STREAMS
    WHAT = "a stream"
    kind: str = "zipf"


class Arrivals(Strategy):
    """When batches arrive: a strategy of `rayemu.arrivals` and its parameters.

    It has `times(seed)`, which gives when batches are meant to begin.
    """

    FAMILY = ARRIVALS
    WHAT = "a way to arrive"
    kind: str = "closed"


def span_of(text: str) -> tuple[int, int]:
    """The layers from the first up to, but not including, the second that a key of `layers` means."""
    first, _, last = text.partition("-")
    return int(first), int(last or first) + 1


def _layers(value: object) -> str:
    text = str(value)
    if not re.fullmatch(r"[0-9]{1,9}(-[0-9]{1,9})?", text) or span_of(text)[0] >= span_of(text)[1]:
        raise ValueError(f"{show(value)} is not allowed; allowed: a layer like 0, or some like 1-3")
    return "-".join(str(int(part)) for part in text.split("-"))


def _once(value: object) -> object:
    """Refuse mentions that become one key: of 0 and "0" one would be lost."""
    seen = Counter(re.sub(r"\b0+(?=\d)", "", str(key)) for key in value) if isinstance(value, dict) else {}
    if twice := [key for key, times in seen.items() if times > 1]:
        raise ValueError(f"{twice[0]} is given twice; leave one out")
    return value


class _OfRouter(Section):
    """A router's name and parameters, as they were given."""

    model_config = ConfigDict(extra="allow")
    kind: Annotated[str | None, known_in(ROUTERS, "a router")] = None

    @property
    def params(self) -> dict[str, Any]:
        """The router's parameters as given."""
        return dict(self.model_extra or {})

    @model_serializer(mode="wrap")
    def _with_nulls(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A parameter of null is one: it may stand in the place of the scenario's or the model's own."""
        return {**dump(self), **{name: None for name, value in self.params.items() if value is None}}


class LayerRouter(_OfRouter):
    """The router of some layers, and its parameters; without a `kind` it is the scenario's, changed."""

    def after(self, kind: str, params: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The router and its parameters, where the scenario's own are these."""
        own = self.kind or kind
        return own, {**(params if own == kind else {}), **self.params}


class Routing(_OfRouter):
    """Which experts a token goes to: a strategy of `rayemu.routing`, its parameters, and where it runs.

    Without a `kind` it is the model's own router; what is given then replaces that router's parameters.
    `layers` gives some layers routers of their own, as in {0: {kind: hash}, 1-3: {kind: expert_choice}}.
    """

    place: Literal["coordinator", "modules", "hybrid", "distributed"] = "coordinator"
    layers: Annotated[dict[Annotated[str, BeforeValidator(_layers)], LayerRouter], BeforeValidator(_once)] = (
        Field(default_factory=dict)
    )

    def by_layer(self, count: int) -> dict[int, LayerRouter]:
        """Which of `count` layers have a router of their own; of several mentions the last counts."""
        return {
            layer: router
            for text, router in self.layers.items()
            for layer in range(count)[slice(*span_of(text))]
        }


def _copies(value: object) -> object:
    counts = value.values() if isinstance(value, dict) else [value]
    keys = value if isinstance(value, dict) else []
    if not all(type(n) is int and n >= 1 for n in counts) or not all(type(e) is int and e >= 0 for e in keys):
        raise ValueError(
            f"{show(value)} is not allowed; allowed: a number from 1, or a mapping of expert to number"
        )
    return value


class Placement(Strategy):
    """Where experts live: a strategy of `rayemu.placement`, its parameters, and the copies of each expert."""

    FAMILY = PLACEMENTS
    WHAT = "a placement"
    kind: str = "linear"
    copies: Annotated[int | dict[int, int], BeforeValidator(_copies)] = 1

    def copies_per_expert(self, experts: int) -> np.ndarray:
        """Copies of each expert [E]; experts that a mapping leaves out have one."""
        if isinstance(self.copies, int):
            return np.full(experts, self.copies, dtype=np.int64)
        return np.array([self.copies.get(expert, 1) for expert in range(experts)], dtype=np.int64)


class Replicas(Strategy):
    """Which copy of an expert computes a row: a strategy of `rayemu.alltoall` and its parameters."""

    FAMILY = REPLICAS
    WHAT = "a replica choice"
    kind: str = "nearest"


def _codec(value: object) -> object:
    if not isinstance(value, (str, dict)):
        raise ValueError(f"{show(value)} is not a codec; write its name, or a pipeline like int8+zstd")
    for codec in make_policy(value).codecs:
        if not codec.row_local:
            raise ValueError(
                f"{codec} looks at several rows at once, and results would depend on how batches are cut; "
                "leave out delta and project here"
            )
    return value


CodecSpec = Annotated[str | dict[str, Any], BeforeValidator(_codec)]


class Directions(Section):
    """Codecs, or policies, for rows on their way to experts and back."""

    dispatch: CodecSpec = "raw"
    combine: CodecSpec = "raw"

    def __str__(self) -> str:
        both = self.dispatch, self.combine
        return str(both[0]) if both[0] == both[1] else f"{both[0]} out, {both[1]} back"


def _both_ways(value: object) -> object:
    """One codec stands for both directions."""
    if isinstance(value, Directions) or (isinstance(value, dict) and set(value) <= {"dispatch", "combine"}):
        return value
    return {"dispatch": _codec(value), "combine": value}


CodecPair = Annotated[Directions, BeforeValidator(_both_ways)]


class Codecs(Section):
    """What travels on each link level: between modules of a node, and between nodes."""

    module: CodecPair = Directions()
    node: CodecPair = Directions()


class Exchange(Strategy):
    """How rows travel: shape and parameters, order of sending, micro-batches, frame size, bytes under way.

    Micro-batches overlap: one travels while another computes.
    """

    FAMILY = EXCHANGES
    WHAT = "an exchange"
    kind: str = "hierarchical"
    order: Annotated[str, known_in(ORDERS, "an order of sending")] = "largest_first"
    micro_batches: Few = 1
    chunk: Bytes | None = None  # by default 16 MiB, or the window where that is less
    window: Bytes = 32 << 20
    min_slice_rows: Positive | None = None
    linger: Seconds = 0.1
    codec: Codecs = Codecs()

    @model_validator(mode="after")
    def _fits(self) -> Exchange:
        if self.chunk is not None and not 1 <= self.chunk <= self.window:
            allowed = f"1 B to {exact_bytes(self.window)}, the window"
            refuse([_not_allowed("chunk", exact_bytes(self.chunk), allowed)])
        return self


class Run(Section):
    """How much is run and how it is judged."""

    batches: Positive = 10
    batch_tokens: Positive = 512
    seed: Seed = 0
    check: Literal["exact", "none"] = "exact"
    on_lost_expert: Literal["fail", "drop"] = "fail"
    in_flight: Few = 4
    record: bool = True
