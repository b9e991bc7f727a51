"""`rayemu plan`: bounds by hand, ranks that agree with the loads, plans that other systems can read."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rayemu.cli import app
from rayemu.study.plan import Machine, bound, problem_for
from rayemu.traces import Trace, read_plan


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["plan", *map(str, arguments)], env={"COLUMNS": "200"})
    return done.exit_code, done.output + (done.stderr if done.stderr_bytes else "")


@pytest.fixture
def loads(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)
    np.save(tmp_path / "loads.npy", rng.zipf(1.6, (3, 16)).clip(max=300).astype(float))
    return tmp_path / "loads.npy"


@pytest.mark.parametrize(
    ("rows", "machine", "least"),
    [
        ([4.0, 4, 4, 4], Machine(2), 8.0),  # the mean
        ([10.0, 1, 1, 0], Machine(4), 10.0),  # one copy of the heaviest
        ([10.0, 1, 1, 0], Machine(4, slots=5), 5.0),  # two of it
        ([12.0, 0, 0, 0], Machine(2, slots=8), 6.0),  # no more copies than modules
        ([9.0, 9, 1, 1], Machine(2, nodes=2, groups=2), 18.0),  # both heavy ones are of one group
    ],
)
def test_the_bound_by_hand(rows: list[float], machine: Machine, least: float) -> None:
    problem = problem_for(Trace(np.array([[rows]])), machine)
    assert bound(problem, machine.groups)[0] == pytest.approx(least)


def test_no_plan_of_a_small_machine_is_below_the_bound() -> None:
    """All ways to put 4 experts and a fifth slot on 2 modules."""
    rows = np.array([7.0, 5, 2, 2])
    problem = problem_for(Trace(rows[None, None]), Machine(2, slots=5))
    best = np.inf
    for extra in range(4):
        held = [0, 1, 2, 3, extra]
        share = rows[held] / np.bincount(held)[held]
        for places in itertools.product((0, 1), repeat=5):
            if places[4] != places[extra]:
                best = min(best, np.bincount(places, weights=share, minlength=2).max())
    assert bound(problem)[0] <= best


def test_planners_are_ranked_and_the_best_plan_is_written(loads: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    code, text = run(loads, "--modules", 4, "--slots", 20, "--json", "--out", out, "--format", "eplb")
    assert code == 0, text
    lines = json.loads(text)
    answers = [line for line in lines if "refused" not in line or not line["refused"]]
    order = [round(line["imbalance"], 4) for line in answers]
    assert order == sorted(order) and answers[0]["planner"] in ("balanced", "incremental")
    assert all(line["imbalance"] >= line["bound"] - 1e-9 and line["moves"] is None for line in answers)
    plan = read_plan(out, num_experts=16, num_devices=4)
    rows = np.load(loads)
    found = []
    for layer, held in enumerate(plan.phy2log):
        share = rows[layer, held] / np.bincount(held, minlength=16)[held]
        module = np.bincount(np.arange(len(held)) // 5, weights=share)
        found.append(module.max() / module.mean())
    assert np.mean(found) == pytest.approx(answers[0]["imbalance"])


def test_what_is_kept_counts(loads: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    given = (loads, "--modules", 4, "--slots", 20, "--planner", "balanced")
    assert run(*given, "--out", out, "--format", "eplb")[0] == 0
    code, text = run(*given, "--keep", out, "--expert-bytes", "1 MB", "--json")
    (same,) = json.loads(text)
    assert code == 0 and same["moves"] == same["moved_bytes"] == 0
    moved = tmp_path / "moved.npy"
    np.save(moved, np.load(loads)[:, ::-1])
    _, text = run(moved, *given[1:], "--keep", out, "--expert-bytes", "1 MB", "--json")
    (other,) = json.loads(text)
    assert other["moves"] > 0 and other["moved_bytes"] == other["moves"] * 1_000_000


def test_a_plan_of_another_machine_or_model_is_not_taken_for_one_of_this(loads: Path, tmp_path: Path) -> None:
    out, flat, other = tmp_path / "plan.json", tmp_path / "plan.npy", tmp_path / "other.npy"
    given = (loads, "--modules", 4, "--slots", 20, "--planner", "balanced")
    assert (
        run(*given, "--out", out, "--format", "eplb")[0] == run(*given, "--out", flat, "--format", "npy")[0]
    )
    code, text = run(loads, "--modules", 5, "--keep", out)
    assert code == 2 and "plan.json: a plan for 4 devices, and there are 5 modules" in text
    assert run(loads, "--modules", 5, "--slots", 20, "--keep", flat)[0] == 0, "it does not say for how many"
    np.save(other, np.ones((2, 16)))
    code, text = run(other, "--modules", 4, "--keep", out)
    assert code == 2 and "plan.json: a plan of 3 layers, and the loads have 2" in text


def test_the_table_fits_a_terminal_of_80_columns(loads: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.npy"
    assert run(loads, "--modules", 4, "--planner", "linear", "--out", out, "--format", "npy")[0] == 0
    arguments = ["plan", str(loads), "--modules", "4", "--keep", str(out), "--expert-bytes", "44 MiB"]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert done.exit_code == 0 and "…" not in done.output and "-0.00%" not in done.output


def test_a_table_names_what_cannot_answer(loads: Path) -> None:
    code, text = run(loads, "--modules", 4, "--nodes", 2, "--groups", 4)
    assert code == 0 and "balanced" in text
    text = " ".join(text.split())
    assert "linear, round_robin" in text and "groups of experts would not stay whole" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--modules", 4, "--slots", 15), "--slots 15 is not allowed; allowed: 16"),
        (("--modules", 4, "--slots", 65), "--slots 65 is not allowed; allowed: up to 64"),
        (("--modules", 4, "--nodes", 3), "--nodes 3 is not allowed; allowed: a divisor of the 4"),
        (("--modules", 4, "--groups", 3), "--groups 3 is not allowed; allowed: a divisor of 16"),
        (("--modules", 4, "--planner", "best"), "--planner best is not known; allowed: linear"),
        (("--modules", 4, "--out", "x.json"), "--out needs --format; allowed: eplb, vllm"),
        (("--modules", 4, "--format", "eplb"), "--format eplb says how --out is written"),
        (("--modules", 4, "--out", "x", "--format", "flame"), "--format flame is not allowed; allowed: eplb"),
        (("--modules", 4, "--out", ".", "--format", "eplb"), ".: a folder; name what to write in it"),
        (("--modules", 4, "--out", "/", "--format", "npy"), "/: a folder; name what to write in it"),
        (("--modules", 4, "--planner", "graph"), "no planner has an answer; what each lacks is above"),
        (("--modules", 4, "--keep", "nothing.json"), "nothing.json: no such file"),
        (("--modules", 4, "--expert-bytes", "big"), "--expert-bytes: big"),
        (("--modules", 0), "greater than or equal to 1"),
        ((), "Missing option '--modules'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(loads: Path, arguments: tuple[object, ...], says: str) -> None:
    code, text = run(loads, *arguments)
    assert code == 2 and says in " ".join(text.replace("│", "").split()), text
