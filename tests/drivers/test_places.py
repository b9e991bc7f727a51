"""Choices made in each place: the same to the bit, through faults, and seen in the record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rayemu import Emulator, Scenario
from rayemu.drivers import record as rec
from rayemu.drivers.causes import causes_of
from rayemu.hardware import load_hardware
from rayemu.pricing.graph import MESSAGE, ROUTE
from rayemu.pricing.memory import PricingError
from rayemu.pricing.path import PARTS, part_of
from rayemu.pricing.recorded_graph import graph_of
from rayemu.pricing.schedule import schedule
from rayemu.protocol.config import PLACES
from rayemu.report.summary import account_traffic
from rayemu.scenario import Fault, ScenarioError
from rayemu.study.whatif import refuse_recorded_choices

D, E, LAYERS = 32, 16, 3
MERGING = {"kind": "softmax_topk"}
LIMITED = {"kind": "sigmoid_group_topk", "groups": 4, "top_groups": 2}


def scenario(routing: dict[str, Any], **sections: dict[str, Any]) -> Scenario:
    base: dict[str, Any] = {
        "model": {"d_model": D, "d_ff": 32, "experts": E, "top_k": 2, "layers": LAYERS},
        "cluster": {"nodes": 2, "modules_per_node": 2, "transport": "memory"},
        "placement": {"copies": 2},
        "exchange": {"min_slice_rows": 8, "micro_batches": 2},
        "run": {"seed": 3},
        "routing": routing,
    }
    return Scenario.from_dict({key: {**base[key], **sections.get(key, {})} for key in base})


def batches(count: int, rows: int = 64) -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    return [rng.standard_normal((rows, D), dtype=np.float32) for _ in range(count)]


def outputs(settings: Scenario) -> tuple[list[np.ndarray], np.ndarray, Any, int]:
    """Outputs, the record, the model, and the bytes that modules say they have sent."""
    with Emulator(settings) as emulator:
        results = list(emulator.stream(batches(3)))
        sent = sum(int(one["sent_bytes"]) for one in emulator.totals["modules"].values())
        return [r.y for r in results], emulator.record(), emulator.spec, sent


@pytest.mark.parametrize(("place", "routing"), [("distributed", MERGING), ("hybrid", LIMITED)])
def test_every_place_gives_the_same_bits_and_a_record_without_gaps(
    place: str, routing: dict[str, Any]
) -> None:
    wanted, *_ = outputs(scenario({**routing, "place": "coordinator"}))
    found, record, spec, totals = outputs(scenario({**routing, "place": place}))
    assert [y.tobytes() for y in found] == [y.tobytes() for y in wanted]
    units = 3 * LAYERS * 4 * 2  # batches, layers, slices, micro-batches
    of = {name: record[record["kind"] == number] for number, name in enumerate(rec.KINDS)}
    if place == "distributed":
        # Each unit: three other modules are asked, one part is scored at home, and one choice is made.
        assert [len(of[k]) for k in ("offer_request", "offer", "offer_reply")] == [
            3 * units,
            4 * units,
            3 * units,
        ]
        assert len(of["route"]) == units and (of["route"]["src"] == of["route"]["home"]).all()
        assert of["offer"]["flops"].sum() == of["route"]["rows"].sum() * 2 * D * E, "each expert once"
        assert (of["offer_request"]["raw_bytes"] == of["offer_request"]["rows"] * D * 4).all()
    else:
        assert [len(of[k]) for k in ("route_request", "groups")] == [units, units]
        assert len(of["route"]) == 2 * units and not len(of["route_reply"])
        assert (of["groups"]["raw_bytes"] == of["groups"]["rows"] * 2).all()  # two groups, a byte each
    traffic = account_traffic(record, 4, ["raw"])
    between = (record["src"] >= 0) & (record["dst"] >= 0) & (record["kind"] != rec.CONTROL)
    assert traffic["bytes_sent"] == record["sent_bytes"][between].sum() == totals
    assert causes_of(record).gaps == 0
    graph = graph_of(record, spec)
    assert graph.gaps == 0
    kinds = record["kind"]
    for number in np.flatnonzero(kinds == rec.DISPATCH).tolist():
        # From a dispatch back to what brought its choices.
        route = record["cause"][number]
        assert kinds[route] == rec.ROUTE and record["src"][route] == record["src"][number]
        before = record["cause"][route]
        if place == "hybrid":
            assert kinds[before] == rec.GROUPS and kinds[record["cause"][before]] == rec.ROUTE
            assert record["src"][record["cause"][before]] == -1
        else:
            assert kinds[before] == rec.OFFER_REPLY
            offer = record["cause"][before]
            assert kinds[offer] == rec.OFFER and kinds[record["cause"][offer]] == rec.OFFER_REQUEST
    # Priced: what is said for the choices is routing's, and rows travel at full width.
    hardware = load_hardware("hbm2-pim")
    plan = schedule(graph, hardware, spec)
    assert (plan.end >= plan.start).all()
    parts = np.array(PARTS)[part_of(graph)]
    between = (graph.kind == MESSAGE) & (graph.role == 2) & (graph.src >= 0) & (graph.dst >= 0)
    assert between.sum() == (6 * units if place == "distributed" else 0) and (parts[between] == "route").all()
    assert (parts[graph.kind == ROUTE] == "route").all()


def test_a_part_of_the_gate_is_priced_as_a_part_and_at_full_width() -> None:
    """Run at half its width, the work is that of the full width: each expert's column once for each row."""
    halved = scenario({**MERGING, "place": "distributed"}, model={"d_model": 64, "d_ff": 64, "scale": 2})
    with Emulator(halved) as emulator:
        list(emulator.stream([x for x in batches(1)]))
        record, spec = emulator.record(), emulator.spec
    graph = graph_of(record, spec)
    asked = record[record["kind"] == rec.OFFER_REQUEST]
    routed = graph.flops[graph.kind == ROUTE]
    rows = record[record["kind"] == rec.ROUTE]["rows"].sum()
    assert routed.sum() == rows * (2 * 64 * E + E)  # scores, and the choice among them
    sent = graph.bytes[(graph.kind == MESSAGE) & (graph.role == 2) & (graph.src >= 0) & (graph.dst >= 0)]
    head = (asked["sent_bytes"] - asked["raw_bytes"]).sum()
    replies = record[record["kind"] == rec.OFFER_REPLY]["sent_bytes"].sum()
    assert sent.sum() == 4 * 64 * asked["rows"].sum() + head + replies


