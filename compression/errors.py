"""The two refusals: of bad input by `make_codec` and `encode`, of bad bytes by `unpack` and `decode`."""

from __future__ import annotations


class CodecError(ValueError):
    """A codec cannot be built as asked, or cannot carry the rows it was given.

    `row` is the number of the first offending row, or None when the error is not about one row.
    """

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class WireError(ValueError):
    """Received bytes are not what they claim to be: cut, altered, spliced, or of another version."""
