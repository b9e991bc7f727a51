"""A stream of small batches without end, modules that are struck one at a time, and what came of it.

Every expert has two copies. All clocks are this machine's monotonic clock, which the coordinator shares.
"""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from rayemu.cluster.host import own_host
from rayemu.drivers.record import COMBINE, DISPATCH
from rayemu.emulator import Emulator
from rayemu.scenario import Scenario

from .workload import Size, Workload

GAVE_UP_S = 60.0  # a module that is not back by then will not come
CALM_S = (0.2, 0.6)  # between a module's return and the next strike


@dataclass(frozen=True)
class Signal:
    """Something that the coordinator reported: a module's suspicion, death, recovery or join."""

    at: float
    kind: str
    module: int
    signal: str
    epoch: int = -1

    @property
    def cause(self) -> str:
        """The signal without its particulars: "silent to 3" is silent."""
        return self.signal.split()[0] if self.signal else "?"


@dataclass(frozen=True)
class Batch:
    """A batch that came out. `lost` and `doubled` count tokens, `exact` is equality with the reference."""

    number: int
    submitted: float
    finished: float
    exact: bool
    lost: int
    doubled: int


@dataclass
class Strike:
    """One fault: when, at which module; `back` is when the module was in service again."""

    module: int
    at: float
    wall: float  # the same instant as Unix time, for the record
    back: float | None = None


@dataclass(frozen=True)
class Outcome:
    """Times in seconds from a strike; None where it did not happen."""

    module: int
    signal: str  # what told of it first
    detected_s: float | None
    unit_s: float | None  # first finished unit that needed the module
    recovered_s: float | None  # first finished batch that needed the module
    all_s: float | None  # last of the batches that were under way
    back_s: float | None
    needed: int  # batches that needed the module


class Watchdog:
    """Ends a `with` block by TimeoutError when `progress` is not called for `patience_s`.

    The emulator waits for a batch as long as it takes; a benchmark must not. It is interrupted as by Ctrl-C,
    until it lets go.
    """

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s
        self.stalled = False
        self._seen = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watchdog:
        self._before = signal.getsignal(signal.SIGINT)
        if (
            self._before is signal.SIG_IGN
        ):  # as in a shell's background: then nothing could interrupt the wait
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._seen = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._thread.join()
        signal.signal(signal.SIGINT, self._before)
        if kind is KeyboardInterrupt and self.stalled:
            raise TimeoutError(
                f"no batch came out for {self.patience_s:g} s: the emulator is stuck"
            ) from None

    def progress(self) -> None:
        """Tell that there is progress."""
        self._seen = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            if time.monotonic() - self._seen > self.patience_s:
                self.stalled = True
                _thread.interrupt_main()


@dataclass
class Faultload:
    """Streams batches through an emulator and strikes modules; `strike(pid)` is the fault.

    `returns` names the notices that tell that a struck module is back, which it cannot be within `lasts_s`.
    Only modules of this machine can be struck.
    """

    emulator: Emulator
    workload: Workload
    strikes: int
    strike: Callable[[int], None]
    returns: tuple[str, ...]
    rng: np.random.Generator
    say: Callable[[str], None]
    lasts_s: float = 0.0
    done: list[Strike] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)
    away: set[int] = field(default_factory=set)
    sent: int = 0

    def run(self, in_flight: int) -> None:
        """Stream until all strikes are done and their modules are back.

        Raises TimeoutError when a module does not come back, or no batch comes out.
        """
        with Watchdog(GAVE_UP_S) as watchdog:
            self._take(in_flight, watchdog)
        self._listen()

    def _take(self, in_flight: int, watchdog: Watchdog) -> None:
        for place, result in enumerate(self.emulator.stream(self._feed(), in_flight, yield_failed=True)):
            watchdog.progress()
            y = self.workload.outputs[place % len(self.workload.outputs)]
            exact = result.failure is None and np.array_equal(result.y, y)
            lost, doubled = int((result.delivered == 0).sum()), int((result.delivered > 1).sum())
            self.batches.append(
                Batch(result.batch, result.submitted_at, result.finished_at, exact, lost, doubled)
            )

    def _feed(self) -> Iterator[np.ndarray]:
        struck: Strike | None = None
        due = time.monotonic() + 1.0
        while True:
            self._listen()
            now = time.monotonic()
            if struck is not None:
                if struck.back is not None:
                    self.say(f"strike {len(self.done)} of {self.strikes}: module {struck.module}")
                    struck, due = None, now + self.rng.uniform(*CALM_S)
                elif now - struck.at > GAVE_UP_S:
                    raise TimeoutError(f"module {struck.module} was not back {GAVE_UP_S:g} s after the fault")
            elif self.away:  # suspected for another reason, such as a busy machine: strike when all are there
                due = max(due, now + CALM_S[0])
            elif now >= due:
                if len(self.done) == self.strikes:
                    return
                struck = self._strike()
            yield self.workload.batch(self.sent)
            self.sent += 1

    def _strike(self) -> Strike:
        """Strike soon, at a moment that has nothing to do with the stream, which goes on meanwhile."""
        pids = {m: pid for m, (pid, host) in self.emulator.pids.items() if host == own_host()}
        module = int(self.rng.choice(sorted(pids)))
        strike = Strike(module, float("inf"), float("inf"))
        wait_s = self.rng.uniform(0.0, 0.05)

        def act() -> None:
            time.sleep(wait_s)
            strike.wall, strike.at = time.time(), time.monotonic()
            self.strike(pids[module])

        threading.Thread(target=act, daemon=True).start()
        self.done.append(strike)
        self.away.add(module)
        return strike

    def _listen(self) -> None:
        for notice in self.emulator.take_notices():
            if "module" not in notice.facts:
                continue
            module = int(str(notice.facts["module"]))
            cause, epoch = str(notice.facts.get("signal", "")), int(str(notice.facts.get("epoch", -1)))
            signal = Signal(notice.wall_s, notice.kind, module, cause, epoch)
            self.signals.append(signal)
            if signal.kind in ("suspected", "dead"):
                self.away.add(module)
            elif signal.kind in ("joined", "recovered"):
                self.away.discard(module)
            last = self.done[-1] if self.done else None
            if last is None or last.back is not None or last.module != module:
                continue
            if signal.kind in self.returns and signal.at > last.at + self.lasts_s:
                last.back = signal.at


