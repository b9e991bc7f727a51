"""Figures of a schedule against sums by hand, and which modules hold what."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rayemu.hardware import Hardware, load_hardware
from rayemu.model.spec import ModelSpec
from rayemu.pricing import schedule
from rayemu.pricing.graph import OTHER, REPLY
from rayemu.pricing.memory import PricingError, memory_map, refuse_overfull
from rayemu.pricing.price import price
from rayemu.pricing.recorded import held_by
from rayemu.scenario import Scenario
from tests.pricing.graphs import TOY, Draft, step

MODEL = ModelSpec("m", 512, 256, 8, 2, layers=2)
PIM = load_hardware(TOY)


def test_the_figures_of_a_small_step_by_hand() -> None:
    draft = Draft([0, 0, 1])
    submit = draft.send(-2, -1, 1.0, OTHER)
    near = draft.send(0, 1, 64e3, after=submit)
    far = draft.send(0, 2, 12.5e3, after=submit)
    passes = [draft.expert(1, 1, 3, after=near), draft.expert(2, 2, 5, after=far)]
    back = [draft.send(1, 0, 64e3, REPLY, after=passes[0]), draft.send(2, 0, 12.5e3, REPLY, after=passes[1])]
    draft.send(0, -2, 1.0, OTHER, after=draft.combine(0, 4, after=back))
    graph = draft.graph()
    plan = schedule(graph, PIM, MODEL)
    found = price(graph, plan, PIM, MODEL, tokens=4)
    took = plan.end.max()
    assert found["step_emu_s"] == found["stream_emu_s"] == took
    assert found["tokens_per_emu_s"] == pytest.approx(4 / took)
    assert (found["batches"], found["modules"], found["nodes"]) == (1, 3, 2)
    energy = found["energy_joules"]
    weights = 3 * 512 * 256
    assert energy["experts"] == pytest.approx(2 * weights * 16 * 2e-12 + 2 * weights * 8 * 1e-12)
    assert energy["module_links"] == pytest.approx(2 * 64e3 * 8 * 10e-12)
    assert energy["static"] == pytest.approx(2.0 * 3 * took)
    assert found["energy_not_known"] == ["combine", "node_links"]
    assert found["joules_per_token"] == pytest.approx(sum(energy.values()) / 4)
    busy = [PIM.combine_seconds(512, 2, 4), *(PIM.expert_seconds(512, 256, rows) for rows in (3, 5))]
    use = found["utilisation"]["modules"]
    assert use == {"mean": pytest.approx(sum(busy) / 3 / took), "max": pytest.approx(max(busy) / took)}
    assert found["utilisation"]["node_links"]["max"] == pytest.approx(1e-6 / took)


def test_what_was_before_the_first_submission_is_in_no_figure_of_batches() -> None:
    draft = Draft([0])
    before = draft.route(0, 5, batch=-1)
    submit = draft.send(-2, -1, 1.0, OTHER, after=before)
    draft.send(0, -2, 1.0, OTHER, after=draft.combine(0, 4, after=submit))
    found = price(draft.graph(), schedule(draft.graph(), PIM, MODEL), PIM, MODEL, tokens=4)
    took = PIM.combine_seconds(512, 2, 4)
    assert found["step_emu_s"] == pytest.approx(took) == found["stream_emu_s"]
    assert found["tokens_per_emu_s"] == pytest.approx(4 / took)


@pytest.mark.parametrize("in_flight", [1, 3])
def test_the_critical_path_sums_to_the_step(in_flight: int) -> None:
    graph = step(batches=5, in_flight=in_flight)
    found = price(graph, schedule(graph, PIM, MODEL), PIM, MODEL, tokens=80)
    assert list(found["critical_path"]) == ["route", "dispatch", "queue", "compute", "combine"]
    assert sum(found["critical_path"].values()) == pytest.approx(found["step_emu_s"], rel=1e-12)
    if in_flight == 1:  # one batch after the other
        assert found["stream_emu_s"] == pytest.approx(5 * found["step_emu_s"])
    else:
        assert found["stream_emu_s"] < 5 * found["step_emu_s"]


def test_energy_of_routing_and_combining_by_hand() -> None:
    """A router draws its power while it is at work; a combine reads K rows and writes one, of fp16."""
    router = "{macs: N 4096, comparators: N 8, clock: N 1 GHz, area: N 1 mm2, power: N 0.5 W}"
    router = re.sub(r"N ([^,}]+)", r"{value: \1, source: t}", router)
    hw = load_hardware(TOY, "energy.activations={value: 3 pJ/bit, source: t}", f"router={router}")
    draft = Draft([0, 0])
    submit = draft.send(-2, -1, 1.0, OTHER)
    routes = [draft.route(module, 5, after=submit) for module in (0, 1)]
    draft.send(0, -2, 1.0, OTHER, after=draft.combine(0, 7, after=routes))
    graph = draft.graph()
    found = price(graph, schedule(graph, hw, MODEL), hw, MODEL, tokens=10)
    assert found["energy_joules"]["combine"] == pytest.approx(7 * (2 + 1) * 512 * 16 * 3e-12)
    assert found["energy_joules"]["routing"] == pytest.approx(2 * hw.route_seconds(512, 8, 5) * 0.5)
    assert found["energy_not_known"] == []


def test_no_figure_of_time_hides_its_clock() -> None:
    graph = step()
    found = price(graph, schedule(graph, PIM, MODEL), PIM, MODEL, tokens=32)
    times = [key for key in found if key.endswith("_s")]
    assert times and all(key.endswith("_emu_s") for key in times)


@pytest.mark.parametrize("drawn", [1.0, 1.25])
def test_cost_over_three_years_by_hand(drawn: float) -> None:
    """`drawn` watts for each that the modules use."""
    graph = step(batches=1, modules=4, per_node=2)
    hardware = load_hardware(TOY, f"price.overhead={{value: {drawn}, source: t}}")
    plan = schedule(graph, hardware, MODEL)
    found = price(graph, plan, hardware, MODEL, tokens=16)
    watts = found["joules_per_token"] * 16 / plan.span
    hours = 3 * 365 * 24
    cost = found["cost"]
    assert cost["bought_usd"] == 4 * 1000 + 2 * 5000
    assert cost["mean_watts"] == pytest.approx(watts)
    assert cost["power_usd"] == pytest.approx(drawn * watts / 1000 * hours * 0.1)
    assert cost["total_usd"] == pytest.approx(cost["bought_usd"] + cost["power_usd"])
    tokens = found["tokens_per_emu_s"] * hours * 3600
    assert cost["usd_per_million_tokens"] == pytest.approx(cost["total_usd"] / tokens * 1e6)


def test_a_dense_layer_s_combine_adds_one_output_only() -> None:
    """Of five rows: two values in and one out of D in layer 1, one in and one out in layer 0; fp16."""
    model = ModelSpec("m", 512, 256, 8, 2, layers=2, dense_layers=1, dense_d_ff=128)
    hardware = load_hardware(TOY, "energy.activations={value: 3 pJ/bit, source: t}")
    draft = Draft([0])
    first = draft.combine(0, 5, layer=0)
    draft.combine(0, 5, layer=1, after=first)
    plan = schedule(draft.graph(), hardware, model)
    each = 5 * 512 * 2 / (16 * 16e9)
    assert (plan.end - plan.start).tolist() == pytest.approx([2 * each, 3 * each])
    found = price(draft.graph(), plan, hardware, model, 5)
    assert found["energy_joules"]["combine"] == pytest.approx((2 + 3) * 5 * 512 * 16 * 3e-12)


def test_a_fetch_whose_energy_is_not_told_is_said_to_be_missing() -> None:
    graph = step(batches=1)
    fetch = "module.fetch={bandwidth: {value: 50 GB/s, source: t}, latency: {value: 1 us, source: t}}"
    for told, unknown in (("", True), ("energy.fetch={value: 10 pJ/bit, source: t}", False)):
        hardware = load_hardware(TOY, *filter(None, (fetch, told)))
        found = price(graph, schedule(graph, hardware, MODEL), hardware, MODEL, 16)
        assert ("fetch" in found["energy_not_known"]) == unknown
    assert "fetch" not in price(graph, schedule(graph, PIM, MODEL), PIM, MODEL, 16)["energy_not_known"]


def test_power_is_paid_for_with_what_the_building_needs_beside() -> None:
    graph = step(batches=1)
    costs = []
    for more in ([], ["price.overhead={value: 1.5, source: t}"]):
        hw = load_hardware(TOY, *more)
        costs.append(price(graph, schedule(graph, hw, MODEL), hw, MODEL, tokens=16)["cost"])
    assert costs[1]["power_usd"] == pytest.approx(1.5 * costs[0]["power_usd"])


def test_hardware_without_a_price_has_no_cost() -> None:
    graph = step(batches=1)
    hardware = load_hardware("hbm2-pim")
    assert price(graph, schedule(graph, hardware, MODEL), hardware, MODEL, 16)["cost"] is None


def test_nothing_finished_is_refused() -> None:
    draft = Draft([0])
    draft.send(-2, -1, 1.0, OTHER, batch=-1)
    graph = draft.graph()
    with pytest.raises(PricingError, match="no batch was finished"):
        price(graph, schedule(graph, PIM, MODEL), PIM, MODEL, 4)


def narrow() -> Hardware:
    return load_hardware(TOY, "module.banks.capacity={value: 1 GB, source: test}")


def test_a_memory_map_counts_the_full_width_at_the_hardware_s_precision() -> None:
    model = ModelSpec("m", 512, 256, 8, 2, layers=2, shared_d_ff=128)
    found = memory_map(PIM, model.scaled(8), np.array([3, 13]), rows=10)
    expert = 3 * 512 * 256 * 2  # fp16
    assert found.experts.tolist() == [3 * expert, 13 * expert]
    gate, norm, shared = 8 * 512, 512, 3 * 512 * 128
    assert found.common == 2 * (gate + norm + shared) * 2
    assert found.activations == model.activation_bytes(10) // 2
    assert found.total.tolist() == [held + found.common + found.activations for held in found.experts]
    assert found.fits is True


def test_activations_have_sixteen_bits_where_weights_have_fewer() -> None:
    model = ModelSpec("m", 512, 256, 8, 2, layers=2)
    rates = "{int8: {value: 1 TOP/s, source: t}}"
    hardware = load_hardware(TOY, "module.compute.precision=int8", f"module.compute.rates={rates}")
    found = memory_map(hardware, model, np.array([1]), rows=10)
    assert found.experts.tolist() == [3 * 512 * 256]
    assert found.activations == model.activation_bytes(10) // 2  # which counts four bytes a value


def test_rows_under_way_are_of_all_batches_in_flight() -> None:
    scenario = Scenario.load("smoke").with_overrides(["run.batch_tokens=65", "run.in_flight=3"])
    assert held_by(scenario, PIM).activations == scenario.spec.full().activation_bytes(3 * 33) // 2


def test_a_module_that_cannot_hold_its_experts_is_refused_with_sizes_and_remedy() -> None:
    model = ModelSpec("m", 4096, 14336, 8, 2)
    found = memory_map(narrow(), model, np.array([2, 4, 2]), rows=1)
    assert found.fits is False
    with pytest.raises(
        PricingError, match=r"toy \(changed\): module 1 needs 1\.\d+ GiB .* holds 954 MiB .*1 of 3.*--allow"
    ):
        refuse_overfull(found, narrow())
    refuse_overfull(memory_map(PIM, model, np.array([2, 4, 2]), rows=1), PIM)


def test_fetched_weights_are_held_where_they_are_fetched_from() -> None:
    model = ModelSpec("m", 4096, 14336, 8, 2)
    fetch = "module.fetch={bandwidth: {value: 50 GB/s, source: t}, latency: {value: 1 us, source: t}}"
    offload = load_hardware(TOY, "module.banks.capacity={value: 1 GB, source: t}", fetch)
    found = memory_map(offload, model, np.array([2, 4, 2]), rows=1)
    assert found.elsewhere and found.fits is None
    assert found.total.tolist() == [held + found.common for held in found.experts], "rows are in the module"
    refuse_overfull(found, offload)
