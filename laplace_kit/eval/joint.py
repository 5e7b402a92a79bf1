r"""Joint moments of the linearised outputs at several inputs, $J(x)\, \Sigma\, J(x')^\top$."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from laplace_kit.approx.posterior import Posterior
from laplace_kit.curv.capture.blocks import Block, LookupRows
from laplace_kit.curv.capture.capture import jacobian
from laplace_kit.curv.capture.cost import check_fits, pair_bytes, projections, rows_cost
from laplace_kit.curv.objective import Objective
from laplace_kit.data import as_data
from laplace_kit.eval.moments import accurate
from laplace_kit.memory import readable
from laplace_kit.placement import placement_of
from laplace_kit.sums import map_over

# Every chunk repeats the passes of all inputs, which costs more than leaving the caches.
_PASSES_TO_SAVE = 16


def joint_moments(
    objective: Objective,
    posterior: Posterior,
    x: PyTree,
) -> tuple[Float[Array, "N *event"], Float[Array, "N C N C"]]:
    r"""Return the mean of the outputs at N inputs and the covariance between all pairs.

    $$f(x_n) = f(x_n; \theta^*), \quad
    \operatorname{cov}(f(x_n), f(x_m)) = J(x_n)\, \Sigma\, J(x_m)^\top$$

    Parameters
    ----------
    objective, posterior
        The model at its mode, and the Gaussian over its free parameters. The objective's limits
        bound the memory; its batch size B applies to either side of a pair.
    x
        Inputs with a leading axis N.

    Returns
    -------
    f_mean, joint_cov
        Over flattened outputs the covariance is `(N, C, N, C)`, symmetric and positive
        semi-definite up to rounding; `linearized_moments` has its blocks for n = m. Cost: $C N$
        backward passes and the posterior's root applied to $C N$ rows, once more for each chunk of
        B inputs if there are several, and the products of all pairs.

    Raises
    ------
    ValueError
        If the covariance itself, or one input with all of its outputs, exceeds the memory limit.

    References
    ----------
    Immer, Korzepa and Bauer (2021), Improving predictions of Bayesian neural nets via local
    linearization. Wang et al. (2021), Beyond marginal uncertainty: how accurately can Bayesian
    regression models estimate posterior predictive correlations?
    """
    x = as_data((x, ())).x
    objective = objective.planned(x)
    outputs = objective.plan.outputs(x)
    _check_result_fits(outputs, objective.limits.budget)
    posterior = posterior.for_prediction(objective.plan.layers.layouts)
    size = objective.limits.batch_size or pairs_at_a_time(objective, posterior)
    if size >= outputs.shape[0] and placement_of(x) is None:  # all of them on this device
        return map_over(_all_pairs, (objective, posterior), x, size)
    f_mean, covariance = map_over(_Pairs(size), (objective, posterior, x), x, size)
    return f_mean, covariance


def _check_result_fits(outputs: jax.ShapeDtypeStruct, limit: int) -> None:
    num, num_outputs = outputs.shape[0], math.prod(outputs.shape[1:])
    needed = (num * num_outputs) ** 2 * outputs.dtype.itemsize
    if needed > limit:
        raise ValueError(
            f"Found a joint covariance of {num} inputs with {num_outputs} output(s) each, which "
            f"takes {readable(needed)}, expected at most the memory limit of "
            f"{readable(limit)}; pass fewer inputs at a time, draw functions with "
            "sample_functions, or raise memory_limit=."
        )


def pairs_at_a_time(objective: Objective, posterior: Posterior) -> int:
    """Return B such that the rows of 2 B inputs and the products of their pairs fit."""
    limits, num_outputs = objective.limits, objective.plan.num_outputs
    work = partial(projections, num_vectors=posterior.num_projections)
    cost = rows_cost(objective, work)
    products = partial(_products_of_pairs, num_outputs=num_outputs)
    pairs = pair_bytes(objective, products)
    check_fits(cost, num_outputs, limits.budget)
    budget = min(_PASSES_TO_SAVE * limits.working_set(), limits.budget)
    one = cost.once + num_outputs * cost.direction
    return max(min(budget // (2 * one), math.isqrt(budget // pairs)), 1)


def _products_of_pairs(block: Block, num_outputs: int) -> tuple[int, int]:
    """Return the bytes that one direction of a pair of inputs takes in `cross`."""
    itemsize, num_positions = block.gradients.dtype.itemsize, block.gradients.shape[2]
    if isinstance(block, LookupRows):
        return 0, num_positions**2 * num_outputs * itemsize
    if num_positions > 1:  # multiplied out for each input separately
        return 0, 0
    return 0, block.gradients.shape[3] * block.gradients.shape[4] * itemsize


def _all_pairs(args, x):
    """Return the moments of inputs that are held at once."""
    objective, posterior = args
    f, rows = jacobian(objective, x)
    f, rows = accurate(f), rows.astype(posterior.dtype)
    return f, posterior.cross_covariance(rows, rows).astype(f.dtype)


class _Pairs(NamedTuple):
    """The moments of a chunk of inputs with all inputs, in chunks; hashable."""

    batch_size: int

    def __call__(self, args, x):
        objective, posterior, every = args
        f, rows = jacobian(objective, x)
        f, rows = accurate(f), rows.astype(posterior.dtype)
        columns = map_over(_columns, (objective, posterior, rows), every, self.batch_size)
        return f, jnp.moveaxis(columns, 0, 2).astype(f.dtype)


def _columns(args, other):
    objective, posterior, rows = args
    others = jacobian(objective, other)[1].astype(posterior.dtype)
    return jnp.moveaxis(posterior.cross_covariance(rows, others), 2, 0)


# --- marginals ------------------------------------------------------------------------------------


def marginal_moments(
    f_mean: Float[Array, "N *event"], joint_cov: Float[Array, "N C N C"]
) -> tuple[Float[Array, "N *event"], Float[Array, "N C C"]]:
    """Return the variances and covariances of each input, as `linearized_moments` does.

    Parameters
    ----------
    f_mean, joint_cov
        The result of `joint_moments`.

    Returns
    -------
    f_var, f_cov
        The variances at least zero.
    """
    f_cov = jnp.einsum("ncnd->ncd", joint_cov)
    f_var = jnp.maximum(jnp.einsum("ncc->nc", f_cov), 0)
    return f_var.reshape(f_mean.shape), f_cov
