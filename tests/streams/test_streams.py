"""What every stream promises, whichever it is."""

from __future__ import annotations

import dataclasses
from itertools import islice

import numpy as np
import pytest

from rayemu.streams import STREAMS


@pytest.fixture(params=sorted(STREAMS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("context", [0.0, 0.5])
def test_batches_are_float32_activations_and_repeat(kind: str, context: float) -> None:
    stream = STREAMS[kind](vocabulary=500, context=context)
    first, again = (list(islice(stream.batches(40, 16, seed=3), 4)) for _ in range(2))
    for x, same in zip(first, again, strict=True):
        assert x.shape == (40, 16)
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        assert x.flags.writeable
        assert np.isfinite(x).all()
        np.testing.assert_array_equal(x, same)
    assert not np.array_equal(first[0], first[1])


def test_another_seed_gives_other_activations(kind: str) -> None:
    stream = STREAMS[kind](vocabulary=500)
    one, other = (next(stream.batches(40, 16, seed)) for seed in (1, 2))
    assert np.abs(one - other).max() > 0.5


@pytest.mark.parametrize("context", [0.0, 0.7])
def test_rows_do_not_depend_on_the_batch_size(kind: str, context: float) -> None:
    stream = STREAMS[kind](vocabulary=500, context=context)
    small = np.concatenate(list(islice(stream.batches(8, 16, seed=3), 9)))
    large = np.concatenate(list(islice(stream.batches(24, 16, seed=3), 3)))
    np.testing.assert_array_equal(small, large)


def test_ids_stay_in_the_vocabulary(kind: str) -> None:
    for vocabulary in (1, 7):
        tokens = next(STREAMS[kind](vocabulary=vocabulary).tokens(1000, seed=0))
        assert tokens.shape == (1000,)
        assert tokens.dtype == np.int64
        assert tokens.min() >= 0
        assert tokens.max() < vocabulary


def test_writing_into_a_batch_does_not_reach_later_ones(kind: str) -> None:
    stream = STREAMS[kind](vocabulary=50, context=0.5)
    clean = list(islice(stream.batches(10, 8, seed=1), 3))
    dirty = []
    for x in islice(stream.batches(10, 8, seed=1), 3):
        dirty.append(x.copy())
        x[:] = np.nan
    np.testing.assert_array_equal(np.stack(clean), np.stack(dirty))


def test_parameters_are_frozen_and_checked(kind: str) -> None:
    stream = STREAMS[kind]()
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


def test_docstrings_say_what_a_stream_is_for(kind: str) -> None:
    assert (STREAMS[kind].__doc__ or "").splitlines()[0].endswith((".", ";"))
