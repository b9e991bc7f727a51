"""Adding a strategy touches its own file, its family's table and its test, and nothing else."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from rayemu import Scenario
from rayemu.alltoall import EXCHANGES, REPLICAS
from rayemu.arrivals import ARRIVALS
from rayemu.balance.predictors import PREDICTORS
from rayemu.balance.triggers import TRIGGERS
from rayemu.placement import PLACEMENTS, Placement, PlacementProblem
from rayemu.report.catalog import families
from rayemu.routing import ROUTERS
from rayemu.scenario import ScenarioError
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


def test_a_new_planner_is_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    from rayemu.study.plan import Machine, problem_for, ranked
    from rayemu.traces import Trace

    monkeypatch.setitem(PLACEMENTS, "mine", Mine)
    machine = Machine(2)
    answers = ranked(problem_for(Trace(np.ones((1, 1, 4))), machine), machine)
    assert "mine" in {answer.planner for answer in answers if answer.plan is not None}
