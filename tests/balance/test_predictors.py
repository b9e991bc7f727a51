"""Predictors on loads whose next window is known, and against other ways to compute the same."""

from __future__ import annotations

import builtins
from collections.abc import Iterator

import numpy as np
import pytest

from rayemu.balance.predictors import (
    PREDICTORS,
    Federated,
    Forecast,
    LastWindow,
    MovingAverage,
    PatternSimilarity,
    Predictor,
    Recurrent,
    TransitionMatrix,
)
from rayemu.balance.predictors.federated import federated_average
from rayemu.balance.predictors.recurrent import Samples, initial, series_of, train
from rayemu.balance.scores import score_predictors
from rayemu.balance.triggers import TRIGGERS

NEEDS_TORCH = ("recurrent", "federated")
SMALL = {"context": 3, "hidden": 4}


def predictor(name: str, **parameters: object) -> Predictor:
    if name in NEEDS_TORCH:
        pytest.importorskip("torch", reason="pip install 'rayemu[predict]'")
        parameters = SMALL | {"steps": 5, **parameters}
    return PREDICTORS[name](**parameters)


def steady(windows: int, layers: int = 2, experts: int = 5) -> np.ndarray:
    loads = np.random.default_rng(1).integers(1, 50, (layers, experts)).astype(float)
    return np.repeat(loads[None], windows, axis=0)


@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize("windows", [1, 2, 12])
def test_what_never_changes_is_forecast_as_it_is(name: str, windows: int) -> None:
    loads = steady(windows)
    assert np.allclose(predictor(name).fit(loads)(loads), loads[0], rtol=1e-4)


@pytest.mark.parametrize("name", PREDICTORS)
def test_forecasts_are_loads_and_fitting_changes_nothing(name: str) -> None:
    rng = np.random.default_rng(2)
    loads = rng.integers(0, 60, (14, 3, 6)).astype(float)
    loads[:, 1] = 0  # a dense layer
    before = loads.copy()
    chosen = predictor(name)
    made = chosen.fit(loads[:10])(loads)
    assert made.shape == (3, 6)
    assert np.isfinite(made).all() and (made >= 0).all()
    assert not made[1].any()
    assert np.array_equal(loads, before)
    assert np.array_equal(chosen.fit(loads[:10])(loads), made), "the same again"


@pytest.mark.parametrize("name", PREDICTORS)
def test_no_windows_and_bad_loads_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="history: 0 windows are not allowed"):
        predictor(name).fit(np.zeros((0, 2, 3)))
    with pytest.raises(ValueError, match="history: 2 dimensions"):
        predictor(name).fit(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="history: negative"):
        predictor(name).fit(np.full((3, 2, 3), -1.0))


def test_last_window_and_moving_average() -> None:
    loads = np.random.default_rng(3).random((6, 2, 3))
    assert np.array_equal(LastWindow().fit(loads[:2])(loads), loads[-1])
    assert np.allclose(MovingAverage(4).fit(loads[:2])(loads), sum(loads[2:]) / 4)


def test_a_repeating_pattern_is_found_per_layer() -> None:
    """Layer 0 repeats every 3 windows and layer 1 every 4; a window alone is ambiguous, two are not."""
    a, b, c = [10.0, 0.0, 0.0], [0.0, 10.0, 0.0], [0.0, 0.0, 10.0]
    first, second = [a, a, b], [c, b, c, a]
    loads = np.array([[first[w % 3], second[w % 4]] for w in range(25)])
    forecast = PatternSimilarity(length=2).fit(loads[:10])
    for now in range(12, 24):
        assert np.allclose(forecast(loads[:now]), loads[now])


def test_pattern_weights_by_hand() -> None:
    """Shares of expert 0: 0.5, 0.9, 0.7, 0.2, 0.6; nearest to 0.6 are 0.5 and 0.7, equally far."""
    share = np.array([0.5, 0.9, 0.7, 0.2, 0.6])
    loads = 10 * np.stack([share, 1 - share], axis=1)[:, None, :]
    made = PatternSimilarity(length=1, neighbours=2).fit(loads)(loads)
    assert made[0, 0] == pytest.approx(10 * (0.9 + 0.2) / 2)
    three = PatternSimilarity(length=1, neighbours=3).fit(loads)(loads)
    weights = np.array([1 / 0.1, 1 / 0.1, 1 / 0.3])
    assert three[0, 0] == pytest.approx(10 * (weights @ [0.9, 0.2, 0.7]) / weights.sum())


