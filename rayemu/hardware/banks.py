"""Weights in the banks of a memory, address by address: row-buffer hits, banks at work at once, and time.

A mapping says in which bank and row a byte lies; a pattern says what is read, in which order; `serve` says
what the rows' timing makes of it. Every bank has one row open and serves its own accesses in order, as where
each bank has its own arithmetic: the fullest bank says when a pass is done.

Shapes: N accesses of one burst each. Sizes in bytes, times in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rayemu.hardware.spec import Hardware, RowBuffer

Array = np.ndarray
_AT_MOST = 1 << 21  # accesses of a pass that are looked at; mappings repeat long before


@dataclass(frozen=True)
class Layout:
    """Where weights lie: `mapping` of MAPPINGS over `banks` banks of `bank` bytes with rows of `row` bytes.

    Expert e's weights begin at e x `expert`. `pitch` is what a matrix row takes (for `block`); `groups` is
    into how many groups the banks are cut (for `group` and `staggered`), `experts` how many there are (for
    `staggered`). Raises ValueError for sizes that do not divide.
    """

    mapping: str
    banks: int
    bank: int
    row: int
    burst: int
    expert: int
    pitch: int = 0
    groups: int = 1
    experts: int = 1
    unit: int = 0  # bytes that `row`, `group`, `hashed` and `staggered` deal at once; 0: a row

    def __post_init__(self) -> None:
        if self.mapping not in MAPPINGS:
            raise ValueError(f"mapping: {self.mapping!r} is not allowed; allowed: {', '.join(MAPPINGS)}")
        for name in ("banks", "bank", "row", "burst", "expert", "groups", "experts"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "whole numbers from 1 on")
        _require(self.row % self.burst == 0, "burst", self.burst, f"a divisor of row = {self.row}")
        _require(self.bank % self.row == 0, "bank", self.bank, f"a multiple of row = {self.row}")
        _require(self.banks % self.groups == 0, "groups", self.groups, f"a divisor of banks = {self.banks}")
        _require(self.unit % self.burst == 0, "unit", self.unit, f"a multiple of burst = {self.burst}")
        if self.mapping == "block":
            parts = self.banks * self.burst
            _require(self.pitch > 0 and self.pitch % parts == 0, "pitch", self.pitch, f"multiples of {parts}")
        if self.mapping == "hashed":
            _require(self.banks & (self.banks - 1) == 0, "banks", self.banks, "powers of two (for hashed)")


def linear(layout: Layout, address: Array) -> tuple[Array, Array]:
    """One bank is filled after the other."""
    return address // layout.bank, address % layout.bank


def by_row(layout: Layout, address: Array) -> tuple[Array, Array]:
    """Rows of the memory are dealt to the banks in turn."""
    return _dealt(address, layout.unit or layout.row, layout.banks)


def by_burst(layout: Layout, address: Array) -> tuple[Array, Array]:
    """Single bursts are dealt to the banks in turn."""
    return _dealt(address, layout.burst, layout.banks)


def by_block(layout: Layout, address: Array) -> tuple[Array, Array]:
    """Each bank has a block of columns of every matrix: its part of each matrix row, one after another."""
    return _dealt(address, layout.pitch // layout.banks, layout.banks)


def by_group(layout: Layout, address: Array) -> tuple[Array, Array]:
    """Expert e is in group e modulo the groups, its rows dealt to the banks of that group."""
    expert, offset = address // layout.expert, address % layout.expert
    wide = layout.banks // layout.groups
    unit = layout.unit or layout.row
    inside, place = _dealt(offset, unit, wide)
    held = -(-layout.expert // (unit * wide)) * unit  # of an expert, in each bank of its group
    return expert % layout.groups * wide + inside, expert // layout.groups * held + place


def hashed(layout: Layout, address: Array) -> tuple[Array, Array]:
    """As by row, the bank XORed with low bits of the row: what lies a power of two apart is elsewhere.

    Zhang, Zhu, Zhang: permutation-based page interleaving, MICRO 2000.
    """
    bank, place = _dealt(address, layout.unit or layout.row, layout.banks)
    return bank ^ (place // layout.row % layout.banks), place


def staggered(layout: Layout, address: Array) -> tuple[Array, Array]:
    """Expert e's units are dealt to all banks from those of its group on; its group's lie side by side.

    The texts' interleaving: bank 0 begins with the first Ki of experts 0, 8, 16 and 24, bank 1 with their
    second Ki. Where a row is longer than a unit, several experts share it.
    """
    expert, offset = address // layout.expert, address % layout.expert
    unit, members = layout.unit or layout.row, -(-layout.experts // layout.groups)
    _require(
        len(expert) == 0 or expert.max() < layout.experts, "experts", layout.experts, "as many as are read"
    )
    member, group = np.divmod(expert, layout.groups)
    number, inside = np.divmod(offset, unit)
    bank = (group * (layout.banks // layout.groups) + number) % layout.banks
    laps = -(-layout.expert // (unit * layout.banks))  # units of an expert in each bank
    return bank, ((group * laps + number // layout.banks) * members + member) * unit + inside


MAPPINGS: dict[str, Callable[[Layout, Array], tuple[Array, Array]]] = {
    "linear": linear,
    "row": by_row,
    "burst": by_burst,
    "block": by_block,
    "group": by_group,
    "hashed": hashed,
    "staggered": staggered,
}


def locate(layout: Layout, address: Array) -> tuple[Array, Array]:
    """Bank and row of addresses [N]. Raises ValueError for what no bank holds."""
    bank, place = MAPPINGS[layout.mapping](layout, np.asarray(address, np.int64))
    if len(bank) and (bank.max() >= layout.banks or place.max() >= layout.bank or address.min() < 0):
        held = layout.banks * layout.bank
        raise ValueError(f"address: {int(np.max(address))} is not allowed; the banks hold {held} bytes")
    return bank, place // layout.row


def one_pass(layout: Layout, size: int, expert: int = 0) -> Array:
    """Addresses of a pass over `size` bytes of an expert's weights, from first to last [N]."""
    return expert * layout.expert + np.arange(0, size, layout.burst, dtype=np.int64)


