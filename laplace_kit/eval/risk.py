"""Thresholds that keep error rate, precision, recall or abstention within a bound."""

from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Bool, PyTree

from laplace_kit.arrays import on_host
from laplace_kit.errors import check_option
from laplace_kit.eval.given import Predictions, as_probabilities, class_rows
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.prediction_sets import class_probabilities
from laplace_kit.eval.statistics import risk as statistics
from laplace_kit.eval.statistics.weighting import checked, effective_size
from laplace_kit.host import fetch
from laplace_kit.tree import pytree_dataclass

RISKS = ("error", "precision", "recall", "abstention")
_AT_LEAST = ("precision", "recall")
METHODS = ("bonferroni", "fixed_sequence")


@pytree_dataclass(static=("risk", "bound", "confidence", "threshold", "share", "observed"))
class RiskControl:
    """A threshold with a guarantee; made by `control_risk`, and `str(control)` is its sentence.

    Parameters
    ----------
    risk, bound, confidence
        What is controlled, by which bound, with which probability.
    threshold
        Examples with larger scores are kept: the confidence for `"error"` and `"abstention"`, the
        probability of class 1 for the others.
    share, observed
        The share of the calibration examples that are kept, and the risk observed there.
    """

    risk: str
    bound: float
    confidence: float
    threshold: float
    share: float
    observed: float

    def __call__(self, predictions: Predictions) -> Bool[np.ndarray, "N ..."]:
        """Return which examples are kept: answered, or taken to be of class 1.

        Parameters
        ----------
        predictions
            Predictions of the same kind as those that were calibrated.
        """
        if isinstance(predictions, Predictive):
            probs = fetch(class_probabilities(predictions.targets))
        else:
            probs = as_probabilities(predictions)
        scores = probs[..., 1] if self.risk in _AT_LEAST else probs.max(axis=-1)
        return scores.astype(float) > self.threshold

    def __str__(self) -> str:
        """Return the guarantee in words."""
        sure = f"with {100 * self.confidence:.4g}% confidence"
        bound, left = f"{100 * self.bound:.3g}%", f"{100 * (1 - self.share):.3g}%"
        if self.share == 0:
            words = _words(self.risk, bound)
            return f"These examples show no threshold with {words} {sure}; take more."
        if self.risk not in _AT_LEAST:
            return f"Hand on {left}: {_words(self.risk, bound)} {sure}."
        flagged = f"{100 * self.share:.3g}%"
        return f"Take {flagged} to be of class 1: {_words(self.risk, bound)} {sure}."


def _words(risk: str, bound: str) -> str:
    return {
        "error": f"at most {bound} errors",
        "precision": f"a precision of at least {bound}",
        "recall": f"a recall of at least {bound}",
        "abstention": f"at most {bound} handed on",
    }[risk]


def control_risk(
    predictions: Predictions,
    y: PyTree,
    *,
    risk: str = "error",
    at_most: float | None = None,
    at_least: float | None = None,
    confidence: float = 0.95,
    method: str = "bonferroni",
    weights: ArrayLike | None = None,
) -> RiskControl:
    r"""Return a threshold whose risk is within a bound with probability `confidence`.

    The probability is over the calibration examples; the risk is that of new examples like these.

    Parameters
    ----------
    predictions
        At inputs that neither training nor tuning has seen: a `Predictive` of classes,
        probabilities `(N, C)`, or the probability of class 1, `(N,)`.
    y
        Their labels.
    risk
        `"error"`: the error rate among the examples whose confidence, the largest probability, is
        above the threshold. `"abstention"`: the share of examples that are not. For two
        classes, `"precision"` and `"recall"` of class 1 where its probability is above the
        threshold.
    at_most, at_least
        The bound: `at_most` for error and abstention, `at_least` for precision and recall.
    confidence
        $1 - \delta$.
    method
        For error and precision: `"bonferroni"` tests 20 thresholds and holds for any scores;
        `"fixed_sequence"` tests all in order, from a few starts; it holds if examples with larger
        scores are not wrong more often, and keeps more of many examples. Recall and abstention need
        no tests of several thresholds, as they are monotone in it.
    weights
        Weights of the examples: counts repeat them; the guarantee is approximate for others, which
        count as many examples as they are worth.

    Returns
    -------
    control
        A `RiskControl`, a function from predictions to which are kept; `str(control)` states the
        guarantee, such as "Hand on 12%: at most 2% errors with 95% confidence." The threshold keeps
        as many examples as it can; for recall and abstention as few. It is infinite if nothing may
        be kept.

    Raises
    ------
    TypeError, ValueError
        If predictions, labels or weights are not valid, an option is unknown, a bound is missing or
        not between 0 and 1, or there are not two classes for precision or recall.

    References
    ----------
    Angelopoulos, Bates, Candès, Jordan and Lei (2021), Learn then test: calibrating predictive
    algorithms to achieve risk control. Geifman and El-Yaniv (2017), Selective classification for
    deep neural networks.
    """
    check_option("risk", risk, RISKS)
    check_option("method", method, METHODS)
    bound = _checked_bound(risk, at_most, at_least)
    _check_share("confidence", confidence)
    probs, labels, weights = class_rows(predictions, y, weights)
    everyone, delta = np.arange(len(probs)), 1 - confidence
    if risk in _AT_LEAST:
        if probs.shape[1] != 2:
            raise ValueError(
                f"Found probabilities of {probs.shape[1]} classes for risk={risk!r}, expected two; "
                "pass the probability of one class, (N,), and whether it is the label."
            )
        scores = probs[:, 1]
        is_one = labels.astype(float) if labels.ndim == 1 else labels[:, 1].astype(float)
    else:
        scores, predicted = probs.max(axis=1), probs.argmax(axis=1)
        right = labels == predicted if labels.ndim == 1 else labels[everyone, predicted]
    in_order = method == "fixed_sequence"
    if risk == "abstention":
        found = statistics.control_left_out(scores, weights, bound, delta)
    elif risk == "recall":
        found = _of_recall(scores, is_one, weights, bound, delta)
    else:
        lost, limit = (1 - right, bound) if risk == "error" else (1 - is_one, 1 - bound)
        found = statistics.control_kept_losses(
            scores, lost.astype(float), weights, limit, delta, in_order=in_order
        )
        if risk == "precision":
            found = found._replace(risk=1 - found.risk)
    return RiskControl(risk, bound, confidence, *map(float, found))


