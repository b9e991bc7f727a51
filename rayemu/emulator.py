"""The public face: a scenario becomes a running emulation that takes batches and gives exact results."""

from __future__ import annotations

import os
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rayemu.balance.rebalancer import Rebalancer
from rayemu.drivers.decided import DecisionCheck
from rayemu.drivers.rebalancing import Rebalancing
from rayemu.model.model import Model
from rayemu.model.reference import reference_forward
from rayemu.numerics import denormals_kept, denormals_notice
from rayemu.placement import Placement, check_placement
from rayemu.protocol.client import BatchResult, most_tokens
from rayemu.protocol.config import MODULE, NODE, ProtocolConfig
from rayemu.protocol.memory import NewRows, fresh_rows
from rayemu.protocol.messages import Moved, Notice
from rayemu.protocol.replay import PathReplay
from rayemu.scenario import Fault, Scenario
from rayemu.units import format_bytes

if TYPE_CHECKING:
    from rayemu.cluster.session import Session
    from rayemu.drivers.backend import Backend
    from rayemu.profiling.meters import Metered
    from rayemu.profiling.processes import Used

F32 = npt.NDArray[np.float32]


class LostExpertError(RuntimeError):
    """Every copy of an expert is dead, and the scenario says to fail: names batch, layer and expert."""

    def __init__(self, batch: int, layer: int, expert: int) -> None:
        self.batch, self.layer, self.expert = batch, layer, expert
        super().__init__(
            f"batch {batch} failed: every copy of expert {expert} (layer {layer}) is dead; raise "
            "placement.copies, or set run.on_lost_expert to drop"
        )


