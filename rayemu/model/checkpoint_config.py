"""config.json of a Hugging Face checkpoint, read field by field, and refused by field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from rayemu.model.tensor_files import CheckpointError

_MOST = 1 << 20  # of any count or width: a larger one is an error in the file
_SHOWN = 200  # characters of a wrong value
QUANTISATIONS = "fp8 (e4m3) with a weight_block_size [rows, columns], mxfp4 for gpt_oss"


class Quantisation(NamedTuple):
    """How a checkpoint's weights are packed: FP8 with scales of this block, or MXFP4, or neither."""

    fp8_block: tuple[int, int] | None = None
    mxfp4: bool = False


class Config:
    """The fields of `values`, which stand in `file`, inside of `within`.

    A key that is absent gets the default that is given; without one it is refused, as are null and whatever
    has another type or value than asked for: with a CheckpointError that names it.
    """

    def __init__(self, values: Mapping[str, Any], file: Path, within: str = "") -> None:
        self.values, self.file, self.within = values, file, within

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def given(self, key: str) -> bool:
        """Whether `key` says something: it is there and not null."""
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """An integer from `least` up."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST:
            self.refuse(key, f"an integer from {least} to {_MOST}")
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
            self.refuse(key, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def choice(self, key: str, default: str | float, *allowed: str | float) -> Any:
        """One of `allowed`, to which the default belongs."""
        value = self.values.get(key, default)
        known = (default, *allowed)
        if isinstance(value, bool) or not isinstance(value, str | int | float) or value not in known:
            self.refuse(key, " or ".join(str(name) for name in known))
        return value

    def integers(self, key: str, most: int) -> list[int]:
        """A list of integers from 0 to below `most`; empty where the key is absent or null."""
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or any(type(n) is not int or not 0 <= n < most for n in value):
            self.refuse(key, f"a list of integers from 0 to {most - 1}")
        return value

    def section(self, key: str) -> Config:
        """The object under `key`."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            self.refuse(key, "an object")
        return Config(value, self.file, f"{self.within}{key}.")

    def refuse(self, key: str, allowed: str) -> NoReturn:
        """Raise CheckpointError: the value of `key` is not one of `allowed`."""
        found = f"is {self.values[key]!r}"[:_SHOWN] if key in self.values else "is missing"
        raise CheckpointError(f"{self.file}: {self.within}{key} {found}; allowed: {allowed}")

    def quantisation(self) -> Quantisation:
        """What quantization_config says. Raises CheckpointError for what cannot be read."""
        key = "quantization_config"
        if not self.values.get(key):
            return Quantisation()
        remedy = (
            f"{QUANTISATIONS}, or none: save the model in bf16, fp16 or fp32; "
            f"if its tensors are so already, delete the key {key}"
        )
        if not isinstance(self.values[key], dict):
            self.refuse(key, remedy)
        given = self.section(key)
        method, block = given.values.get("quant_method"), given.values.get("weight_block_size")
        if method == "mxfp4" and self.values.get("model_type") == "gpt_oss":
            return Quantisation(mxfp4=True)
        sizes = (
            isinstance(block, list)
            and len(block) == 2
            and all(type(n) is int and 0 < n <= _MOST for n in block)
        )
        if method != "fp8" or given.values.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn") or not sizes:
            self.refuse(key, remedy)
        return Quantisation(fp8_block=(block[0], block[1]))  # type: ignore[index]


def read_config(directory: Path) -> Config:
    """config.json of `directory`. Raises CheckpointError."""
    path = directory / "config.json"
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror}; expected a model directory"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds no JSON object")
    return Config(values, path)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False
