"""Runs that move experts: exact, and their summaries say what the moves brought."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from rayemu import Emulator, Scenario
from rayemu.balance.loads import as_placement
from rayemu.balance.rebalancer import Rebalancer
from rayemu.balance.triggers import TRIGGERS
from rayemu.drivers.rebalancing import Rebalancing
from rayemu.drivers.record import GEMM, VIRTUAL_RECORD
from rayemu.placement import PLACEMENTS, Placement, from_columns, rebalance_experts
from rayemu.protocol.client import BatchResult
from rayemu.protocol.messages import Notice
from rayemu.running.rebalances import computed_rows, rebalances
from rayemu.running.run import run_scenario
from rayemu.scenario import Fault, ScenarioError
from tests.model.checkpoints import V3, v3_tensors, write
from tests.model.test_checkpoint_files import FP8, _quantised
from tests.model.test_checkpoint_fused import GPT_OSS, packed_tensors

X = np.zeros((2, 1), np.float32)
MOVING: dict[str, Any] = {
    "model": {"d_model": 32, "d_ff": 32, "experts": 16, "top_k": 2, "layers": 1},
    "cluster": {"nodes": 2, "modules_per_node": 4, "transport": "memory"},
    "stream": {"kind": "hot_switch", "every": 24},
    "placement": {"copies": 2},
    "replicas": {"kind": "even"},
    "rebalance": {"every": 8, "planner": "balanced", "gain": 0.2},
    "arrivals": {"kind": "poisson", "rate": 40.0},
    "run": {"batches": 48, "batch_tokens": 128},
}


def test_experts_move_after_a_switch_and_the_balance_that_was_promised_comes(tmp_path: Path) -> None:
    summary = run_scenario(Scenario.from_dict(MOVING), tmp_path)
    assert summary["passed"] and summary["exact"]
    moves = summary["rebalances"]
    assert len(moves) >= 2, "once for the first hot tokens, once for the others"
    for entry in moves:
        assert entry["balance_before"] < 0.8 and entry["balance_after"] >= 0.9 * entry["promised"]
        assert entry["moves"] > 0 and entry["bytes"] == entry["moves"] * 4 * 3 * 32 * 32
        assert entry["cancelled"] == 0 and entry["took_virtual_s"] > 0 and entry["slowdown"] > 0
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    decided = [e for e in events if e["kind"] == "rebalance"]
    assert {e["decision"] for e in decided} == {"move", "stay"} and all(e["why"] for e in decided)
    assert run_scenario(Scenario.from_dict(MOVING), tmp_path / "again")["rebalances"] == moves


def test_experts_move_while_modules_hang(tmp_path: Path) -> None:
    faults = [{"kind": "hang", "module": m, "at": {"batch": 8 + m}, "for": 0.3} for m in range(3)]
    summary = run_scenario(Scenario.from_dict(MOVING | {"faults": faults}), tmp_path)
    assert summary["exact"] and not summary["tokens_lost"] and summary["rebalances"]


def test_a_run_that_moves_nothing_has_no_word_of_it(tmp_path: Path) -> None:
    scenario = Scenario.from_dict({key: value for key, value in MOVING.items() if key != "rebalance"})
    assert "rebalances" not in run_scenario(scenario, tmp_path)


def test_a_planner_that_fails_is_told_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = Scenario.from_dict(MOVING)

    def fails(*_: object) -> None:
        raise ZeroDivisionError("no plan today")

    monkeypatch.setattr(PLACEMENTS["balanced"], "place", fails)
    summary = run_scenario(scenario, tmp_path)
    assert summary["exact"] and summary["rebalances"] == []
    made = summary["rebalance_decisions"]
    assert made["failed"] > 0 == made["move"] + made["stay"] and "no plan today" in made["last_failed_why"]
    assert "ZeroDivisionError: no plan today" in (tmp_path / "events.jsonl").read_text()


def slots(placement: Placement) -> Iterator[tuple[int, int, int]]:
    columns = placement.layer.tolist(), placement.expert.tolist(), placement.module.tolist()
    return zip(*columns, strict=True)


def test_an_emulator_moves_when_it_is_told_to_and_refuses_what_cannot_be() -> None:
    scenario = Scenario.from_dict({key: value for key, value in MOVING.items() if key != "rebalance"})
    x = np.random.default_rng(0).standard_normal((40, 32), dtype=np.float32)
    with Emulator(scenario) as emulator:
        present = emulator.placement
        wanted = from_columns(present.layer, present.expert, (present.module + 1) % 8)
        number = emulator.move(wanted)
        for _ in range(50):
            assert np.array_equal(emulator.forward(x), emulator.reference(x))
            status = emulator.moved(number)
            if status is not None and status.done:
                break
            emulator.wait(0.05)
        assert status is not None and status.done and status.loaded == len(wanted)
        emulator.wait(0.2)
        assert {*slots(emulator.placement)} == {*slots(wanted)}
        with pytest.raises(TypeError, match=r"placement is a dict; give a rayemu\.placement\.Placement"):
            emulator.move({"module": [1]})  # type: ignore[arg-type]
        with pytest.raises(LookupError, match="there is no move 7; 1 were asked for"):
            emulator.moved(7)
        with pytest.raises(ValueError, match="expert 3 of layer 0 has no slot"):
            kept = present.expert != 3
            emulator.move(from_columns(present.layer[kept], present.expert[kept], present.module[kept]))
        with pytest.raises(ValueError, match=r"placement.module\[0\] is 8; allowed: 0 to 7"):
            emulator.move(from_columns(present.layer, present.expert, np.full(len(present), 8)))
        phy2log = rebalance_experts(np.ones((1, 16)), 32, 1, 1, 8)[0]
        with pytest.raises(TypeError, match=r"is a ndarray; .*as_placement\(phy2log, modules\)"):
            emulator.move(phy2log)  # type: ignore[arg-type]
        emulator.move(as_placement(phy2log, 8))  # the remedy that it names
        with pytest.raises(ValueError, match="module 5 has 2 slots of expert 0 of layer 0"):
            emulator.move(from_columns(present.layer, present.expert, np.full(len(present), 5)))


def test_a_move_beyond_a_modules_memory_is_refused() -> None:
    """An expert has 12 KiB; four on each module fit, sixteen on one do not."""
    data = {key: value for key, value in MOVING.items() if key != "rebalance"}
    scenario = Scenario.from_dict(data | {"cluster": MOVING["cluster"] | {"memory": "120 KiB"}})
    with Emulator(scenario) as emulator:
        present = emulator.placement
        crowded = from_columns(present.layer[::2], present.expert[::2], np.zeros(16, int))
        with pytest.raises(ValueError, match=r"module 0 would need .*; allowed: cluster.memory, 120 KiB"):
            emulator.move(crowded)


@pytest.mark.parametrize("kind", ["bf16", "fp8", "mxfp4 with biases"])
@pytest.mark.parametrize("copies", [1, 2])
def test_experts_of_a_checkpoint_move_as_they_are_computed_with(
    kind: str, copies: int, tmp_path: Path
) -> None:
    """They travel at the width they run at; those of a module that was killed are read again."""
    if kind == "bf16":
        written = write(tmp_path, V3, v3_tensors(), "BF16")
    elif kind == "fp8":
        written = write(tmp_path, V3 | {"quantization_config": FP8}, _quantised()[0], shards=2)
    else:
        config = GPT_OSS | {"quantization_config": {"quant_method": "mxfp4"}}
        written = write(tmp_path, config, packed_tensors())
    cluster = {"nodes": 2, "modules_per_node": 2, "transport": "memory"}
    model = {"checkpoint": str(written)}
    scenario = Scenario.from_dict({"model": model, "cluster": cluster, "placement": {"copies": copies}})
    spec = scenario.spec
    x = np.random.default_rng(0).standard_normal((40, spec.d_model), dtype=np.float32)
    with Emulator(scenario) as emulator:
        present = emulator.placement
        wanted = from_columns(present.layer, present.expert, (present.module + 1) % 4)
        number = emulator.move(wanted)
        if copies == 2:
            emulator.inject(Fault.model_validate({"kind": "kill", "module": 1}))
        for _ in range(200):
            (result,) = emulator.stream([x])
            assert np.array_equal(result.y, emulator.reference(x, result))
            emulator.wait(0.05)
            status = emulator.moved(number)
            if status is not None and status.done:
                break
        assert status is not None and status.done
        if copies == 1:
            assert status.loaded == len(wanted) and status.fetched == len(wanted) * spec.expert_bytes()
        emulator.wait(2.0)
        table = emulator.placement
        for module in emulator._backend.simulator.modules:  # type: ignore[attr-defined]
            held = module.machine.holdings
            assert set(held) == set(table.held_by(module.machine.me))
            for layer, expert in held:
                mine, own = held[layer, expert], emulator.model.make_expert(layer, expert)
                for name in ("up", "down", "up_bias", "down_bias"):
                    assert np.array_equal(getattr(mine, name), getattr(own, name)), name


def test_the_figures_of_a_move_by_hand() -> None:
    """Four batches of 1 s each and one of 3 s while experts move; then batches of half a second."""
    ends = [1.0, 2.0, 3.0, 4.0, 7.0, 7.5, 8.0, 8.5]
    begins = [0.0, 1.0, 2.0, 3.0, 4.0, 7.0, 7.5, 8.0]
    results = [
        BatchResult(
            n, np.zeros((2, 1)), np.zeros((1, 4)), np.ones(2, np.int32), submitted_at=b, finished_at=e
        )
        for n, (b, e) in enumerate(zip(begins, ends, strict=True))
    ]
    record = np.zeros(16, VIRTUAL_RECORD)
    record["kind"], record["src"], record["batch"] = GEMM, np.tile([0, 1], 8), np.repeat(np.arange(8), 2)
    record["rows"] = [3, 1] * 4 + [1, 3] + [2, 2] * 3
    record["expert"][-1] = 3
    facts = {"batch": 3, "decision": "move", "reason": "so", "promised": 0.9, "planned_moves": 6, "move": 0}
    moved = {"number": 0, "loaded": 4, "dropped": 5, "cancelled": 1, "fetched": 77, "seconds": 2.5}
    notices = [Notice("rebalance", 4.5, facts), Notice("moved", 7.0, moved)]
    (entry,) = rebalances(notices, results, record, 1, 2, 4, "virtual")
    assert entry["balance_before"] == pytest.approx(2 / 3) and entry["balance_after"] == 1.0
    assert (entry["moves"], entry["dropped"], entry["cancelled"], entry["bytes"]) == (4, 5, 1, 77)
    assert entry["batch_p99_while_moving_virtual_s"] == 3.0
    assert entry["batch_median_outside_virtual_s"] == 1.0 and entry["slowdown"] == 3.0
    (unfinished,) = rebalances(notices[:1], results, record, 1, 2, 4, "virtual")
    assert (unfinished["moves"], unfinished["bytes"], unfinished["planned_moves"]) == (None, None, 6)
    assert computed_rows(record, [4], 1, 2).tolist() == [[1, 3]]


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({}, "rebalance: give either every"),
        ({"every": 3, "trigger": "trend"}, "rebalance: give either every .*; both are given"),
        ({"every": 0}, "rebalance.every: 0 is not allowed"),
        (
            {"every": 3, "planner": "blanced"},
            "rebalance.planner.kind: 'blanced' is not a planner; known: .*balanced",
        ),
        ({"trigger": {"kind": "imbalance", "over": 0.5}}, "rebalance.trigger.over: 0.5 is not allowed"),
        (
            {"every": 3, "planner": {"kind": "balanced", "groups": 5}},
            "rebalance.planner.groups: 5 is not allowed",
        ),
        ({"every": 3, "gain": 1.5}, "rebalance.gain: 1.5 is not allowed"),
        ({"every": 3, "gain": float("nan")}, "rebalance.gain: .*nan is not allowed"),
        ({"every": 3, "within": float("inf")}, "rebalance.within: .*inf is not allowed"),
        ({"every": 3, "rate": 0}, "rebalance.rate: 0"),
        ({"trigger": {"kind": "imbalance", "over": float("inf")}}, "rebalance.trigger.over: .*inf is not"),
        ({"trigger": {"kind": "imbalance", "window": 5000}}, "trigger.window: 5000 is not allowed; .*4096"),
        (
            {"every": 3, "planner": {"kind": "incremental", "within": 10**30}},
            r"within: 10{30} is not .*2\*\*63",
        ),
        ({"trigger": {"kind": "trend", "of": 4096}}, "rebalance.trigger.of: 4096 is not allowed; .*4095"),
        (
            {"trigger": {"kind": "predicted", "window": 50, "windows": 100}},
            "rebalance.trigger.windows: 100 is not allowed; allowed: 1 to 81",
        ),
        ({"every": 3, "gian": 0.5}, r"rebalance.gian: unknown key; .*did you mean gain"),
        ({"every": 3, "rate": "fast"}, "rebalance.rate: 'fast'"),
    ],
)
def test_a_section_that_cannot_be_is_refused_by_name(section: dict[str, Any], says: str) -> None:
    with pytest.raises(ScenarioError, match=says):
        Scenario.from_dict(MOVING | {"rebalance": section})


def test_a_section_survives_its_text_and_overrides() -> None:
    scenario = Scenario.from_dict(MOVING)
    assert Scenario.from_dict(yaml.safe_load(scenario.to_yaml())) == scenario
    changed = scenario.with_overrides(["rebalance.planner=random", "rebalance.every=5"])
    assert changed.rebalance is not None and changed.rebalance.planner.kind == "random"
    other = scenario.with_overrides(["rebalance={trigger: {kind: imbalance, over: 1.5}}"])
    assert other.rebalance is not None and other.rebalance.policy().trigger == TRIGGERS["imbalance"](1.5)


def test_a_trigger_that_fails_or_takes_long_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a real run, whose plans are made beside it."""
    asked, go_on = threading.Event(), threading.Event()

    def waits_and_fails(*_: object) -> None:
        asked.set()
        go_on.wait(30)
        raise ZeroDivisionError("no forecast")

    monkeypatch.setattr(TRIGGERS["every"], "fires", waits_and_fails)
    scenario = Scenario.from_dict(MOVING)
    assert scenario.rebalance is not None
    backend = SimpleNamespace(placement=scenario.placed(), now=1.0)
    rebalancer = Rebalancer(scenario.rebalance.policy(), scenario.placement_problem())
    driver = Rebalancing(rebalancer, backend, at_once=False)  # type: ignore[arg-type]
    result = BatchResult(0, X, np.ones((1, 16)), np.ones(2, np.int32))
    for _ in range(3):
        driver.observe(result)
    assert asked.wait(30) and driver.take_notices() == []
    go_on.set()
    notices: list[Notice] = []
    while not notices:  # the next result takes in what came of it
        driver.observe(result)
        notices = driver.take_notices()
        time.sleep(0.001)
    driver.close()
    assert "ZeroDivisionError: no forecast" in str(notices[0].facts)
