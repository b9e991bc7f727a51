"""One module's machine: that its loader is told of epochs, is woken, and gets its turn beside rows."""

from __future__ import annotations

import numpy as np

from rayemu.alltoall import LOADING, READY
from rayemu.model.model import Model
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.epochs import slots_of
from rayemu.protocol.loader import MOST_WAIT
from rayemu.protocol.messages import Dispatch, Epoch, Fetch, Send
from rayemu.protocol.module import ModuleMachine
from rayemu.scenario import Scenario
from tests.views import a_view, lots_of, placed_on

DIMENSIONS = {"d_model": 16, "d_ff": 16, "experts": 2, "top_k": 1, "layers": 1}
SCENARIO = Scenario.from_dict({"model": DIMENSIONS})
CONFIG = ProtocolConfig.from_scenario(SCENARIO)
MODEL = Model(SCENARIO.spec)
START = placed_on([0, 1], [0, 1])
RETRY = CONFIG.retry_after


def module() -> ModuleMachine:
    """Module 0 of two, which holds expert 0."""
    return ModuleMachine(0, 0, CONFIG, MODEL, a_view(START, [0, 0], 2), np.random.default_rng(0))


def epoch(number: int, table: dict[tuple[int, int], int]) -> Epoch:
    """An epoch with these (expert, module) -> state."""
    placed = placed_on(*zip(*sorted(table), strict=True))
    states = np.array([table[row] for row in sorted(table)], np.uint8)
    slots = slots_of(placed, states)
    return Epoch(number, 0, None, np.array([2, 2], np.uint8), np.zeros(2, np.int32), slots)


def rows(request: int) -> Dispatch:
    x = np.ones((4, 16), np.float32)
    return Dispatch(1, request, -1, 0, 0, 0, 0, 0, 1, 1, 0, x, None, lots_of([0, 0, 4]))


def test_an_epoch_makes_it_load_and_a_lost_answer_wakes_it() -> None:
    m = module()
    sends = m.receive(epoch(2, {(0, 0): READY, (1, 0): LOADING, (1, 1): READY}), 10.0)
    ask = Fetch(0, 0, 1, 0, SCENARIO.spec.expert_bytes())
    assert sends == [Send(1, ask)] and m.wake == 10.0 + RETRY
    assert m.tick(10.0 + RETRY) == [Send(1, ask)]


def test_an_expert_is_made_when_no_rows_wait_or_when_they_never_cease() -> None:
    m = module()
    m.receive(epoch(2, {(0, 0): READY, (1, 0): LOADING}), 10.0)
    m.receive(rows(1), 10.0)
    first, second = m.next_job(10.0), m.next_job(10.0)
    assert first is not None and first.make is None and second is not None and second.make is not None
    m = module()
    m.receive(epoch(2, {(0, 0): READY, (1, 0): LOADING}), 10.0)
    m.receive(rows(1), 10.0)
    late = m.next_job(10.0 + MOST_WAIT * RETRY)
    assert late is not None and late.make is not None


def test_an_expert_that_leaves_is_kept_for_the_rows_that_wait() -> None:
    m = module()
    m.receive(rows(1), 10.0)
    m.receive(epoch(2, {(0, 1): READY, (1, 1): READY}), 10.0)
    assert (0, 0) in m.holdings and m.loader.busy
    job = m.next_job(10.0)
    assert job is not None and list(job.experts) == [0]
    m.tick(10.0 + RETRY)
    assert (0, 0) not in m.holdings and not m.loader.busy
