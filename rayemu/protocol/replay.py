"""Replays what a lossy or degraded run did to its rows inside the reference.

The home notes for every row and choice which lossy codecs its accepted reply passed through; with that
note the single-process reference gives the same bits.
"""

from __future__ import annotations

import numpy as np

from rayemu.compression import Codec
from rayemu.model.model import Layer
from rayemu.model.reference import route, scored
from rayemu.protocol.decisions import Decisions
from rayemu.protocol.messages import DROPPED, MODULE_SHIFT, NODE_SHIFT
from rayemu.routing import Routing


class PathReplay:
    """Replay for `reference_forward`, from what a batch's result notes: paths [L, T, K] uint8 and decisions.

    K is that of the layer with most choices among those of which something was noted.

    On dispatch a row meets the node link's codec before the module link's; on combine the reverse.
    """

    def __init__(
        self,
        dispatch_paths: np.ndarray | None,
        combine_paths: np.ndarray | None,
        codecs: tuple[Codec, ...],
        decisions: Decisions | None = None,
    ) -> None:
        self.codecs, self.decisions = codecs, decisions
        self.counts: dict[str, float] = {}  # what happened as choices of rows were made again
        self.told: dict[int, np.ndarray] = {}  # scores of layers whose choices are recorded
        self.dispatch_paths, self.combine_paths = dispatch_paths, combine_paths

    def routing(self, layer: Layer, x: np.ndarray) -> Routing:
        """Return the choices of rows x [T, D]: recorded for the whole batch, or made again and counted."""
        recorded = None if self.decisions is None else self.decisions.routing(layer.index, len(x))
        if recorded is None:
            return route(layer, x, self.counts)
        self.told[layer.index] = scored(layer, x)
        return recorded

    def kept(self, layer: int, choices: int) -> np.ndarray | None:
        """Return which choices were computed [T, K], or None if all were."""
        if self.dispatch_paths is None:
            return None
        kept = self.dispatch_paths[layer, :, :choices] != DROPPED  # narrower where nothing was noted
        return None if kept.all() else kept

    def dispatch(self, layer: int, tokens: np.ndarray, choice: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the rows [n, D] as the experts saw them."""
        if self.dispatch_paths is None:
            return rows
        paths = _paths_of(self.dispatch_paths, layer, tokens, choice)
        return self._apply(paths, rows, (NODE_SHIFT, MODULE_SHIFT))

    def combine(self, layer: int, tokens: np.ndarray, choice: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the outputs [n, D] as the home saw them."""
        if self.combine_paths is None:
            return rows
        paths = _paths_of(self.combine_paths, layer, tokens, choice)
        return self._apply(paths, rows, (MODULE_SHIFT, NODE_SHIFT))

    def _apply(self, paths: np.ndarray, rows: np.ndarray, order: tuple[int, int]) -> np.ndarray:
        for shift in order:
            numbers = paths >> shift & 0x0F
            for number in np.unique(numbers[numbers > 0]).tolist():
                passed = numbers == number
                rows = np.array(rows)
                rows[passed] = self.codecs[number].roundtrip(rows[passed])
        return rows


def _paths_of(paths: np.ndarray, layer: int, tokens: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """Paths [n] of choices of tokens in a layer; where it has more choices than were noted, all are 0."""
    return paths[layer, tokens, np.minimum(choice, paths.shape[2] - 1)]
