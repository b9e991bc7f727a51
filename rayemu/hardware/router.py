"""Routing priced: comparator trees, the router's silicon, and where scores are computed.

`places` compares what routing alone takes where the rows are at their homes, spread evenly over the modules;
sending rows on to their experts comes after it and is the same for all. Emulated seconds, bytes on links.

Shapes: T tokens, D model width, E experts, K choices per token, M modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rayemu.hardware import transfers
from rayemu.hardware.door import Hardware
from rayemu.hardware.passes import reached_bandwidth
from rayemu.hardware.spec import LEVELS, RouterAccelerator

Array = np.ndarray
CHOICE = 8  # bytes of an index and a weight, four each: text 000, section 11.3.3
PRECISIONS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}  # of rows, gate and scores while routing


def merge_comparators(held: int, top_k: int) -> int:
    """Comparators that merge two sorted lists of `held` into their best min(K, 2 held) at once.

    The i-th of one and the j-th of the other are compared wherever the answer tells who is among the best r:
    i + j <= r + 1. Two lists of two: (1, 1), (1, 2), (2, 1).
    """
    best = min(top_k, 2 * held)
    return sum(min(held, best + 1 - i) for i in range(1, held + 1))


def tree_cycles(experts: int, top_k: int, comparators: int | None = None) -> int:
    """Cycles in which a tree finds the best K of E scores, none of them lost: ceil(log2 E) levels.

    A level merges lists two by two, in one cycle where there are comparators enough, else in several.
    """
    _check(experts, top_k)
    return sum(
        1 if comparators is None else math.ceil(needed / comparators) for needed in _levels(experts, top_k)
    )


def tree_comparators(experts: int, top_k: int) -> int:
    """Comparators that the widest level of that tree needs to take one cycle."""
    _check(experts, top_k)
    return max(_levels(experts, top_k), default=0)


def serial_cycles(experts: int) -> int:
    """Cycles when one score after another is put in its place among the best."""
    return experts


def grouped_cycles(experts: int, top_k: int, groups: int) -> int:
    """Cycles when groups do that side by side and their best are then gone through one by one.

    Text 000, section 11.3.2, `pim_parallel_topk`: ceil(E / groups), then groups x K.
    """
    _check(experts, top_k)
    if not 1 <= groups <= experts:
        raise ValueError(f"groups: {groups} is not allowed; allowed: 1 to experts = {experts}")
    each = math.ceil(experts / groups)
    return each + groups * min(top_k, each)


def pair_winner_cycles(experts: int, top_k: int) -> int:
    """Cycles of text 000's tree (section 11.3.2), 4 for 2 of 32: ceil(log2(E / K)).

    Each level keeps the better of every pair until K are left, so that it can lose a second best; see
    `pair_winners_right`.
    """
    _check(experts, top_k)
    return math.ceil(math.log2(experts / top_k))


def pair_winners_right(experts: int, top_k: int, left: int) -> float:
    """How often the best K of E, anywhere alike, are all among `left` winners of E / left scores each.

    Each further one must not be in a group that is taken: the product over i < K of (E - i g) / (E - i) with
    g = E / left. 24 of 31 for 2 of 32 among four winners, which the text's tree then compares in full.
    """
    _check(experts, top_k)
    if left < 1 or experts % left:
        raise ValueError(f"left: {left} is not allowed; allowed: divisors of experts = {experts}")
    group = experts // left
    return math.prod(max(experts - i * group, 0) / (experts - i) for i in range(top_k))


@dataclass(frozen=True)
class Accelerator:
    """What a router's silicon does for one model, while scores and selection are pipelined."""

    score_cycles: int  # ceil(D E / MACs)
    select_cycles: int  # of the comparator tree
    latency: float  # s, of one token
    rate: float  # tokens/s
    joules: float | None  # of a token, at the stated power; None where it is not known
    rate_per_area: float | None  # tokens/s/m2

    def seconds(self, rows: int | Array) -> Array:
        """Of `rows` tokens one after another; 0 for none."""
        count = np.asarray(rows, np.float64)
        return np.where(count > 0, self.latency + np.maximum(count - 1, 0) / self.rate, 0.0)


