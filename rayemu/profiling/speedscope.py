"""Samples as a file for https://www.speedscope.app, which draws flame graphs from it in the browser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rayemu.profiling.account import Window
from rayemu.profiling.sampler import Frame, Samples

SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def speedscope(name: str, samples: Sequence[Samples], window: Window) -> dict[str, Any]:
    """The file's content: one profile per process and thread, of each stack its seconds in the window.

    Equal stacks are one sample, so the order in time is lost; "left heavy" is the view to take.
    """
    numbers: dict[Frame, int] = {}
    profiles = []
    for of in samples:
        threads: dict[int, Counter[int]] = {}
        for at, thread, stack, used_s, _ in of.rows:
            if used_s and window.begin_s <= at <= window.end_s:
                threads.setdefault(thread, Counter())[stack] += used_s
        for thread, seconds in threads.items():
            drawn = [
                [numbers.setdefault(of.frames[frame], len(numbers)) for frame in reversed(of.stacks[stack])]
                for stack in seconds
            ]
            weights = list(seconds.values())
            profiles.append(
                {
                    "type": "sampled",
                    "name": f"{of.process}: {of.threads.get(thread, (str(thread), 0))[0]}",
                    "unit": "seconds",
                    "startValue": 0,
                    "endValue": sum(weights),
                    "samples": drawn,
                    "weights": weights,
                }
            )
    frames = [_frame(frame) for frame in numbers]
    return {
        "$schema": SCHEMA,
        "name": name,
        "exporter": "rayemu profile",
        "activeProfileIndex": 0,
        "shared": {"frames": frames},
        "profiles": profiles,
    }


def _frame(frame: Frame) -> dict[str, Any]:
    module, function, file, line = frame
    place = {"file": file, "line": line} if file else {}
    return {"name": f"{module}:{function}", **place}
