"""Large pieces of frames in shared memory: what travels through the socket is where they lie.

A socket copies every byte into the kernel and out again, into fresh pages. Between processes of one machine
the sender copies a piece once, to its *shelf*, and the receiver reads it there. A byte per piece says when
the receiver is done with it. The shelf is anonymous memory that others map through /proc: nothing is left
behind however its owner ends.
"""

from __future__ import annotations

import mmap
import os
import struct
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from rayemu.cluster.pulse import process_state

SHELF_BYTES = 128 << 20  # address space; memory is only taken where pieces lie
LEAST_BYTES = 1 << 16  # smaller pieces travel themselves
MARK = b"RYSH"  # begins the first part of a message whose frame is partly shelved; frames begin with RYMU
_SLOTS = 4096  # bytes at the beginning of a shelf, one per piece: 1 when its receiver is done
_PAGE = 4096
_HEAD = struct.Struct("<4sIII")  # mark, pid and descriptor of the shelf, pieces of the frame
_PLACE = struct.Struct(
    "<QQQ"
)  # of each piece: slot, offset, bytes; a slot of 0: the next part of the message


class Shelf:
    """One process's shelf, from which others read. Not for use by several threads."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("rayemu", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, SHELF_BYTES)
        self._map = mmap.mmap(self.descriptor, SHELF_BYTES)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._held: list[tuple[int, int, int, int]] = []  # (offset, end, slot, pid of the reader), by offset
        self._free_slots = list(range(1, _SLOTS))
        self.token = f"{os.getpid()}.{self.descriptor}"

    def message(self, frame: Sequence[Any], reader: int) -> list[Any]:
        """Turn a frame in pieces into the parts of a message for process `reader`.

        Pieces for which there is no room travel themselves.
        """
        if all(len(piece) < LEAST_BYTES for piece in frame):
            return list(frame)
        self._reclaim()
        places, parts = [], []
        for piece in frame:
            place = self._place(piece, reader) if len(piece) >= LEAST_BYTES else None
            places.append(_PLACE.pack(*(place or (0, 0, 0))))
            if place is None:
                parts.append(piece)
        pid, descriptor = os.getpid(), self.descriptor
        return [_HEAD.pack(MARK, pid, descriptor, len(frame)) + b"".join(places), *parts]

    def _place(self, piece: Any, reader: int) -> tuple[int, int, int] | None:
        """Copy a piece to the first gap that holds it; return (slot, offset, bytes)."""
        size = len(piece)
        offset, index = _SLOTS, 0
        for index, (begin, end, *_) in enumerate([*self._held, (SHELF_BYTES, 0, 0, 0)]):  # noqa: B007
            if begin - offset >= size:
                break
            offset = -(-end // _PAGE) * _PAGE
        else:
            return None
        if not self._free_slots:
            return None
        slot = self._free_slots.pop()
        self._map[slot] = 0
        self._held.insert(index, (offset, offset + size, slot, reader))
        self._bytes[offset : offset + size] = np.frombuffer(piece, np.uint8)
        return slot, offset, size

    def _reclaim(self) -> None:
        """Take back what readers are done with; what a dead one held, once the shelf fills up."""
        crowded = len(self._held) > _SLOTS // 2 or (self._held and self._held[-1][1] > SHELF_BYTES // 2)
        dead = {p for p in {h[3] for h in self._held} if process_state(p) in ("Z", "X")} if crowded else ()
        kept = []
        for held in self._held:
            if self._map[held[2]] or held[3] in dead:
                self._free_slots.append(held[2])
            else:
                kept.append(held)
        self._held = kept


class Readers:
    """The shelves of other processes, as this one reads them."""

    def __init__(self) -> None:
        self._maps: dict[tuple[int, int], mmap.mmap] = {}
        self._lent: dict[int, tuple[Any, mmap.mmap, int]] = {}

    def open(self, token: str) -> int | None:
        """Map the shelf that a process announced; return the process's id, None if it cannot be reached."""
        pid, _, descriptor = token.partition(".")
        if not pid:
            return None
        self._maps.pop((int(pid), int(descriptor)), None)  # an earlier process may have had these numbers
        return int(pid) if self._map(int(pid), int(descriptor)) is not None else None

    def frame(self, parts: list[Any]) -> list[Any] | None:
        """Turn the parts of a message back into the frame's pieces; None for what no shelf's owner sent."""
        head = parts[0]
        if bytes(head[:4]) != MARK:
            return parts
        try:
            _, pid, descriptor, count = _HEAD.unpack_from(head)
            if len(head) != _HEAD.size + count * _PLACE.size:
                return None
            shelf, rest, pieces = self._map(pid, descriptor), iter(parts[1:]), []
            for slot, offset, size in _PLACE.iter_unpack(head[_HEAD.size :]):
                if not slot:
                    pieces.append(next(rest))
                elif shelf is None or slot >= _SLOTS or not _SLOTS <= offset <= offset + size <= SHELF_BYTES:
                    return None
                else:
                    pieces.append(self._borrowed(shelf, slot, offset, size))
            return pieces
        except (struct.error, StopIteration):
            return None

    def _borrowed(self, shelf: mmap.mmap, slot: int, offset: int, size: int) -> np.ndarray:
        """Return bytes of a shelf that are given back when the last array or view of them is gone."""
        piece = np.frombuffer(shelf, np.uint8, size, offset)
        piece.flags.writeable = False
        lent = weakref.ref(piece, self._give_back)
        self._lent[id(lent)] = lent, shelf, slot
        return piece

    def _give_back(self, lent: Any) -> None:
        _, shelf, slot = self._lent.pop(id(lent))
        shelf[slot] = 1

    def _map(self, pid: int, descriptor: int) -> mmap.mmap | None:
        known = self._maps.get((pid, descriptor))
        if known is None:
            for other in [key for key in self._maps if process_state(key[0]) in ("Z", "X")]:
                del self._maps[other]
            try:
                theirs = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
                try:
                    known = self._maps[pid, descriptor] = mmap.mmap(theirs, SHELF_BYTES)
                finally:
                    os.close(theirs)
            except (OSError, ValueError):
                return None
        return known


def new_shelf() -> Shelf | None:
    """Make a shelf where the system has what it needs (Linux), else None."""
    try:
        return Shelf()
    except (AttributeError, OSError):
        return None
