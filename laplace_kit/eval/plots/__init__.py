"""Calibration plots: plain functions that draw on given `Axes` and return them.

The colours are the colour-blind safe palette of Okabe and Ito; overlapping series also differ in
hatch or line style. The caller makes the figure: no function here creates one, imports matplotlib
or uses pyplot and its global state.
"""

from laplace_kit.eval.plots.classes import confusion_matrix as confusion_matrix
from laplace_kit.eval.plots.classes import precision_recall_curve as precision_recall_curve
from laplace_kit.eval.plots.classes import probability_reliability as probability_reliability
from laplace_kit.eval.plots.classification import bin_counts as bin_counts
from laplace_kit.eval.plots.classification import confidence_histogram as confidence_histogram
from laplace_kit.eval.plots.classification import entropy_scatter as entropy_scatter
from laplace_kit.eval.plots.classification import reliability_diagram as reliability_diagram
from laplace_kit.eval.plots.classification import risk_coverage_curve as risk_coverage_curve
from laplace_kit.eval.plots.detection import roc_curve as roc_curve
from laplace_kit.eval.plots.detection import score_histograms as score_histograms
from laplace_kit.eval.plots.regression import coverage_curve as coverage_curve
from laplace_kit.eval.plots.regression import deviation_scatter as deviation_scatter
from laplace_kit.eval.plots.regression import level_curve as level_curve
from laplace_kit.eval.plots.regression import pit_histogram as pit_histogram
from laplace_kit.eval.plots.regression import (
    predicted_against_observed as predicted_against_observed,
)
from laplace_kit.eval.plots.regression import predictive_band as predictive_band
from laplace_kit.eval.plots.reliability import corp_diagram as corp_diagram
from laplace_kit.eval.plots.reliability import (
    smooth_reliability_diagram as smooth_reliability_diagram,
)
