"""Predictives, draws of functions, calibration metrics and reports."""

from typing import TYPE_CHECKING

from laplace_kit.lazy import on_first_use

if TYPE_CHECKING:
    from laplace_kit.eval import metrics as metrics
    from laplace_kit.eval import plots as plots
    from laplace_kit.eval import report as report
    from laplace_kit.eval.acquisition import acquire as acquire
    from laplace_kit.eval.attribution import Influence as Influence
    from laplace_kit.eval.attribution import influence as influence
    from laplace_kit.eval.batches import predict_batches as predict_batches
    from laplace_kit.eval.batches import predict_over as predict_over
    from laplace_kit.eval.batches import split as split
    from laplace_kit.eval.conformal import ConformalIntervals as ConformalIntervals
    from laplace_kit.eval.conformal import ConformalSets as ConformalSets
    from laplace_kit.eval.conformal import conformal_intervals as conformal_intervals
    from laplace_kit.eval.conformal import conformal_sets as conformal_sets
    from laplace_kit.eval.evaluation import evaluate as evaluate
    from laplace_kit.eval.functions import FunctionSample as FunctionSample
    from laplace_kit.eval.functions import FunctionSamples as FunctionSamples
    from laplace_kit.eval.functions import sample_functions as sample_functions
    from laplace_kit.eval.joint import joint_moments as joint_moments
    from laplace_kit.eval.leaving_out import LeaveOneOut as LeaveOneOut
    from laplace_kit.eval.leaving_out import SuspiciousLabels as SuspiciousLabels
    from laplace_kit.eval.leaving_out import leave_one_out as leave_one_out
    from laplace_kit.eval.leaving_out import suspicious_labels as suspicious_labels
    from laplace_kit.eval.link import Link as Link
    from laplace_kit.eval.link import LinkFunction as LinkFunction
    from laplace_kit.eval.link import bernoulli_logits as bernoulli_logits
    from laplace_kit.eval.link import bernoulli_probabilities as bernoulli_probabilities
    from laplace_kit.eval.link import class_logits as class_logits
    from laplace_kit.eval.link import class_probabilities as class_probabilities
    from laplace_kit.eval.moments import linearized_moments as linearized_moments
    from laplace_kit.eval.outputs import Predictive as Predictive
    from laplace_kit.eval.predictive import Prediction as Prediction
    from laplace_kit.eval.predictive import predict as predict
    from laplace_kit.eval.predictive import predict_at_mode as predict_at_mode
    from laplace_kit.eval.quantiles import pit as pit
    from laplace_kit.eval.recalibration import StdScaling as StdScaling
    from laplace_kit.eval.recalibration import TemperatureScaling as TemperatureScaling
    from laplace_kit.eval.recalibration import recalibrate as recalibrate
    from laplace_kit.eval.report import Report as Report

__getattr__, __dir__ = on_first_use(__name__)
