"""The loader of a module: gets the experts that its slots are to hold, and lets go of those that left.

The table of slots in the newest epoch says what a module holds; nothing else does. A slot of its own that it
lacks is loaded: chunk after chunk from a module that holds the expert, at a set rate, one chunk under way at
a time, so that rows come first; or made anew where nobody holds it. What has gone from the table is dropped
once nothing waits for it. So a lost or late frame costs time and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xxhash

from rayemu.alltoall import ALIVE, LEAVING, LOADING, View
from rayemu.model.expert import Expert
from rayemu.model.holdings import Holdings, Key, digest_of, expert_of, read_weights
from rayemu.model.spec import ModelSpec
from rayemu.protocol.messages import COORDINATOR, Fetch, Loaded, Send, Weights
from rayemu.protocol.server import Job

SILENT = 3  # fetches without an answer before another module is asked
MOST_WAIT = 8  # times `retry_after` that rows go before the making of an expert: they may never cease
MAKE_OPERATIONS = 20.0  # per weight: about what drawing one costs, so that it is not done between two frames


@dataclass(slots=True, eq=False)
class _Loading:
    """The expert that is on its way; its bytes come in order."""

    key: Key
    sources: list[int]  # modules that may have it: the first is asked, those that failed are gone
    data: np.ndarray  # [expert_bytes] uint8
    received: int = 0
    fetch_at: float = 0.0  # when the next chunk, or the last one again, is due to be asked for
    asked: int = 0  # times for the next chunk
    asked_at: float = 0.0  # the last of them


class Loader:
    """What a module does to hold what it should. `rate` in bytes per second, chunks in bytes."""

    def __init__(
        self,
        me: int,
        incarnation: int,
        spec: ModelSpec,
        holdings: Holdings,
        in_use: Callable[[Key], bool],
        view: View,
        retry_after: float,
        rate: float,
        chunk_bytes: int,
    ) -> None:
        self.me, self.incarnation, self.spec, self.holdings = me, incarnation, spec, holdings
        self.in_use, self.retry_after, self.rate, self.chunk_bytes = in_use, retry_after, rate, chunk_bytes
        self.view = view
        self._missing: list[Key] = []  # in the order of the table
        self._awaited: set[Key] = set()  # those that the table calls loading
        self._loading: _Loading | None = None
        self._paid = 0.0  # until then the rate allows nothing more, of this expert or the next
        self._to_make: Key | None = None  # nobody has it: for a job
        self._make_by = float("inf")  # until then rows go first
        self._making: Key | None = None  # a job does it
        self._untold: dict[Key, int] = {}  # loaded, and the coordinator may not know yet -> bytes fetched
        self._tell_at = float("inf")
        self._gone: set[Key] = set()  # from the table, but still held
        self._drop_at = float("inf")
        self._digests: dict[Key, str] = {}  # of what is handed on

    @property
    def busy(self) -> bool:
        """Whether it loads, or holds what it should not."""
        return bool(self._missing or self._gone)

    # -- what it is told ------------------------------------------------------------------------------
    def on_view(self, view: View, now: float) -> list[Send]:
        """Go by a new table of slots."""
        self.view = view
        placed = view.placement
        mine = np.flatnonzero(placed.module == self.me)
        slots = dict(
            zip(
                zip(placed.layer[mine].tolist(), placed.expert[mine].tolist(), strict=True),
                view.slot_state[mine].tolist(),
                strict=True,
            )
        )
        self._missing = [key for key, s in slots.items() if s != LEAVING and key not in self.holdings]
        self._gone = {key for key in self.holdings if key not in slots}
        self._drop_at = now if self._gone else float("inf")
        self._awaited = {key for key, state in slots.items() if state == LOADING}
        self._untold = {key: self._untold.get(key, 0) for key in self._awaited if key in self.holdings}
        self._tell_at = now if self._untold else float("inf")
        if self._loading is not None:
            if self._loading.key not in self._missing:
                self._loading = None
            else:
                self._loading.sources = [m for m in self._loading.sources if view.state[m] == ALIVE]
        if self._to_make not in self._missing:
            self._to_make = None
        return self.tick(now)

    def on_fetch(self, m: Fetch) -> list[Send]:
        """Hand on bytes of an expert's weights, or say that it is not held."""
        key = m.layer, m.expert
        if key not in self.holdings:
            return [Send(m.module, Weights(self.me, *key, m.start, "", np.zeros(0, np.uint8)))]
        expert = self.holdings[key]
        if key not in self._digests:
            self._digests[key] = digest_of(expert)
        data = read_weights(expert, m.start, min(m.size, self.chunk_bytes))
        return [Send(m.module, Weights(self.me, *key, m.start, self._digests[key], data))]

    def on_weights(self, m: Weights, now: float) -> list[Send]:
        """Take the bytes that are asked for; whatever else comes is late."""
        loading = self._loading
        if loading is None or loading.key != (m.layer, m.expert) or [m.module] != loading.sources[:1]:
            return []
        if not m.digest:
            return self._try_another(loading, now)
        end = m.start + len(m.data)
        if m.start != loading.received or not len(m.data) or end > len(loading.data):
            return []
        loading.data[m.start : end] = m.data
        loading.received, loading.asked = end, 0
        self._paid = max(self._paid, loading.asked_at) + len(m.data) / self.rate
        loading.fetch_at = max(now, self._paid)
        if end < len(loading.data):
            return self.tick(now)
        if xxhash.xxh3_64_hexdigest(loading.data.data) != m.digest:
            return self._try_another(loading, now)
        self._loading = None
        self._hold(loading.key, expert_of(loading.data, self.spec), end, now)
        return self.tick(now)

    def on_made(self, job: Job, now: float) -> list[Send]:
        """Take an expert that a job has made."""
        key, self._making = (job.layer, job.expert), None
        assert job.made is not None
        if key in self._missing:
            self._hold(key, job.made, 0, now)
        return self.tick(now)

    def _hold(self, key: Key, expert: Expert, fetched: int, now: float) -> None:
        self.holdings.put(key, expert)
        self._missing.remove(key)
        if key in self._awaited:
            self._untold[key], self._tell_at = fetched, now

    # -- what it does by itself -----------------------------------------------------------------------
    def tick(self, now: float) -> list[Send]:
        """Ask for the next bytes, begin with the next expert, tell of what is there, drop what is unused."""
        if self._drop_at <= now:
            self._drop(now)
        if self._loading is None and self._to_make is None:
            self._begin(now)
        sends: list[Send] = []
        loading = self._loading
        if loading is not None and loading.fetch_at <= now:
            if not loading.sources or loading.asked >= SILENT:
                sends += self._try_another(loading, now)
            else:
                sends.append(self._fetch(loading, now))
        if self._tell_at <= now and self._untold:
            sends.append(self._tell(now))
        return sends

    def deadline(self) -> float:
        """When `tick` has something to do."""
        fetch_at = self._loading.fetch_at if self._loading is not None else float("inf")
        return min(fetch_at, self._tell_at, self._drop_at)

    def makes_now(self, now: float) -> bool:
        """Whether an expert that is to be made has waited long enough for rows."""
        return self._to_make is not None and self._make_by <= now

    def next_job(self) -> Job | None:
        """Take an expert that is to be made anew, as a job."""
        if self._to_make is None:
            return None
        layer, expert = self._making = self._to_make
        self._to_make = None
        return Job(layer, expert, 0, MAKE_OPERATIONS * self.spec.expert_parameters(), make=self.holdings.make)

    def _drop(self, now: float) -> None:
        for key in [key for key in self._gone if not self.in_use(key)]:
            self._gone.discard(key)
            self._digests.pop(key, None)
            self.holdings.drop(key)
        self._drop_at = now + self.retry_after if self._gone else float("inf")

    def _begin(self, now: float) -> None:
        for key in self._missing:
            if key != self._making:
                self._start(key, self._sources(key), now)
                return

    def _start(self, key: Key, sources: list[int], now: float) -> None:
        if sources:
            data = np.empty(self.spec.expert_bytes(), np.uint8)
            self._loading = _Loading(key, sources, data, fetch_at=max(now, self._paid))
        else:
            self._loading, self._to_make, self._make_by = None, key, now + MOST_WAIT * self.retry_after

    def _sources(self, key: Key) -> list[int]:
        """Live modules that hold an expert: those of this node first, and not the same for everyone."""
        view = self.view
        placed = view.placement
        there = (placed.layer == key[0]) & (placed.expert == key[1]) & (view.slot_state != LOADING)
        modules = placed.module[there & (view.state[placed.module] == ALIVE) & (placed.module != self.me)]
        far = view.module_to_node[modules] != view.module_to_node[self.me]
        order = np.lexsort(((modules - self.me) % view.modules, far))
        return [int(m) for m in modules[order]]

    def _try_another(self, loading: _Loading, now: float) -> list[Send]:
        """Begin anew with the next module that may have it."""
        self._start(loading.key, loading.sources[1:], now)
        if self._loading is None or self._loading.fetch_at > now:
            return []
        return [self._fetch(self._loading, now)]

    def _fetch(self, loading: _Loading, now: float) -> Send:
        loading.fetch_at = now + self.retry_after * 2**loading.asked  # a slow link may be bringing it
        loading.asked, loading.asked_at = loading.asked + 1, now
        size = min(self.chunk_bytes, len(loading.data) - loading.received)
        return Send(loading.sources[0], Fetch(self.me, *loading.key, loading.received, size))

    def _tell(self, now: float) -> Send:
        """Tell the coordinator of what it does not know to be held, until its epoch shows that it does."""
        self._tell_at = now + self.retry_after
        slots = np.array(sorted(self._untold), np.uint16).T
        fetched = np.array([self._untold[key] for key in sorted(self._untold)], np.int64)
        return Send(COORDINATOR, Loaded(self.me, self.incarnation, self.view.epoch, slots, fetched))
