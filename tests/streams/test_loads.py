"""What the streams do to the load of the first layer's experts, by the model's own router; no cluster."""

from __future__ import annotations

import dataclasses
import math
import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import linprog

from rayemu.model.model import Model
from rayemu.model.reference import prepare, reference_forward, route
from rayemu.model.spec import ModelSpec
from rayemu.placement import Linear, Placement, RoundRobin
from rayemu.placement.problem import problem_of
from rayemu.streams import Adversarial, Bursty, Drift, HotSwitch, Neighbour, Trace, Uniform, Zipf
from rayemu.streams.aim import aim, candidates, first_choices
from rayemu.streams.trace import fit

E, K, D, T = 8, 2, 32, 512
SPEC = ModelSpec("small", d_model=D, d_ff=16, experts=E, top_k=K, seed=5)
MODEL = Model(SPEC)


def choices(x: np.ndarray) -> np.ndarray:
    """The experts of rows x [T, D] in the first layer [T, K]."""
    layer = MODEL.layers[0]
    return route(layer, prepare(layer, x)).experts


def loads(stream: Any, batches: int, seed: int = 3) -> np.ndarray:
    """The share of each batch's rows that each expert gets [B, E]."""
    found = [
        np.bincount(choices(x).ravel(), minlength=E) for x in islice(stream.batches(T, D, seed), batches)
    ]
    return np.array(found) / (T * K)


def apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The share of rows that are elsewhere: total variation of loads [..., E]."""
    return np.abs(one - other).sum(axis=-1) / 2


NOISE = 0.06  # two batches of one distribution are less apart: about sqrt(E / (2 pi T)) = 0.05 at K = 1


def test_a_hot_switch_changes_the_load_at_its_batches_and_at_no_other() -> None:
    load = loads(HotSwitch(every=4, hot=4, share=0.9), 16)
    steps = apart(load[1:], load[:-1])
    switches = np.arange(3, 15, 4)
    assert steps[switches].min() > 0.2 > 2 * NOISE > steps[np.setdiff1d(np.arange(15), switches)].max()
    assert (load.max(axis=1) * E > 1.5).all(), "some experts are hot all the time"


def test_of_a_hot_switch_the_share_comes_from_few_ids_and_others_each_time() -> None:
    batches = list(islice(HotSwitch(every=2, hot=5, share=0.7).tokens(20_000, seed=1), 4))
    hot = [set(np.argsort(np.bincount(tokens))[-5:].tolist()) for tokens in batches]
    assert hot[0] == hot[1] and hot[2] == hot[3] and not hot[0] & hot[2]
    for tokens, ids in zip(batches, hot, strict=True):
        counts = np.bincount(tokens, minlength=32768)[list(ids)]
        assert abs(counts.sum() / 20_000 - 0.7) < 0.02
        assert stats.chisquare(counts).pvalue > 1e-3


def test_drift_goes_over_step_by_step() -> None:
    stream = Drift(every=16, alpha=1.3)
    load = loads(stream, 33)
    first, second = load[0], loads(stream, 17)[16]
    np.testing.assert_array_equal(load[16], second)
    ways = np.arange(17) / 16
    expected = (1 - ways)[:, None] * first + ways[:, None] * second  # [17, E]
    assert apart(first, second) > 3 * NOISE
    assert apart(load[:17], expected).max() < 2 * NOISE
    assert apart(load[1:], load[:-1]).max() < 2 * NOISE, "never suddenly"
    assert apart(load[32], load[16]) > 2 * NOISE, "and on it goes"


def test_drift_begins_as_zipf() -> None:
    zipf, drift = (next(s.tokens(1000, 4)) for s in (Zipf(vocabulary=99, alpha=0.9), Drift(99, 0.9)))
    np.testing.assert_array_equal(zipf, drift)


def test_in_the_middle_of_a_drift_half_the_tokens_follow_each_ranking() -> None:
    batches = list(islice(Drift(vocabulary=50, alpha=1.0, every=2).tokens(100_000, seed=2), 5))
    first, middle, second = (np.bincount(batches[b], minlength=50) / 100_000 for b in (0, 1, 2))
    np.testing.assert_allclose(middle, (first + second) / 2, atol=0.006)
    np.testing.assert_allclose(np.sort(second), np.sort(first), atol=0.006)  # the same law, other ids


def test_bursts_have_their_share_and_length_and_few_ids() -> None:
    stream = Bursty(vocabulary=2**24, alpha=0.0, topic=3, length=100, share=0.3)
    tokens = next(stream.tokens(400_000, seed=7))
    ids, counts = np.unique(tokens, return_counts=True)
    in_burst = np.isin(tokens, ids[counts > 3])  # a quiet id comes 0.02 times on average
    assert abs(in_burst.mean() - 0.3) < 0.04
    borders = np.flatnonzero(np.diff(in_burst.astype(int)) > 0)
    assert in_burst.sum() / len(borders) == pytest.approx(100, rel=0.15)
    for start in borders[:50]:
        length = int(np.argmin(in_burst[start + 1 :]))
        assert len(np.unique(tokens[start + 1 : start + 1 + length])) <= 3


def test_bursty_load_swings_more_than_zipf_of_the_same_skew() -> None:
    swing = {s: loads(s, 20).std(axis=0).mean() for s in (Bursty(length=400), Zipf())}
    assert min(swing.items(), key=lambda item: item[1])[0] == Zipf()
    assert max(swing.values()) > 3 * min(swing.values())


def shared_experts(stream: Any, seed: int) -> float:
    chosen = choices(np.concatenate(list(islice(stream.batches(T, D, seed), 20))))
    return float((chosen[1:, :, None] == chosen[:-1, None, :]).any(axis=(1, 2)).mean())


def test_two_thirds_of_neighbours_share_an_expert() -> None:
    any_two = 1 - math.comb(E - K, K) / math.comb(E, K)  # 46 %
    assert np.mean([shared_experts(Uniform(), s) for s in range(3)]) == pytest.approx(any_two, abs=0.03)
    assert np.mean([shared_experts(Neighbour(), s) for s in range(3)]) == pytest.approx(0.67, abs=0.03)


def test_neighbours_share_as_the_formula_says() -> None:
    never, always = (shared_experts(Neighbour(repeat=r), 1) for r in (0.0, 1.0))
    assert always > 0.9
    for repeat in (0.25, 0.75):
        expected = repeat * always + (1 - repeat) * never
        assert shared_experts(Neighbour(repeat=repeat), 1) == pytest.approx(expected, abs=0.04)


def test_topics_are_kept_over_batch_borders_and_alike_by_likeness() -> None:
    (tokens,) = islice(Neighbour(topics=10, repeat=0.6).tokens(50_000, seed=0), 1)
    kept = np.diff(tokens % 10) == 0
    assert kept.mean() == pytest.approx(0.6 + 0.4 / 10, abs=0.01)
    x = next(Neighbour(vocabulary=2000, topics=2, repeat=1.0, likeness=0.8).batches(2000, 64, seed=1))
    assert x.var() == pytest.approx(1, abs=0.2)
    assert (x[1:] * x[:-1]).mean() == pytest.approx(0.8, abs=0.2)
    assert np.unique(next(Neighbour(vocabulary=60, topics=6).tokens(9000, 0))).tolist() == list(range(60))


def placed(strategy: Any, copies: int = 1, modules: int = 4) -> Placement:
    return strategy.place(problem_of(np.full(E, copies), modules))


@pytest.mark.parametrize("strategy", [Linear(), RoundRobin()])
def test_the_adversary_finds_tokens_that_all_go_to_one_module(strategy: Any) -> None:
    placement = placed(strategy)
    load = loads(aim(Adversarial(), SPEC, placement, 3), 3)
    by_module = np.zeros((3, 4))
    np.add.at(by_module.T, placement.module, load.T[placement.expert])
    assert (by_module.max(axis=1) == 1).all(), "2 experts a module, 2 choices: there are such tokens"
    assert (by_module.argmax(axis=1) == by_module.argmax()).all()
    natural = loads(Adversarial(), 3)
    assert natural.max() < 0.25


@pytest.mark.parametrize("vocabulary", [3, 6, 20, 200])
@pytest.mark.parametrize("copies", [1, 2])
def test_the_adversary_is_the_worst_by_brute_force(copies: int, vocabulary: int) -> None:
    placement = placed(RoundRobin(), copies)
    chosen = first_choices(MODEL, candidates(vocabulary, D, seed=3)).tolist()
    held = [[expert for _, expert in placement.held_by(module)] for module in range(4)]
    work = [[sum(e in on for e in experts) / copies for on in held] for experts in chosen]  # [V, M]
    stream = Adversarial(vocabulary=vocabulary, hot=1)
    (token,) = set(next(aim(stream, SPEC, placement, 3).tokens(50, 3)).tolist())
    assert max(work[token]) == max(map(max, work))


def test_the_share_that_is_not_aimed_is_anything() -> None:
    tokens = next(aim(Adversarial(share=0.6, hot=5), SPEC, placed(Linear()), 3).tokens(20_000, 1))
    counts = np.sort(np.bincount(tokens, minlength=4096))
    assert counts[-5:].sum() / 20_000 == pytest.approx(0.6, abs=0.02)
    assert (counts[:-5] > 0).sum() > 3000


def test_first_choices_are_those_of_the_model_behind_its_dense_layers() -> None:
    spec = ModelSpec("d", D, 16, E, K, layers=3, dense_layers=2, dense_d_ff=24, seed=1)
    model = Model(spec)
    x = candidates(1500, D, seed=9)
    dense = Model(ModelSpec("d", D, 16, E, K, layers=2, dense_layers=2, dense_d_ff=24, seed=1))
    h = reference_forward(dense, x)
    layer = model.layers[2]
    np.testing.assert_array_equal(first_choices(model, x), route(layer, prepare(layer, h)).experts)


def saved(path: Path, loads: Any) -> str:
    np.save(path, np.asarray(loads))
    return str(path)


def test_a_trace_is_followed_window_by_window(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    wanted = rng.permuted(np.tile(np.arange(1, E + 1) ** -0.7, (5, 1)), axis=1)
    wanted /= wanted.sum(axis=1, keepdims=True)  # [W, E]
    windows = np.zeros((5, 3, E))
    windows[:, 1], windows[:, 2] = 1000 * wanted, rng.random((5, E))  # layer 0 is dense
    stream = Trace(saved(tmp_path / "t.npy", windows), every=2)
    load = loads(aim(stream, SPEC, placed(Linear()), 3), 20)
    expected = np.repeat(np.tile(wanted, (2, 1)), 2, axis=0)
    assert apart(load, expected).max() < NOISE
    assert apart(expected[1:], expected[:-1]).max() > 3 * NOISE


def test_a_skewed_trace_of_many_experts_is_followed(tmp_path: Path) -> None:
    """Rare experts hardly ever meet in a random token: of these loads, plain candidates miss 20 %."""
    spec = ModelSpec("many", d_model=128, d_ff=8, experts=128, top_k=8, seed=2)
    wanted = np.random.default_rng(4).permutation(np.arange(2, 130) ** -1.0)
    wanted /= wanted.sum()
    stream = Trace(saved(tmp_path / "t.npy", 1e4 * wanted[None, None]), tolerance=1.0)
    placement = Linear().place(problem_of(np.ones(128), 4))
    model, aimed = Model(spec), aim(stream, spec, placement, 3)
    chosen = first_choices(model, np.concatenate(list(islice(aimed.batches(4096, 128, 3), 4))))
    load = np.bincount(chosen.ravel(), minlength=128) / chosen.size
    noise = np.sqrt(wanted / chosen.size).sum() / 2
    assert apart(load, wanted) < 0.01 + noise
    assert fit(first_choices(model, candidates(4096, 128, 3)), wanted, np.zeros(128))[1] > 0.1


def test_candidates_lean_alike_whatever_the_scale_of_the_gate(tmp_path: Path) -> None:
    """Choices do not depend on it; a sixty-fourth is exact in floating point."""
    stream = Trace(saved(tmp_path / "t.npy", [[range(1, E + 1)]]))
    rows = []
    for scale in (1, 64):
        model = Model(SPEC)
        gate = model.layers[0].gate
        assert gate is not None
        model.layers[0].gate = dataclasses.replace(gate, weight=gate.weight / scale)
        rows.append(stream.aimed(model, placed(Linear()), 3).rows)
    np.testing.assert_array_equal(*rows)
    assert (rows[0] != candidates(stream.vocabulary, D, 3)).any(axis=1).tolist() == [False, True] * 2048


def test_the_fit_reaches_what_linear_programming_says_can_be_reached() -> None:
    chosen = first_choices(MODEL, candidates(300, D, seed=3))
    share = np.array([0.4, 0.2, 0.1, 0.1, 0.08, 0.06, 0.04, 0.02])
    members = np.zeros((E, 300))
    np.add.at(members.T, (np.arange(300)[:, None], chosen), 1 / K)
    rows = np.vstack([np.hstack([members, np.eye(E), -np.eye(E)]), np.r_[np.ones(300), np.zeros(2 * E)]])
    costs = np.r_[np.zeros(300), np.full(2 * E, 0.5)]
    least = linprog(costs, A_eq=rows, b_eq=np.r_[share, 1]).fun
    leaning, wrong = fit(chosen, share, np.zeros(E))
    assert wrong <= least + 2e-3
    mass = np.exp(leaning[chosen].sum(axis=1))
    assert apart(members @ mass / mass.sum(), share) == pytest.approx(wrong, abs=1e-9)


def test_what_the_candidates_cannot_give_is_refused(tmp_path: Path) -> None:
    stream = Trace(saved(tmp_path / "t.npy", [[[1] * E], [[50, 50, 0, 0, 0, 0, 0, 0]]]), vocabulary=10)
    stream.check(SPEC)
    with pytest.raises(ValueError, match=r"window \d.*10 candidates; raise stream.vocabulary"):
        aim(stream, SPEC, placed(Linear()), 3)


BAD = {
    "no such file": (None, "no such file"),
    "an empty window": ([[[1, 1]], [[0, 0]]], "no load in window 1"),
    "nothing at all": ([[[0, 0]]], "no load in any layer"),
    "one dimension": ([1, 2], "expected 2 or 3"),
    "negative": ([[[1, -1]]], "expected a number from 0"),
    "no number": ([[[1, np.nan]]], "expected a number from 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_no_trace_is_refused(case: str, tmp_path: Path) -> None:
    content, says = BAD[case]
    path = str(tmp_path / "t.npy")
    if content is not None:
        saved(tmp_path / "t.npy", content)
    with pytest.raises(ValueError, match=f"^path: .*{re.escape(says)}"):
        Trace(path)


def test_a_trace_must_fit_the_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loads of 3 experts, the model has 8"):
        Trace(saved(tmp_path / "a.npy", [[[1, 2, 3]]])).check(SPEC)
    with pytest.raises(ValueError, match="gives expert 2 93% of the rows of window 1; with 2 choices"):
        Trace(saved(tmp_path / "b.npy", [[[1] * 8], [[1, 1, 93, 1, 1, 1, 1, 1]]])).check(SPEC)
    for stream in (Adversarial(), Trace(saved(tmp_path / "c.npy", [[[1] * 8]]))):
        with pytest.raises(ValueError, match=r"^kind: .*a layer with experts"):
            stream.check(ModelSpec("d", D, 16, E, K, layers=1, dense_layers=1, dense_d_ff=24))
