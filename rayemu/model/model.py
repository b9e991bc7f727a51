"""A model's weights: made or read when touched, never before.

Every module builds its own `Model` from the same spec and touches only the experts that it holds; weights of
expert e in layer l depend on (seed, l, e) alone, so nothing is shipped and all copies agree to the bit.

Shapes: D model width, F expert width, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, overload

import numpy as np

import rayemu.routing as routing
from rayemu.model.expert import Expert
from rayemu.model.spec import ModelSpec
from rayemu.numerics import F32

# What a stream of random weights is for: part of its seed.
_EXPERT, _SHARED, _GATE, _NORM, _SHARED_GATE, _BIAS, _GATE_BIAS = range(7)


class Weights(Protocol):
    """Where a layer's arrays come from: `SeededWeights`, or a checkpoint."""

    @property
    def notes(self) -> list[str]: ...

    def expert(self, layer: int, expert: int) -> Expert: ...

    def shared(self, layer: int) -> Expert | None: ...

    def shared_gate(self, layer: int) -> F32 | None: ...

    def gate(self, layer: int) -> routing.Gate: ...

    def norm(self, layer: int) -> F32 | None: ...


class Experts(Sequence[Expert]):
    """The experts of one layer, each made or read on first access and then kept."""

    def __init__(self, weights: Weights, layer: int, count: int) -> None:
        self._weights, self._layer, self._count = weights, layer, count
        self._held: dict[int, Expert] = {}

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Expert: ...

    @overload
    def __getitem__(self, index: slice) -> list[Expert]: ...

    def __getitem__(self, index: int | slice) -> Expert | list[Expert]:
        if isinstance(index, slice):
            return [self[e] for e in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"expert {index} of layer {self._layer}, which has {self._count}")
        number = int(index) % self._count
        expert = self._held.get(number)
        if expert is None:
            expert = self._held.setdefault(number, self._weights.expert(self._layer, number))
        return expert

    def release(self, index: int) -> None:
        """Forget expert `index`; it is made or read again when touched."""
        self._held.pop(index, None)

    @property
    def held(self) -> list[int]:
        """Numbers of the experts in memory."""
        return sorted(self._held)


@dataclass(eq=False)
class Layer:
    """One block: norm, gate, experts, shared expert, residual. Arrays appear when touched.

    `has_experts` is False for a dense layer, whose FFN is `shared`.
    """

    index: int
    spec: ModelSpec
    router: routing.Router
    has_experts: bool
    weights: Weights = field(repr=False)

    @property
    def residual(self) -> bool:
        """Whether the block's input is added to its output."""
        return self.spec.residual

    @property
    def norm_eps(self) -> float:
        """Added to the mean square in the norm."""
        return self.spec.norm_eps

    @cached_property
    def norm(self) -> F32 | None:
        """RMSNorm weight [D], or None for no norm."""
        return self.weights.norm(self.index) if self.spec.norm else None

    @cached_property
    def gate(self) -> routing.Gate | None:
        """The router's weights, None for a dense layer."""
        return self.weights.gate(self.index) if self.has_experts else None

    @cached_property
    def experts(self) -> Experts:
        """The routed experts, a lazy sequence; empty for a dense layer."""
        return Experts(self.weights, self.index, self.spec.experts if self.has_experts else 0)

    @cached_property
    def shared(self) -> Expert | None:
        """The expert that every token passes, or the FFN of a dense layer."""
        return self.weights.shared(self.index)

    @cached_property
    def shared_gate(self) -> F32 | None:
        """Weight [D] of the sigmoid that scales the shared expert's output, or None."""
        return self.weights.shared_gate(self.index) if self.has_experts else None


