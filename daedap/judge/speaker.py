"""What the judge asks of a model; whoever answers to these two calls can be judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from daedap.pair import Pair, Spoken


class Speaker(Protocol):
    """A model under test."""

    def log2_probability(self, pairs: Sequence[Pair], /) -> NDArray[np.float64]:
        """(pairs, 2): log2 p summed over the answer's tokens and its end, and how many tokens these are."""
        ...

    def reply(self, pairs: Sequence[Pair], /) -> Sequence[Spoken]:
        """One greedy reply to each pair's question and the turns before it; the answers are not looked at."""
        ...
