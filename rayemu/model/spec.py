"""What a model is, as plain data: dimensions, router, where its weights come from.

A spec holds no arrays. It is what travels to an actor, which builds its own `Model` from it and touches only
the experts that it owns. The accounting methods count what the MoE blocks execute, at the width they are run
at (`full()` gives the spec before `scale`); `accounting.py` adds the parts that are never executed.

Shape words: D model width, F expert width, E experts, K choices per token, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

ACTIVATIONS = ("swiglu", "gelu", "relu", "clamped_swiglu")


@dataclass(frozen=True)
class ModelSpec:
    """One Mixture-of-Experts stack: dimensions, gate and the seed or checkpoint of its weights.

    `router` names a strategy of `rayemu.routing.ROUTERS`; `router_params` are its parameters without `top_k`.
    `layer_routers` are other ones, with their parameters, of some layers by number.
    `dense_layers` counts leading layers whose FFN is dense (`dense_d_ff` wide) instead of routed.
    `shared_d_ff` is the width of the shared expert (all shared experts side by side), 0 for none;
    `shared_gate` scales its output by a sigmoid gate of the token.
    `biases` gives gates and FFNs biases (gpt-oss). `weigh_input` multiplies the rows that go to an expert by
    their weights instead of those that come back (Llama 4); with one choice per token only, since all choices
    of a token share the row that is sent.
    All widths here are the model's own divided by `scale`; `full_d_model` and `full_d_ff` (derived, not to be
    given) are D and F before that, for pricing.
    `checkpoint` is a directory to read the weights from; otherwise they are drawn from `seed`.
    Raises ValueError where a value is impossible, naming the field, the value and what is allowed.
    """

    name: str
    d_model: int
    d_ff: int
    experts: int
    top_k: int
    layers: int = 1
    activation: str = "swiglu"
    biases: bool = False
    weigh_input: bool = False
    shared_d_ff: int = 0
    shared_gate: bool = False
    dense_layers: int = 0
    dense_d_ff: int = 0
    norm: bool = True
    residual: bool = True
    norm_eps: float = 1e-6
    router: str = "softmax_topk"
    router_params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    layer_routers: Mapping[int, tuple[str, Mapping[str, Any]]] = field(default_factory=dict, hash=False)
    seed: int = 0
    scale: int = 1
    full_d_model: int = 0
    full_d_ff: int = 0
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        for name in ("d_model", "d_ff", "experts", "top_k", "layers", "scale"):
            _require(self, name, getattr(self, name) >= 1, "an integer >= 1")
        for name in ("shared_d_ff", "dense_layers", "dense_d_ff", "seed"):
            _require(self, name, getattr(self, name) >= 0, "an integer >= 0")
        _require(self, "top_k", self.top_k <= self.experts, f"at most experts = {self.experts}")
        _require(self, "activation", self.activation in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}")
        _require(self, "dense_layers", self.dense_layers <= self.layers, f"at most layers = {self.layers}")
        _require(self, "dense_d_ff", not self.dense_layers or self.dense_d_ff > 0, ">= 1 with dense_layers")
        _require(self, "shared_gate", not self.shared_gate or self.shared_d_ff > 0, "with shared_d_ff only")
        _require(self, "weigh_input", not self.weigh_input or self.top_k == 1, "with top_k = 1 only")
        _require(self, "norm_eps", self.norm_eps > 0, "a number > 0")
        # Always derived, whatever was passed: `replace(spec, d_model=...)` must not keep a stale one.
        object.__setattr__(self, "full_d_model", self.d_model * self.scale)
        object.__setattr__(self, "full_d_ff", self.d_ff * self.scale)

    def router_of(self, layer: int) -> tuple[str, Mapping[str, Any]]:
        """The router of a layer, and its parameters without `top_k`."""
        return self.layer_routers.get(layer, (self.router, self.router_params))

    @property
    def gated(self) -> bool:
        """Whether an expert has a gate beside its up projection."""
        return self.activation in ("swiglu", "clamped_swiglu")

    @property
    def matrices(self) -> int:
        """Weight matrices of an expert: gate, up and down for SwiGLU, otherwise up and down."""
        return 3 if self.gated else 2

    @property
    def selection_bias(self) -> bool:
        """Whether gates have a bias to choose by: DeepSeek-V3's have, Llama 4's (that weigh inputs) not."""
        return self.router == "sigmoid_group_topk" and not self.weigh_input

    @property
    def moe_layers(self) -> int:
        """Layers with routed experts."""
        return self.layers - self.dense_layers

    def scaled(self, factor: int) -> ModelSpec:
        """The same model at 1/`factor` of every width, remembering the full widths for pricing.

        Raises ValueError when a width is not divisible by `factor`.
        """
        if factor < 1:
            raise ValueError(f"model.scale is {factor}; allowed: an integer >= 1")
        widths = {name: getattr(self, name) for name in ("d_model", "d_ff", "shared_d_ff", "dense_d_ff")}
        for name, width in widths.items():
            if width % factor:
                raise ValueError(f"model.scale is {factor}; allowed: a divisor of {name} = {width}")
        narrow = {name: width // factor for name, width in widths.items()}
        return replace(self, **narrow, scale=self.scale * factor)

    def full(self) -> ModelSpec:
        """The same model at its full widths (undoes `scaled`)."""
        shared, dense = self.shared_d_ff * self.scale, self.dense_d_ff * self.scale
        wide = replace(self, shared_d_ff=shared, dense_d_ff=dense, scale=1)
        return replace(wide, d_model=self.full_d_model, d_ff=self.full_d_ff)

    def ffn_parameters(self, width: int) -> int:
        """Parameters of one FFN of D x `width`."""
        return self.matrices * self.d_model * width + self._ffn_biases(width)

    def _ffn_biases(self, width: int) -> int:
        return (self.matrices - 1) * width + self.d_model if self.biases and width else 0

    def ffn_flops(self, width: int) -> int:
        """Floating-point operations of one row through an FFN: two per multiply-add, one per bias."""
        return 2 * self.matrices * self.d_model * width + self._ffn_biases(width)

    def expert_parameters(self) -> int:
        """Parameters of one routed expert in one layer."""
        return self.ffn_parameters(self.d_ff)

    def expert_bytes(self, bits: int = 32) -> int:
        """Bytes of one routed expert in one layer; 32 bits (float32) is what the emulator executes."""
        return self.expert_parameters() * bits // 8

    def router_parameters(self) -> int:
        """Parameters of one layer's gate, with its biases, also for selection where the router uses one."""
        return self.experts * (self.d_model + self.selection_bias + self.biases)

    def shared_parameters(self) -> int:
        """Parameters of one layer's shared expert and its gate."""
        return self.ffn_parameters(self.shared_d_ff) + (self.d_model if self.shared_gate else 0)

    def moe_layer_parameters(self) -> int:
        """Parameters of one MoE block: experts, gate, shared expert, norm."""
        routed = self.experts * self.expert_parameters()
        return routed + self.router_parameters() + self.shared_parameters() + self.norm * self.d_model

    def dense_layer_parameters(self) -> int:
        """Parameters of one leading dense layer: its FFN and norm."""
        return self.ffn_parameters(self.dense_d_ff) + self.norm * self.d_model

    def parameters(self) -> int:
        """Parameters of everything that is executed: all MoE blocks and dense layers."""
        dense = self.dense_layers * self.dense_layer_parameters()
        return self.moe_layers * self.moe_layer_parameters() + dense

    def model_bytes(self, bits: int = 32) -> int:
        """Bytes of everything that is executed, with one copy of each expert."""
        return self.parameters() * bits // 8

    def flops_per_row(self) -> int:
        """Floating-point operations of one row through one routed expert."""
        return self.ffn_flops(self.d_ff)

    def flops_per_token(self) -> int:
        """Floating-point operations of one token through the stack: gates, K experts, shared, dense parts."""
        gates = 2 * self.d_model * (self.experts + self.shared_gate) + self.biases * self.experts
        moe = self.top_k * self.flops_per_row() + gates + self.ffn_flops(self.shared_d_ff)
        return self.moe_layers * moe + self.dense_layers * self.ffn_flops(self.dense_d_ff)

    def activation_bytes(self, tokens: int) -> int:
        """Bytes of float32 activations that one layer needs at once for `tokens` tokens on one module.

        Input, normalised rows (weighted ones too), K reply rows per token, output, and the scratch of the
        widest expert GEMM.
        """
        wide = self.d_ff * (self.matrices - 1)
        return 4 * tokens * (self.d_model * (3 + self.top_k + self.weigh_input) + wide)


def _require(spec: ModelSpec, name: str, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"model.{name} is {getattr(spec, name)!r}; allowed: {allowed}")
