"""How many bytes the frames of a run have, without making them: measured on one of each kind, once.

Rows count at the model's full width, as in the graph of a record: of a raw frame the rows are wider and the
rest is as it was; of one that a codec coded, all is as much more as the rows are wider.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayemu.compression import Codec, Policy
from rayemu.compression.wire import ALIGNMENT
from rayemu.model.spec import ModelSpec
from rayemu.pricing.memory import PricingError
from rayemu.protocol.config import LEVELS, MODULE, ProtocolConfig
from rayemu.protocol.messages import Dispatch, Reply, Result, RouteReply, RouteRequest, Slice, Submit
from rayemu.protocol.wire import Wire

Array = np.ndarray
_FEW, _MANY = 16, 272  # rows of two samples; their difference is what a row takes
_ALIGNED = ALIGNMENT // 4  # pairs whose index ends where the next segment may begin
_TYPICAL = 300  # a number as headers hold them


@dataclass(frozen=True)
class Line:
    """Bytes that grow evenly: `fixed` and `each` for every one of something."""

    fixed: float
    each: float

    def of(self, count: Array) -> Array:
        """Return the bytes of `count` [n]."""
        return self.fixed + self.each * count


class Frames:
    """Sizes of a run's frames; `modules` is how many there are. Raises PricingError, see `_Choice`."""

    def __init__(self, spec: ModelSpec, config: ProtocolConfig, modules: int) -> None:
        self.spec, self.scale = spec, spec.scale
        self.row = 4.0 * spec.full_d_model
        self._wire = Wire(config.codecs)
        self._module = modules - 1
        self._codings = {
            kind: tuple(
                _Choice(policy, f"exchange.codec.{level}.{way}", spec.d_model)
                for level, policy in zip(LEVELS[MODULE:], policies, strict=True)
            )
            for kind, way, policies in (
                (Dispatch, "dispatch", config.dispatch),
                (Reply, "combine", config.combine),
            )
        }
        self._lots = self._line(lambda lots: self._dispatch(lots))
        # An index lies before the lots: what it is told of, and its bytes up to where these begin.
        self._index = self._size(self._dispatch(1, _ALIGNED)) - self._size(self._dispatch(1)) - 4 * _ALIGNED
        self._spans = self._line(lambda spans: self._reply(spans))
        empty = np.zeros((0, spec.d_model), np.float32)
        chosen = np.zeros((0, spec.top_k), np.int32), np.zeros((0, spec.top_k), np.float32)
        counts = np.zeros((spec.layers, spec.experts), np.int32)
        n = _TYPICAL
        self._submit = self._size(Submit(n, n, empty))
        self._slice = self._size(Slice(n, n, n, n, n, empty, *chosen))
        self._ask = self._size(RouteRequest(self._module, n, n, 0, 1, empty))
        self._answer = self._size(RouteReply(n, n, 0, 1, *chosen))
        self._result = self._size(Result(n, n, n, self._module, 1, empty, counts))
        self._choices = 8.0 * spec.top_k  # of a row: experts and weights

    def submit(self, rows: Array) -> Array:
        """Of a batch, client to coordinator."""
        return self._submit + self.row * rows

    def slice(self, rows: Array, routed: bool) -> Array:
        """Of a slice, coordinator to home, with or without the choices of its first layer."""
        return self._slice + (self.row + self._choices * routed) * rows

    def route_request(self, rows: Array) -> Array:
        """Home to coordinator."""
        return self._ask + self.row * rows

    def route_reply(self, rows: Array) -> Array:
        """Coordinator to home."""
        return self._answer + self._choices * rows

    def result(self, rows: Array) -> Array:
        """Home to client."""
        return self._result + self.row * rows

    def dispatch(self, between_nodes: Array, rows: Array, pairs: Array, lots: Array) -> Array:
        """Of `rows` [n] distinct tokens for `pairs` [n] in so many lots."""
        index = np.where(rows < pairs, self._index + 4.0 * _ALIGNED * -(-pairs // _ALIGNED), 0.0)
        return self._coded(Dispatch, between_nodes, rows, self._lots.of(lots) + index)

    def reply(self, between_nodes: Array, pairs: Array, spans: Array) -> Array:
        """Of so many pairs [n] in so many runs."""
        return self._coded(Reply, between_nodes, pairs, self._spans.of(spans))

    def _coded(
        self, kind: type[Dispatch] | type[Reply], between_nodes: Array, rows: Array, beside: Array
    ) -> Array:
        size = beside + self.row * rows
        for level, choice in enumerate(self._codings[kind]):
            for number, coding in enumerate(choice.codings):
                if coding is not None:
                    mine = np.flatnonzero(between_nodes == level)
                    mine = mine[choice.of(rows[mine]) == number]
                    size[mine] = (beside[mine] + coding.of(rows[mine])) * self.scale
        return size

    def _size(self, message: Any) -> float:
        return float(len(self._wire.encode(message)))

    def _line(self, make: Callable[[int], Any]) -> Line:
        few, many = (self._size(make(count)) for count in (1, 65))
        each = (many - few) / 64
        return Line(few - each, each)

    def _dispatch(self, lots: int, pairs: int = 0) -> Dispatch:
        table = np.array([[self._module, self.spec.experts - 1, 8]] * lots, np.int32)
        rows, n = np.zeros((0, self.spec.d_model), np.float32), _TYPICAL
        index = np.zeros(pairs, np.int32) if pairs else None
        return Dispatch(self._module, n, -1, 0, n, n, 0, 1, 1, n, 0, rows, index, table)

    def _reply(self, spans: int) -> Reply:
        rows, n = np.zeros((0, self.spec.d_model), np.float32), _TYPICAL
        return Reply(self._module, n, n, 0, 1, self._module, rows, [[n, 8, 0, 0]] * spans)


class _Choice:
    """Which codec of a policy some rows get, and the bytes that each makes (None: raw).

    Normal rows are coded once, since what some codecs make depends on the values. Raises PricingError for a
    policy that goes by measurements.
    """

    def __init__(self, policy: Policy, where: str, width: int) -> None:
        self.chooser = policy.chooser()
        if self.chooser.learns:
            raise PricingError(
                f"{where}: {policy} goes by what is measured during a run; name a codec, or by_size"
            )
        self.codings = [_coding(codec, width) for codec in policy.codecs]

    def of(self, rows: Array) -> Array:
        """Return the number of the codec for each number of rows [n]."""
        if len(self.codings) == 1:
            return np.zeros(len(rows), np.int64)
        counts, which = np.unique(rows, return_inverse=True)
        return np.array([self.chooser.choose(np.empty((n, 0))) for n in counts.tolist()], np.int64)[which]


def _coding(codec: Codec, width: int) -> Line | None:
    if str(codec) == "raw":
        return None
    rows = np.random.default_rng(0).standard_normal((_MANY, width), np.float32)
    few, many = (sum(memoryview(s).nbytes for s in codec.encode(rows[:n])[1]) for n in (_FEW, _MANY))
    each = (many - few) / (_MANY - _FEW)
    return Line(few - each * _FEW, each)
