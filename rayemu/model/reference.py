"""The forward pass that every distributed path must equal to the bit.

The pieces (`prepare`, `route`, `shared_forward`, `combine`, `finish`) are what a module runs on its own rows;
`moe_forward` and `reference_forward` put them together in one process. Every piece treats each row alone.

Shapes: h, x, y [T, D] float32: the stack's rows, the normalised rows, a block's output; experts and weights
[T, K]; n rows that go to one expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rayemu.model.expert import expert_forward
from rayemu.model.model import Layer, Model
from rayemu.numerics import F32, denormals_kept
from rayemu.routing import Context, Gate, Routing

_CHUNK_ELEMENTS = 1 << 16  # elements (256 KiB) of output per combining step, or ...
_GATHERED_ELEMENTS = 1 << 18  # ... 1 MiB of replies: stays in the second-level cache


class Replay(Protocol):
    """What a lossy or degraded run did to its rows, so that the reference can do the same."""

    def routing(self, layer: Layer, x: F32) -> Routing | None:
        """Choices of rows x [T, D] that were made for the whole batch and recorded; None without."""

    def kept(self, layer: int, choices: int) -> npt.NDArray[np.bool_] | None:
        """[T, K] False for choices that were dropped, or None when none was."""

    def dispatch(
        self, layer: int, tokens: npt.NDArray[np.intp], choice: npt.NDArray[np.intp], rows: F32
    ) -> F32:
        """Rows [n, D] as the experts received them; choice[i] of tokens[i] is row i."""

    def combine(
        self, layer: int, tokens: npt.NDArray[np.intp], choice: npt.NDArray[np.intp], rows: F32
    ) -> F32:
        """Expert outputs [n, D] as the home received them."""


@denormals_kept()
def reference_forward(model: Model, x: F32, replay: Replay | None = None) -> F32:
    """All layers of `model` on x [T, D], with norms and residuals."""
    for layer in model.layers:
        x = finish(layer, x, moe_forward(layer, prepare(layer, x), replay))
    return x


def moe_forward(layer: Layer, x: F32, replay: Replay | None = None) -> F32:
    """One block on its own: gate, experts, weighted sum, shared expert; no norm and no residual."""
    if not layer.has_experts:
        return dense_forward(layer, x)
    recorded = replay.routing(layer, x) if replay is not None else None
    experts, weights = route(layer, x) if recorded is None else recorded
    given, weights = expert_input(layer, x, weights)
    kept = replay.kept(layer.index, experts.shape[1]) if replay is not None else None
    if kept is not None:
        weights = drop_choices(weights, kept)
    choices = experts.shape[1]
    rows = np.zeros((experts.size, x.shape[1]), np.float32)  # [T*K, D]
    order = np.argsort(experts, axis=None, kind="stable")  # rows by expert, once
    bounds = np.searchsorted(experts.reshape(-1)[order], np.arange(len(layer.experts) + 1))
    for e in np.flatnonzero(np.diff(bounds)).tolist():
        flat = order[bounds[e] : bounds[e + 1]]  # [n] positions t*K + k
        if kept is not None:
            flat = flat[kept.reshape(-1)[flat]]
        tokens, choice = np.divmod(flat, choices)
        sent = given[tokens]  # [n, D]
        if replay is not None:
            sent = replay.dispatch(layer.index, tokens, choice, sent)
        reply = expert_forward(layer.experts[e], sent)
        if replay is not None:
            reply = replay.combine(layer.index, tokens, choice, reply)
        rows[flat] = reply
    return combine(weights, rows.reshape(*experts.shape, x.shape[1]), shared_forward(layer, x))


def prepare(layer: Layer, h: F32, new_rows: Callable[[int, int], F32] | None = None) -> F32:
    """RMSNorm of the rows, h * weight / sqrt(mean(h^2) + eps), or h itself for a layer without norm.

    `new_rows` makes the memory for them, where it matters which.
    """
    if layer.norm is None:
        return h
    x = np.multiply(h, h, out=None if new_rows is None else new_rows(*h.shape))
    scale = np.add.reduce(x, axis=1, keepdims=True)  # [T, 1]
    scale *= np.float32(1.0 / h.shape[1])
    scale += np.float32(layer.norm_eps)
    np.sqrt(scale, out=scale)
    np.reciprocal(scale, out=scale)
    np.multiply(h, scale, out=x)
    np.multiply(x, layer.norm, out=x)
    return x


def route(layer: Layer, x: F32, counts: dict[str, float] | None = None) -> Routing:
    """The choices of normalised rows x [T, D] by the layer's router and gate, with nothing else known.

    What happens is added to `counts`, see `Context`.
    Of a router with scope "batch", x must be the whole batch; it is the first one, on a single module that
    holds all experts. These are a run's choices only where the router needs neither state nor context.
    """
    if layer.router.scope == "row":
        context = Context(layer.index, counts={} if counts is None else counts)
        return layer.router.choose(scored(layer, x), gate_of(layer), context)
    experts = layer.spec.experts
    context = Context(
        layer.index,
        home=np.zeros(len(x), np.int16),
        holders=np.ones((1, experts), bool),
        module_to_node=np.zeros(1, np.int32),
        state=layer.router.new_state(experts),
        counts={} if counts is None else counts,
    )
    return layer.router.choose(scored(layer, x), gate_of(layer), context)


def open_groups(layer: Layer, x: F32) -> npt.NDArray[np.unsignedinteger]:
    """The groups [T, g] that the experts of normalised rows x [T, D] are to be of, as they travel."""
    groups = layer.router.open_groups(scored(layer, x), gate_of(layer), Context(layer.index))
    limit = layer.router.group_limit
    return groups.astype(np.uint8 if limit is None or limit[0] <= 256 else np.uint16)


def route_within(layer: Layer, x: F32, groups: npt.NDArray[np.integer]) -> Routing:
    """The choices of normalised rows x [T, D] among the experts of `groups` [T, g]; of theirs, as `route`."""
    return layer.router.choose_within(scored(layer, x), gate_of(layer), Context(layer.index), groups)


def scored(layer: Layer, x: F32) -> F32:
    """What normalised rows x [T, D] tell the layer's router [T, S]."""
    return layer.router.scores(x, gate_of(layer))


