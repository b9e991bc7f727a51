"""Large pieces of frames in shared memory: what travels through the socket is where they lie.

A socket copies every byte into the kernel and out again, into fresh pages. Between processes of one machine
a piece lies on the sender's *shelf*, made there or copied once, and the receiver reads it there. A byte per
piece says when the receiver is done with it. The shelf is anonymous memory that others map through /proc:
nothing is left behind however its owner ends.

Who only hands on what it reads, as the coordinator does with a batch's rows, need not copy it either: the
message says on whose shelf it lies. It is borrowed from its owner until the last receiver is done, so whoever
hands on answers for that with its life: if it dies, the owner takes the place back, whoever reads there.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
import weakref
from bisect import bisect_right, insort
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from rayemu.cluster.pulse import process_state
from rayemu.compression.wire import ALIGNMENT

SHELF_BYTES = 256 << 20  # address space; memory is only taken where pieces lie
RECLAIM_BYTES = 4 << 20  # taken before what is no longer in use is looked for
LEAST_BYTES = 1 << 16  # smaller pieces travel themselves
LOOK_EVERY_S = 0.25  # for dead readers of what was handed on
_PAGE = 4096

# A shelf begins with a byte per slot, and each piece that is lent has a slot, whose byte is in this state:
_SLOTS = 4096
_LENT, _RETURNED = 0, 1

# The first part of a message with shelved pieces: a head, a place for each piece of the frame, small pieces.
MARK = b"RYSH"  # a frame begins with RYMU
_HEAD = struct.Struct("<4sIII")  # mark, pid and descriptor of the sender's shelf, pieces of the frame
# way, slot of the sender's shelf, pid and descriptor of the shelf, offset, bytes; those that the way needs
_PLACE = struct.Struct("<IIIIQQ")
# The way that a piece comes: on a shelf from `offset` on, in this first part, or as the message's next.
_ON_SHELF, _IN_HEAD, _NEXT_PART = range(3)
_NO_SLOT = 0


class _Loan(NamedTuple):
    """A piece that a process reads, until it sets the slot's byte to _RETURNED or dies."""

    slot: int
    reader: int  # pid
    borrowed: Any = None  # what keeps the piece, if it was handed on and is another's


@dataclass(slots=True, eq=False)
class _Block:
    """Bytes `offset` to `end` of a shelf, taken while we or readers look at them."""

    offset: int
    end: int
    array: weakref.ref[np.ndarray] | None = None  # ours, if `new_rows` made one here
    loans: list[_Loan] = field(default_factory=list)

    def in_use(self) -> bool:
        return bool(self.loans) or (self.array is not None and self.array() is not None)


