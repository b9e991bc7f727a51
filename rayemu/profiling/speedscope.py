"""Figures as a file for https://www.speedscope.app, which draws flame graphs from it in the browser."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SCHEMA = "https://www.speedscope.app/file-format-schema.json"

Stack = tuple[str, ...]  # from the outermost function in


def speedscope(name: str, work: Iterable[tuple[str, str, Stack, float]]) -> dict[str, Any]:
    """The file's content: one profile per process and thread, in it the processor seconds of each stack.

    `work` has process, thread, stack and seconds. A stack is one sample, however often it was there, so there
    is no order in time: "left heavy" is the view to take.
    """
    frames: dict[str, int] = {}
    profiles: dict[str, dict[str, Any]] = {}
    for process, thread, stack, seconds in work:
        if seconds <= 0:
            continue
        title = f"{process}: {thread}"
        one = profiles.setdefault(
            title, {"type": "sampled", "name": title, "unit": "seconds", "startValue": 0}
        )
        drawn = [frames.setdefault(frame, len(frames)) for frame in stack]
        one.setdefault("samples", []).append(drawn)
        one.setdefault("weights", []).append(seconds)
    return {
        "$schema": SCHEMA,
        "name": name,
        "exporter": "rayemu profile",
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": frame} for frame in frames]},
        "profiles": [{**one, "endValue": sum(one["weights"])} for one in profiles.values()],
    }
