"""A home whose neighbours a test plays.

Four modules on two nodes, expert e on module e alone or with a copy two modules further on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from rayemu.alltoall import ALIVE, View
from rayemu.model.expert import expert_forward
from rayemu.model.model import Model
from rayemu.model.reference import reference_forward
from rayemu.placement import PLACEMENTS, problem_of
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.home import Home
from rayemu.protocol.messages import (
    CLIENT,
    Dispatch,
    Reply,
    Result,
    Send,
    Slice,
)
from rayemu.protocol.replay import PathReplay
from rayemu.protocol.server import ExpertServer
from rayemu.scenario import Scenario
from tests.views import a_view, holding_all

ME = 0
NODES = np.array([0, 0, 1, 1], np.int32)
X = np.random.default_rng(3).standard_normal((12, 16), dtype=np.float32)


class Table:
    """A home whose messages and neighbours are in the test's hands."""

    def __init__(self, copies: int = 1, layers: int = 1, model: dict[str, Any] | None = None, **config: Any):
        dimensions = {"d_model": 16, "d_ff": 16, "experts": 4, "top_k": 2, "layers": layers, **(model or {})}
        scenario = Scenario.from_dict({"model": dimensions})
        defaults = {"exchange": flat(), "micro_batches": 1, "place": "modules"}
        self.config = replace(ProtocolConfig.from_scenario(scenario), **{**defaults, **config})
        self.model = Model(scenario.spec)
        self.placed = PLACEMENTS["linear"]().place(problem_of(np.full((layers, 4), copies), 4))
        self.server = ExpertServer(ME, self.config, self.model, holding_all(self.model))
        self.home = Home(ME, 0, self.config, self.model, self.server, self.view([ALIVE] * 4, 1))

    def view(self, states: list[int], epoch: int = 2, incarnations: tuple[int, ...] = (0, 0, 0, 0)) -> View:
        state, turns = np.array(states, np.uint8), np.array(incarnations, np.int32)
        return a_view(self.placed, NODES, 4, state, turns, epoch)

    def begin(
        self, x: np.ndarray = X, batch: int = 0, complete_below: int = 0, now: float = 0.0
    ) -> list[Send]:
        self.home.on_slice(Slice(batch, 0, 0, 1, complete_below, x), now)
        return self.sent()

    def sent(self) -> list[Send]:
        return self.home.take_sends()

    def answer(self, request: Dispatch, path: int = 0) -> Reply:
        """What the module of a request's only lots says to all of it."""
        expanded = request.rows if request.row_of_pair is None else request.rows[request.row_of_pair]
        low, parts = 0, []
        for _, expert, count in request.lots.tolist():
            experts = self.model.layers[request.layer].experts
            parts.append(expert_forward(experts[expert], expanded[low : low + count]))
            low += count
        return Reply(
            ME, request.request, request.batch, request.micro, request.layer, 1, np.concatenate(parts),
            [[0, low, path, 0]],
        )  # fmt: skip

    def answer_all(self, sends: list[Send]) -> list[Send]:
        """Answer all requests; return what else was sent."""
        for request in dispatches(sends):
            self.home.on_reply(self.answer(request), 0.01)
        return self.sent()

    def reference(self, x: np.ndarray, result: Result) -> np.ndarray:
        replay = None
        if result.dispatch_paths is not None and result.combine_paths is not None:
            replay = PathReplay(result.dispatch_paths, result.combine_paths, self.config.codecs)
        return reference_forward(self.model, x, replay)


def flat() -> Any:
    from rayemu.alltoall import EXCHANGES

    return EXCHANGES["flat"]()


def dispatches(sends: list[Send]) -> list[Dispatch]:
    return [s.message for s in sends if isinstance(s.message, Dispatch)]


def pairs_of(requests: list[Dispatch]) -> int:
    return sum(int(request.lots[:, 2].sum()) for request in requests)


def result_of(sends: list[Send]) -> Result:
    (result,) = [s.message for s in sends if s.to == CLIENT and isinstance(s.message, Result)]
    return result
