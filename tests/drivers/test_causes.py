"""Causes in hand-made records: repeated, late and relayed frames, merged jobs, clocks that differ."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayemu.drivers import record as rec
from rayemu.drivers.causes import causes_of, collected
from rayemu.pricing.graph import EXPERT
from rayemu.pricing.recorded_graph import graph_of
from rayemu.scenario import Scenario

D, K = 4, 2
UNIT = {"batch": 0, "slice": 0, "micro": 0, "layer": 0, "home": 0}
SECOND = 1 << 40  # of request and job numbers in a process's second life


class Story:
    """Rows by name, each a second after the one before, told of as on a clock that all share."""

    def __init__(self) -> None:
        self.recorder, self.names, self.at = rec.Recorder(), [], 100.0

    def tell(
        self, name: str, kind: int, src: int, dst: int, rows: int, at: float = 0.0, **facts: Any
    ) -> None:
        start = at or self.at
        facts = {"raw_bytes": rows * D * 4, **facts}
        self.names.append(name)
        self.recorder.append(kind, src, dst, rows, start, start + 0.5, **facts)
        self.at = start + 1.0

    def causes(self) -> tuple[dict[str, set[str]], int]:
        """What each waited for, and the gaps."""
        rows = self.recorder.rows()
        order = np.argsort(rows["start_wall_s"], kind="stable")
        names = [self.names[n] for n in order.tolist()]
        found = causes_of(collected(rows))
        told: dict[str, set[str]] = {name: set() for name in names}
        for effect, cause in zip(found.effect.tolist(), found.cause.tolist(), strict=True):
            told[names[effect]].add(names[cause])
        return told, found.gaps

    def begin(self) -> None:
        self.tell("submit", rec.SUBMIT, -2, -1, 2, batch=0)
        self.tell("slice", rec.SLICE, -1, 0, 2, batch=0, slice=0, home=0)
        self.tell("route", rec.ROUTE, 0, 0, 2, **UNIT)

    def dispatch(self, name: str, to: int, request: int, rows: int, **facts: Any) -> None:
        self.tell(name, rec.DISPATCH, 0, to, rows, request=request, epoch=1, **{**UNIT, **facts})

    def job(self, name: str, module: int, request: int, rows: int, job: int = 0, **facts: Any) -> None:
        self.tell(
            name, rec.GEMM, module, module, rows, request=request, job=job, **{"expert": 1, **UNIT, **facts}
        )

    def reply(self, name: str, src: int, dst: int, request: int, rows: int, **facts: Any) -> None:
        given = {**UNIT, "slice": -1, **facts}
        self.tell(name, rec.REPLY, src, dst, rows, request=request, **given)

    def combine(self, name: str = "combine", **facts: Any) -> None:
        given = {**UNIT, **facts}
        self.tell(name, rec.COMBINE, given["home"], given["home"], 2, flops=2.0 * 2 * K * D, **given)


def test_asked_twice_only_what_came_in_time_is_waited_for() -> None:
    """Module 1 is slow, so module 2 is asked too; module 1's answer comes when all is done."""
    story = Story()
    story.begin()
    story.dispatch("to 1", 1, 0, 2)
    story.dispatch("to 2", 2, 1, 2)
    story.job("job at 2", 2, 1, 4)
    story.reply("from 2", 2, 0, 1, 4)
    story.combine()
    story.job("job at 1", 1, 0, 4)
    story.reply("from 1", 1, 0, 0, 4)
    story.tell("result", rec.RESULT, 0, -2, 2, batch=0, slice=0, home=0)
    told, gaps = story.causes()
    assert told == {
        "submit": set(),
        "slice": {"submit"},
        "route": {"slice"},
        "to 1": {"route"},
        "to 2": {"route"},
        "job at 2": {"to 2"},
        "from 2": {"job at 2"},
        "combine": {"from 2"},
        "job at 1": {"to 1"},
        "from 1": {"job at 1"},
        "result": {"combine"},
    }
    assert gaps == 0


def test_a_frame_that_comes_twice_is_computed_twice_and_waited_for_once() -> None:
    story = Story()
    story.begin()
    story.dispatch("dispatch", 1, 0, 2)
    story.job("job", 1, 0, 4)
    story.reply("reply", 1, 0, 0, 4)
    story.job("again", 1, 0, 4, job=1)
    story.combine()
    story.reply("reply again", 1, 0, 0, 4)
    told, gaps = story.causes()
    assert told["reply"] == {"job"} and told["combine"] == {"reply"}
    assert told["again"] == {"dispatch"} and told["reply again"] == {"job", "again"}
    assert gaps == 0


