"""Metrics of predictions: plain functions of arrays that return means over examples.

Classification metrics take probabilities `(N, C)`, whose rows sum to one, and labels `y`: integers
`(N,)`, or one-hot or soft labels `(N, C)`. Metrics whose names begin with `binary` take the
probability of class 1, `(N,)`, instead; `from_binary` converts it for the others. Regression
metrics take means, variances or standard deviations, and targets, all of the same shape, `(N,)` or
`(N, *outputs)`; a variance or standard deviation may also be a scalar. Nothing else is broadcast.

Every metric takes example `weights` `(N,)`. Integer-valued weights are counts: a weight of three is
the same as repeating the example three times. All other weights are proportions, whose scale does
not matter. `bootstrap` computes a confidence interval for any metric.

All metrics work under `jax.jit` and accept anything that NumPy can read: arrays, lists, data
frames, tensors. If every floating-point argument is a host array and one of them is float64, the
metric is computed in float64, whatever JAX is set to, and the result is rounded to JAX's precision.
Otherwise the result has the arguments' dtype, float32 at least. A `ValueError` is raised for
inconsistent shapes and, where values are concrete, for invalid probabilities, labels, variances,
levels or weights. Under `jax.jit` values cannot be checked: there, labels out of range, NaNs and
invalid weights make the result NaN.
"""

from laplace_kit.eval.metrics.binary import binary_brier_decomposition as binary_brier_decomposition
from laplace_kit.eval.metrics.binary import binary_brier_score as binary_brier_score
from laplace_kit.eval.metrics.binary import binary_reliability_bins as binary_reliability_bins
from laplace_kit.eval.metrics.binary import from_binary as from_binary
from laplace_kit.eval.metrics.bins import ReliabilityBins as ReliabilityBins
from laplace_kit.eval.metrics.bins import equal_mass_bins as equal_mass_bins
from laplace_kit.eval.metrics.bins import reliability_bins as reliability_bins
from laplace_kit.eval.metrics.brier import BrierDecomposition as BrierDecomposition
from laplace_kit.eval.metrics.brier import brier_decomposition as brier_decomposition
from laplace_kit.eval.metrics.brier import brier_score as brier_score
from laplace_kit.eval.metrics.calibration import (
    adaptive_calibration_error as adaptive_calibration_error,
)
from laplace_kit.eval.metrics.calibration import (
    classwise_calibration_error as classwise_calibration_error,
)
from laplace_kit.eval.metrics.calibration import (
    debiased_calibration_error as debiased_calibration_error,
)
from laplace_kit.eval.metrics.calibration import (
    expected_calibration_error as expected_calibration_error,
)
from laplace_kit.eval.metrics.calibration import (
    maximum_calibration_error as maximum_calibration_error,
)
from laplace_kit.eval.metrics.calibration import (
    squared_calibration_error as squared_calibration_error,
)
from laplace_kit.eval.metrics.classification import accuracy as accuracy
from laplace_kit.eval.metrics.classification import (
    negative_log_likelihood as negative_log_likelihood,
)
from laplace_kit.eval.metrics.classification import top_k_accuracy as top_k_accuracy
from laplace_kit.eval.metrics.detection import ROCCurve as ROCCurve
from laplace_kit.eval.metrics.detection import aupr as aupr
from laplace_kit.eval.metrics.detection import auroc as auroc
from laplace_kit.eval.metrics.detection import fpr95 as fpr95
from laplace_kit.eval.metrics.detection import roc_curve as roc_curve
from laplace_kit.eval.metrics.intervals import interval_coverage as interval_coverage
from laplace_kit.eval.metrics.intervals import interval_width as interval_width
from laplace_kit.eval.metrics.pit import UniformityTest as UniformityTest
from laplace_kit.eval.metrics.pit import pit_gaussian as pit_gaussian
from laplace_kit.eval.metrics.pit import pit_samples as pit_samples
from laplace_kit.eval.metrics.pit import pit_uniformity_test as pit_uniformity_test
from laplace_kit.eval.metrics.pit import quantile_calibration_error as quantile_calibration_error
from laplace_kit.eval.metrics.regression import chi_squared as chi_squared
from laplace_kit.eval.metrics.regression import crps_gaussian as crps_gaussian
from laplace_kit.eval.metrics.regression import crps_samples as crps_samples
from laplace_kit.eval.metrics.regression import energy_score as energy_score
from laplace_kit.eval.metrics.regression import gaussian_nll as gaussian_nll
from laplace_kit.eval.metrics.regression import mae as mae
from laplace_kit.eval.metrics.regression import r_squared as r_squared
from laplace_kit.eval.metrics.regression import rmse as rmse
from laplace_kit.eval.metrics.regression import sharpness as sharpness
from laplace_kit.eval.metrics.resampling import Interval as Interval
from laplace_kit.eval.metrics.resampling import bootstrap as bootstrap
from laplace_kit.eval.metrics.resampling import bootstrap_two_sample as bootstrap_two_sample
from laplace_kit.eval.metrics.scores import entropy_score as entropy_score
from laplace_kit.eval.metrics.scores import max_probability_score as max_probability_score
from laplace_kit.eval.metrics.selective import RiskCoverageCurve as RiskCoverageCurve
from laplace_kit.eval.metrics.selective import augrc as augrc
from laplace_kit.eval.metrics.selective import aurc as aurc
from laplace_kit.eval.metrics.selective import risk_coverage_curve as risk_coverage_curve
