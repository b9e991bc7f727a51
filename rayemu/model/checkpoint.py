"""MoE layers of a local Hugging Face checkpoint: config.json and safetensors, no torch.

Known families, by `model_type`: mixtral, qwen2_moe, qwen3_moe, olmoe, deepseek_v2, deepseek_v3; gates
decide as the transformers blocks do. Experts may be stored one by one (as published) or fused in 3-D
tensors (as newer transformers keep them). Attention, embeddings and dense layers are not read.

Shapes: D model width, F expert width, E experts; files hold weights as [out, in], we keep [in, out].
"""

from __future__ import annotations

import json
import os
import re
from functools import cached_property
from pathlib import Path

import numpy as np

from rayemu.model.checkpoint_config import moe_layer_numbers, spec_from_config
from rayemu.model.expert import Expert
from rayemu.model.model import Model
from rayemu.model.spec import ModelSpec
from rayemu.model.tensor_files import CheckpointError, TensorFiles
from rayemu.numerics import F32
from rayemu.routing.gate import Gate

_PROJECTIONS = {"mixtral": ("w1", "w3", "w2")}  # gate, up, down
_USUAL = ("gate_proj", "up_proj", "down_proj")
_SHARED = {"qwen2_moe": "shared_expert", "deepseek_v2": "shared_experts", "deepseek_v3": "shared_experts"}
_SHOWN = 10  # problems listed in an error


def load_checkpoint(directory: str | os.PathLike[str]) -> Model:
    """The MoE layers of the checkpoint in `directory`, in order, as a model.

    `model.layers[n]` is the checkpoint's n-th MoE layer, its norm the decoder layer's second norm; dense
    layers are left out. All tensors are checked by name, shape and type now and read when touched. The
    model's spec names the directory, so that `Model(spec)` elsewhere reads the same weights.
    Raises CheckpointError naming what is missing or misshaped.
    """
    model = Model(checkpoint_spec(directory))
    CheckpointWeights(model.spec).check()
    return model


def checkpoint_spec(directory: str | os.PathLike[str]) -> ModelSpec:
    """The spec of the checkpoint in `directory`, from its config.json alone. Raises CheckpointError."""
    path = Path(directory).resolve()
    return spec_from_config(_config(path), path)


def _config(directory: Path) -> dict[str, object]:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror}; expected a model directory"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds no JSON object")
    return config


