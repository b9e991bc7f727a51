"""The expert server: what is merged, how long it waits for more, and whose memory the answers are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rayemu.model.expert import expert_forward
from rayemu.model.model import Model
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.messages import Dispatch, Refusal, Send
from rayemu.protocol.server import JOB_ROWS, OTHERS_WORK, WEIGHT_BYTES_PER_S, ExpertServer, run_job
from rayemu.scenario import Scenario
from tests.views import holding_all, lots_of

SCENARIO = Scenario.from_dict({"model": {"d_model": 32, "d_ff": 64, "experts": 2, "top_k": 1, "layers": 2}})
MODEL = Model(SCENARIO.spec)
CONFIG = replace(ProtocolConfig.from_scenario(SCENARIO), linger=1.0)
STREAM_S = SCENARIO.spec.expert_bytes() / WEIGHT_BYTES_PER_S


def server(modules_per_core: float = 1.0, job_rows: int = JOB_ROWS) -> ExpertServer:
    made = ExpertServer(0, replace(CONFIG, modules_per_core=modules_per_core), MODEL, holding_all(MODEL))
    made.job_rows = job_rows
    return made


def dispatch(request: int, rows: int, slices: int = 1, expert: int = 0, **changes: int) -> Dispatch:
    """Another slice of batch 0, with rows for one expert."""
    x = np.random.default_rng(request).standard_normal((rows, 32), dtype=np.float32)
    made = Dispatch(1, request, -1, 0, 0, request, 0, 0, 0, slices, 0, x, None, lots_of([0, expert, rows]))
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_group_waits_for_all_requests_of_its_batch_and_becomes_one_job() -> None:
    s = server()
    for request in range(3):
        assert s.next_job(0.0) is None
        s.accept(dispatch(request, 10 + request, slices=3, expert=request % 2), 0.0)
    job = s.next_job(0.0)
    assert job is not None and job.rows == 33 and len(job.works) == 3 and sorted(job.experts) == [0, 1]
    assert s.next_job(0.0) is None


def test_a_group_is_full_when_every_unit_of_its_batch_has_sent_something() -> None:
    """Parcels are cut where they are long, and a request may be sent anew: neither is another unit."""
    s = server()
    unit = {"batch": 4, "slice": 1, "micro": 0}
    for request in range(3):  # a unit's parcel in three chunks
        s.accept(dispatch(request, 10, slices=3, **unit), 0.0)
    s.accept(dispatch(2, 10, slices=3, **unit), 0.0)
    s.accept(dispatch(0, 10, slices=3, start=10, **unit), 0.0)  # another part of what a relay handed out
    assert s.next_job(0.0) is None
    s.accept(dispatch(3, 10, slices=3, **{**unit, "micro": 1}), 0.0)
    assert s.next_job(0.0) is None
    s.accept(dispatch(4, 10, slices=3, layer=1, **{**unit, "slice": 2}), 0.0)
    assert s.next_job(0.0) is None, "that is for another layer"
    s.accept(dispatch(5, 10, slices=3, **{**unit, "slice": 2}), 0.0)
    job = s.next_job(0.0)
    assert job is not None and (job.layer, job.rows) == (0, 60)
    assert s.next_job(0.0) is None and list(s.groups) == [1]


def test_layers_go_by_the_age_of_their_oldest_request() -> None:
    s = server()
    for request, (layer, now) in enumerate([(1, 1.0), (0, 2.0), (1, 3.0)]):
        s.accept(dispatch(request, 10, layer=layer), now)
    jobs = [s.next_job(3.0), s.next_job(3.0)]
    assert [(job.layer, job.rows) for job in jobs if job] == [(1, 20), (0, 10)]


def test_a_job_has_its_rows_for_each_expert_as_far_as_its_result_is_not_too_large() -> None:
    """Ten requests of 40 rows for each of two experts, in as few jobs as allowed, which are alike."""
    for job_rows, most_rows, expected in [
        (100, 1 << 20, [240, 160, 240, 160]),  # 200 each, give or take half a request
        (300, 1 << 20, [400, 400]),
        (300, 420, [400, 400]),
        (300, 280, [240, 320, 240]),  # 300 of one expert alone are allowed in any case
        (1 << 20, 1 << 20, [800]),
    ]:
        s = server(job_rows=job_rows)
        s.most_rows = most_rows
        for number in range(10):
            lots = lots_of([0, 0, 40], [0, 1, 40])
            s.accept(replace(dispatch(number, 80, slices=10), lots=lots), 0.0)
        jobs = []
        while (job := s.next_job(0.0)) is not None:
            jobs.append(job.rows)
        assert jobs == expected


def test_it_waits_no_longer_than_merging_can_save_unless_others_use_the_core() -> None:
    for modules_per_core, times in [(0.5, 1), (1, 1), (2, 1 + OTHERS_WORK), (4, 1 + 3 * OTHERS_WORK)]:
        s = server(modules_per_core)
        s.accept(dispatch(0, 10, slices=2), 5.0)
        assert np.isclose(s.deadline() - 5.0, times * STREAM_S, rtol=1e-6)
        assert s.next_job(5.0 + 0.99 * times * STREAM_S) is None
        job = s.next_job(5.0 + 1.01 * times * STREAM_S)
        assert job is not None and job.rows == 10


def test_jobs_are_bounded_and_a_full_one_does_not_wait() -> None:
    s = server()
    for request in range(5):
        s.accept(dispatch(request, JOB_ROWS // 3, slices=100), 0.0)
    first = s.next_job(0.0)
    assert first is not None and first.rows == 3 * (JOB_ROWS // 3) <= JOB_ROWS
    assert s.next_job(0.0) is None  # what is left waits for more


def test_jobs_are_alike_rather_than_one_full_and_a_small_rest() -> None:
    s = server()
    for request in range(16):  # of two batches
        s.accept(dispatch(request, JOB_ROWS // 14, slices=8), 0.0)
    jobs = [s.next_job(0.0), s.next_job(0.0)]
    assert [job and job.rows for job in jobs] == [8 * (JOB_ROWS // 14)] * 2
    assert s.next_job(0.0) is None


def test_a_job_that_has_not_begun_takes_what_came_since_up_to_the_bound() -> None:
    s, third = server(), JOB_ROWS // 3
    for request in range(5):
        s.accept(dispatch(request, third), 0.0)
        if request == 0:
            job = s.next_job(0.0)
    assert job is not None and job.rows == third
    s.accept(dispatch(5, third, layer=1), 0.0)  # not its layer
    s.fill(job)
    assert [work.dispatch.request for work in job.works] == [0, 1, 2]  # 5 make two jobs
    assert job.rows == 3 * third and job.flops == SCENARIO.spec.flops_per_row() * job.rows
    run_job(MODEL, job)
    rest = [s.next_job(0.0), s.next_job(0.0)]
    assert sorted((j.layer, j.rows) for j in rest if j) == [(0, 2 * third), (1, third)]
    s.fill(job)  # nothing waits
    assert job.rows == 3 * third


def test_answers_keep_their_bits_while_anyone_holds_them() -> None:
    s = server()
    held = []
    for request in range(30):
        given = dispatch(request, 20 + request)
        s.accept(given, 0.0)
        job = s.next_job(0.0)
        assert job is not None
        run_job(MODEL, job)
        (send,) = s.finish(job, 0.0)
        answer = send.message.rows[5:]  # type: ignore[union-attr]
        held.append((given.rows, answer))
    for x, answer in held:
        assert np.array_equal(expert_forward(MODEL.layers[0].experts[0], x)[5:], answer)


def test_an_answered_request_is_known_until_its_answer_must_have_come() -> None:
    s = server()
    s.accept(dispatch(7, 10), 0.0)
    job = s.next_job(0.0)
    assert job is not None
    run_job(MODEL, job)
    s.finish(job, 3.0)
    assert s.knows(1, 7, 3.0) and s.knows(1, 7, 3.0 + 0.9 * s.grace) and not s.knows(1, 8, 3.0)
    assert not s.knows(1, 7, 3.0 + s.grace)
    for request in (8, 9):  # what is past is forgotten
        s.accept(dispatch(request, 10), 9.0)
        job = s.next_job(9.0)
        assert job is not None
        run_job(MODEL, job)
        s.finish(job, 9.0)
    assert list(s._answered) == [(1, 8), (1, 9)]


def test_a_request_for_what_is_not_held_is_refused_as_a_whole_and_leaves_nothing() -> None:
    s = server()
    s.holdings.drop((0, 1))
    both = replace(dispatch(7, 10), lots=lots_of([0, 0, 4], [0, 1, 6]), start=3)
    assert s.accept(both, 0.0) == [Send(1, Refusal(1, 7, 3, 0, [1]))]
    assert s.accept(replace(both, via=2), 0.0) == [Send(2, Refusal(1, 7, 3, 0, [1]))]
    assert not s.works and not s.groups and not s.knows(1, 7, 0.0)
    s.holdings.load(0, 1)
    assert s.accept(both, 0.0) == [] and s.knows(1, 7, 99.0)


def test_an_expert_is_awaited_while_rows_wait_for_it() -> None:
    s = server()
    s.accept(dispatch(0, 10), 0.0)
    assert s.awaits((0, 0)) and not s.awaits((0, 1))
    assert s.next_job(0.0) is not None and not s.awaits((0, 0))
