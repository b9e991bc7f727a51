"""The command on the transport that needs no cluster, and what it measures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from rayemu.benchmarks import step
from rayemu.benchmarks.contenders import CONTENDERS, entrants
from rayemu.benchmarks.gemms import Gemms, gemm_processes, shares
from rayemu.benchmarks.overhead import NEVER
from rayemu.benchmarks.plain_ray import PlainModule
from rayemu.benchmarks.torch_block import Block
from rayemu.benchmarks.workload import SIZES, Size, Workload
from rayemu.model import PRESETS

TINY = {
    "large": Size("tiny", 32, 16, 24),
    "fine": Size("tiny", 30, 16, 24, experts=16, top_k=4, family="qwen3-30b-a3b"),
    "deepseek": Size("tiny", 30, 16, 24, experts=32, top_k=8, family="deepseek-v3", shared_d_ff=24),
}


def test_the_sizes_are_the_projects() -> None:
    large, small = SIZES["large"], SIZES["small"]
    assert (large.tokens, large.d_model, large.d_ff) == (4096, 1024, 3584)
    assert (small.tokens, small.d_model, small.d_ff) == (64, 256, 512)
    assert {(size.experts, size.top_k) for size in (large, small)} == {(8, 2)}
    fine, deepseek = SIZES["fine"], SIZES["deepseek"]
    assert (fine.tokens, fine.d_model, fine.d_ff, fine.experts, fine.top_k) == (2048, 1024, 384, 128, 8)
    assert (deepseek.tokens, deepseek.d_model, deepseek.d_ff) == (2048, 1792, 512)
    assert (deepseek.experts, deepseek.top_k, deepseek.shared_d_ff) == (256, 8, 512)
    for size in SIZES.values():
        scenario = size.scenario()
        assert size.modules == 8 and scenario.routing.place == "coordinator"
        assert scenario.spec.shared_d_ff == size.shared_d_ff and scenario.spec.dense_layers == 0
        assert (scenario.spec.experts, scenario.spec.top_k) == (size.experts, size.top_k)
        spec = scenario.spec
        assert (spec.layers, spec.norm, spec.residual, spec.activation) == (1, False, False, "swiglu")
        assert scenario.cluster.modules == 8


def test_sizes_route_as_their_families_do() -> None:
    fine, deepseek = SIZES["fine"].scenario().spec, SIZES["deepseek"].scenario(place="modules").spec
    assert (fine.router, fine.router_params.get("renormalise", True)) == ("softmax_topk", True)
    assert deepseek.router_params == PRESETS["deepseek-v3"].router_params
    assert (deepseek.router, deepseek.selection_bias) == ("sigmoid_group_topk", True)
    assert (deepseek.router_params["groups"], deepseek.router_params["top_groups"]) == (8, 4)


def test_more_modules_than_experts_get_copies() -> None:
    assert SIZES["large"].scenario(modules=32).placement.copies == 4
    assert SIZES["fine"].scenario(modules=32).placement.copies == 1
    scenario = SIZES["fine"].scenario(modules=32, place="modules")
    assert (scenario.cluster.modules, scenario.routing.place) == (32, "modules")


def test_clusters_enter_once_for_every_number_of_modules() -> None:
    entered = entrants(["gemms", "flat", "ray"], Workload(TINY["fine"]), [8, 32])
    assert [c.name for c in entered] == ["gemms", "flat", "flat-32", "ray", "ray-32"]
    assert [(c.kind, c.modules) for c in entered[1:3]] == [("flat", 8), ("flat", 32)]
    (usual,) = entrants(["flat"], Workload(TINY["fine"]), [8])
    assert usual.title == CONTENDERS["flat"].title


def test_a_run_whose_deadlines_never_act_is_a_scenario() -> None:
    cluster = SIZES["small"].scenario(cluster=NEVER).cluster
    assert min(cluster.retry_after, cluster.stall_after, cluster.suspect_after) >= 3600


def test_the_bound_computes_every_row_of_every_expert() -> None:
    workload = Workload(Size("tiny", 32, 16, 24), seed=3, batches=2)
    assert [sum(rows) for rows in workload.ffn_rows] == [64, 64]
    gemms = Gemms(workload.model, workload.ffn_rows)
    for index in range(3):
        gemms.run(index)
    last = workload.expert_rows[0][7]
    down = workload.model.layers[0].experts[7].down
    given = gemms.activated[: last * 24].reshape(last, 24)
    np.testing.assert_allclose(gemms.y[:last], given @ down, rtol=1e-4, atol=1e-4)


def test_the_bound_computes_the_shared_expert_on_every_row() -> None:
    size = Size("tiny", 30, 16, 24, experts=32, top_k=8, family="deepseek-v3", shared_d_ff=40)
    workload = Workload(size, batches=2)
    assert [(len(rows), sum(rows), rows[-1]) for rows in workload.ffn_rows] == [(33, 30 * 9, 30)] * 2
    gemms = Gemms(workload.model, workload.ffn_rows)
    gemms.run(1)
    shared = workload.model.layers[0].shared
    assert shared is not None and shared.down.shape == (40, 16)
    given = gemms.activated[: 30 * 40].reshape(30, 40)
    np.testing.assert_allclose(gemms.y[:30], given @ shared.down, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_processes_share_the_work_evenly(parts: int) -> None:
    rows, widths = [5, 0, 40, 1, 17], [3, 3, 3, 3, 8]
    cut = shares(rows, widths, parts)
    assert len(cut) == parts and np.sum(cut, axis=0).tolist() == rows
    work = [float(np.dot(part, widths)) for part in cut]
    assert max(work) - min(work) <= 2 * max(widths)  # half a row at either border
    assert shares([4, 4], [1, 1], 2) == [[4, 0], [0, 4]]
    assert shares([8], [1], 2) == [[4], [4]]  # more processes than experts


def test_a_process_of_the_bound_computes_its_share() -> None:
    workload = Workload(TINY["deepseek"], batches=2)
    with gemm_processes(workload.spec, workload.ffn_rows, 2) as pool:
        assert pool.run(0) > 0 and pool.run(3) > 0


@pytest.mark.parametrize("name", TINY)
def test_the_transformers_block_computes_the_same(name: str) -> None:
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason="install the parity extra: bash launch/test.sh --parity")
    workload = Workload(TINY[name], batches=1)
    block = Block(workload, 1)
    np.testing.assert_allclose(block.forward(workload.inputs[0]), workload.outputs[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("homes", [1, 3, 4])
@pytest.mark.parametrize("name", TINY)
def test_the_plain_baseline_computes_the_block(name: str, homes: int) -> None:
    """Its actors called directly, without Ray."""
    workload = Workload(TINY[name], batches=1)
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


@pytest.mark.parametrize(
    "argv",
    [
        ["--only", "nonesuch"],
        ["--rounds", "0"],
        ["--size", "huge"],
        ["--size", "fine,huge"],
        ["--modules", "8,7"],
        ["--modules", "8,8"],
        ["--modules", "-8"],
    ],
)
def test_bad_arguments_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        step.main(argv)
    assert refused.value.code == 2
    assert argv[1].split(",")[-1] in capsys.readouterr().err


@pytest.mark.slow
def test_a_quick_run_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "step.json"
    argv = ["--quick", "--size", "small", "--transport", "memory", "--modules", "8,32", "--out", str(out)]
    assert step.main([*argv, "--only", "gemms,processes,reference,hierarchical,flat"]) == 0
    part = json.loads(out.read_text())["sizes"]["small"]
    assert set(part) == {
        "size",
        "routed_at",
        "contenders",
        "speed_relative_to",
        "processor_relative_to_processes",
        "goals",
        "scaling",
        "overhead",
    }
    for name in ("hierarchical", "flat", "hierarchical-32", "flat-32"):
        measured = part["contenders"][name]
        assert measured["exact"] is True
        assert measured["latency"]["count"] >= 2
        assert measured["stream_per_batch"]["best_s"] > 0
        assert part["speed_relative_to"][name]["gemms"]["latency"] > 0
        if sys.platform == "linux":
            assert measured["processor_per_batch"]["stream"]["driver"]["median_s"] > 0
            assert part["processor_relative_to_processes"][name]["stream"] > 0
    assert list(part["scaling"]["flat"]) == ["2", "4", "8", "16"]
    assert "plain Ray" not in capsys.readouterr().out
