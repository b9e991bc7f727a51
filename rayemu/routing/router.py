"""What a router is, and what it may know when it chooses.

Shapes: T tokens, K choices per token, E experts, M modules, D model width, S what a row tells the router.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing
from rayemu.routing.offers import Offer

# Metadata of a dataclass field that names a file; see `located`.
FILE = {"file": True}


# Of a context that says nothing of these: made once, since one is made for every unit's layer.
_NO_HOMES, _NO_HOLDERS, _NO_NODES = np.zeros(0, np.int16), np.zeros((0, 0), bool), np.zeros(0, np.int32)


@dataclass(frozen=True, eq=False)
class Context:
    """What else a choice may depend on; routers of scope "row" may use `layer` alone.

    `home` [T] is the module that each row belongs to, `holders` [M, E] says which live modules hold which
    experts, `module_to_node` [M] where they are. `state` is what the router keeps for this layer from batch
    to batch, as its `new_state` made it: it may be changed. `counts` is for what happened, by name: it is
    summed over layers and batches, and shown with the run.
    """

    layer: int = 0
    batch: int = 0
    home: npt.NDArray[np.int16] = field(default_factory=lambda: _NO_HOMES)
    holders: npt.NDArray[np.bool_] = field(default_factory=lambda: _NO_HOLDERS)
    module_to_node: npt.NDArray[np.int32] = field(default_factory=lambda: _NO_NODES)
    state: Any = None
    counts: dict[str, float] = field(default_factory=dict)

    def count(self, name: str, amount: float) -> None:
        """Add to what happened."""
        self.counts[name] = self.counts.get(name, 0.0) + float(amount)


class Router:
    """A routing strategy: a frozen dataclass of its parameters, `top_k` among them.

    A row tells the router its *scores* [S], which depend on that row alone, to the bit; by default these are
    the gate's logits. The choice is made from the scores.

    With scope "row" it too depends on that row alone, so that routing in one place or in many gives the same
    result, and nobody has to write it down. With scope "batch" it may look at all rows of a layer's batch, at
    the context, and at a state that goes from batch to batch: then it is made in one place, the coordinator,
    which collects the scores of all homes, and it is recorded with the result.
    """

    top_k: int
    scope: ClassVar[str] = "row"
    varies: ClassVar[bool] = False  # whether a token may get another number of experts than top_k

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve the parameters."""
        raise NotImplementedError

    def check_run(self, layers: Sequence[int], batches: int, batch_tokens: int) -> None:
        """Raise ValueError when so many batches through `layers` with experts cannot be served."""
        return None

    def most(self, experts: int) -> int:
        """The most choices that a token can get."""
        return self.top_k

    def new_state(self, experts: int) -> Any:
        """What is kept of one layer from batch to batch, before the first; None for nothing."""
        return None

    def costs(self, tokens: int) -> tuple[float, int]:
        """About what a choice for a batch takes, of a router that is slow: seconds on one core, and bytes."""
        return 0.0, 0

    def scores(self, x: F32, gate: Gate) -> F32:
        """What rows x [T, D] tell the router, [T, S]; a row's bits do not depend on the other rows."""
        return gate.logits(x)

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """scores [T, S] -> Routing [T, K], K at most `most`; may overwrite `scores`.

        -1 in the place of an expert is no choice, and its weight is 0.
        """
        raise NotImplementedError

    @property
    def merges(self) -> bool:
        """Whether choices can be merged from parts that score some experts each, see `merge`."""
        return False

    def merge(self, offers: Sequence[Offer]) -> Routing:
        """What `choose` gives, to the bit, from the best `top_k` of the logits of each part's experts."""
        raise NotImplementedError

    @property
    def group_limit(self) -> tuple[int, int] | None:
        """How many groups the experts are in, and to how many of them a token's choices are limited.

        None where nothing is chosen before the experts; else `open_groups` and `choose_within` are `choose`.
        """
        return None

    def open_groups(self, scores: F32, gate: Gate, context: Context) -> npt.NDArray[np.integer]:
        """scores [T, S] -> the groups [T, g] that each token's experts are to be of."""
        raise NotImplementedError

    def choose_within(
        self, scores: F32, gate: Gate, context: Context, groups: npt.NDArray[np.integer]
    ) -> Routing:
        """scores [T, S] -> Routing [T, K] among the experts of `groups` [T, g]; may overwrite `scores`."""
        raise NotImplementedError

    def route(self, x: F32, gate: Gate, context: Context | None = None) -> Routing:
        """x [T, D] -> Routing [T, K]: scores and choice at once."""
        return self.choose(self.scores(x, gate), gate, Context() if context is None else context)


def located(strategy: type[Router], params: Mapping[str, Any]) -> dict[str, Any]:
    """A router's parameters with the files that they name from the root, the same in every process."""
    files = {entry.name for entry in fields(strategy) if entry.metadata.get("file")}  # type: ignore[arg-type]
    return {
        name: os.path.abspath(os.path.expanduser(value))
        if name in files and value and isinstance(value, str)
        else value
        for name, value in params.items()
    }
