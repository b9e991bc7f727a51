"""The mover: brings the table of slots to a wanted placement, layer by layer, while tokens flow.

In each layer the new slots come first, as *loading*. When all are ready, those that are not wanted any more
are *leaving*: homes give them no more work. When every live module knows that, they go from the table, and
their modules drop them. Meanwhile the next layer is loading. At no moment is a copy taken away that is the
last; what a dead module was to load is cancelled, and then what it was to replace stays. What must stay only
until a replacement is there does not hold up the move; it leaves later.
"""

from __future__ import annotations

import numpy as np

from rayemu.alltoall import ALIVE, DEAD, LEAVING, LOADING, READY, View
from rayemu.placement import Placement
from rayemu.protocol.messages import Moved

Row = tuple[int, int]  # (expert, module) of a slot of one layer


class Mover:
    """One move, see `Move`. `step` says how the table of slots goes on from a view."""

    def __init__(self, number: int, wanted: Placement, view: View, now: float) -> None:
        self.number, self.began = number, now
        self.wanted = _by_layer(wanted, view.layers)
        present = _by_layer(view.placement, view.layers)
        unsettled = set(view.placement.layer[view.slot_state != READY].tolist())  # by a move before
        self._layers = [
            layer
            for layer in range(view.layers)
            if self.wanted[layer] != present[layer] or layer in unsettled
        ]
        self._begun = False
        self._layer = -1  # that is loading; -1 for none
        self._loading: set[Row] = set()  # new slots of that layer that are not ready yet
        self._leaving: dict[int, tuple[set[Row], int]] = {}  # by layer: slots that leave, since when
        self._staying: set[int] = set()  # layers with slots that were to leave, but must stay for now
        self.loaded = self.dropped = self.cancelled = self.fetched = 0
        self.ended: float | None = None

    @property
    def done(self) -> bool:
        """Whether all layers are through; what must stay for now may still leave later."""
        return self.ended is not None

    @property
    def idle(self) -> bool:
        """Whether `step` will change nothing any more, whatever happens."""
        return self.done and not self._staying and not self._leaving

    def status(self, now: float) -> Moved:
        """Say how far it is."""
        seconds = (now if self.ended is None else self.ended) - self.began
        return Moved(self.number, self.done, self.loaded, self.dropped, self.cancelled, self.fetched, seconds)

    def step(self, view: View, known: np.ndarray, now: float) -> tuple[Placement, np.ndarray] | None:
        """Return the next table of slots and their states, or None where there is nothing to change.

        `known [M]` is the epoch that each module is known to have.
        """
        table = _Table(view)
        if not self._begun:  # what left by a move before stays until the turn of its layer comes
            self._begun = True
            for layer in np.unique(view.placement.layer[view.slot_state == LEAVING]).tolist():
                leaving = {row for row, state in table.states(layer).items() if state == LEAVING}
                self._keep(table, view, layer, leaving)
        self._let_go(table, view, known)
        self._cancel(table, view)
        for layer in sorted(self._staying):
            self._replace(table, view, layer)
        while True:
            if self._layer >= 0 and not self._loading:
                self._replace(table, view, self._layer)
                self._layer = -1
            if self._layer >= 0 or not self._layers:
                break
            self._begin(table, view, self._layers.pop(0))
        if self.ended is None and not self._layers and self._layer < 0 and not self._leaving:
            self.ended = now
        return table.result()

    def _begin(self, table: _Table, view: View, layer: int) -> None:
        """Add the slots of a layer that are new; those of dead modules cannot be."""
        self._layer = layer
        wanted, states = self.wanted[layer], table.states(layer)
        new = wanted - set(states)
        possible = {row for row in new if view.state[row[1]] != DEAD}
        self.cancelled += len(new) - len(possible)
        table.add(layer, possible)
        late = {row for row in wanted if states.get(row) == LOADING and view.state[row[1]] != DEAD}
        self._loading = possible | late

    def _cancel(self, table: _Table, view: View) -> None:
        """Give up slots whose module died before they were ready; see which are ready."""
        if self._layer < 0:
            return
        states = table.states(self._layer)
        for row in sorted(self._loading):
            if view.state[row[1]] == DEAD:
                table.remove(self._layer, {row})
                self.cancelled += 1
            elif states.get(row) == READY:
                self.loaded += 1
            else:
                continue
            self._loading.discard(row)

    def _replace(self, table: _Table, view: View, layer: int) -> None:
        """All new slots of the layer are there: let the unwanted leave, of which another copy is ready."""
        wanted, states = self.wanted[layer], table.states(layer)
        ready = {
            e for (e, m), s in states.items() if s == READY and view.state[m] == ALIVE and (e, m) in wanted
        }
        complete = {e for e, _ in wanted} - {e for e, m in wanted if (e, m) not in states}
        unwanted = {row for row in states if row not in wanted} - self._leaving.get(layer, (set(), 0))[0]
        going = {row for row in unwanted if row[0] in ready & complete}
        if any(row[0] in complete - ready for row in unwanted):
            self._staying.add(layer)
        else:
            self._staying.discard(layer)
        unused = {row for row in going if states[row] == LOADING}  # no home knows them
        table.remove(layer, unused)
        self.dropped += len(unused)
        if going := going - unused:
            table.mark(layer, going, LEAVING)
            before = self._leaving.get(layer, (set(), 0))[0]
            self._leaving[layer] = before | going, view.epoch + 1

    def _let_go(self, table: _Table, view: View, known: np.ndarray) -> None:
        """Take from the table what leaves, once every live module knows; keep what has become the last."""
        alive = view.state == ALIVE
        for layer, (going, since) in list(self._leaving.items()):
            states = table.states(layer)
            usable = {e for (e, m), state in states.items() if state == READY and view.state[m] == ALIVE}
            stays = {row for row in going if row[0] not in usable}
            if stays:
                self._keep(table, view, layer, stays)
                self._staying.add(layer)
                going -= stays
            if (known[alive] >= since).all():
                table.remove(layer, going)
                self.dropped += len(going)
                del self._leaving[layer]

    def _keep(self, table: _Table, view: View, layer: int, rows: set[Row]) -> None:
        """Take back that slots leave; a dead module's are not ready before it has told what it holds."""
        dead = {row for row in rows if view.state[row[1]] == DEAD}
        table.mark(layer, dead, LOADING)
        table.mark(layer, rows - dead, READY)