class CheckpointWeights:
    """Weights of a spec whose `checkpoint` is a directory; reads a tensor when it is asked for."""

    def __init__(self, spec: ModelSpec) -> None:
        if spec.checkpoint is None:
            raise ValueError(f"model {spec.name} has no checkpoint to read")
        self.spec = spec
        self.files = TensorFiles(Path(spec.checkpoint))

    @cached_property
    def family(self) -> str:
        """The checkpoint's model_type."""
        return str(_config(self.files.directory)["model_type"])

    @cached_property
    def numbers(self) -> list[int]:
        """Decoder layer of each MoE layer."""
        return moe_layer_numbers(_config(self.files.directory))

    @cached_property
    def prefix(self) -> str:
        """What stands before "layers.N." in tensor names: "model." as published, "" for a bare base model."""
        pattern = re.compile(rf"(.*\.|)layers\.{self.numbers[0]}\.(mlp|block_sparse_moe)\.gate\.weight")
        for name in self.files.file_of:
            match = pattern.fullmatch(name)
            if match:
                return match[1]
        return "model."

    def expert(self, layer: int, expert: int) -> Expert:
        """Routed expert `expert` of MoE layer `layer`."""
        width, inner, block = self.spec.d_model, self.spec.d_ff, self._block(layer)
        if not self._fused(block):
            return self._ffn(f"{block}.experts.{expert}.", _PROJECTIONS.get(self.family, _USUAL), inner)
        shapes = self._fused_shapes(block)
        both, down = (self.files.read(name, shape, expert) for name, shape in shapes.items())
        return Expert(_transposed(both, (width, 2 * inner)), _transposed(down, (inner, width)))

    def shared(self, layer: int) -> Expert | None:
        """Shared expert of MoE layer `layer`."""
        if not self.spec.shared_d_ff:
            return None
        return self._ffn(f"{self._block(layer)}.{_SHARED[self.family]}.", _USUAL, self.spec.shared_d_ff)

    def shared_gate(self, layer: int) -> F32 | None:
        """Weight [D] of the shared expert's gate."""
        if not self.spec.shared_gate:
            return None
        weight = self.files.read(f"{self._block(layer)}.shared_expert_gate.weight", (1, self.spec.d_model))
        return np.array(weight[0])

    def gate(self, layer: int) -> Gate:
        """Gate of MoE layer `layer`."""
        spec, name = self.spec, f"{self._block(layer)}.gate."
        weight = self.files.read(f"{name}weight", (spec.experts, spec.d_model))
        bias = None
        if self.family == "deepseek_v3":
            bias = np.array(self.files.read(f"{name}e_score_correction_bias", (spec.experts,)))
        return Gate(_transposed(weight, (spec.d_model, spec.experts)), bias)

    def norm(self, layer: int) -> F32 | None:
        """Norm weight [D] of MoE layer `layer`."""
        return np.array(self.files.read(self._norm(layer), (self.spec.d_model,)))

    def check(self) -> None:
        """Compare names, shapes and types of all tensors with the config; raises CheckpointError."""
        problems = []
        for layer in range(self.spec.layers):
            for name, shape in self._shapes(layer).items():
                problem = self.files.problem(name, shape)
                if problem:
                    problems.append(problem)
        if problems:
            more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
            lines = "\n  ".join(problems[:_SHOWN] + more)
            raise CheckpointError(f"{self.files.directory}: {len(problems)} unusable tensors\n  {lines}")

    def _shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Every tensor of MoE layer `layer` and the shape it must have."""
        spec, block = self.spec, self._block(layer)
        shapes: dict[str, tuple[int, ...]] = {
            self._norm(layer): (spec.d_model,),
            f"{block}.gate.weight": (spec.experts, spec.d_model),
        }
        if self.family == "deepseek_v3":
            shapes[f"{block}.gate.e_score_correction_bias"] = (spec.experts,)
        if self._fused(block):
            shapes |= self._fused_shapes(block)
        else:
            names = _PROJECTIONS.get(self.family, _USUAL)
            for expert in range(spec.experts):
                shapes |= self._ffn_shapes(f"{block}.experts.{expert}.", names, spec.d_ff)
        if spec.shared_d_ff:
            shapes |= self._ffn_shapes(f"{block}.{_SHARED[self.family]}.", _USUAL, spec.shared_d_ff)
        if spec.shared_gate:
            shapes[f"{block}.shared_expert_gate.weight"] = (1, spec.d_model)
        return shapes

    def _block(self, layer: int) -> str:
        """Name of the MoE block of MoE layer `layer`."""
        stem = f"{self.prefix}layers.{self.numbers[layer]}."
        if self.family == "mixtral" and f"{stem}mlp.gate.weight" not in self.files:
            return f"{stem}block_sparse_moe"
        return f"{stem}mlp"

    def _norm(self, layer: int) -> str:
        return f"{self.prefix}layers.{self.numbers[layer]}.post_attention_layernorm.weight"

    def _fused(self, block: str) -> bool:
        return f"{block}.experts.gate_up_proj" in self.files

    def _fused_shapes(self, block: str) -> dict[str, tuple[int, ...]]:
        experts, width, inner = self.spec.experts, self.spec.d_model, self.spec.d_ff
        return {
            f"{block}.experts.gate_up_proj": (experts, 2 * inner, width),
            f"{block}.experts.down_proj": (experts, width, inner),
        }

    def _ffn_shapes(self, stem: str, names: tuple[str, ...], inner: int) -> dict[str, tuple[int, ...]]:
        """Tensors of one SwiGLU FFN of width `inner`, in the order gate, up, down."""
        width = self.spec.d_model
        shapes = ((inner, width), (inner, width), (width, inner))
        return {f"{stem}{name}.weight": shape for name, shape in zip(names, shapes, strict=True)}

    def _ffn(self, stem: str, names: tuple[str, ...], inner: int) -> Expert:
        shapes = self._ffn_shapes(stem, names, inner)
        gate, up, down = (self.files.read(name, shape) for name, shape in shapes.items())
        both = np.empty((self.spec.d_model, 2 * inner), np.float32)  # [D, 2F]
        both[:, :inner] = gate.T
        both[:, inner:] = up.T
        return Expert(both, _transposed(down, (inner, self.spec.d_model)))


def _transposed(weight: F32, shape: tuple[int, int]) -> F32:
    """weight.T as a C-contiguous array of its own."""
    result = np.empty(shape, np.float32)
    result[...] = weight.T
    return result
