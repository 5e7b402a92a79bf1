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
    from laplace_kit.eval.calibration import AdversarialCalibration as AdversarialCalibration
    from laplace_kit.eval.calibration import CalibrationTests as CalibrationTests
    from laplace_kit.eval.calibration import CorpReliability as CorpReliability
    from laplace_kit.eval.calibration import HypothesisTest as HypothesisTest
    from laplace_kit.eval.calibration import SmoothReliability as SmoothReliability
    from laplace_kit.eval.calibration import UniformityTests as UniformityTests
    from laplace_kit.eval.calibration import adversarial_calibration as adversarial_calibration
    from laplace_kit.eval.calibration import calibration_tests as calibration_tests
    from laplace_kit.eval.calibration import corp_reliability as corp_reliability
    from laplace_kit.eval.calibration import smooth_reliability as smooth_reliability
    from laplace_kit.eval.calibration import uniformity_tests as uniformity_tests
    from laplace_kit.eval.class_maps import AffineScaling as AffineScaling
    from laplace_kit.eval.class_maps import BetaCalibration as BetaCalibration
    from laplace_kit.eval.class_maps import IsotonicCalibration as IsotonicCalibration
    from laplace_kit.eval.class_maps import VennAbers as VennAbers
    from laplace_kit.eval.conformal import ConformalIntervals as ConformalIntervals
    from laplace_kit.eval.conformal import ConformalSets as ConformalSets
    from laplace_kit.eval.conformal import conformal_intervals as conformal_intervals
    from laplace_kit.eval.conformal import conformal_sets as conformal_sets
    from laplace_kit.eval.conformal_cross import (
        cross_conformal_intervals as cross_conformal_intervals,
    )
    from laplace_kit.eval.conformal_folds import FoldPredictions as FoldPredictions
    from laplace_kit.eval.conformal_folds import fold_predictions as fold_predictions
    from laplace_kit.eval.conformal_scores import RAPS as RAPS
    from laplace_kit.eval.conformal_shift import ShiftedIntervals as ShiftedIntervals
    from laplace_kit.eval.conformal_shift import ShiftedSets as ShiftedSets
    from laplace_kit.eval.conformal_shift import shifted_intervals as shifted_intervals
    from laplace_kit.eval.conformal_shift import shifted_sets as shifted_sets
    from laplace_kit.eval.evaluation import evaluate as evaluate
    from laplace_kit.eval.functions import FunctionSample as FunctionSample
    from laplace_kit.eval.functions import FunctionSamples as FunctionSamples
    from laplace_kit.eval.functions import sample_functions as sample_functions
    from laplace_kit.eval.groups import Gap as Gap
    from laplace_kit.eval.groups import GroupMetrics as GroupMetrics
    from laplace_kit.eval.groups import by_group as by_group
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
    from laplace_kit.eval.number_maps import PartScaling as PartScaling
    from laplace_kit.eval.number_maps import QuantileRecalibration as QuantileRecalibration
    from laplace_kit.eval.number_maps import RecalibratedQuantiles as RecalibratedQuantiles
    from laplace_kit.eval.outputs import Predictive as Predictive
    from laplace_kit.eval.predictive import Prediction as Prediction
    from laplace_kit.eval.predictive import predict as predict
    from laplace_kit.eval.predictive import predict_at_mode as predict_at_mode
    from laplace_kit.eval.quantiles import pit as pit
    from laplace_kit.eval.recalibration import StdScaling as StdScaling
    from laplace_kit.eval.recalibration import TemperatureScaling as TemperatureScaling
    from laplace_kit.eval.recalibration import recalibrate as recalibrate
    from laplace_kit.eval.report import Report as Report
    from laplace_kit.eval.risk import RiskControl as RiskControl
    from laplace_kit.eval.risk import conformal_risk as conformal_risk
    from laplace_kit.eval.risk import control_risk as control_risk
    from laplace_kit.eval.risk import learn_then_test as learn_then_test
    from laplace_kit.eval.slices import Slice as Slice
    from laplace_kit.eval.slices import find_slices as find_slices

__getattr__, __dir__ = on_first_use(__name__)
