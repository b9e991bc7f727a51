"""The transformers Mixtral block on torch with the same weights, where both are installed.

It runs in a process of its own, so that torch's threads and NumPy's BLAS threads cannot get in each other's
way, and times itself, so that the way there and back costs it nothing.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .workload import F32, Size, Workload


class TorchUnavailable(RuntimeError):
    """torch or transformers is not installed, or too old."""


class TorchProcess:
    """The block in its own process, on `threads` threads."""

    def __init__(self, workload: Workload, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        given = (theirs, workload.size, workload.seed, len(workload.inputs), threads)
        self.process = context.Process(target=_serve, args=given, daemon=True)
        self.process.start()
        theirs.close()
        try:
            ready, self.detail = self.pipe.recv()
        except EOFError:
            ready, self.detail = False, "the torch process died"
        if not ready:
            self.close()
            raise TorchUnavailable(self.detail)

    def timed(self, index: int) -> tuple[float, F32]:
        """One step on the workload's input `index`: seconds, and y [T, D]."""
        self.pipe.send(index)
        return self.pipe.recv()  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join(timeout=10)


@contextmanager
def torch_process(workload: Workload, threads: int) -> Iterator[TorchProcess]:
    """Open a `TorchProcess` and close it at the end."""
    process = TorchProcess(workload, threads)
    try:
        yield process
    finally:
        process.close()


def _serve(pipe: Any, size: Size, seed: int, batches: int, threads: int) -> None:
    try:
        block = _Block(Workload(size, seed, batches), threads)
    except TorchUnavailable as error:
        pipe.send((False, str(error)))
        return
    pipe.send((True, block.detail))
    try:
        while True:
            x = block.workload.batch(pipe.recv())
            began = time.perf_counter()
            y = block.forward(x)
            pipe.send((time.perf_counter() - began, y))
    except (EOFError, OSError, KeyboardInterrupt):
        return


class _Block:
    """`MixtralSparseMoeBlock` in float32 and eval mode.

    Where transformers offers several ways to compute the experts, the fastest here is taken and named in
    `detail`.
    """

    def __init__(self, workload: Workload, threads: int) -> None:
        try:
            import torch
            from transformers import MixtralConfig
            from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
        except ImportError as error:
            name = getattr(error, "name", None) or "torch"
            raise TorchUnavailable(f"{name.split('.')[0]} not installed") from error
        torch.set_num_threads(threads)
        self.torch, self.workload = torch, workload
        size = workload.size
        self.config = MixtralConfig(
            hidden_size=size.d_model,
            intermediate_size=size.d_ff,
            num_local_experts=size.experts,
            num_experts_per_tok=size.top_k,
            hidden_act="silu",
        )
        with torch.no_grad():
            self.block = MixtralSparseMoeBlock(self.config).eval()
            _load(self.block, workload)
        self.detail = f"torch {torch.__version__}, {threads} threads, {self._fastest()}"

    def forward(self, x: F32) -> F32:
        """One step on x [T, D]."""
        with self.torch.inference_mode():
            y = self.block(self.torch.from_numpy(x)[None])
        return (y[0] if isinstance(y, tuple) else y).reshape(x.shape).numpy()  # type: ignore[no-any-return]

    def _fastest(self) -> str:
        if not hasattr(self.block.experts, "gate_up_proj"):
            return "one linear layer per expert"
        times: dict[str, float] = {}
        for name in ("eager", "grouped_mm"):
            try:
                self.config._experts_implementation = name
                for _ in range(3):  # the first also warms up
                    began = time.perf_counter()
                    self.forward(self.workload.inputs[0])
                    times[name] = min(times.get(name, float("inf")), time.perf_counter() - began)
            except Exception:  # this version or this processor does not have it
                times.pop(name, None)
        if not times:
            raise TorchUnavailable("the Mixtral block of this transformers version does not run here")
        best = min(times, key=lambda name: times[name])
        self.config._experts_implementation = best
        return best


def _load(block: Any, workload: Workload) -> None:
    """Copy the workload's weights: torch keeps [out, in], we keep [in, out] with gate and up side by side."""
    import torch

    def transposed(w: F32) -> Any:
        return torch.from_numpy(np.ascontiguousarray(w.T))

    layer = workload.model.layers[0]
    assert layer.gate is not None
    block.gate.weight.copy_(transposed(layer.gate.weight))
    for number, expert in enumerate(layer.experts):
        half = expert.up.shape[1] // 2
        if hasattr(block.experts, "gate_up_proj"):
            block.experts.gate_up_proj[number].copy_(transposed(expert.up))
            block.experts.down_proj[number].copy_(transposed(expert.down))
        else:
            block.experts[number].w1.weight.copy_(transposed(expert.up[:, :half]))
            block.experts[number].w3.weight.copy_(transposed(expert.up[:, half:]))
            block.experts[number].w2.weight.copy_(transposed(expert.down))
