"""Two-stage router: near experts where they are good enough, else all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing, check_choices, softmax_powers, top_k
from rayemu.routing.nearness import count_choices, near
from rayemu.routing.router import Context, Router
from rayemu.routing.softmax_weights import softmax_weights, taken

WITHIN = ("module", "node")
MEASURES = ("best", "least", "mass")


@dataclass(frozen=True)
class TwoStageTopK(Router):
    """Top-k among the experts near the row's home, or among all where the near ones are not good enough.

    Near are the experts that the home holds, or (`within: node`) that some module of its node holds. They
    are good enough where `measure` is at least `threshold`: the `best` near probability, the `least` of the
    K best near ones (as in the second of the texts, with 0.15), or the `mass` of all near ones; p is the
    softmax over all experts. With a threshold of 0 every row stays near, from 1 on it is `softmax_topk` to
    the bit. A row that stays where fewer than K experts are gets fewer choices; one with no expert near goes
    to all, as do rows with NaN. Weights are those of p, with `renormalise` divided by their sum over the
    choices, times `scaling`.

    Needs home, holders and nodes of the context. Counts `rows`, `rows_chosen_nearby`,
    `rows_with_fewer_choices`, `choices`, `choices_outside_module` and `choices_outside_node`.
    Costs 2.2 times what `softmax_topk` does, 3.1 where no row stays: a softmax over all experts, and a
    second choice of rows that go to all.
    """

    top_k: int
    threshold: float = 0.15
    within: str = "node"
    measure: str = "best"
    renormalise: bool = True
    scaling: float = 1.0
    scope: ClassVar[str] = "batch"

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve these parameters."""
        check_choices(self.top_k, experts)
        if not self.threshold >= 0:
            raise ValueError(f"routing.threshold is {self.threshold}; allowed: 0 and above")
        for name, allowed in (("within", WITHIN), ("measure", MEASURES)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"routing.{name} is {getattr(self, name)!r}; allowed: one of {', '.join(allowed)}"
                )

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Logits [T, E] -> choices [T, K] by descending logit, ties to the lower expert, -1 last."""
        around = near(context, *scores.shape)
        held = around.module if self.within == "module" else around.node  # [M, E]
        far = (~held)[context.home]  # [T, E]
        if self.threshold < 1:
            open_to = scores.copy()
            np.copyto(open_to, np.float32(-np.inf), where=far)
            chosen, _ = top_k(open_to, self.top_k, far)  # [T, K]
            chosen[np.take_along_axis(far, chosen, axis=1)] = -1
            stays = self._good_enough(scores, chosen, far)  # [T]
        else:
            chosen, stays = np.empty((len(far), self.top_k), np.intp), np.zeros(len(far), bool)
        goes = np.flatnonzero(~stays)
        chosen[goes], _ = top_k(scores[goes], self.top_k)
        context.count("rows", len(stays))
        context.count("rows_chosen_nearby", int(np.count_nonzero(stays)))
        context.count("rows_with_fewer_choices", int(np.count_nonzero(chosen[:, -1] < 0)))
        count_choices(context, chosen, around)
        return Routing(
            chosen.astype(np.int32), softmax_weights(scores, chosen, self.renormalise, self.scaling)
        )

    def _good_enough(
        self, logits: F32, chosen: npt.NDArray[np.intp], far: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """Which rows [T] of logits [T, E] are served well by near choices [T, K], or all that is not far."""
        powers = softmax_powers(logits)  # [T, E]
        total = np.add.reduce(powers, axis=1)  # [T]
        if self.measure == "mass":
            np.copyto(powers, np.float32(0), where=far)
            found = np.add.reduce(powers, axis=1)
        elif self.measure == "best":
            found = taken(powers, chosen[:, :1])[:, 0]
        else:
            found = np.where(chosen >= 0, taken(powers, chosen), np.float32(np.inf)).min(axis=1)
        good: npt.NDArray[np.bool_] = found >= total * np.float32(self.threshold)  # not with NaN
        return good & (chosen[:, 0] >= 0)
