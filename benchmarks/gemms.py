"""The bound: the block's matrix products alone, with nothing between them and nothing to send.

The two products of each expert run as plain np.matmul into preallocated arrays, with as many rows as the
routing gives it, those of a shared expert with all rows; the activation, the gate and the combination are
left out.

Shapes: an FFN is an expert or the shared expert, which is the last one.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from rayemu.model.expert import Expert
from rayemu.model.model import Model
from rayemu.model.spec import ModelSpec


def ffn_of(model: Model, number: int) -> Expert:
    """FFN `number` of the model's first layer."""
    layer = model.layers[0]
    if number < model.spec.experts:
        return layer.experts[number]
    if layer.shared is None:
        raise IndexError(f"FFN {number} of a layer that has {model.spec.experts} experts and no shared one")
    return layer.shared


class Gemms:
    """The products of a model's FFNs; `ffn_rows` [batches][FFNs] says how many rows each has per batch."""

    def __init__(self, model: Model, ffn_rows: Sequence[Sequence[int]]) -> None:
        most = [max(rows) for rows in zip(*ffn_rows, strict=True)]  # [FFNs]
        self.ffns = {number: ffn_of(model, number) for number in np.flatnonzero(most).tolist()}
        self.ffn_rows = ffn_rows
        rng = np.random.default_rng(1)
        rows, width = max(most), max((f.down.shape[0] for f in self.ffns.values()), default=0)
        self.x = rng.standard_normal((rows, model.spec.d_model), dtype=np.float32)
        self.activated = rng.standard_normal(rows * width, dtype=np.float32)
        self.hidden = np.zeros(rows * width * 2, np.float32)
        self.y = np.zeros((rows, model.spec.d_model), np.float32)

    def run(self, index: int) -> None:
        """Compute the products of batch `index`."""
        counts = self.ffn_rows[index % len(self.ffn_rows)]
        for number, ffn in self.ffns.items():
            n = counts[number]
            if n:
                np.matmul(self.x[:n], ffn.up, out=_rows(self.hidden, n, ffn.up.shape[1]))
                np.matmul(_rows(self.activated, n, ffn.down.shape[0]), ffn.down, out=self.y[:n])


def _rows(memory: np.ndarray, rows: int, width: int) -> np.ndarray:
    """The beginning of flat memory as [rows, width]."""
    return memory[: rows * width].reshape(rows, width)


def shares(rows: Sequence[int], widths: Sequence[int], parts: int) -> list[list[int]]:
    """Cut the work of a batch into equal parts: how many rows of each FFN each part has [parts][FFNs].

    A row is as much work as its FFN is wide. FFNs go to the parts in order; one that lies across a border is
    computed in two.
    """
    work = np.multiply(rows, widths)  # [FFNs]
    begins = np.cumsum(work) - work
    borders = np.arange(parts + 1)[:, None] * work.sum() / parts  # [parts+1, 1]
    before = np.rint(np.clip(borders - begins, 0, work) / widths)  # [parts+1, FFNs]: rows before a border
    return np.diff(before, axis=0).astype(int).tolist()  # type: ignore[no-any-return]


class GemmProcesses:
    """The same with one process and one BLAS thread per core, which share each batch's rows evenly."""

    def __init__(self, spec: ModelSpec, ffn_rows: list[list[int]], processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        widths = [spec.d_ff] * spec.experts + [spec.shared_d_ff] * (spec.shared_d_ff > 0)
        by_batch = [shares(rows, widths, processes) for rows in ffn_rows]  # [batches][processes][FFNs]
        self.pipes: list[Any] = []
        self.processes: list[Any] = []
        try:
            for share in zip(*by_batch, strict=True):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, spec, share), daemon=True)
                process.start()
                theirs.close()
                self.pipes.append(ours)
                self.processes.append(process)
            for pipe in self.pipes:
                pipe.recv()
        except BaseException:
            self.close()
            raise

    def run(self, index: int) -> float:
        """Compute the products of batch `index` in all processes at once; return their processor seconds."""
        for pipe in self.pipes:
            pipe.send(index)
        return sum(pipe.recv() for pipe in self.pipes)

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(timeout=10)


def _serve(pipe: Any, spec: ModelSpec, ffn_rows: Sequence[Sequence[int]]) -> None:
    with threadpool_limits(1):
        gemms = Gemms(Model(spec), ffn_rows)
        gemms.run(0)
        try:
            pipe.send(None)
            while True:
                index = pipe.recv()
                began = time.process_time()
                gemms.run(index)
                pipe.send(time.process_time() - began)
        except (EOFError, OSError, KeyboardInterrupt):
            return


@contextmanager
def gemm_processes(spec: ModelSpec, ffn_rows: list[list[int]], processes: int) -> Iterator[GemmProcesses]:
    """Open `GemmProcesses` and close it at the end."""
    pool = GemmProcesses(spec, ffn_rows, processes)
    try:
        yield pool
    finally:
        pool.close()