class _Table:
    """The slots of a view, to be changed."""

    def __init__(self, view: View) -> None:
        placed = view.placement
        self._columns = [placed.layer, placed.expert, placed.module, view.slot_state]
        self._changed = False

    def states(self, layer: int) -> dict[Row, int]:
        """The state of each slot of a layer."""
        layers, experts, modules, states = self._columns
        mine = layers == layer
        rows = zip(experts[mine].tolist(), modules[mine].tolist(), strict=True)
        return dict(zip(rows, states[mine].tolist(), strict=True))

    def add(self, layer: int, rows: set[Row]) -> None:
        """Add loading slots."""
        if rows:
            new = np.array(sorted(rows))
            more = [np.full(len(new), layer), new[:, 0], new[:, 1], np.full(len(new), LOADING)]
            self._take([np.concatenate(pair) for pair in zip(self._columns, more, strict=True)])

    def remove(self, layer: int, rows: set[Row]) -> None:
        """Take slots away."""
        if rows:
            kept = ~self._at(layer, rows)
            self._take([column[kept] for column in self._columns])

    def mark(self, layer: int, rows: set[Row], state: int) -> None:
        """Change the state of slots."""
        if rows:
            self._take([*self._columns[:3], np.where(self._at(layer, rows), state, self._columns[3])])

    def result(self) -> tuple[Placement, np.ndarray] | None:
        """The table, sorted by layer and expert, if anything is other than before."""
        if not self._changed:
            return None
        layers, experts, modules, states = self._columns
        order = np.lexsort((experts, layers))
        placed = Placement(layers[order], experts[order], np.zeros(len(order), np.int32), modules[order])
        return placed, states[order].astype(np.uint8)

    def _take(self, columns: list[np.ndarray]) -> None:
        self._columns, self._changed = columns, True

    def _at(self, layer: int, rows: set[Row]) -> np.ndarray:
        layers, experts, modules, _ = self._columns
        wide = 1 << 16
        keys = [expert * wide + module for expert, module in rows]
        return (layers == layer) & np.isin(experts.astype(np.int64) * wide + modules, keys)


def _by_layer(placement: Placement, layers: int) -> list[set[Row]]:
    """The slots of each layer."""
    table: list[set[Row]] = [set() for _ in range(layers)]
    for layer, expert, module in zip(
        placement.layer.tolist(), placement.expert.tolist(), placement.module.tolist(), strict=True
    ):
        table[layer].add((expert, module))
    return table
