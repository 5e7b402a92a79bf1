"""The prior precision, and the link, by the loss of held-out data."""

import math
from typing import Any

from jaxtyping import PRNGKeyArray

from laplace_kit.curv.mode import labelled
from laplace_kit.eval.link import Link
from laplace_kit.eval.predictive import from_moments
from laplace_kit.examples import Examples
from laplace_kit.targets import ClassTargets
from laplace_kit.tune.criteria import Loss, as_loss
from laplace_kit.tune.line_search import minimise_over_precision
from laplace_kit.tune.posterior import PosteriorT, as_tuned, untempered

# Links in closed form, from the same moments; the bridge hardly depends on the posterior's width.
_LINKS = ("probit", "mean_field_1", "mean_field_2")


def held_out(
    la: PosteriorT,
    data: Any,
    *,
    loss: str | Loss = "nll",
    bounds: tuple[float, float] = (1e-4, 1e6),
    key: PRNGKeyArray | None = None,
) -> PosteriorT:
    """Return the posterior with the prior precision that predicts held-out data best.

    The loss is that of the default predictive. If its link for several classes was not chosen, the
    best of `"probit"` and the mean-field links is chosen together with the precision.

    Parameters
    ----------
    la
        The posterior; its own prior precision is ignored. Its temperature becomes one.
    data
        Held-out `(x, y)` or `(x, y, weights)`, used neither for training nor for testing, or an
        iterable of such; one pass is made. Losses are weighted means.
    loss
        `"nll"`; `"ece"` or `"brier"` for classes; `"crps"` for numbers and counts; or a function of
        a `Predictive` and targets that returns a number, the smaller the better, for data without
        weights.
    bounds
        The smallest and the largest precision to consider.
    key
        For predictives that draw samples; all precisions use the same draws.

    Returns
    -------
    la
        The new posterior, with the visited precisions in `la.tuning`. Cost: about 25 factorisations
        and predictions.

    Raises
    ------
    TypeError, ValueError
        If the data do not suit the model, the loss is unknown or not defined for the likelihood,
        or it is not finite anywhere within the bounds.

    Warns
    -----
    UserWarning
        If the best precision lies at a bound.
    """
    examples = labelled(la.objective, data)
    score, start = as_loss(loss, la.likelihood), untempered(la)

    def loss_at(prior_precision: float) -> float:
        return min(_by_link(start.with_prior(prior_precision), examples, score, key).values())

    found = minimise_over_precision(loss_at, bounds=bounds, method="validation")
    tuned = as_tuned(start, found)
    losses = _by_link(tuned, examples, score, key)
    return tuned.with_prediction(link=min(losses, key=losses.get))


def _by_link(
    la: PosteriorT, examples: Examples, score: Loss, key: PRNGKeyArray | None
) -> dict[Link | None, float]:
    """Return the loss under the posterior's link, or under each candidate if it has none."""
    x, y, weights = examples
    predictive = la.predict(x, key=key)
    is_open = la.prediction.link is None and la.prediction.method == "linearized"
    if not (is_open and isinstance(predictive.targets, ClassTargets)):
        return {la.prediction.link: score(predictive, y, weights)}
    losses = {}
    for link in _LINKS:
        moments = predictive.f_mean, predictive.f_var, predictive.f_cov
        again = from_moments(la.likelihood, *moments, link=link, key=None, num_samples=2)
        value = score(again, y, weights)
        losses[link] = value if math.isfinite(value) else math.inf
    return losses
