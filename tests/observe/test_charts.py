"""Charts are well-formed SVG whose ticks span the data."""

from xml.etree import ElementTree

import pytest

from sft_hydra.observe.charts import Series, line_chart, smooth, ticks


def test_a_chart_is_well_formed_and_draws_each_series() -> None:
    svg = line_chart([Series("a<b", [(0, 1.0), (10, 0.5)]), Series("c", [(0, 2.0), (10, 0.1)])], "loss & more")
    tree = ElementTree.fromstring(svg)
    assert len(tree.findall("path")) == 2
    assert [line.attrib["data-name"] for line in tree.findall("path")] == ["a<b", "c"]
    assert [line.attrib["data-points"] for line in tree.findall("path")] == ["0,1 10,0.5", "0,2 10,0.1"]


def test_long_series_are_thinned_but_keep_their_end() -> None:
    svg = line_chart([Series("a", [(i, float(i)) for i in range(100_000)])], "a")
    points = ElementTree.fromstring(svg).find("path").attrib["d"].split()  # type: ignore[union-attr]
    assert len(points) < 1000
    assert points[-1].startswith("L548.0,")


def test_nothing_to_draw_is_no_chart() -> None:
    assert line_chart([Series("a", [(0, 1.0)])], "a") == ""


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (3.2, 11.9), (-5.0, 5.0), (1e-6, 1e-2), (7.0, 7.0), (0.0, 1e9)])
def test_ticks_span_the_data(low: float, high: float) -> None:
    marks = ticks(low, high)
    assert marks[0] <= low + 1e-12
    assert marks[-1] >= high - 1e-9 * abs(high)
    assert 3 <= len(marks) <= 9


def test_smoothing_keeps_a_constant_and_follows_a_step() -> None:
    assert [y for _, y in smooth([(i, 3.0) for i in range(500)])] == pytest.approx([3.0] * 500)
    jump = smooth([(i, float(i >= 250)) for i in range(500)])
    assert jump[249][1] == 0.0
    assert jump[-1][1] > 0.99


def test_no_line_is_drawn_where_nothing_was_measured() -> None:
    points = [(i, 1.0) for i in range(100)] + [(i, 2.0) for i in range(900, 1000)]
    path = ElementTree.fromstring(line_chart([Series("a", points)], "a")).find("path").attrib["d"]  # type: ignore[union-attr]
    assert [part[0] for part in path.split()].count("M") == 2