def test_the_transition_matrix_is_the_ridge_regression_of_the_primal_form() -> None:
    rng = np.random.default_rng(4)
    loads = 100 * rng.dirichlet(np.ones(4), size=(9, 1))
    share = loads[:, 0] / 100
    before, change, ridge = share[:-1], np.diff(share, axis=0), 0.3
    scale = (before**2).sum() / len(before)
    primal = np.linalg.solve(before.T @ before + ridge * scale * np.eye(4), before.T @ change)  # [E, E]
    expected = np.maximum(share[-1] + share[-1] @ primal, 0)
    made = TransitionMatrix(ridge=ridge).fit(loads)(loads)
    assert np.allclose(made[0], 100 * expected / expected.sum())


def test_the_ridge_is_the_one_with_the_least_error_on_the_last_quarter() -> None:
    """By the primal form, over all candidates, where one in the middle is best."""
    rng = np.random.default_rng(8)
    rows = [rng.dirichlet(np.ones(6))]
    for _ in range(40):
        rows.append(0.6 * np.roll(rows[-1], 1) + 0.4 * rng.dirichlet(np.ones(6)))
    share = np.array(rows)
    before, change = share[:-1], np.diff(share, axis=0)
    seen = 3 * len(before) // 4

    def fit(x: np.ndarray, d: np.ndarray, ridge: float) -> np.ndarray:
        scale = (x**2).sum() / len(x)
        return np.linalg.solve(x.T @ x + ridge * scale * np.eye(6), x.T @ d)

    candidates = [10.0**n for n in range(-4, 3)]
    errors = [
        ((change[seen:] - before[seen:] @ fit(before[:seen], change[:seen], r)) ** 2).sum()
        for r in candidates
    ]
    best = candidates[int(np.argmin(errors))]
    assert best not in (candidates[0], candidates[-1]) and min(errors) < (change[seen:] ** 2).sum()
    expected = np.maximum(share[-1] + share[-1] @ fit(before, change, best), 0)
    loads = 100 * share[:, None, :]
    assert np.allclose(TransitionMatrix().fit(loads)(loads)[0], 100 * expected / expected.sum())


