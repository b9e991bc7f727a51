"""The graph of a run: of a small one by hand, of a larger one by what must hold, and of broken records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from rayemu import Emulator, Scenario
from rayemu.drivers import record as rec
from rayemu.drivers.causes import Causes, causes_of, collected
from rayemu.model.reference import prepare, route
from rayemu.pricing.graph import COMBINE, EXPERT, MESSAGE, ROUTE, EventGraph
from rayemu.pricing.recorded_graph import _levels, graph_of
from tests.drivers import chaos

D = 8


@pytest.fixture(autouse=True)
def one_blas_thread() -> Iterator[None]:
    """Tiny GEMMs on several threads spend their time waiting for each other."""
    with threadpool_limits(1):
        yield


def small(place: str) -> Scenario:
    """Two modules with an expert each; a batch of 8 rows is cut into two slices."""
    return Scenario.from_dict(
        {
            "model": {"d_model": D, "d_ff": 16, "experts": 2, "top_k": 1, "layers": 1},
            "cluster": {"nodes": 1, "modules_per_node": 2, "transport": "memory"},
            "placement": {"copies": 1},
            "routing": {"place": place},
            "exchange": {"min_slice_rows": 4, "micro_batches": 1},
        }
    )


def choosing(emulator: Emulator, experts: list[int]) -> np.ndarray:
    """Rows that the gate gives to these experts, one after the other."""
    drawn = np.random.default_rng(3).standard_normal((100, D), dtype=np.float32)
    layer = emulator.model.layers[0]
    chosen = route(layer, prepare(layer, drawn)).experts[:, 0]
    return np.concatenate([drawn[np.flatnonzero(chosen == e)[n]][None] for n, e in enumerate(experts)])


def named(graph: EventGraph) -> dict[str, tuple[int, set[str]]]:
    """Rows and causes of each event, by a name that says what it is."""
    words = {ROUTE: "route", MESSAGE: "message", EXPERT: "expert", COMBINE: "combine"}
    names = []
    for n in range(len(graph)):
        name = f"{words[graph.kind[n]]} {graph.src[n]}>{graph.dst[n]} b{graph.batch[n]}"
        if graph.kind[n] == EXPERT:
            name += f" e{graph.expert[n]} x{graph.rows[n]}"
        while name in names:
            name += " again"
        names.append(name)
    return {
        name: (int(graph.rows[n]), {names[c] for c in graph.causes_of(n).tolist()})
        for n, name in enumerate(names)
    }


def test_a_small_run_by_hand() -> None:
    """Home 0 has rows for experts 0, 1, 1, 0 and home 1 four for expert 0; then a batch for expert 1 only."""
    with Emulator(small("modules")) as emulator:
        first = choosing(emulator, [0, 1, 1, 0, 0, 0, 0, 0])
        second = choosing(emulator, [1] * 4)  # one slice, and home 1 is next: nothing leaves it
        for _ in emulator.stream([first, second], in_flight=1):
            pass
        record = emulator.record()
    graph = graph_of(record, emulator.spec)
    assert graph.gaps == 0
    home = int(record["dst"][(record["kind"] == rec.SLICE) & (record["batch"] == 1)][0])
    expected = {
        "message -2>-1 b0": (8, set()),
        "message -1>0 b0": (4, {"message -2>-1 b0"}),
        "message -1>1 b0": (4, {"message -2>-1 b0"}),
        "route 0>0 b0": (4, {"message -1>0 b0"}),
        "route 1>1 b0": (4, {"message -1>1 b0"}),
        "message 0>1 b0": (2, {"route 0>0 b0"}),
        "message 1>0 b0": (4, {"route 1>1 b0"}),
        "expert 0>0 b0 e0 x2": (2, {"route 0>0 b0"}),
        "expert 1>1 b0 e1 x2": (2, {"message 0>1 b0"}),
        "expert 0>0 b0 e0 x4": (4, {"message 1>0 b0"}),
        "message 1>0 b0 again": (2, {"expert 1>1 b0 e1 x2"}),
        "message 0>1 b0 again": (4, {"expert 0>0 b0 e0 x4"}),
        "combine 0>0 b0": (4, {"expert 0>0 b0 e0 x2", "message 1>0 b0 again"}),
        "combine 1>1 b0": (4, {"message 0>1 b0 again"}),
        "message 0>-2 b0": (4, {"combine 0>0 b0"}),
        "message 1>-2 b0": (4, {"combine 1>1 b0"}),
        "message -2>-1 b1": (4, {"message 0>-2 b0", "message 1>-2 b0"}),
        f"message -1>{home} b1": (4, {"message -2>-1 b1"}),
        f"route {home}>{home} b1": (4, {f"message -1>{home} b1"}),
    }
    if home == 1:
        expected |= {
            "expert 1>1 b1 e1 x4": (4, {"route 1>1 b1"}),
            "combine 1>1 b1": (4, {"expert 1>1 b1 e1 x4"}),
        }
    else:
        expected |= {
            "message 0>1 b1": (4, {"route 0>0 b1"}),
            "expert 1>1 b1 e1 x4": (4, {"message 0>1 b1"}),
            "message 1>0 b1": (4, {"expert 1>1 b1 e1 x4"}),
            "combine 0>0 b1": (4, {"message 1>0 b1"}),
        }
    expected[f"message {home}>-2 b1"] = 4, {f"combine {home}>{home} b1"}
    assert named(graph) == expected
    # By formula: a SwiGLU row has three products of D x F, a gate one of D x E, a combine K additions of D.
    per_row = {ROUTE: 2 * D * 2, MESSAGE: 0, EXPERT: 3 * 2 * D * 16, COMBINE: 2 * D}
    assert graph.flops.tolist() == [per_row[k] * r for k, r in zip(graph.kind, graph.rows, strict=True)]
    messages = graph.kind == MESSAGE
    frames = record[(record["sent_bytes"] > 0) & (record["kind"] != rec.CONTROL)]
    assert sorted(graph.bytes[messages]) == sorted(frames["sent_bytes"].tolist())
    assert (graph.bytes[~messages] == 0).all()


def test_the_first_choices_come_with_the_slice_and_later_ones_are_asked_for() -> None:
    scenario = small("coordinator").with_overrides(["model.layers=2", "exchange.min_slice_rows=8"])
    with Emulator(scenario) as emulator:
        emulator.forward(np.random.default_rng(0).standard_normal((8, D), dtype=np.float32))
        graph = graph_of(emulator.record(), emulator.spec)
    found = named(graph)
    home = next(int(name.split(">")[1][0]) for name in found if name.startswith("message -1>"))
    assert found["route -1>-1 b0"] == (8, {"message -2>-1 b0"})
    assert found[f"message -1>{home} b0"] == (8, {"route -1>-1 b0"})
    assert found[f"message {home}>-1 b0"] == (8, {f"combine {home}>{home} b0"})
    assert found["route -1>-1 b0 again"] == (8, {f"message {home}>-1 b0"})
    assert found[f"message -1>{home} b0 again"] == (8, {"route -1>-1 b0 again"})
    assert graph.gaps == 0


@pytest.mark.parametrize("place", ["coordinator", "modules"])
@pytest.mark.parametrize("codec", ["raw", "int8"])
def test_what_must_hold_of_layers_relays_and_micro_batches(place: str, codec: str) -> None:
    """None of it is asked of the graph: requests, choices and times are those of the record's rows."""
    scenario = Scenario.from_dict(
        {
            "model": {"d_model": D, "d_ff": 16, "experts": 8, "top_k": 2, "layers": 3, "shared_d_ff": 16}
            | {"dense_layers": 1, "dense_d_ff": 32},
            "cluster": {"nodes": 2, "modules_per_node": 4, "transport": "memory"},
            "placement": {"copies": 1},
            "routing": {"place": place},
            "exchange": {"kind": "hierarchical", "micro_batches": 2, "min_slice_rows": 8}
            | {"codec": {"module": "raw", "node": codec}},
        }
    )
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((40, D), dtype=np.float32) for _ in range(5)]
    with Emulator(scenario) as emulator:
        results = list(emulator.stream(batches, in_flight=2))
        record = emulator.record()
    kinds, found = record["kind"], causes_of(record)
    assert {*kinds.tolist()} >= {rec.FORWARD, rec.GEMM, rec.ROUTE, rec.RESULT, rec.SUBMIT}
    assert found.gaps == 0
    starts, ends = rec.starts(record), rec.ends(record)
    assert (ends[found.cause] <= starts[found.effect] + 1e-9).all()
    assert (rec.queued(record) <= starts).all()
    last = record["cause"] >= 0
    assert (ends[record["cause"][last]] <= starts[last]).all()

    asked = [*zip(record["home"].tolist(), record["request"].tolist(), strict=True)]
    computed: dict[Any, int] = {}
    answered: dict[Any, int] = {}
    for key, row in zip(asked, record, strict=True):
        if row["kind"] == rec.GEMM and row["request"] >= 0:
            computed[key] = computed.get(key, 0) + int(row["rows"])
            if row["src"] == row["home"]:
                answered[key] = answered.get(key, 0) + int(row["rows"])
        elif row["kind"] == rec.REPLY and row["dst"] == row["home"]:
            answered[key] = answered.get(key, 0) + int(row["rows"])
    assert answered == computed

    for n in np.flatnonzero(kinds == rec.COMBINE).tolist():
        causes = record[found.cause[found.effect == n]]
        unit = record[n]
        assert {*causes["batch"].tolist()} == {unit["batch"]} and {*causes["micro"].tolist()} == {
            unit["micro"]
        }
        brought = causes["rows"][causes["request"] >= 0].sum()
        assert brought == (unit["rows"] * 2 if unit["layer"] > 0 else 0)
        outputs = 2 if unit["layer"] > 0 else 1  # of each row: K, in a dense layer the FFN's
        assert unit["flops"] == 2 * outputs * unit["rows"] * D
        assert (causes["request"] < 0).sum() == 1, "the shared expert or the dense FFN"

    graph = graph_of(record, scenario.spec)
    effect = np.repeat(np.arange(len(graph)), np.diff(graph.cause_start))
    assert (graph.causes < effect).all()
    waited_for = np.zeros(len(graph), bool)
    waited_for[graph.causes] = True
    unused = np.flatnonzero(~waited_for)
    assert (graph.dst[unused] == -2).all() and {*graph.batch[unused].tolist()} <= {3, 4}
    rows = np.zeros((3, 8), np.int64)
    routed = (graph.kind == EXPERT) & (graph.expert >= 0)
    np.add.at(rows, (graph.layer[routed], graph.expert[routed]), graph.rows[routed])
    assert rows.tolist() == sum(r.expert_tokens for r in results).tolist()
    summed = graph.kind == COMBINE
    assert graph.flops[summed & (graph.layer == 0)].sum() == 200 * 2 * D  # the dense FFN's output alone
    assert graph.flops[summed & (graph.layer > 0)].sum() == 2 * 200 * 2 * 2 * D
    jobs = record[(kinds == rec.GEMM)]
    assert (graph.kind == EXPERT).sum() == len(
        {*zip(jobs["src"].tolist(), jobs["job"].tolist(), strict=True)}
    )
    assert graph.flops[routed].sum() == rows.sum() * 3 * 2 * D * 16
    own = (graph.kind == EXPERT) & (graph.expert < 0)
    assert graph.flops[own & (graph.layer == 0)].sum() == 200 * 3 * 2 * D * 32  # dense
    assert graph.flops[own & (graph.layer > 0)].sum() == 2 * 200 * 3 * 2 * D * 16  # shared


