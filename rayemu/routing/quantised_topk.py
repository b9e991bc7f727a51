"""Softmax router whose gate has fewer bits, and full precision for the rows that need it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from rayemu.compression import Codec, CodecError, make_codec
from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing, check_choices
from rayemu.routing.router import Context, Router
from rayemu.routing.softmax_topk import SoftmaxTopK

Precision = Literal["fp16", "bf16", "int8", "int4"]
Importance = Literal["none", "margin", "norm"]
_HALF_MAX = np.float32(65504)
_BLOCK = 64  # rows at a time, which stay in the cache

_coarse: WeakKeyDictionary[Gate, dict[tuple[str, int], Gate]] = WeakKeyDictionary()


@dataclass(frozen=True)
class QuantisedTopK(Router):
    """Softmax top-k by a gate in fp16, bf16, int8 or int4; rows of high importance by the full one.

    Integers are symmetric, q = round(w / scale) with scale = max|w| / 127 or 7, one scale for each expert's
    column (`group` 0) or for each `group` inputs of it; these are the stages of `rayemu.compression`. With
    `rows` the activations are rounded as the weights are. The product of the rounded numbers is made in
    float32, as an accumulator of 32 bits makes it, and the gate's bias keeps its precision.

    `importance` says of which rows the logits come from the gate in float32, by the row alone:
    "margin", rows whose margin between the coarse logits of the K-th expert and of the next is less than
    `threshold`, for there rounding may change the choice; "norm", rows whose root mean square is above
    `threshold`. After an RMSNorm the second says little: all rows have about the same.

    Weights as in softmax_topk, with `renormalise` and `scaling`. What is rounded is kept with the gate.
    The texts say that fp16, int8 and int4 have the same best expert as float32 in 99.8, 97.2 and 91.3 % of
    rows; found were 100.0, 99.0 to 99.7 and 83 to 94 % (`python -m benchmarks.gates`).
    Against softmax_topk with T = 4096, D = 1024, E = 64, K = 8, one thread: as quick; 1.4 to 1.9 times the
    time with `importance`, whose rows are multiplied twice; 2.4 (int8) to 4 times (fp16) with `rows`, which
    are rounded on a processor that has no such numbers.
    """

    top_k: int
    precision: Precision = "int8"
    group: int = 0
    rows: bool = False
    importance: Importance = "none"
    threshold: float = 0.0
    renormalise: bool = True
    scaling: float = 1.0

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve these parameters, or one is impossible."""
        check_choices(self.top_k, experts)
        for name, allowed in (("precision", get_args(Precision)), ("importance", get_args(Importance))):
            if getattr(self, name) not in allowed:
                found = getattr(self, name)
                raise ValueError(f"routing.{name} is {found!r}; allowed: one of {', '.join(allowed)}")
        try:
            if self.group:
                _codec(self.precision, self.group)
        except CodecError:
            integer = self.precision.startswith("int")
            groups = "0 (a column), or 16 to 65536 inputs" if integer else "0: floats have no scale"
            raise ValueError(f"routing.group is {self.group}; allowed: {groups}") from None
        if not self.threshold >= 0:
            raise ValueError(f"routing.threshold is {self.threshold}; allowed: 0 and above")

    def scores(self, x: F32, gate: Gate) -> F32:
        """x [T, D] -> logits [T, E] of the coarse gate, and of the gate itself for rows of importance."""
        coarse = self.coarse(gate)
        logits = coarse.logits(rounded(x, self.precision, self.group) if self.rows else x)
        if self.importance != "none":
            precise = np.flatnonzero(self.important(x, logits))
            if precise.size:
                logits[precise] = gate.logits(x[precise])
        return logits

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Logits [T, E] -> choices [T, K] by descending logit, ties to the lower expert."""
        return SoftmaxTopK(self.top_k, self.renormalise, self.scaling).choose(scores, gate, context)

    def coarse(self, gate: Gate) -> Gate:
        """The gate with rounded weights; made once for a gate, and kept as long as it is."""
        made = _coarse.setdefault(gate, {})
        key = (self.precision, self.group)
        if key not in made:
            columns = rounded(np.ascontiguousarray(gate.weight.T), *key)  # [E, D]
            made[key] = Gate(np.ascontiguousarray(columns.T), None, gate.bias)
        return made[key]

    def important(self, x: F32, coarse: F32) -> npt.NDArray[np.bool_]:
        """Which rows [T] of x [T, D], with logits `coarse` [T, E], need the gate's full precision."""
        if self.importance == "norm":
            sums = np.empty(len(x), np.float32)
            for start in range(0, len(x), _BLOCK):
                block = x[start : start + _BLOCK]
                np.add.reduce(block * block, axis=1, out=sums[start : start + _BLOCK])
            above: npt.NDArray[np.bool_] = sums > np.float32(self.threshold**2 * x.shape[1])
            return above
        left_out = coarse.shape[1] - self.top_k
        if not self.importance == "margin" or not left_out:
            return np.zeros(len(x), bool)
        around = np.partition(coarse, (left_out - 1, left_out), axis=1)  # ascending
        with np.errstate(invalid="ignore"):  # inf - inf: in doubt
            margin = around[:, left_out] - around[:, left_out - 1]
        doubtful: npt.NDArray[np.bool_] = ~(margin >= np.float32(self.threshold))
        return doubtful


def rounded(rows: F32, precision: str, group: int) -> F32:
    """Rows [n, D] as they come back from `precision`; those that are not finite stay as they are.

    What is beyond the largest fp16 becomes that.
    """
    codec = _codec(precision, group)
    finite = np.flatnonzero(np.isfinite(rows).all(axis=1))
    whole = finite.size == len(rows)
    source = np.ascontiguousarray(rows if whole else rows[finite])
    if precision == "fp16" and source.size and max(source.max(), -source.min()) > _HALF_MAX:
        source = np.clip(source, -_HALF_MAX, _HALF_MAX)
    back = np.asarray(codec.decode(*codec.encode(source), source.shape))
    if whole:
        return back
    result = rows.copy()
    result[finite] = back
    return result


@lru_cache(maxsize=64)
def _codec(precision: str, group: int) -> Codec:
    has_scales = group or precision.startswith("int")
    return make_codec({precision: {"group": group} if has_scales else {}})
