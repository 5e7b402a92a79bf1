"""Observed targets of a predictive, on the host and checked against its likelihood."""

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Num, PyTree

from laplace_kit.arrays import on_host
from laplace_kit.eval.evaluation import observed_entries
from laplace_kit.eval.outputs import Predictive
from laplace_kit.host import fetch
from laplace_kit.likelihood import Likelihood, Masked
from laplace_kit.likelihood.base import check_targets
from laplace_kit.likelihood.masked import targets_without_mask


def checked_targets(predictive: Predictive, y: PyTree) -> tuple[Likelihood, PyTree]:
    """Return targets on the host and their likelihood: a masked one, if they are `(y, mask)`.

    Raises
    ------
    TypeError, ValueError
        If targets do not match the outputs, or are outside the support of the likelihood.
    """
    likelihood = Masked(predictive.likelihood) if isinstance(y, tuple) else predictive.likelihood
    y = on_host(y, "targets")
    check_targets(likelihood, predictive.f_mean, y)
    valid = fetch(_are_valid(likelihood, predictive.f_mean, y))
    if not valid.all():
        raise ValueError(
            f"Found targets out of range, the first at example {int(valid.argmin())} "
            f"({int((~valid).sum())} in all), expected {likelihood.support}; drop or correct them, "
            "and if targets are missing pass a mask too, (y, mask)."
        )
    return likelihood, y


@jax.jit
def _are_valid(likelihood: Likelihood, f: Float[Array, "N ..."], y: PyTree) -> Bool[Array, " N"]:
    return jax.vmap(likelihood.is_valid)(f, y)


def check_known(what: str, values: Float[np.ndarray, "..."]) -> None:
    """Raise a `ValueError` if a predictive holds a NaN."""
    if np.isnan(values).any():
        raise ValueError(
            f"Found NaN among the predictive's {what}, expected numbers; check the inputs and "
            "outputs of the model for values that are not finite."
        )


def observed_targets(
    predictive: Predictive, y: PyTree
) -> tuple[Num[np.ndarray, "N *target"], Bool[np.ndarray, "N *target"]]:
    """Return the targets of a regression and which are observed; raises like `checked_targets`."""
    likelihood, y = checked_targets(predictive, y)
    values = targets_without_mask(likelihood, y)
    return values, fetch(observed_entries(likelihood, predictive, y, np.shape(values)))
