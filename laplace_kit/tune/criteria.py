"""The losses of a predictive on labelled data that tuning minimises, by name or of one's own."""

from collections.abc import Callable

from jaxtyping import PyTree

from laplace_kit.errors import check_option
from laplace_kit.eval.outputs import Predictive
from laplace_kit.likelihood import Bernoulli, Categorical, Likelihood, unmasked

LOSSES = ("nll", "ece", "brier", "crps")

Loss = Callable[[Predictive, PyTree], float]


def as_loss(loss: str | Loss, likelihood: Likelihood) -> Loss:
    """Return the function `(predictive, y) -> loss`, smaller being better.

    Parameters
    ----------
    loss
        `"nll"`; `"ece"` or `"brier"` for classes; `"crps"` for regression; or such a function.
    likelihood
        The likelihood of the targets.

    Raises
    ------
    ValueError
        If the loss is unknown, or not defined for this likelihood.
    """
    if callable(loss):
        return lambda predictive, y: float(loss(predictive, y))
    # What measures predictions is loaded where it is wanted.
    from laplace_kit.eval import metrics
    from laplace_kit.eval.evaluate import as_classes, evaluate, negative_log_likelihood

    check_option("objective", loss, LOSSES)
    kind, _ = unmasked(likelihood, (None,))
    is_classes = isinstance(kind, Categorical | Bernoulli)
    if (loss in ("ece", "brier") and not is_classes) or (loss == "crps" and is_classes):
        suits = "'nll', 'ece' or 'brier'" if is_classes else "'nll' or 'crps'"
        raise ValueError(
            f"Found objective={loss!r} for a {type(kind).__name__} likelihood, expected "
            f"{suits}, or a function of the predictive and the targets."
        )
    if loss == "nll":
        return lambda predictive, y: float(negative_log_likelihood(likelihood, predictive, y))
    if loss == "crps":
        return lambda predictive, y: evaluate(likelihood, predictive, y)["crps"]
    score = {
        "ece": metrics.expected_calibration_error,
        "brier": metrics.brier_score,
    }[loss]
    return lambda predictive, y: float(score(*as_classes(likelihood, predictive, y)))
