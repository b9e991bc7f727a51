"""`rayemu routers`: every router on the same activations, and what its choices bring and cost, side by side.

Shapes: T tokens of a batch, B batches, K choices per token, E experts, M modules, L layers, D model width.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from rayemu.alltoall import cut_slices
from rayemu.balance.metrics import max_over_mean
from rayemu.model.model import Layer, Model
from rayemu.model.spec import ModelSpec
from rayemu.numerics import F32, denormals_kept
from rayemu.report.fitting import fitted
from rayemu.report.pareto import Point, can_be_drawn, page
from rayemu.routing import ROUTERS, Context, Gate, Router, Routing, make_router
from rayemu.scenario import Scenario, ScenarioError
from rayemu.scenario.base import parameter_problems
from rayemu.scenario.loading import override
from rayemu.streams.aim import aim
from rayemu.study.routed import forward, holders_of, moe, output_error, unlike
from rayemu.units import format_seconds

BASELINE = "softmax_topk"  # whose time others are compared with
LONG_WALL_S = 20.0  # what takes longer is said before
_GROUPS = 8  # at most, where the model has none of its own
_FROM_MODEL = ("renormalise", "scaling", "groups", "top_groups")  # what is the model's in any router


@dataclass(frozen=True)
class Measured:
    """What one router came to; shares are of the choices that the model's own router makes.

    `agreement`, `balance` (busiest expert over the mean), `remote` and `remote_node` (choices whose expert is
    not on the token's home module, or node), `dropped` (choices fewer than the model's own gives a token),
    `without` (tokens without any, of all) and `time_ratio` (to softmax_topk, wall time on this machine) are
    of the same activations in every layer, those of the model's own router; `output_error` (relative,
    Frobenius) is of the whole stack. `refused` says why there is nothing else. `best` says in what no other
    router beats it without being worse in output error: "remote" choices, or "balance".
    """

    router: str
    refused: str = ""
    scope: str = ""
    agreement: float = 0.0
    output_error: float = 0.0
    balance: float = 0.0
    remote: float = 0.0
    remote_node: float = 0.0
    dropped: float = 0.0
    without: float = 0.0
    time_ratio: float = 0.0
    counts: Mapping[str, float] = field(default_factory=dict)
    best: tuple[str, ...] = ()


class _Listening(Router):
    """The model's own router in a layer, which keeps what it was asked and what it said."""

    def __init__(self, router: Router) -> None:
        self.router, self.top_k = router, router.top_k
        self.asked: list[F32] = []  # [B] of rows [T, D]
        self.said: list[Routing] = []  # [B]

    def new_state(self, experts: int) -> Any:
        return self.router.new_state(experts)

    def route(self, x: F32, gate: Gate, context: Context | None = None) -> Routing:
        self.asked.append(x)
        self.said.append(self.router.route(x, gate, context))
        return self.said[-1]


