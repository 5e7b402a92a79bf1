"""The prior precision, in any of its forms, as one value for each free parameter."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from laplace_kit import tree
from laplace_kit.approx.posterior import Structure
from laplace_kit.selection import Selection


def expand_precision(
    prior_precision: PyTree, free: PyTree, selection: Selection, dtype: jnp.dtype
) -> Float[Array, " P"]:
    """Return one prior precision for each free parameter.

    Raises
    ------
    ValueError
        If the form is none that is known, or a value is not positive and finite (where values can
        be looked at, outside of JAX transformations).
    """
    precision = selection.broadcast(prior_precision, free, name="prior_precision").astype(dtype)
    if not tree.is_concrete(precision):
        return precision
    values = np.asarray(precision)
    if not np.all((values > 0) & np.isfinite(values)):
        raise ValueError(
            f"Found prior_precision with values from {values.min():.4g} to "
            f"{values.max():.4g}, expected positive, finite numbers: the inverse prior "
            "variances of the parameters."
        )
    return precision


@jax.jit
def deviation(mode: PyTree, prior_mean: Float[Array, " P"]) -> Float[Array, " P"]:
    r"""Return the mode minus the prior mean, $\theta^* - \theta_0$, flat."""
    return tree.ravel(mode).astype(prior_mean.dtype) - prior_mean


def structure_for(
    structure: Structure, prior_precision: PyTree, precision: Float[Array, " P"]
) -> Structure:
    """Return the structure in the form that a prior precision of this form needs.

    A form with one value for each leaf is known to share it, even inside of transformations, where
    values cannot be looked at.

    Parameters
    ----------
    structure
        The curvature.
    prior_precision, precision
        The prior precision as it was given, and what `expand_precision` makes of it.

    Raises
    ------
    ValueError
        If the structure cannot be combined with this prior precision.
    """
    shared = all(jnp.ndim(value) == 0 for value in jax.tree.leaves(prior_precision))
    return structure if shared else structure.for_prior(precision)
