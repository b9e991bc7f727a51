"""What adaptive policies go by: how fast a link and the coders turned out to be."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from operator import itemgetter

import numpy as np

from .codec import Codec
from .errors import CodecError

WINDOW = 64  # frames that tell of a link
FRESH = 16  # frames between two looks at them
ENOUGH = 32  # frames a second that are timed: more would cost more and tell no more
DOUBTS = 4  # looks of which the highest rate counts: in doubt a link is fast
LEAST = 2  # looks before anything is said
NOISE_S = 2e-4  # by which even the soonest of many frames differ on a busy machine
SAMPLE_ROWS = 64
FORGET = 1 / 32
BUSY = 0.85  # share of the time that processors work when they have none to spare
FREE = 0.7  # share of a link up to which it holds nobody up who has other work
CROWDED_S = 1.5e-3  # a queue, of the link or of a busy receiver, hides the link's own rate
FASTEST = 1e12  # bytes per second: where delays do not grow with size


class Line:
    """seconds = a + b * bytes, both not negative, fitted to what was seen lately (weighted least squares)."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, nbytes: float, seconds: float) -> None:
        """Take in one more point."""
        keep = 1 - FORGET
        self._weight = keep * self._weight + 1
        self._x = keep * self._x + nbytes
        self._y = keep * self._y + seconds
        self._xx = keep * self._xx + nbytes * nbytes
        self._xy = keep * self._xy + nbytes * seconds

    def at(self, nbytes: float) -> float:
        """Return seconds for so many bytes; 0 before the first point."""
        if not self._weight:
            return 0.0
        x, y = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - x * x
        if variance <= 1e-6 * x * x:  # all of one size
            return y * nbytes / x if x else y
        slope = min(max(0.0, (self._xy / self._weight - x * y) / variance), y / x)
        return y + slope * (nbytes - x)


class Coders:
    """Time and size of codecs for float32 rows: sampled at first, then as measured in use.

    `clock` gives the processor time of this thread in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._times: dict[tuple[str, bool], Line] = {}  # (codec's name, decoding)
        self._ratio: dict[str, float] = {}  # encoded bytes per byte; inf for what cannot carry such rows

    def sample(self, codec: Codec, rows: np.ndarray) -> None:
        """Try a codec on some of rows [n, D], which are not empty; its times count only at first."""
        first = not self.knows(codec)
        try:
            for count in (SAMPLE_ROWS // 16, SAMPLE_ROWS) if first else (SAMPLE_ROWS,):
                some = np.ascontiguousarray(rows[:: max(1, len(rows) // count)][:count])
                began = self.clock()
                encoded = codec.encode(some)
                between = self.clock()
                codec.decode(*encoded, some.shape)
                if first and codec.name != "raw":  # whose views take no time
                    self.used(codec, some.nbytes, between - began, False)
                    self.used(codec, some.nbytes, self.clock() - between, True)
            self._ratio[codec.name] = encoded.nbytes / some.nbytes
        except CodecError:
            self._ratio[codec.name] = float("inf")

    def used(self, codec: Codec, nbytes: int, seconds: float, decoding: bool) -> None:
        """Take in how long it took to encode or decode rows of `nbytes`."""
        self._times.setdefault((codec.name, decoding), Line()).add(nbytes, seconds)

    def knows(self, codec: Codec) -> bool:
        """Tell whether the codec was sampled."""
        return codec.name in self._ratio

    def ratio(self, codec: Codec) -> float:
        """Return encoded bytes per byte."""
        return self._ratio[codec.name]

    def seconds(self, codec: Codec, nbytes: int) -> float:
        """Return how long encoding and decoding rows of `nbytes` take."""
        lines = [self._times.get((codec.name, decoding)) for decoding in (False, True)]
        return sum(line.at(nbytes) for line in lines if line is not None)


class Gauge:
    """One link as a module sees it. Both directions are taken to be alike.

    `rng` draws which frames are timed.
    """

    def __init__(self, coders: Coders, rng: np.random.Generator) -> None:
        self.coders, self.rng = coders, rng
        self._frames: deque[tuple[int, float]] = deque(maxlen=WINDOW)  # (bytes, seconds)
        self._rates: deque[float] = deque(maxlen=DOUBTS)
        self._fresh = 0
        self.frames = self.offered = 0  # given to choosers, and bytes of their rows, as they estimate both
        self.every = 1  # frames for one that is timed
        self._measured = 0, 0  # frames and bytes at the last measurement
        self._load = 0.0  # bytes of rows per second
        self._busy = 0.0

    def measured(self, seconds: float, busy: float) -> None:
        """Take in that `seconds` passed, in the part `busy` of which (0 to 1) processors had work."""
        frames, offered = self._measured
        self._measured = self.frames, self.offered
        self._load += ((self.offered - offered) / seconds - self._load) / 2
        self._busy += (busy - self._busy) / 2
        self.every = max(1, round((self.frames - frames) / seconds / ENOUGH))

    def hidden(self, rate: float) -> bool:
        """Tell whether the link's time passes behind work: coders would only add to that."""
        return self._busy > BUSY and self._load < FREE * rate

    def arrived(self, nbytes: int, seconds: float) -> None:
        """Take in that a frame took so long from its sender's hands into ours."""
        self._frames.append((nbytes, max(seconds, 1e-6)))  # a clock may be set back
        self._fresh += 1
        if self._fresh == FRESH:
            self._fresh = 0
            self._look()

    @property
    def rate(self) -> float | None:
        """Bytes per second; None before it can be told."""
        return max(self._rates) if len(self._rates) >= LEAST else None

    def _look(self) -> None:
        """Tell the rate from the frames seen lately.

        A frame may wait for a busy receiver, or behind others, whatever its size: among many, the soonest of
        the large ones took longer than the soonest of the small ones only by what the link is slow. When
        even the soonest had to wait, what was known stays; if nothing was, the frame itself is the measure.
        """
        frames = sorted(self._frames)
        half = len(frames) // 2
        small, large = (min(part, key=itemgetter(1)) for part in (frames[:half], frames[half:]))
        if small[1] > CROWDED_S:
            if len(self._rates) < LEAST:
                self._rates.append(max(nbytes / seconds for nbytes, seconds in frames))
        elif large[0] > 1.25 * small[0]:
            extra = large[1] - small[1] - NOISE_S
            self._rates.append(min(FASTEST, (large[0] - small[0]) / extra) if extra > 0 else FASTEST)

    def seconds(self, codec: Codec, nbytes: int, rate: float) -> float:
        """Predict the time that rows of `nbytes` take through the coders and over a link of this rate."""
        return self.coders.ratio(codec) * nbytes / rate + self.coders.seconds(codec, nbytes)
