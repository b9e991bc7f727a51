"""The command on the transport that needs no cluster, and what it measures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rayemu.benchmarks import step
from rayemu.benchmarks.gemms import Gemms
from rayemu.benchmarks.overhead import NEVER
from rayemu.benchmarks.plain_ray import PlainModule
from rayemu.benchmarks.workload import SIZES, Size, Workload


def test_the_sizes_are_the_projects() -> None:
    large, small = SIZES["large"], SIZES["small"]
    assert (large.tokens, large.d_model, large.d_ff) == (4096, 1024, 3584)
    assert (small.tokens, small.d_model, small.d_ff) == (64, 256, 512)
    for size in SIZES.values():
        assert (size.experts, size.top_k, size.modules) == (8, 2, 8)
        scenario = size.scenario()
        spec = scenario.spec
        assert (spec.layers, spec.norm, spec.residual, spec.activation) == (1, False, False, "swiglu")
        assert scenario.cluster.modules == 8


def test_a_run_whose_deadlines_never_act_is_a_scenario() -> None:
    cluster = SIZES["small"].scenario(cluster=NEVER).cluster
    assert min(cluster.retry_after, cluster.stall_after, cluster.suspect_after) >= 3600


def test_the_bound_computes_every_row_of_every_expert() -> None:
    workload = Workload(Size("tiny", 32, 16, 24), seed=3, batches=2)
    assert [sum(rows) for rows in workload.expert_rows] == [64, 64]
    gemms = Gemms(workload.model, range(8), workload.expert_rows)
    for index in range(3):
        gemms.run(index)
    last = workload.expert_rows[0][7]
    down = workload.model.layers[0].experts[7].down
    np.testing.assert_allclose(gemms.y[:last], gemms.activated[:last] @ down, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("homes", [1, 3, 4])
def test_the_plain_baseline_computes_the_block(homes: int) -> None:
    """Its actors called directly, without Ray."""
    workload = Workload(Size("tiny", 30, 16, 24, modules=4), batches=1)
    modules = [PlainModule(workload.spec, m, 4) for m in range(4)]
    x = workload.inputs[0]
    edges = [len(x) * h // homes for h in range(homes + 1)]
    parts = [modules[h].split(0, x, edges[h], edges[h + 1]) for h in range(homes)]
    replies = [modules[m].compute(*[part[m] for part in parts]) for m in range(4)]
    if homes == 1:
        replies = [(reply,) for reply in replies]
    slices = [modules[h].combine(0, *[reply[h] for reply in replies]) for h in range(homes)]
    assert np.array_equal(np.concatenate(slices), workload.outputs[0])
    assert not any(module.open for module in modules)


def test_differences_are_found() -> None:
    workload = Workload(Size("tiny", 32, 16, 24), batches=2)
    right = workload.outputs[1]
    assert workload.differences([(1, right), (3, right)]) == (True, 0.0)
    exact, largest = workload.differences([(1, right + np.float32(0.5))])
    assert not exact
    assert largest == pytest.approx(0.5, abs=1e-5)
    assert workload.differences([(0, right[:1])]) == (False, float("inf"))


@pytest.mark.parametrize("argv", [["--only", "nonesuch"], ["--rounds", "0"], ["--size", "huge"]])
def test_bad_arguments_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        step.main(argv)
    assert refused.value.code == 2
    assert argv[1] in capsys.readouterr().err


@pytest.mark.slow
def test_a_quick_run_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "step.json"
    argv = ["--quick", "--size", "small", "--transport", "memory", "--out", str(out)]
    assert step.main([*argv, "--only", "gemms,processes,reference,hierarchical,flat"]) == 0
    part = json.loads(out.read_text())["sizes"]["small"]
    assert set(part) == {"size", "contenders", "speed_relative_to", "scaling", "overhead"}
    for name in ("hierarchical", "flat"):
        measured = part["contenders"][name]
        assert measured["exact"] is True
        assert measured["latency"]["count"] >= 2
        assert measured["stream_per_batch"]["best_s"] > 0
        assert part["speed_relative_to"][name]["gemms"]["latency"] > 0
    assert list(part["scaling"]["flat"]) == ["2", "4", "8", "16"]
    assert "plain Ray" not in capsys.readouterr().out
