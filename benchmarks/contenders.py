"""Who competes. `light` contenders live in this process all the time and are idle when not called; the others
are clusters, started for each of their turns, so that nothing else runs while one of them is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from threadpoolctl import threadpool_limits

from rayemu.emulator import Emulator
from rayemu.machine import cores
from rayemu.model.reference import reference_forward

from .gemms import GemmProcesses, Gemms, gemm_processes
from .plain_ray import plain_ray
from .torch_block import torch_process
from .workload import F32, Workload


class Light(Protocol):
    """Something in or beside this process that computes steps: `index` picks the workload's input."""

    detail: str

    @property
    def pids(self) -> Sequence[int]:
        """Its processes beside this one."""

    def timed(self, index: int) -> tuple[float, float, F32 | None]:
        """One step: seconds, processor seconds, and the output; None where what it makes is none."""


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
    open: Callable[..., AbstractContextManager[Any]]  # of a Light, or with modules=M of a Subject
    kind: str = ""  # name without the number of modules
    modules: int = 0


class Calls:
    """A light contender that is a function."""

    pids: Sequence[int] = ()

    def __init__(self, call: Callable[[int], F32 | None], detail: str) -> None:
        self.call, self.detail = call, detail

    def timed(self, index: int) -> tuple[float, float, F32 | None]:
        """Call it and look at the clocks."""
        began, used = time.perf_counter(), time.process_time()
        y = self.call(index)
        return time.perf_counter() - began, time.process_time() - used, y


class Pool:
    """The bare products by processes."""

    def __init__(self, processes: GemmProcesses, detail: str) -> None:
        self.processes, self.detail = processes, detail
        self.pids: list[int] = [process.pid for process in processes.processes]

    def timed(self, index: int) -> tuple[float, float, None]:
        """Run a batch's products; the processor time is that of the processes."""
        began = time.perf_counter()
        used = self.processes.run(index)
        return time.perf_counter() - began, used, None


@contextmanager
def _gemms(workload: Workload) -> Iterator[Light]:
    gemms = Gemms(workload.model, workload.ffn_rows)

    def call(index: int) -> None:
        gemms.run(index)

    with threadpool_limits(cores()):
        yield Calls(call, f"{cores()} BLAS threads{_shared(workload)}")


@contextmanager
def _processes(workload: Workload) -> Iterator[Light]:
    with gemm_processes(workload.spec, workload.ffn_rows, cores()) as pool:
        yield Pool(pool, f"{cores()} processes, one BLAS thread and as many rows each{_shared(workload)}")


def _shared(workload: Workload) -> str:
    return ", the shared expert's products too" if workload.size.shared_d_ff else ""


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
    given = {
        "seed": workload.seed,
        "transport": workload.transport,
        "place": workload.place,
        **scenario,
    }
    with Emulator(workload.size.scenario(exchange, **given)) as emulator:
        yield Emulated(workload, emulator, f"{exchange}, {given['transport']}, routed at {given['place']}")


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
    with plain_ray(workload.spec, modules, homes, threads, workload.size.tokens) as baseline:
        yield PlainSteps(workload, baseline, f"{modules} actors, {homes} homes")


CONTENDERS = {
    c.name: c
    for c in (
        Contender("gemms", "bare GEMMs", True, _gemms),
        Contender("processes", "GEMMs by processes", True, _processes),
        Contender("reference", "reference", True, _reference),
        Contender("torch", "transformers block", True, _torch),
        Contender("hierarchical", "rayemu hierarchical", False, partial(emulated, exchange="hierarchical")),
        Contender("flat", "rayemu flat", False, partial(emulated, exchange="flat")),
        Contender("ray", "plain Ray", False, plain),
        Contender("ray-one-home", "plain Ray, one home", False, partial(plain, homes=1)),
    )
}


def entrants(names: Iterable[str], workload: Workload, modules: Sequence[int]) -> list[Contender]:
    """The contenders of these names; each cluster once for every number of modules.

    Those on as many modules as the size has keep their name, others get their number behind it.
    """
    found = []
    for contender in (CONTENDERS[name] for name in names):
        if contender.light:
            found.append(contender)
            continue
        for count in modules:
            usual, title = count == workload.size.modules, contender.title.removeprefix("rayemu ")
            found.append(
                replace(
                    contender,
                    name=contender.name if usual else f"{contender.name}-{count}",
                    title=contender.title if len(modules) == 1 and usual else f"{title}, {count}",
                    open=partial(contender.open, modules=count),
                    kind=contender.name,
                    modules=count,
                )
            )
    return found
