"""Real text as tokens: any file or folder, read as it is needed, over and over."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import xxhash

from rayemu.streams.embedding import check_common, embed

_TOKEN = re.compile(r"[^\W\d]+|\d+|[^\w\s]")  # words, numbers, single marks
_LONGEST_LINE = 1 << 16  # characters; what a file without line ends is cut into
_NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests"}


@dataclass(frozen=True)
class Text:
    """Words, numbers and punctuation of text files, hashed to ids; starts again when it comes to the end.

    `path` is a file, a folder (its files in sorted order, without hidden and binary ones), or "stdlib" for
    the Python source of the running interpreter's standard library. `vocabulary` is the number of ids,
    `context` how much of the previous activation stays in the next (0 to below 1). The seed sets the
    embedding only; the tokens are the text's.
    """

    path: str = "stdlib"
    vocabulary: int = 32768
    context: float = 0.0

    def __post_init__(self) -> None:
        check_common(self.vocabulary, self.context)
        if self.path != "stdlib" and not (self.path and _root(self.path).exists()):
            raise ValueError(f"path: {self.path!r} does not exist; give a text file, a folder, or stdlib")
        try:
            if next(self.words(), None) is None:
                raise ValueError(f"path: {self.path!r} holds no text; give a file or folder with words in it")
        except OSError as error:
            raise ValueError(f"path: {self.path!r} cannot be read: {error}") from None

    def words(self) -> Iterator[str]:
        """The text's tokens as strings, once through."""
        for file in self._files():
            with open(file, encoding="utf-8", errors="replace") as lines:
                while line := lines.readline(_LONGEST_LINE):
                    yield from _TOKEN.findall(line)

    def tokens(self, batch_tokens: int, seed: int = 0) -> Iterator[np.ndarray]:
        """Endless batches of token ids [T] int64. Raises ValueError when the text has vanished meanwhile."""
        ids = self._ids()
        while True:
            yield np.fromiter(islice(ids, batch_tokens), dtype=np.int64, count=batch_tokens)

    def batches(self, batch_tokens: int, d_model: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of activations x [T, D] float32."""
        return embed(self.tokens(batch_tokens, seed), self.vocabulary, d_model, seed, self.context)

    def _ids(self) -> Iterator[int]:
        while True:
            word = None
            for word in self.words():
                yield xxhash.xxh32_intdigest(word.encode("utf-8")) % self.vocabulary
            if word is None:
                raise ValueError(f"path: {self.path!r} holds no text any more")

    def _files(self) -> Iterator[Path]:
        root = _root(self.path)
        if root.is_file():
            yield root
            return
        for folder, folders, names in os.walk(root, onerror=_refuse):
            folders[:] = sorted(f for f in folders if not f.startswith((".", "__pycache__")))
            if self.path == "stdlib":
                folders[:] = [f for f in folders if f not in _NOT_STDLIB]
                names = [name for name in names if name.endswith(".py")]
            for name in sorted(names):
                file = Path(folder, name)
                if not name.startswith(".") and file.is_file() and not _is_binary(file):
                    yield file


def _root(path: str) -> Path:
    return Path(sysconfig.get_path("stdlib")) if path == "stdlib" else Path(os.path.expanduser(path))


def _refuse(error: OSError) -> None:
    raise error


def _is_binary(file: Path) -> bool:
    with open(file, "rb") as start:
        return b"\0" in start.read(1024)
