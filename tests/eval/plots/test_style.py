"""Series differ in colour and line style, also for readers who do not see all colours."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from laplace_kit.eval.plots import style


def test_the_first_series_differ_in_both_and_more_are_not_refused():
    num = len(style.SERIES)
    drawn = [style.series_style(series) for series in range(num**2)]
    assert len({color for color, _ in drawn[:num]}) == len({line for _, line in drawn[:num]}) == num
    assert len({*drawn}) == num**2
    assert style.series_style(num**2) == drawn[0]


def test_of_equal_curves_both_are_seen():
    ax = Figure().subplots()
    for series in range(len(style.SERIES)):
        style.curve(ax, np.arange(2.0), np.arange(2.0), str(series), series)
    solid = [line.get_linestyle() == "-" for line in ax.lines]
    assert solid.count(True) == 1
    lowest = min(ax.lines, key=lambda line: line.get_zorder())
    assert lowest is ax.lines[solid.index(True)]


@pytest.mark.parametrize("scale", [1e12, 1e-20])
def test_a_power_of_ten_stands_beside_the_legend(scale):
    figure = Figure(layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 1], [0, scale], label="observed")
    style.tidy(ax, legend=True)
    FigureCanvasAgg(figure).draw()
    power = ax.yaxis.get_offset_text()
    assert power.get_text().startswith("1e")
    assert not power.get_window_extent().overlaps(ax.get_legend().get_window_extent())
    assert power.get_window_extent().x0 >= 0


def test_matplotlib_is_loaded_when_first_used_and_pyplot_never():
    code = (
        "import sys, numpy as np\n"
        "from laplace_kit.eval import plots, report\n"
        "from laplace_kit.eval.report import regression_sections as sections\n"
        "assert not {'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "one = {'map': np.zeros(3)}\n"
        "measured = {'map': {'coverage_90': 1.0}}\n"
        "sections.coverage(np.ones(3), one, measured)\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
