"""`rayemu routers`: figures against loops over tokens, routers that appear by themselves, and refusals."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rayemu import Scenario
from rayemu.cli import app
from rayemu.model.model import Model
from rayemu.model.presets import PRESETS
from rayemu.model.reference import reference_forward
from rayemu.pricing.choices import chosen_by_model
from rayemu.routing import ROUTERS, Context, Gate, Router, Routing, make_router
from rayemu.study.routed import forward, moe
from rayemu.study.routers import Stage, sensible, study, undominated, with_best

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {"d_model": 32, "d_ff": 16, "experts": 8, "top_k": 2, "layers": 2},
    "cluster": {"nodes": 2, "modules_per_node": 2, "transport": "memory"},
    "stream": {"kind": "zipf", "vocabulary": 40},
    "exchange": {"min_slice_rows": 16},
    "run": {"batch_tokens": 50, "seed": 4},
}
BATCHES = 3


@pytest.fixture(scope="module")
def stage() -> Stage:
    return Stage(Scenario.from_dict(TINY), BATCHES)


@pytest.fixture(scope="module")
def choices() -> list[list[np.ndarray]]:
    """The choices of the model itself, [B][L] of [T, K]."""
    scenario = Scenario.from_dict(TINY)
    batches = islice(scenario.stream.build().batches(50, 32, 4), BATCHES)
    return chosen_by_model(Model(scenario.spec), batches)


def test_the_model_s_own_router_by_hand(stage: Stage, choices: list[list[np.ndarray]]) -> None:
    (found,) = study(stage, ["softmax_topk"])
    assert (found.agreement, found.output_error, found.dropped, found.without) == (1, 0, 0, 0)
    placed = stage.scenario.placed()
    held = set(zip(placed.layer.tolist(), placed.expert.tolist(), placed.module.tolist(), strict=True))
    remote, far, uneven, total = 0, 0, [], 0
    for batch, layers in enumerate(choices):
        for layer, chosen in enumerate(layers):
            loads = np.bincount(chosen.ravel(), minlength=8)
            uneven.append(loads.max() / loads.mean())
            for token, experts in enumerate(chosen.tolist()):
                part = next(n for n, end in enumerate((16, 33, 50)) if token < end)  # 3 slices of 16 or more
                home = (batch + part) % 4
                for expert in experts:
                    total += 1
                    remote += (layer, expert, home) not in held
                    node = home // 2 * 2
                    far += not {(layer, expert, node), (layer, expert, node + 1)} & held
    assert found.remote == pytest.approx(remote / total) and 0.5 < found.remote < 1
    assert found.remote_node == pytest.approx(far / total) and 0 < found.remote_node < found.remote
    assert found.balance == pytest.approx(np.mean(uneven))
    assert 0.1 < found.time_ratio < 10


@dataclass(frozen=True)
class Best(Router):
    """The best expert alone, and none for every third token of a batch."""

    top_k: int
    limit: int = 2

    def check(self, experts: int) -> None:
        if self.limit > experts // 4:
            raise ValueError(f"routing.limit is {self.limit}; allowed: up to {experts // 4}")

    def choose(self, scores: np.ndarray, gate: Gate, context: Context) -> Routing:
        experts = np.stack([scores.argmax(axis=1), np.full(len(scores), -1)], axis=1).astype(np.int32)
        experts[::3] = -1
        context.count("tokens_dropped", len(experts[::3]))
        return Routing(experts, (experts >= 0).astype(np.float32))


def test_a_router_appears_by_itself_with_what_it_drops(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROUTERS, "best", Best)
    found = {line.router: line for line in study(stage, [])}
    assert found.keys() == ROUTERS.keys()
    mine = found["best"]
    third = 17 / 50  # of 50 tokens
    assert mine.without == pytest.approx(third)
    assert mine.agreement == pytest.approx((1 - third) / 2)
    assert mine.dropped == pytest.approx((1 + third) / 2)
    assert mine.counts == {"tokens_dropped": 17 * BATCHES * 2}
    assert mine.output_error > 0
    assert found["predictive_topk"].agreement == 1 and found["predictive_topk"].output_error == 0
    assert "give a .npz" in found["replay"].refused and not found["replay"].best


def test_the_output_error_is_of_the_whole_stack(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the reference has it whose model is made with the other router."""
    (line,) = study(stage, ["softmax_topk:renormalise=false"])
    spec = stage.scenario.with_overrides(["routing={kind: softmax_topk, renormalise: false}"]).spec
    other, own = Model(spec), Model(stage.spec)
    y = np.concatenate([reference_forward(other, x) for x in stage.batches]).astype(np.float64)
    wanted = np.concatenate([reference_forward(own, x) for x in stage.batches])
    assert line.output_error == pytest.approx(np.linalg.norm(y - wanted) / np.linalg.norm(wanted), rel=1e-5)
    assert line.agreement == 1 and line.output_error > 0.01
    monkeypatch.setitem(ROUTERS, "best", Best)
    fit, unfit = study(stage, ["best:limit=1", "best:limit=3"])
    assert not fit.refused and unfit.refused == "routing.limit is 3; allowed: up to 2"


