r"""The prior precision, and the noise, that maximise the evidence.

With $\gamma_k = \operatorname{tr}_k H (H + d)^{-1}$, the number of parameters in group k that the
data determine, the evidence is stationary where $d_k |\Delta_k|^2 = \gamma_k$ (MacKay, 1992),
$\Delta$ being the mode minus the prior mean. For a positive semi-definite curvature $\gamma_k$
falls as $d_k$ rises, at most in proportion; it rises with every other d, and falls, at most in
proportion, as all rise together. The geometric mean of $d_k$ and $\gamma_k / |\Delta_k|^2$ is
therefore a contraction of $\log d$ in the maximum norm, by one half per step: from any start, and
within bounds, it converges to the unique maximum, without a line search.

The maximum is unique because $|H e^{-w} + \operatorname{diag}(e^z)|$ is a sum of exponentials of
linear functions with positive coefficients, by its expansion in principal minors: its logarithm is
convex, and the evidence jointly concave in $z = \log d$ and w, the logarithm of the noise variance.
For w the step is that of expectation-maximisation, $e^w \leftarrow (Q + e^w \gamma) / M$, with the
sum Q of M squared residuals: a contraction by $\gamma / M$.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from laplace_kit import tree
from laplace_kit.approx.noise import Residuals
from laplace_kit.approx.posterior import Spectrum, Structure
from laplace_kit.arrays import as_array
from laplace_kit.errors import warn
from laplace_kit.host import fetch
from laplace_kit.tune.result import Tuning, checked_bounds, warn_at_bound

# Only for a curvature with negative eigenvalues, whose evidence may have several maxima.
_GRID_POINTS = 25
_STEPS = 200
# The evidence is flat if a tenth or ten times the precision lowers it by less than this.
_FLAT_NATS = 0.5


def maximise_evidence(
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
        The mode minus the prior mean, `(P,)`.
    params
        The free parameters; with `per_leaf` each leaf has one value.
    per_leaf
        One precision for every leaf instead of one for all.
    bounds
        The smallest and the largest precision to consider.
    residuals
        The residuals at the mode, to choose the noise of a Gaussian likelihood too.
    noise_power
        The power of $1/s^2$ to which the curvature is proportional: 1, or 2 for the empirical
        Fisher matrix.
    jitter
        The jitter of the factorisation at the present prior; see `factorise`. With one precision
        for all there is no factorisation; with one per leaf the jitter is at least a hundred units
        in the last place.

    Returns
    -------
    tuning
        A `Tuning`. Cost: one `structure.spectrum()`, then $O(P)$ per step; with `per_leaf` also one
        gradient of the evidence per step. About 15 steps in float32, 30 in float64.

    Raises
    ------
    ValueError
        If the bounds are not positive and in order or include precisions at which the posterior
        precision is indefinite, or the evidence is not finite anywhere within them.

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
    if low <= -lowest and lowest < -float(spectrum.rounding):
        raise ValueError(
            f"Found an indefinite curvature whose most negative eigenvalue is {lowest:.4g}: its "
            f"evidence grows without bound as the prior precision falls to {-lowest:.4g}. Expected "
            f"bounds above that: pass bounds=({-10 * lowest:.4g}, {high:.4g}), train to a minimum, "
            "or use curvature='ggn', which is never indefinite."
        )
    dtype = deviation.dtype
    box, zero = np.log(np.array(bounds, dtype)), np.zeros((), dtype)
    terms = _Terms(deviation, residuals, noise_power)
    shared = partial(_isotropic_evidence, spectrum, terms)
    grid = _on_grid(shared, box) if lowest < 0 else _Path([], [])
    start = grid.highest if lowest < 0 else _Point(np.clip(np.zeros(1, dtype), *box), zero)
    path, best = _ascend(shared, terms, start, box)
    flat = _is_flat(shared, best)
    visited, values = grid.points + path.points, grid.values + path.values
    if per_leaf:
        least = 100 * float(jnp.finfo(dtype).eps)
        evidence_by_leaf = partial(_evidence_by_leaf, structure, params, jitter, least, terms)
        num = len(jax.tree.leaves(params))
        path, best = _ascend(evidence_by_leaf, terms, best._replace(z=np.repeat(best.z, num)), box)
        visited = [point._replace(z=np.repeat(point.z, num)) for point in visited] + path.points
        values += path.values
    if not np.isfinite(values).any():
        raise ValueError(
            f"Found no finite evidence for prior precisions within {bounds}, expected a positive "
            "definite posterior precision somewhere; raise the bounds, or use curvature='ggn'."
        )
    log_delta, noise = best.z, np.exp(best.w / 2)
    at_bound = (log_delta <= box[0] + 1e-3) | (log_delta >= box[1] - 1e-3)
    warn_at_bound(at_bound, bounds, "evidence is largest")
    found = np.exp(log_delta)
    if per_leaf:
        found = jax.tree.unflatten(jax.tree.structure(params), list(found))
    else:
        found, at_bound = found[0], at_bound[0]
        if flat:
            warn(
                "The evidence is flat: a tenth or ten times the prior precision changes it by less "
                f"than {_FLAT_NATS} nats. The data hardly determine the prior precision; set it "
                "from prior knowledge, or tune with method='validation'."
            )
    one = np.ones((), dtype)
    met = np.exp([point.z for point in visited])
    fields = (found, noise, one, met, np.array(values), at_bound, np.array(flat))
    return Tuning(*jax.tree.map(as_array, fields), "evidence")


# --- the evidence as a function of log precisions and log noise variance --------------------------


class _Terms(NamedTuple):
    """The terms of the evidence other than the curvature: deviations `(P,)`, residuals, power."""

    deviation: Float[Array, " P"]
    residuals: Residuals | None
    noise_power: int | Array


class _Point(NamedTuple):
    """Logarithms of the prior precisions, and of the factor of the noise variance."""

    z: Float[np.ndarray, " K"]
    w: Float[np.ndarray, ""]


class _Evidence(NamedTuple):
    r"""The log evidence minus the log-likelihood at w = 0, with $\gamma_k$ and $|\Delta_k|^2$.

    $\gamma_k$ is the number of parameters that the data determine.
    """

    value: Float[ArrayLike, ""]
    gamma: Float[ArrayLike, " K"]
    squares: Float[ArrayLike, " K"]


class _Path(NamedTuple):
    """Visited points and their log evidence."""

    points: list[_Point]
    values: list[Float[np.ndarray, ""]]

    @property
    def highest(self) -> _Point:
        """The point of largest finite evidence."""
        finite = np.where(np.isfinite(self.values), self.values, -np.inf)
        return self.points[int(np.argmax(finite))]


@jax.jit
def _isotropic_evidence(spectrum: Spectrum, terms: _Terms, point: _Point) -> _Evidence:
    """Return the evidence of one precision for all."""
    ratio = point.z[0] + terms.noise_power * point.w
    delta = jnp.exp(ratio)
    complexity = spectrum.log_det(delta) - spectrum.size * ratio
    gamma = spectrum.effective_parameters(delta)[None]
    squares = jnp.vdot(terms.deviation, terms.deviation, precision="highest")[None]
    return _evidence(complexity, gamma, squares, terms, point)


@jax.jit
def _evidence_by_leaf(
    structure: Structure,
    params: PyTree,
    jitter: ArrayLike,
    least_jitter: ArrayLike,
    terms: _Terms,
    point: _Point,
) -> _Evidence:
    """Return the evidence of one precision for each leaf.

    Gamma is computed from the derivative, so that cancellation is within single parameters.
    """
    jitter = jnp.maximum(jnp.asarray(jitter, terms.deviation.dtype), least_jitter)

    def complexity(ratio):
        per_leaf = jax.tree.unflatten(jax.tree.structure(params), list(ratio))
        each = tree.broadcast(per_leaf, params, name="prior_precision").astype(ratio.dtype)
        return structure.log_det(jnp.exp(each), jitter) - jnp.sum(each)

    value, slope = jax.value_and_grad(complexity)(point.z + terms.noise_power * point.w)
    ends = np.cumsum([leaf.size for leaf in jax.tree.leaves(params)])[:-1]
    squares = jnp.stack([jnp.sum(part**2) for part in jnp.split(terms.deviation, ends)])
    return _evidence(value, -slope, squares, terms, point)


def _evidence(complexity, gamma, squares, terms: _Terms, point: _Point) -> _Evidence:
    fit = 0.0 if terms.residuals is None else terms.residuals.log_likelihood(point.w)
    return _Evidence(fit - 0.5 * (jnp.sum(jnp.exp(point.z) * squares) + complexity), gamma, squares)


# --- the iteration, on the host: a compiled loop would take longer to compile than to run ---------

_Objective = Callable[[_Point], _Evidence]


def _on_grid(evidence: _Objective, box: np.ndarray) -> _Path:
    """Evaluate one precision for all on a grid."""
    zero = np.zeros((), box.dtype)
    points = [_Point(z[None], zero) for z in np.linspace(*box, _GRID_POINTS, dtype=box.dtype)]
    return _Path(points, fetch([evidence(point).value for point in points]))


def _ascend(
    evidence: _Objective, terms: _Terms, start: _Point, box: np.ndarray
) -> tuple[_Path, _Point]:
    """Iterate to the maximum within the box; return the path, and its last point or its best."""
    tiny = np.finfo(box.dtype).tiny
    # Half the digits of z give the evidence up to rounding; a few more steps are cheap.
    enough = np.sqrt(np.finfo(box.dtype).eps) / 8
    residuals = fetch(terms.residuals)
    path, point, change = _Path([], []), start, np.inf
    while len(path.points) < _STEPS and change > enough:
        value, gamma, squares = fetch(evidence(point))
        path.points.append(point)
        path.values.append(value)
        aim = np.log(np.maximum(gamma, tiny)) - np.log(np.maximum(squares, tiny))
        z, w = np.clip((point.z + aim) / 2, *box), point.w
        if residuals is not None:
            noise = residuals.squares + terms.noise_power * np.exp(w) * gamma.sum()
            w = np.log(noise / residuals.count)
        change = np.maximum(np.abs(z - point.z).max(), np.abs(w - point.w))
        point = _Point(z, w)
    return path, path.points[-1] if change <= enough else path.highest


def _is_flat(evidence: _Objective, best: _Point) -> bool:
    """Return whether a tenth or ten times the precision hardly changes the evidence."""
    shifts = np.array([0, -math.log(10), math.log(10)], best.z.dtype)
    points = [best._replace(z=best.z + shift) for shift in shifts]
    best_value, below, above = fetch([evidence(point).value for point in points])
    return bool(best_value - below < _FLAT_NATS and best_value - above < _FLAT_NATS)
