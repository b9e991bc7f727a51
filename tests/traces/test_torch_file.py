"""Reading .pt files: what torch writes comes out, and nothing in a file ever runs."""

from __future__ import annotations

import builtins
import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayemu.traces import TraceError, read
from rayemu.traces.torch_file import load
from tests.traces.files import pickled, torch_file


def test_what_torch_writes_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="writes the file (launch/test.sh --parity installs it)")
    wide = torch.arange(24, dtype=torch.int32).reshape(2, 3, 4)
    content = OrderedDict(
        wide=wide,
        turned=wide.transpose(0, 2),
        part=wide[1, 1:],
        half=torch.tensor([0.5, -3.0], dtype=torch.bfloat16),
        double=torch.tensor([1e300], dtype=torch.float64),
        flags=torch.tensor([True, False]),
        small=torch.tensor([[7]], dtype=torch.uint8),
        unsigned=torch.tensor([65535], dtype=torch.uint16),
        none=torch.zeros(0, 3),
        scalar=torch.tensor(5),
        size=wide.shape,
        plain=[1, -(2**70), 2.5, None, True, "text", (1, (2,)), {"a": {3: []}}],
    )
    torch.save(content, tmp_path / "x.pt")
    found = load(tmp_path / "x.pt")
    assert list(found) == list(content)
    for name in ("wide", "turned", "part", "double", "flags", "small", "unsigned", "none", "scalar"):
        assert np.array_equal(found[name], content[name].numpy()), name
        assert found[name].shape == tuple(content[name].shape)
    assert found["half"].tolist() == [0.5, -3.0]
    assert found["size"] == (2, 3, 4) and found["plain"] == content["plain"]


def test_tensors_of_a_gpu_need_none_and_no_torch(tmp_path: Path) -> None:
    counts = np.arange(12, dtype=np.int32).reshape(1, 3, 4)
    path = torch_file(tmp_path / "x.pt", {"rank": 0, "logical_count": counts}, device="cuda:7")
    script = (
        f"import sys; from rayemu.traces.torch_file import load; assert load({str(path)!r})['rank'] == 0\n"
    )
    subprocess.run([sys.executable, "-c", script + "assert 'torch' not in sys.modules"], check=True)
    assert np.array_equal(load(path)["logical_count"], counts)


def test_the_files_of_these_tests_are_torch_s_own(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="reads the file (launch/test.sh --parity installs it)")
    counts = np.arange(12, dtype=np.int32).reshape(1, 3, 4)
    path = torch_file(
        tmp_path / "x.pt", {"records": [{"topk": counts, "n": None}], "map": counts[0].astype("i8")}
    )
    found = torch.load(path, map_location="cpu", weights_only=True)
    assert torch.equal(found["records"][0]["topk"], torch.from_numpy(counts)) and found["map"].shape == (3, 4)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_any_size_and_protocol(tmp_path: Path, protocol: int) -> None:
    once = [f"number {n}" for n in range(400)]  # more than one byte can number
    content = {
        "records": [once, once[::-1], [n * 1000 for n in range(-300, 300)]],
        "n": [1.5, (), ("a",) * 3],
    }
    assert load(pickled(tmp_path / "x.pt", pickle.dumps(content, protocol))) == content


@pytest.mark.parametrize("depth", [3, 40])
@pytest.mark.parametrize("key", ["logical_count", "physical_to_logical_map", "records"])
def test_lists_that_hold_each_other_do_not_fill_the_memory(tmp_path: Path, key: str, depth: int) -> None:
    bomb: list[Any] = [1] * 1000
    for _ in range(depth):
        bomb = [bomb] * 1000
    record = {"global_physical_count": bomb, "forward_pass_id": bomb}
    content = {key: [record] if key == "records" else bomb, "last_physical_to_logical_map": [[0]]}
    with pytest.raises(TraceError, match=r"more than|nested|forward_pass_id is list; expected"):
        read(pickled(tmp_path / "x.pt", pickle.dumps(content, 2)))