def test_a_relay_passes_on_and_gathers() -> None:
    """The relay, module 2, computes some rows itself, and tells what it has before module 3 has answered."""
    story = Story()
    story.begin()
    story.dispatch("to relay", 2, 0, 2)
    story.tell("to 3", rec.FORWARD, 2, 3, 2, request=0, **UNIT)
    story.job("at relay", 2, 0, 1)
    story.reply("early", 2, 0, 0, 1)
    story.job("at 3", 3, 0, 3)
    story.reply("to relay from 3", 3, 2, 0, 3)
    story.reply("all", 2, 0, 0, 4)
    story.combine()
    told, gaps = story.causes()
    assert told["to 3"] == {"to relay"} and told["at relay"] == {"to relay"} and told["at 3"] == {"to 3"}
    assert told["early"] == {"at relay"} and told["to relay from 3"] == {"at 3"}
    assert told["all"] == {"at relay", "to relay from 3"} and told["combine"] == {"early", "all"}
    assert gaps == 0


def test_one_job_for_two_batches_is_one_event_of_two_messages() -> None:
    story = Story()
    story.begin()
    other = {"batch": 1, "home": 3}
    story.tell("submit 1", rec.SUBMIT, -2, -1, 2, batch=1)
    story.tell("slice 1", rec.SLICE, -1, 3, 2, batch=1, slice=0, home=3)
    story.tell("route 1", rec.ROUTE, 3, 3, 2, **{**UNIT, **other})
    story.dispatch("dispatch", 1, 0, 2)
    story.tell("dispatch 1", rec.DISPATCH, 3, 1, 2, request=0, **{**UNIT, **other})
    story.job("part", 1, 0, 4, job=5)
    story.job("part 1", 1, 0, 4, job=5, **other)
    story.reply("reply", 1, 0, 0, 4)
    story.reply("reply 1", 1, 3, 0, 4, **other)
    story.combine()
    story.combine("combine 1", **other)
    told, gaps = story.causes()
    assert (told["part"], told["part 1"]) == ({"dispatch"}, {"dispatch 1"})
    assert (told["reply"], told["reply 1"]) == ({"part"}, {"part 1"})
    assert (told["combine"], told["combine 1"], gaps) == ({"reply"}, {"reply 1"}, 0)
    dimensions = {"d_model": D, "d_ff": 8, "experts": 2, "top_k": K}
    graph = graph_of(collected(story.recorder.rows()), Scenario.from_dict({"model": dimensions}).spec)
    (job,) = np.flatnonzero(graph.kind == EXPERT).tolist()
    assert graph.rows[job] == 8 and graph.flops[job] == 8 * 3 * 2 * D * 8
    assert sorted(graph.src[graph.causes_of(job)].tolist()) == [0, 3]
    assert len({*graph.request[graph.request >= 0].tolist()}) == 2


def test_a_slice_that_begins_again_waits_for_what_its_new_home_was_given() -> None:
    """Home 0 dies with its slice and comes back: its second life numbers requests anew."""
    story, again = Story(), {"incarnation": 1}
    story.begin()
    story.dispatch("dispatch", 1, 0, 2)
    story.job("job", 1, 0, 4)
    story.reply("reply", 1, 0, 0, 4)
    story.tell("slice again", rec.SLICE, -1, 0, 2, batch=0, slice=0, home=0)
    story.tell("route again", rec.ROUTE, 0, 0, 2, **UNIT, **again)
    story.dispatch("dispatch again", 1, SECOND, 2, **again)
    story.job("job again", 1, SECOND, 4, job=1)
    story.reply("reply again", 1, 0, SECOND, 4)
    story.combine(**again)
    told, gaps = story.causes()
    assert (told["route"], told["route again"]) == ({"slice"}, {"slice again"})
    assert (told["dispatch"], told["dispatch again"]) == ({"route"}, {"route again"})
    assert told["slice again"] == {"submit"} and told["job again"] == {"dispatch again"}
    assert (told["combine"], gaps) == ({"reply again"}, 0)


