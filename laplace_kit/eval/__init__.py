"""Predictives, draws of functions, calibration metrics, tuning and reports."""

from laplace_kit.eval import metrics as metrics
from laplace_kit.eval.functions import FunctionSample as FunctionSample
from laplace_kit.eval.functions import FunctionSamples as FunctionSamples
from laplace_kit.eval.functions import sample_functions as sample_functions
from laplace_kit.eval.joint import joint_moments as joint_moments
from laplace_kit.eval.moments import linearized_moments as linearized_moments
from laplace_kit.eval.outputs import Predictive as Predictive
from laplace_kit.eval.page import Report as Report
from laplace_kit.eval.predictive import Prediction as Prediction
from laplace_kit.eval.tune import Tuning as Tuning
