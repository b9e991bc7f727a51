"""Federated averaging: nodes train one network on their own loads and send parameters, never loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rayemu.balance.predictors.forecast import Forecast, windows
from rayemu.balance.predictors.recurrent import Parameters, Samples, forecast_with, initial, series_of, train


@dataclass(frozen=True)
class Federated:
    """The recurrent network trained by FedAvg: in each round every node trains on its own experts' loads.

    Experts belong to `nodes` nodes in equal blocks. A round is `steps` of training on each node from the same
    parameters; then they are averaged by the nodes' numbers of samples (McMahan et al. 2017, algorithm 1).
    """

    nodes: int = 4
    rounds: int = 20
    context: int = 8
    hidden: int = 16
    steps: int = 20
    batch: int = 256
    rate: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("nodes", 1),
            ("rounds", 0),
            ("context", 1),
            ("hidden", 1),
            ("steps", 0),
            ("batch", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name}: {getattr(self, name)!r} is not allowed; allowed: {least} and above"
                )
        if not self.rate > 0:
            raise ValueError(f"rate: {self.rate!r} is not allowed; allowed: above 0")

    def fit(self, history: np.ndarray) -> Forecast:
        """Train on windows [W, L, E], each node on its block of experts."""
        return self.fit_nodes(np.array_split(windows(history), self.nodes, axis=2))

    def fit_nodes(self, histories: Sequence[np.ndarray]) -> Forecast:
        """Train on what each node has seen itself, [W, L, E] with sizes of its own."""
        samples = [series_of(history, self.context) for history in histories]
        parameters = initial(self.hidden, self.seed)
        for number in range(self.rounds):
            parameters = self.round(parameters, samples, number)
        return forecast_with(parameters, self.context)

    def round(
        self, parameters: Parameters, samples: Sequence[Samples], number: int, optimiser: str = "Adam"
    ) -> Parameters:
        """The averaged parameters after one round on each node's samples."""
        trained = [
            train(parameters, own, self.steps, self.batch, self.rate, [self.seed, number, node], optimiser)
            for node, own in enumerate(samples)
        ]
        return federated_average(trained, [len(own.series) for own in samples])


def federated_average(parameters: Sequence[Parameters], samples: Sequence[int]) -> Parameters:
    """Each parameter's mean over nodes, weighted by their samples; the first node's if none has any.

    Summed in float64 in the order of nodes, given back in the parameters' dtype.
    """
    total = sum(samples)
    if not total:
        return parameters[0]
    return {
        name: sum(
            (np.float64(n / total) * own[name] for own, n in zip(parameters, samples, strict=True)),
            np.float64(0),
        ).astype(first.dtype)
        for name, first in parameters[0].items()
    }