def accelerator(router: RouterAccelerator, d_model: int, experts: int, top_k: int) -> Accelerator:
    """The router's silicon at work on [T, D] x [D, E] and the best K of each row.

    The array computes `macs` multiply-adds a cycle; a row's selection overlaps the next row's scores, so that
    the slower of the array and the tree's widest level sets the rate. Softmax over K choices is not counted.
    """
    _check(experts, top_k)
    scores = math.ceil(d_model * experts / router.macs)
    levels = [math.ceil(needed / router.comparators) for needed in _levels(experts, top_k)]
    rate = router.clock / max(scores, *levels, 1)
    return Accelerator(
        scores,
        sum(levels),
        (scores + sum(levels)) / router.clock,
        rate,
        None if router.power is None else router.power / rate,
        None if router.area is None else rate / router.area,
    )


@dataclass(frozen=True)
class Place:
    """Routing of T tokens in one place at one precision."""

    place: str
    precision: str
    link_bytes: float  # of all messages
    seconds: float
    joules: float | None  # None where a link's energy is not known


@dataclass(frozen=True)
class Work:
    """What is to be routed: T tokens of width D, E experts, K choices, on M modules; `top_groups` of M."""

    tokens: int
    d_model: int
    experts: int
    top_k: int
    modules: int
    top_groups: int = 2

    def __post_init__(self) -> None:
        _check(self.experts, self.top_k)
        for name in ("tokens", "d_model", "modules", "top_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; allowed: 1 and above")


def places(hardware: Hardware, work: Work) -> list[Place]:
    """Every place of PLACES at every precision, on one hardware."""
    return [
        place(_Pricing(hardware, work, name, bits), where)
        for where, place in PLACES.items()
        for name, bits in PRECISIONS.items()
    ]


class _Pricing:
    """Seconds and joules of the parts that places are made of, for one hardware, work and precision.

    The parts follow each other. No hardware says what its host draws: its operations and what it reads are
    charged as the module's would be. A module without silicon for routing computes at its rate for the
    precision, or where it has none, at that of its experts; silicon is as quick at any.
    """

    def __init__(self, hardware: Hardware, work: Work, precision: str, bits: int) -> None:
        self.hardware, self.work, self.precision = hardware, work, precision
        self.width = bits / 8
        self.nodes = np.arange(work.modules) // hardware.spec.modules_per_node
        self.own = math.ceil(work.tokens / work.modules)  # tokens of the fullest home
        self.seconds, self.link_bytes = 0.0, 0.0
        self.joules: float | None = 0.0

    def send(self, up: float = 0.0, down: float = 0.0) -> None:
        """Messages of every module to the host, or back: bytes of all together."""
        modules = np.arange(self.work.modules)
        host = np.full(len(modules), transfers.HOST)
        src, dst = (modules, host) if up else (host, modules)
        self._charge(src, dst, np.full(len(modules), (up or down) / len(modules)))

    def exchange(self, size: float) -> None:
        """`size` bytes from every module to every other one."""
        src, dst = np.nonzero(~np.eye(self.work.modules, dtype=bool))
        self._charge(src, dst, np.full(len(src), size))

    def host(self, experts: int, values: float) -> None:
        """Score all tokens against `experts` (0: only select), reading `values` values, by the host."""
        spec, work = self.hardware.spec, self.work
        operations = 2.0 * work.tokens * work.d_model * experts
        read = values * self.width
        self.seconds += max(operations / spec.host.rate, read / spec.host.bandwidth) + spec.host.overhead
        self._add(operations * spec.energy.compute + read * 8 * spec.energy.weights)

    def module(self, rows: float, experts: int, everywhere: float) -> None:
        """Score `rows` in the fullest module against `experts`, `everywhere` rows in all; and select."""
        spec, work = self.hardware.spec, self.work
        if not rows:
            return
        if spec.router is not None:
            silicon = accelerator(spec.router, work.d_model, experts, min(work.top_k, experts))
            self.seconds += float(silicon.seconds(np.asarray(rows)))
            self._add(None if silicon.joules is None else silicon.joules * everywhere)
            return
        compute = spec.module.compute
        rate = compute.rates.get(self.precision, compute.rates[compute.precision])  # type: ignore[call-overload]
        gate = work.d_model * experts * self.width
        passes = math.ceil(rows / compute.inputs) if compute.inputs else 1
        arithmetic = 2.0 * rows * work.d_model * experts / (rate * compute.share)
        busy = max(arithmetic, passes * gate / reached_bandwidth(spec)) + compute.overhead
        self.seconds += max(busy, compute.kernels * compute.launch)
        read = passes * math.ceil(everywhere / rows) * gate  # as many modules as have rows
        operations = 2.0 * everywhere * work.d_model * experts
        self._add(operations * spec.energy.compute + read * 8 * spec.energy.weights)

    def done(self, where: str) -> Place:
        return Place(where, self.precision, self.link_bytes, self.seconds, self.joules)

    def _charge(self, src: Array, dst: Array, sizes: Array) -> None:
        asked = transfers.services(self.hardware.spec, src, dst, sizes, self.nodes)
        busy = np.bincount(asked.resource, weights=asked.seconds)
        passed = float(busy.max(initial=0.0)) + float(asked.latency.max(initial=0.0))
        self.seconds += max(passed, float(asked.floor.max(initial=0.0)))
        self.link_bytes += float(sizes.sum())
        for index in np.unique(asked.level[asked.level != transfers.FREE]).tolist():
            each = self.hardware.spec.energy.links.get(LEVELS[index])  # type: ignore[call-overload]
            self._add(None if each is None else float(sizes[asked.level == index].sum()) * 8 * each)

    def _add(self, joules: float | None) -> None:
        self.joules = None if joules is None or self.joules is None else self.joules + joules


