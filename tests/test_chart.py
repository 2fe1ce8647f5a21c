from __future__ import annotations

import math

import pytest

from daedap.evaluation.report import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Series, draw


def drawn(*values: float, wide: bool = False) -> Chart:
    chart = draw("손실", [Series("학습", [(10.0 * n, value) for n, value in enumerate(values, 1)])], wide=wide)
    assert chart
    return chart


def places(chart: Chart) -> list[tuple[float, float]]:
    pairs = chart.curves[0].path.removeprefix("M").split("L")
    return [(float(x), float(y)) for x, y in (pair.split() for pair in pairs)]


def test_points_lie_where_they_should() -> None:
    chart = drawn(4.0, 1.0, 2.0)
    assert [tick.text for tick in chart.up] == ["0", "1", "2", "3", "4"]
    assert (chart.up[0].at, chart.up[-1].at) == (HEIGHT - BOTTOM, TOP)
    (_, first), (_, second), (last, third) = places(chart)
    assert (first, last) == (TOP, WIDTH - RIGHT)
    assert second == pytest.approx(chart.up[1].at, abs=0.1)
    assert third == pytest.approx(chart.up[2].at, abs=0.1)


def test_a_scale_is_logarithmic_only_where_it_may_be() -> None:
    assert [tick.text for tick in drawn(2.0, 900.0, wide=True).up] == ["1", "10", "100", "1000"]
    assert [tick.text for tick in drawn(2.0, 900.0).up] == ["0", "500", "1000"]
    assert drawn(0.0, 900.0, wide=True).up[0].text == "0"


def test_a_long_run_makes_no_heavy_page() -> None:
    points = places(drawn(*(1 + n % 2 for n in range(100_000))))
    assert len(points) <= 300
    assert len({y for _, y in points}) == 1, "neighbours are put together at their mean"


def test_what_is_no_number_is_left_out() -> None:
    assert len(places(drawn(2.0, math.nan, 1.0, math.inf))) == 2
    assert draw("손실", [Series("학습", []), Series("dev", [(1, math.nan)])]) is None


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [1e-6, 1e-7], [3.0], [1e9, 2.0]])
def test_any_values_can_be_drawn(values: list[float]) -> None:
    for x, y in places(drawn(*values)):
        assert LEFT <= x <= WIDTH - RIGHT
        assert TOP <= y <= HEIGHT - BOTTOM


def test_dotted_series_show_their_values() -> None:
    chart = draw("손실", [Series("dev", [(9, 3.25), (18, 2.5)], dotted=True)])
    assert chart
    assert [told for _, _, told in chart.curves[0].dots] == ["3.250", "2.500"]