def test_what_is_decoded_is_what_its_sender_coded() -> None:
    """A relay's forwards too: who sent, to whom, for which request, over which link, how many rows."""
    scenario = Scenario.from_dict(
        {
            "model": {"d_model": D, "d_ff": 16, "experts": 8, "top_k": 2, "layers": 1},
            "cluster": {"nodes": 2, "modules_per_node": 4, "transport": "memory"},
            "placement": {"copies": 1},
            "exchange": {"kind": "hierarchical", "min_slice_rows": 8}
            | {"codec": {"module": "int8", "node": "int8"}},
        }
    )
    with Emulator(scenario) as emulator:
        emulator.forward(np.random.default_rng(0).standard_normal((64, D), dtype=np.float32))
        record = emulator.record()
    names = ["src", "dst", "home", "request", "level", "rows", "codec", "raw_bytes"]
    frames = np.isin(record["kind"], (rec.DISPATCH, rec.FORWARD, rec.REPLY)) & (record["codec"] > 0)
    assert (record["kind"][frames] == rec.FORWARD).any()
    sent = sorted(record[frames][names].tolist())
    for kind in (rec.ENCODE, rec.DECODE):
        assert sorted(record[record["kind"] == kind][names].tolist()) == sent
    decoded = np.flatnonzero(record["kind"] == rec.DECODE)
    assert (record[record["cause"][decoded]][names] == record[decoded][names]).all()


