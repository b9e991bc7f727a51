"""Files that are mapped: room on the disk, with and without the system's own call for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rayemu.protocol.memory import open_with_room


@pytest.mark.parametrize("system", ["own", "macOS"])
def test_room_is_made_behind_what_is_there(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if system == "macOS":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    file = tmp_path / "rows"
    for size, content in ((6, bytes(6)), (10, b"abcdef" + bytes(4)), (3, b"abcdef" + bytes(4))):
        os.close(open_with_room(file, size))
        assert file.read_bytes() == content
        if size == 6:
            file.write_bytes(b"abcdef")
    assert file.stat().st_blocks * 512 >= 10, "no hole: a map of it has its pages"


def test_the_file_is_named_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    before = set(os.listdir("/dev/fd"))
    with pytest.raises(OSError, match="No space left on device") as failure:
        open_with_room(tmp_path / "rows", 4096)
    assert failure.value.filename == str(tmp_path / "rows")
    assert len(set(os.listdir("/dev/fd"))) == len(before), "the descriptor is closed"
