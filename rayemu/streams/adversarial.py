"""Traffic against a placement: the worst that a plan can meet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rayemu.model.model import Model
from rayemu.model.spec import ModelSpec
from rayemu.placement import Placement
from rayemu.streams.aim import Chosen, candidates, first_choices
from rayemu.streams.draw import hot_mass
from rayemu.streams.embedding import check_common, check_count, check_share, embed
from rayemu.streams.uniform import Uniform


@dataclass(frozen=True)
class Adversarial:
    """Tokens whose experts all live on one module, as far as there are such tokens.

    Of the `vocabulary` ids, those are chosen whose experts in the first layer with experts put the most work
    on one module: a choice counts 1 / copies there. The module is the one where the `hot` worst ids put most;
    they are `share` of all tokens, equally often, and the others are any id. It goes by the placement that
    the run begins with. `context` is how much of the previous activation stays in the next (0 to below 1),
    which blurs the aim.
    """

    vocabulary: int = 4096
    hot: int = 16
    share: float = 1.0
    context: float = 0.0

    def __post_init__(self) -> None:
        check_common(self.vocabulary, self.context)
        check_count("hot", self.hot, "ids")
        check_share(self.share)

    def tokens(self, batch_tokens: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of candidates [T] int64: any id."""
        return Uniform(self.vocabulary).tokens(batch_tokens, seed)

    def batches(self, batch_tokens: int, d_model: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of the candidates' activations x [T, D] float32."""
        return embed(self.tokens(batch_tokens, seed), self.vocabulary, d_model, seed, self.context)

    def check(self, spec: ModelSpec) -> None:
        """Refuse a model without experts."""
        if not spec.moe_layers:
            raise ValueError("kind: adversarial needs a model that has a layer with experts")

    def aimed(self, model: Model, placement: Placement, seed: int) -> Chosen:
        """The stream against this placement."""
        rows = candidates(self.vocabulary, model.spec.d_model, seed)  # [V, D]
        choices = first_choices(model, rows)  # [V, K]
        work = _work(placement, model.spec)  # [M, E]
        on_module = np.stack([shares[choices].sum(axis=1) for shares in work])  # [M, V]
        worst = np.argsort(-on_module, axis=1, kind="stable")[:, : self.hot]  # [M, hot]; ties: the lower id
        module = int(np.take_along_axis(on_module, worst, axis=1).sum(axis=1).argmax())
        mass = hot_mass(self.vocabulary, worst[module], self.share)
        return Chosen(rows, lambda batch: mass, self.context)


def _work(placement: Placement, spec: ModelSpec) -> np.ndarray:
    """The share of an expert's rows that each module computes [M, E] of the first layer with experts.

    Copies get as many rows each.
    """
    slots = placement.layer == spec.dense_layers
    experts, modules = placement.expert[slots], placement.module[slots]
    work = np.zeros((int(modules.max()) + 1, spec.experts))
    work[modules, experts] = 1 / np.bincount(experts, minlength=spec.experts)[experts]
    return work
