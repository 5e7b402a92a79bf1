r"""The prior precision, and the noise, that maximise the evidence.

With $\gamma_k = \operatorname{tr}_k H (H + d)^{-1}$, the number of parameters in group k that the
data determine, the evidence is stationary where $d_k |\Delta_k|^2 = \gamma_k$ (MacKay, 1992),
$\Delta$ being the mode less the prior mean. For a positive semi-definite curvature $\gamma_k$ falls
as $d_k$ rises, at most in proportion; it rises with every other d, and falls, at most in
proportion, as all rise together. The geometric mean of $d_k$ and $\gamma_k / |\Delta_k|^2$ is
therefore a contraction of $\log d$ in the maximum norm, by one half a step: from anywhere, and
within bounds, it leads to the one maximum, without a line search.

There is one because $|H e^{-w} + \operatorname{diag}(e^z)|$ is a sum of exponentials of linear
functions with positive coefficients, by its expansion in principal minors: its logarithm is convex,
and the evidence jointly concave in $z = \log d$ and w, the logarithm of the noise variance. For w
the step is that of expectation-maximisation, $e^w \leftarrow (Q + e^w \gamma) / M$, with the sum Q
of M squared residuals: a contraction by $\gamma / M$.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from laplace_kit import tree
from laplace_kit.approx.posterior import Structure
from laplace_kit.arrays import as_array
from laplace_kit.tree import pytree_dataclass

# Enough for an indefinite curvature, where the evidence may have several summits.
_GRID_POINTS = 25
_STEPS = 200
# A tenth or ten times the precision changes the evidence by less than this: it says nothing.
_FLAT_NATS = 0.5
_USER = 5  # frames from `tune_evidence` to the caller of `Laplace.tune`


@pytree_dataclass(static=("method",))
class Tuning:
    r"""What tuning chose, and the way to it.

    `prior_precision` is one number or one for each leaf; `noise_scale` the factor of the noise's
    standard deviation, and `temperature` the factor of the covariance, one where they were not
    tuned. `visited` `(T, K)` holds every prior precision that was met and `objective` `(T,)` its
    value, larger being better: the log evidence less the log-likelihood at the start, or minus the
    held-out loss. `at_bound` tells for each precision whether it stopped at a bound, `flat` whether
    the objective hardly depends on it.
    """

    prior_precision: PyTree
    noise_scale: Float[Array, ""]
    temperature: Float[Array, ""]
    visited: Float[Array, "T K"]
    objective: Float[Array, " T"]
    at_bound: Bool[Array, "..."]
    flat: Bool[Array, ""]
    method: str


class Residuals(NamedTuple):
    r"""What the noise of a Gaussian likelihood is judged by, in units of its present variance.

    The log-likelihood at noise variances $e^w$ times as large is $-\tfrac12 (e^{-w} Q + M w)$ and a
    constant, with Q the sum of `squares` of residuals and M their `count`.
    """

    squares: Float[Array, ""]
    count: Float[Array, ""]

    def log_likelihood(self, w: Float[Array, ""]) -> Float[Array, ""]:
        """Return it, less its value at w = 0."""
        return -0.5 * (jnp.expm1(-w) * self.squares + self.count * w)


def tune_evidence(
    structure: Structure,
    deviation: Float[Array, " P"],
    params: PyTree,
    *,
    per_leaf: bool = False,
    bounds: tuple[float, float] = (1e-4, 1e6),
    residuals: Residuals | None = None,
    noise_power: int = 1,
    jitter: float | Float[Array, ""] = 0.0,
) -> Tuning:
    r"""Maximise the evidence over the prior precision, and the noise if residuals are given.

    Parameters
    ----------
    structure
        The curvature.
    deviation
        The mode less the prior mean, `(P,)`.
    params
        The free parameters, whose leaves share a value each if `per_leaf`.
    per_leaf
        One precision for every leaf instead of one for all.
    bounds
        The smallest and the largest precision to consider.
    residuals
        Of a Gaussian likelihood whose noise is to be chosen too, at the mode.
    noise_power
        The power of $1/s^2$ that the curvature goes with: 1, or 2 for the empirical Fisher matrix.
    jitter
        What the factorisation needed at the present prior; see `factorise`. One precision for all
        needs no factorisation, one for each leaf takes at least a hundred units in the last place.

    Returns
    -------
    tuning
        A `Tuning`. Cost: one `structure.spectrum()`, then $O(P)$ a step; with `per_leaf` besides
        one gradient of the evidence a step. About 15 steps in float32, 30 in float64.

    Raises
    ------
    ValueError
        If the bounds are not positive and in order, reach down to where the posterior precision is
        indefinite, or the evidence is finite nowhere in them.

    Warns
    -----
    UserWarning
        If the best precision lies at a bound, or the evidence is flat.

    References
    ----------
    MacKay (1992), A practical Bayesian framework for backpropagation networks. Immer et al. (2021),
    Scalable marginal likelihood estimation for model selection in deep learning.
    """
    low, high = checked_bounds(bounds)
    spectrum = structure.spectrum()
    lowest = float(spectrum.smallest)
    if lowest < -float(spectrum.rounding) and low <= -lowest:
        raise ValueError(
            f"Found an indefinite curvature whose most negative eigenvalue is {lowest:.4g}: its "
            f"evidence grows without bound as the prior precision falls to {-lowest:.4g}. Expected "
            f"bounds above that: pass bounds=({-10 * lowest:.4g}, {high:.4g}), train to a minimum, "
            "or use curvature='ggn', which is never indefinite."
        )
    box = jnp.log(jnp.asarray(bounds, deviation.dtype))
    terms = _Terms(jnp.sum(deviation**2)[None], residuals, noise_power)
    grid, start = _search(spectrum, terms, box)
    climb, best = _climb(_isotropic, spectrum, terms, start, box)
    flat = _is_flat(spectrum, terms, best)
    visited, values = _joined(grid, climb)
    if per_leaf:
        least = 100 * jnp.finfo(deviation.dtype).eps
        args = (structure, params, jnp.maximum(jnp.asarray(jitter, deviation.dtype), least))
        terms = terms._replace(squares=_squares(deviation, params))
        start = best._replace(z=jnp.broadcast_to(best.z, terms.squares.shape))
        climb, best = _climb(_by_leaf, args, terms, start, box)
        more, others = _joined(climb)
        visited = np.concatenate([np.broadcast_to(visited, (len(visited), more.shape[1])), more])
        values = np.concatenate([values, others])
    if not np.isfinite(values).any():
        raise ValueError(
            f"Found no finite evidence for prior precisions within {bounds}, expected a positive "
            "definite posterior precision somewhere; raise the bounds, or use curvature='ggn'."
        )
    log_delta, noise = best.z, jnp.exp(best.w / 2)
    at_bound = jnp.logical_or(log_delta <= box[0] + 1e-3, log_delta >= box[1] - 1e-3)
    warn_at_bound(at_bound, bounds, "evidence is largest", stacklevel=_USER)
    found = jnp.exp(log_delta)
    if per_leaf:
        found = jax.tree.unflatten(jax.tree.structure(params), list(found))
    else:
        found, at_bound = found[0], at_bound[0]
        if bool(flat):
            warnings.warn(
                "The evidence is flat: a tenth or ten times the prior precision changes it by less "
                f"than {_FLAT_NATS} nats. The data say little about the prior precision; set it "
                "from what you know, or tune with method='validation'.",
                stacklevel=_USER,
            )
    one = jnp.ones((), deviation.dtype)
    visited, values = as_array(np.exp(visited)), as_array(values)
    return Tuning(found, noise, one, visited, values, at_bound, flat, "evidence")


def checked_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    """Return the bounds if they are positive, finite and in order.

    Raises
    ------
    ValueError
        If they are not.
    """
    low, high = bounds
    if not 0 < low < high < float("inf"):
        raise ValueError(
            f"Found bounds={bounds}, expected 0 < low < high, both finite: the smallest and the "
            "largest prior precision to consider."
        )
    return bounds


def warn_at_bound(
    at_bound: ArrayLike, bounds: tuple[float, float], what: str, *, stacklevel: int
) -> None:
    """Warn where any precision lies at a bound; `stacklevel` as if the caller warned itself."""
    if bool(np.any(at_bound)):
        warnings.warn(
            f"The {what} at a bound of the prior precision ({bounds}): the data say little about "
            "it, or the parameters are not near a mode. Widen `bounds`, train further, or set the "
            "prior precision yourself.",
            stacklevel=stacklevel + 1,
        )


# --- the evidence as a function of log precisions and log noise variance --------------------------


class _Terms(NamedTuple):
    """What the evidence has besides the curvature: squared deviations `(K,)`, residuals, power."""

    squares: Float[Array, " K"]
    residuals: Residuals | None
    noise_power: int | Array


class _Point(NamedTuple):
    """Logarithms of the prior precisions, and of the factor of the noise variance."""

    z: Float[Array, " K"]
    w: Float[Array, ""]


class _Climb(NamedTuple):
    """Points that were met with their log evidence, and how many."""

    points: _Point
    values: Float[Array, " T"]
    num: int | Array


# Of the logarithm of a ratio of precisions, prior to curvature, `(K,)`: log |I + H/d|, and gamma.
_Complexity = Callable[[PyTree, Float[Array, " K"]], tuple[Array, Array]]


def _isotropic(spectrum, ratio):
    delta = jnp.exp(ratio[0])
    complexity = spectrum.log_det(delta) - spectrum.size * ratio[0]
    return complexity, spectrum.effective_parameters(delta)[None]


def _by_leaf(args, ratio):
    """Take gamma by the derivative, whose cancellation is then parameter by parameter."""
    structure, params, jitter = args

    def complexity(ratio):
        per_leaf = jax.tree.unflatten(jax.tree.structure(params), list(ratio))
        each = tree.broadcast(per_leaf, params, name="prior_precision").astype(ratio.dtype)
        return structure.log_det(jnp.exp(each), jitter) - jnp.sum(each)

    value, slope = jax.value_and_grad(complexity)(ratio)
    return value, -slope


def _evidence(complexity: _Complexity, args, terms: _Terms, point: _Point) -> tuple[Array, Array]:
    """Return the log evidence, less the log-likelihood at w = 0, and gamma."""
    of_curvature, gamma = complexity(args, point.z + terms.noise_power * point.w)
    fit = 0.0 if terms.residuals is None else terms.residuals.log_likelihood(point.w)
    return fit - 0.5 * (jnp.sum(jnp.exp(point.z) * terms.squares) + of_curvature), gamma


@jax.jit
def _search(spectrum, terms, box) -> tuple[_Climb, _Point]:
    """Evaluate one precision for all on a grid; return that, and where it is best."""
    z = jnp.linspace(box[0], box[1], _GRID_POINTS)[:, None]
    points = _Point(z, jnp.zeros(_GRID_POINTS, z.dtype))
    values = jax.lax.map(lambda at: _evidence(_isotropic, spectrum, terms, at)[0], points)
    highest = jnp.argmax(jnp.where(jnp.isfinite(values), values, -jnp.inf))
    return _Climb(points, values, _GRID_POINTS), jax.tree.map(lambda part: part[highest], points)


@partial(jax.jit, static_argnames="complexity")
def _climb(complexity: _Complexity, args, terms, start, box) -> tuple[_Climb, _Point]:
    """Iterate to the maximum within the box; return the way, and its last point or its best."""
    tiny = jnp.finfo(start.z.dtype).tiny
    enough = jnp.sqrt(jnp.finfo(start.z.dtype).eps)  # leaves the evidence no more than rounding

    def step(carry):
        point, climb, _ = carry
        value, gamma = _evidence(complexity, args, terms, point)
        way = jax.tree.map(lambda all_, one: all_.at[climb.num].set(one), climb.points, point)
        climb = _Climb(way, climb.values.at[climb.num].set(value), climb.num + 1)
        aim = jnp.log(jnp.maximum(gamma, tiny)) - jnp.log(jnp.maximum(terms.squares, tiny))
        z, w = jnp.clip((point.z + aim) / 2, *box), point.w
        if terms.residuals is not None:
            squares, count = terms.residuals
            w = jnp.log((squares + terms.noise_power * jnp.exp(w) * jnp.sum(gamma)) / count)
        change = jnp.maximum(jnp.abs(z - point.z).max(), jnp.abs(w - point.w))
        return _Point(z, w), climb, change

    def goes_on(carry):
        _, climb, change = carry
        return (climb.num < _STEPS) & (change > enough)

    room = jax.tree.map(lambda part: jnp.zeros((_STEPS, *part.shape), part.dtype), start)
    climb = _Climb(room, jnp.full(_STEPS, -jnp.inf, start.z.dtype), 0)
    infinite = jnp.asarray(jnp.inf, start.z.dtype)
    _, climb, change = jax.lax.while_loop(goes_on, step, (start, climb, infinite))
    highest = jnp.argmax(jnp.where(jnp.isfinite(climb.values), climb.values, -jnp.inf))
    best = jnp.where(change <= enough, climb.num - 1, highest)
    return climb, jax.tree.map(lambda part: part[best], climb.points)


@jax.jit
def _is_flat(spectrum, terms, best) -> Bool[Array, ""]:
    """Tell whether a tenth or ten times the precision hardly changes the evidence."""
    ten = jnp.log(jnp.asarray(10.0, best.z.dtype))
    there, less, more = (
        _evidence(_isotropic, spectrum, terms, best._replace(z=best.z + shift))[0]
        for shift in (0, -ten, ten)
    )
    return (there - less < _FLAT_NATS) & (there - more < _FLAT_NATS)


@jax.jit
def _squares(deviation, params) -> Float[Array, " K"]:
    ends = np.cumsum([leaf.size for leaf in jax.tree.leaves(params)])[:-1]
    return jnp.stack([jnp.sum(part**2) for part in jnp.split(deviation, ends)])


def _joined(*climbs: _Climb) -> tuple[np.ndarray, np.ndarray]:
    """Return log precisions `(T, K)` and values `(T,)` of all that was met."""
    met = [jax.tree.map(lambda part, c=c: np.asarray(part)[: int(c.num)], c[:2]) for c in climbs]
    return tuple(np.concatenate(parts) for parts in zip(*((p.z, v) for p, v in met), strict=True))