def test_another_machine_s_clock_may_be_ahead_or_behind() -> None:
    """Module 1's is an hour off: no reply is in time, or all are; either way the combine waits for it."""
    for off in (3600.0, -3600.0):
        story = Story()
        story.begin()
        story.dispatch("dispatch", 1, 0, 2)
        here = story.at
        story.job("job", 1, 0, 4, at=here + off)
        story.reply("reply", 1, 0, 0, 4)
        story.combine(at=here + 3.0)
        story.tell("result", rec.RESULT, 0, -2, 2, batch=0, slice=0, home=0)
        told, gaps = story.causes()
        assert told["job"] == {"dispatch"} and told["reply"] == {"job"}
        assert told["combine"] == {"reply"} and told["result"] == {"combine"} and gaps == 0
        dimensions = {"d_model": D, "d_ff": 8, "experts": 2, "top_k": K}
        graph = graph_of(collected(story.recorder.rows()), Scenario.from_dict({"model": dimensions}).spec)
        assert graph.gaps == 0 and graph.dst[-1] == -2


def test_what_is_missing_is_counted_and_waits_for_the_submission() -> None:
    """Module 1 died with its record: its reply is there in nobody's, and what it was asked is all."""
    story = Story()
    story.begin()
    story.dispatch("dispatch", 1, 0, 2)
    story.combine()
    story.reply("of another", 2, 0, 7, 4)
    told, gaps = story.causes()
    assert told["combine"] == {"route"}, "the last that is known of its unit"
    assert told["of another"] == {"submit"}
    assert gaps == 2  # the combine's choices, and the job of that reply


def test_a_result_that_comes_again_frees_no_place() -> None:
    """Batch 1 may begin when batch 0 is there, one at a time; what a second home says of batch 0 is late."""
    story = Story()
    story.begin()
    story.job("job", 0, 0, 4)
    story.combine()
    story.tell("result", rec.RESULT, 0, -2, 2, batch=0, slice=0, home=0)
    story.tell("submit 1", rec.SUBMIT, -2, -1, 2, batch=1)
    story.tell("result again", rec.RESULT, 3, -2, 2, batch=0, slice=0, home=3)
    story.tell("slice 1", rec.SLICE, -1, 0, 2, batch=1, slice=0, home=0)
    story.tell("result 1", rec.RESULT, 0, -2, 2, batch=1, slice=0, home=0)
    told, _ = story.causes()
    assert told["submit 1"] == {"result"} and told["slice 1"] == {"submit 1"}


def test_a_dispatch_waits_from_the_end_of_its_own_home_s_routing() -> None:
    """The window of its hop was full; of choices made elsewhere only the time of the frame is known."""
    for here in (True, False):
        story = Story()
        story.begin()
        if not here:
            story = Story()
            story.tell("submit", rec.SUBMIT, -2, -1, 2, batch=0)
            story.tell("route", rec.ROUTE, -1, -1, 2, **{**UNIT, "micro": -1})
            story.tell("slice", rec.SLICE, -1, 0, 2, batch=0, slice=0, home=0)
        routed = story.at - 0.5
        story.at += 5.0
        sent = story.at
        story.dispatch("dispatch", 1, 0, 2)
        rows = collected(story.recorder.rows())
        (dispatch,) = rows[rows["kind"] == rec.DISPATCH]
        assert dispatch["start_wall_s"] == sent
        assert dispatch["queued_wall_s"] == (routed if here else sent)


def test_choices_that_nobody_recorded_are_a_gap() -> None:
    """The first layer's may have come with the slice; of later ones somebody must have told."""
    story, later = Story(), {"layer": 1}
    story.tell("submit", rec.SUBMIT, -2, -1, 2, batch=0)
    story.tell("slice", rec.SLICE, -1, 0, 2, batch=0, slice=0, home=0)
    story.job("job", 0, 0, 4)
    story.combine()
    story.dispatch("dispatch 1", 1, 1, 2, **later)
    story.job("job 1", 1, 1, 4, job=1, **later)
    story.reply("reply 1", 1, 0, 1, 4, **later)
    story.combine("combine 1", **later)
    told, gaps = story.causes()
    assert told["job"] == {"slice"} and told["dispatch 1"] == {"combine"}
    assert told["combine 1"] == {"reply 1"} and gaps == 1