@denormals_kept()  # float64 becomes float32 here
def as_rows(x: Any, d_model: int, new_rows: NewRows = fresh_rows, most: int | None = None) -> F32:
    """Check a batch and copy it to contiguous float32 [T, D]: what is sent may not change any more.

    float64 and non-contiguous arrays are converted. Raises TypeError for other dtypes, and ValueError for
    a wrong shape, for more than `most` tokens, for NaN and for Inf (also where a float64 is too large for
    float32).
    """
    given = np.asarray(x)
    if given.dtype not in (np.float32, np.float64):
        raise TypeError(f"x has dtype {given.dtype}; give float32 or float64")
    if given.ndim != 2 or given.shape[1] != d_model:
        raise ValueError(f"x has shape {given.shape}; the model takes [tokens, {d_model}]")
    if most is not None and len(given) > most:
        size = format_bytes(4 * given.size)
        raise ValueError(
            f"x has {len(given)} tokens, {size}; a batch of this model may have {most} at most: cut it"
        )
    rows = new_rows(*given.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(rows, given, casting="same_kind")
        total = np.add.reduce(rows, axis=None)
    if not np.isfinite(total):  # or too large for float32, though every value is right
        wrong = np.argwhere(~np.isfinite(rows))
        if len(wrong):
            token, column = (int(i) for i in wrong[0])
            raise ValueError(f"x[{token}, {column}] is {rows[token, column]}; every value must be finite")
    return rows


def _close(backend: Backend, process: int) -> None:
    """Stop what runs an emulator; also when nobody has it any more, and at the end of the process."""
    if os.getpid() == process:
        backend.close()


class Emulator:
    """A running emulation. Use it in a `with`, or `close` it.

    Several threads may call `forward` and `stream` at once, also one inside the other: each gets the results
    of its own batches. `model` holds the weights (made when touched) for
    `reference_forward(emulator.model, x)`.
    With `profile` each process meters its functions, see `processor_times` and `meters`.
    Raises ClusterError or RayUnavailable (RuntimeErrors) where the cluster cannot start.
    """

    def __init__(self, scenario: Scenario, profile: bool = False) -> None:
        if notice := denormals_notice():
            warnings.warn(notice, RuntimeWarning, stacklevel=2)
        self.scenario = scenario
        self.spec = scenario.spec
        self.config = ProtocolConfig.from_scenario(scenario)
        cluster = scenario.cluster
        module_to_node = np.repeat(np.arange(cluster.nodes, dtype=np.int32), cluster.modules_per_node)
        placement = scenario.placed()
        self._most_tokens = most_tokens(self.spec)
        self._process = os.getpid()  # a forked child has but a copy
        self._running: Backend
        self._profiled: Session | None = None
        if cluster.transport == "memory":
            from rayemu.drivers.serial import SerialSimulator
            from rayemu.drivers.simulator import Simulator

            simulator = Simulator(
                self.config,
                self.model,
                placement,
                module_to_node,
                scenario.run.seed,
                heartbeat=cluster.heartbeat,
                record=scenario.run.record,
            )
            simulator.settle()
            self._running = SerialSimulator(simulator)
        else:
            from rayemu.cluster.session import Session

            self._running = Session(
                self.config,
                self.spec,
                placement,
                module_to_node,
                transport=cluster.transport,
                sockets=cluster.sockets,
                address=cluster.address,
                seed=scenario.run.seed,
                heartbeat=cluster.heartbeat,
                links={
                    level: float(rate)
                    for level, rate in ((MODULE, cluster.links.module), (NODE, cluster.links.node))
                    if rate is not None
                },
                blas_threads=cluster.blas_threads,
                record=scenario.run.record,
                profile=profile,
            )
            self._profiled = self._running if profile else None

        self._rebalancing: Rebalancing | None = None
        if scenario.rebalance is not None:
            rebalancer = Rebalancer(scenario.rebalance.policy(), scenario.placement_problem())
            at_once = cluster.transport == "memory"
            self._rebalancing = Rebalancing(rebalancer, self._running, at_once)
        self._close = weakref.finalize(self, _close, self._running, self._process)

    def __enter__(self) -> Emulator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _backend(self) -> Backend:
        """What runs the batches; of a forked child, its threads and connections are not there."""
        if os.getpid() != self._process:
            raise RuntimeError(
                f"this emulator belongs to process {self._process}, of which this one was forked; make an "
                'emulator of its own in a process that was started with "spawn"'
            )
        return self._running

    @cached_property
    def model(self) -> Model:
        """The weights, generated from the seed or read from the checkpoint when touched."""
        return Model(self.spec)

    def forward(self, x: Any) -> F32:
        """Run one batch x [T, D] -> y [T, D]. An empty batch gives an empty result."""
        return next(iter(self.stream([x]))).y

    def stream(
        self, batches: Iterable[Any], in_flight: int | None = None, yield_failed: bool = False
    ) -> Iterator[BatchResult]:
        """Run batches, several in flight, and yield their results in order.

        A bad batch (see `as_rows`) is not sent; its error is raised once all earlier batches are out. A
        failed batch raises LostExpertError, or with `yield_failed` comes out with its `failure` set. A batch
        without progress for `cluster.stall_after` raises StalledError. However the stream ends, what it still
        waits for is forgotten, and the emulator can go on.
        """
        limit = self.scenario.run.in_flight if in_flight is None else in_flight
        if isinstance(limit, bool) or not isinstance(limit, (int, np.integer)) or limit < 1:
            raise ValueError(f"in_flight is {limit!r}; allowed: a whole number from 1 up")
        waiting: deque[int | BatchResult] = deque()  # numbers of batches, and results of empty ones
        refused: Exception | None = None
        try:
            for x in batches:
                try:
                    rows = as_rows(x, self.spec.d_model, self._backend.new_rows, self._most_tokens)
                except (TypeError, ValueError) as error:
                    refused = error
                    break
                waiting.append(self._backend.submit(rows) if len(rows) else self._empty(rows))
                while len(waiting) >= limit:
                    yield self._next(waiting, yield_failed)
            while waiting:
                yield self._next(waiting, yield_failed)
        finally:
            if waiting:
                self._backend.abandon([number for number in waiting if isinstance(number, int)])
        if refused is not None:
            raise refused

    def reference(self, x: Any, result: BatchResult | None = None) -> F32:
        """Compute x [T, D] in this process; with a result, replay its lossy codecs and dropped choices, and
        choices that were made for the whole batch."""
        return self.replayed(x, result)[0]

    def replayed(self, x: Any, result: BatchResult | None) -> tuple[F32, dict[int, F32], dict[str, float]]:
        """The reference's output, by layer of recorded choices what its rows told the router, and counts.

        These are what happened as the other layers' routers chose, see `Context`.
        """
        paths = (None, None) if result is None else (result.dispatch_paths, result.combine_paths)
        decisions = None if result is None else result.decisions
        replay = PathReplay(*paths, self.config.codecs, decisions)
        y = reference_forward(self.model, as_rows(x, self.spec.d_model), replay)
        return y, replay.told, replay.counts

    def check_choices(self, batches: Iterable[Any], results: Iterable[BatchResult]) -> DecisionCheck:
        """Make the choices for whole batches once more, from the record: those of all batches so far.

        What it has found is in `wrong`, `checked` and `unchecked` of what is returned.
        """
        check = self.new_check()
        for x, result in zip(batches, results, strict=True):
            if result.decisions is not None and result.failure is None:
                check.take(result.batch, result.decisions, self.replayed(x, result)[1])
        return check

    def new_check(self) -> DecisionCheck:
        """A check of choices that has seen no batch."""
        cluster = self.scenario.cluster
        nodes = np.repeat(np.arange(cluster.nodes, dtype=np.int32), cluster.modules_per_node)
        return DecisionCheck(self.model, nodes, dict(self._running.epochs))

    def inject(self, fault: Fault, module: int | None = None) -> None:
        """Begin a fault now, at `module` or the fault's own; message faults without either hit everyone."""
        if module is None and isinstance(fault.module, int):
            module = fault.module
        self._backend.inject(fault.told, module)

    @property
    def placement(self) -> Placement:
        """Where the experts are, also those that are on their way there or leave."""
        return self._backend.placement

    def move(self, placement: Placement) -> int:
        """Bring the experts to other slots while batches run, layer by layer; return the move's number.

        No output changes by it. It takes the place of a move that is under way. Raises TypeError for what is
        no placement, and ValueError for one that leaves an expert without a slot, that does not fit the model
        and the modules, or that needs more than `cluster.memory`.
        """
        spec = self.spec
        if not isinstance(placement, Placement):
            given = type(placement).__name__
            raise TypeError(
                f"placement is a {given}; give a rayemu.placement.Placement, as from_columns makes it, or of "
                "EPLB's table rayemu.balance.loads.as_placement(phy2log, modules)"
            )
        check_placement(
            placement, (spec.dense_layers, spec.layers), spec.experts, self.scenario.cluster.modules
        )
        needs, memory = self.scenario.module_bytes(placement=placement), self.scenario.cluster.memory
        if memory is not None and needs.max() > memory:
            most = int(needs.argmax())
            raise ValueError(
                f"placement: module {most} would need {format_bytes(needs[most])}; allowed: cluster.memory, "
                f"{format_bytes(memory)}"
            )
        return self._backend.move(placement)

    def moved(self, number: int) -> Moved | None:
        """How far a move is, as last told; None before anything is known. LookupError for none that is."""
        return self._backend.moved(number)

    def poll(self) -> None:
        """Handle what the cluster reported, without waiting."""
        self._backend.poll()

    def wait(self, seconds: float) -> None:
        """Let time pass on the run's clock, of which the `memory` transport's does not run by itself."""
        self._backend.wait(seconds)

    @property
    def now(self) -> float:
        """The run's clock in seconds: virtual for the `memory` transport, else the machine's monotonic."""
        return self._backend.now

    def take_notices(self) -> list[Notice]:
        """Return and forget what was reported: joins, deaths, suspicions, recoveries, moves, decisions."""
        decided = [] if self._rebalancing is None else self._rebalancing.take_notices()
        return decided + self._backend.take_notices()

    @property
    def totals(self) -> dict[str, Any]:
        """Running totals per module, as last reported (for live views)."""
        return self._backend.totals

    @property
    def pids(self) -> dict[int, tuple[int, str]]:
        """Process and host of each module; empty for the `memory` transport."""
        return dict(self._backend.pids)

    @property
    def duplicate_results(self) -> int:
        """Slice results that arrived again and were refused."""
        return self._backend.duplicate_results

    def record(self) -> np.ndarray:
        """Return the record so far: RECORD rows, of the `memory` transport VIRTUAL_RECORD. Before `close`."""
        return self._backend.record()

    def processor_times(self) -> list[Used]:
        """Return what each process has used so far, of an emulator that is profiled; else nothing."""
        return [] if self._profiled is None else self._profiled.processor_times()

    def meters(self) -> list[Metered]:
        """Return what the functions of each process took so far, of an emulator that is profiled."""
        return [] if self._profiled is None else self._profiled.meters()

    def close(self) -> None:
        """Stop everything that was started."""
        if self._rebalancing is not None:
            self._rebalancing.close()
        self._close()

    def _next(self, waiting: deque[int | BatchResult], yield_failed: bool) -> BatchResult:
        first = waiting[0]
        result = self._backend.result(first) if isinstance(first, int) else first
        waiting.popleft()
        if self._rebalancing is not None:
            self._rebalancing.observe(result)
        if result.failure is not None and not yield_failed:
            raise LostExpertError(result.batch, result.failure.layer, result.failure.expert)
        return result

    def _empty(self, rows: F32) -> BatchResult:
        counts = np.zeros((self.spec.layers, self.spec.experts), np.int64)
        return BatchResult(-1, rows, counts, np.zeros(0, np.int32))
