r"""Stochastic Lanczos quadrature: log-determinants and spectral densities.

Lanczos from a probe $z$ is a Gauss quadrature: $z^T f(A) z \approx \|z\|^2 \sum_j w_j f(\theta_j)$,
with the eigenvalues $\theta$ of its tridiagonal matrix as nodes. The mean over probes estimates the
trace of $f(A)$.
"""

from functools import cache

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from laplace_kit import tree
from laplace_kit.curv.linear import DampedOperator, SelfAdjointOperator
from laplace_kit.curv.linearization import linearized
from laplace_kit.curv.matrix_free.probing import Estimate, Integrand, over_probes
from laplace_kit.curv.matrix_free.tridiagonal import lanczos, ritz_pairs
from laplace_kit.tree import pytree_dataclass

_RELATIVE_WIDTH = 0.01  # of the spectrum's range: about what the eye can resolve in a plot
_ONE_VALUE = 1000  # in roundings: a spectrum with a smaller range counts as one eigenvalue
_MARGIN = 5  # of the grid beyond the outermost nodes, in widths


@pytree_dataclass(static=("num_products",))
class SpectralDensity:
    r"""The density of an operator's eigenvalues, broadened by a Gaussian; it integrates to one.

    `density` and its `standard_error` at the points of `grid`, `(G,)` each; `nodes` and `weights`
    `(K, M)`, the quadrature rule of each of K probes, for means of other functions of the
    eigenvalues; `width` `()`, the Gaussian's standard deviation; `num_products`.
    """

    grid: Float[Array, " G"]
    density: Float[Array, " G"]
    standard_error: Float[Array, " G"]
    nodes: Float[Array, "K M"]
    weights: Float[Array, "K M"]
    width: Float[Array, ""]
    num_products: int


def estimate_log_det(
    operator: SelfAdjointOperator,
    *,
    damping: PyTree = 0.0,
    key: PRNGKeyArray,
    num_samples: int = 16,
    num_steps: int = 48,
) -> Estimate:
    r"""Estimate $\log\det(A + \mathrm{diag}(\delta))$ of a positive definite matrix.

    It is stochastic Lanczos quadrature of $\mathrm{tr} \log$. The standard error covers the probes
    only; the error of the quadrature falls exponentially with `num_steps`, at a rate that is the
    inverse square root of the condition number. Derivatives are estimated by the same probes,
    $z^\top (A + \mathrm{diag}(\delta))^{-1}\, \mathrm d A\, z$, with the solution from the Krylov
    space, also where it is exhausted, as for a matrix of low rank.

    Parameters
    ----------
    operator
        Any self-adjoint operator, in memory or over a stream of batches.
    damping
        $\delta$ in any form of a prior precision: a scalar, a pytree prefix of the parameters, one
        value for each of them.
    key
        Random key for the probes, which are signs.
    num_samples
        The number K of probes, at least 2.
    num_steps
        The number M of Lanczos steps, at most P, which are exact.

    Returns
    -------
    estimate
        Value and standard error `()`. Cost: K (M + 1) products in M + 1 passes over the data, with
        one linearisation if memory allows, and memory for K (M + 1) vectors.

    Raises
    ------
    ValueError
        If the damped matrix is not positive definite (inside a transformation the value is then
        NaN), if there are too few samples or steps, or `damping` has none of the forms.

    References
    ----------
    Ubaru, Chen and Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos quadrature.
    Dong, Eriksson, Nickisch, Bindel and Wilson (2017), Scalable log determinants for Gaussian
    process kernel learning.
    """
    damped = DampedOperator(operator, damping)
    num_steps = _check_num_steps(num_steps, operator)
    nodes, weights, slopes = over_probes(
        _with_slope(num_steps),
        linearized(damped),
        key=key,
        num_samples=num_samples,
        probes="signs",
        num_steps=num_steps + 1,
    )
    if operator.is_positive_semidefinite:  # rounding may put nodes below the spectrum
        nodes = jnp.maximum(nodes, damped.damping_vector().min())
    values = damped.shape[0] * jnp.sum(_times_log(weights, nodes), axis=1)
    values = values + (slopes - jax.lax.stop_gradient(slopes))
    if tree.is_concrete(values) and not jnp.isfinite(values).all():
        raise ValueError(
            f"Found a matrix with the Ritz value {float(nodes.min()):.3g}, expected a positive "
            "definite one, whose determinant has a logarithm; raise `damping`."
        )
    return Estimate(values.mean(), _standard_error(values), num_samples * (num_steps + 1))