def gate_of(layer: Layer) -> Gate:
    """The layer's gate; ValueError for a dense layer."""
    if layer.gate is None:
        raise ValueError(f"layer {layer.index} is dense: it has no gate to route with")
    return layer.gate


def expert_input(layer: Layer, x: F32, weights: F32) -> tuple[F32, F32]:
    """What the experts are given of rows x [T, D], and the weights [T, K] of what they return.

    These are x and `weights`, or x * weights and ones where the spec says `weigh_input`.
    """
    if not layer.spec.weigh_input:
        return x, weights
    return x * weights, np.ones_like(weights)


def shared_forward(layer: Layer, x: F32) -> F32 | None:
    """The shared expert's output [T, D], times sigmoid(x . gate) where the layer has one; None without."""
    if layer.shared is None:
        return None
    y = expert_forward(layer.shared, x)
    if layer.shared_gate is not None:
        opening = np.add.reduce(x * layer.shared_gate, axis=1, keepdims=True)  # [T, 1]
        np.negative(opening, out=opening)
        with np.errstate(over="ignore"):  # exp = inf closes the gate, which is right
            np.exp(opening, out=opening)
        opening += 1.0
        np.reciprocal(opening, out=opening)
        y *= opening
    return y


def dense_forward(layer: Layer, x: F32) -> F32:
    """The FFN of a layer without routed experts on x [T, D]."""
    if layer.shared is None:
        raise ValueError(f"layer {layer.index} has neither experts nor a dense FFN")
    return expert_forward(layer.shared, x)


def drop_choices(weights: F32, kept: npt.NDArray[np.bool_]) -> F32:
    """Weights [T, K] with dropped choices at 0 and the others scaled to the row's former sum.

    A row that lost every choice gets zeros.
    """
    remaining = np.where(kept, weights, np.float32(0.0))  # [T, K]
    total = np.add.reduce(weights, axis=1, keepdims=True)  # [T, 1]
    left = np.add.reduce(remaining, axis=1, keepdims=True)  # [T, 1]
    touched = ~kept.all(axis=1, keepdims=True) & (left > 0)
    remaining *= np.divide(total, left, out=np.ones_like(left), where=touched)
    return remaining


def combine(weights: F32, rows: F32, shared: F32 | None = None, out: F32 | None = None) -> F32:
    """Weighted sum of replies in the order k = 0 .. K-1, then plus the shared expert's output.

    weights [T, K], rows [T, K, D], shared [T, D] or None -> [T, D]. Products and sums are rounded to float32
    one by one. The row of a dropped choice must be zeros.
    """
    if out is None:
        out = np.empty((len(rows), rows.shape[2]), np.float32)
    return combine_from(lambda low, high: rows[low:high].swapaxes(0, 1), weights, shared, out)


def combine_from(
    terms_of: Callable[[int, int], Iterable[F32]], weights: F32, shared: F32 | None, out: F32
) -> F32:
    """The same where `terms_of(low, high)` gives the replies of each choice in turn, [high - low, D] each."""
    tokens, width = out.shape
    choices = weights.shape[1]
    step = max(1, _CHUNK_ELEMENTS // max(width, 1), _GATHERED_ELEMENTS // max(width * choices, 1))
    product = np.empty((min(step, tokens), width), np.float32)
    for start in range(0, tokens, step):
        part = slice(start, min(start + step, tokens))
        y, t = out[part], product[: part.stop - start]
        if not choices:
            y[...] = 0.0
        for k, term in enumerate(terms_of(start, part.stop)):
            np.multiply(term, weights[part, k : k + 1], out=t if k else y)
            if k:
                np.add(y, t, out=y)
        if shared is not None:
            np.add(y, shared[part], out=y)
    return out


def finish(layer: Layer, h: F32, y: F32, out: F32 | None = None) -> F32:
    """The block's result: h + y with a residual, else y."""
    return np.add(h, y, out=out) if layer.residual else y
