r"""The continuous ranked probability score of distributions given by their distribution function.

$$\mathrm{CRPS}(F, y) = \int (F(z) - \mathbb 1\{z \ge y\})^2\, dz$$

By Gauss-Legendre quadrature on pieces that widen away from the bulk, with one boundary at y, where
the integrand jumps. For counts the integral is a sum over integers: of all in a short piece, of
evenly spaced ones in a long piece.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from laplace_kit.targets.base import NumberTargets

# The ends of pieces in units of the width of the central 90% interval, from its lower end.
_REACH = np.array([0.5, 2.0, 8.0, 64.0, 1024.0])
_ENDS = np.concatenate([-_REACH[::-1], [0, 1 / 3, 2 / 3, 1], 1 + _REACH])
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_NUM_COUNTS = 16  # integers in each piece that the distribution function is evaluated at


@jax.jit
def crps(
    targets: NumberTargets,
    y: Num[Array, "N *target"],
    low: Float[Array, "N *target"],
    high: Float[Array, "N *target"],
) -> Float[Array, "N *target"]:
    """Return the score of each target, in its units.

    Parameters
    ----------
    targets
        With `cdf`.
    y
        The targets that were observed.
    low, high
        The ends of the central 90% intervals of the targets.

    Returns
    -------
    scores
        Cost: 112 evaluations of the distribution function, for counts up to 224 and few if these
        are small, with the memory of one.

    References
    ----------
    Gneiting and Raftery (2007), Strictly proper scoring rules, prediction, and estimation.
    """
    y = jnp.asarray(y, low.dtype)
    width = high - low + (1 if targets.is_discrete else 0)
    unit = jnp.asarray(_ENDS, low.dtype).reshape(-1, *(1,) * low.ndim)
    ends = low + width * unit
    if targets.is_discrete:
        ends = jnp.maximum(jnp.floor(ends), 0)
    ends = jnp.sort(jnp.concatenate([ends, y[None]]), axis=0)
    piece = _sum_of_counts if targets.is_discrete else _integral

    def add(total, bounds):
        start, end = bounds
        return total + piece(targets, y, start, end), None

    return jax.lax.scan(add, jnp.zeros_like(low), (ends[:-1], ends[1:]))[0]


def _integral(targets, y, start, end) -> Float[Array, "N *target"]:
    """Integrate over a piece that lies on one side of y."""

    def add(total, node):
        place, weight = node
        z = start + (end - start) * (place + 1) / 2
        return total + weight / 2 * (targets.cdf(z) - (start >= y)) ** 2, None

    nodes = (jnp.asarray(_NODES, start.dtype), jnp.asarray(_WEIGHTS, start.dtype))
    return (end - start) * jax.lax.scan(add, jnp.zeros_like(start), nodes)[0]


def _sum_of_counts(targets, y, start, end) -> Float[Array, "N *target"]:
    """Sum over the integers from `start` to before `end`, all on one side of y."""
    num = end - start
    step = jnp.maximum(num / _NUM_COUNTS, 1)

    def add(state):
        j, total = state
        # With few integers, each of them; otherwise the middle of each of equal shares.
        shift = jnp.where(num <= _NUM_COUNTS, j, jnp.floor((j + 0.5) * step))
        square = (targets.cdf(start + shift) - (start >= y)) ** 2
        return j + 1, total + jnp.where(shift < num, step * square, 0)

    # Most pieces are short, or empty.
    most = jnp.minimum(jnp.max(num), _NUM_COUNTS)
    state = (jnp.zeros((), start.dtype), jnp.zeros_like(start))
    return jax.lax.while_loop(lambda state: state[0] < most, add, state)[1]
