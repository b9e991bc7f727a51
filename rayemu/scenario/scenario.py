"""The scenario as a whole: loading, saving, and the checks that need more than one section."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import Field, ValidationError, model_validator

from rayemu.model.spec import ModelSpec
from rayemu.placement import Placement as Placed
from rayemu.placement import PlacementProblem
from rayemu.plain_yaml import SCALARS
from rayemu.protocol.client import most_tokens
from rayemu.routing import ROUTERS, Router, located, make_router
from rayemu.scenario.base import WITH_UNITS, Section, parameter_problems, without_defaults
from rayemu.scenario.errors import Problem, ScenarioError, lines, problem_of, refuse, show
from rayemu.scenario.faults import Fault
from rayemu.scenario.loading import override, parse
from rayemu.scenario.rebalance import Rebalance
from rayemu.scenario.sections import (
    Arrivals,
    Cluster,
    Exchange,
    Model,
    Placement,
    Replicas,
    Routing,
    Run,
    Stream,
    span_of,
)
from rayemu.streams.aim import Aimed
from rayemu.units import format_bytes

LARGEST_BYTES = 4 << 20  # of a scenario's text: /dev/zero has no end


class Scenario(Section):
    """One experiment. Make it with `load`, `from_dict` or `with_overrides`, which raise ScenarioError."""

    name: str = Field(default="scenario", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    model: Model
    cluster: Cluster = Cluster()
    stream: Stream = Stream()
    arrivals: Arrivals = Arrivals()
    routing: Routing = Routing()
    placement: Placement = Placement()
    replicas: Replicas = Replicas()
    rebalance: Rebalance | None = None
    exchange: Exchange = Exchange()
    faults: Annotated[tuple[Fault, ...], Field(strict=False)] = ()
    run: Run = Run()

    @classmethod
    def load(cls, source: str | Path) -> Scenario:
        """Reads a YAML file, a pipe, standard input ("-"), or a scenario of rayemu's own ("laptop")."""
        path, packaged = Path(os.path.expanduser(source)), cls.packaged()
        try:
            if str(source) == "-":
                text = _read(0)
            elif str(source) and path.exists() and not (path.is_dir() and str(source) in packaged):
                text = _read(path)
            elif path.name == str(source) and path.stem in packaged:
                file = resources.files("rayemu.scenarios").joinpath(f"{path.stem}.yaml")
                text = file.read_text(encoding="utf-8")
            else:
                raise ScenarioError(
                    [f"{source}: no such file; scenarios that come with rayemu: {', '.join(packaged)}"]
                )
        except UnicodeDecodeError as error:
            raise ScenarioError([f"{source}: cannot be read: it is not UTF-8 text, {error.reason}"]) from None
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL
            if isinstance(error, ScenarioError):
                raise
            why = getattr(error, "strerror", None) or error
            raise ScenarioError([f"{source}: cannot be read: {why}"]) from None
        return cls.from_dict(parse(text, str(source)))

    @classmethod
    def packaged(cls) -> list[str]:
        """The names of the scenarios that come with rayemu."""
        files = resources.files("rayemu.scenarios").iterdir()
        return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scenario:
        """Checks plain data, as YAML gives it."""
        if not isinstance(data, Mapping):
            raise ScenarioError(
                [f"scenario: {show(data)} is not allowed; it should be a mapping with a model in it"]
            )
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise ScenarioError(lines(error, cls)) from None

    def with_overrides(self, assignments: Iterable[str]) -> Scenario:
        """A changed copy: assignments such as "model.top_k=4"; values are YAML."""
        given = self.model_dump(by_alias=True, exclude_unset=True)
        return self.from_dict(override(without_defaults(self, given), assignments))

    def to_yaml(self) -> str:
        """The whole scenario, defaults included, so that `from_dict` of it is equal to this one."""
        data = self.model_dump(by_alias=True, exclude_none=True, context=WITH_UNITS)
        return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)

    @cached_property
    def spec(self) -> ModelSpec:
        """The model that runs: `model.spec(run.seed)` with the scenario's router in the place of its own."""
        spec = self.model.spec(self.run.seed)
        own = spec.router if self.routing.kind is None else self.routing.kind
        params = {**(spec.router_params if own == spec.router else {}), **self.routing.params}
        mentioned = self.routing.by_layer(spec.layers)
        by_layer = {layer: one.after(own, params) for layer, one in mentioned.items()}
        layers = {layer: (kind, located(ROUTERS[kind], of)) for layer, (kind, of) in by_layer.items()}
        params = located(ROUTERS[own], params)
        return dataclasses.replace(spec, router=own, router_params=params, layer_routers=layers)

    @model_validator(mode="after")
    def _possible(self) -> Scenario:
        try:
            spec = self.spec
        except (ValueError, OSError) as error:
            problem = problem_of(ValueError(str(error)), "model")
            if self.model.checkpoint is not None and problem.path == ("model",):
                problem = Problem(("model", "checkpoint"), problem.text)
            refuse([problem])
            raise AssertionError("unreachable") from error
        refuse([*self._routing_problems(spec), *self._copies_problems(spec), *self._fault_problems()])
        unplaced = list(self._placement_problems(spec))
        refuse(
            [
                *unplaced,
                *self._stream_problems(spec),
                *self._arrival_problems(),
                *self._batch_problems(spec),
                *(self._memory_problems(spec) if not unplaced else ()),
            ]
        )
        return self

    def _routing_problems(self, spec: ModelSpec) -> Iterable[Problem]:
        routing = self.routing
        path: tuple[str, ...] = ("routing",)
        with_experts = set(range(spec.dense_layers, spec.layers))
        others = with_experts - set(routing.by_layer(spec.layers))
        given: list[tuple[tuple[str, ...], str, dict[str, Any], dict[str, Any], set[int]]] = [
            (path, spec.router, routing.params, dict(spec.router_params), others)
        ]
        for text, other in routing.layers.items():
            path = "routing", "layers", text
            first, end = span_of(text)
            if end > spec.layers:
                return [Problem(path, f"there is no layer {end - 1}; the model has {spec.layers}")]
            if first < spec.dense_layers:
                allowed = f"{spec.dense_layers} to {spec.layers - 1}, which have experts"
                return [Problem(path, f"layer {first} is dense and routes nothing; allowed: {allowed}")]
            of = set(range(first, end))
            kind, params = other.after(spec.router, spec.router_params)
            given.append((path, kind, other.params, params, of & with_experts))
        for path, kind, own, params, layers in given:
            keys = ("kind", "place", "layers") if path == ("routing",) else ("kind",)
            problems = parameter_problems(
                ROUTERS[kind], kind, own, without=("top_k",), own=keys, family=ROUTERS
            )
            if problems:
                return [Problem((*path, *problem.path), problem.text) for problem in problems]
            try:
                router = make_router(kind, spec.experts, top_k=spec.top_k, **params)
                router.check_run(sorted(layers), self.run.batches, self.run.batch_tokens)
            except ValueError as error:
                problem = problem_of(error, "routing")
                return [Problem((*path, *problem.path[1:]), problem.text)]
            if spec.weigh_input and (most := router.most(spec.experts)) > 1:
                what = f"{kind} is not allowed, since it gives a token up to {most} experts"
                why = "where model.weigh_input weighs the row that they would share"
                return [Problem((*path, "kind"), f"{what}; allowed: routers of one, {why}")]
            possible = _places(router)
            if routing.place not in possible:
                why = _WHY["modules" if router.scope == "batch" else routing.place]
                what = f"{routing.place} is not allowed with {kind}, {why}"
                return [Problem(("routing", "place"), f"{what}; allowed: {' or '.join(possible)}")]
        return []

    def _copies_problems(self, spec: ModelSpec) -> Iterable[Problem]:
        copies, modules = self.placement.copies, self.cluster.modules
        for expert, count in copies.items() if isinstance(copies, dict) else [(None, copies)]:
            path = ("placement", "copies") if expert is None else ("placement", "copies", expert)
            if expert is not None and expert >= spec.experts:
                yield Problem(path, f"there is no expert {expert}; the model has {spec.experts}")
            elif count > modules:
                yield Problem(path, f"{count} is not allowed; allowed: 1 to {modules}, the number of modules")

    def _fault_problems(self) -> Iterable[Problem]:
        for position, fault in enumerate(self.faults):
            if isinstance(fault.module, int) and not 0 <= fault.module < self.cluster.modules:
                text = f"{fault.module} is not allowed; allowed: 0 to {self.cluster.modules - 1}, or random"
                yield Problem(("faults", position, "module"), text)

    def _stream_problems(self, spec: ModelSpec) -> Iterable[Problem]:
        stream = self.stream.build()
        try:
            if isinstance(stream, Aimed):
                stream.check(spec)
        except ValueError as error:
            yield problem_of(error, "stream")

    def _arrival_problems(self) -> Iterable[Problem]:
        times, batches = self.arrivals.build().times(self.run.seed), self.run.batches
        if isinstance(times, list) and len(times) < batches:
            text = f"{batches} is not allowed; allowed: 1 to {len(times)}, the times that arrivals gives"
            yield Problem(("run", "batches"), text)

    def _placement_problems(self, spec: ModelSpec) -> Iterable[Problem]:
        """What placement and planner have against the model and the modules, tried without loads."""
        problem = self.placement_problem(spec)
        try:
            placed = self.placed()
        except (ValueError, ImportError) as error:
            yield problem_of(ValueError(str(error)), "placement")
            return
        if self.rebalance is not None:
            known = dataclasses.replace(problem, present=placed, variances=np.zeros_like(problem.loads))
            try:
                self.rebalance.planner.build().place(known)
            except (ValueError, ImportError) as error:
                found = problem_of(ValueError(str(error)), "planner")
                yield Problem(("rebalance", *found.path), found.text)

    def _batch_problems(self, spec: ModelSpec) -> Iterable[Problem]:
        if self.run.batch_tokens > (most := most_tokens(spec)):
            text = f"{self.run.batch_tokens} is not allowed; allowed: 1 to {most}, what a frame holds"
            yield Problem(("run", "batch_tokens"), text)

    def _memory_problems(self, spec: ModelSpec) -> Iterable[Problem]:
        limit = self.cluster.memory
        if limit is None:
            return
        needs = self.module_bytes(spec)
        most = int(needs.argmax())
        if needs[most] > limit:
            text = (
                f"{format_bytes(limit)} is not enough: module {most} needs {format_bytes(needs[most])}; "
                "raise it or model.scale, add modules, or take fewer layers or copies"
            )
            yield Problem(("cluster", "memory"), text)

    def placement_problem(self, spec: ModelSpec | None = None) -> PlacementProblem:
        """What the placement is given before any load is known: every expert counts alike."""
        spec = spec or self.spec
        copies = np.zeros((spec.layers, spec.experts), np.int64)
        copies[spec.dense_layers :] = self.placement.copies_per_expert(spec.experts)
        cluster = self.cluster
        return PlacementProblem(
            loads=(copies > 0).astype(np.float64),
            copies=copies,
            module_to_node=np.repeat(np.arange(cluster.nodes, dtype=np.int32), cluster.modules_per_node),
            slots=int(copies[-1].sum()),
            expert_bytes=spec.expert_bytes(),
            memory=None if cluster.memory is None else np.full(cluster.modules, float(cluster.memory)),
            rng=np.random.default_rng([self.run.seed, 1]),
        )

    def placed(self) -> Placed:
        """The slots of every expert copy, as `placement` says."""
        return self._placed

    @cached_property
    def _placed(self) -> Placed:
        placed: Placed = self.placement.build().place(self.placement_problem())
        return placed

    def module_bytes(self, spec: ModelSpec | None = None, placement: Placed | None = None) -> np.ndarray:
        """Bytes of weights and activations that each module needs [M], at the width it runs at.

        With the scenario's own placement, or another.
        """
        spec = spec or self.spec
        modules = self.cluster.modules
        placed = self.placed() if placement is None else placement
        routed = np.bincount(placed.module, minlength=modules) * spec.expert_bytes()  # [M]
        common = spec.model_bytes() - spec.experts * spec.moe_layers * spec.expert_bytes()
        rows = -(-self.run.batch_tokens // modules)
        return routed + common + self.run.in_flight * spec.activation_bytes(rows)


def _places(router: Router) -> list[str]:
    """Where a router's choices can be made."""
    if router.scope == "batch":
        return ["coordinator"]
    hybrid = [] if router.group_limit is None else ["hybrid"]
    return ["coordinator", "modules", *hybrid, *(["distributed"] if router.merges else [])]


_WHY = {
    "modules": "which chooses for a whole batch",
    "hybrid": "which limits no choice to some groups of experts (top_groups below groups)",
    "distributed": "whose choices need more than the best scores of each module",
}


def _read(file: Path | int) -> str:
    """The text of a file, or of an open one by its number."""
    with open(file, "rb", closefd=isinstance(file, Path)) as opened:
        content = opened.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise ValueError(f"it has more than {format_bytes(LARGEST_BYTES)}, which no scenario has")
    return content.decode("utf-8")


class _Dumper(yaml.SafeDumper):
    """Writes short mappings and lists on one line, as the scenarios are written by hand."""


for _tag, _pattern, _first in SCALARS:  # beside those of YAML 1.1, so that either reads text back as text
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_list(list(value)))
