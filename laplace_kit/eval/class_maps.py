"""Maps of class probabilities that recalibrate them: affine, beta, isotonic, Venn-Abers.

They are fitted in NumPy and SciPy on the host, in float64, and applied there.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, PyTree
from scipy import optimize, special

from laplace_kit import tree
from laplace_kit.eval import given
from laplace_kit.eval.evaluation import observed_entries
from laplace_kit.eval.given import Predictions
from laplace_kit.eval.observed import checked_targets
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.statistics.isotonic import IsotonicPairs, isotonic_pairs, isotonic_steps
from laplace_kit.eval.statistics.weighting import effective_size
from laplace_kit.host import fetch
from laplace_kit.targets.binary import BinaryTargets
from laplace_kit.targets.classes import ClassTargets
from laplace_kit.tree import pytree_dataclass

_SMALLEST = float(np.finfo(np.float32).tiny)
# Keeps maps of labels that a map predicts perfectly finite: a normal prior of deviation 30.
_PENALTY = 1e-3


@pytree_dataclass()
class AffineScaling:
    r"""The probabilities $\mathrm{softmax}(W \log p + b)$.

    `weight` W is `(C, C)`, or `(C,)` for a diagonal one, and `bias` b is `(C,)`.
    """

    weight: Float[np.ndarray, "*square"]
    bias: Float[np.ndarray, " C"]

    def __call__(self, predictions: Predictions) -> Predictions:
        """Return the predictions with other probabilities; see `TemperatureScaling`."""
        return mapped(predictions, lambda logs: special.softmax(self._logits(logs), axis=1))

    def _logits(self, logs: Float[np.ndarray, "M C"]) -> Float[np.ndarray, "M C"]:
        weight = fetch(self.weight)
        return (logs @ weight.T if weight.ndim == 2 else logs * weight) + fetch(self.bias)


@pytree_dataclass()
class BetaCalibration:
    r"""The probability $\sigma(a \log p - b \log(1 - p) + c)$ of each class, normalised.

    `slopes` are $a, b \ge 0$ and `offset` is c, for each class; of two classes only for the second.
    """

    slopes: Float[np.ndarray, "K 2"]
    offset: Float[np.ndarray, " K"]

    def __call__(self, predictions: Predictions) -> Predictions:
        """Return the predictions with other probabilities; see `TemperatureScaling`."""
        return mapped(predictions, self._probs)

    def _probs(self, logs: Float[np.ndarray, "M C"]) -> Float[np.ndarray, "M C"]:
        maps = zip(fetch(self.slopes), fetch(self.offset), strict=True)
        columns = [
            special.expit(_beta_features(of) @ slopes + offset)
            for of, (slopes, offset) in zip(_columns(logs), maps, strict=True)
        ]
        return _joined(columns)


@pytree_dataclass()
class IsotonicCalibration:
    """A nondecreasing function of the probability of each class, normalised over classes.

    `knots` and `values` are the ends of linear pieces, for each class; of two classes only for the
    second. Probabilities of exactly zero and one occur.
    """

    knots: tuple[Float[np.ndarray, " _"], ...]
    values: tuple[Float[np.ndarray, " _"], ...]

    def __call__(self, predictions: Predictions) -> Predictions:
        """Return the predictions with other probabilities; see `TemperatureScaling`."""
        return mapped(predictions, self._probs)

    def _probs(self, logs: Float[np.ndarray, "M C"]) -> Float[np.ndarray, "M C"]:
        maps = zip(_columns(logs), fetch(self.knots), fetch(self.values), strict=True)
        return _joined([np.interp(np.exp(of), knots, values) for of, knots, values in maps])


@pytree_dataclass()
class VennAbers:
    r"""Probabilities between those of isotonic regression with either label for the new example.

    One of both, $p_0$ for the label 0 or $p_1$ for the label 1, is calibrated exactly if examples
    are exchangeable, whatever their distribution. The probability is $p_1 / (1 - p_0 + p_1)$, which
    has the smallest worst regret in log loss.
    """

    pairs: tuple[IsotonicPairs, ...]

    def __call__(self, predictions: Predictions) -> Predictions:
        """Return the predictions with other probabilities; see `TemperatureScaling`."""
        return mapped(predictions, self._probs)

    def bounds(
        self, predictions: Predictions
    ) -> tuple[Float[np.ndarray, "N ..."], Float[np.ndarray, "N ..."]]:
        """Return $p_0$ and $p_1$ of every class: for p(y = 1), `(N,)`, of the label 1 alone.

        Parameters
        ----------
        predictions
            Predictions of the same kind as those that were calibrated.
        """
        logs, shape = _log_probs(predictions)
        low, high = (np.stack(of, axis=1) for of in zip(*self._pairs(logs), strict=True))
        if logs.shape[1] == 2:  # the other class has the complements
            low, high = (
                np.concatenate([1 - high, low], axis=1),
                np.concatenate([1 - low, high], axis=1),
            )
        if not isinstance(predictions, Predictive) and np.ndim(predictions) == 1:
            return low[:, 1], high[:, 1]
        return low.reshape(shape), high.reshape(shape)

    def _pairs(self, logs):
        return [of(np.exp(p)) for p, of in zip(_columns(logs), self.pairs, strict=True)]

    def _probs(self, logs: Float[np.ndarray, "M C"]) -> Float[np.ndarray, "M C"]:
        return _joined([high / (1 - low + high) for low, high in self._pairs(logs)])


# --- fits -----------------------------------------------------------------------------------------


def fit_vector(predictions: Predictions, y: PyTree, weights: ArrayLike | None) -> AffineScaling:
    """Fit a factor and an offset for the log probability of each class."""
    return _fit_affine(_log_rows(predictions, y, weights), is_full=False)


def fit_matrix(predictions: Predictions, y: PyTree, weights: ArrayLike | None) -> AffineScaling:
    """Fit a linear map of log probabilities, and offsets."""
    return _fit_affine(_log_rows(predictions, y, weights), is_full=True)


def fit_beta(predictions: Predictions, y: PyTree, weights: ArrayLike | None) -> BetaCalibration:
    """Fit three numbers for each class."""
    found = [
        _beta(*one, rows_weights)
        for *one, rows_weights in _one_against_rest(_log_rows(predictions, y, weights))
    ]
    return BetaCalibration(np.stack([of[:2] for of in found]), np.array([of[2] for of in found]))


def fit_isotonic(
    predictions: Predictions, y: PyTree, weights: ArrayLike | None
) -> IsotonicCalibration:
    """Fit a nondecreasing function for each class."""
    rows = _log_rows(predictions, y, weights)
    steps = [isotonic_steps(np.exp(p), *rest) for p, *rest in _one_against_rest(rows)]
    return IsotonicCalibration(*(tuple(part) for part in zip(*steps, strict=True)))


def fit_venn_abers(predictions: Predictions, y: PyTree, weights: ArrayLike | None) -> VennAbers:
    """Prepare both isotonic regressions for every place of a new example."""
    logs, labels, weights = _log_rows(predictions, y, weights)
    # A new example counts as one of as many as there are.
    scaled = weights * (effective_size(weights) / weights.sum())
    rows = _one_against_rest(_LogRows(logs, labels, scaled))
    return VennAbers(tuple(isotonic_pairs(np.exp(p), *rest) for p, *rest in rows))


class _LogRows(NamedTuple):
    """Log probabilities as maps are applied to, shares of the classes, and weights of the rows."""

    logs: Float[np.ndarray, "M C"]
    labels: Float[np.ndarray, "M C"]
    weights: Float[np.ndarray, " M"]


def _log_rows(predictions: Predictions, y: PyTree, weights: ArrayLike | None) -> _LogRows:
    _, labels, weights = given.class_rows(predictions, y, weights)
    logs, shape = _log_probs(predictions)
    if isinstance(predictions, Predictive):
        likelihood, targets = checked_targets(predictions, y)
        seen = fetch(observed_entries(likelihood, predictions, targets, shape[:-1]))
        logs = logs[seen.reshape(-1)]
    labels = labels if labels.ndim == 2 else np.eye(shape[-1])[labels]
    return _LogRows(logs, labels.astype(float), weights)


def _one_against_rest(rows: _LogRows):
    """Yield log probability, outcome and weights of each class; of two, of the second alone."""
    logs, labels, weights = rows
    for column in range(1 if logs.shape[1] == 2 else 0, logs.shape[1]):
        yield logs[:, column], labels[:, column], weights


def _fit_affine(rows: _LogRows, *, is_full: bool) -> AffineScaling:
    logs, labels, weights = rows
    num_classes, total = logs.shape[1], weights.sum()
    start = np.eye(num_classes) if is_full else np.ones(num_classes)
    origin = np.concatenate([start.ravel(), np.zeros(num_classes)])

    def loss(theta):
        weight, bias = theta[:-num_classes].reshape(start.shape), theta[-num_classes:]
        logits = (logs @ weight.T if is_full else logs * weight) + bias
        log_p = special.log_softmax(logits, axis=1)
        pull = theta - origin
        value = -(weights @ (labels * log_p).sum(axis=1)) + 0.5 * _PENALTY * pull @ pull
        slope = weights[:, None] * (np.exp(log_p) - labels)
        by_weight = slope.T @ logs if is_full else (slope * logs).sum(axis=0)
        gradient = np.concatenate([by_weight.ravel(), slope.sum(axis=0)]) + _PENALTY * pull
        return value / total, gradient / total

    options = {"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-9}
    found = optimize.minimize(loss, origin, jac=True, method="L-BFGS-B", options=options)
    weight, bias = found.x[:-num_classes].reshape(start.shape), found.x[-num_classes:]
    return AffineScaling(weight, bias)


def _beta_features(logs: Float[np.ndarray, " M"]) -> Float[np.ndarray, "M 2"]:
    others = np.log(np.maximum(-np.expm1(logs.astype(float)), _SMALLEST))
    return np.stack([logs, -others], axis=1)


def _beta(logs, outcomes, weights) -> Float[np.ndarray, " 3"]:
    """Return both slopes and the offset of largest likelihood."""
    features = np.concatenate([_beta_features(logs), np.ones((len(logs), 1))], axis=1)
    total, origin = weights.sum(), np.array([1.0, 1.0, 0.0])

    def loss(theta):
        logits, pull = features @ theta, theta - origin
        values = special.log_expit(logits) - (1 - outcomes) * logits
        value = -(weights @ values) + 0.5 * _PENALTY * pull @ pull
        slope = weights * (special.expit(logits) - outcomes)
        return value / total, (features.T @ slope + _PENALTY * pull) / total

    bounds, options = [(0, None), (0, None), (None, None)], {"ftol": 1e-15, "gtol": 1e-9}
    return optimize.minimize(
        loss, origin, jac=True, method="L-BFGS-B", bounds=bounds, options=options
    ).x


# --- applied --------------------------------------------------------------------------------------


def finite_logs(probs: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Return logarithms, of the smallest normal number for zero."""
    return np.log(np.maximum(probs, _SMALLEST))