def test_bytes_at_full_width() -> None:
    """Raw rows grow with the width and the rest of a frame does not; coded frames grow as a whole."""
    scenario = Scenario.from_dict(
        {
            "model": {"preset": "mixtral-8x7b", "scale": 128, "layers": 1},
            "cluster": {"nodes": 2, "modules_per_node": 2, "transport": "memory"},
            "exchange": {"codec": {"module": "raw", "node": "int8"}},
        }
    )
    spec = scenario.spec
    assert (spec.d_model, spec.full_d_model) == (32, 4096)
    with Emulator(scenario) as emulator:
        emulator.forward(np.random.default_rng(0).standard_normal((64, 32), dtype=np.float32))
        record = emulator.record()
    graph = graph_of(record, spec)
    frames = record[np.isin(record["kind"], [rec.DISPATCH, rec.REPLY, rec.FORWARD])]
    raw, coded = frames[frames["codec"] == 0], frames[frames["codec"] > 0]
    assert len(raw) and len(coded)
    expected = [*(raw["sent_bytes"] + raw["rows"] * 4 * (4096 - 32)).tolist()]
    expected += (coded["sent_bytes"] * 128).tolist()
    assert sorted(graph.bytes[graph.request >= 0]) == pytest.approx(sorted(expected))
    assert np.array_equal(graph_of(record, spec.full()).bytes, graph.bytes)
    choices = record[record["kind"] == rec.ROUTE_REPLY]["sent_bytes"].tolist()
    assert all(size in graph.bytes.tolist() for size in choices)
    experts = graph.kind == EXPERT
    assert (graph.flops[experts] == graph.rows[experts] * 3.0 * 2 * 4096 * 14336).all()