class _Evil:
    def __init__(self, call: object, *arguments: object) -> None:
        self.made = (call, arguments)

    def __reduce__(self) -> object:
        return self.made


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("call", [os.system, builtins.eval, builtins.exec, subprocess.check_output])
def test_a_hostile_pickle_is_refused_by_name_and_nothing_of_it_runs(
    tmp_path: Path, call: Any, protocol: int
) -> None:
    mark = tmp_path / "ran"
    python, shell = f"open({str(mark)!r}, 'w')", f"touch {mark}"
    argument = {os.system: shell, subprocess.check_output: shell.split()}.get(call, python)
    program = pickle.dumps({"logical_count": _Evil(call, argument)}, protocol)
    with pytest.raises(
        TraceError, match=rf"names \w+\.{call.__name__}, which is no data; nothing of it was run"
    ):
        read(pickled(tmp_path / "x.pt", program))
    assert not mark.exists()
    pickle.loads(program)
    assert mark.exists(), "the file was not hostile"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"cnumpy\nload\n.", "numpy.load"),
        (b"ctorch.storage\n_load_from_bytes\n(C\x01xtR.", "torch.storage._load_from_bytes"),
        (b"(S'touch /tmp/x'\nios\nsystem\n.", "os.system"),
        (b"(icollections\nOrderedDict\n.", "collections.OrderedDict"),
        (b"(ctorch\nLongStorage\no.", "operation OBJ"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "operation NEWOBJ"),
        (b"\x80\x02ccollections\nOrderedDict\n)R}b.", "operation BUILD"),
        (b"\x80\x02\x82\x01.", "operation EXT1"),
        (b"ccollections\nOrderedDict\n(](K\x01K\x02etR.", "collections.OrderedDict"),
        (b"\x80\x02}(K\x01u.", "damaged"),
        (b"\x80\x02})K\x01s.", "key of type tuple"),
        (b"\x80\x02]K\x01K\x02s.", "expected dict"),
        (b"\x80\x02}", "no end|damaged"),
        (b"\x80\x02K\x01.", "found int; expected a dictionary"),
        (b"\x80\x02.", "damaged"),
        (b"", "damaged"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02(.", "no data"),
        (b"ctorch\nLongStorage\n.", "no data"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00)))tR.", "expected _Storage"),
        (
            b"(X\x07\x00\x00\x00storagectorch\nLongStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x05tQ.",
            "cut off",
        ),
        (
            b"(X\x07\x00\x00\x00storagectorch\nLongStorage\nX\x02\x00\x00\x00..X\x03\x00\x00\x00cpuK\x05tQ.",
            "missing",
        ),
    ],
)
def test_what_is_no_data_is_refused(tmp_path: Path, program: bytes, words: str) -> None:
    with pytest.raises(TraceError, match=words):
        read(pickled(tmp_path / "x.pt", program))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(1, (4,), (1,)), (0, (5,), (1,)), (0, (2, 2), (4, 1)), (0, (1000, 1000), (0, 0)), (0, (2,), (-1,))],
)
def test_a_tensor_outside_its_storage_is_refused(
    tmp_path: Path, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    storage = b"(X\x07\x00\x00\x00storagectorch\nLongStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    numbers = [pickle.dumps(n, 2)[2:-1] for n in (offset, shape, strides)]
    program = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"".join(numbers) + b"\x89)tR."
    with pytest.raises(TraceError, match="damaged tensor"):
        read(pickled(tmp_path / "x.pt", program))


def test_a_compressed_or_older_file_is_refused(tmp_path: Path) -> None:
    content = {"logical_count": np.zeros((9, 9, 9), np.int64)}
    with pytest.raises(TraceError, match="compressed"):
        read(torch_file(tmp_path / "x.pt", content, compression=zipfile.ZIP_DEFLATED))
    (tmp_path / "old.pt").write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2))
    with pytest.raises(TraceError, match=r"torch before 1\.6"):
        read(tmp_path / "old.pt", "sglang")


def test_bytes_that_were_hit_are_refused_or_read_but_never_a_crash(tmp_path: Path) -> None:
    content = {
        "records": [
            {"global_physical_count": np.ones((2, 4), np.int32), "forward_pass_id": 1, "input_ids": [1, 2]}
        ],
        "last_physical_to_logical_map": np.tile(np.arange(4), (2, 1)),
    }
    whole = torch_file(tmp_path / "x.pt", content).read_bytes()
    draw = random.Random(0)
    for _ in range(400):
        hit = bytearray(whole)
        for _ in range(draw.choice([1, 2, 8])):
            hit[draw.randrange(len(hit))] = draw.randrange(256)
        (tmp_path / "y.pt").write_bytes(hit[: draw.choice([len(hit), draw.randrange(len(hit))])])
        try:
            read(tmp_path / "y.pt")
        except TraceError as error:
            assert "y.pt: " in str(error)
