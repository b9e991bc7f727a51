"""Rows that travel as they lie: all of a unit's or a job's, and which of them each pair has.

Where sender and receiver share memory, nobody need pick out the rows that a message is about: it refers to
the array that has them, with an index, and whoever computes with them takes them from there. Whatever leaves
the machine, or goes through a codec, brings only rows that it is about (`gather`). All sizes that are counted
are those of the rows that a message is about, however it travels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayemu.compression import wire
from rayemu.protocol.memory import NewRows, rows_at
from rayemu.protocol.messages import Dispatch, Reply

LEAST_LENT = 1 << 16  # bytes of rows: so few are sooner copied than lent


def carried(m: Dispatch | Reply) -> int:
    """How many rows a message is about: the distinct ones of a dispatch, one per pair of a reply."""
    if isinstance(m, Dispatch):
        return len(m.rows) if m.distinct < 0 else m.distinct
    return len(m.rows) if m.row_of_pair is None else len(m.row_of_pair)


def carried_bytes(m: Dispatch | Reply) -> int:
    """Bytes of these rows."""
    return carried(m) * m.rows.shape[1] * 4


def distinct(index: np.ndarray) -> int:
    """How many rows an index [n] names."""
    return int(np.count_nonzero(np.bincount(index)))


def frame_bytes(m: Dispatch | Reply, frame: Sequence[np.ndarray]) -> int:
    """Bytes of the frame (in pieces) of a message whose rows are raw, had they been gathered."""
    if m.row_of_pair is None:
        return sum(map(len, frame))
    count, pairs = carried(m), len(m.row_of_pair)
    header = wire.header_bytes(frame) + _packed(count) - _packed(len(m.rows))
    sizes = [count * m.rows.shape[1] * 4]
    if isinstance(m, Dispatch) and count < pairs:
        sizes.append(m.row_of_pair.nbytes)
    else:  # nothing in place of what the index is: a list of two
        header -= 1 + _packed(pairs)
    if isinstance(m, Dispatch):
        header += 1 - (1 if m.distinct < 0 else _packed(m.distinct))  # it is -1 then
        sizes.append(m.lots.nbytes)
    return wire.frame_bytes(header, sizes)


def _packed(number: int) -> int:
    """Bytes of a number from 0 in a header, which is msgpack."""
    return 1 if number < 1 << 7 else 2 if number < 1 << 8 else 3 if number < 1 << 16 else 5


def gather(m: Dispatch | Reply, new_rows: NewRows) -> None:
    """Leave a message only the rows that it is about, each once."""
    index = m.row_of_pair
    if index is None:
        return
    if isinstance(m, Dispatch):
        several, m.distinct = m.distinct != len(index), -1
        if several:  # pairs for a row
            used = np.bincount(index, minlength=len(m.rows)) > 0
            if not used.all():
                m.rows = rows_at(m.rows, np.flatnonzero(used), new_rows)
                m.row_of_pair = (np.cumsum(used) - 1)[index].astype(np.int32)
            return
    m.rows, m.row_of_pair = rows_at(m.rows, index, new_rows), None
