"""Graphs of events for tests: written by hand, drawn, and of a planned step."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np

from rayemu.pricing.graph import COMBINE, DISPATCH, EXPERT, MESSAGE, OTHER, REPLY, ROUTE, EventGraph

TOY = Path(__file__).parent / "toy.yaml"


class Draft:
    """A graph that is written event by event; each call returns the event's number."""

    def __init__(self, nodes: list[int]) -> None:
        self.nodes = nodes
        self.events: list[dict[str, float]] = []
        self.causes: list[list[int]] = []

    def add(
        self, kind: int, src: int, dst: int, after: list[int] | int | None = None, role: int = 0,
        batch: int = 0, layer: int = 0, expert: int = -1, rows: int = 1, size: float = 0.0,
    ) -> int:  # fmt: skip
        after = [] if after is None else [after] if isinstance(after, int) else after
        facts = dict(
            kind=kind, role=role, src=src, dst=dst, batch=batch, layer=layer, expert=expert, rows=rows
        )
        self.events.append({**facts, "bytes": size})
        self.causes.append(sorted(after))
        return len(self.events) - 1

    def route(self, module: int, rows: int, **more: object) -> int:
        return self.add(ROUTE, module, module, rows=rows, **more)

    def send(self, src: int, dst: int, size: float, role: int = DISPATCH, **more: object) -> int:
        return self.add(MESSAGE, src, dst, role=role, size=size, **more)

    def expert(self, module: int, expert: int, rows: int, **more: object) -> int:
        return self.add(EXPERT, module, module, expert=expert, rows=rows, **more)

    def combine(self, module: int, rows: int, **more: object) -> int:
        return self.add(COMBINE, module, module, rows=rows, **more)

    def graph(self) -> EventGraph:
        def column(name: str, dtype: type) -> np.ndarray:
            return np.array([event[name] for event in self.events], dtype)

        columns = {
            "kind": np.uint8, "role": np.uint8, "src": np.int16, "dst": np.int16, "batch": np.int32,
            "layer": np.int16, "expert": np.int32, "rows": np.int64, "bytes": np.float64,
        }  # fmt: skip
        rest = {"flops": np.zeros(len(self.events)), "request": np.full(len(self.events), -1)}
        known = {field.name for field in fields(EventGraph)}
        return EventGraph(
            **{name: column(name, dtype) for name, dtype in columns.items()},
            **{name: value for name, value in rest.items() if name in known},
            cause_start=np.cumsum([0, *map(len, self.causes)]).astype(np.int64),
            causes=np.array([c for causes in self.causes for c in causes], np.int64),
            module_to_node=np.array(self.nodes, np.int32),
        )


def drawn(seed: int, events: int = 120, modules: int = 6, nodes: int = 3) -> EventGraph:
    """Any graph at all: events of all kinds, in no order of levels, with up to four causes each."""
    rng = np.random.default_rng(seed)
    draft = Draft(sorted(rng.integers(nodes, size=modules).tolist()))
    for number in range(events):
        after = rng.choice(number, size=min(number, int(rng.integers(5))), replace=False).tolist()
        module, other = rng.integers(modules, size=2).tolist()
        common = dict(after=after, batch=int(rng.integers(3)), rows=int(rng.integers(1, 40)))
        kind = int(rng.integers(6))
        if kind == ROUTE:
            draft.route(int(rng.integers(-1, modules)), **common)
        elif kind == EXPERT:
            draft.expert(module, int(rng.integers(-1, 8)), **common)
        elif kind == COMBINE:
            draft.combine(module, **common)
        else:
            ends = [(module, other), (-1, other), (module, -1), (-2, -1), (module, -2), (module, module)]
            src, dst = ends[int(rng.choice(6, p=[0.6, 0.1, 0.1, 0.05, 0.05, 0.1]))]
            size = float(rng.integers(0, 4000) * 1000)
            draft.send(src, dst, size, role=int(rng.integers(3)), **common)
    return draft.graph()


def step(
    batches: int = 2, modules: int = 4, per_node: int = 2, experts: int = 8, top_k: int = 2, rows: int = 16,
    layers: int = 2, d_model: int = 512, seed: int = 0, in_flight: int = 1,
) -> EventGraph:  # fmt: skip
    """Steps as a run has them: submitted, dealt to homes, routed there, dispatched, computed, combined."""
    rng = np.random.default_rng(seed)
    draft = Draft([module // per_node for module in range(modules)])
    ended: list[list[int]] = []
    width = 4.0 * d_model
    for batch in range(batches):
        freed = ended[batch - in_flight] if batch >= in_flight else []
        submit = draft.send(-2, -1, rows * width, OTHER, after=freed, batch=batch)
        mine = rows // modules
        at = [draft.send(-1, home, mine * width, OTHER, after=submit, batch=batch) for home in range(modules)]
        for layer in range(layers):
            where = dict(batch=batch, layer=layer)
            route = [draft.route(home, mine, after=at[home], **where) for home in range(modules)]
            loads: dict[int, dict[int, int]] = {}
            arrived: dict[tuple[int, int], int] = {}
            for home in range(modules):
                chosen = [rng.permutation(experts)[:top_k] for _ in range(mine)]
                for expert, count in zip(*np.unique(np.concatenate(chosen), return_counts=True), strict=True):
                    loads.setdefault(int(expert), {})[home] = int(count)
                for module in range(modules):
                    sent = sum(c.get(home, 0) for e, c in loads.items() if e % modules == module)
                    if sent:
                        arrived[home, module] = draft.send(
                            home, module, sent * width, after=route[home], **where
                        )
            done: dict[tuple[int, int], list[int]] = {}
            for expert, homes in loads.items():
                module = expert % modules
                after = [arrived[home, module] for home in homes]
                job = draft.expert(module, expert, sum(homes.values()), after=after, **where)
                for home in homes:
                    done.setdefault((home, module), []).append(job)
            back: dict[int, list[int]] = {}
            for (home, module), jobs in done.items():
                sent = sum(c.get(home, 0) for e, c in loads.items() if e % modules == module)
                back.setdefault(home, []).append(
                    draft.send(module, home, sent * width, REPLY, after=jobs, **where)
                )
            at = [draft.combine(home, mine, after=back[home], **where) for home in range(modules)]
        ended.append(
            [
                draft.send(home, -2, mine * width, OTHER, after=at[home], batch=batch)
                for home in range(modules)
            ]
        )
    return draft.graph()
