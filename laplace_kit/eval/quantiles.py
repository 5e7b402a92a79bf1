"""The probability integral transform of targets."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from laplace_kit.eval.outputs import Predictive


def pit(
    predictive: Predictive, y: ArrayLike, *, key: PRNGKeyArray | None = None
) -> Float[Array, "N *target"]:
    r"""Return the probability integral transform $F(y)$, uniform for a calibrated predictive.

    For counts and ordered classes it is $F(y - 1) + u\, p(y)$ with $u$ uniform, which is uniform
    too; without a key $u = 1/2$, the mid-PIT, whose mean is $1/2$.

    Parameters
    ----------
    predictive
        For N inputs, with numbers, counts or ordered classes as targets.
    y
        The targets that were observed.
    key
        To randomise the transform at the steps of discrete targets.

    Raises
    ------
    TypeError
        If the targets have no order, or no distribution.

    References
    ----------
    Czado, Gneiting and Held (2009), Predictive model assessment for count data.
    """
    targets, y = predictive.targets, jnp.asarray(y)
    upper = targets.cdf(y)
    if not targets.is_discrete:
        return upper
    u = 0.5 if key is None else jax.random.uniform(key, upper.shape, upper.dtype)
    lower = targets.cdf(y.astype(upper.dtype) - 1)  # unsigned zeros minus one wrap
    return lower + u * (upper - lower)
