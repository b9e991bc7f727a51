"""What is measured: one MoE block of a given size, its inputs and the outputs that are right."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rayemu.model.model import Model
from rayemu.model.reference import prepare, reference_forward, route
from rayemu.scenario import Scenario

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Size:
    """T tokens through one SwiGLU block of E experts, K per token, on M modules; no norm, no residual.

    The router is that of the preset `family`; a shared expert of width `shared_d_ff` takes every token.
    """

    name: str
    tokens: int
    d_model: int
    d_ff: int
    experts: int = 8
    top_k: int = 2
    modules: int = 8
    family: str = "mixtral-8x7b"
    shared_d_ff: int = 0

    @property
    def title(self) -> str:
        """The size in one line."""
        shared = ", a shared expert" if self.shared_d_ff else ""
        return (
            f"{self.name}: T={self.tokens}, D={self.d_model}, F={self.d_ff}, E={self.experts}, "
            f"K={self.top_k}{shared}, {self.modules} modules"
        )

    def scenario(
        self,
        exchange: str = "hierarchical",
        *,
        seed: int = 0,
        modules: int | None = None,
        copies: int | None = None,
        transport: str = "zmq",
        place: str | None = None,
        in_flight: int = 4,
        record: bool = True,
        cluster: dict[str, Any] | None = None,
        **exchange_keys: Any,
    ) -> Scenario:
        """The experiment on two emulated nodes; all that is not named here keeps its default.

        Experts have one copy each, or as many as leave no module empty.
        """
        modules = self.modules if modules is None else modules
        copies = max(1, modules // self.experts) if copies is None else copies
        return Scenario.from_dict(
            {
                "name": f"bench-{self.name}-{exchange}",
                "model": {
                    "preset": self.family,
                    "d_model": self.d_model,
                    "d_ff": self.d_ff,
                    "experts": self.experts,
                    "top_k": self.top_k,
                    "layers": 1,
                    "dense_layers": 0,
                    "shared_d_ff": self.shared_d_ff,
                    "activation": "swiglu",
                    "norm": False,
                    "residual": False,
                },
                "cluster": {
                    "nodes": 2,
                    "modules_per_node": modules // 2,
                    "transport": transport,
                    **(cluster or {}),
                },
                "routing": {} if place is None else {"place": place},
                "placement": {"kind": "linear", "copies": copies},
                "exchange": {"kind": exchange, **exchange_keys},
                "run": {"batch_tokens": self.tokens, "seed": seed, "in_flight": in_flight}
                | {"record": record},
            }
        )


SIZES = {
    "large": Size("large", tokens=4096, d_model=1024, d_ff=3584),
    "small": Size("small", tokens=64, d_model=256, d_ff=512),
    "fine": Size("fine", 2048, d_model=1024, d_ff=384, experts=128, top_k=8, family="qwen3-30b-a3b"),
    "deepseek": Size(
        "deepseek", 2048, d_model=1792, d_ff=512, experts=256, top_k=8, family="deepseek-v3", shared_d_ff=512
    ),
}


class Workload:
    """The block's weights, a few batches of random rows, and the reference's outputs for them.

    Rows and gate are normal random numbers from the seed: every expert is as likely as any other.
    """

    def __init__(
        self, size: Size, seed: int = 0, batches: int = 4, transport: str = "zmq", place: str | None = None
    ) -> None:
        self.size, self.seed, self.transport = size, seed, transport
        scenario = size.scenario(seed=seed, place=place)
        self.spec, self.place = scenario.spec, scenario.routing.place  # where it is routed
        self.model = Model(self.spec)
        rng = np.random.default_rng([seed, size.tokens, size.d_model])
        self.inputs: list[F32] = [
            rng.standard_normal((size.tokens, size.d_model), dtype=np.float32) for _ in range(batches)
        ]  # [T, D] each

    @cached_property
    def outputs(self) -> list[F32]:
        """What the single-process reference makes of each input."""
        return [reference_forward(self.model, x) for x in self.inputs]

    @cached_property
    def expert_rows(self) -> list[list[int]]:
        """Rows that each input's routing gives to each expert [batches][E]."""
        layer = self.model.layers[0]
        return [
            np.bincount(route(layer, prepare(layer, x)).experts.ravel(), minlength=self.size.experts).tolist()
            for x in self.inputs
        ]

    @property
    def ffn_rows(self) -> list[list[int]]:
        """The same, and the shared expert's, which is the last where there is one [batches][E or E+1]."""
        shared = [self.size.tokens] if self.size.shared_d_ff else []
        return [rows + shared for rows in self.expert_rows]

    def batch(self, index: int) -> F32:
        """Input of step `index`; the inputs take turns."""
        return self.inputs[index % len(self.inputs)]

    def differences(self, results: list[tuple[int, F32]]) -> tuple[bool, float]:
        """Compare outputs of steps with the reference: equal to the bit, and the largest difference."""
        exact, largest = True, 0.0
        for index, y in results:
            right = self.outputs[index % len(self.outputs)]
            if not np.array_equal(y, right):
                exact = False
                shapes_agree = y.shape == right.shape
                largest = max(largest, float(np.abs(y - right).max()) if shapes_agree else float("inf"))
        return exact, largest
