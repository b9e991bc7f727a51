"""blocks: a bitmap of the blocks of values worth keeping, and their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .buffers import New, placed
from .errors import CodecError
from .keeping import Keeping, set_bits
from .raw import Raw
from .segments import Buffer
from .stage import PackStage


@dataclass(frozen=True)
class Blocks(Keeping):
    """Drops blocks of `size` neighbouring values whose magnitudes are all up to `threshold`.

    Cheaper than `sparse` where zeros come in runs, with `size` times fewer bits for the map. With threshold 0
    only blocks of exact (positive) zeros go: lossless. Above 0: error at most `threshold`; NaN and Inf are
    refused. A row's last block may be shorter.
    Segments: bitmap uint8 [n, ceil(ceil(D / size) / 8)], lowest bit first, then the packer's for the kept
    values.
    """

    size: int = 16
    threshold: float = 0.0

    stage_name = "blocks"

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 2 <= self.size <= 4096:
            raise CodecError(f"blocks: size is {self.size!r}, allowed is a whole number from 2 to 4096")
        super().__post_init__()

    def encode(self, x: np.ndarray, pack: PackStage, new: New = np.empty) -> list[Buffer]:
        n, width = x.shape
        whole = width - width % self.size
        worth = self.keep(x)  # [n, D]
        keep = np.empty((n, self._blocks(width)), bool)
        # Blocks of 8 or 16 flags are read as one number: far quicker than a reduction over a short axis.
        inner = worth[:, :whole].reshape(n, whole // self.size, self.size)
        np.logical_or.reduce(_wide(inner), axis=2, out=keep[:, : whole // self.size])
        if whole < width:
            keep[:, -1] = worth[:, whole:].any(axis=1)
        bitmap = placed(np.packbits(keep, axis=1, bitorder="little"), new)
        if whole == width:
            values = x.reshape(n, whole // self.size, self.size)[keep].reshape(-1)
            counts = set_bits(bitmap) * self.size
        else:
            kept = self._spread(keep, width)
            values, counts = x[kept], np.count_nonzero(kept, axis=1)
        if isinstance(pack, Raw):
            values = placed(values, new)
        return [bitmap, *pack.encode_kept(values, counts, new)]

    def decode(
        self,
        segments: Sequence[Buffer],
        shape: tuple[int, int],
        dtype: np.dtype,
        pack: PackStage,
        out: np.ndarray | None,
    ) -> np.ndarray:
        n, width = shape
        blocks = self._blocks(width)
        bitmap = self.read_bitmap(segments, n, blocks)
        keep = np.unpackbits(bitmap, axis=1, count=blocks, bitorder="little").view(bool)
        even = width % self.size == 0
        kept = None if even else self._spread(keep, width)
        counts = set_bits(bitmap) * self.size if kept is None else np.count_nonzero(kept, axis=1)
        values = self.read_values(segments, counts, dtype, pack)
        x = np.empty(shape, values.dtype) if out is None or out.dtype != values.dtype else out
        x.fill(0)
        if kept is None:
            x.reshape(n, blocks, self.size)[keep] = values.reshape(-1, self.size)
        else:
            x[kept] = values
        return x

    def max_segment_bytes(self, shape: tuple[int, int]) -> list[int]:
        return [shape[0] * -(-self._blocks(shape[1]) // 8)]

    def _blocks(self, width: int) -> int:
        return -(-width // self.size)

    def _spread(self, keep: np.ndarray, width: int) -> np.ndarray:
        """Flags of blocks [n, B] -> flags of values [n, D]."""
        return np.repeat(keep, self.size, axis=1)[:, :width]


def _wide(flags: np.ndarray) -> np.ndarray:
    """bool [n, B, S] -> the same flags as fewer, wider numbers where S allows."""
    if flags.shape[2] % 8 == 0 and flags.strides[2] == 1 and flags.flags.c_contiguous:
        return flags.view(np.uint64)
    return flags
