"""Replays what a lossy or degraded run did to its rows inside the reference.

The home notes for every row and choice which lossy codecs its accepted reply passed through; with that
note the single-process reference gives the same bits.
"""

from __future__ import annotations

import numpy as np

from rayemu.compression import Codec
from rayemu.protocol.messages import DROPPED, MODULE_CODEC, NODE_CODEC


class PathReplay:
    """Replay for `reference_forward`, from a batch's noted paths [L, T, K] (uint8 bit sets).

    On dispatch a row meets the node link's codec before the module link's; on combine the reverse.
    """

    def __init__(
        self, dispatch_paths: np.ndarray, combine_paths: np.ndarray, module: Codec, node: Codec
    ) -> None:
        self.dispatch_paths, self.combine_paths = dispatch_paths, combine_paths
        self.outward = ((NODE_CODEC, node), (MODULE_CODEC, module))

    def kept(self, layer: int) -> np.ndarray | None:
        """Return which choices were computed [T, K], or None if all were."""
        kept = self.dispatch_paths[layer] != DROPPED
        return None if kept.all() else kept

    def dispatch(self, layer: int, tokens: np.ndarray, choice: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the rows [n, D] as the experts saw them."""
        return self._apply(self.dispatch_paths[layer, tokens, choice], rows, self.outward)

    def combine(self, layer: int, tokens: np.ndarray, choice: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the outputs [n, D] as the home saw them."""
        return self._apply(self.combine_paths[layer, tokens, choice], rows, self.outward[::-1])

    @staticmethod
    def _apply(paths: np.ndarray, rows: np.ndarray, codecs: tuple[tuple[int, Codec], ...]) -> np.ndarray:
        for bit, codec in codecs:
            passed = (paths & bit) != 0
            if passed.any() and not codec.lossless:
                rows = np.array(rows)
                rows[passed] = codec.roundtrip(rows[passed])
        return rows
