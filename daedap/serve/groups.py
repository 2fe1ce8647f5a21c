"""Questions that mean about the same, put together: what the owner answers once, for all of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import numpy as np

from daedap.model.sentence_encoder import built_in_encoder
from daedap.runs import Json
from daedap.types import Float32Array

ALIKE = 0.5
"""Cosine of sentence vectors from which questions belong together."""
_VECTORS = 4000
"""Questions whose vectors are remembered."""
_known: OrderedDict[str, Float32Array] = OrderedDict()
_lock = Lock()


def grouped(entries: Sequence[Json]) -> list[Json]:
    """Entries ("question", "count", …), the most frequent first → groups around their most frequent question.

    A question joins the nearest group that is near enough. Groups with the most askings come first.
    """
    leaders: list[Float32Array] = []
    groups: list[list[Json]] = []
    for entry, vector in zip(entries, _vectors([entry["question"] for entry in entries]), strict=True):
        similarities = np.array(leaders) @ vector if leaders else np.zeros(0)
        if leaders and similarities.max() >= ALIKE:
            groups[int(similarities.argmax())].append(entry)
        else:
            leaders.append(vector)
            groups.append([entry])
    return sorted((_group(group) for group in groups), key=lambda group: (-group["count"], group["question"]))


def _group(entries: Sequence[Json]) -> Json:
    leader = entries[0]
    questions = [{name: entry[name] for name in ("question", "count", "reply")} for entry in entries]
    return {
        "id": leader["reply"],
        "question": leader["question"],
        "count": sum(entry["count"] for entry in entries),
        "people": max(entry["people"] for entry in entries),
        "last": max(entry["last"] for entry in entries),
        "reason": "bad" if any(entry["reason"] == "bad" for entry in entries) else "fallback",
        "questions": questions,
        "nearest": leader["nearest"],
    }


def _vectors(questions: Sequence[str]) -> list[Float32Array]:
    """Sentence vectors, computed once for each question."""
    with _lock:
        if new := [question for question in dict.fromkeys(questions) if question not in _known]:
            _known.update(zip(new, built_in_encoder().encode(new), strict=True))
        result = [_known[question] for question in questions]
        while len(_known) > max(_VECTORS, len(questions)):
            _known.popitem(last=False)
        return result