@pytest.mark.parametrize("told", [True, False])
def test_the_place_of_a_batch_is_freed_by_the_batch_so_many_before(told: bool) -> None:
    with Emulator(small("modules")) as emulator:
        rng = np.random.default_rng(0)
        for _ in emulator.stream([rng.standard_normal((8, D), dtype=np.float32) for _ in range(6)], 3):
            pass
        graph = graph_of(emulator.record(), emulator.spec, in_flight=3 if told else None)
    for n in np.flatnonzero(graph.src == -2).tolist():
        assert {*graph.batch[graph.causes_of(n)].tolist()} == {graph.batch[n] - 3} - {-3, -2, -1}


@pytest.mark.parametrize("seed", range(24))
def test_faults_do_not_break_it(seed: int) -> None:
    """Crashes, hangs, lost and doubled frames: causes come first, and all comes of submissions."""
    simulator = chaos.run(seed).simulator
    record = simulator.record()
    graph = graph_of(record, simulator.model.spec)
    effect = np.repeat(np.arange(len(graph)), np.diff(graph.cause_start))
    assert (graph.causes < effect).all()
    causeless = np.flatnonzero(np.diff(graph.cause_start) == 0)
    assert (graph.src[causeless] == -2).all()
    # What follows must not begin before what it waited for has ended.
    found = causes_of(record)
    assert (rec.ends(record)[found.cause] <= rec.starts(record)[found.effect] + 1e-9).all()