@pytest.mark.parametrize(
    "kind", ["softmax_group_topk", "top_p", "capacity_topk", "expert_choice", "quantised_topk"]
)
def test_rows_that_stay_as_they_were_are_not_computed_again(
    stage: Stage, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs are those of the plain forward pass, to the bit, and what agrees costs nothing."""
    router = make_router(kind, 8, top_k=2, **sensible(kind, stage.spec))
    where, states, counts = (stage.holders, stage.module_to_node), {}, {}  # type: ignore[var-annotated]
    plain = [
        forward(stage.model, x, [router] * 2, home, *where, batch, states, counts)[0]
        for batch, (x, home) in enumerate(zip(stage.batches, stage.homes, strict=True))
    ]
    computed = []

    def counted(layer: Any, x: np.ndarray, routing: Routing) -> np.ndarray:
        computed.append(len(x))
        return moe(layer, x, routing)

    monkeypatch.setattr("rayemu.study.routers.moe", counted)
    assert np.array_equal(stage._outputs([router] * 2, {}), np.concatenate(plain))
    everything = 2 * BATCHES * 50
    assert (sum(computed) == 0) == (kind == "softmax_group_topk")
    others_weigh = kind in ("expert_choice", "quantised_topk")
    assert sum(computed) < everything or others_weigh


def test_what_takes_long_is_said_before(scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["--router", "base", "--router", "hash", "--json", "--batches", "2"]
    assert not _run(*asked, scenario=scenario).stderr
    monkeypatch.setattr("rayemu.study.routers.LONG_WALL_S", 0.0)
    result = _run(*asked, scenario=scenario)
    said = result.stderr.splitlines()
    assert said[0].startswith("measuring 2 routers takes about ") and "fewer --batches" in said[0]
    assert said[1].startswith("base takes about ") and said[2].startswith("hash takes about ")
    assert len(said) == 3 and json.loads(result.stdout)["routers"]


def test_marks_of_what_nothing_beats() -> None:
    points = [(0.0, 5.0), (1.0, 4.0), (1.0, 3.0), (2.0, 3.0), (2.0, 1.0), (0.0, 5.0), (3.0, 1.0)]
    wanted = [
        not any(other[0] <= p[0] and other[1] <= p[1] and other != p for other in points) for p in points
    ]
    assert undominated(points) == wanted == [True, False, True, False, True, True, False]
    assert with_best([]) == []


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3", "olmoe"])
def test_parameters_are_sensible_for_every_model(name: str) -> None:
    spec = PRESETS[name]
    for kind in set(ROUTERS) - {"replay"}:
        make_router(kind, spec.experts, top_k=spec.top_k, **sensible(kind, spec))
    assert sensible(spec.router, spec) == dict(spec.router_params)


def _run(*arguments: str, scenario: Path) -> Any:
    return CliRunner().invoke(app, ["routers", str(scenario), *arguments])


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(TINY))
    return path


def test_the_command_prints_a_table_without_a_cut(scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    result = _run("--batches", "2", "--stream", "uniform", "--set", "model.layers=1", scenario=scenario)
    assert result.exit_code == 0, result.output
    assert "…" not in result.output and all(len(line) <= 60 for line in result.output.splitlines())
    for kind in ROUTERS:
        assert kind in result.output
    assert "predictive_topk: prefetch_hits" in " ".join(result.output.split())
    assert "replay: path: '' is not allowed" in " ".join(result.output.split())


def test_as_json(scenario: Path) -> None:
    wanted = ["--router", "cached_topk:bits=3,audit=true", "--router", "replay", "--tokens", "20", "--json"]
    result = _run(*wanted, "--batches", "2", scenario=scenario)
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert (found["scenario"], found["own_router"], found["tokens"]) == ("tiny", "softmax_topk", 40)
    cached, replay = found["routers"]
    assert cached["router"] == "cached_topk:bits=3,audit=true"
    assert cached["counts"]["stale_choices"] == pytest.approx((1 - cached["agreement"]) * 160)
    assert 0 < cached["agreement"] < 1
    assert replay.keys() == {"router", "refused"}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--router", "best"], "--router: 'best' is not allowed; allowed: softmax_topk"),
        (
            ["--router", "cached_topk:size=3"],
            "--router: cached_topk: size: is not a parameter of cached_topk",
        ),
        (["--router", "cached_topk:bits"], "bits: is not an assignment"),
        (["--router", "cached_topk:bits=many"], "--router: cached_topk: bits: 'many' is not allowed"),
        (["--stream", "river"], "stream.kind: 'river' is not"),
    ],
)
def test_what_there_is_not_is_refused(scenario: Path, arguments: list[str], line: str) -> None:
    result = _run(*arguments, scenario=scenario)
    assert result.exit_code == 2
    assert line in " ".join(result.output.split())
