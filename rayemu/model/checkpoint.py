"""MoE layers of a local Hugging Face checkpoint: config.json and safetensors, no torch.

Known families are those of `checkpoint_families.FAMILIES`; gates decide as the transformers blocks do.
Experts may be stored one by one (as published) or fused in 3-D tensors (as newer transformers keep them), in
16 or more bits, in FP8 with scales per block or in MXFP4 (gpt-oss). Attention, embeddings and dense layers
are not read.

Shapes: D model width, F expert width, E experts; files hold weights as [out, in], we keep [in, out].
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from rayemu.model.checkpoint_config import Config, Quantisation, read_config
from rayemu.model.checkpoint_families import (
    Family,
    family_of,
    moe_layer_numbers,
    spec_from_config,
    text_config,
)
from rayemu.model.expert import Expert
from rayemu.model.model import Model
from rayemu.model.spec import ModelSpec
from rayemu.model.tensor_files import CheckpointError, TensorFiles
from rayemu.numerics import F32
from rayemu.routing.gate import Gate

_USUAL = ("gate_proj", "up_proj", "down_proj")
_SHOWN = 5  # problems listed in an error
_COUNTED = 1000  # problems after which the rest is not looked at
# What stands before "layers.N." in a language model's tensor names, the likelier first.
_PREFIXES = ("model.", "", "language_model.model.", "model.language_model.", "language_model.")
_log = logging.getLogger(__name__)


def load_checkpoint(directory: str | os.PathLike[str], all_values: bool = True) -> Model:
    """The MoE layers of the checkpoint in `directory`, in order, as a model.

    `model.layers[n]` is the checkpoint's n-th MoE layer, its norm the decoder layer's second norm; dense
    layers are left out. All tensors are checked now, by name, shape, type, and for NaN and infinite values;
    they are read again when touched. As this goes over whole files, `all_values=False` looks only at the
    values of norms and gates; those of experts are then checked when they are touched.
    The model's spec names the directory, so that `Model(spec)` elsewhere reads the same weights.
    What was passed over (see `Model.notes`) is logged. Raises CheckpointError naming what is missing,
    misshaped or not finite.
    """
    model = Model(checkpoint_spec(directory))
    CheckpointWeights(model.spec).check(all_values)
    for note in model.notes:
        _log.warning("%s", note)
    return model


def checkpoint_spec(directory: str | os.PathLike[str]) -> ModelSpec:
    """The spec of the checkpoint in `directory`, from its config.json alone. Raises CheckpointError."""
    path = Path(directory).resolve()
    return spec_from_config(read_config(path), path)


class CheckpointWeights:
    """Weights of a spec whose `checkpoint` is a directory; reads a tensor when it is asked for."""

    def __init__(self, spec: ModelSpec) -> None:
        if spec.checkpoint is None:
            raise ValueError(f"model {spec.name} has no checkpoint to read")
        self.spec = spec
        self.directory = Path(spec.checkpoint)

    @cached_property
    def config(self) -> Config:
        """The checkpoint's config.json."""
        return read_config(self.directory)

    @cached_property
    def family(self) -> Family:
        """How the checkpoint is laid out."""
        return family_of(self.config)

    @cached_property
    def quantisation(self) -> Quantisation:
        """How the checkpoint's weights are packed."""
        inner = text_config(self.config).quantisation()
        return inner if any(inner) else self.config.quantisation()

    @cached_property
    def files(self) -> TensorFiles:
        """The checkpoint's tensors."""
        return TensorFiles(self.directory, *self.quantisation)

    @property
    def notes(self) -> list[str]:
        """What was passed over in choosing the files."""
        self.files.file_of  # noqa: B018
        return self.files.notes

    @cached_property
    def numbers(self) -> list[int]:
        """Decoder layer of each MoE layer."""
        return moe_layer_numbers(self.config)

    @cached_property
    def prefix(self) -> str:
        """What stands before "layers.N." in the model's own tensor names: "model." as published.

        Other parts (the draft model of "mtp.layers.N") have names of the same form, which are not looked at
        where the usual ones are there. Raises CheckpointError where there are several and none is usual.
        """
        inside = "|".join(self.family.blocks)
        pattern = re.compile(rf"(.*\.|)layers\.{self.numbers[0]}\.({inside})\.{self.family.gate}\.weight")
        found = {match[1] for name in self.files.file_of if (match := pattern.fullmatch(name))}
        for prefix in _PREFIXES:
            if prefix in found:
                return prefix
        if len(found) > 1:
            raise CheckpointError(
                f"{self.directory}: gates under several prefixes: {', '.join(sorted(found))}; "
                f"allowed: one, or one of {', '.join(filter(None, _PREFIXES))} among them"
            )
        return found.pop() if found else _PREFIXES[0]

    def expert(self, layer: int, expert: int) -> Expert:
        """Routed expert `expert` of MoE layer `layer`."""
        spec, block = self.spec, self._block(layer)
        if not self._fused(block):
            return self._ffn(f"{block}.experts.{expert}.", self.family.projections, spec.d_ff)
        up, down = (
            part if self._rows_in(name) else part.T
            for name, part in self._parts(self._fused_shapes(block), expert)
        )
        biases = [part for _, part in self._parts(self._bias_shapes(block), expert)]
        sides = [up, *biases[:1]]
        if self.family.interleaved:
            sides = [np.concatenate((side[..., ::2], side[..., 1::2]), axis=-1) for side in sides]
        copies = (np.array(a, order="C") for a in (sides[0], down, *sides[1:], *biases[1:]))
        up, down, *biases = copies  # views would keep to the file, and to its order
        return Expert(up, down, spec.activation, *biases)

    def _parts(self, shapes: dict[str, tuple[int, ...]], part: int) -> Iterator[tuple[str, F32]]:
        return ((name, self.files.read(name, shape, part)) for name, shape in shapes.items())

    def shared(self, layer: int) -> Expert | None:
        """Shared expert of MoE layer `layer`."""
        if not self.spec.shared_d_ff:
            return None
        return self._ffn(f"{self._block(layer)}.{self.family.shared}.", _USUAL, self.spec.shared_d_ff)

    def shared_gate(self, layer: int) -> F32 | None:
        """Weight [D] of the shared expert's gate."""
        if not self.spec.shared_gate:
            return None
        weight = self.files.read(f"{self._block(layer)}.shared_expert_gate.weight", (1, self.spec.d_model))
        return np.array(weight[0])

    def gate(self, layer: int) -> Gate:
        """Gate of MoE layer `layer`."""
        spec, name = self.spec, f"{self._block(layer)}.{self.family.gate}."
        weight = self.files.read(f"{name}weight", (spec.experts, spec.d_model))
        selection = bias = None
        if self.family.selection_bias:  # -inf keeps an expert out
            read = self.files.read(f"{name}e_score_correction_bias", (spec.experts,), minus_infinity=True)
            selection = np.array(read)
        if spec.biases:
            bias = np.array(self.files.read(f"{name}bias", (spec.experts,)))
        return Gate(_transposed(weight, (spec.d_model, spec.experts)), selection, bias)

    def norm(self, layer: int) -> F32 | None:
        """Norm weight [D] of MoE layer `layer`."""
        return np.array(self.files.read(self._norm(layer), (self.spec.d_model,)))

    def check(self, all_values: bool = True) -> None:
        """Compare names, shapes and types of all tensors with the config, then look at their values.

        Without `all_values` only those of norms and gates are looked at. Raises CheckpointError.
        """
        problems: list[str] = []
        types: set[str] = set()
        for layer in range(self.spec.layers):
            for name, shape in self._shapes(layer).items():
                problem = self.files.problem(name, shape)
                if problem:
                    problems.append(problem)
                else:
                    entry = self.files.entry(name)
                    types.add(entry.dtype if entry else "MXFP4")
            if len(problems) >= _COUNTED:
                break
        if problems:
            more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
            listed = "; ".join(problems[:_SHOWN] + more)
            raise CheckpointError(f"{self.directory}: {len(problems)} unusable tensors: {listed}")
        said = "fp8" if self.quantisation.fp8_block else "mxfp4" if self.quantisation.mxfp4 else None
        if said and not types & {"F8_E4M3", "MXFP4"}:
            raise CheckpointError(
                f"{self.config.file}: quantization_config says {said}, but the weights are "
                f"{', '.join(sorted(types))}; delete the key quantization_config"
            )
        for layer in range(self.spec.layers):
            self.norm(layer), self.gate(layer), self.shared_gate(layer)
            for name, shape in self._expert_shapes(layer).items() if all_values else ():
                for part in range(shape[0]) if len(shape) == 3 else (None,):
                    self.files.read(name, shape, part)

    def _shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Every tensor of MoE layer `layer` and the shape it must have."""
        spec, block = self.spec, self._block(layer)
        shapes: dict[str, tuple[int, ...]] = {
            self._norm(layer): (spec.d_model,),
            f"{block}.{self.family.gate}.weight": (spec.experts, spec.d_model),
        }
        if any(self.files.problem(*item) for item in shapes.items() if item[0] in self.files):
            return shapes  # the config is of another model: its experts need not be listed
        if self.family.selection_bias:
            shapes[f"{block}.{self.family.gate}.e_score_correction_bias"] = (spec.experts,)
        if spec.biases:
            shapes[f"{block}.{self.family.gate}.bias"] = (spec.experts,)
        if spec.shared_gate:
            shapes[f"{block}.shared_expert_gate.weight"] = (1, spec.d_model)
        return shapes | self._expert_shapes(layer)

    def _expert_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Those of the routed and shared experts."""
        spec, block = self.spec, self._block(layer)
        shapes: dict[str, tuple[int, ...]] = {}
        if self._fused(block):
            shapes |= self._fused_shapes(block) | self._bias_shapes(block)
        else:
            names = self.family.projections
            for expert in range(spec.experts):
                shapes |= self._ffn_shapes(f"{block}.experts.{expert}.", names, spec.d_ff)
        if spec.shared_d_ff:
            shapes |= self._ffn_shapes(f"{block}.{self.family.shared}.", _USUAL, spec.shared_d_ff)
        return shapes

    def _block(self, layer: int) -> str:
        """Name of the MoE block of MoE layer `layer`."""
        stem = f"{self.prefix}layers.{self.numbers[layer]}."
        named = (f"{stem}{name}" for name in self.family.blocks)
        there = (block for block in named if f"{block}.{self.family.gate}.weight" in self.files)
        return next(there, f"{stem}{self.family.blocks[-1]}")

    def _norm(self, layer: int) -> str:
        return f"{self.prefix}layers.{self.numbers[layer]}.post_attention_layernorm.weight"

    def _fused(self, block: str) -> bool:
        return self.family.rows_in or f"{block}.experts.gate_up_proj" in self.files

    def _rows_in(self, name: str) -> bool:
        """Whether fused experts lie as [E, in, out]; MXFP4 has its blocks along `in`: [E, out, in]."""
        return self.family.rows_in and not self.files.packed(name)

    def _fused_shapes(self, block: str) -> dict[str, tuple[int, ...]]:
        """Tensors of the experts, gate and up in one."""
        experts, width, inner = self.spec.experts, self.spec.d_model, self.spec.d_ff
        shapes = {
            f"{block}.experts.gate_up_proj": (2 * inner, width),
            f"{block}.experts.down_proj": (width, inner),
        }
        return {n: (experts, *(shape[::-1] if self._rows_in(n) else shape)) for n, shape in shapes.items()}

    def _bias_shapes(self, block: str) -> dict[str, tuple[int, ...]]:
        """Their biases, in the same order."""
        if not self.spec.biases:
            return {}
        return {
            f"{block}.experts.gate_up_proj_bias": (self.spec.experts, 2 * self.spec.d_ff),
            f"{block}.experts.down_proj_bias": (self.spec.experts, self.spec.d_model),
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
