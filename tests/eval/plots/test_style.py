"""Series differ in colour and line style, also for readers who do not see all colours."""

import subprocess
import sys

from laplace_kit.eval.plots import style


def test_the_first_series_differ_in_both_and_more_are_not_refused():
    drawn = [style.series_style(series) for series in range(len(style.SERIES))]
    assert len({color for color, _ in drawn}) == len({line for _, line in drawn}) == len(drawn)
    assert style.series_style(len(drawn)) == drawn[0]


def test_matplotlib_is_loaded_when_first_used_and_pyplot_never():
    code = (
        "import sys, numpy as np\n"
        "from laplace_kit.eval import plots, report\n"
        "from laplace_kit.eval.report import regression_sections as sections\n"
        "assert not {'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "one = {'map': np.zeros(3)}\n"
        "measured = {'map': {'coverage_90': 1.0}}\n"
        "sections.coverage(one, {'map': np.ones(3)}, np.ones(3), measured)\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
