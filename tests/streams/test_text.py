from __future__ import annotations

import sysconfig
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import xxhash

from rayemu.streams import Text


def ids(*words: str, vocabulary: int = 32768) -> list[int]:
    return [xxhash.xxh32(word.encode()).intdigest() % vocabulary for word in words]


def test_words_numbers_and_marks_are_tokens(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("x_1 = fün(42)\n\n\tint8 != 3.5 \U0001f600")
    expected = ["x_", "1", "=", "fün", "(", "42", ")", "int", "8", "!", "=", "3", ".", "5", "\U0001f600"]
    stream = Text(path=str(file))
    assert list(stream.words()) == expected
    assert next(stream.tokens(15)).tolist() == ids(*expected)


def test_a_folder_is_read_in_order_and_again_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "z.txt").write_text("last")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "b" / "c.py").write_text("inner")
    (tmp_path / ".git" / "hidden").write_text("hidden")
    (tmp_path / ".hidden").write_text("hidden")
    (tmp_path / "binary").write_bytes(b"not\0text")
    (tmp_path / "empty").write_text("")
    (tmp_path / "latin").write_bytes("caf\xe9".encode("latin-1"))
    words = list(Text(path=str(tmp_path)).words())
    assert words == ["first", "caf", "\ufffd", "last", "inner"]
    batches = islice(Text(path=str(tmp_path)).tokens(3), 4)
    assert np.concatenate(list(batches)).tolist() == ids(*(words * 3)[:12])


def test_a_line_without_end_is_cut_not_swallowed(tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("ab " * 100_000)
    words = list(Text(path=str(file)).words())
    assert 100_000 <= len(words) <= 100_010  # a few may be cut in two
    assert "".join(words) == "ab" * 100_000


def test_the_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("word")
    assert list(Text(path="~/a.txt").words()) == ["word"]


def test_stdlib_is_the_interpreters_source_without_what_was_installed_into_it() -> None:
    root = Path(sysconfig.get_path("stdlib"))
    files = list(Text()._files())
    assert files[0].parent == root
    assert root / "abc.py" in files
    assert root / "json" / "decoder.py" in files
    assert all(file.suffix == ".py" for file in files)
    assert not [f for f in files if {"site-packages", "test"} & set(f.relative_to(root).parts)]
    text = files[0].read_text()
    assert "".join(islice(Text().words(), 200)) in "".join(text.split())


def test_the_first_batch_comes_before_the_text_is_read() -> None:
    started = time.perf_counter()
    next(Text().batches(512, 512, seed=0))
    assert time.perf_counter() - started < 0.5  # it takes about 10 ms; reading everything takes seconds


@pytest.mark.parametrize("make", ["missing", "empty file", "empty folder", "only binary", "only blanks"])
def test_no_text_is_refused(tmp_path: Path, make: str) -> None:
    path = tmp_path / "here"
    if make == "empty file":
        path.touch()
    elif make == "only blanks":
        path.write_text(" \n\t\n")
    elif make != "missing":
        path.mkdir()
        if make == "only binary":
            (path / "x").write_bytes(b"a\0b")
    with pytest.raises(ValueError, match=r"^path: .*(does not exist|holds no text)"):
        Text(path=str(path))


def test_text_that_vanishes_during_the_run_is_said(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one two")
    tokens = Text(path=str(file)).tokens(2)
    next(tokens)
    file.write_text("")
    with pytest.raises(ValueError, match="no text any more"):
        next(tokens)
