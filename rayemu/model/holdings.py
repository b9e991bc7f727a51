"""The routed experts that a module has in memory, and their weights as bytes, to be handed on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import xxhash

from rayemu.model.expert import Expert
from rayemu.model.spec import ModelSpec

Key = tuple[int, int]  # (layer, expert)


class Holdings:
    """What a module has loaded: it computes with these experts and no others.

    `make` builds an expert from (layer, expert), out of the seed or a checkpoint.
    """

    def __init__(self, make: Callable[[int, int], Expert]) -> None:
        self.make = make
        self._held: dict[Key, Expert] = {}

    def load(self, layer: int, expert: int) -> None:
        """Make an expert and hold it."""
        self.put((layer, expert), self.make(layer, expert))

    def put(self, key: Key, expert: Expert) -> None:
        """Hold an expert."""
        self._held[key] = expert

    def drop(self, key: Key) -> None:
        """Forget an expert; its memory is free as soon as nothing computes with it."""
        del self._held[key]

    def __contains__(self, key: Key) -> bool:
        return key in self._held

    def __getitem__(self, key: Key) -> Expert:
        return self._held[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(sorted(self._held))

    def __len__(self) -> int:
        return len(self._held)

    def table(self) -> np.ndarray:
        """Return what is held [2, n] uint16: layers and experts, sorted."""
        return np.array(sorted(self._held), np.uint16).reshape(-1, 2).T


def read_weights(expert: Expert, start: int, size: int) -> np.ndarray:
    """Copy the bytes [start, start + size) of an expert's arrays, one behind the other, as uint8."""
    taken, passed = [], 0
    for array in _arrays(expert):
        low, high = max(0, start - passed), min(array.nbytes, start + size - passed)
        if low < high:
            taken.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8)[low:high])
        passed += array.nbytes
    return np.concatenate([np.zeros(0, np.uint8), *taken])


def digest_of(expert: Expert) -> str:
    """Return xxh3 of the bytes that `read_weights` gives, hexadecimal."""
    digest = xxhash.xxh3_64()
    for array in _arrays(expert):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def expert_of(weights: np.ndarray, spec: ModelSpec) -> Expert:
    """Build the expert whose bytes [spec.expert_bytes()] uint8 `read_weights` gave; its arrays are views."""
    columns = spec.d_ff * (spec.matrices - 1)
    shapes: list[tuple[int, ...]] = [(spec.d_model, columns), (spec.d_ff, spec.d_model)]
    if spec.biases:
        shapes += [(columns,), (spec.d_model,)]
    values, arrays, low = weights.view(np.float32), [], 0
    for shape in shapes:
        high = low + int(np.prod(shape))
        arrays.append(values[low:high].reshape(shape))
        low = high
    up, down, *biases = arrays
    return Expert(up, down, spec.activation, *biases)


def _arrays(expert: Expert) -> list[np.ndarray]:
    arrays = [expert.up, expert.down, expert.up_bias, expert.down_bias]
    return [array for array in arrays if array is not None]
