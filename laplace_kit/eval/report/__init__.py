"""Calibration reports: from predictions and targets to a page, plots and `metrics.json`.

A report does not depend on posteriors: it takes the predictions of one or several named predictors,
such as "map" and "laplace", for the same examples. Every number shown is in `metrics.json`.
"""

from laplace_kit.eval.report.classification import classification_report as classification_report
from laplace_kit.eval.report.distributions import distributions_of as distributions_of
from laplace_kit.eval.report.files import StoredPredictions as StoredPredictions
from laplace_kit.eval.report.files import read_predictions as read_predictions
from laplace_kit.eval.report.files import write_predictions as write_predictions
from laplace_kit.eval.report.page import PosteriorCard as PosteriorCard
from laplace_kit.eval.report.page import Report as Report
from laplace_kit.eval.report.predictions import ClassPredictions as ClassPredictions
from laplace_kit.eval.report.predictions import Distributions as Distributions
from laplace_kit.eval.report.predictions import RegressionPredictions as RegressionPredictions
from laplace_kit.eval.report.regression import regression_report as regression_report
from laplace_kit.eval.report.suites import classification_metrics as classification_metrics
from laplace_kit.eval.report.suites import regression_metrics as regression_metrics
