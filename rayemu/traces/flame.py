"""FLAME-MoE's routing traces: which experts each token chose, one parquet file per layer.

Followed: the data set card of CMU-FLAME/FLAME-MoE-Traces (folders actives/iter_NNNN/ of layer_NN.parquet,
one row per token, in the same order in every layer; columns `indices`, list<int16> of routed experts, and
`scores`). The shared experts, always active, are not in the traces, and neither are borders of batches:
windows are as many tokens as the reader is told.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from rayemu import machine
from rayemu.traces.errors import TraceError
from rayemu.traces.source import Format, Source
from rayemu.traces.trace import NO_EXPERT, Trace, check_choices, from_choices
from rayemu.units import format_bytes

_LAYER = re.compile(r"layer_(\d{1,9})\.parquet")
_MAGIC = b"PAR1"


class Flame(Format):
    """FLAME-MoE: parquet with the choices of tokens, a file per layer or a folder of all (pyarrow)."""

    name, suffix = "flame", ""

    def recognises(self, source: Source) -> bool:
        if source.path.is_dir():
            return any(_LAYER.fullmatch(path.name) for path in source.path.iterdir())
        return source.head.startswith(_MAGIC)

    def read(self, source: Source) -> Trace:
        if source.path.is_dir():
            found = {int(m[1]): path for path in source.path.iterdir() if (m := _LAYER.fullmatch(path.name))}
            if not found:
                raise TraceError("no layer_NN.parquet in the folder")
        else:
            match = _LAYER.fullmatch(source.path.name)
            found = {int(match[1]) if match else 0: source.path}
        layers = sorted(found)
        parts = [_indices(found[layer], source.tokens, len(layers)) for layer in layers]
        shapes = {part.shape for part in parts}
        if len(shapes) > 1:
            raise TraceError(f"layers of different shapes [tokens, choices]: {sorted(map(list, shapes))}")
        if not parts[0].size:
            raise TraceError("no tokens in it")
        ids, experts = check_choices(np.stack(parts, axis=1), source.experts, "indices")
        borders = np.append(np.arange(0, len(ids), max(1, source.window)), len(ids))
        notes = [f"windows of {source.window} tokens, since the source has no borders of batches"]
        if source.experts is None:
            notes.append(f"{experts} experts, since the largest id is {experts - 1}")
        return from_choices(ids, borders, experts, np.asarray(layers), "flame", tuple(notes))

    def write(self, path: Path, trace: Trace) -> None:
        if trace.choices is None:
            raise TraceError("flame holds the choices of tokens, and this trace has loads only")
        pa, parquet = _pyarrow()
        single = path.suffix == ".parquet"
        if single and len(trace.layers) > 1:
            raise TraceError(
                f"flame has one file per layer; give --out a folder for {len(trace.layers)} layers"
            )
        if not single:
            path.mkdir(parents=True, exist_ok=True)
        for place, layer in enumerate(trace.layers.tolist()):
            ids = trace.choices[:, place].astype(np.int32)
            used = ids != NO_EXPERT
            offsets = np.concatenate([[0], np.cumsum(used.sum(axis=1))]).astype(np.int32)
            kind = np.int16 if trace.experts <= np.iinfo(np.int16).max else np.int32
            lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids[used].astype(kind)))
            file = path if single else path / f"layer_{layer:02d}.parquet"
            parquet.write_table(pa.table({"indices": lists}), file)


def _indices(path: Path, tokens: int | None, layers: int) -> np.ndarray:
    """The choices [T, K] of one of `layers`, at most of the first `tokens`; short rows end in NO_EXPERT."""
    pa, parquet = _pyarrow()
    try:
        file = parquet.ParquetFile(path)
        if "indices" not in file.schema_arrow.names:
            raise TraceError(f"{path.name}: no column indices; found {', '.join(file.schema_arrow.names)}")
        parts: list[np.ndarray] = []
        for batch in file.iter_batches(batch_size=1 << 18, columns=["indices"]):
            parts.append(_padded(pa, batch.column(0), path))
            if len(parts) == 1:
                rows = file.metadata.num_rows
                _refuse_too_large(rows if tokens is None else min(tokens, rows), parts[0], layers)
            if tokens is not None and sum(map(len, parts)) >= tokens:
                break
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, TraceError):
            raise
        raise TraceError(f"{path.name}: damaged parquet: {error}") from None
    width = max((part.shape[1] for part in parts), default=0)
    whole = [np.pad(p, ((0, 0), (0, width - p.shape[1])), constant_values=NO_EXPERT) for p in parts]
    found = np.concatenate(whole) if whole else np.zeros((0, 0), np.int16)
    return found if tokens is None else found[:tokens]


def _refuse_too_large(tokens: int, some: np.ndarray, layers: int) -> None:
    """Raise TraceError where all layers' choices do not fit the memory, some three times over."""
    need, free = 3 * tokens * some.shape[1] * some.itemsize * layers, machine.available_bytes()
    if free is not None and need > free:
        raise TraceError(
            f"the choices of {tokens} tokens in {layers} layers need {format_bytes(need)} of memory, and "
            f"{format_bytes(free)} are free; keep fewer with --tokens T"
        )


def _padded(pa: Any, column: Any, path: Path) -> np.ndarray:
    """A column of lists as [T, K]."""
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not pa.types.is_integer(kind.value_type):
        raise TraceError(f"{path.name}: indices has type {kind}; expected lists of integers")
    if column.null_count:
        raise TraceError(f"{path.name}: indices has rows without a value")
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    values = column.flatten()
    if values.null_count:
        raise TraceError(f"{path.name}: indices has choices without a value")
    flat = values.to_numpy(zero_copy_only=False)
    width = int(lengths.max(initial=0))
    if (lengths == width).all():
        return flat.reshape(len(lengths), width)
    filled = np.full((len(lengths), width), NO_EXPERT, np.int64)
    filled[np.arange(width) < lengths[:, None]] = flat
    return filled


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        raise TraceError("parquet files need pyarrow: pip install 'rayemu[traces]'") from None
    return pa, parquet
