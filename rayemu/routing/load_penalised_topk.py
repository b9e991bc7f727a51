"""Load-penalised router: an expert that was chosen much must be better to be chosen again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing, check_choices, top_k
from rayemu.routing.learned import F64, kept, loads
from rayemu.routing.router import Context, Router
from rayemu.routing.softmax_weights import softmax_weights


@dataclass(frozen=True)
class LoadPenalisedTopK(Router):
    """Softmax top-k by logit minus `factor` times the expert's load, the mean expert's load being 1.

    Loads are shares of the choices so far, of which those of a batch count `decay` times as much with each
    batch that follows; before the first choice all are 0. With `chunk` > 0 a batch's own choices count too,
    once a chunk of so many rows has them. Weights are the softmax of the logits without penalty, with
    `renormalise` divided by their sum over the K choices, times `scaling`. With a factor of 0 it is
    `softmax_topk` to the bit. The third of the texts has score - 0.1 load, load counting tokens.

    A large factor without chunks makes all rows flee the last batch's experts at once, and come back with the
    next. State: decayed numbers of choices [E]. Costs 1.25 times what `softmax_topk` does, 1.33 in chunks of
    256: a copy with the penalty, and counts per chunk.
    Counts `choices_of_fullest_expert` and `choices_of_mean_expert`, of each batch.
    """

    top_k: int
    factor: float = 0.1
    decay: float = 0.9
    chunk: int = 0
    renormalise: bool = True
    scaling: float = 1.0
    scope: ClassVar[str] = "batch"

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve these parameters."""
        check_choices(self.top_k, experts)
        if not 0 <= self.factor < np.inf:
            raise ValueError(f"routing.factor is {self.factor}; allowed: a number >= 0")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"routing.decay is {self.decay}; allowed: 0 to 1")
        if self.chunk < 0:
            raise ValueError(f"routing.chunk is {self.chunk}; allowed: rows >= 1, or 0 for the whole batch")

    def new_state(self, experts: int) -> F64:
        """No choices yet [E]."""
        return np.zeros(experts)

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Logits [T, E] -> choices [T, K] by descending penalised logit, ties to the lower expert."""
        rows, experts = scores.shape
        state = kept(context, experts)  # [E]
        state *= self.decay
        chosen = np.empty((rows, self.top_k), np.intp)
        step = self.chunk or max(rows, 1)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            load = state * (experts / max(state.sum(), 1e-300))
            penalised = scores[part] - (self.factor * load).astype(np.float32)
            chosen[part], _ = top_k(penalised, self.top_k)
            state += np.bincount(chosen[part].ravel(), minlength=experts)
        loads(context, chosen, experts)
        return Routing(
            chosen.astype(np.int32), softmax_weights(scores, chosen, self.renormalise, self.scaling)
        )
