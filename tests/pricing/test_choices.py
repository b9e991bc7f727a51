"""Choices of a plan: the model's own as a run counts them, drawn ones against the law they are drawn by."""

from __future__ import annotations

from itertools import islice, permutations

import numpy as np
import pytest

from rayemu import Emulator, Scenario
from rayemu.model.spec import ModelSpec
from rayemu.pricing.choices import Drawn, chosen_by_model, different, table_of


def test_the_models_own_are_those_of_a_run() -> None:
    scenario = Scenario.load("smoke").with_overrides(["cluster.transport=memory", "model.layers=3"])
    run, spec = scenario.run, scenario.spec
    batches = list(islice(scenario.stream.build().batches(run.batch_tokens, spec.d_model, run.seed), 2))
    with Emulator(scenario) as emulator:
        results = list(emulator.stream(batches))
        found = chosen_by_model(emulator.model, batches)
    for result, layers in zip(results, found, strict=True):
        counts = [np.bincount(chosen.ravel(), minlength=spec.experts) for chosen in layers]
        assert (np.stack(counts) == result.expert_tokens).all()


@pytest.fixture(params=[0, 8], ids=["among what is left", "again and again"])
def again(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to draw those that are left."""
    monkeypatch.setattr("rayemu.pricing.choices._AGAIN", request.param)


@pytest.mark.usefixtures("again")
def test_numbers_are_drawn_one_after_the_other_among_those_that_are_left() -> None:
    """How often each ordered pair comes, against p(a) p(b) / (1 - p(a))."""
    share = np.array([0.5, 0.3, 0.15, 0.05])
    rows = 200_000
    found = different(np.random.default_rng(1), table_of(share), rows, 2)
    for a, b in permutations(range(4), 2):
        expected = share[a] * share[b] / (1 - share[a])
        seen = np.count_nonzero((found == [a, b]).all(axis=1)) / rows
        assert seen == pytest.approx(expected, abs=4.5 * (expected / rows) ** 0.5)


def test_rows_that_draw_the_same_again_and_again_are_soon_done() -> None:
    """Of a million numbers 255 are another one: to draw until it comes would take 4,000 times as many."""
    rng = _Counting()
    found = different(rng, table_of(np.arange(1.0, 257) ** -20), 512, 4)  # type: ignore[arg-type]
    assert (found[:, 0] == 0).sum() > 500 and all(len(set(row)) == 4 for row in found.tolist())
    assert rng.drawn < 512 * 4 * 10


class _Counting:
    """A generator that counts what is drawn."""

    def __init__(self) -> None:
        self.rng, self.drawn = np.random.default_rng(1), 0

    def integers(self, low: int, *args: object) -> np.ndarray:
        found = self.rng.integers(low, *args)  # type: ignore[call-overload]
        self.drawn += found.size
        return found


@pytest.mark.usefixtures("again")
def test_an_expert_that_is_hardly_ever_wanted_is_still_there_for_the_last_choice() -> None:
    found = different(np.random.default_rng(1), table_of(np.array([1.0, 0.0, 0.0])), 50, 3)
    assert (np.sort(found, axis=1) == np.arange(3)).all()


@pytest.mark.usefixtures("again")
def test_a_token_stays_within_as_many_groups_as_its_router_opens() -> None:
    spec = ModelSpec(
        "m", 8, 8, experts=32, top_k=6, layers=2, router="sigmoid_group_topk",
        router_params={"groups": 8, "top_groups": 3},
    )  # fmt: skip
    share = np.arange(1, 33) ** -0.8
    drawn = Drawn(spec, 400, lambda _: share, seed=1, shuffled=True)
    found = drawn(range(2), 1)
    assert found.shape == (800, 6)
    assert all(len(set(row)) == 6 for row in found.tolist())
    groups = [len(set(row)) for row in (found // 4).tolist()]
    assert max(groups) == 3 and min(groups) >= 2  # six experts are in two groups of four at least
    assert (drawn(range(2), 1) == found).all() and (drawn(range(1, 2), 1) == found[400:]).all()
    assert (np.bincount(found.ravel(), minlength=32).argsort()[-3:] != [2, 1, 0]).any()  # shuffled
