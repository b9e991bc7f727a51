"""Whether choices for whole batches are what their routers say, by the record: each is made once more.

The reference replays recorded choices, so it would repeat a wrong one; this is the check that finds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rayemu.model.model import Model
from rayemu.numerics import F32
from rayemu.protocol.client import BatchResult
from rayemu.protocol.decisions import DECISIONS, Decisions, padded
from rayemu.protocol.epochs import view_of
from rayemu.protocol.messages import Epoch
from rayemu.routing import Context, Routing

RUN_CHOICES = "choices.npz"  # in a run folder


class _Made(NamedTuple):
    batch: int
    epoch: int
    own: bool  # the scores of all rows are those that it was made from
    asked_by: np.ndarray  # [T] int16
    scores: F32  # [T, S]
    routing: Routing  # [T, K]


class DecisionCheck:
    """Makes the decisions of a run again, those of a layer in their order, as its router's state wants it.

    `epochs` are the memberships that decisions were made in, by number. What depends on one that is not
    known, on a decision that was lost with its batch, or on scores of a lost home whose rows lossy codecs had
    changed in another way than those that came out, is not checked.
    """

    def __init__(self, model: Model, module_to_node: np.ndarray, epochs: Mapping[int, Epoch]) -> None:
        self.model, self.module_to_node, self.epochs = model, module_to_node, epochs
        self.checked = 0
        self.wrong: list[tuple[int, int]] = []  # batch and layer of decisions
        self._unknown = 0
        self._states: dict[int, Any] = {}
        self._lost: set[int] = set()  # layers whose state cannot be told any more
        self._next: dict[int, int] = {}
        self._waiting: dict[int, dict[int, _Made]] = {}

    @property
    def unchecked(self) -> int:
        """Decisions that could not be made again."""
        return self._unknown + sum(map(len, self._waiting.values()))

    def take(self, batch: int, decisions: Decisions, told: Mapping[int, F32]) -> None:
        """Take in a batch's decisions, and by layer the scores [T, S] of its rows."""
        layers: dict[int, list[Any]] = {}
        for part, _ in decisions:
            layers.setdefault(part.layer, []).append(part)
        for layer, parts in layers.items():
            scores = told[layer]
            asked_by = np.zeros(len(scores), np.int16)
            for part in parts:
                asked_by[part.start : part.start + part.rows] = part.asked_by
            routing = decisions.routing(layer, len(scores))
            assert routing is not None
            first = parts[0]
            waiting = self._waiting.setdefault(layer, {})
            own = all(part.own for part in parts)
            waiting[first.order] = _Made(batch, first.epoch, own, asked_by, scores, routing)
            router = self.model.layers[layer].router
            if router.new_state(self.model.spec.experts) is None:
                self._check(layer, waiting.pop(first.order))
            while self._next.get(layer, 0) in waiting:
                order = self._next.get(layer, 0)
                self._next[layer] = order + 1
                self._check(layer, waiting.pop(order))

    def _check(self, layer: int, made: _Made) -> None:
        of, spec = self.model.layers[layer], self.model.spec
        assert of.gate is not None
        if layer not in self._states:
            self._states[layer] = of.router.new_state(spec.experts)
        state = self._states[layer]
        known = made.epoch in self.epochs
        same = None  # cannot be told
        if made.own and self.epochs and layer not in self._lost:
            nearest = self.epochs[min(self.epochs, key=lambda n: abs(n - made.epoch))]
            view = view_of(nearest, self.module_to_node, (spec.layers, spec.experts))
            context = Context(
                layer, made.batch, made.asked_by, view.holders(layer), self.module_to_node, state
            )
            again = padded(of.router.choose(made.scores.copy(), of.gate, context))
            same = np.array_equal(again.experts, made.routing.experts)
            same = same and np.array_equal(again.weights, made.routing.weights, equal_nan=True)
        if same is None or not (same or known):
            self._unknown += 1
            if state is not None:
                self._lost.add(layer)
            return
        self.checked += 1
        if not same:
            self.wrong.append((made.batch, layer))


def save_choices(path: Path, results: Iterable[BatchResult]) -> None:
    """Write the recorded choices of all batches that have some; nothing where none has.

    `batch` [n] says of which each of `parts` [n, 8] is (see `rayemu.protocol.decisions.Part`); `experts` and
    `weights` are flat, part by part.
    """
    found = [(r.batch, r.decisions) for r in results if r.decisions is not None and r.failure is None]
    if not found:
        return
    whole = Decisions.of([one for _, decisions in found for one in decisions])
    batch = np.repeat([number for number, _ in found], [len(one.parts) for _, one in found])
    np.savez_compressed(path, batch=batch, parts=whole.parts, experts=whole.experts, weights=whole.weights)


def load_choices(path: Path) -> dict[int, Decisions]:
    """Read what `save_choices` wrote: the decisions of each batch."""
    with np.load(path, allow_pickle=False) as arrays:
        batch, parts, experts, weights = (arrays[name] for name in ("batch", "parts", "experts", "weights"))
    whole = list(Decisions(parts, experts, weights))
    return {
        int(number): Decisions.of([whole[n] for n in np.flatnonzero(batch == number).tolist()])
        for number in np.unique(batch)
    }


def summed_up(results: Iterable[BatchResult], counts: Mapping[str, float], moe_layers: int) -> dict[str, Any]:
    """What a run's summary says of its choices; empty where no batch was finished.

    `counts` is what routers counted: those of whole batches as they chose, those of rows as a run with
    `check: exact` made their choices again. `choices_per_token` is the mean over layers with experts. For
    whole batches there are also the number of `decisions`, one for each batch and layer, and
    `tokens_without_expert`, in each of these layers.
    """
    decided = tokens = nobody = chosen = 0
    for result in results:
        if result.failure is not None:
            continue
        tokens += len(result.delivered) * moe_layers
        chosen += int(result.expert_tokens.sum())
        if result.decisions is not None:
            decided += len({part.layer for part, _ in result.decisions})
            nobody += sum(int((routing.experts < 0).all(axis=1).sum()) for _, routing in result.decisions)
    if not tokens:
        return {}
    of_batches = {DECISIONS: decided, "tokens_without_expert": nobody} if decided else {}
    return {"routing": {**counts, **of_batches, "choices_per_token": chosen / tokens}}
