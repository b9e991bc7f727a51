"""Run by itself, with kernels and threads chosen in the environment: rows keep their bits in any company.

    OPENBLAS_CORETYPE=Haswell OPENBLAS_NUM_THREADS=2 python tests/numerics/every_row.py [products only]

Needs NumPy, threadpoolctl and the sources; prints one JSON line with the kernels and the way of the products,
or fails with what differs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from rayemu.numerics import exact_matmul, kernels, thread_count, way
from rayemu.numerics.blas import one_thread

# [K, N] around every border of every way, and shapes of experts and gates that people have.
SHAPES = [
    *((1, 1), (7, 1), (20, 1), (3, 5), (1, 40), (16, 32), (64, 8), (64, 63), (64, 64), (33, 77), (257, 8)),
    *((256, 1024), (300, 65), (1000, 10), (550, 300), (1978, 76), (64, 2048), (200, 200), (96, 1000)),
    *((256, 1000), (512, 7168), (1792, 512), (384, 1024), (1024, 384), (2048, 128), (640, 321)),
]
ROWS = 420


def check_products(shapes: list[tuple[int, int]]) -> None:
    """All rows together, against the same rows alone and in groups, strided and not, and with one thread."""
    for inner, columns in shapes:
        rng = np.random.default_rng([inner, columns])
        wide = rng.standard_normal((ROWS, inner + 5), dtype=np.float32)
        x = wide[:, 2:-3]  # strided rows
        w = rng.standard_normal((inner, columns), dtype=np.float32)
        whole = exact_matmul(x, w)
        close = np.allclose(whole, x.astype(np.float64) @ w, atol=1e-4 * inner**0.5, rtol=1e-4)
        assert close, f"{inner} x {columns}: the product is wrong"
        order = rng.permutation(ROWS)
        cuts = (0, 1, 2, 4, 9, 17, 29, 45, 69, 117, 213, ROWS)
        for low, high in pairwise(cuts):
            group = order[low:high]
            same = np.array_equal(exact_matmul(x[group], w), whole[group])
            assert same, f"{inner} x {columns}: rows differ in a group of {len(group)}"
        with one_thread():
            assert np.array_equal(exact_matmul(x, w), whole), f"{inner} x {columns}: one thread differs"


def check_experts() -> None:
    """Expert FFNs with each activation, and the gates of the routers."""
    from rayemu.model.expert import Expert, expert_forward
    from rayemu.routing import SoftmaxTopK
    from rayemu.routing.gate import Gate

    rng = np.random.default_rng(3)
    for width, inner in ((16, 20), (96, 336), (256, 512), (1024, 768)):
        for activation in ("swiglu", "gelu", "relu"):
            columns = inner * (2 if activation == "swiglu" else 1)
            up = rng.standard_normal((width, columns), dtype=np.float32) / np.float32(width**0.5)
            expert = Expert(up, rng.standard_normal((inner, width), dtype=np.float32), activation)
            x = rng.standard_normal((301, width), dtype=np.float32)
            whole = expert_forward(expert, x)
            for count in (1, 2, 11, 12, 13, 50, 97, 300):
                group = rng.choice(301, count, replace=False)
                same = np.array_equal(expert_forward(expert, x[group]), whole[group])
                assert same, f"{activation} {width} x {inner}: rows differ in a group of {count}"
        for experts in (4, 8, 60, 256):
            gate = Gate(rng.standard_normal((width, experts), dtype=np.float32))
            routed = SoftmaxTopK(2).route(x, gate)
            for row in (0, 77, 300):
                alone = SoftmaxTopK(2).route(x[row : row + 1], gate)
                same = np.array_equal(alone.weights[0], routed.weights[row])
                assert same and np.array_equal(alone.experts[0], routed.experts[row]), f"gate of {experts}"


def check_threads() -> None:
    """Products of several threads at once, of a forked child, and of a thread that was interrupted in one."""
    from rayemu.model.expert import Expert, expert_forward

    rng = np.random.default_rng(4)
    x, w = (rng.standard_normal(shape, dtype=np.float32) for shape in ((900, 256), (256, 2000)))
    before, whole = thread_count(), exact_matmul(x, w)
    with ThreadPoolExecutor(4) as pool:
        for y in pool.map(exact_matmul, [x] * 20, [w] * 20):
            assert np.array_equal(y, whole), "rows differ in another thread"
    assert thread_count() == before, "BLAS was left with other threads"
    child = os.fork()
    if not child:
        signal.alarm(20)  # ends a child that hangs
        os._exit(0 if np.array_equal(exact_matmul(x, w), whole) else 1)
    assert os.waitpid(child, 0)[1] == 0, "a forked child has no products, or other ones"

    expert = Expert(w, rng.standard_normal((1000, 256), dtype=np.float32))
    given, other = (rng.standard_normal((1200, 256), dtype=np.float32) for _ in range(2))
    right, cut_short = expert_forward(expert, given), 0
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    for attempt in range(40):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0005 * (attempt + 1))
            for _ in range(50):
                expert_forward(expert, other)
        except KeyboardInterrupt:
            cut_short += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert np.array_equal(expert_forward(expert, given), right), "rows differ after an interruption"
    assert cut_short > 20


def check_runs() -> None:
    """Simulated runs, among them some with a crash."""
    from tests.drivers import chaos

    faults = {chaos.run(seed).fault for seed in range(12)}
    assert any("crash" in fault for fault in faults)


if __name__ == "__main__":
    check_products(SHAPES)
    if not sys.argv[1:]:
        check_experts()
        check_threads()
        check_runs()
    chosen = way()
    facts = {"kernels": kernels(), "way": chosen.name, "multiple": chosen.multiple, "alone": chosen.alone}
    print(json.dumps(facts))
