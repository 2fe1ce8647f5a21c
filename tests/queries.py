"""Questions as a bot takes them."""

from __future__ import annotations

from daedap.model.sentence_encoder import built_in_encoder
from daedap.retrieval.query import Query, encode_queries
from daedap.types import Pair


def encoded(*questions: str | Pair) -> list[Query]:
    """With vectors of the built-in encoder."""
    return encode_queries(questions, built_in_encoder())
