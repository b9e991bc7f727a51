"""How a command ends that goes wrong: a line for people instead of a traceback, and the exit code."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

import typer

FAILED, REFUSED, INTERRUPTED, UNREAD = 1, 2, 130, 141  # exit codes; 141 is what a shell gives for SIGPIPE


def refuse(lines: list[str]) -> None:
    """End the command: it could not be run, and these lines say why."""
    for line in lines:
        typer.secho(f"rayemu: {line}", fg=typer.colors.RED, err=True)
    raise typer.Exit(REFUSED)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """What can go wrong without a bug of ours, as one line each instead of a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        typer.secho("rayemu: interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:  # whoever read our output has seen enough, as `| head` does: click ends quietly
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            raise  # `until_unread` ends the command
        lines = _expected(error)
        if lines is None:
            raise
        refuse(lines)


def until_unread(command: Callable[[], int | None]) -> NoReturn:
    """End with what a command returns; where nobody reads its output (`| head -1`) with 141, saying nothing.

    Click and rich end it with 1 then, which means that a check failed.
    """
    try:
        try:
            code = command()
        finally:
            if sys.stdout is not None and not sys.stdout.closed:
                sys.stdout.flush()
    except (SystemExit, OSError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, BrokenPipeError):
            cause = cause.__context__
        if cause is not None and not isinstance(error.__context__, typer.Exit):
            code = UNREAD
        elif isinstance(error, OSError):  # a full disk
            typer.secho(f"rayemu: {error}", fg=typer.colors.RED, err=True)
            code = REFUSED
        else:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains as it ends
        raise SystemExit(code) from None
    raise SystemExit(code)


def _nobody_reads() -> bool:
    """Whether the standard output is a pipe whose other end is closed."""
    waiting = select.poll()
    waiting.register(sys.stdout, 0)
    return bool(waiting.poll(0))


def _expected(error: Exception) -> list[str] | None:
    """The lines that say what went wrong, or None for an error that nobody expects."""
    from rayemu.cluster.client_runtime import ClusterError
    from rayemu.cluster.local_ray import RayUnavailable
    from rayemu.compression import CodecError
    from rayemu.drivers.record import RecordError
    from rayemu.emulator import LostExpertError
    from rayemu.model.tensor_files import CheckpointError
    from rayemu.numerics import DenormalsFlushed
    from rayemu.pricing.memory import PricingError
    from rayemu.protocol.client import StalledError
    from rayemu.running.folder import RunError
    from rayemu.scenario import ScenarioError
    from rayemu.study.model import ModelError
    from rayemu.study.plan import PlanError
    from rayemu.traces.errors import TraceError

    if isinstance(error, ScenarioError):
        return list(error.problems)
    ours = (
        RunError,
        RayUnavailable,
        ClusterError,
        LostExpertError,
        CheckpointError,
        CodecError,
        StalledError,
        DenormalsFlushed,
        TraceError,
        RecordError,
        PlanError,
        PricingError,
        ModelError,
    )
    if isinstance(error, (*ours, OSError)):
        return [" ".join(str(error).split())]
    return [f"out of memory: {error}"] if isinstance(error, MemoryError) else None