class Shelf:
    """One process's shelf, from which others read. `new_rows` is for any thread, all else for one.

    What lies on the shelves of `others` is handed on where it lies.
    """

    def __init__(self, others: Readers | None = None) -> None:
        self.descriptor = os.memfd_create("rayemu", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, SHELF_BYTES)
        self._map = mmap.mmap(self.descriptor, SHELF_BYTES)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._address = _address(self._bytes)
        self._blocks: list[_Block] = []  # by offset
        self._free_slots = list(range(_SLOTS))
        self._lock = threading.Lock()
        self._taken_bytes = 0  # since the last reclaim
        self._others = others
        self._handed_on: list[_Loan] = []
        self._looked_at = 0.0  # for dead readers of these
        self.copied_bytes = 0  # of pieces from LEAST_BYTES on: to this shelf, or by the socket
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
                    block.array = weakref.ref(flat)  # every view refers to it: it does not own its memory
                    return flat.reshape(rows, width)
        return np.empty((rows, width), np.float32)

    def holds(self, rows: np.ndarray) -> bool:
        """Whether rows lie on this shelf, as what `new_rows` made of them may, and can be lent.

        Without a slot all of them would travel, also those that the message is not about.
        """
        lie = rows.nbytes >= LEAST_BYTES and _SLOTS <= _address(rows) - self._address < SHELF_BYTES
        return lie and bool(self._free_slots)

    def message(self, frame: Sequence[Any], reader: int) -> list[Any]:
        """Turn a frame in pieces into the parts of a message for process `reader`.

        Pieces for which there is no room travel themselves.
        """
        if max(map(len, frame)) < LEAST_BYTES:
            return list(frame)
        places, small, parts = [], [], []
        end = _HEAD.size + len(frame) * _PLACE.size  # of the first part, so far
        with self._lock:
            for piece in frame:
                size = len(piece)
                if size < LEAST_BYTES:
                    start = -(-end // ALIGNMENT) * ALIGNMENT
                    small += [bytes(start - end), piece]
                    end = start + size
                    places.append(_PLACE.pack(_IN_HEAD, _NO_SLOT, 0, 0, start, size))
                elif (lent := self._lend(piece, reader)) is not None:
                    places.append(_PLACE.pack(_ON_SHELF, *lent, size))
                else:
                    self.copied_bytes += size
                    places.append(_PLACE.pack(_NEXT_PART, _NO_SLOT, 0, 0, 0, 0))
                    parts.append(piece)
        head = _HEAD.pack(MARK, os.getpid(), self.descriptor, len(frame))
        return [b"".join([head, *places, *small]), *parts]

    def let_go(self) -> None:
        """Give back to their owners what was handed on and is no longer read."""
        if not self._handed_on:
            return
        now = time.monotonic()
        look = now - self._looked_at > LOOK_EVERY_S
        if look:
            self._looked_at = now
        with self._lock:
            self._end_loans(self._handed_on, _dead_of(self._handed_on) if look else ())

    def _lend(self, piece: Any, reader: int) -> tuple[int, int, int, int] | None:
        """Lend a piece, copied unless it lies on a shelf already.

        Return (slot, pid and descriptor of the shelf, offset), None without room.
        """
        if not self._free_slots:
            self._reclaim(crowded=True)
            if not self._free_slots:
                return None
        content = np.frombuffer(piece, np.uint8)
        offset, size = _address(content) - self._address, len(content)
        theirs = self._others.place(content) if self._others is not None else None
        if theirs is not None and theirs[0] != reader:  # who does not read its own shelf
            slot = self._free_slots.pop()
            self._map[slot] = _LENT
            self._handed_on.append(_Loan(slot, reader, content))
            return slot, *theirs
        if _SLOTS <= offset < SHELF_BYTES:
            block = self._blocks[bisect_right(self._blocks, offset, key=lambda b: b.offset) - 1]
        else:
            taken = self._take(size)
            if taken is None:
                return None
            block, offset = taken, taken.offset
            self._bytes[offset : offset + size] = content
            self.copied_bytes += size
        slot = self._free_slots.pop()
        self._map[slot] = _LENT
        block.loans.append(_Loan(slot, reader))
        return slot, os.getpid(), self.descriptor, offset

    def _take(self, size: int) -> _Block | None:
        """Take the tightest gap that holds `size` bytes; now and then, and if there is none, look for more.

        Sizes are rounded up, by a quarter at most, so that what is given back fits again: new pages are slow.
        """
        step = max(_PAGE, 1 << size.bit_length() - 3)  # an eighth to a quarter of the size
        size = -(-size // step) * step
        self._taken_bytes += size
        if self._taken_bytes > RECLAIM_BYTES:
            self._reclaim()
        block = self._tightest_gap(size)
        if block is None:
            self._reclaim(crowded=True)
            block = self._tightest_gap(size)
        return block

    def _tightest_gap(self, size: int) -> _Block | None:
        least, found, index = SHELF_BYTES, None, 0
        start = _SLOTS
        for number, block in enumerate([*self._blocks, _Block(SHELF_BYTES, SHELF_BYTES)]):
            gap = block.offset - start  # before this block, or before the shelf's end
            if size <= gap < least:
                least, found, index = gap, _Block(start, start + size), number
            start = block.end
        if found is not None:
            self._blocks.insert(index, found)
        return found

    def _reclaim(self, crowded: bool = False) -> None:
        """Take back what nobody looks at any more; on a crowded shelf also what dead readers held."""
        self._taken_bytes = 0
        loans = [*self._handed_on, *(loan for block in self._blocks for loan in block.loans)]
        dead = _dead_of(loans) if crowded else ()
        self._end_loans(self._handed_on, dead)
        for block in self._blocks:
            self._end_loans(block.loans, dead)
        self._blocks = [block for block in self._blocks if block.in_use()]

    def _end_loans(self, loans: list[_Loan], dead: Container[int]) -> None:
        """Take those out that were returned, or whose readers are dead."""
        for loan in loans[:]:
            if self._map[loan.slot] == _RETURNED or loan.reader in dead:
                loans.remove(loan)
                self._free_slots.append(loan.slot)


def _dead_of(loans: Iterable[_Loan]) -> set[int]:
    """Readers that are dead."""
    return {pid for pid in {loan.reader for loan in loans} if process_state(pid) in ("Z", "X")}


class Readers:
    """The shelves of other processes, as this one reads them: only those that were opened."""

    def __init__(self) -> None:
        self._maps: dict[tuple[int, int], mmap.mmap] = {}  # by process and descriptor
        self._addresses: list[
            tuple[int, tuple[int, int]]
        ] = []  # where these begin, in order, and whose it is
        # What we still look at, by the reference's id: the reference, which tells us of the end; the shelf
        # of the slot; the slot.
        self._borrowed: dict[int, tuple[Any, mmap.mmap, int]] = {}

    def open(self, token: str) -> int | None:
        """Map the shelf that a process announced; return the process's id, None if it cannot be reached."""
        self.close(token)  # an earlier process may have had these numbers
        if not token:
            return None
        pid, descriptor = _numbers(token)
        try:
            theirs = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
            try:
                shelf = self._maps[pid, descriptor] = mmap.mmap(theirs, SHELF_BYTES)
            finally:
                os.close(theirs)
        except (OSError, ValueError):
            return None
        insort(self._addresses, (_address(np.frombuffer(shelf, np.uint8)), (pid, descriptor)))
        return pid

    def process(self, token: str) -> int | None:
        """Return the process of an open shelf."""
        return _numbers(token)[0] if token and _numbers(token) in self._maps else None

    def close(self, token: str) -> None:
        """Read no more from this shelf; what was borrowed from it stays as it is."""
        if token and self._maps.pop(_numbers(token), None) is not None:
            self._addresses = [entry for entry in self._addresses if entry[1] != _numbers(token)]

    def place(self, piece: np.ndarray) -> tuple[int, int, int] | None:
        """Return on whose open shelf a piece lies: process, descriptor, offset; None for none."""
        address = _address(piece)
        number = bisect_right(self._addresses, address, key=lambda entry: entry[0]) - 1
        if number < 0:
            return None
        begin, shelf = self._addresses[number]
        return (*shelf, address - begin) if address < begin + SHELF_BYTES else None

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
            slots, rest, pieces = self._maps.get((pid, descriptor)), iter(parts[1:]), []
            for way, slot, *owner, offset, size in _PLACE.iter_unpack(head[_HEAD.size : end]):
                if way == _NEXT_PART:
                    pieces.append(next(rest))
                elif way == _IN_HEAD and end <= offset and offset + size <= len(head):
                    end = offset + size
                    pieces.append(head[offset:end])
                elif way == _ON_SHELF and slots is not None and _on_shelf(slot, offset, size):
                    shelf = self._maps.get((owner[0], owner[1]))
                    if shelf is None:
                        slots[slot] = _RETURNED  # it is not read
                        return None
                    pieces.append(self._borrow(shelf, offset, size, slots, slot))
                else:
                    return None
            return pieces if end == len(head) else None
        except (struct.error, StopIteration):
            return None

    def _borrow(self, shelf: mmap.mmap, offset: int, size: int, slots: mmap.mmap, slot: int) -> np.ndarray:
        """Return bytes of a shelf that are given back when the last array or view of them is gone.

        The slot that says so may be another shelf's.
        """
        piece = np.frombuffer(shelf, np.uint8, size, offset)
        piece.flags.writeable = False
        borrowed = weakref.ref(piece, self._give_back)
        self._borrowed[id(borrowed)] = borrowed, slots, slot
        return piece

    def _give_back(self, borrowed: Any) -> None:
        _, slots, slot = self._borrowed.pop(id(borrowed))
        slots[slot] = _RETURNED


def large_bytes(frame: Iterable[Any]) -> int:
    """Bytes of a frame's pieces that would lie on a shelf."""
    return sum(size for size in map(len, frame) if size >= LEAST_BYTES)


def _numbers(token: str) -> tuple[int, int]:
    """Process and descriptor of a shelf's token."""
    pid, _, descriptor = token.partition(".")
    return int(pid), int(descriptor)


def _on_shelf(slot: int, offset: int, size: int) -> bool:
    """Whether a place that someone names can be one."""
    return slot < _SLOTS <= offset <= offset + size <= SHELF_BYTES


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def new_shelf(others: Readers | None = None) -> Shelf | None:
    """Make a shelf where the system has what it needs (Linux), else None."""
    try:
        return Shelf(others)
    except (AttributeError, OSError):
        return None
