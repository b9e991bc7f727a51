"""Who competes. `light` contenders live in this process all the time and are idle when not called; the others
are clusters, started for each of their turns, so that nothing else runs while one of them is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from threadpoolctl import threadpool_limits

from rayemu.emulator import Emulator
from rayemu.machine import cores
from rayemu.model.reference import reference_forward

from .gemms import Gemms, gemm_processes
from .plain_ray import plain_ray
from .torch_block import torch_process
from .workload import F32, Workload


class Light(Protocol):
    """Something in or beside this process that computes steps: `index` picks the workload's input."""

    detail: str

    def timed(self, index: int) -> tuple[float, F32 | None]:
        """One step: seconds, and the output; None where the result is no output of the block."""


class Subject(Protocol):
    """A cluster that computes steps."""

    detail: str

    def step(self, index: int) -> F32:
        """One step."""

    def stream(self, indexes: Iterable[int], in_flight: int) -> Iterator[F32]:
        """Steps in order, several in flight."""


@dataclass(frozen=True)
class Contender:
    """How a subject is opened for a workload, and what it is called in tables."""

    name: str
    title: str
    light: bool
    open: Callable[[Workload], AbstractContextManager[Any]]  # of a Light or a Subject


class Calls:
    """A light contender that is a function."""

    def __init__(self, call: Callable[[int], F32 | None], detail: str) -> None:
        self.call, self.detail = call, detail

    def timed(self, index: int) -> tuple[float, F32 | None]:
        """Call it and look at the clock."""
        began = time.perf_counter()
        y = self.call(index)
        return time.perf_counter() - began, y


@contextmanager
def _gemms(workload: Workload) -> Iterator[Light]:
    gemms = Gemms(workload.model, range(workload.size.experts), workload.expert_rows)

    def call(index: int) -> None:
        gemms.run(index)

    with threadpool_limits(cores()):
        yield Calls(call, f"{cores()} BLAS threads")


@contextmanager
def _processes(workload: Workload) -> Iterator[Light]:
    with gemm_processes(workload.spec, workload.expert_rows, cores()) as pool:

        def call(index: int) -> None:
            pool.run(index)

        yield Calls(call, f"{cores()} processes, one BLAS thread each")


@contextmanager
def _reference(workload: Workload) -> Iterator[Light]:
    with threadpool_limits(cores()):
        yield Calls(lambda i: reference_forward(workload.model, workload.batch(i)), f"{cores()} BLAS threads")


@contextmanager
def _torch(workload: Workload) -> Iterator[Light]:
    with torch_process(workload, cores()) as block:
        yield block


class Emulated:
    """The emulator, through its public face."""

    def __init__(self, workload: Workload, emulator: Emulator, detail: str = "") -> None:
        self.workload, self.emulator, self.detail = workload, emulator, detail

    def step(self, index: int) -> F32:
        """One batch alone."""
        return self.emulator.forward(self.workload.batch(index))

    def stream(self, indexes: Iterable[int], in_flight: int) -> Iterator[F32]:
        """Batches in order, several in flight."""
        batches = (self.workload.batch(i) for i in indexes)
        return (result.y for result in self.emulator.stream(batches, in_flight=in_flight))


@contextmanager
def emulated(workload: Workload, exchange: str, **scenario: Any) -> Iterator[Subject]:
    """Start an emulator for the workload; `scenario` goes to `Size.scenario`."""
    given = {"seed": workload.seed, "transport": workload.transport, **scenario}
    with Emulator(workload.size.scenario(exchange, **given)) as emulator:
        yield Emulated(workload, emulator, f"{exchange}, {given['transport']}")


class PlainSteps:
    """The plain Ray baseline."""

    def __init__(self, workload: Workload, baseline: Any, detail: str) -> None:
        self.workload, self.baseline, self.detail = workload, baseline, detail

    def step(self, index: int) -> F32:
        """One batch alone."""
        return self.baseline.forward(self.workload.batch(index))  # type: ignore[no-any-return]

    def stream(self, indexes: Iterable[int], in_flight: int) -> Iterator[F32]:
        """Batches in order, several in flight."""
        batches = (self.workload.batch(i) for i in indexes)
        return self.baseline.stream(batches, in_flight)  # type: ignore[no-any-return]


@contextmanager
def plain(workload: Workload, modules: int | None = None, homes: int | None = None) -> Iterator[Subject]:
    """Start the plain Ray baseline; every module is a home unless `homes` says how many are."""
    modules = workload.size.modules if modules is None else modules
    homes = modules if homes is None else homes
    threads = max(1, cores() // modules)
    with plain_ray(workload.spec, modules, homes, threads) as baseline:
        yield PlainSteps(workload, baseline, f"{modules} actors, {homes} homes")


CONTENDERS = {
    c.name: c
    for c in (
        Contender("gemms", "bare GEMMs", True, _gemms),
        Contender("processes", "GEMMs by processes", True, _processes),
        Contender("reference", "reference", True, _reference),
        Contender("torch", "transformers Mixtral", True, _torch),
        Contender("hierarchical", "rayemu hierarchical", False, partial(emulated, exchange="hierarchical")),
        Contender("flat", "rayemu flat", False, partial(emulated, exchange="flat")),
        Contender("ray", "plain Ray", False, plain),
        Contender("ray-one-home", "plain Ray, one home", False, partial(plain, homes=1)),
    )
}
