"""The bound: the block's matrix products alone, with nothing between them and nothing to send.

Each expert's two products run as plain np.matmul into preallocated arrays, with as many rows as the routing
gives it; the activation, the gate and the combination are left out.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from rayemu.model.model import Model
from rayemu.model.spec import ModelSpec


class Gemms:
    """Products of some experts; `expert_rows` [batches][E] says how many rows each has in each batch."""

    def __init__(self, model: Model, experts: Sequence[int], expert_rows: list[list[int]]) -> None:
        spec = model.spec
        most = max((rows[e] for rows in expert_rows for e in experts), default=0)
        rng = np.random.default_rng(1)
        self.experts = [(e, model.layers[0].experts[e]) for e in experts]
        self.expert_rows = expert_rows
        self.x = rng.standard_normal((most, spec.d_model), dtype=np.float32)
        self.activated = rng.standard_normal((most, spec.d_ff), dtype=np.float32)
        self.hidden = np.zeros((most, self.experts[0][1].up.shape[1] if experts else 0), np.float32)
        self.y = np.zeros((most, spec.d_model), np.float32)

    def run(self, index: int) -> None:
        """Compute the products of batch `index`."""
        counts = self.expert_rows[index % len(self.expert_rows)]
        for e, expert in self.experts:
            n = counts[e]
            np.matmul(self.x[:n], expert.up, out=self.hidden[:n])
            np.matmul(self.activated[:n], expert.down, out=self.y[:n])


class GemmProcesses:
    """The same with one process and one BLAS thread per core, which share the experts."""

    def __init__(self, spec: ModelSpec, expert_rows: list[list[int]], processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Any] = []
        self.processes: list[Any] = []
        try:
            for number in range(processes):
                ours, theirs = context.Pipe()
                share = list(range(spec.experts))[number::processes]
                process = context.Process(target=_serve, args=(theirs, spec, share, expert_rows), daemon=True)
                process.start()
                theirs.close()
                self.pipes.append(ours)
                self.processes.append(process)
            for pipe in self.pipes:
                pipe.recv()
        except BaseException:
            self.close()
            raise

    def run(self, index: int) -> None:
        """Compute the products of batch `index` in all processes at once."""
        for pipe in self.pipes:
            pipe.send(index)
        for pipe in self.pipes:
            pipe.recv()

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(timeout=10)


def _serve(pipe: Any, spec: ModelSpec, experts: list[int], expert_rows: list[list[int]]) -> None:
    with threadpool_limits(1):
        gemms = Gemms(Model(spec), experts, expert_rows)
        gemms.run(0)
        try:
            pipe.send(None)
            while True:
                gemms.run(pipe.recv())
                pipe.send(None)
        except (EOFError, OSError, KeyboardInterrupt):
            return


@contextmanager
def gemm_processes(spec: ModelSpec, expert_rows: list[list[int]], processes: int) -> Iterator[GemmProcesses]:
    """Open `GemmProcesses` and close it at the end."""
    pool = GemmProcesses(spec, expert_rows, processes)
    try:
        yield pool
    finally:
        pool.close()
