"""The transformers block of the size's family on torch with the same weights, where both are installed.

It runs in a process of its own, so that torch's threads and NumPy's BLAS threads cannot get in each other's
way, and times itself, so that the way there and back costs it nothing.
"""

from __future__ import annotations

import importlib
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayemu.model.spec import ModelSpec

from .workload import F32, Size, Workload


@dataclass(frozen=True)
class Family:
    """Where transformers has a family's block, and what its configuration calls the numbers of experts."""

    package: str
    name: str  # what its classes' names begin with
    block: str
    width: str
    experts: str

    def settings(self, spec: ModelSpec) -> dict[str, Any]:
        """The configuration of a block like the model's."""
        params = spec.router_params
        settings = {
            "hidden_size": spec.d_model,
            self.width: spec.d_ff,
            self.experts: spec.experts,
            "num_experts_per_tok": spec.top_k,
            "hidden_act": "silu",
            "norm_topk_prob": params.get("renormalise", True),
        }
        if spec.shared_d_ff:
            settings["n_shared_experts"] = spec.shared_d_ff // spec.d_ff
        if spec.router == "sigmoid_group_topk":
            settings["n_group"] = params.get("groups", 1)
            settings["topk_group"] = params.get("top_groups", 1)
            settings["routed_scaling_factor"] = params.get("scaling", 1.0)
        return settings


FAMILIES = {
    "mixtral-8x7b": Family(
        "mixtral", "Mixtral", "MixtralSparseMoeBlock", "intermediate_size", "num_local_experts"
    ),
    "qwen3-30b-a3b": Family(
        "qwen3_moe", "Qwen3Moe", "Qwen3MoeSparseMoeBlock", "moe_intermediate_size", "num_experts"
    ),
    "deepseek-v3": Family(
        "deepseek_v3", "DeepseekV3", "DeepseekV3MoE", "moe_intermediate_size", "n_routed_experts"
    ),
}


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

    @property
    def pids(self) -> list[int]:
        """Its process."""
        return [] if self.process.pid is None else [self.process.pid]

    def timed(self, index: int) -> tuple[float, float, F32]:
        """One step on the workload's input `index`: seconds, processor seconds, and y [T, D]."""
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
        block = Block(Workload(size, seed, batches), threads)
    except TorchUnavailable as error:
        pipe.send((False, str(error)))
        return
    pipe.send((True, block.detail))
    try:
        while True:
            x = block.workload.batch(pipe.recv())
            began, used = time.perf_counter(), time.process_time()
            y = block.forward(x)
            pipe.send((time.perf_counter() - began, time.process_time() - used, y))
    except (EOFError, OSError, KeyboardInterrupt):
        return


class Block:
    """The family's block in float32 and eval mode.

    Where transformers offers several ways to compute the experts, the fastest here is taken and named in
    `detail`.
    """

    def __init__(self, workload: Workload, threads: int) -> None:
        try:
            import torch

            family = FAMILIES[workload.size.family]
            folder = f"transformers.models.{family.package}"
            configuration = importlib.import_module(f"{folder}.configuration_{family.package}")
            modeling = importlib.import_module(f"{folder}.modeling_{family.package}")
        except ImportError as error:
            name = getattr(error, "name", None) or "torch"
            raise TorchUnavailable(f"{name.split('.')[0]} not installed") from error
        torch.set_num_threads(threads)
        self.torch, self.workload = torch, workload
        self.config = getattr(configuration, f"{family.name}Config")(**family.settings(workload.spec))
        with torch.no_grad():
            self.block = getattr(modeling, family.block)(self.config).eval()
            _load(self.block, workload)
        self.detail = f"{family.block}, torch {torch.__version__}, {threads} threads, {self._fastest()}"

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
            raise TorchUnavailable("the block of this transformers version does not run here")
        best = min(times, key=lambda name: times[name])
        self.config._experts_implementation = best
        return best


_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def _load(block: Any, workload: Workload) -> None:
    """Copy the workload's weights: torch keeps [out, in], we keep [in, out] with gate and up side by side.

    Ours are forgotten as they are copied: a second set of them may not fit.
    """
    import torch

    def transposed(w: F32) -> Any:
        return torch.from_numpy(np.ascontiguousarray(w.T))

    layer = workload.model.layers[0]
    assert layer.gate is not None
    block.gate.weight.copy_(transposed(layer.gate.weight))
    if layer.gate.selection_bias is not None:
        block.gate.e_score_correction_bias.copy_(torch.from_numpy(layer.gate.selection_bias))
    if layer.shared is not None:
        half = layer.shared.up.shape[1] // 2
        weights = (layer.shared.up[:, :half], layer.shared.up[:, half:], layer.shared.down)
        for part, weight in zip(_PROJECTIONS, weights, strict=True):
            getattr(block.shared_experts, part).weight.copy_(transposed(weight))
    for number in range(len(layer.experts)):
        expert = layer.experts[number]
        layer.experts.release(number)
        half = expert.up.shape[1] // 2
        if hasattr(block.experts, "gate_up_proj"):
            block.experts.gate_up_proj[number].copy_(transposed(expert.up))
            block.experts.down_proj[number].copy_(transposed(expert.down))
        else:
            parts = ("w1", "w3", "w2") if hasattr(block.experts[number], "w1") else _PROJECTIONS
            weights = (expert.up[:, :half], expert.up[:, half:], expert.down)
            for part, weight in zip(parts, weights, strict=True):
                getattr(block.experts[number], part).weight.copy_(transposed(weight))