def test_a_markov_chain_is_learned_and_noise_is_left_alone() -> None:
    rng = np.random.default_rng(5)
    rotate = np.roll(np.eye(5), 1, axis=1)
    rows = [rng.dirichlet(np.ones(5))]
    for _ in range(30):
        rows.append(rows[-1] @ rotate)
    loads = 1000 * np.array(rows)[:, None, :]
    made = TransitionMatrix().fit(loads[:25])(loads[:29])
    assert np.allclose(made[0], loads[29, 0], rtol=1e-2)
    walk = np.abs(np.cumsum(rng.normal(0, 1, (40, 1, 8)), axis=0)) + 50
    score = score_predictors(walk, 8, {"transition": TransitionMatrix()})[0]
    assert score.against_naive < 1.2


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    original = builtins.__import__

    def refuse(name: str, *rest: object, **more: object) -> object:
        if name == "torch":
            raise ImportError("no torch here")
        return original(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    yield


@pytest.mark.parametrize("kind", [Recurrent, Federated])
def test_a_missing_torch_names_the_extra(kind: type, no_torch: None) -> None:
    loads = np.random.default_rng(0).random((12, 1, 4))
    with pytest.raises(ImportError, match=r"pip install 'rayemu\[predict\]'"):
        kind().fit(loads)


@pytest.mark.parametrize("predictor", ["recurrent", "federated"])
def test_a_trigger_without_what_its_predictor_needs_is_refused_when_it_is_made(
    predictor: str, no_torch: None
) -> None:
    with pytest.raises(ValueError, match=rf"predictor: '{predictor}' .*pip install 'rayemu\[predict\]'"):
        TRIGGERS["predicted"](predictor=predictor)
    TRIGGERS["predicted"](predictor="transition_matrix")


def test_series_by_hand() -> None:
    loads = np.array([2.0, 4.0, 6.0, 9.0])[:, None, None] * np.array([1.0, 0.0])
    samples = series_of(loads, 2)
    assert np.allclose(samples.series, [[2 / 3 - 1, 4 / 3 - 1], [4 / 5 - 1, 6 / 5 - 1]])
    assert np.allclose(samples.change, [2 / 3, 3 / 5])
    assert np.allclose(samples.weight, [3 / 4, 5 / 4])


def test_the_network_learns_what_the_last_window_cannot_know() -> None:
    """Every expert alternates around a level of its own."""
    pytest.importorskip("torch")
    level = np.random.default_rng(6).integers(50, 100, (1, 1, 12))
    turn = np.where(np.arange(40) % 2, 1.3, 0.7)[:, None, None]
    loads = level * turn
    scores = score_predictors(loads, 10, {"gru": Recurrent(context=4, hidden=8, steps=150, batch=64)})
    assert scores[0].against_naive < 0.1


def test_a_network_begins_as_the_naive_forecast_in_torch_s_shapes() -> None:
    """Those of torch's documentation of GRU (three gates, one input) and Linear (one output)."""
    shapes = {"weight_ih_l0": (15, 1), "weight_hh_l0": (15, 5), "bias_ih_l0": (15,), "bias_hh_l0": (15,)}
    parameters = initial(5, 1)
    assert {k: v.shape for k, v in parameters.items()} == {**shapes, "weight_out": (1, 5), "bias_out": (1,)}
    assert not parameters["weight_out"].any() and not parameters["bias_out"].any()
    assert all(0.3 < np.abs(parameters[name]).max() <= 5**-0.5 for name in shapes)


def test_the_gru_is_torch_s_own_module() -> None:
    torch = pytest.importorskip("torch")
    from rayemu.balance.predictors.recurrent import _network

    parameters = initial(5, 1)
    parameters["weight_out"] = np.random.default_rng(1).random((1, 5), np.float32)
    module = torch.nn.GRU(1, 5, batch_first=True)
    module.load_state_dict({k: torch.from_numpy(v) for k, v in parameters.items() if "out" not in k})
    series = torch.rand(7, 4)
    expected = module(series[:, :, None])[0][:, -1] @ torch.from_numpy(parameters["weight_out"]).T
    made = _network(torch, {k: torch.from_numpy(v) for k, v in parameters.items()}, series)
    assert torch.allclose(made, expected[:, 0], atol=1e-6)


def test_parameters_are_averaged_by_samples() -> None:
    one = {"w": np.array([[1.0, 2.0]], np.float32), "b": np.zeros(2, np.float32)}
    two = {"w": np.array([[5.0, -2.0]], np.float32), "b": np.ones(2, np.float32)}
    mean = federated_average([one, two], [30, 10])
    assert mean["w"].tolist() == [[2.0, 1.0]]
    assert mean["b"].tolist() == [0.25, 0.25]
    assert mean["w"].dtype == np.float32
    assert federated_average([one, two], [0, 0]) is one
    assert federated_average([one, two], [0, 3])["w"].tolist() == two["w"].tolist()


def test_one_round_of_one_step_is_one_step_on_all_samples_together() -> None:
    """FedAvg's closed form (FedSGD): the nodes' gradients average to the gradient of all samples."""
    pytest.importorskip("torch")
    rng = np.random.default_rng(7)

    def draw(count: int) -> Samples:
        series, change, weight = rng.normal(size=(count, 3)), rng.normal(size=count), rng.random(count)
        return Samples(*(a.astype(np.float32) for a in (series, change, weight)))

    nodes = [draw(40), draw(7), draw(0), draw(1)]
    together = Samples(*(np.concatenate(parts) for parts in zip(*nodes, strict=True)))
    start = initial(4, 0)
    start["weight_out"] = rng.normal(size=(1, 4)).astype(np.float32)
    federated = Federated(nodes=4, steps=1, batch=1000, rate=0.5, **SMALL)
    averaged = federated.round(start, nodes, 0, optimiser="SGD")
    central = train(start, together, 1, 1000, 0.5, 0, optimiser="SGD")
    for name, parameter in central.items():
        assert np.allclose(averaged[name], parameter, atol=1e-6), name
        assert not np.allclose(parameter, start[name], atol=1e-4), "the step moves every parameter"


def test_the_first_step_is_the_gradient_of_the_weighted_error() -> None:
    """The network starts by saying 0, so its bias moves by rate * mean(2 weight change)."""
    pytest.importorskip("torch")
    rng = np.random.default_rng(9)
    series, change, weight = rng.normal(size=(20, 3)), rng.normal(size=20), rng.random(20)
    samples = Samples(*(a.astype(np.float32) for a in (series, change, weight)))
    trained = train(initial(4, 0), samples, 1, 100, 0.1, 0, optimiser="SGD")
    assert trained["bias_out"][0] == pytest.approx(0.1 * np.mean(2 * weight * change), rel=1e-4)


def test_nodes_see_their_own_experts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        Federated, "fit_nodes", lambda self, histories: seen.extend(h.shape for h in histories)
    )
    Federated(nodes=3).fit(np.ones((9, 2, 7)))
    assert seen == [(9, 2, 3), (9, 2, 2), (9, 2, 2)]


