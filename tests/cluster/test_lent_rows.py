"""Rows that modules lend each other as they lie: on whose shelf, how long, and who is killed meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rayemu.cluster.module_runtime import ModuleRuntime
from rayemu.cluster.shelf import LEAST_BYTES, Readers, Shelf
from rayemu.compression import make_codec
from rayemu.model.expert import expert_forward
from rayemu.model.model import Model
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.messages import Dispatch, Reply
from rayemu.protocol.server import SHARED, ExpertServer, Job, Own, run_job
from rayemu.protocol.wire import Wire
from rayemu.scenario import Scenario
from tests.views import holding_all, lots_of

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")

ME, D, ROWS = os.getpid(), 64, 1000
WIRE = Wire((make_codec("raw"),))
SCENARIO = Scenario.from_dict({"model": {"d_model": D, "d_ff": 16, "experts": 2, "top_k": 1, "layers": 1}})
MODEL = Model(SCENARIO.spec)
INDEX = np.array([999, 3, 3, 0, 500], np.int32)
X = np.random.default_rng(5).standard_normal((ROWS, D), dtype=np.float32)


def lend(shelf: Shelf, rows: np.ndarray, reader: int, number: int = 0) -> list[memoryview]:
    """What a socket brings of a request that speaks of five pairs and lends all rows."""
    assert shelf.holds(rows)
    lots = lots_of([0, 0, 2], [0, 1, 3])
    m = Dispatch(1, number, -1, 0, 0, number, 0, 0, 1, 2, 0, rows, INDEX, lots)
    return [memoryview(bytes(part)) for part in shelf.message(WIRE.encode_pieces(m, shared=True), reader)]


def read(readers: Readers, parts: list[memoryview]) -> Dispatch | Reply:
    pieces = readers.frame(parts)
    assert pieces is not None
    m = WIRE.decode(pieces)
    assert isinstance(m, (Dispatch, Reply))
    return m


def place(rows: np.ndarray) -> int:
    return int(rows.__array_interface__["data"][0])


def test_lent_rows_are_not_used_again_until_every_reader_has_answered() -> None:
    """A unit's rows go to two modules; its home is done with them before these are."""
    shelf, modules = Shelf(), [Readers(), Readers()]
    rows = shelf.new_rows(ROWS, D)
    rows[...] = X
    where = place(rows)
    servers = []
    for number, module in enumerate(modules):
        assert module.open(shelf.token) == ME
        servers.append(ExpertServer(0, ProtocolConfig.from_scenario(SCENARIO), MODEL, holding_all(MODEL)))
        servers[-1].accept(read(module, lend(shelf, rows, ME, number)), 0.0)  # type: ignore[arg-type]
    del rows
    others = []
    for server in servers:
        for _ in range(3):
            shelf._reclaim(crowded=True)
            others.append(shelf.new_rows(ROWS, D))
            others[-1][...] = np.nan
            assert place(others[-1]) != where
        job = server.next_job(1e9)
        assert job is not None
        run_job(MODEL, job)
        (send,) = server.finish(job, 1e9)
        reply = send.message
        assert isinstance(reply, Reply)
        answers = reply.rows if reply.row_of_pair is None else reply.rows[reply.row_of_pair]
        for pair, answer in enumerate(answers):
            expert = MODEL.layers[0].experts[0 if pair < 2 else 1]
            assert np.array_equal(answer, expert_forward(expert, X[INDEX[pair] : INDEX[pair] + 1])[0])
        del job, send, reply  # nothing of the answer is the request's
    shelf._reclaim()
    assert place(shelf.new_rows(ROWS, D)) == where


def test_a_view_of_one_lent_row_keeps_all_of_them() -> None:
    shelf, readers = Shelf(), Readers()
    readers.open(shelf.token)
    rows = shelf.new_rows(ROWS, D)
    rows[...] = X
    where, held = place(rows), read(readers, lend(shelf, rows, ME)).rows[999]
    with pytest.raises(ValueError, match="read-only"):
        held[0] = 1.0
    del rows
    shelf._reclaim(crowded=True)
    assert place(shelf.new_rows(ROWS, D)) != where and np.array_equal(held, X[999])
    del held
    shelf._reclaim()
    assert place(shelf.new_rows(ROWS, D)) == where