def _log_probs(predictions: Predictions) -> tuple[Float[np.ndarray, "M C"], tuple[int, ...]]:
    """Return log probabilities as rows, and the shape that they had."""
    if isinstance(predictions, Predictive):
        logits = fetch(predictions.targets.class_logits).astype(float)
        logs = special.log_softmax(logits, axis=-1)
    else:
        logs = finite_logs(given.as_probabilities(predictions)).astype(float)
    return np.maximum(logs, np.log(_SMALLEST)).reshape(-1, logs.shape[-1]), logs.shape


def mapped(
    predictions: Predictions, probs_of: Callable[[Float[np.ndarray, "M C"]], np.ndarray]
) -> Predictions:
    """Return predictions with other probabilities, in the form of those given.

    Parameters
    ----------
    predictions
        A `Predictive` of labels, or probabilities `(N, C)` or `(N,)`.
    probs_of
        From log probabilities to probabilities, `(M, C)` each.
    """
    logs, shape = _log_probs(predictions)
    probs = probs_of(logs).reshape(shape)
    if not isinstance(predictions, Predictive):
        return probs[:, 1] if np.ndim(predictions) == 1 else probs
    targets = predictions.targets
    if isinstance(targets, BinaryTargets):
        logits = finite_logs(probs[..., 1]) - finite_logs(probs[..., 0])
    elif isinstance(targets, ClassTargets):
        logits = finite_logs(probs)
    else:
        raise TypeError(
            f"Found {type(targets).__name__}, expected the labels of lk.Categorical or "
            "lk.Bernoulli; recalibrate the array predictive.probs instead."
        )
    dtype = targets.probs.dtype
    return tree.replace(predictions, targets=targets.with_logits(jnp.asarray(logits, dtype)))


def _columns(logs: Float[np.ndarray, "M C"]) -> list[Float[np.ndarray, " M"]]:
    return [logs[:, 1]] if logs.shape[1] == 2 else [*logs.T]


def _joined(columns: list[Float[np.ndarray, " M"]]) -> Float[np.ndarray, "M C"]:
    """Return probabilities of all classes; equal ones where every class has none."""
    if len(columns) == 1:
        return np.stack([1 - columns[0], columns[0]], axis=1)
    probs = np.stack(columns, axis=1)
    total = probs.sum(axis=1, keepdims=True)
    return np.where(total > 0, probs / np.where(total > 0, total, 1), 1 / len(columns))
