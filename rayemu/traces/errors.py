"""The one error of traces and plans."""

from __future__ import annotations

_MESSAGE = 1000  # characters


class TraceError(ValueError):
    """A trace or plan that cannot be read or written: says which file, what is wrong and what to do.

    In one line of printable characters, whatever names and values the file holds.
    """

    def __init__(self, message: str) -> None:
        text = " ".join(message.split())
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        super().__init__(text if len(text) <= _MESSAGE else f"{text[:_MESSAGE]} ...")
