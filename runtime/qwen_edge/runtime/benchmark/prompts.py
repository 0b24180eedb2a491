"""Prompts to measure with: random ids, of which nothing can be reused from one to the next."""

import numpy as np


class RandomPrompts:
    """Makes prompts; the same ones in every run, no two alike.

    Args:
        vocab_size: Ids lie below it.

    State:
        Each prompt is a new one.
    """

    def __init__(self, vocab_size: int) -> None:
        self._generator = np.random.default_rng(0)
        self._vocab_size = vocab_size

    def make(self, num_tokens: int) -> list[int]:
        """Return a new prompt."""
        return [int(i) for i in self._generator.integers(0, self._vocab_size, num_tokens)]
