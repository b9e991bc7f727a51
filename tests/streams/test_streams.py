"""What every stream promises, whichever it is; of one that aims, also when it is aimed."""

from __future__ import annotations

import dataclasses
import itertools
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayemu.model.spec import ModelSpec
from rayemu.placement import Linear
from rayemu.placement.problem import problem_of
from rayemu.streams import STREAMS
from rayemu.streams.aim import aim

SPEC = ModelSpec("small", d_model=16, d_ff=8, experts=4, top_k=2)


@pytest.fixture(params=sorted(STREAMS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["as it is", "aimed"])
def made(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Any:
    """Makes the stream from its parameters; those without a default are given."""
    needed: dict[str, Any] = {}
    if kind == "trace":
        needed |= {"path": str(tmp_path / "trace.npy"), "tolerance": 1.0}  # one id cannot follow any trace
        np.save(needed["path"], [[[3, 3, 2, 2]], [[1, 2, 3, 4]]])

    def make(**params: Any) -> Any:
        stream = STREAMS[kind](**{**needed, **params})
        if request.param == "as it is":
            return stream
        placement = Linear().place(problem_of(np.ones(4), modules=2))
        return aim(stream, SPEC, placement, 3)

    return make


def steady(kind: str) -> dict[str, int]:
    """Parameters with which it does not change from batch to batch."""
    counts_batches = "every" in {field.name for field in dataclasses.fields(STREAMS[kind])}
    return {"every": 2**24} if counts_batches else {}


@pytest.mark.parametrize("context", [0.0, 0.5])
def test_batches_are_float32_activations_and_repeat(made: Any, context: float) -> None:
    stream = made(vocabulary=500, context=context)
    first, again = (list(islice(stream.batches(40, 16, seed=3), 4)) for _ in range(2))
    for x, same in zip(first, again, strict=True):
        assert x.shape == (40, 16)
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        assert x.flags.writeable
        assert np.isfinite(x).all()
        np.testing.assert_array_equal(x, same)
    assert not np.array_equal(first[0], first[1])


def test_another_seed_gives_other_activations(made: Any) -> None:
    stream = made(vocabulary=500)
    one, other = (next(stream.batches(40, 16, seed)) for seed in (1, 2))
    assert np.abs(one - other).max() > 0.5


@pytest.mark.parametrize("context", [0.0, 0.7])
def test_rows_do_not_depend_on_the_batch_size(made: Any, kind: str, context: float) -> None:
    stream = made(vocabulary=500, context=context, **steady(kind))
    small = np.concatenate(list(islice(stream.batches(8, 16, seed=3), 9)))
    large = np.concatenate(list(islice(stream.batches(24, 16, seed=3), 3)))
    np.testing.assert_array_equal(small, large)


def test_ids_stay_in_the_vocabulary(made: Any) -> None:
    for vocabulary in (1, 7):
        tokens = next(made(vocabulary=vocabulary).tokens(1000, seed=0))
        assert tokens.shape == (1000,)
        assert tokens.dtype == np.int64
        assert tokens.min() >= 0
        assert tokens.max() < vocabulary


def test_writing_into_a_batch_does_not_reach_later_ones(made: Any) -> None:
    stream = made(vocabulary=50, context=0.5)
    clean = list(islice(stream.batches(10, 8, seed=1), 3))
    dirty = []
    for x in islice(stream.batches(10, 8, seed=1), 3):
        dirty.append(x.copy())
        x[:] = np.nan
    np.testing.assert_array_equal(np.stack(clean), np.stack(dirty))


def test_parameters_are_frozen_and_checked(made: Any, kind: str) -> None:
    stream = made()
    with pytest.raises(dataclasses.FrozenInstanceError):
        stream.vocabulary = 3
    for wrong in (
        {"vocabulary": 0},
        {"vocabulary": 2**40},
        {"context": 1.0},
        {"context": -0.1},
        {"context": np.nan},
    ):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"^{name}: "):
            STREAMS[kind](**wrong)


@pytest.mark.parametrize(
    ("kinds", "name", "wrong", "allowed"),
    [
        ("adversarial hot_switch", "hot", (0, -1), "1 to .* ids"),
        ("adversarial bursty hot_switch", "share", (0.0, 1.5, np.nan), "more than 0, up to 1"),
        ("bursty drift zipf", "alpha", (-0.1, 21.0, np.nan), "0 to 20"),
        ("bursty", "topic", (0,), "1 to .* ids"),
        ("bursty", "length", (0,), "1 to .* tokens"),
        ("drift hot_switch trace", "every", (0,), "1 to .* batches"),
        ("neighbour", "topics", (0,), "1 to .* topics"),
        ("neighbour", "repeat", (-0.1, 1.1, np.nan), "0 to 1"),
        ("neighbour", "likeness", (-0.1, 1.1, np.nan), "0 to 1"),
        ("trace", "tolerance", (-0.1, 1.1, np.nan), "0 to 1"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name_and_value(
    kinds: str, name: str, wrong: tuple[float, ...], allowed: str
) -> None:
    for kind, value in itertools.product(kinds.split(), wrong):
        with pytest.raises(ValueError, match=f"^{name}: {value!r} is not allowed; allowed: {allowed}$"):
            STREAMS[kind](**{name: value})


def test_docstrings_say_what_a_stream_is_for(kind: str) -> None:
    assert (STREAMS[kind].__doc__ or "").splitlines()[0].endswith((".", ";"))
