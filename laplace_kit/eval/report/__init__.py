"""Calibration reports: predictions and targets go in; a page, plots and `metrics.json` come out.

A report knows nothing of posteriors: it sees what one or several named predictors, such as "map"
and "laplace", say about the same examples. Every number it shows is one of `metrics.json`.
"""

from laplace_kit.eval.report.classification import classification_report as classification_report
from laplace_kit.eval.report.page import PosteriorCard as PosteriorCard
from laplace_kit.eval.report.page import Report as Report
from laplace_kit.eval.report.predictions import ClassPredictions as ClassPredictions
from laplace_kit.eval.report.predictions import RegressionPredictions as RegressionPredictions
from laplace_kit.eval.report.regression import regression_report as regression_report
from laplace_kit.eval.report.suites import classification_metrics as classification_metrics
from laplace_kit.eval.report.suites import regression_metrics as regression_metrics