def test_scores_by_hand() -> None:
    """Held out are 6 and 4 after 2, 2: the last window errs by 4 and 2, the mean of two by 4 and 0."""
    loads = np.array([2.0, 2.0, 6.0, 4.0])[:, None, None] * np.ones((1, 1, 2))
    scores = score_predictors(loads, 2, {"naive": LastWindow(), "mean": MovingAverage(2)})
    assert [s.predictor for s in scores] == ["mean", "naive"]
    mean, naive = scores
    assert (mean.mae, naive.mae) == (2.0, 3.0)
    assert mean.relative == pytest.approx(4 / 10)
    assert mean.against_naive == pytest.approx(2 / 3)
    assert mean.verdict == "33% better than naive"
    assert naive.verdict == "as good as naive"
    assert mean.balance is None


def test_predictors_never_see_what_they_forecast() -> None:
    loads = np.random.default_rng(1).random((10, 1, 3))
    fitted, asked = [], []

    class Spy:
        def fit(self, history: np.ndarray) -> Forecast:
            fitted.append(len(history))

            def forecast(recent: np.ndarray) -> np.ndarray:
                asked.append(len(recent))
                return recent[-1]

            return forecast

    score_predictors(loads, 3, {"spy": Spy()})
    assert fitted == [7]
    assert asked == [7, 8, 9]


def test_what_is_worse_than_naive_is_said_to_be() -> None:
    loads = np.arange(1.0, 11.0)[:, None, None] * np.ones((1, 1, 3))
    score = score_predictors(loads, 3, {"mean": MovingAverage(5)})[0]
    assert score.against_naive == pytest.approx(3.0)
    assert score.verdict == "200% worse than naive"


def test_against_a_naive_forecast_without_error_all_errors_are_infinitely_worse() -> None:
    loads = np.array([[[1.0]]] + [[[4.0]]] * 5)  # the mean of all windows still has the first in it
    scores = score_predictors(loads, 3, {"mean": MovingAverage(9), "last": LastWindow()})
    assert [score.against_naive for score in scores] == [1.0, np.inf]


def test_the_balance_is_that_of_plans_on_the_window_they_had_not_seen() -> None:
    """Expert 0 is hot with 1 and with 2 in turn; the planner parts the two that it takes for hottest."""
    a, b = [6.0, 6.0, 0.0, 0.0], [6.0, 0.0, 6.0, 0.0]

    def planner(loads: np.ndarray) -> np.ndarray:
        order = np.argsort(-loads, axis=1, kind="stable")
        return order[:, [0, 2, 1, 3]]

    loads = np.array([[a if w % 2 else b] for w in range(12)])
    scores = score_predictors(
        loads, 4, {"pattern": PatternSimilarity(length=1), "naive": LastWindow()}, planner, devices=2
    )
    pattern, naive = scores
    assert naive.balance == naive.naive_balance == 2.0
    assert pattern.balance == pattern.hindsight_balance == 1.0


@pytest.mark.parametrize("kind", [Recurrent, Federated])
@pytest.mark.parametrize(("name", "least"), [("context", 1), ("hidden", 1), ("steps", 0), ("batch", 1)])
def test_the_least_that_is_allowed_is_allowed(kind: type, name: str, least: int) -> None:
    assert getattr(kind(**{name: least}), name) == least
    with pytest.raises(ValueError, match=f"^{name}: {least - 1} is not allowed; allowed: {least} and above"):
        kind(**{name: least - 1})


def test_scores_need_windows_to_learn_from_and_devices_for_plans() -> None:
    loads = np.ones((4, 1, 2))
    with pytest.raises(ValueError, match="held_out: 4 is not allowed; allowed: 1 to 3"):
        score_predictors(loads, 4, {})
    with pytest.raises(ValueError, match="devices: None is not allowed with a planner"):
        score_predictors(loads, 2, {}, lambda w: np.array([[0, 1]]))


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("moving_average", {"windows": 0}, "windows: 0"),
        ("pattern_similarity", {"length": 0}, "length: 0"),
        ("pattern_similarity", {"neighbours": 0}, "neighbours: 0"),
        ("transition_matrix", {"ridge": -1.0}, "ridge: -1.0"),
        ("recurrent", {"context": 0}, "context: 0"),
        ("recurrent", {"rate": 0.0}, "rate: 0.0"),
        ("federated", {"nodes": 0}, "nodes: 0"),
        ("federated", {"rate": -1.0}, "rate: -1.0"),
    ],
)
def test_wrong_parameters_are_named(name: str, wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said} is not allowed; allowed: "):
        PREDICTORS[name](**wrong)
