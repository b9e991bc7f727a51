"""Replay of a routing trace: rows of the file by batch number, and traces that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayemu import Emulator, Scenario
from rayemu.drivers.decided import load_choices
from rayemu.model.model import Model
from rayemu.routing import Context, Gate, Replay, make_router
from rayemu.running.run import run_scenario
from rayemu.scenario import ScenarioError
from rayemu.traces import Trace, from_choices, write

TOKENS, LAYERS, EXPERTS, TOP_K = 25, 2, 6, 3


def _choices() -> np.ndarray:
    rng = np.random.default_rng(0)
    found = rng.permuted(np.tile(np.arange(EXPERTS), (TOKENS, LAYERS, 1)), axis=2)[:, :, :TOP_K]
    found[4, 1] = -1
    found[7, 0, 0] = -1
    return found


def _write(path: Path, choices: np.ndarray, **known: Any) -> str:
    borders = np.array([0, len(choices)])
    write(path, "rayemu", from_choices(choices, borders, EXPERTS, **known))
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return _write(tmp_path / "trace.npz", _choices(), layers=np.array([1, 3]))


def _gate() -> Gate:
    return Gate(np.random.default_rng(1).standard_normal((4, EXPERTS), dtype=np.float32))


def test_rows_are_the_trace_s_tokens_by_batch_and_begin_again(path: str) -> None:
    router = make_router("replay", EXPERTS, top_k=TOP_K, path=path)
    recorded = _choices()
    for batch in (0, 1, 2, 7):
        for position, layer in enumerate((1, 3)):
            found = router.route(np.ones((10, 4), np.float32), _gate(), Context(layer=layer, batch=batch))
            for row in range(10):
                token = (batch * 10 + row) % TOKENS
                wanted = [e for e in recorded[token, position].tolist() if e >= 0]
                assert found.experts[row].tolist() == wanted + [-1] * (TOP_K - len(wanted))
                shares = [1 / max(len(wanted), 1)] * len(wanted) + [0.0] * (TOP_K - len(wanted))
                np.testing.assert_allclose(found.weights[row], shares)


def test_weights_of_the_gate_are_its_softmax_over_the_choices(path: str) -> None:
    router = Replay(top_k=TOP_K, path=path, weights="gate")
    x = np.random.default_rng(2).standard_normal((10, 4), dtype=np.float32)
    experts, weights = router.route(x, _gate(), Context(layer=3))
    powers = np.exp(x.astype(np.float64) @ _gate().weight.astype(np.float64))
    for row in range(10):
        given = [e for e in experts[row].tolist() if e >= 0]
        total = sum(powers[row, e] for e in given)
        wanted = [powers[row, e] / total for e in given] + [0.0] * (TOP_K - len(given))
        np.testing.assert_allclose(weights[row], wanted, rtol=1e-5)
    assert weights[4].tolist() == [0, 0, 0], "a token without a choice"


def test_a_file_that_changed_is_read_again(path: str) -> None:
    router = Replay(top_k=TOP_K, path=path)
    before = router.route(np.ones((1, 4), np.float32), _gate(), Context(layer=1)).experts[0].tolist()
    _write(Path(path), np.roll(_choices(), 1, axis=0)[:24], layers=np.array([1, 3]))
    after = router.route(np.ones((2, 4), np.float32), _gate(), Context(layer=1)).experts
    assert after[1].tolist() == before


def test_no_rows(path: str) -> None:
    empty = Replay(top_k=TOP_K, path=path).route(np.zeros((0, 4), np.float32), _gate(), Context(layer=1))
    assert empty.experts.shape == empty.weights.shape == (0, TOP_K)


def test_a_trace_that_does_not_fit_is_refused(path: str, tmp_path: Path) -> None:
    def refused(message: str, experts: int = EXPERTS, **params: Any) -> None:
        with pytest.raises(ValueError, match=message):
            make_router("replay", experts, **{"top_k": TOP_K, "path": path, **params})

    refused("has choices among 6 experts, the model has 8; set model.experts", experts=8)
    refused("has 3 choices per token, the model 2; set model.top_k", top_k=2)
    refused("weights: 'none' is not allowed; allowed: recorded, uniform, gate", weights="none")
    refused("weights: 'recorded' is not allowed with a trace", weights="recorded")
    refused("path: '' is not allowed; give a .npz that `rayemu trace import` has written", path="")
    refused("nowhere.npz' cannot be read: No such file", path=str(tmp_path / "nowhere.npz"))
    refused("cannot be read: Is a directory", path=str(tmp_path))
    write(tmp_path / "loads.npz", "rayemu", Trace(np.ones((1, 2, EXPERTS))))
    refused("has loads only; a replay needs a trace with the choices", path=str(tmp_path / "loads.npz"))
    for name, content in (("a.txt", b"words"), ("b.npz", b"PK"), ("c.npy", b"")):
        (tmp_path / name).write_bytes(content)
        refused("is no trace of rayemu's; make one with `rayemu trace import`", path=str(tmp_path / name))
    np.savez(tmp_path / "other.npz", loads=np.ones(3))
    refused("is no trace of rayemu's", path=str(tmp_path / "other.npz"))
    twice = _choices()
    twice[9, 1] = [2, 5, 2]
    refused("gives token 9 expert 2 of layer 1 twice", path=_write(tmp_path / "twice.npz", twice))
    with pytest.raises(ValueError, match="has no choices of layer 0; it has layers 1, 3"):
        Replay(top_k=TOP_K, path=path).route(np.ones((2, 4), np.float32), _gate(), Context(layer=0))
    with pytest.raises(ValueError, match=r"has 25 tokens, the run takes 26; set routing\.cyclic"):
        Replay(top_k=TOP_K, path=path, cyclic=False).check_run((1, 3), 2, 13)
    Replay(top_k=TOP_K, path=path, cyclic=False).check_run((1, 3), 1, 25)


def test_an_expert_that_there_is_not(tmp_path: Path) -> None:
    choices, loads = _choices(), np.ones((1, LAYERS, EXPERTS))
    choices[0, 0, 0] = 6
    np.savez(tmp_path / "x.npz", rayemu_trace=1, loads=loads, layers=np.arange(2), choices=choices)
    with pytest.raises(ValueError, match="names expert 6; allowed: 0 to 5, or -1 for none"):
        Replay(top_k=TOP_K, path=str(tmp_path / "x.npz")).check(EXPERTS)


def test_a_scenario_names_the_path_before_the_run(path: str, tmp_path: Path) -> None:
    model = {"d_model": 16, "d_ff": 16, "experts": EXPERTS, "top_k": TOP_K, "layers": 2}
    short = _write(tmp_path / "short.npz", _choices()[:10])
    run = {"batches": 2, "batch_tokens": 10}
    data = {"model": model, "routing": {"kind": "replay", "path": short, "cyclic": False}, "run": run}
    with pytest.raises(ScenarioError, match=r"routing\.path: .*has 10 tokens, the run takes 20"):
        Scenario.from_dict(data)
    data["routing"]["path"] = path
    with pytest.raises(
        ScenarioError, match=r"routing\.path: .*has no choices of layer 0; it has layers 1, 3"
    ):
        Scenario.from_dict(data)
    data["routing"] = {"kind": "replay", "path": short}
    assert Scenario.from_dict(data).spec.router == "replay"


def test_only_the_layers_that_it_serves_are_asked_of_a_trace(path: str) -> None:
    model = {"d_model": 16, "d_ff": 16, "experts": EXPERTS, "top_k": TOP_K, "layers": 4}
    replayed = {"kind": "replay", "path": path}
    Scenario.from_dict({"model": model, "routing": {"layers": {1: replayed, 3: replayed}}})
    plain = {"kind": "softmax_topk"}
    Scenario.from_dict({"model": model, "routing": {**replayed, "layers": {0: plain, 2: plain}}})
    with pytest.raises(ScenarioError, match=r"routing\.layers\.1-2\.path: .*has no choices of layer 2"):
        Scenario.from_dict({"model": model, "routing": {"layers": {"1-2": replayed}}})


RUN: dict[str, Any] = {
    "model": {"d_model": 16, "d_ff": 16, "experts": EXPERTS, "top_k": 2, "layers": 3, "residual": True},
    "cluster": {"nodes": 2, "modules_per_node": 2, "transport": "memory"},
    "placement": {"copies": 2},
    "exchange": {"min_slice_rows": 8, "micro_batches": 2},
    "stream": {"kind": "zipf", "vocabulary": 30},
    "routing": {
        "kind": "capacity_topk",
        "capacity_factor": 0.8,
        "layers": {1: {"kind": "hash"}, 2: {"kind": "expert_choice"}},
    },
    "run": {"batches": 4, "batch_tokens": 40, "seed": 5, "check": "exact"},
}


def _replayed(path: str, **more: Any) -> dict[str, Any]:
    return {**RUN, "routing": {"kind": "replay", "path": path, "layers": {1: {"kind": "hash"}}, **more}}


def _outputs(data: dict[str, Any]) -> list[np.ndarray]:
    scenario = Scenario.from_dict(data)
    run = scenario.run
    stream = scenario.stream.build().batches(run.batch_tokens, scenario.spec.d_model, run.seed)
    with Emulator(scenario) as emulator:
        return [one.y for one in emulator.stream(next(stream) for _ in range(run.batches))]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "x"
    assert run_scenario(Scenario.from_dict(RUN), folder)["exact"]
    return folder


def test_a_run_s_choices_give_its_outputs_to_the_bit(run_folder: Path, tmp_path: Path) -> None:
    """Of routers that drop choices, and that give a token any number: from the same file, layer by layer."""
    file = run_folder / "choices.npz"
    wanted, found = _outputs(RUN), _outputs(_replayed(str(file)))
    assert len(wanted) == RUN["run"]["batches"]
    for one, other in zip(wanted, found, strict=True):
        assert one.tobytes() == other.tobytes()
    uniform = _outputs(_replayed(str(file), weights="uniform"))
    assert not np.array_equal(wanted[0], uniform[0])
    summary = run_scenario(Scenario.from_dict(_replayed(str(file))), tmp_path / "again")
    assert summary["exact"] and summary["passed"]
    before, after = load_choices(file), load_choices(tmp_path / "again" / "choices.npz")
    assert sorted(after) == [0, 1, 2, 3]
    for batch, decisions in after.items():
        for layer in (0, 2):
            one, other = (d.routing(layer, 40) for d in (before[batch], decisions))
            assert one is not None and other is not None
            assert np.array_equal(one.experts, other.experts) and np.array_equal(one.weights, other.weights)
        assert decisions.routing(1, 40) is None


def test_a_run_s_choices_begin_again_or_are_refused(run_folder: Path) -> None:
    file = str(run_folder / "choices.npz")
    router = Replay(top_k=2, path=file)
    x = np.ones((40, 4), np.float32)
    one, five = (router.route(x, _gate(), Context(layer=2, batch=batch)) for batch in (1, 5))
    assert np.array_equal(one.experts, five.experts) and np.array_equal(one.weights, five.weights)
    assert router.most(EXPERTS) >= one.experts.shape[1] > 2, "as many as expert_choice gave"

    def refused(message: str, change: dict[str, Any], **more: Any) -> None:
        data = _replayed(file, **more)
        with pytest.raises(ScenarioError, match=message):
            Scenario.from_dict({**data, **{key: {**RUN[key], **change[key]} for key in change}})

    refused(
        r"routing\.path: .*has batches of 40 tokens, the run's have 41; set run\.batch_tokens",
        {"run": {"batch_tokens": 41}},
    )
    refused(
        r"routing\.path: .*has 4 batches, the run takes 5; set routing\.cyclic",
        {"run": {"batches": 5}},
        cyclic=False,
    )
    refused("has no choices of layer 1; it has layers 0, 2; give others a router of their own", {}, layers={})
    refused("names expert 5, the model has 4; set model.experts", {"model": {"experts": 4}})


def test_damaged_choices_of_a_run_are_refused(run_folder: Path, tmp_path: Path) -> None:
    with np.load(run_folder / "choices.npz") as arrays:
        whole = dict(arrays)

    def refused(message: str, **changed: np.ndarray) -> None:
        np.savez(tmp_path / "x.npz", **{**whole, **changed})
        with pytest.raises(ValueError, match=message):
            Replay(top_k=2, path=str(tmp_path / "x.npz")).check(EXPERTS)

    batch, parts, experts, weights = (whole[name] for name in ("batch", "parts", "experts", "weights"))
    refused("do not fit together", experts=experts[:-1])
    refused("do not fit together", parts=parts[:, :3])
    refused("do not fit together", batch=batch[:0], parts=parts[:0], experts=experts[:0], weights=weights[:0])
    refused("weights below 0", weights=np.where(np.arange(len(weights)) == 3, np.nan, weights))
    refused("weights below 0, not finite, or of no expert", weights=np.ones_like(weights))
    refused("gives a token an expert twice", experts=np.zeros_like(experts))
    refused("has no batch 1, which failed in that run", batch=np.where(batch == 1, 9, batch))
    moved = parts.copy()
    moved[0, 1] += 1
    refused("lacks the choices of some rows", parts=moved)


def test_a_relative_path_is_the_same_file_for_every_process(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a checkpoint's: from where the scenario is loaded, not from where a module is started."""
    monkeypatch.chdir(run_folder)
    everywhere = Scenario.from_dict(_replayed("choices.npz"))
    one_layer = Scenario.from_dict(
        {**RUN, "routing": {"layers": {0: {"kind": "replay", "path": "choices.npz"}}}}
    )
    monkeypatch.chdir(tmp_path)
    for scenario in (everywhere, one_layer):
        router = Model(scenario.spec).layers[0].router
        found = router.route(np.ones((40, 4), np.float32), _gate(), Context())
        assert found.experts.shape == (40, 2)
    assert everywhere.routing.params["path"] == "choices.npz", "as it was given"
    with pytest.raises(ScenarioError, match=r"routing\.path: 5 is not allowed; it should be a valid string"):
        Scenario.from_dict(_replayed(5))  # type: ignore[arg-type]
