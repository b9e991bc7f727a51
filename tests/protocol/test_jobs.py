"""A job of several experts and askers, against each pair's row through its expert alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from rayemu.model.expert import Expert, expert_forward
from rayemu.model.model import Model
from rayemu.protocol import server as server_of
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.memory import fresh_rows
from rayemu.protocol.messages import Dispatch, Reply
from rayemu.protocol.server import ExpertServer, Job, run_job
from rayemu.scenario import Scenario
from tests.views import holding_all, lots_of

EXPERTS, D = 5, 8
SCENARIO = Scenario.from_dict(
    {"model": {"d_model": D, "d_ff": 16, "experts": EXPERTS, "top_k": 2, "layers": 1}}
)
MODEL = Model(SCENARIO.spec)
ME = 3


def request(rng: np.random.Generator, number: int, lots: np.ndarray, lent: bool, **changes: Any) -> Dispatch:
    """A request with its own rows, or with an index into more rows than its pairs need."""
    pairs = int(lots[:, 2].sum())
    rows = rng.standard_normal((pairs + 4 if lent else pairs, D), dtype=np.float32)
    index = rng.integers(0, len(rows), pairs).astype(np.int32) if lent else None
    made = Dispatch(number % 3, number, -1, 0, 0, number, 0, 0, 1, 1, 0, rows, index, lots)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def some_lots(rng: np.random.Generator) -> np.ndarray:
    """Lots of some experts, in ascending order as plans have them, or in any."""
    experts = rng.permutation(EXPERTS)[: rng.integers(1, EXPERTS + 1)]
    if rng.random() < 0.5:
        experts = np.sort(experts)
    return lots_of(*([ME, int(expert), int(rng.integers(1, 9))] for expert in experts))


def by_hand(d: Dispatch) -> np.ndarray:
    """What each pair of a request is to get [n, D]: one row, one forward."""
    answers, pair = [], 0
    for _, expert, count in d.lots.tolist():
        for _ in range(count):
            row = pair if d.row_of_pair is None else d.row_of_pair[pair]
            answers.append(expert_forward(MODEL.layers[0].experts[expert], d.rows[row : row + 1]))
            pair += 1
    return np.concatenate(answers)


def done(requests: list[Dispatch], new_rows: Any = fresh_rows) -> tuple[Job, list[Reply]]:
    """One job of all requests, and the answers in their order."""
    s = ExpertServer(ME, ProtocolConfig.from_scenario(SCENARIO), MODEL, holding_all(MODEL))
    for d in requests:
        assert s.accept(d, 0.0) == []
    job = s.next_job(1e9)
    assert job is not None and len(job.works) == len(requests)
    run_job(MODEL, job, new_rows)
    sends = s.finish(job, 0.0)
    assert [send.to for send in sends] == [d.home if d.via < 0 else d.via for d in requests]
    return job, [send.message for send in sends]  # type: ignore[misc]


def check(requests: list[Dispatch], replies: list[Reply]) -> None:
    for d, reply in zip(requests, replies, strict=True):
        assert (reply.home, reply.request, reply.sender) == (d.home, d.request, ME)
        expected = by_hand(d)
        assert reply.spans == [[d.start, len(expected), d.path, 0]]
        rows = reply.rows if reply.row_of_pair is None else reply.rows[reply.row_of_pair]
        assert np.array_equal(rows, expected)


def some_requests(seed: int) -> list[Dispatch]:
    rng = np.random.default_rng(seed)
    return [request(rng, n, some_lots(rng), bool(rng.integers(2))) for n in range(rng.integers(1, 7))]


@pytest.mark.parametrize("multiple", [1, 12])
@pytest.mark.parametrize("seed", range(20))
def test_every_pair_gets_its_row_through_its_expert(
    seed: int, multiple: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each expert once, with whole tiles of rows of which those behind the last are zero."""
    forwards: list[tuple[Expert, np.ndarray]] = []

    def noted(expert: Expert, x: np.ndarray, out: np.ndarray) -> np.ndarray:
        forwards.append((expert, x.copy()))
        return expert_forward(expert, x, out)

    monkeypatch.setattr(server_of, "row_multiple", lambda: multiple)
    monkeypatch.setattr(server_of, "expert_forward", noted)
    server_of.scratch("gathered", 200, D)[...] = np.nan  # what an earlier job has left
    requests = some_requests(seed)
    job, replies = done(requests, lambda n, width: np.full((n, width), np.nan, np.float32))
    check(requests, replies)
    wanted = {e: 0 for e in range(EXPERTS)}
    for d in requests:
        for _, expert, count in d.lots.tolist():
            wanted[expert] += count
    wanted = {expert: count for expert, count in wanted.items() if count}
    assert [expert for expert, _ in forwards] == [MODEL.layers[0].experts[e] for e in wanted]
    alone = len(requests) == 1 and len(requests[0].lots) == 1  # which is padded further on
    for (_, x), count in zip(forwards, wanted.values(), strict=True):
        assert len(x) == (count if alone else -(-count // multiple) * multiple) and not x[count:].any()
        assert np.isfinite(x).all()
    assert job.rows == sum(wanted.values())


@pytest.mark.parametrize("lent", [False, True])
def test_one_lot_alone_is_answered_as_it_lies(lent: bool) -> None:
    (d,) = requests = [request(np.random.default_rng(1), 0, lots_of([ME, 2, 7]), lent, start=5, path=3)]
    _, (reply,) = done(requests)
    check([d], [reply])
    assert reply.row_of_pair is None and len(reply.rows) == 7


def test_the_lots_of_several_for_one_expert_lie_behind_each_other() -> None:
    rng = np.random.default_rng(2)
    requests = [request(rng, n, lots_of([ME, 1, 3 + n]), bool(n % 2)) for n in range(4)]
    _, replies = done(requests)
    check(requests, replies)
    assert [reply.row_of_pair for reply in replies] == [None] * 4
    for before, after in pairwise(replies):
        assert before.rows.ctypes.data + before.rows.nbytes == after.rows.ctypes.data


def test_one_row_for_two_experts_and_one_row_for_all() -> None:
    rng = np.random.default_rng(3)
    twice = request(rng, 0, lots_of([ME, 0, 2], [ME, 4, 2]), True)
    twice.row_of_pair = np.array([5, 1, 1, 5], np.int32)
    same = request(rng, 1, lots_of([ME, 0, 6], [ME, 3, 1]), True)
    same.row_of_pair = np.full(7, 10, np.int32)  # the last row
    other = request(rng, 2, lots_of([ME, 4, 3]), False, via=1, start=9)  # by way of a relay
    _, replies = done([twice, same, other])
    check([twice, same, other], replies)
    assert replies[0].row_of_pair is not None and replies[2].row_of_pair is None