def spectral_density(
    operator: SelfAdjointOperator,
    *,
    key: PRNGKeyArray,
    num_samples: int = 8,
    num_steps: int = 64,
    grid: Float[ArrayLike, " G"] | None = None,
    width: Float[ArrayLike, ""] | None = None,
) -> SpectralDensity:
    r"""Estimate the density of eigenvalues, $\frac1P \sum_i \mathcal N(t; \lambda_i, \sigma^2)$.

    Parameters
    ----------
    operator
        Any self-adjoint operator, in memory or over a stream of batches.
    key
        Random key for the probes, which are signs.
    num_samples
        The number K of probes, at least 2.
    num_steps
        The number M of Lanczos steps, at most P. More steps resolve more of the interior of the
        spectrum.
    grid
        Points at which to evaluate; by default 1,024 points over the whole spectrum.
    width
        $\sigma$, in the units of eigenvalues; by default a hundredth of the spectrum's range.

    Returns
    -------
    density
        In float32 or better. Cost: K M products in M passes over the data, with one linearisation
        if memory allows, and memory for K M vectors.

    Raises
    ------
    ValueError
        If there are too few samples or steps, or the width is not positive.

    References
    ----------
    Lin, Saad and Yang (2016), Approximating spectral densities of large matrices. Ghorbani,
    Krishnan and Xiao (2019), An investigation into neural net optimization via Hessian eigenvalue
    density.
    """
    if width is not None and tree.is_concrete(width) and not width > 0:
        raise ValueError(
            f"Found width={width}, expected a positive number in the units of eigenvalues; raise "
            "it, or leave it out."
        )
    num_steps = _check_num_steps(num_steps, operator)
    nodes, weights = over_probes(
        _gauss_quadrature(num_steps),
        linearized(operator),
        key=key,
        num_samples=num_samples,
        probes="signs",
        num_steps=num_steps,
    )
    low, high = nodes.min(), nodes.max()
    if width is None:
        size = jnp.maximum(jnp.abs(low), jnp.abs(high))
        is_one_value = high - low <= _ONE_VALUE * jnp.finfo(low.dtype).eps * size
        spread = jnp.where(is_one_value, jnp.where(size > 0, size, 1), high - low)
        width = _RELATIVE_WIDTH * spread
    width = jnp.asarray(width, low.dtype)
    if grid is None:
        grid = jnp.linspace(low - _MARGIN * width, high + _MARGIN * width, 1024)
    grid = jnp.asarray(grid, low.dtype)
    densities = _broaden(nodes, weights, grid, width)
    return SpectralDensity(
        grid=grid,
        density=densities.mean(0),
        standard_error=_standard_error(densities),
        nodes=nodes,
        weights=weights,
        width=width,
        num_products=num_samples * num_steps,
    )


def _check_num_steps(num_steps, operator):
    if num_steps < 1:
        raise ValueError(
            f"Found num_steps={num_steps}, expected 1 or more steps of Lanczos; raise it."
        )
    return min(num_steps, operator.shape[0])


@cache
def _gauss_quadrature(num_steps: int) -> Integrand:
    """Return an integrand that gives a probe's Gauss quadrature (Golub and Welsch, 1969)."""

    def quadrature(mv, probe):
        _, alphas, betas = lanczos(mv, probe, num_steps)
        nodes, vectors = ritz_pairs(alphas, betas)
        return nodes, jnp.square(vectors[0])

    return quadrature


@cache
def _with_slope(num_steps: int) -> Integrand:
    r"""Return an integrand for the quadrature, not differentiated, and $z^T A^{-1} A z$.

    With $z^T A^{-1}$ held fixed, the mean of this number's derivative over probes is that of
    $\mathrm{tr} \log A$.
    """

    def quadrature(mv, probe):
        found = lanczos(lambda v: jax.lax.stop_gradient(mv(v)), probe, num_steps)
        nodes, vectors = ritz_pairs(found.alphas, found.betas)
        solution = jnp.linalg.norm(probe) * (vectors @ (vectors[0] / nodes)) @ found.rows
        return nodes, jnp.square(vectors[0]), jnp.vdot(solution, mv(probe))

    return quadrature


@jax.jit
def _times_log(weights, nodes):
    """Return `weights * log(nodes)`, zero where the weight is zero."""
    return jnp.where(weights > 0, weights * jnp.log(jnp.where(weights > 0, nodes, 1)), 0)


@jax.jit
def _broaden(nodes, weights, grid, width):
    """Return each probe's mixture of Gaussians, `(K, G)`, computed probe by probe."""

    def mixture(rule):
        heights = jax.scipy.stats.norm.pdf(grid[:, None], rule[0], width)
        with jax.default_matmul_precision("highest"):
            return heights @ rule[1]

    return jax.lax.map(mixture, (nodes, weights))


def _standard_error(values: Float[Array, "K *shape"]) -> Float[Array, "*shape"]:
    return values.std(0, ddof=1) / jnp.sqrt(len(values))
