"""Panels of a figure: rows, names that look like formulas, numbers at a logarithmic axis."""

import io
import sys

import pytest
from PIL import Image

from slicemill.common.errors import ConfigError
from slicemill.common.panels import DOTS_PER_INCH, PANEL_INCHES, TITLE_INCHES, draw_panels, label_log_axis


def draw_line(axes):
    axes.plot([0, 1], [0, 1])
    axes.set(title="a line", xlabel="x", ylabel="y")


@pytest.mark.parametrize(
    ("panels", "columns", "title", "across", "down"),
    [(1, 3, "", 1, 1), (3, 3, "", 3, 1), (4, 3, "three in a row", 3, 2), (8, 4, "", 4, 2)],
)
def test_panels_fill_rows(panels, columns, title, across, down):
    picture = Image.open(io.BytesIO(draw_panels([draw_line] * panels, columns, title)))
    above = TITLE_INCHES if title else 0
    expected = PANEL_INCHES[0] * across * DOTS_PER_INCH, (PANEL_INCHES[1] * down + above) * DOTS_PER_INCH
    assert picture.size == pytest.approx(expected, abs=1)
    assert len(picture.convert("RGB").getcolors(2**16)) > 20


@pytest.mark.parametrize("name", ["$x$", r"$\broken{$ liver"])
def test_a_name_with_dollar_signs_is_no_formula(name):
    def draw(axes):
        draw_line(axes)
        axes.set(title=name, xlabel=name, ylabel=name)

    assert draw_panels([draw], title=name)


@pytest.mark.parametrize(
    ("low", "high", "among"),
    [(3, 9, {"3", "5", "7"}), (0.5, 200, {"0.5", "1", "10", "100", "200"}), (0.1, 1e4, {"0.1", "1", "1000"})],
)
def test_a_logarithmic_axis_has_plain_numbers(low, high, among):
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    label_log_axis(axes)
    figure.draw_without_rendering()
    assert among <= {label.get_text() for label in axes.get_xticklabels()}


def test_without_matplotlib_the_extra_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'slicemill\[ingest\]'"):
        draw_panels([draw_line])
