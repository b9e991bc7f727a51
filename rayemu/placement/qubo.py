"""Placement as a QUBO: a quadratic function of bits, one per expert and module, minimised by annealing."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayemu.placement.filling import Filling, layer_by_layer
from rayemu.placement.placement import Placement
from rayemu.placement.problem import PlacementProblem

LARGEST = 4096  # bits of a layer
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Qubo:
    """Simulated annealing of bits, one per expert and module: a QUBO of balance, traffic and rules.

    Bit x[e, m] says that module m holds a copy of expert e. What is looked for is the least of

        sum_m (load_m / mean load - 1)^2 - traffic * pairs that a module holds together / all pairs
        + penalty * what the rules are broken by: copies[e] copies of an expert, a level number on a module.

    `load_m` spreads an expert's load evenly over its copies. `traffic` weighs co-chosen pairs (0: loads only;
    more needs `problem.coactivation`). `reads` annealings of `sweeps` each are tried at half, once
    and twice the penalty, and the best counts; one that breaks the rules is mended, expert by expert, and
    where none keeps them a warning is logged. Not exact: of 120 cases that brute force solved 119 were.
    """

    reads: int = 16
    sweeps: int = 1000
    traffic: float = 0.0
    penalty: float = 0.5

    def __post_init__(self) -> None:
        for name in ("reads", "sweeps"):
            if not 1 <= getattr(self, name) <= 10**6:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not allowed; allowed: 1 to a million")
        if not 0 <= self.traffic <= 1e6:
            raise ValueError(f"traffic: {self.traffic!r} is not allowed; allowed: 0 to 1e6")
        if not 0 < self.penalty <= 1e6:
            raise ValueError(f"penalty: {self.penalty!r} is not allowed; allowed: above 0 to 1e6")

    def place(self, problem: PlacementProblem) -> Placement:
        """Place `problem.copies` of each expert.

        Raises ValueError for more than 4,096 bits a layer, without dwave-samplers, or where coactivation is
        wanted and not known.
        """
        if problem.experts * problem.modules > LARGEST:
            raise ValueError(
                f"qubo placement takes up to {LARGEST} experts x modules, and there are {problem.experts} x "
                f"{problem.modules}; take another placement"
            )
        if self.traffic and problem.coactivation is None:
            raise ValueError(
                f"traffic: {self.traffic} needs which experts tokens choose together (coactivation), and "
                "none is known: give a trace with the choices of each token, or set traffic: 0"
            )

        def fill(layer: int, filling: Filling) -> None:
            copies = problem.copies[layer]
            filling.keep_level(int(copies.sum()), int(copies.sum()))
            pairs = problem.coactivation[layer] if self.traffic and problem.coactivation is not None else None
            terms = Terms(problem.loads[layer], copies, filling.room, pairs, self.traffic)
            found = [  # bits [E, M]: a low penalty roams further, a high one keeps the rules more often
                x
                for factor in (0.5, 1.0, 2.0)
                for x in self._anneal(terms, factor * self.penalty, int(problem.rng.integers(2**31)))
            ]
            plans = [_mended(x, copies, terms.share, filling.room) for x in found]
            if not any(np.array_equal(x, plan.held) for x, plan in zip(found, plans, strict=True)):
                _log.warning(
                    "qubo placement: none of %d reads kept the rules in layer %d; the best was mended; more "
                    "sweeps or a larger penalty may help",
                    len(found),
                    layer,
                )
            best = min(plans, key=lambda plan: terms.objective(plan.held))
            for expert, module, load in best.placed:
                filling.put_at(expert, module, load)

        return layer_by_layer(problem, fill)

    def _anneal(self, terms: Terms, penalty: float, seed: int) -> np.ndarray:
        """Return what each read found: bool [R, E, M]."""
        try:
            import dimod
            from dwave.samplers import SimulatedAnnealingSampler
        except ImportError:
            raise ValueError(
                "qubo placement needs dwave-samplers, which is not installed: pip install 'rayemu[plan]'"
            ) from None
        linear, (u, v, weight) = terms.quadratic(penalty)
        bits: Any = dimod.BinaryQuadraticModel.from_numpy_vectors(linear, (u, v, weight), 0.0, "BINARY")
        answer = SimulatedAnnealingSampler().sample(
            bits, num_reads=self.reads, num_sweeps=self.sweeps, seed=seed
        )
        columns = np.argsort(np.asarray(list(answer.variables)))
        return np.asarray(answer.record.sample[:, columns], bool).reshape(self.reads, *terms.shape)


class Terms:
    """What a layer's plan costs, and the same as a quadratic function of its bits."""

    def __init__(
        self,
        loads: np.ndarray,
        copies: np.ndarray,
        sizes: np.ndarray,
        pairs: np.ndarray | None,
        traffic: float,
    ) -> None:
        self.copies, self.sizes, self.shape = copies, sizes, (len(loads), len(sizes))
        self.share = loads / np.maximum(copies, 1)  # [E] load of a copy
        total = loads[copies > 0].sum()
        scale = len(sizes) / total if total > 0 else 0.0
        self.each = self.share * scale  # [E], of the mean module load
        self.together = np.zeros((len(loads), len(loads)))  # [E, E] gain of a pair on one module
        if pairs is not None:
            self.together = traffic * pairs / max(pairs.sum() / 2, 1)
            np.fill_diagonal(self.together, 0)

    def objective(self, held: np.ndarray) -> float:
        """What a plan [E, M] that keeps the rules costs, penalties left out."""
        x = held.astype(np.float64)
        load = self.each @ x
        return float(((load - 1) ** 2).sum() - np.einsum("em,ef,fm->", x, self.together, x) / 2)

    def quadratic(self, penalty: float) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return linear [E * M] and pairwise (u, v, weight) coefficients of the bits, e * M + m each."""
        experts, modules = self.shape
        most = self.each.max(initial=0.0)
        one = penalty * (self.each * (self.each + most) + self.together.sum(axis=1) + 1e-3)  # [E]
        level = penalty * ((self.each**2).mean() + self.together.sum(axis=1).mean() + 1e-3)
        # (sum_m x - c)^2 = sum_m (1 - 2c) x + 2 sum_{m<n} x x'; (n - s)^2 the same over experts
        linear = (self.each**2 - 2 * self.each + one * (1 - 2 * self.copies))[:, None]
        linear = linear + level * (1 - 2 * self.sizes)[None, :]  # [E, M]
        e, f = np.triu_indices(experts, 1)
        same_module = 2 * self.each[e] * self.each[f] - self.together[e, f] + 2 * level
        m, n = np.triu_indices(modules, 1)
        every, each = np.arange(modules), np.arange(experts)
        u = np.concatenate([(e[:, None] * modules + every).ravel(), (each[:, None] * modules + m).ravel()])
        v = np.concatenate([(f[:, None] * modules + every).ravel(), (each[:, None] * modules + n).ravel()])
        weight = np.concatenate([np.repeat(same_module, modules), np.repeat(2 * one, len(m))])
        return linear.ravel(), (u, v, weight)


def _mended(x: np.ndarray, copies: np.ndarray, share: np.ndarray, sizes: np.ndarray) -> Filling:
    """Make a plan that keeps the rules of bits [E, M]: a copy where its bit is set, while there is room."""
    filling = Filling(len(copies), sizes)
    for expert in np.argsort(-share, kind="stable").tolist():
        for _ in range(copies[expert]):
            filling.put(expert, share[expert], ~x[expert])
    return filling
