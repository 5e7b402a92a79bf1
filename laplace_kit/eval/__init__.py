"""Predictives, calibration metrics, tuning and reports."""

from laplace_kit.eval import metrics as metrics
from laplace_kit.eval.page import Report as Report
from laplace_kit.eval.predictive import Predictive as Predictive
