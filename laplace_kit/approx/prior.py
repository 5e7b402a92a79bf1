"""The prior over the free parameters, and the forms of its precision."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from laplace_kit import tree
from laplace_kit.approx.posterior import Posterior, Structure, factorise
from laplace_kit.curv.trained_model import TrainedModel
from laplace_kit.host import extremes
from laplace_kit.selection import Selection
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class Prior:
    r"""The prior $\mathcal N(\theta_0, d^{-1})$ of the free parameters, and the temperature T.

    `mean` is $\theta_0$, one number for all or `(P,)`; `precision` is d as it was given: a number,
    a pytree prefix of the parameters, or one value for each. With a curvature $H$ they make the
    posterior $\mathcal N(\theta^*, T (H + d)^{-1})$.
    """

    mean: Float[Array, ""] | Float[Array, " P"]
    precision: PyTree
    temperature: Float[Array, ""]

    def flat_mean(self, mode: PyTree) -> Float[Array, " P"]:
        """Return the mean of each free parameter."""
        return jnp.broadcast_to(self.mean, (tree.size(mode),))

    def vector(self, model: TrainedModel) -> Float[Array, " P"]:
        """Return the precision of each free parameter."""
        return expand_precision(self.precision, model.mode, model.selection, self.mean.dtype)

    def deviation(self, model: TrainedModel) -> Float[Array, " P"]:
        r"""Return $\theta^* - \theta_0$, flat."""
        return deviation(model.mode, self.mean)

    def posterior(self, structure: Structure, model: TrainedModel) -> tuple[Posterior, Array]:
        """Return the posterior of a curvature with this prior, and the jitter that was needed.

        Raises
        ------
        ValueError
            If the two cannot be combined; see `structure_for` and `factorise`.
        """
        given, free, selection = self.precision, model.mode, model.selection
        precision = compact_precision(given, free, selection, self.mean.dtype)
        if precision.ndim == 0:
            return factorise(structure, precision, self.temperature, size=tree.size(free))
        structure = structure_for(structure, given, precision)
        return factorise(structure, precision, self.temperature)


def expand_precision(
    prior_precision: PyTree, free: PyTree, selection: Selection, dtype: jnp.dtype
) -> Float[Array, " P"]:
    """Return one prior precision for each free parameter; see `compact_precision`."""
    precision = compact_precision(prior_precision, free, selection, dtype)
    return _repeated(precision, tree.size(free)) if precision.ndim == 0 else precision


@partial(jax.jit, static_argnames="size")
def _repeated(value: Float[Array, ""], size: int) -> Float[Array, " P"]:
    return jnp.full(size, value)


def compact_precision(
    prior_precision: PyTree, free: PyTree, selection: Selection, dtype: jnp.dtype
) -> Float[Array, ""] | Float[Array, " P"]:
    """Return the prior precision of each free parameter; one number for all stays one.

    Raises
    ------
    ValueError
        If the form is unknown, or a value is not positive and finite (checked outside of JAX
        transformations only).
    """
    if tree.is_scalar(prior_precision):
        precision = jnp.asarray(prior_precision, dtype)
    else:
        precision = selection.broadcast(prior_precision, free, name="prior_precision")
        precision = precision.astype(dtype)
    if not tree.is_concrete(precision):
        return precision
    low, high = extremes(precision)
    if not 0 < low <= high < np.inf:
        raise ValueError(
            f"Found prior_precision with values from {low:.4g} to {high:.4g}, expected "
            "positive, finite numbers: the inverse prior variances of the parameters."
        )
    return precision


def expand_mean(
    prior_mean: PyTree, free: PyTree, selection: Selection, dtype: jnp.dtype
) -> Float[Array, ""] | Float[Array, " P"]:
    """Return the prior mean of each free parameter; one number stays one.

    Raises
    ------
    ValueError
        If the form is unknown, or a value is not finite.
    """
    mean = 0.0 if prior_mean is None else prior_mean
    if tree.is_scalar(mean):
        mean = jnp.asarray(mean, dtype)
    else:
        mean = selection.broadcast(mean, free, name="prior_mean").astype(dtype)
    if tree.is_concrete(mean) and not np.isfinite(extremes(mean)).all():
        raise ValueError("Found a prior_mean that is not finite, expected finite numbers.")
    return mean


def check_temperature(temperature: float | Float[Array, ""]) -> None:
    """Raise a `ValueError` if a temperature is not positive and finite; not if it is traced."""
    if tree.is_concrete(temperature) and not 0 < float(temperature) < float("inf"):
        raise ValueError(
            f"Found temperature={float(temperature)}, expected a positive, finite number."
        )


@jax.jit
def deviation(
    mode: PyTree, prior_mean: Float[Array, ""] | Float[Array, " P"]
) -> Float[Array, " P"]:
    r"""Return the mode minus the prior mean, $\theta^* - \theta_0$, flat."""
    return tree.ravel(mode).astype(prior_mean.dtype) - prior_mean


def structure_for(
    structure: Structure, prior_precision: PyTree, precision: Float[Array, " P"]
) -> Structure:
    """Return the structure in the form that a prior precision of this form needs.

    A precision with one value per leaf is known to be shared within each leaf, even inside of
    transformations, where values are unknown.

    Parameters
    ----------
    structure
        The curvature.
    prior_precision, precision
        The prior precision as it was given, and as returned by `expand_precision`.

    Raises
    ------
    ValueError
        If the structure cannot be combined with this prior precision.
    """
    shared = all(jnp.ndim(value) == 0 for value in jax.tree.leaves(prior_precision))
    return structure if shared else structure.for_prior(precision)
