"""Recurrent network: a small GRU that reads each expert's last windows. Needs torch (`rayemu[predict]`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from rayemu.balance.predictors.forecast import Forecast, windows

Parameters: TypeAlias = dict[str, np.ndarray]


class Samples(NamedTuple):
    """Series to learn from: N of C windows each and what followed, relative to each series' mean."""

    series: np.ndarray  # [N, C] float32, load / mean - 1
    change: np.ndarray  # [N] float32, (next - last) / mean
    weight: np.ndarray  # [N] float32, the mean as a share of the mean of all: errors count in rows


@dataclass(frozen=True)
class Recurrent:
    """A GRU and a linear layer, the same for all experts, that forecast the change from the last window.

    `context` windows are read, `hidden` units wide; `steps` of Adam at `rate` with `batch` series each, drawn
    with `seed`. The network starts as the naive forecast (its output layer is zero) and stays it when there
    are fewer than `context` + 1 windows to learn from. The same arguments give the same parameters on the
    same machine.
    """

    context: int = 8
    hidden: int = 16
    steps: int = 400
    batch: int = 256
    rate: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("context", 1), ("hidden", 1), ("steps", 0), ("batch", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name}: {getattr(self, name)!r} is not allowed; allowed: {least} and above"
                )
        if not self.rate > 0:
            raise ValueError(f"rate: {self.rate!r} is not allowed; allowed: above 0")

    def fit(self, history: np.ndarray) -> Forecast:
        """Train on every series of windows [W, L, E]."""
        samples = series_of(windows(history), self.context)
        parameters = train(
            initial(self.hidden, self.seed), samples, self.steps, self.batch, self.rate, self.seed
        )
        return forecast_with(parameters, self.context)


def series_of(history: np.ndarray, context: int) -> Samples:
    """Every run of `context` windows of every expert that had load, and how the next window differed."""
    count = len(history) - context
    if count < 1:
        return Samples(np.zeros((0, context), np.float32), np.zeros(0, np.float32), np.zeros(0, np.float32))
    runs = np.lib.stride_tricks.sliding_window_view(history[:-1], context, axis=0)  # [N, L, E, C]
    runs, following = runs.reshape(-1, context), history[context:].ravel()
    mean = runs.mean(axis=1)
    runs, following, mean = runs[mean > 0], following[mean > 0], mean[mean > 0]
    weight = mean / mean.mean() if mean.size else mean
    return Samples(
        (runs / mean[:, None] - 1).astype(np.float32),
        ((following - runs[:, -1]) / mean).astype(np.float32),
        weight.astype(np.float32),
    )


def initial(hidden: int, seed: int) -> Parameters:
    """Parameters before training: uniform within 1 / sqrt(hidden) as torch has it, the output layer zero."""
    rng, bound = np.random.default_rng(seed), hidden**-0.5
    shapes: dict[str, tuple[int, ...]] = {
        "weight_ih_l0": (3 * hidden, 1),
        "weight_hh_l0": (3 * hidden, hidden),
    }
    shapes |= {"bias_ih_l0": (3 * hidden,), "bias_hh_l0": (3 * hidden,)}
    start = {k: rng.uniform(-bound, bound, shape).astype(np.float32) for k, shape in shapes.items()}
    return start | {"weight_out": np.zeros((1, hidden), np.float32), "bias_out": np.zeros(1, np.float32)}


def train(
    parameters: Parameters,
    samples: Samples,
    steps: int,
    batch: int,
    rate: float,
    seed: int | Sequence[int],
    optimiser: str = "Adam",
) -> Parameters:
    """New parameters after `steps` of a torch optimiser; each on all samples if `batch` covers them.

    The loss is the mean over the batch of weight times squared error. Nothing is learned from no samples.
    """
    if not len(samples.series):
        return parameters
    torch = _torch()
    rng = np.random.default_rng(seed)
    tensors = {k: torch.tensor(v, requires_grad=True) for k, v in parameters.items()}
    stepper = getattr(torch.optim, optimiser)(tensors.values(), lr=rate)
    many = len(samples.series) > batch
    with _one_thread(torch):
        for _ in range(steps):
            drawn = rng.integers(len(samples.series), size=batch) if many else slice(None)
            series, change, weight = (torch.from_numpy(a[drawn]) for a in samples)
            loss = (weight * (_network(torch, tensors, series) - change) ** 2).mean()
            stepper.zero_grad()
            loss.backward()
            stepper.step()
    return {k: v.detach().numpy().copy() for k, v in tensors.items()}


def forecast_with(parameters: Parameters, context: int) -> Forecast:
    """The forecast of a trained network, in rows."""

    def forecast(recent: np.ndarray) -> np.ndarray:
        recent = windows(recent)
        torch = _torch()
        last = recent[-context:].reshape(min(context, len(recent)), -1).T  # [L * E, C]
        mean = last.mean(axis=1)
        series = (last / np.where(mean > 0, mean, 1.0)[:, None] - 1).astype(np.float32)
        with torch.no_grad(), _one_thread(torch):
            change = _network(
                torch, {k: torch.from_numpy(v) for k, v in parameters.items()}, torch.tensor(series)
            )
        return np.maximum(last[:, -1] + change.numpy() * mean, 0.0).reshape(recent.shape[1:])

    return forecast


def _network(torch: Any, parameters: Mapping[str, Any], series: Any) -> Any:
    """Change of each series [N, C] as the GRU and the linear layer say it [N]."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    flat = [parameters[name] for name in names]
    start = torch.zeros(1, len(series), parameters["weight_out"].shape[1])
    output, _ = torch.gru(series[:, :, None], start, flat, True, 1, 0.0, True, False, True)  # [N, C, hidden]
    return (output[:, -1] @ parameters["weight_out"].T + parameters["bias_out"])[:, 0]


@contextmanager
def _one_thread(torch: Any) -> Iterator[None]:
    """Without torch's threads: small products gain nothing, and on busy cores they spin (40 times slower)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise ImportError(
            "this load predictor needs torch; install it with pip install 'rayemu[predict]'"
        ) from None
    return torch
