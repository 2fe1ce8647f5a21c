"""What the judge asks of a system under test; whoever answers to the calls of one of these can be judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from daedap.pair import Pair, Reply, Spoken


class Speaker(Protocol):
    """A model: it speaks for itself, and knows how likely an answer is."""

    def log2_probability(self, pairs: Sequence[Pair], /) -> NDArray[np.float64]:
        """(pairs, 2): log2 p summed over the answer's tokens and its end, and how many tokens these are."""
        ...

    def reply(self, pairs: Sequence[Pair], /) -> Sequence[Spoken]:
        """One greedy reply to each pair's question and the turns before it; the answers are not looked at."""
        ...


class Answerer(Protocol):
    """A bot: it answers by whatever means, and prefers one answer to another."""

    def answers(self, pairs: Sequence[Pair], /) -> Sequence[Reply]:
        """One reply to each pair's question and the turns before it, as a user would get it."""
        ...

    def preferences(self, pairs: Sequence[Pair], candidates: Sequence[Sequence[str]], /) -> NDArray[np.float64]:
        """(pairs, candidates): how well each candidate answers its question, more is better.

        All lists of candidates are equally long.
        """
        ...
