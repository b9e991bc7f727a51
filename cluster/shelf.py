"""Large pieces of frames in shared memory: what travels through the socket is where they lie.

A socket copies every byte into the kernel and out again, into fresh pages. Between processes of one machine
a piece lies on the sender's *shelf*, made there or copied once, and the receiver reads it there. A byte per
piece says when the receiver is done with it. The shelf is anonymous memory that others map through /proc:
nothing is left behind however its owner ends.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import weakref
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rayemu.cluster.pulse import process_state
from rayemu.compression.wire import ALIGNMENT

SHELF_BYTES = 128 << 20  # address space; memory is only taken where pieces lie
RECLAIM_BYTES = 4 << 20  # taken before what is no longer in use is looked for
LEAST_BYTES = 1 << 16  # smaller pieces travel themselves
MARK = b"RYSH"  # begins the first part of a message whose frame is partly shelved; frames begin with RYMU
_SLOTS = 4096  # bytes at the beginning of a shelf, one per piece: 1 when its receiver is done
_PAGE = 4096
_HEAD = struct.Struct("<4sIII")  # mark, pid and descriptor of the shelf, pieces of the frame
# Of each piece: slot, offset, bytes. A slot of 0 means here: behind the places, or the message's next part.
_PLACE = struct.Struct("<QQQ")
_NEXT_PART = 0, 0, 0


@dataclass(slots=True, eq=False)
class _Block:
    """Bytes of a shelf that are in use: by an array of ours, or by readers, one slot each."""

    offset: int
    end: int
    owner: weakref.ref[np.ndarray] | None = None
    loans: list[tuple[int, int]] = field(default_factory=list)  # (slot, pid of the reader)


class Shelf:
    """One process's shelf, from which others read. `new_rows` is for any thread, `message` for one."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("rayemu", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, SHELF_BYTES)
        self._map = mmap.mmap(self.descriptor, SHELF_BYTES)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._address = _address(self._bytes)
        self._blocks: list[_Block] = []  # by offset
        self._free_slots = list(range(1, _SLOTS))
        self._lock = threading.Lock()
        self._taken = 0  # bytes since the last reclaim
        self.token = f"{os.getpid()}.{self.descriptor}"

    def new_rows(self, rows: int, width: int) -> np.ndarray:
        """Return float32 [rows, width] on the shelf, or elsewhere if they are small or there is no room.

        What is cut from it is sent without a copy; the room comes back when its last view and its last
        reader are gone.
        """
        size = rows * width * 4
        if size >= LEAST_BYTES:
            with self._lock:
                block = self._take(size)
                if block is not None:
                    flat = np.frombuffer(self._map, np.float32, rows * width, block.offset)
                    block.owner = weakref.ref(flat)  # every view refers to it: it does not own its memory
                    return flat.reshape(rows, width)
        return np.empty((rows, width), np.float32)

    def message(self, frame: Sequence[Any], reader: int) -> list[Any]:
        """Turn a frame in pieces into the parts of a message for process `reader`.

        Pieces for which there is no room travel themselves.
        """
        if max(map(len, frame)) < LEAST_BYTES:
            return list(frame)
        places, here, parts = [], [], []
        end = _HEAD.size + len(frame) * _PLACE.size
        with self._lock:
            for piece in frame:
                if len(piece) < LEAST_BYTES:
                    start = -(-end // ALIGNMENT) * ALIGNMENT
                    here += [bytes(start - end), piece]
                    end = start + len(piece)
                    places.append((0, start, len(piece)))
                    continue
                place = self._place(piece, reader)
                places.append(place or _NEXT_PART)
                if place is None:
                    parts.append(piece)
        head = _HEAD.pack(MARK, os.getpid(), self.descriptor, len(frame))
        return [b"".join([head, *(_PLACE.pack(*place) for place in places), *here]), *parts]

    def _place(self, piece: Any, reader: int) -> tuple[int, int, int] | None:
        """Lend a piece, copied unless it lies here already; return (slot, offset, bytes)."""
        if not self._free_slots:
            self._reclaim(crowded=True)
            if not self._free_slots:
                return None
        content = np.frombuffer(piece, np.uint8)
        offset, size = _address(content) - self._address, len(content)
        if _SLOTS <= offset < SHELF_BYTES:
            block = self._blocks[bisect_right(self._blocks, offset, key=lambda b: b.offset) - 1]
        else:
            taken = self._take(size)
            if taken is None:
                return None
            block, offset = taken, taken.offset
            self._bytes[offset : offset + size] = content
        slot = self._free_slots.pop()
        self._map[slot] = 0
        block.loans.append((slot, reader))
        return slot, offset, size

    def _take(self, size: int) -> _Block | None:
        """Take the tightest gap that holds `size` bytes; now and then, and if there is none, look for more.

        Sizes are rounded up, by a quarter at most, so that what is given back fits again: new pages are slow.
        """
        step = max(_PAGE, 1 << size.bit_length() - 3)
        size = -(-size // step) * step
        self._taken += size
        if self._taken > RECLAIM_BYTES:
            self._reclaim()
        block = self._tightest_gap(size)
        if block is None:
            self._reclaim(crowded=True)
            block = self._tightest_gap(size)
        return block

    def _tightest_gap(self, size: int) -> _Block | None:
        offset, tightest = _SLOTS, SHELF_BYTES
        taken, index = None, 0
        for number, block in enumerate([*self._blocks, _Block(SHELF_BYTES, 0)]):
            gap = block.offset - offset
            if size <= gap < tightest:
                tightest, taken, index = gap, _Block(offset, offset + size), number
            offset = block.end
        if taken is not None:
            self._blocks.insert(index, taken)
        return taken

    def _reclaim(self, crowded: bool = False) -> None:
        """Take back what nobody looks at any more; on a crowded shelf also what dead readers held."""
        self._taken = 0
        readers = {pid for block in self._blocks for _, pid in block.loans} if crowded else ()
        dead = {pid for pid in readers if process_state(pid) in ("Z", "X")}
        kept = []
        for block in self._blocks:
            for loan in block.loans[:]:
                if self._map[loan[0]] or loan[1] in dead:
                    block.loans.remove(loan)
                    self._free_slots.append(loan[0])
            if block.loans or (block.owner is not None and block.owner() is not None):
                kept.append(block)
        self._blocks = kept


class Readers:
    """The shelves of other processes, as this one reads them: only those that were opened."""

    def __init__(self) -> None:
        self._maps: dict[tuple[int, int], mmap.mmap] = {}
        self._lent: dict[int, tuple[Any, mmap.mmap, int]] = {}

    def open(self, token: str) -> int | None:
        """Map the shelf that a process announced; return the process's id, None if it cannot be reached."""
        self.close(token)  # an earlier process may have had these numbers
        if not token:
            return None
        pid, descriptor = _numbers(token)
        try:
            theirs = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
            try:
                self._maps[pid, descriptor] = mmap.mmap(theirs, SHELF_BYTES)
            finally:
                os.close(theirs)
        except (OSError, ValueError):
            return None
        return pid

    def process(self, token: str) -> int | None:
        """Return the process of an open shelf."""
        return _numbers(token)[0] if token and _numbers(token) in self._maps else None

    def close(self, token: str) -> None:
        """Read no more from this shelf; what was borrowed from it stays as it is."""
        if token:
            self._maps.pop(_numbers(token), None)

    def frame(self, parts: list[Any]) -> list[Any] | None:
        """Turn the parts of a message back into the frame's pieces; None for what no shelf's owner sent.

        So is what comes before its sender was announced: it is asked for again, as if it had been lost.
        """
        head = parts[0]
        if bytes(head[:4]) != MARK:
            return parts
        try:
            _, pid, descriptor, count = _HEAD.unpack_from(head)
            end = _HEAD.size + count * _PLACE.size
            if len(head) < end:
                return None
            shelf, rest, pieces = self._maps.get((pid, descriptor)), iter(parts[1:]), []
            for place in _PLACE.iter_unpack(head[_HEAD.size : end]):
                slot, offset, size = place
                if place == _NEXT_PART:
                    pieces.append(next(rest))
                elif not slot and end <= offset and offset + size <= len(head):
                    end = offset + size
                    pieces.append(head[offset:end])
                elif shelf is None or not (0 < slot < _SLOTS <= offset <= offset + size <= SHELF_BYTES):
                    return None
                else:
                    pieces.append(self._borrowed(shelf, slot, offset, size))
            return pieces if end == len(head) else None
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


def _numbers(token: str) -> tuple[int, int]:
    """Process and descriptor of a shelf's token."""
    pid, _, descriptor = token.partition(".")
    return int(pid), int(descriptor)


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def new_shelf() -> Shelf | None:
    """Make a shelf where the system has what it needs (Linux), else None."""
    try:
        return Shelf()
    except (AttributeError, OSError):
        return None