def passes(layout: Layout, sizes: Array, rng: np.random.Generator | None = None) -> Array:
    """Addresses of passes of several experts at once, `sizes` [E] bytes of each, 0 for none [N].

    Each goes through its weights from first to last. They take turns, the longer more often, evenly spread;
    with `rng`, who is next is drawn, by how much each has left.
    """
    counts = -(-np.asarray(sizes, np.int64) // layout.burst)
    expert = np.repeat(np.arange(len(counts)), counts)
    step = np.arange(len(expert)) - np.repeat(np.cumsum(counts) - counts, counts)
    if rng is None:
        order = np.argsort((step + 0.5) / counts[expert], kind="stable")
    else:  # any order of the experts is as likely as any other; each one's own accesses stay in order
        order = np.empty(len(expert), np.int64)
        order[np.argsort(rng.permutation(expert), kind="stable")] = np.arange(len(expert))
    return expert[order] * layout.expert + step[order] * layout.burst


def token_rows(layout: Layout, rows: Array, width: int) -> Array:
    """Addresses of token rows [R] by number, each of `width` bytes, read one after another [N]."""
    inside = np.arange(0, width, layout.burst, dtype=np.int64)
    return (np.asarray(rows, np.int64)[:, None] * width + inside).ravel()


@dataclass(frozen=True)
class Served:
    """What a sequence of accesses came to."""

    accesses: int
    activations: int  # of rows; all other accesses found theirs open
    touched: int  # banks that had anything to do
    parallelism: float  # banks at work at once, on average over `seconds`
    seconds: float
    share: float  # of what all banks would read from open rows alone

    @property
    def hit_rate(self) -> float:
        """Share of the accesses whose row was open."""
        return 1 - self.activations / self.accesses if self.accesses else 0.0


def serve(
    bank: Array, row: Array, timing: RowBuffer, banks: int, *, together: int = 0, lookahead: int = 1
) -> Served:
    """Time accesses [N] to `row` of `bank`, given in the order in which they are asked for.

    A bank serves its own in that order; with a `lookahead` of n, each n of them sorted by row first, as a
    controller does that prefers open rows. `together`: so many are asked for at once, all banks are closed
    when they are served, and the next follow; 0: all of them are. A row that is open for n accesses takes
    max(tRCD + n tCCD, tRAS), and tRP to close it; the last data of a bank comes tCL after it was asked for.
    Raises ValueError.
    """
    bank, row = np.asarray(bank, np.int64), np.asarray(row, np.int64)
    count = len(bank)
    _require(bank.shape == row.shape, "row", row.shape, f"the shape of bank, {bank.shape}")
    _require(together >= 0, "together", together, "whole numbers from 0 on")
    _require(lookahead >= 1, "lookahead", lookahead, "whole numbers from 1 on")
    if not count:
        return Served(0, 0, 0, 0.0, 0.0, 0.0)
    queue = bank if not together else np.arange(count) // together * banks + bank
    queue, row = _in_order(queue, row, lookahead)
    fresh = np.r_[True, queue[1:] != queue[:-1]]
    opened = np.flatnonzero(fresh | np.r_[True, row[1:] != row[:-1]])
    reads = np.diff(np.r_[opened, count]) * timing.gap
    last = np.r_[fresh[opened][1:], True]  # of its queue: never closed, but its data has to arrive
    held = np.where(
        last,
        timing.activate + reads + timing.access,
        np.maximum(timing.activate + reads, timing.active) + timing.precharge,
    )
    busy = np.add.reduceat(held, np.flatnonzero(fresh[opened]))  # of each queue
    if together:
        batch = queue[fresh] // banks
        seconds = float(np.maximum.reduceat(busy, np.flatnonzero(np.r_[True, batch[1:] != batch[:-1]])).sum())
    else:
        seconds = float(busy.max())
    share = count * timing.gap / (banks * seconds)
    return Served(
        count, len(opened), len(np.unique(bank)), float(busy.sum()) / seconds, seconds, float(share)
    )


def layout_of(
    hardware: Hardware, mapping: str, expert: int, *, pitch: int = 0, groups: int = 1, experts: int = 1
) -> Layout:
    """The layout of experts of `expert` bytes in the banks of a module. Raises ValueError without `rows`."""
    banks = hardware.module.banks
    if banks.rows is None:
        raise ValueError(
            f"{hardware.name}: module.banks.rows is missing; give row, burst and timing of its row buffers"
        )
    row, burst = int(banks.rows.row), int(banks.rows.burst)
    bank = int(banks.capacity / banks.count) // row * row
    whole = -(-expert // row) * row
    return Layout(mapping, banks.count, bank, row, burst, whole, pitch, groups, experts)


def row_share(timing: RowBuffer) -> float:
    """Share of a bank's bandwidth from rows that are read whole, one after the other, of a long pass.

    n tCCD / (max(tRCD + n tCCD, tRAS) + tRP) with n bursts to a row; what `pass_share` comes to where all
    banks take part alike.
    """
    reads = timing.row / timing.burst * timing.gap
    return float(reads / (max(timing.activate + reads, timing.active) + timing.precharge))


def pass_share(hardware: Hardware, mapping: str = "row", *, d_model: int, d_ff: int, bits: int = 16) -> float:
    """Share of its banks' bandwidth that one pass over an expert's D x F matrices reaches under a mapping.

    What `module.banks.share` is when it is not measured: rows have to be opened and closed, and banks that
    hold nothing of the expert read nothing. Of one long pass, so that what a short one waits for at its end
    does not count; refresh is not in it. Raises ValueError without `module.banks.rows`.
    """
    size, pitch = d_model * d_ff * bits // 8, d_ff * bits // 8
    layout = layout_of(hardware, mapping, size, pitch=pitch)
    assert hardware.module.banks.rows is not None  # layout_of has looked
    most = _AT_MOST * layout.burst
    if size > most:  # a part of it, in banks as much smaller where they are filled one after another
        bank = max(layout.bank * most // size // layout.row, 1) * layout.row
        layout, size = replace(layout, bank=bank if mapping == "linear" else layout.bank), most
    bank_of, row = locate(layout, one_pass(layout, size))
    return serve(bank_of, row, hardware.module.banks.rows, layout.banks).share


def _dealt(address: Array, unit: int, banks: int) -> tuple[Array, Array]:
    """Bank and place in it, where units are dealt to the banks in turn."""
    number, inside = np.divmod(address, unit)
    return number % banks, number // banks * unit + inside


def _in_order(queue: Array, row: Array, lookahead: int) -> tuple[Array, Array]:
    """Accesses queue by queue, in their order; each `lookahead` of a queue by row."""
    order = np.argsort(queue, kind="stable")
    queue, row = queue[order], row[order]
    if lookahead > 1:
        first = np.flatnonzero(np.r_[True, queue[1:] != queue[:-1]])
        rank = np.arange(len(queue)) - np.repeat(first, np.diff(np.r_[first, len(queue)]))
        row = row[np.lexsort((row, rank // lookahead, queue))]
    return queue, row


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name}: {value} is not allowed; allowed: {allowed}")
