"""What messages may name in a run: modules, experts and layers that there are, rows of the model's width."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, get_args

import numpy as np

from rayemu.compression import WireError
from rayemu.model.model import routers_of
from rayemu.model.spec import ModelSpec
from rayemu.protocol.config import TOTALS
from rayemu.protocol.decisions import Part
from rayemu.protocol.epochs import endpoints_of
from rayemu.protocol.messages import (
    Dispatch,
    Epoch,
    GroupsReply,
    Join,
    Loaded,
    Message,
    Move,
    OfferReply,
    OfferRequest,
    Refusal,
    Result,
    RouteReply,
    Scores,
    Slice,
    Totals,
    Weights,
)

_KINDS: tuple[Any, ...] = get_args(Message)
_LIMIT_OF = {
    "home": "modules",
    "module": "modules",
    "sender": "modules",
    "by": "modules",
    "layer": "layers",
    "expert": "experts",
}
_LIMITED = {
    kind: [(f.name, _LIMIT_OF[f.name]) for f in fields(kind) if f.name in _LIMIT_OF] for kind in _KINDS
}


@dataclass(frozen=True)
class Bounds:
    """The size of a run. What a frame names beyond it is refused before anyone acts on it."""

    modules: int
    experts: int
    layers: int
    top_k: int
    d_model: int
    most: int = 0  # choices of a token in a decision for a whole batch; 0 where there are none

    @classmethod
    def of(cls, spec: ModelSpec, modules: int) -> Bounds:
        """Bounds of a run of a model on so many modules."""
        decided = (r.most(spec.experts) for r in routers_of(spec) if r.scope == "batch")
        return cls(modules, spec.experts, spec.layers, spec.top_k, spec.d_model, max(decided, default=0))

    def check(self, m: Message) -> None:
        """Raise WireError for a message that names what this run does not have."""
        for name, of in _LIMITED[type(m)]:
            if not 0 <= getattr(m, name) < getattr(self, of):
                raise WireError(f"{type(m).__name__}: {name} {getattr(m, name)} of {getattr(self, of)}")
        if "rows" in m.ARRAYS:
            rows = m.rows  # type: ignore[union-attr]
            if rows.ndim != 2 or rows.shape[1] != self.d_model or rows.dtype != np.float32:
                raise WireError(
                    f"{type(m).__name__}: rows {rows.dtype}{list(rows.shape)}, width {self.d_model}"
                )
        if isinstance(m, Dispatch):
            self._need(-1 <= m.via < self.modules, m, "via", m.via)
            numbers = m.batch, m.slice, m.micro, m.slices, m.start, m.epoch, m.request >> 31
            if not (0 <= min(numbers) and max(numbers) < 1 << 31):  # more than the record's columns hold
                raise WireError(f"Dispatch: of batch, slice, micro, slices, start, epoch, request: {numbers}")
            module, expert, _ = m.lots.max(axis=0).tolist()  # none is negative, see `wire`
            self._need(module < self.modules and expert < self.experts, m, "lots", [module, expert])
        elif isinstance(m, (Slice, RouteReply)) and m.experts is not None:
            rows, choices = len(m.rows) if isinstance(m, Slice) else len(m.experts), m.experts.shape[-1]
            self._check_numbers(m, "experts", m.experts, self.experts, (rows, choices), -1)
            if isinstance(m, RouteReply) and m.order >= 0:
                self._need(1 <= choices <= self.most, m, "experts", m.experts.shape)
                self._need(0 <= m.asked_by < self.modules, m, "asked_by", m.asked_by)
            else:
                self._need(choices == self.top_k, m, "experts", m.experts.shape)
            weights = m.weights
            given = weights is not None and weights.shape == m.experts.shape and weights.dtype == np.float32
            self._need(given, m, "weights", m.weights)
        elif isinstance(m, Scores):
            self._need(m.scores.ndim == 2 and m.scores.dtype == np.float32, m, "scores", m.scores.shape)
            self._need(m.start >= 0, m, "start", m.start)
        elif isinstance(m, GroupsReply):
            self._check_numbers(m, "groups", m.groups, self.experts, m.groups.shape)
            self._need(
                m.groups.ndim == 2 and 1 <= m.groups.shape[1] <= self.experts, m, "groups", m.groups.shape
            )
        elif isinstance(m, OfferRequest):
            self._check_numbers(m, "experts", m.experts, self.experts, (m.experts.size,))
            ascending = bool(m.experts.size) and bool((m.experts[1:] > m.experts[:-1]).all())
            self._need(ascending and m.experts.dtype == np.int32, m, "experts", m.experts)
        elif isinstance(m, OfferReply):
            self._check_numbers(m, "experts", m.experts, self.experts, m.scores.shape)
            self._need(
                m.experts.ndim == 2 and 1 <= m.experts.shape[1] <= self.top_k, m, "experts", m.experts.shape
            )
            self._need(
                m.experts.dtype == np.int32 and m.scores.dtype == np.float32, m, "scores", m.scores.dtype
            )
        elif isinstance(m, Epoch):
            everyone = (self.modules,)
            self._check_numbers(m, "state", m.state, 3, everyone)
            self._check_numbers(m, "incarnations", m.incarnations, 1 << 31, everyone)
            self._check_columns(m, "slots", m.slots, (self.layers, self.experts, 1, self.modules, 3))
            self._need(m.endpoints is None or len(endpoints_of(m)) == self.modules, m, "endpoints", "")
        elif isinstance(m, Move):
            self._check_columns(m, "slots", m.slots, (self.layers, self.experts, 1, self.modules))
        elif isinstance(m, Join):
            self._check_columns(m, "holds", m.holds, (self.layers, self.experts))
        elif isinstance(m, Loaded):
            self._check_columns(m, "slots", m.slots, (self.layers, self.experts))
            self._check_numbers(m, "fetched", m.fetched, 1 << 63, m.slots[0].shape)
        elif isinstance(m, Refusal):
            known = all(0 <= expert < self.experts for expert in m.experts)
            self._need(known, m, "experts", m.experts)
        elif isinstance(m, Weights):
            self._need(m.data.ndim == 1 and m.data.dtype == np.uint8, m, "data", m.data.dtype)
        elif isinstance(m, Result):
            self._need(
                m.expert_tokens.shape == (self.layers, self.experts), m, "expert_tokens", m.expert_tokens
            )
            for name in ("dispatch_paths", "combine_paths"):
                paths = getattr(m, name)
                if paths is not None:
                    fits = paths.shape[:2] == (self.layers, len(m.rows)) and paths.dtype == np.uint8
                    least, most = (1, max(self.top_k, self.most)) if self.most else (self.top_k, self.top_k)
                    fits = fits and paths.ndim == 3 and least <= paths.shape[2] <= most
                    self._need(fits, m, name, paths.shape)
            shapes = {None if paths is None else paths.shape for paths in (m.dispatch_paths, m.combine_paths)}
            self._need(len(shapes) == 1, m, "combine_paths", shapes)
            if m.parts is not None:
                self._check_decisions(m)
        elif isinstance(m, Totals):
            self._check_numbers(m, "modules", m.modules, self.modules, m.modules.shape)
            self._need(m.counts.shape == (*m.modules.shape, len(TOTALS)), m, "counts", m.counts.shape)

    def _check_decisions(self, m: Result) -> None:
        parts = m.parts
        assert parts is not None
        wide = len(Part._fields)
        self._need(parts.ndim == 2 and parts.shape[1] == wide and parts.dtype == np.int64, m, "parts", parts)
        layer, start, rows, choices, order, asked_by, *_ = parts.T
        fits = (
            (0 <= layer) & (layer < self.layers) & (0 <= order) & (0 <= asked_by) & (asked_by < self.modules)
        )
        self._need(0 <= m.start < 1 << 62, m, "start", m.start)
        end = m.start + len(m.rows)
        fits &= (m.start <= start) & (start <= end)
        fits &= (0 <= rows) & (rows <= end - np.minimum(start, end))
        self._need(bool((fits & (1 <= choices) & (choices <= self.most)).all()), m, "parts", parts)
        count = (int((rows * choices).sum()),)
        self._need(m.experts is not None and m.weights is not None, m, "parts", "without choices")
        assert m.experts is not None and m.weights is not None
        self._check_numbers(m, "experts", m.experts, self.experts, count, -1)
        self._need(m.weights.shape == count and m.weights.dtype == np.float32, m, "weights", m.weights)

    def _check_columns(self, m: Message, name: str, table: np.ndarray, limits: tuple[int, ...]) -> None:
        self._need(table.ndim == 2 and len(table) == len(limits), m, name, table.shape)
        for column, limit in zip(table, limits, strict=True):
            self._check_numbers(m, name, column, limit, column.shape)

    def _check_numbers(
        self, m: Message, name: str, numbers: np.ndarray, limit: int, shape: object, least: int = 0
    ) -> None:
        fits = numbers.shape == shape and numbers.dtype.kind in "iu"
        fits = fits and (not numbers.size or least <= numbers.min() <= numbers.max() < limit)
        self._need(fits, m, name, f"{numbers.dtype}{list(numbers.shape)}, each below {limit}")

    @staticmethod
    def _need(fits: bool, m: Message, name: str, found: object) -> None:
        if not fits:
            raise WireError(f"{type(m).__name__}: {name} does not fit this run: {found}")
