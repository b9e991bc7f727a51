"""Replay of a routing trace: rows of the file by batch number, and traces that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayemu import Scenario
from rayemu.routing import Context, Gate, Replay, make_router
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
    refused("weights: 'none' is not allowed; allowed: uniform, gate", weights="none")
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
        Replay(top_k=TOP_K, path=path, cyclic=False).check_run((1, 3), 26)
    Replay(top_k=TOP_K, path=path, cyclic=False).check_run((1, 3), 25)


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