@pytest.mark.parametrize("lost", [0, 1, -1, -2])
def test_a_process_whose_record_is_gone_leaves_gaps(lost: int) -> None:
    with Emulator(small("coordinator").with_overrides(["model.layers=2"])) as emulator:
        rng = np.random.default_rng(0)
        for _ in emulator.stream([rng.standard_normal((16, D), dtype=np.float32) for _ in range(4)], 2):
            pass
        record = emulator.record()
    whole = graph_of(record, emulator.spec)
    place = np.where(record["kind"] == rec.DECODE, record["dst"], record["src"])
    graph = graph_of(collected(record[place != lost]), emulator.spec)
    assert whole.gaps == 0 < graph.gaps
    assert 0 < len(graph) < len(whole)


def test_another_model_s_record_is_refused() -> None:
    with Emulator(small("modules")) as emulator:
        emulator.forward(np.random.default_rng(0).standard_normal((8, D), dtype=np.float32))
        record = emulator.record()
    for change, told in (
        ({"d_model": 12}, r"d_model is \[8\]; allowed: 12 or a divisor"),
        ({"top_k": 2}, r"top_k is \[1\]; allowed: 2"),
        ({"experts": 1}, "experts is 2; allowed: 1"),
    ):
        spec = Scenario.from_dict(
            {"model": {"d_model": 8, "d_ff": 16, "experts": 2, "top_k": 1, "layers": 1} | change}
        ).spec
        with pytest.raises(ValueError, match=told):
            graph_of(record, spec)


def test_of_a_circle_only_what_goes_back_in_time_is_cut() -> None:
    """0 before 1 before 2 before 0, and 3 after 2; then two that began at once and wait for each other."""
    effects, causes = [1, 2, 0, 3, 5, 4], [0, 1, 2, 2, 4, 5]
    began = np.array([0.0, 1.0, 2.0, 3.0, 9.0, 9.0])
    level, edges, cut = _levels(np.array([effects, causes]), began)
    assert level.tolist() == [0, 1, 2, 3, 0, 1] and cut == 2
    assert sorted(zip(*edges.tolist(), strict=True)) == [(1, 0), (2, 1), (3, 2), (5, 4)]


def test_what_is_cut_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two causes that the record lacks, and one that goes back in time: a route waits for its combine."""
    with Emulator(small("modules")) as emulator:
        emulator.forward(np.zeros((1, D), np.float32))
        record = emulator.record()
    known = causes_of(record)
    (route,), (combine,) = (np.flatnonzero(record["kind"] == kind) for kind in (rec.ROUTE, rec.COMBINE))
    circle = Causes(np.r_[known.effect, route], np.r_[known.cause, combine], 2)
    monkeypatch.setattr("rayemu.pricing.recorded_graph.causes_of", lambda *_: circle)
    assert graph_of(record, emulator.spec).gaps == 3


def test_an_empty_record_is_an_empty_graph() -> None:
    graph = graph_of(np.zeros(0, rec.RECORD), small("modules").spec)
    assert len(graph) == len(graph.causes) == graph.gaps == 0 and graph.cause_start.tolist() == [0]
