"""The transformers Mixtral block on torch with the same weights, where both are installed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from .workload import F32, Workload


class TorchUnavailable(RuntimeError):
    """torch or transformers is not installed."""


class TorchBlock:
    """`MixtralSparseMoeBlock` in float32 and eval mode, on `threads` threads.

    Where transformers offers several ways to compute the experts, the fastest here is taken; `implementation`
    names it.
    """

    def __init__(self, workload: Workload, threads: int) -> None:
        try:
            import torch
            from transformers import MixtralConfig
            from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
        except ImportError as error:
            name = getattr(error, "name", None) or "torch"
            raise TorchUnavailable(f"{name.split('.')[0]} not installed") from error
        self.torch = torch
        torch.set_num_threads(threads)
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
        self.implementation = self._fastest(workload)

    def forward(self, x: F32) -> F32:
        """One step on x [T, D]."""
        with self.torch.inference_mode():
            y = self.block(self.torch.from_numpy(x)[None])
        return (y[0] if isinstance(y, tuple) else y).reshape(x.shape).numpy()

    def _fastest(self, workload: Workload) -> str:
        if not hasattr(self.block.experts, "gate_up_proj"):
            return "one linear layer per expert"
        times = {}
        for name in ("eager", "grouped_mm"):
            try:
                self.config._experts_implementation = name
                self.forward(workload.inputs[0])
                began = time.perf_counter()
                self.forward(workload.inputs[0])
                times[name] = time.perf_counter() - began
            except Exception:  # this version or this processor does not have it
                continue
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
