"""Files that lie, are damaged, or too large: an error that names the file, and nothing of it runs."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayemu.traces import FORMATS, Trace, TraceError, read, read_trace, write
from tests.traces.files import LOADS, small, statistics, tensors

_LAUGHS = b"l0: &l0 [1]\n" + b"".join(
    b"l%d: &l%d [*l%d, *l%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 31)
)
_MERGES = b"m0: &m0 {a: 1}\n" + b"".join(
    b"m%d: &m%d {<<: [*m%d, *m%d]}\n" % (n, n, n - 1, n - 1) for n in range(1, 31)
)
HOSTILE = {
    "empty": (b"", "format is not known; name it with --format"),
    "prose.txt": (b"hello", "format is not known"),
    "cut.json": (b'{"load_history": [', "damaged JSON"),
    "deep.json": (b"[" * 100_000, "damaged JSON"),
    "none.json": (b"[]", "found nothing"),
    "text.json": (b'[["a", "b"]]', "found text"),
    "ragged.json": (b"[[1, 2], [3]]", "entry 1 has 1 entries, entry 0 has 2"),
    "flat.json": (b"[1, 2]", "nested 1 deep; expected 2 or 3"),
    "negative.json": (b"[[1, 2], [3, -4]]", "layer 1, expert 1 in window 0 is -4"),
    "nan.json": (b"[[1, NaN]]", "layer 0, expert 1 in window 0 is nan"),
    "huge.json": (b"[[1, 1e300]]", "expert 1 in window 0 is 1e.300"),
    "integer.json": (b"[[1, 123456789012345678901234567890]]", "found a mixture"),
    "digits.json": (b"[[" + b"9" * 5000 + b"]]", "damaged JSON|mixture"),
    "history.json": (b'{"load_history": []}', "expected a list of entries"),
    "entry.json": (b'{"load_history": [{"load": 1}]}', "entry 0 has no logical_expert_load"),
    "shapes.json": (
        b'{"load_history": [{"logical_expert_load": [[1]]}, {"logical_expert_load": [[1]]}, '
        b'{"logical_expert_load": [[1, 2]]}]}',
        r"entry 2 has shape \[1, 2\], entry 0 has \[1, 1\]",
    ),
    "count.json": (b'{"logical_count": 3}', "found int"),
    "zip.npz": (b"PK\x03\x04rubbish", "format is not known"),
    "head.npy": (b"\x93NUMPY\x01\x00\x10\x00{'descr': 'O'}\n", "damaged .npy"),
    "short.npy": (b"\x93NUMPY", "damaged .npy"),
    "utf.json": (b"[\xff\xfe]", "damaged JSON"),
    "magic.parquet": (b"PAR1" + b"\0" * 40, "damaged parquet|pip install"),
    "config.yaml": (b"initial_global_assignments: [1]", "expected experts by layer"),
    "bomb.yaml": (
        b"a: &a [1]\nb: &b [*a, *a]\ninitial_global_assignments: {0: [*b, *b]}",
        "layer 0: expected a list of experts",
    ),
    "laughs.yaml": (
        _LAUGHS + b"initial_global_assignments: {0: [0]}\nnum_slots: *l30",
        "num_slots: found list; expected a positive",
    ),
    "more.yaml": (_LAUGHS + b"initial_global_assignments: {0: *l30}", "layer 0: expected a list of experts"),
    "merge.yaml": (
        _MERGES + b"initial_global_assignments: *m30",
        "damaged YAML|expected experts|is no layer",
    ),
    "deeper.json": (b"[[[[[1]]]]]", "nested more than 4 deep"),
    "tag.yaml": (b"initial_global_assignments: !!python/object/apply:os.system ['true']", "damaged YAML"),
    "open.yaml": (b"initial_global_assignments: {", "damaged YAML"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, words = HOSTILE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TraceError, match=words) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_any_file_as_any_format_is_an_error_and_no_crash(tmp_path: Path, name: str) -> None:
    for number, (content, _) in enumerate([*HOSTILE.values(), (bytes(range(256)), "")]):
        (tmp_path / str(number)).write_bytes(content)
        with pytest.raises(TraceError):
            read(tmp_path / str(number), name)
    with pytest.raises(TraceError):
        read(tmp_path, name)
    with pytest.raises(TraceError, match="no such file"):
        read(tmp_path / "none", name)


def test_an_own_file_that_was_tampered_with(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    write(path, "rayemu", small())
    with np.load(path) as arrays:
        good = dict(arrays)
    assert read_trace(path).layers.dtype == np.int64 and read_trace(path).choices.dtype == np.int16  # type: ignore[union-attr]
    for changes, words in [
        ({"rayemu_trace": np.array(2)}, "version 2; this rayemu reads version 1"),
        ({"loads": np.array([["a"]])}, "loads have type"),
        ({"loads": good["loads"][:, :1]}, "2 numbers for 1 layers"),
        ({"borders": np.array([0, 9, 4])}, "borders: expected 3 growing numbers"),
        ({"choices": np.full((4, 2, 2), 3)}, "names expert 3; allowed: 0 to 2"),
        ({"choices": good["choices"][:, 0]}, "choices: shape"),
        ({"layers": np.array([0.5, 1])}, "layers: found fractions"),
        ({"loads": np.array([{}], dtype=object)}, "damaged"),
    ]:
        np.savez(path, **{**good, **changes})
        with pytest.raises(TraceError, match=words):
            read(path)


def test_bytes_of_an_own_file_that_were_hit(tmp_path: Path) -> None:
    write(tmp_path / "x.npz", "rayemu", small())
    whole, draw = (tmp_path / "x.npz").read_bytes(), random.Random(0)
    for _ in range(300):
        hit = bytearray(whole)
        hit[draw.randrange(len(hit))] = draw.randrange(256)
        (tmp_path / "y.npz").write_bytes(hit[: draw.choice([len(hit), draw.randrange(len(hit))])])
        with contextlib.suppress(TraceError):
            assert read_trace(tmp_path / "y.npz").total.tolist() == small().total.tolist()


def test_a_small_file_that_unpacks_to_more_than_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "x.npz", "rayemu", Trace(np.zeros((100, 10, 100), np.int64)))
    monkeypatch.setattr("rayemu.machine.available_bytes", lambda: 1_000_000)
    with pytest.raises(TraceError, match="it unpacks to 782"):
        read(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: (s / "meta_info.json").write_text("{}"), "num_experts: found None"),
        (lambda s: (s / "meta_info.json").write_text("["), "meta_info.json: damaged JSON"),
        (lambda s: (s / "meta_info.json").write_text('{"num_experts": 4}'), r"shape \[3\]; expected \[4\]"),
        (lambda s: (s / "rank0.safetensors").unlink(), "no rank"),
        (lambda s: (s / "rank0.safetensors").write_bytes(b"\xff" * 20), "no safetensors file"),
        (lambda s: tensors(s / "rank1.safetensors", {"loads": np.zeros(3)}), "expected names like 100_3"),
        (lambda s: tensors(s / "rank1.safetensors", {"1_3": np.zeros(3)}), "type F64; expected integers"),
        (
            lambda s: tensors(s / "rank1.safetensors", {"9_3": np.zeros(3, int)}),
            "no counts of iteration 9, layer 4",
        ),
    ],
)
def test_trtllm_statistics_that_do_not_fit(tmp_path: Path, spoil: Any, words: str) -> None:
    folder = statistics(tmp_path / "s", [{"1_3": LOADS[0, 0], "1_4": LOADS[0, 1]}], experts=3)
    spoil(folder)
    with pytest.raises(TraceError, match=words):
        read(folder)


@pytest.mark.parametrize("name", ["rayemu", "eplb", "vllm", "sglang", "trtllm", "npy"])
def test_loads_of_another_number_of_experts_than_asked_for(tmp_path: Path, name: str) -> None:
    write(tmp_path / "x", name, small())
    assert read_trace(tmp_path / "x", name, experts=3).experts == 3
    with pytest.raises(TraceError, match="loads of 3 experts; 4 were asked for"):
        read(tmp_path / "x", name, experts=4)


def test_what_a_format_cannot_hold_is_said(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pip install 'rayemu[traces]'")
    with pytest.raises(TraceError, match="this trace has loads only"):
        write(tmp_path / "x", "flame", Trace(LOADS))
    with pytest.raises(TraceError, match="give --out a folder for 2 layers"):
        write(tmp_path / "x.parquet", "flame", small())
    with pytest.raises(TraceError, match=r"ends in \.json"):
        write(tmp_path / "x.pt", "sglang", small())
    with pytest.raises(TraceError, match="no folder"):
        write(tmp_path / "no" / "x.npz", "rayemu", small())
    with pytest.raises(TraceError, match="xyz is no format; allowed: rayemu, eplb"):
        write(tmp_path / "x.npz", "xyz", small())
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceError, match="statistics are a folder"):
        write(tmp_path / "file", "trtllm", small())
