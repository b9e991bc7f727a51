"""A router that checks what another one chooses, and mends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing, check_choices
from rayemu.routing.nested import NESTED, inner, score_columns
from rayemu.routing.router import Context, Router
from rayemu.routing.row_bits import WORDS, keys, row_hash
from rayemu.routing.verify import broken_rows, recovered, violations


@dataclass(frozen=True)
class Verified(Router):
    """Another router's choices, checked; rows that break an invariant are chosen anew.

    `router` is {kind: ..., parameters}, softmax_topk by default. What is checked says
    `rayemu.routing.verify.violations`; of that a router need not promise that weights sum to `total`, that
    they are `ordered`, and that there are more than `least` choices, so these are checked as they are given.
    Broken rows are chosen by `recovered`: by the gate's logits, or where these are NaN by the row's bits, in
    turn. Rows that are repaired are counted as `repaired`, and by invariant as `violated_<name>`.

    Against softmax_topk with T = 4096, D = 1024, E = 64, K = 8, one thread: 1.1 times the time, and a
    product with the gate more where the other router's scores are not the gate's logits.
    """

    varies: ClassVar[bool] = True  # as what is inside may
    top_k: int
    router: Mapping[str, Any] = field(
        default_factory=lambda: {"kind": "softmax_topk"}, hash=False, metadata=NESTED
    )
    total: float | None = None
    ordered: bool = False
    least: int = 1

    def check(self, experts: int) -> None:
        """Raise ValueError when the other router or a repair cannot serve `experts` experts."""
        check_choices(self.top_k, experts)
        most = inner(self.router, "router", self.top_k, experts).most(experts)
        if self.total is not None and not self.total > 0:
            raise ValueError(f"routing.total is {self.total}; allowed: above 0, or none")
        if not 0 <= self.least <= min(most, self.top_k):
            raise ValueError(f"routing.least is {self.least}; allowed: 0 to {min(most, self.top_k)}")

    def most(self, experts: int) -> int:
        """As many as the other router gives, or a repair."""
        return max(self.top_k, self._inner().most(experts))

    def scores(self, x: F32, gate: Gate) -> F32:
        """x [T, D] -> the other router's scores, the logits where these are others, and bits of the row."""
        router = self._inner()
        own = router.scores(x, gate)
        parts = [own]
        if type(router).scores is not Router.scores:
            parts.append(gate.logits(x))
        bits = np.zeros((len(x), WORDS), np.float32)
        lost = np.flatnonzero(np.isnan(parts[-1]).any(axis=1))  # of others they are not needed
        bits[lost] = row_hash(x[lost], 0)
        return np.concatenate([*parts, bits], axis=1)

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Scores -> the other router's choices [T, K], those of broken rows anew."""
        router, experts = self._inner(), gate.weight.shape[1]
        told = scores[:, : score_columns(router, gate)].copy()  # to be overwritten
        routing = router.choose(told, gate, context)
        found = violations(
            routing, experts, router.most(experts), self.least, total=self.total, ordered=self.ordered
        )
        rows = broken_rows(found)
        for name, some in found.items():
            context.count(f"violated_{name}", some.size)
        context.count("repaired", rows.size)
        if routing.experts.shape[1] < self.top_k:  # there must be room for a repair, needed or not
            more = ((0, 0), (0, self.top_k - routing.experts.shape[1]))
            chosen = np.pad(routing.experts, more, constant_values=-1)
            routing = Routing(chosen, np.pad(routing.weights, more))
        if not rows.size:
            return routing
        logits, bits = scores[:, -WORDS - experts : -WORDS], keys(scores[:, -WORDS:])
        return recovered(routing, logits, rows, self.top_k, 1.0 if self.total is None else self.total, bits)

    def _inner(self) -> Router:
        return inner(self.router, "router", self.top_k)
