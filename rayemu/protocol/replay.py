"""Replays what a lossy or degraded run did to its rows inside the reference.

The home notes for every row and choice which lossy codecs its accepted reply passed through; with that
note the single-process reference gives the same bits.
"""

from __future__ import annotations

import numpy as np

from rayemu.compression import Codec
from rayemu.protocol.messages import DROPPED, MODULE_SHIFT, NODE_SHIFT


class PathReplay:
    """Replay for `reference_forward`, from a batch's noted paths [L, T, K] uint8 and the run's codecs.

    On dispatch a row meets the node link's codec before the module link's; on combine the reverse.
    """

    def __init__(
        self, dispatch_paths: np.ndarray, combine_paths: np.ndarray, codecs: tuple[Codec, ...]
    ) -> None:
        self.dispatch_paths, self.combine_paths = dispatch_paths, combine_paths
        self.codecs = codecs

    def kept(self, layer: int) -> np.ndarray | None:
        """Return which choices were computed [T, K], or None if all were."""
        kept = self.dispatch_paths[layer] != DROPPED
        return None if kept.all() else kept

    def dispatch(self, layer: int, tokens: np.ndarray, choice: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the rows [n, D] as the experts saw them."""
        return self._apply(self.dispatch_paths[layer, tokens, choice], rows, (NODE_SHIFT, MODULE_SHIFT))

    def combine(self, layer: int, tokens: np.ndarray, choice: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the outputs [n, D] as the home saw them."""
        return self._apply(self.combine_paths[layer, tokens, choice], rows, (MODULE_SHIFT, NODE_SHIFT))

    def _apply(self, paths: np.ndarray, rows: np.ndarray, order: tuple[int, int]) -> np.ndarray:
        for shift in order:
            numbers = paths >> shift & 0x0F
            for number in np.unique(numbers[numbers > 0]).tolist():
                passed = numbers == number
                rows = np.array(rows)
                rows[passed] = self.codecs[number].roundtrip(rows[passed])
        return rows
