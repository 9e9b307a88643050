"""Charts as SVG: points where they belong, text escaped, axes in round numbers."""

import re
from xml.etree import ElementTree

import pytest

from bat_ui.web.charts import Mark, Series, _ticks, line_chart, smoothed


def svg_of(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart).find("svg")


def test_higher_values_are_drawn_higher_and_later_ones_further_right():
    chart = line_chart([Series("a", [(0, 1.0), (1, 3.0), (2, 2.0)], "a")], x_label="x", y_label="y", description="d")
    points = [tuple(map(float, p.split(","))) for p in svg_of(chart).find("polyline").get("points").split()]
    assert points[0][0] < points[1][0] < points[2][0]
    assert points[1][1] < points[2][1] < points[0][1]


def test_a_mark_lies_on_its_point():
    chart = line_chart(
        [Series("", [(0, 1.0), (4, 0.5)], "a")], x_label="x", y_label="y", description="d", marks=[Mark(4, 0.5, "here")]
    )
    last = svg_of(chart).find("polyline").get("points").split()[-1].split(",")
    circle = svg_of(chart).find("circle")
    assert [circle.get("cx"), circle.get("cy")] == last


@pytest.mark.parametrize("x, points", [(1, [(0, 1.0), (1, 0.2), (9, 0.6)]), (9, [(0, 0.9), (8, 0.5), (9, 0.1)])])
def test_a_marks_label_lies_above_the_line(x, points):
    mark = Mark(x, dict(points)[x], "40 taken, as suggested")
    svg = svg_of(line_chart([Series("", points, "a")], x_label="x", y_label="y", description="d", marks=[mark]))
    label = next(text for text in svg.findall("text") if text.get("class") == "note")
    line = [tuple(map(float, p.split(","))) for p in svg.find("polyline").get("points").split()]
    begin, width = float(label.get("x")), 150 * (1 if label.get("text-anchor") == "start" else -1)
    for part in range(11):
        at = begin + width * part / 10
        (x0, y0), (x1, y1) = next(pair for pair in zip(line, line[1:]) if pair[0][0] <= at <= pair[1][0])
        assert float(label.get("y")) < y0 + (y1 - y0) * (at - x0) / (x1 - x0)


def test_labels_cannot_bring_markup():
    chart = line_chart([Series("<b>", [(0, 1), (1, 2)], "a")], x_label="<i>", y_label="&", description='"><script>')
    assert "<script>" not in chart and "<i>" not in chart and svg_of(chart).get("aria-label") == '"><script>'


@pytest.mark.parametrize("low, high", [(0, 1), (0, 0.037), (0, 1234), (3, 3), (0.2, 0.9)])
def test_ticks_cover_the_values_in_few_equal_steps(low, high):
    ticks = _ticks(low, high, 4)
    steps = {round(b - a, 9) for a, b in zip(ticks, ticks[1:])}
    assert ticks[0] <= low and ticks[-1] >= high and len(steps) <= 1 and len(ticks) <= 7


@pytest.mark.parametrize("most", [1, 3, 12, 40, 90, 400])
def test_what_is_counted_has_whole_ticks(most):
    assert all(tick == int(tick) for tick in _ticks(0, most, 5, whole=True))


def test_no_points_make_no_chart():
    assert line_chart([], x_label="x", y_label="y", description="d") == ""


def test_smoothing_keeps_a_constant_and_starts_at_the_first_value():
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)
    assert smoothed([4.0, 0.0])[0] == pytest.approx(4.0) and 0 < smoothed([4.0, 0.0])[1] < 4


def test_a_chart_asks_nothing_of_any_host():
    chart = line_chart([Series("a", [(0, 1), (1, 2)], "a")], x_label="x", y_label="y", description="d")
    assert not re.search(r"https?://|url\(", chart)