class Model:
    """A stack of `layers`, described by `spec`; costs nothing until its weights are touched.

    `router` replaces the strategy that the spec names. A spec with a checkpoint reads its weights there.
    """

    def __init__(self, spec: ModelSpec, router: routing.Router | None = None) -> None:
        routers = routers_of(spec) if router is None else [router] * spec.layers
        for one in routers:
            one.check(spec.experts)
            if one.top_k != spec.top_k:
                raise ValueError(f"routing.top_k is {one.top_k}; allowed: model.top_k = {spec.top_k}")
            if spec.weigh_input and one.most(spec.experts) > 1:
                raise ValueError(
                    f"routing.kind gives a token up to {one.most(spec.experts)} experts; allowed: one, since "
                    "with model.weigh_input all choices of a token share the row that is weighed"
                )
        weights: Weights
        if spec.checkpoint is None:
            weights = SeededWeights(spec)
        else:
            from rayemu.model.checkpoint import CheckpointWeights

            weights = CheckpointWeights(spec)
        self.spec = spec
        self._weights = weights
        self.layers = [Layer(n, spec, one, n >= spec.dense_layers, weights) for n, one in enumerate(routers)]

    @property
    def notes(self) -> list[str]:
        """What the user should know of how the weights were found, one sentence each."""
        return list(self._weights.notes)

    def make_expert(self, layer: int, expert: int) -> Expert:
        """Make or read an expert anew; nobody but the caller keeps it."""
        return self._weights.expert(layer, expert)

    def __repr__(self) -> str:
        return f"Model({self.spec.name!r}, layers={len(self.layers)}, d_model={self.spec.d_model})"


def routers_of(spec: ModelSpec) -> list[routing.Router]:
    """The router of each layer, as the spec names them. ValueError for what `make_router` refuses."""
    made = []
    for layer in range(spec.layers):
        kind, params = spec.router_of(layer)
        made.append(routing.make_router(kind, spec.experts, **{"top_k": spec.top_k, **params}))
    return made


@dataclass(frozen=True)
class SeededWeights:
    """Weights drawn from a spec's seed: normal, of variance 1 / fan-in, norms near 1.

    With them a normalised token gets logits of unit variance and rows keep their size from layer to layer.
    """

    spec: ModelSpec

    @property
    def notes(self) -> list[str]:
        """Nothing: there is nothing to choose."""
        return []

    def expert(self, layer: int, expert: int) -> Expert:
        """Routed expert `expert` of `layer`."""
        return self._ffn(layer, expert, _EXPERT, self.spec.d_ff)

    def shared(self, layer: int) -> Expert | None:
        """Shared expert of `layer`, or its FFN where it is a dense layer."""
        dense = layer < self.spec.dense_layers
        width = self.spec.dense_d_ff if dense else self.spec.shared_d_ff
        return self._ffn(layer, 0, _SHARED, width) if width else None

    def shared_gate(self, layer: int) -> F32 | None:
        """Weight [D] of the shared expert's gate."""
        if not self.spec.shared_gate:
            return None
        return self._normal(layer, 0, _SHARED_GATE, (self.spec.d_model,), self.spec.d_model**-0.5)

    def gate(self, layer: int) -> routing.Gate:
        """Gate of `layer`; with a selection bias where the router uses one."""
        spec = self.spec
        weight = self._normal(layer, 0, _GATE, (spec.d_model, spec.experts), spec.d_model**-0.5)
        shape = (spec.experts,)
        selection = self._normal(layer, 0, _BIAS, shape, 0.02) if spec.selection_bias else None
        return routing.Gate(
            weight, selection, self._normal(layer, 0, _GATE_BIAS, shape, 0.1) if spec.biases else None
        )

    def norm(self, layer: int) -> F32 | None:
        """Norm weight [D] of `layer`."""
        return self._normal(layer, 0, _NORM, (self.spec.d_model,), 0.1) + np.float32(1.0)

    def _ffn(self, layer: int, expert: int, tag: int, width: int) -> Expert:
        spec = self.spec
        rng = np.random.Generator(np.random.SFC64([spec.seed, layer, expert, tag]))
        columns = width * (spec.matrices - 1)
        up = rng.standard_normal((spec.d_model, columns), dtype=np.float32)  # [D, 2F] or [D, F]
        up *= np.float32(spec.d_model**-0.5)
        down = rng.standard_normal((width, spec.d_model), dtype=np.float32)  # [F, D]
        down *= np.float32(width**-0.5)
        if not spec.biases:
            return Expert(up, down, spec.activation)
        up_bias, down_bias = (
            rng.standard_normal(n, dtype=np.float32) * np.float32(0.1) for n in (columns, spec.d_model)
        )
        return Expert(up, down, spec.activation, up_bias, down_bias)

    def _normal(self, layer: int, expert: int, tag: int, shape: tuple[int, ...], deviation: float) -> F32:
        rng = np.random.Generator(np.random.SFC64([self.spec.seed, layer, expert, tag]))
        values = rng.standard_normal(shape, dtype=np.float32)
        values *= np.float32(deviation)
        return values
