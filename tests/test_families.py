"""Adding a strategy touches its own file, its family's table and its test, and nothing else."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from rayemu import Emulator, Scenario
from rayemu.alltoall import EXCHANGES, REPLICAS
from rayemu.arrivals import ARRIVALS
from rayemu.balance.predictors import PREDICTORS
from rayemu.balance.triggers import TRIGGERS
from rayemu.faults import FAULTS, Fault, Sending, refused
from rayemu.faults.fault import SECONDS
from rayemu.placement import PLACEMENTS, Placement, PlacementProblem
from rayemu.report.catalog import families
from rayemu.report.wording import describe
from rayemu.routing import ROUTERS
from rayemu.running.faults import parameters
from rayemu.scenario import ScenarioError
from rayemu.scenario.base import WITH_UNITS
from rayemu.scenario.faults import with_parameters_of
from rayemu.streams import STREAMS
from tests.test_architecture import ROOT, imported_by, module_name, python_files, relative

TABLES: dict[str, Mapping[str, Any]] = {
    "rayemu.placement": PLACEMENTS,
    "rayemu.alltoall": {**REPLICAS, **EXCHANGES},
    "rayemu.streams": STREAMS,
    "rayemu.arrivals": ARRIVALS,
    "rayemu.balance.triggers": TRIGGERS,
    "rayemu.balance.predictors": PREDICTORS,
    "rayemu.routing": ROUTERS,
    "rayemu.faults": FAULTS,
}
# A baseline that others are compared with, and the trigger that a scenario has a short word for.
BY_NAME = {
    ("rayemu/study/strategies.py", "Linear"),
    ("rayemu/balance/scores.py", "LastWindow"),
    ("rayemu/scenario/rebalance.py", "Every"),
}
TINY = {"model": {"d_model": 16, "d_ff": 16, "experts": 4, "top_k": 2, "layers": 1}}


@dataclasses.dataclass(frozen=True)
class Mine:
    """A strategy that nobody has heard of."""

    often: int = 3

    def __post_init__(self) -> None:
        if self.often < 1:
            raise ValueError(f"often: {self.often} is not allowed; allowed: 1 and above")

    def place(self, problem: PlacementProblem) -> Placement:
        return PLACEMENTS["linear"]().place(problem)

    def times(self, seed: int) -> None:
        return None


@pytest.mark.parametrize("package", TABLES)
def test_nobody_outside_of_a_family_names_its_members(package: str) -> None:
    files = {cls.__module__ for cls in TABLES[package].values()}
    names = {cls.__name__ for cls in TABLES[package].values()}
    for folder in ("rayemu", "cluster"):
        for file in python_files(folder):
            if module_name(file).startswith(package):
                continue
            found = imported_by(file)
            assert not found & (files - {package}), f"{relative(file)} imports a member's file"
            named = {(relative(file), n.removeprefix(f"{package}.")) for n in found if n.startswith(package)}
            assert not {pair for pair in named if pair[1] in names} - BY_NAME, relative(file)


@pytest.mark.parametrize("package", TABLES)
def test_every_strategy_of_a_family_is_in_its_table(package: str) -> None:
    """A dataclass that has what all members have, and is not listed, is one that nobody can choose."""
    members = set(TABLES[package].values())
    common = set.intersection(*({n for n in vars(cls) if not n.startswith("_")} for cls in members))
    for info in pkgutil.iter_modules([str(ROOT / package.replace(".", "/"))]):
        module = importlib.import_module(f"{package}.{info.name}")
        own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
        alike = {c for c in own if dataclasses.is_dataclass(c) and common and common <= set(vars(c))}
        assert alike <= members, alike - members


@pytest.mark.parametrize(
    ("table", "section", "path"),
    [
        (PLACEMENTS, {"placement": {"kind": "mine"}}, "placement"),
        (PLACEMENTS, {"rebalance": {"every": 2, "planner": {"kind": "mine"}}}, "rebalance.planner"),
        (TRIGGERS, {"rebalance": {"trigger": {"kind": "mine"}}}, "rebalance.trigger"),
        (REPLICAS, {"replicas": {"kind": "mine"}}, "replicas"),
        (EXCHANGES, {"exchange": {"kind": "mine"}}, "exchange"),
        (STREAMS, {"stream": {"kind": "mine"}}, "stream"),
        (ARRIVALS, {"arrivals": {"kind": "mine"}}, "arrivals"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_new_member_of_a_table_is_all_that_a_scenario_needs(
    monkeypatch: pytest.MonkeyPatch, table: dict[str, Any], section: dict[str, Any], path: str
) -> None:
    monkeypatch.setitem(table, "mine", Mine)
    scenario = Scenario.from_dict({**TINY, **section})
    assert "often: 3" in scenario.to_yaml(), "its parameters are part of the scenario"
    changed = scenario.with_overrides([f"{path}.often=5"])
    assert Scenario.from_dict(changed.model_dump(by_alias=True, exclude_none=True)) == changed
    with pytest.raises(ScenarioError, match=f"{path}.often: 0 is not allowed"):
        scenario.with_overrides([f"{path}.often=0"])
    with pytest.raises(ScenarioError, match=f"{path}.seldom: is not a parameter of mine, which takes: often"):
        scenario.with_overrides([f"{path}.seldom=1"])
    assert any("mine" in members for members in families().values()), "rayemu list shows it"


@dataclasses.dataclass(frozen=True)
class Gum(Fault):
    """Frames stick for a moment, and now and then jobs do."""

    wait: float = dataclasses.field(default=0.25, metadata=SECONDS)
    times: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.times < 2:
            raise refused("times", self.times, "2 and above")

    def on_send(self, sending: Sending, rng: np.random.Generator) -> bool:
        sending.delays = [held + self.wait for held in sending.delays]
        return True

    def slowness(self) -> float:
        return self.times


def test_a_new_kind_of_fault_is_all_that_a_plan_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAULTS, "gum", Gum)
    section = with_parameters_of(FAULTS)
    planned = section.model_validate({"kind": "gum", "for": "2 s", "wait": "50 ms"})
    assert planned.model_dump(by_alias=True, exclude_none=True, exclude={"at"}, context=WITH_UNITS) == {
        "kind": "gum",
        "for": "2 s",
        "wait": "50 ms",
        "times": 2.0,
    }
    with pytest.raises(ValueError, match=r"times\n.*1 is not allowed; allowed: 2 and above"):
        section.model_validate({"kind": "gum", "times": 1})
    with pytest.raises(
        ValueError, match=r"rate\n.*is not a parameter of gum, .*: module, at, for, wait, times"
    ):
        section.model_validate({"kind": "gum", "rate": 0.5})
    assert families()["faults.kind"]["gum"] == "Frames stick for a moment, and now and then jobs do."
    told = parameters(planned)
    assert told == {"wait_s": 0.05, "times": 2.0, "for_s": 2.0}
    line = describe({"kind": "fault", "fault": "gum", "module": None, **told})
    assert line == "all modules: fault injected: gum wait_s 0.05 times 2 for 2 s"
    with Emulator(Scenario.from_dict({**TINY, "cluster": {"transport": "memory"}})) as emulator:
        emulator.inject(planned)
        x = np.zeros((8, 16), np.float32)
        assert np.array_equal(emulator.forward(x), emulator.reference(x))
        simulator = emulator._backend.simulator
        for pump in (simulator.pump, *(module.pump for module in simulator.modules)):
            assert pump.faults.counts[Gum] and pump.faults.slowness(simulator.now) == 2.0


def test_a_new_planner_is_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    from rayemu.study.plan import Machine, problem_for, ranked
    from rayemu.traces import Trace

    monkeypatch.setitem(PLACEMENTS, "mine", Mine)
    machine = Machine(2)
    answers = ranked(problem_for(Trace(np.ones((1, 1, 4))), machine), machine)
    assert "mine" in {answer.planner for answer in answers if answer.plan is not None}
