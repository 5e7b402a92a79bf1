"""The losses of a predictive on labelled data that tuning minimises, by name or as a function."""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from laplace_kit.errors import check_option
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.rows import rows_of
from laplace_kit.host import fetch
from laplace_kit.likelihood import Likelihood
from laplace_kit.likelihood.masked import without_mask

LOSSES = ("nll", "ece", "brier", "crps")

# The arguments are a predictive, its targets, and weights of the examples or `None`.
Loss = Callable[[Predictive, PyTree, Float[Array, " N"] | None], float]


def as_loss(loss: str | Callable[[Predictive, PyTree], float], likelihood: Likelihood) -> Loss:
    """Return the function `(predictive, y, weights) -> loss`, smaller being better.

    Parameters
    ----------
    loss
        `"nll"`; `"ece"` or `"brier"` for classes; `"crps"` for numbers and counts; or a function of
        a predictive and targets, for data whose weights, if any, are zero and one.
    likelihood
        The likelihood of the targets.

    Raises
    ------
    ValueError
        If the loss is unknown, or not defined for this likelihood.
    """
    if callable(loss):
        return partial(_own_loss, loss)
    # The metrics are imported only where they are used.
    from laplace_kit.eval import metrics
    from laplace_kit.eval.evaluation import (
        as_classes,
        mean_crps,
        negative_log_likelihood,
        weights_of_rows,
    )

    check_option("loss", loss, LOSSES)
    kind = without_mask(likelihood)
    is_classes = kind.has_classes
    if (loss in ("ece", "brier") and not is_classes) or (loss == "crps" and is_classes):
        suits = "'nll', 'ece' or 'brier'" if is_classes else "'nll' or 'crps'"
        raise ValueError(
            f"Found the loss {loss!r} for a {type(kind).__name__} likelihood, expected "
            f"{suits}, or a function of the predictive and the targets."
        )
    if loss == "nll":
        return lambda *labelled: float(negative_log_likelihood(likelihood, *labelled))
    if loss == "crps":
        return partial(mean_crps, likelihood)
    score = {
        "ece": metrics.expected_calibration_error,
        "brier": metrics.brier_score,
    }[loss]

    def weighted(predictive: Predictive, y: PyTree, weights: Array | None) -> float:
        rows = weights_of_rows(likelihood, predictive, y, weights)
        return float(score(*as_classes(likelihood, predictive, y), weights=rows))

    return weighted


def _own_loss(
    fn: Callable, predictive: Predictive, y: PyTree, weights: Float[Array, " N"] | None
) -> float:
    if weights is not None:
        values = fetch(weights)
        if not np.isin(values, (0, 1)).all():
            raise ValueError(
                "Found labelled data with weights for a loss function, which takes only a "
                "predictive and targets, expected data (x, y), weights of zero and one, or the "
                "loss 'nll', 'ece', 'brier' or 'crps'; apply the weights inside your function."
            )
        rows = np.flatnonzero(values)
        predictive, y = rows_of(predictive, rows), jax.tree.map(lambda a: a[rows], fetch(y))
    return float(fn(predictive, y))