def _rows_to_coordinator(price: _Pricing, where: str) -> Place:
    work = price.work
    price.send(up=work.tokens * work.d_model * price.width)
    price.host(work.experts, (work.tokens + work.experts) * work.d_model)
    price.send(down=work.tokens * work.top_k * CHOICE)
    return price.done(where)


def _logits_to_coordinator(price: _Pricing, where: str) -> Place:
    work = price.work
    price.module(price.own, work.experts, work.tokens)
    price.send(up=work.tokens * work.experts * price.width)
    price.host(0, work.tokens * work.experts)
    price.send(down=work.tokens * work.top_k * CHOICE)
    return price.done(where)


def _in_modules(price: _Pricing, where: str) -> Place:
    price.module(price.own, price.work.experts, price.work.tokens)
    return price.done(where)


def _split_gate(price: _Pricing, where: str) -> Place:
    work = price.work
    share = math.ceil(work.experts / work.modules)
    price.exchange(work.tokens / work.modules * work.d_model * price.width)
    price.module(work.tokens, share, work.tokens * min(work.modules, work.experts))
    price.exchange(work.tokens / work.modules * min(work.top_k, share) * (4 + price.width))
    return price.done(where)


def _hybrid(price: _Pricing, where: str) -> Place:
    work = price.work
    groups = min(work.modules, work.experts)
    chosen = min(work.top_groups, groups)
    price.send(up=work.tokens * work.d_model * price.width)
    price.host(groups, (work.tokens + groups) * work.d_model)
    price.send(down=work.tokens * chosen * CHOICE)
    rows = work.tokens * chosen
    price.module(math.ceil(rows / groups), math.ceil(work.experts / groups), rows)
    price.exchange(rows / work.modules**2 * min(work.top_k, math.ceil(work.experts / groups)) * CHOICE)
    return price.done(where)


# What goes where: rows, scores or nothing to the coordinator; a gate whole in every module, or in parts, to
# which every row goes; or a coarse gate at the coordinator that picks modules, whose fine gate scores the
# rows that come to it anyway (text 000, section 11.3.6: the best of each group, not the model's own top-k).
PLACES: dict[str, Callable[[_Pricing, str], Place]] = {
    "coordinator, rows": _rows_to_coordinator,
    "coordinator, scores": _logits_to_coordinator,
    "modules, whole gate": _in_modules,
    "modules, gate in parts": _split_gate,
    "hybrid": _hybrid,
}


def saved_by_choices(experts: int, top_k: int, bits: int) -> float:
    """Share of the bytes of E scores that K choices save: 1 - 8 K / (E bits / 8).

    Text 000, section 11.3.3: 87.5 % of 32 scores of four bytes. Below 0, scores are the fewer bytes.
    """
    return 1 - CHOICE * top_k / (experts * bits / 8)


def _levels(experts: int, top_k: int) -> list[int]:
    """Comparators that each level needs; a list without a partner goes up as it is."""
    needed, lists, held = [], experts, 1
    while lists > 1:
        needed.append(lists // 2 * merge_comparators(held, top_k))
        lists, held = math.ceil(lists / 2), min(top_k, 2 * held)
    return needed


def _check(experts: int, top_k: int) -> None:
    if experts < 1:
        raise ValueError(f"experts: {experts} is not allowed; allowed: 1 and above")
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k: {top_k} is not allowed; allowed: 1 to experts = {experts}")
