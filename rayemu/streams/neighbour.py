"""Tokens that resemble their neighbours, as in text about something: experts repeat from row to row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rayemu.streams.embedding import TOKENS, check_common, check_count, embed, require


@dataclass(frozen=True)
class Neighbour:
    """Tokens of topics, each with probability `repeat` of its predecessor's topic, else of any.

    Ids that are equal modulo `topics` are a topic: their embeddings correlate by `likeness`, so that they
    share most of their experts. Two neighbours share an expert with probability repeat * s + (1 - repeat) * b
    with b that of any two tokens and s that of two of a topic; 67 % for 2 of 8 experts as it stands. All
    topics, and all ids of a topic, are equally frequent: with many topics the load is nearly level.
    `vocabulary` is the number of ids, `context` how much of the previous activation stays in the next (0 to
    below 1).
    """

    vocabulary: int = 32768
    topics: int = 64
    repeat: float = 0.4
    likeness: float = 0.9
    context: float = 0.0

    def __post_init__(self) -> None:
        check_common(self.vocabulary, self.context)
        check_count("topics", self.topics, "topics")
        require(0 <= self.repeat <= 1, "repeat", self.repeat, "0 to 1")
        require(0 <= self.likeness <= 1, "likeness", self.likeness, "0 to 1")

    @property
    def _topics(self) -> int:
        return min(self.topics, self.vocabulary)

    def tokens(self, batch_tokens: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of token ids [T] int64."""
        rng = np.random.default_rng([seed, TOKENS])
        topics, topic = self._topics, 0
        per_topic = self.vocabulary // topics  # ids beyond topics * per_topic do not occur
        begins = True
        while True:
            draws = rng.random((batch_tokens, 3))  # one row a token, wherever the batch is cut
            fresh = draws[:, 0] >= self.repeat  # [T]
            if begins and batch_tokens:
                fresh[0], begins = True, False
            drawn = (draws[:, 1] * topics).astype(np.int64)  # [T]
            last_fresh = np.maximum.accumulate(np.where(fresh, np.arange(batch_tokens), -1))
            of_token = np.where(last_fresh < 0, topic, drawn[last_fresh])  # [T] topics
            if batch_tokens:
                topic = int(of_token[-1])
            yield (draws[:, 2] * per_topic).astype(np.int64) * topics + of_token

    def batches(self, batch_tokens: int, d_model: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of activations x [T, D] float32.

        A token's embedding is sqrt(likeness) of its topic's and sqrt(1 - likeness) of its own. Mixing in what
        came before is linear, so the two can be mixed apart.
        """
        topics, size = self._topics, self.vocabulary
        topic_ids = (size + tokens % topics for tokens in self.tokens(batch_tokens, seed))
        of_topics = embed(topic_ids, size + topics, d_model, seed, self.context)
        of_tokens = embed(self.tokens(batch_tokens, seed), size, d_model, seed, self.context)
        like, own = np.float32(math.sqrt(self.likeness)), np.float32(math.sqrt(1 - self.likeness))
        for shared, x in zip(of_topics, of_tokens, strict=True):
            x *= own
            shared *= like
            x += shared
            yield x