@pytest.mark.parametrize(("place", "routing"), [("distributed", MERGING), ("hybrid", LIMITED)])
def test_kills_drops_and_duplicates_leave_the_outputs_exact(place: str, routing: dict[str, Any]) -> None:
    settings = scenario(
        {**routing, "place": place}, cluster={"evict_after": "200 ms", "retry_after": "20 ms"}
    )
    with Emulator(settings) as emulator:
        for kind in ("drop", "duplicate"):
            emulator.inject(Fault.model_validate({"kind": kind, "rate": 0.05, "for": "1 s"}))
        inputs = batches(8)

        def feed() -> Iterator[np.ndarray]:
            for number, x in enumerate(inputs):
                if number == 3:
                    emulator.inject(Fault.model_validate({"kind": "kill", "module": 1}))
                yield x

        for x, result in zip(inputs, emulator.stream(feed()), strict=True):
            assert (result.delivered == 1).all() and np.array_equal(emulator.reference(x, result), result.y)
        assert emulator.totals["reissued"] > 0
        record = emulator.record()
    graph_of(record, settings.spec)  # whatever is missing, it can be told


@pytest.mark.parametrize(
    ("routing", "told"),
    [
        (
            {"kind": "top_p", "place": "distributed"},
            "routing.place: distributed is not allowed with top_p, whose choices need more than the best",
        ),
        (
            {"kind": "softmax_topk", "renormalise": False, "place": "distributed"},
            "allowed: coordinator or modules",
        ),
        (
            {"kind": "softmax_topk", "place": "hybrid"},
            "routing.place: hybrid is not allowed with softmax_topk, which limits no choice to some groups",
        ),
        (
            {"kind": "sigmoid_group_topk", "groups": 4, "top_groups": 4, "place": "hybrid"},
            "(top_groups below groups); allowed: coordinator or modules",
        ),
        (
            {"kind": "softmax_topk", "place": "distributed", "layers": {"1": {"kind": "hash"}}},
            "routing.place: distributed is not allowed with hash",
        ),
        ({**LIMITED, "place": "distributed"}, "allowed: coordinator or modules or hybrid"),
    ],
)
def test_a_place_that_a_router_cannot_have_is_refused(routing: dict[str, Any], told: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        scenario(routing)
    assert told in str(refused.value)


def test_places_that_cannot_be_planned_are_refused() -> None:
    for place in PLACES:
        settings = scenario({**(LIMITED if place == "hybrid" else MERGING), "place": place})
        if place in ("coordinator", "modules"):
            refuse_recorded_choices(settings)
        else:
            with pytest.raises(PricingError, match=rf"routing.place: {place} cannot be planned"):
                refuse_recorded_choices(settings)
