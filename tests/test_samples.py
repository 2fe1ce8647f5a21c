from __future__ import annotations

from daedap.evaluation.run_record import choose
from daedap.runs import Json

ANSWER = "따뜻한 물로 씻고 일찍 주무세요."


def row(name: str, reply: str | None, place: float = 1.0) -> Json:
    replies = {} if reply is None else {"model": reply}
    return {"id": name, "answer": ANSWER, "replies": replies, "shares": {"model": {"mrr": [1 / place, 1.0]}}}


def test_the_likest_and_the_unlikest() -> None:
    rows = [row("far", "네"), row("same", ANSWER), row("near", "따뜻한 물로 씻어요."), row("unasked", None)]
    samples = choose(rows, count=1)
    assert [shown.row["id"] for shown in samples.good] == ["same"]
    assert [shown.row["id"] for shown in samples.bad] == ["far"]
    assert samples.good[0].likeness == 100


def test_the_bot_speaks_before_its_model() -> None:
    shares = {"model": {"mrr": [0.1, 1.0]}, "bot": {"mrr": [1.0, 1.0]}}
    said = {**row("one", "네"), "replies": {"model": "네", "bot": ANSWER}, "shares": shares}
    [shown] = choose([said]).good
    assert (shown.likeness, shown.place) == (100, 1)


def test_of_equal_likeness_the_better_rank_is_better() -> None:
    samples = choose([row("last", "", 20), row("middle", "", 3), row("first", "", 1)], count=1)
    assert (samples.good[0].row["id"], samples.bad[0].row["id"]) == ("first", "last")
    assert samples.bad[0].place == 20


def test_no_row_is_shown_twice() -> None:
    for size in range(6):
        samples = choose([row(str(n), ANSWER[:n]) for n in range(size)], count=4)
        ids = [shown.row["id"] for shown in (*samples.good, *samples.bad)]
        assert len(ids) == len(set(ids))
        assert len(ids) >= size - 1