class Stage:
    """A scenario's model and stream, run through once with the model's own router, to measure others on.

    Raises ScenarioError for a stream or a model that cannot be had.
    """

    def __init__(self, scenario: Scenario, batches: int, tokens: int | None = None) -> None:
        self.scenario, self.spec = scenario, scenario.spec
        rows, seed, spec = tokens or scenario.run.batch_tokens, scenario.run.seed, self.spec
        self.model = Model(spec)
        modules = scenario.cluster.modules
        self.holders = holders_of(scenario.placed(), spec.layers, spec.experts, modules)  # [L, M, E]
        self.module_to_node = scenario.placement_problem().module_to_node  # [M]
        nodes = [self.module_to_node == node for node in range(scenario.cluster.nodes)]
        on_node = np.stack([self.holders[:, node].any(axis=1) for node in nodes], axis=1)  # [L, N, E]
        self.near = on_node[:, self.module_to_node]  # [L, M, E]: held on the module's node
        stream = aim(scenario.stream.build(), spec, scenario.placed(), seed)
        self.batches = list(islice(stream.batches(rows, spec.d_model, seed), batches))
        self.homes = [self._homes(number, rows) for number in range(batches)]  # [B] of [T]
        heard: list[Router] = [_Listening(layer.router) for layer in self.model.layers]
        self.heard: dict[int, _Listening] = {}
        self.made: dict[tuple[int, int], F32] = {}  # by layer and batch, what its experts gave [T, D]
        self.took = 0.0  # wall seconds of the quickest batch, for all: the first also makes weights
        self.wanted = self._outputs(heard, {})
        self.heard = {
            layer.index: one
            for layer, one in zip(self.model.layers, heard, strict=True)
            if layer.has_experts and isinstance(one, _Listening)
        }

    def _homes(self, batch: int, tokens: int) -> npt.NDArray[np.int16]:
        """The home of each token [T] as the ledger deals slices out while all modules live."""
        modules = self.scenario.cluster.modules
        returned = tokens * self.scenario.spec.top_k * self.scenario.spec.d_model * 4
        cuts = cut_slices(tokens, modules, self.scenario.exchange.min_slice_rows, returned)
        homes = (batch + np.arange(len(cuts)) * max(1, modules // len(cuts))) % modules
        return np.repeat(homes, [high - low for low, high in cuts]).astype(np.int16)

    def _outputs(self, routers: Sequence[Router], counts: dict[str, float]) -> F32:
        """The stack's outputs [B T, D] under these routers, one to a layer."""
        states: dict[int, Any] = {}
        where = self.holders, self.module_to_node
        found, took = [], []
        for batch, (x, home) in enumerate(zip(self.batches, self.homes, strict=True)):
            begun, block = time.perf_counter(), partial(self._block, batch)
            found.append(forward(self.model, x, routers, home, *where, batch, states, counts, block)[0])
            took.append(time.perf_counter() - begun)
        self.took = self.took or min(took) * len(took)
        return np.concatenate(found)

    def _block(self, batch: int, layer: Layer, x: F32, routing: Routing) -> F32:
        """What the layer's experts give [T, D]: rows that are as with the model's own router are kept."""
        key, heard = (layer.index, batch), self.heard.get(layer.index)
        if heard is None:
            self.made[key] = moe(layer, x, routing)
            return self.made[key]
        new = unlike(x, routing, heard.asked[batch], heard.said[batch])
        y = self.made[key].copy()
        y[new] = moe(layer, x[new], Routing(routing.experts[new], routing.weights[new]))
        return y

    def measure(self, name: str, router: Router, warn: Callable[[str], None] = lambda text: None) -> Measured:
        """What a router comes to; `warn` is told before it takes long."""
        counts: dict[str, float] = {}
        same, slower, uneven = self._on_the_same_activations(name, router, counts, warn)
        y = self._outputs([router] * len(self.model.layers), {})
        made, agreed, away, far, missing, without, tokens = same.tolist()
        return Measured(
            name,
            scope=router.scope,
            agreement=agreed / made if made else 1.0,
            output_error=output_error(y, self.wanted),
            balance=float(np.mean(uneven)) if uneven else 1.0,
            remote=away / made if made else 0.0,
            remote_node=far / made if made else 0.0,
            dropped=missing / made if made else 0.0,
            without=without / tokens if tokens else 0.0,
            time_ratio=float(np.median(slower)) if slower else 1.0,
            counts=counts,
        )

    @denormals_kept()
    def _on_the_same_activations(
        self, name: str, router: Router, counts: dict[str, float], warn: Callable[[str], None]
    ) -> tuple[npt.NDArray[np.int64], list[float], list[float]]:
        """Sums over batches and layers; time against the baseline, and imbalance, of each."""
        same, slower, uneven = np.zeros(7, np.int64), [], []
        plain = make_router(BASELINE, self.spec.experts, top_k=self.spec.top_k)
        states = {index: router.new_state(self.spec.experts) for index in self.heard}
        for batch, home in enumerate(self.homes):
            for index, heard in self.heard.items():
                x, own, gate = heard.asked[batch], heard.said[batch].experts, self.model.layers[index].gate
                assert gate is not None  # it is a layer with experts
                where = home, self.holders[index], self.module_to_node
                context = Context(index, batch, *where, states[index], counts)
                plain.route(x, gate)  # the rows are in the cache of both
                begun = time.perf_counter()
                plain.route(x, gate)
                between = time.perf_counter()
                chosen = router.route(x, gate, context).experts  # [T, K]
                took = time.perf_counter() - between
                slower.append(took / max(between - begun, 1e-9))
                rest = took * (2 * len(self.homes) * len(self.heard) - 1)  # it chooses for the outputs, too
                if len(slower) == 1 and rest > LONG_WALL_S:
                    less = "fewer --tokens or --batches take less"
                    warn(f"{name} takes about {format_seconds(rest)} to choose; {less}")
                loads = np.bincount(chosen[chosen >= 0], minlength=self.spec.experts)  # [E]
                uneven.append(float(max_over_mean(loads)))
                row, place = np.nonzero(chosen >= 0)
                expert, at = chosen[row, place], home[row]
                per_token = np.bincount(row, minlength=len(x))  # [T]
                agreed = (own[:, :, None] == chosen[:, None, :]) & (own >= 0)[:, :, None]
                same += (
                    (own >= 0).sum(),
                    agreed.sum(),
                    (~self.holders[index][at, expert]).sum(),
                    (~self.near[index][at, expert]).sum(),
                    np.maximum((own >= 0).sum(axis=1) - per_token, 0).sum(),
                    (per_token == 0).sum(),
                    len(x),
                )
        return same, slower[len(self.heard) :] or slower, uneven  # the first batch warms up


def study(
    stage: Stage,
    asked: Sequence[str],
    begins: Callable[[str], None] = lambda text: None,
    warn: Callable[[str], None] = lambda text: None,
) -> list[Measured]:
    """Every router that is asked for, as NAME or NAME:PARAMETER=VALUE,...; all of the table without.

    `begins` is told which one it is at, `warn` of what will take long. One that cannot serve the scenario is
    there with its reason. Raises ScenarioError for a name or parameter that there is not.
    """
    own = stage.spec.router
    names = list(asked) or [own, *(kind for kind in ROUTERS if kind != own)]
    found = []
    if (about := len(names) * stage.took / 2) > LONG_WALL_S:  # about half of them change most rows
        warn(f"measuring {len(names)} routers takes about {format_seconds(about)}; fewer --batches take less")
    for number, name in enumerate(names):
        begins(f"measuring {name}, {number + 1} of {len(names)}")
        kind, _, given = name.partition(":")
        if kind not in ROUTERS:
            raise ScenarioError([f"--router: {kind!r} is not allowed; allowed: {', '.join(ROUTERS)}"])
        changes = _given(kind, given)
        try:
            params = {**sensible(kind, stage.spec), **changes}
            router = make_router(kind, stage.spec.experts, top_k=stage.spec.top_k, **params)
            layers = range(stage.spec.dense_layers, stage.spec.layers)
            router.check_run(layers, len(stage.batches), len(stage.batches[0]))
            found.append(stage.measure(name, router, warn))
        except ValueError as error:
            found.append(Measured(name, refused=str(error)))
    return with_best(found)


def sensible(kind: str, spec: ModelSpec) -> dict[str, Any]:
    """Parameters for a router of a model's experts: the model's own where it has such, else its defaults.

    Groups are up to 8 of two experts or more, half of them open, or as many as K choices need.
    """
    own = make_router(spec.router, spec.experts, top_k=spec.top_k, **spec.router_params)
    if kind == spec.router:
        return dict(spec.router_params)
    taken = {entry.name for entry in fields(ROUTERS[kind])}  # type: ignore[arg-type]  # all are dataclasses
    params = {name: getattr(own, name) for name in _FROM_MODEL if name in taken and hasattr(own, name)}
    if "groups" in taken and params.get("groups", 1) == 1:
        groups = next(
            g for g in range(min(_GROUPS, max(spec.experts // 2, 1)), 0, -1) if spec.experts % g == 0
        )
        params["groups"] = groups
        if "top_groups" in taken:
            params["top_groups"] = max(-(-groups // 2), -(-spec.top_k * groups // spec.experts))
    return params


def _given(kind: str, text: str) -> dict[str, Any]:
    """A router's parameters in "a=1,b=2", values as in YAML. Raises ScenarioError."""
    data: dict[str, Any] = override({}, text.split(",")) if text else {}
    problems = parameter_problems(ROUTERS[kind], kind, data, without=("top_k",))
    if problems:
        where = [".".join(map(str, problem.path)) for problem in problems]
        raise ScenarioError(
            [f"--router: {kind}: {at}: {one.text}" for at, one in zip(where, problems, strict=True)]
        )
    return data


def with_best(lines: Sequence[Measured]) -> list[Measured]:
    """Mark those that are not dominated (Pareto): as good in both and better in one, no other is."""
    ran = [line for line in lines if not line.refused]
    marks = {
        what: undominated([(line.output_error, getattr(line, what)) for line in ran])
        for what in ("remote", "balance")
    }
    best = {id(line): tuple(what for what in marks if marks[what][at]) for at, line in enumerate(ran)}
    return [line if line.refused else replace(line, best=best[id(line)]) for line in lines]


def undominated(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of points of two costs, those that no other is as good as in both and better than in one."""
    return [
        not any(a <= x and b <= y and (a < x or b < y) for a, b in points if (a, b) != (x, y))
        for x, y in points
    ]


def report(
    scenario: Scenario,
    asked: Sequence[str],
    batches: int,
    tokens: int | None,
    as_json: bool,
    plot: Path | None = None,
) -> list[Measured]:
    """Measure and print, and draw the page `plot`. Raises ScenarioError, before it measures; OSError."""
    console = Console()
    if plot is not None:
        if why := can_be_drawn():
            raise ScenarioError([f"--plot: {why}"])
        if plot.is_dir():
            raise ScenarioError(
                [f"--plot: {plot} is a folder; name a file in it, like {plot / 'routers.html'}"]
            )
        plot.parent.mkdir(parents=True, exist_ok=True)
    told = Console(stderr=True)
    with told.status("measuring") as status:  # shown on terminals only
        stage = Stage(scenario, batches, tokens)
        warn = partial(told.print, highlight=False, markup=False, soft_wrap=True)
        lines = study(stage, asked, status.update, warn)
    spec = scenario.spec
    title = (
        f"{scenario.name}: {len(stage.wanted)} tokens in {batches} batches, E={spec.experts} K={spec.top_k}, "
        f"{len(stage.heard)} layers with experts, beside its own {spec.router}"
    )
    if plot is not None:
        refused = [f"{line.router}: {line.refused}" for line in lines if line.refused]
        plot.write_text(page([_point(line) for line in lines if not line.refused], title, refused), "utf-8")
    if as_json:
        facts = {"scenario": scenario.name, "own_router": spec.router, "tokens": len(stage.wanted)}
        print(json.dumps({**facts, "routers": [_as_data(line) for line in lines]}, indent=1))
        return lines
    ran = [line for line in lines if not line.refused]
    rows = [(line.router, *(show(getattr(line, key)) for key, _, show in COLUMNS)) for line in ran]
    for table in fitted(
        console.width, title, ("router", *(head for _, head, _ in COLUMNS)), rows, style="cyan"
    ):
        console.print(table)
    for line in lines:
        if line.refused:
            console.print(f"{line.router}: {line.refused}", highlight=False, markup=False)
        elif line.counts:
            console.print(f"{line.router}: {_counts(line)}", highlight=False, markup=False)
    console.print(
        "on the activations of the model's own router: agreement with it, experts' max/mean, remote and "
        f"dropped choices, tokens without any, time of routing measured here (of {BASELINE}: 1). Of the "
        "whole stack: output error. Best: no router has less error with as few remote choices (r), or as "
        "even loads (b)",
        style="dim",
        highlight=False,
    )
    if plot is not None:
        console.print(f"Drawn in {plot}", highlight=False, markup=False)
    return lines


def _counts(line: Measured) -> str:
    return ", ".join(f"{name} {value:,.0f}" for name, value in sorted(line.counts.items()))


def _point(line: Measured) -> Point:
    row = {key: show(getattr(line, key)) for key, _, show in COLUMNS} | {"counts": _counts(line) or "-"}
    costs = line.output_error, 100 * line.remote, line.balance
    return Point(line.router, line.scope, *costs, line.best, row)


def _share(value: float) -> str:
    return f"{value:.1%}"


def _as_data(line: Measured) -> dict[str, Any]:
    if line.refused:
        return {"router": line.router, "refused": line.refused}
    return {name: value for name, value in asdict(line).items() if name != "refused"}


COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("agreement", "agree-\nment", _share),
    ("output_error", "output\nerror", lambda value: "0" if not value else f"{value:.2g}"),
    ("balance", "max/\nmean", lambda value: f"{value:.2f}"),
    ("remote", "remote\nmodule", _share),
    ("remote_node", "remote\nnode", _share),
    ("dropped", "drop-\nped", _share),
    ("without", "with-\nout", _share),
    ("time_ratio", "\ntime", lambda value: f"x{value:.2f}"),
    ("best", "\nbest", lambda value: "".join(name[0] for name in value) or "-"),
)