def _of_recall(scores, is_one, weights, bound, delta) -> statistics.Controlled:
    """Return the threshold, chosen among examples of class 1; the share is of all examples."""
    found = statistics.control_left_out(scores, weights * is_one, 1 - bound, delta)
    kept = scores.astype(float) > found.threshold
    return statistics.Controlled(found.threshold, np.average(kept, weights=weights), 1 - found.risk)


def learn_then_test(
    losses: ArrayLike,
    *,
    at_most: float,
    confidence: float = 0.95,
    method: str = "bonferroni",
    weights: ArrayLike | None = None,
) -> Bool[np.ndarray, " T"]:
    r"""Return the settings whose risk is at most a bound, all of them with a given confidence.

    Parameters
    ----------
    losses
        The loss of each of N examples under each of T settings, `(N, T)`, from 0 to 1: anything
        whose expectation is the risk. The settings must not depend on these examples.
    at_most, confidence
        The bound of the risk, and the probability that it holds for all returned settings.
    method
        `"bonferroni"`; or `"fixed_sequence"`, which tests the settings in their order until the
        first that fails, so that the safest should come first.
    weights
        Weights of the examples, `(N,)`.

    Returns
    -------
    valid
        Which settings may be used, `(T,)`; among them choose as you like.

    Raises
    ------
    ValueError
        If losses are not numbers from 0 to 1, an option is unknown, or weights are not valid.

    References
    ----------
    Angelopoulos et al. (2021), as for `control_risk`, with Hoeffding-Bentkus p-values.
    """
    check_option("method", method, METHODS)
    _check_share("at_most", at_most)
    _check_share("confidence", confidence)
    losses = _checked_losses(losses, 1.0)
    weights = checked(weights, len(losses))
    risk, num = weights @ losses / weights.sum(), effective_size(weights)
    p_values = statistics.bounded_p_values(risk, num, at_most)
    return statistics.rejected(p_values, 1 - confidence, in_order=method == "fixed_sequence")


def conformal_risk(losses: ArrayLike, *, at_most: float, largest: float = 1.0) -> int:
    r"""Return the first setting whose expected loss for a new example is at most a bound.

    $\min \{t : (\sum_n l_{nt} + B) / (N + 1) \le a\}$: the expectation is over the calibration
    examples too, so that a single calibration may exceed the bound, unlike `learn_then_test`. With
    losses that are misses of prediction sets this is split-conformal prediction.

    Parameters
    ----------
    losses
        The loss of each of N examples under each of T settings, `(N, T)`, which must not rise from
        one setting to the next: such as the share of true labels outside of ever larger sets.
    at_most
        The bound a of the expected loss.
    largest
        The largest possible loss B.

    Returns
    -------
    setting
        The index of the setting.

    Raises
    ------
    ValueError
        If losses are not from 0 to B or rise, or no setting has so small a loss.

    References
    ----------
    Angelopoulos, Bates, Fisch, Lei and Schuster (2024), Conformal risk control.
    """
    losses = _checked_losses(losses, largest)
    if (np.diff(losses, axis=1) > 1e-9).any():
        raise ValueError(
            "Found losses that rise from one setting to the next, expected none; order the "
            "settings from the boldest to the most cautious, or use learn_then_test."
        )
    found = statistics.conformal_column(losses, at_most, largest)
    if found is None:
        least = (losses[:, -1].sum() + largest) / (len(losses) + 1)
        raise ValueError(
            f"Found no setting for at_most={at_most}, expected one of a bound of at least "
            f"{least:.4g}, that of the last setting; add more cautious settings or examples."
        )
    return found


def _checked_bound(risk: str, at_most: float | None, at_least: float | None) -> float:
    wanted, other = ("at_least", at_most) if risk in _AT_LEAST else ("at_most", at_least)
    bound = at_least if risk in _AT_LEAST else at_most
    if bound is None or other is not None:
        raise ValueError(
            f"Found at_most={at_most} and at_least={at_least} for risk={risk!r}, expected only "
            f"{wanted}=, a share such as {0.9 if wanted == 'at_least' else 0.05}."
        )
    _check_share(wanted, bound)
    return float(bound)


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(
            f"Found {name}={value}, expected a number between 0 and 1; divide percentages by 100."
        )


def _checked_losses(losses: Any, largest: float) -> np.ndarray:
    values = on_host(losses, "losses").astype(float)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(
            f"Found losses of shape {values.shape}, expected (N, T), a column for each setting."
        )
    if not ((values >= 0) & (values <= largest)).all():
        raise ValueError(
            f"Found losses outside 0 to {largest:g}, expected bounded ones; divide them by their "
            "largest possible value."
        )
    return values