def first_told(strike: Strike, signals: list[Signal]) -> Signal | None:
    """The first report of the struck module's end."""
    told = [s for s in signals if s.module == strike.module and s.kind in ("suspected", "dead")]
    return min((s for s in told if s.at >= strike.at), key=lambda s: s.at, default=None)


def outcome(strike: Strike, batches: list[Batch], signals: list[Signal], record: np.ndarray) -> Outcome:
    """What a strike did; see `needed_units` for what needed the module."""
    first = first_told(strike, signals)
    units = needed_units(record, strike, first)
    numbers = {int(unit) >> 32 for unit in units}
    # What an earlier incarnation of the module left open was finished long ago.
    needed = [b for b in batches if b.number in numbers and b.finished > strike.at]
    under_way = [b for b in batches if b.submitted < strike.at < b.finished]
    return Outcome(
        module=strike.module,
        signal=first.cause if first is not None else "none",
        detected_s=None if first is None else first.at - strike.at,
        unit_s=first_done(record, strike, units),
        recovered_s=min((b.finished - strike.at for b in needed), default=None),
        all_s=max((b.finished - strike.at for b in under_way), default=None),
        back_s=None if strike.back is None else strike.back - strike.at,
        needed=len(needed),
    )


def unit_keys(record: np.ndarray) -> np.ndarray:
    """Batch << 32 | slice of each row: the unit that it belongs to, one home's part of a batch."""
    return record["batch"].astype(np.int64) << 32 | record["slice"].astype(np.int64) & 0xFFFFFFFF


def needed_units(record: np.ndarray, strike: Strike, told: Signal | None) -> np.ndarray:
    """Units that could not be done without the struck module.

    Those that the module was home of, had begun and not combined; and those whose home had asked for rows
    before the module's end was told, and asked others again because of it, in that epoch.
    """
    units = unit_keys(record)
    ended = record["end_wall_s"] > 0
    before = ended & (record["end_wall_s"] <= strike.wall)
    mine, combines = record["src"] == strike.module, record["kind"] == COMBINE
    dispatches = ended & (record["kind"] == DISPATCH)
    needed = np.setdiff1d(units[mine & before & dispatches], units[mine & before & combines])
    if told is None or told.epoch < 0:
        return needed
    again = units[dispatches & ~mine & (record["epoch"] == told.epoch)]
    asked = units[dispatches & ~mine & (record["epoch"] < told.epoch)]
    return np.union1d(needed, np.intersect1d(again, asked))


def first_done(record: np.ndarray, strike: Strike, needed: np.ndarray) -> float | None:
    """Seconds until the first of these units was combined by another module."""
    others = (record["src"] != strike.module) & (record["kind"] == COMBINE)
    done = others & (record["end_wall_s"] > strike.wall)
    ends = record["end_wall_s"][done][np.isin(unit_keys(record)[done], needed)]
    return float(ends.min() - strike.wall) if len(ends) else None


def false_alarms(strikes: list[Strike], signals: list[Signal]) -> Counter[str]:
    """Suspicions and deaths of modules that were not struck at the time, by signal."""
    found: Counter[str] = Counter()
    for s in signals:
        if s.kind not in ("suspected", "dead"):
            continue
        spans = [
            (k.at, k.back if k.back is not None else float("inf")) for k in strikes if k.module == s.module
        ]
        if not any(low <= s.at <= high for low, high in spans):
            found[f"{s.kind} ({s.cause})"] += 1
    return found


def scenario(size: Size, seed: int, in_flight: int, exchange: str, homes: int, transport: str) -> Scenario:
    """Every expert on two modules; batches cut into `homes` slices."""
    return size.scenario(
        exchange,
        seed=seed,
        copies=2,
        in_flight=in_flight,
        cluster={"transport": transport},
        min_slice_rows=max(1, size.tokens // homes),
    )
