"""The baseline: the same block as one would first write it with Ray, actors and object references.

Each of M actors holds its share of the experts and is home for a slice of the batch. A home routes its rows
and splits them by the module of the chosen expert; every (home, module) pair is one Ray object that the
module takes as an argument. The module answers with one object per home, and the home combines. The
arithmetic is the emulator's own (same routing, expert and combination functions, same BLAS threads), so only
the exchange differs. Nothing blocks inside an actor, all calls of a step are submitted at once, and several
steps may be under way.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from rayemu.model.expert import expert_forward
from rayemu.model.model import Model
from rayemu.model.reference import combine, prepare, route, shared_forward
from rayemu.model.spec import ModelSpec

from .workload import F32

Part = tuple[np.ndarray, np.ndarray]  # experts [n], rows [n, D]


class PlainModule:
    """One module: expert server and home. Experts are spread as by linear placement."""

    def __init__(self, spec: ModelSpec, module: int, modules: int, blas_threads: int | None = None) -> None:
        if blas_threads is not None:
            threadpool_limits(blas_threads)  # for the life of the process
        self.layer = Model(spec).layers[0]
        self.modules = modules
        self.expert_to_module = np.arange(spec.experts) * modules // spec.experts  # [E]
        for expert in np.flatnonzero(self.expert_to_module == module).tolist():
            self.layer.experts[expert]  # made now, not in the first step
        shared_forward(self.layer, np.zeros((1, spec.d_model), np.float32))  # every home has the shared one
        self.open: dict[int, tuple[F32, F32, np.ndarray]] = {}

    def split(self, step: int, x: F32, low: int, high: int) -> tuple[Part, ...] | Part:
        """Route the rows low..high of x [T, D] and cut them by destination: one part per module."""
        rows = x[low:high]
        experts, weights = route(self.layer, prepare(self.layer, rows))
        flat = experts.ravel()
        destination = self.expert_to_module[flat]  # [n*K]
        order = np.argsort(destination, kind="stable")
        edges = np.searchsorted(destination[order], np.arange(self.modules + 1))
        self.open[step] = rows, weights, order
        parts = []
        for module in range(self.modules):
            chosen = order[edges[module] : edges[module + 1]]
            parts.append((flat[chosen], rows[chosen // experts.shape[1]]))
        return tuple(parts) if self.modules > 1 else parts[0]

    def compute(self, *parts: Part) -> tuple[F32, ...] | F32:
        """Run the experts of this module on the parts of all homes; one reply per home."""
        experts = np.concatenate([e for e, _ in parts])
        rows = np.concatenate([r for _, r in parts])
        order = np.argsort(experts, kind="stable")
        y = np.empty_like(rows)
        edges = np.searchsorted(experts[order], np.arange(len(self.layer.experts) + 1))
        for expert in np.flatnonzero(np.diff(edges)).tolist():
            chosen = order[edges[expert] : edges[expert + 1]]
            y[chosen] = expert_forward(self.layer.experts[expert], rows[chosen])
        replies = np.split(y, np.cumsum([len(e) for e, _ in parts])[:-1])
        return tuple(replies) if len(parts) > 1 else replies[0]

    def combine(self, step: int, *replies: F32) -> F32:
        """Put the replies back in the rows' order and sum them up, the shared expert's too: the output."""
        x, weights, order = self.open.pop(step)
        rows = np.empty((order.size, replies[0].shape[1]), np.float32)
        rows[order] = np.concatenate(replies)
        return combine(weights, rows.reshape(*weights.shape, -1), shared_forward(self.layer, x))


class PlainRay:
    """The driver's side: submits the calls of a step and collects the slices."""

    def __init__(self, actors: list[Any], homes: int) -> None:
        modules = len(actors)
        self.homes = homes
        self.splits = [a.split.options(num_returns=modules) for a in actors[:homes]]
        self.computes = [a.compute.options(num_returns=homes) for a in actors]
        self.combines = [a.combine for a in actors[:homes]]
        self.steps = 0

    def forward(self, x: F32) -> F32:
        """One step on x [T, D]."""
        return self._collect(self._submit(x))

    def stream(self, batches: Iterable[F32], in_flight: int) -> Iterator[F32]:
        """Steps in order, several in flight."""
        waiting: deque[list[Any]] = deque()
        for x in batches:
            waiting.append(self._submit(x))
            if len(waiting) >= in_flight:
                yield self._collect(waiting.popleft())
        while waiting:
            yield self._collect(waiting.popleft())

    def _submit(self, x: F32) -> list[Any]:
        import ray

        step, self.steps = self.steps, self.steps + 1
        whole = ray.put(x)
        edges = [len(x) * h // self.homes for h in range(self.homes + 1)]
        parts = [
            _several(split.remote(step, whole, low, high))
            for split, low, high in zip(self.splits, edges[:-1], edges[1:], strict=True)
        ]  # [homes][modules]
        replies = [
            _several(compute.remote(*[part[m] for part in parts])) for m, compute in enumerate(self.computes)
        ]  # [modules][homes]
        return [
            finish.remote(step, *[reply[h] for reply in replies]) for h, finish in enumerate(self.combines)
        ]

    def _collect(self, slices: list[Any]) -> F32:
        import ray

        return np.concatenate(ray.get(slices))


def _several(references: Any) -> list[Any]:
    """Ray gives a list of references, but a single one bare."""
    return references if isinstance(references, list) else [references]


@contextmanager
def plain_ray(
    spec: ModelSpec, modules: int, homes: int, blas_threads: int, tokens: int
) -> Iterator[PlainRay]:
    """Start a local Ray with M actors, and stop it at the end. Workers run unniced, as the emulator's do.

    Its object store takes what several batches of `tokens` rows have under way, so that nothing is spilled.
    """
    batch = 4 * tokens * spec.d_model * 2 * (spec.top_k + 1)  # bytes: rows there and back, input and output
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not find this package
    with tempfile.TemporaryDirectory(prefix="bench-ray-", ignore_cleanup_errors=True) as directory:
        ray.init(
            address="local",
            num_cpus=modules,
            include_dashboard=False,
            object_store_memory=max(1 << 30, 8 * batch),
            log_to_driver=False,
            logging_level="CRITICAL",
            _temp_dir=directory,
        )
        try:
            actor = ray.remote(num_cpus=1)(PlainModule)
            actors = [actor.remote(spec, m, modules, blas_threads) for m in range(modules)]
            yield PlainRay(actors, homes)
        finally:
            ray.shutdown()
