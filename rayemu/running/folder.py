"""The run folder: one run has it at a time, and a finished run is not written over by accident."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

FILES = (  # beside events.jsonl
    "scenario.yaml",
    "record.npz",
    "loads.npz",
    "trace.json",
    "summary.json",
    "summary.part",
)


class RunError(RuntimeError):
    """A run that cannot be: its folder is taken, or it does not fit the memory."""


@contextlib.contextmanager
def claimed_folder(folder: Path, overwrite: bool) -> Iterator[tuple[Path, IO[str]]]:
    """Take a folder for a run; gives it and its empty events.jsonl, open for writing.

    A folder that holds a finished run (it has a summary.json) is refused unless `overwrite`, and one that a
    run is writing to always; what an interrupted run left is replaced. Other files are left alone. Raises
    RunError.
    """
    folder = Path(os.path.expanduser(folder))
    remedy = "choose another with --out DIR or --set name=NAME"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        events = open(folder / "events.jsonl", "a", encoding="utf-8")
    except OSError as error:
        raise RunError(f"the run folder {folder} cannot be written: {error.strerror}; {remedy}") from None
    try:
        with events:
            try:
                fcntl.flock(events, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(f"another run is writing to the folder {folder}; {remedy}") from None
            except OSError:  # a file system without locks
                pass
            if (folder / "summary.json").exists() and not overwrite:
                raise RunError(
                    f"the folder {folder} holds a finished run; {remedy}, or replace it with --overwrite"
                )
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
            events.truncate(0)
            yield folder, events
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(f"the disk of the run folder {folder} is full: {error.strerror}; {remedy}") from None