def test_a_shelf_lends_what_lies_on_it_and_is_large() -> None:
    shelf, other = Shelf(), Shelf()
    rows = shelf.new_rows(ROWS, D)
    most = LEAST_BYTES // (4 * D)
    assert shelf.holds(rows) and shelf.holds(rows[-most:]) and not shelf.holds(rows[: most - 1])
    assert not other.holds(rows) and not shelf.holds(other.new_rows(ROWS, D))
    assert not shelf.holds(np.ones((ROWS, D), np.float32)) and not shelf.holds(shelf.new_rows(3, D))


def test_rows_are_not_lent_whole_where_no_slot_is_left() -> None:
    """They would travel by the socket, with all rows that the message is not about; a look finds slots."""
    shelf, readers = Shelf(), Readers()
    readers.open(shelf.token)
    rows = shelf.new_rows(ROWS, D)
    held = [read(readers, lend(shelf, rows, ME)) for _ in range(len(shelf._free_slots))]
    assert not shelf.holds(rows)
    held.clear()
    large = [np.zeros(LEAST_BYTES, np.uint8)]  # as gathered rows are
    assert len(shelf.message(large, ME)) == 1 and shelf.holds(rows)


def test_a_job_that_is_done_keeps_no_rows_until_the_next_one() -> None:
    runtime: Any = SimpleNamespace(jobs=queue.SimpleQueue(), done=[], link=SimpleNamespace(wake=lambda: None))
    runtime.setup, runtime._run = SimpleNamespace(blas_threads=1), lambda job: (0.0, 0.0)
    job = Job(0, SHARED, own=Own(X.copy(), None, 0.0))
    rows = weakref.ref(job.own.rows)  # type: ignore[union-attr]
    threading.Thread(target=ModuleRuntime._compute, args=(runtime,), daemon=True).start()
    runtime.jobs.put(job)
    del job
    end = time.monotonic() + 10
    while not runtime.done and time.monotonic() < end:
        time.sleep(0.001)
    runtime.done.clear()
    while rows() is not None and time.monotonic() < end:
        time.sleep(0.001)
    assert rows() is None


def _lend_and_wait(pipe: Any, reader: int) -> None:
    """A home: lend rows and keep them, until it is killed."""
    shelf = Shelf()
    pipe.send(shelf.token)
    rows = shelf.new_rows(ROWS, D)
    rows[...] = X
    pipe.recv()
    pipe.send([bytes(part) for part in lend(shelf, rows, reader)])
    pipe.recv()


def test_rows_of_a_killed_sender_stay_readable_until_the_reader_lets_go() -> None:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_lend_and_wait, args=(theirs, ME))
    process.start()
    try:
        readers, token = Readers(), ours.recv()
        assert readers.open(token) == process.pid
        ours.send("go on")
        m = read(readers, [memoryview(part) for part in ours.recv()])
        process.kill()
        process.join()
        readers.close(token)  # as with the view that tells of the death
        assert isinstance(m, Dispatch) and np.array_equal(m.rows, X)
        server = ExpertServer(0, ProtocolConfig.from_scenario(SCENARIO), MODEL, holding_all(MODEL))
        server.accept(m, 0.0)
        job = server.next_job(1e9)
        assert job is not None
        run_job(MODEL, job)
        (work,) = job.works
        assert work.rows is not None and work.row_of_pair is not None
        expected = expert_forward(MODEL.layers[0].experts[0], X[INDEX[:2]])
        assert np.array_equal(work.rows[work.row_of_pair[:2]], expected)
        assert len(readers._borrowed) == 1
        del m, work, job, server
        assert not readers._borrowed
    finally:
        process.kill()
        process.join()
