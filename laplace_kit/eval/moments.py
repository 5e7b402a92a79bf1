r"""Moments of the linearised outputs, $f(x) \sim \mathcal N(f(x; \theta^*), J \Sigma J^\top)$."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from laplace_kit.approx.posterior import Posterior
from laplace_kit.curv.capture.capture import capture
from laplace_kit.curv.capture.cost import check_fits, choose_held, projections, rows_cost
from laplace_kit.curv.objective import Objective
from laplace_kit.sums import map_over


def linearized_moments(
    objective: Objective,
    posterior: Posterior,
    x: PyTree,
    *,
    full: bool,
) -> tuple[Float[Array, "N *event"], Float[Array, "N *event"], Float[Array, "N C C"] | None]:
    r"""Return mean, variance and, if `full`, covariance of the outputs at inputs.

    Parameters
    ----------
    objective, posterior
        The model at its mode, whose limits bound the memory, and the Gaussian over its free
        parameters.
    x
        Inputs with a leading axis N.
    full
        Whether to return covariances over flattened outputs, `(N, C, C)`, too.

    Returns
    -------
    f_mean, f_var, f_cov
        In float32 or better. Cost: one forward and C backward passes, and the posterior's root
        applied to C rows for each input. Without covariances, variances are computed for some
        outputs at a time where memory requires it.

    Raises
    ------
    ValueError
        If one input, with all of its outputs for covariances or with one for variances, exceeds the
        memory limit.
    """
    objective = objective.planned(x)
    posterior = posterior.for_prediction(objective.plan.layers.layouts)
    if full:
        size = inputs_at_a_time(objective, posterior, remedy='pass covariance="diagonal", ')
        return map_over(_full_moments, (objective, posterior), x, size)
    work = partial(projections, num_vectors=posterior.num_projections)
    cost = rows_cost(objective, work, for_outputs=True)
    held = choose_held(cost, objective.plan.num_outputs, objective.limits)
    return map_over(_Variances(held.num_directions), (objective, posterior), x, held.batch_size)


def inputs_at_a_time(objective: Objective, posterior: Posterior, *, remedy: str = "") -> int:
    """Return the number of inputs whose rows of all outputs fit, with the work for covariances.

    Parameters
    ----------
    objective, posterior
        As for `linearized_moments`, planned and for prediction.
    remedy
        What else to do if a single input does not fit, for the `ValueError`.
    """
    limits, num_outputs = objective.limits, objective.plan.num_outputs
    work = partial(projections, num_vectors=posterior.num_projections)
    cost = rows_cost(objective, work)
    check_fits(cost, num_outputs, limits.budget, remedy)
    held = cost.once + num_outputs * cost.direction
    return limits.batch_size or max(limits.working_set() // held, 1)


class _Variances(NamedTuple):
    """Moments without covariances, some outputs at a time; hashable, to be compiled once."""

    num_directions: int

    def __call__(self, args, x):
        objective, posterior = args
        captured = capture(objective, x)
        f = captured.outputs
        num = math.prod(f.shape[1:])

        def variances(columns: Array) -> Float[Array, "B R"]:
            return posterior.output_variance(_unit_rows(captured, columns, posterior.dtype))

        if self.num_directions >= num:
            variance = variances(jnp.arange(num))
        else:
            steps = -(-num // self.num_directions)
            columns = jnp.arange(steps * self.num_directions).reshape(steps, -1)
            blocks = jnp.moveaxis(jax.lax.map(variances, columns), 0, 1)
            variance = blocks.reshape(len(f), -1)[:, :num]
        f = accurate(f)
        return f, variance.reshape(f.shape).astype(f.dtype), None


def _full_moments(args, x):
    objective, posterior = args
    captured = capture(objective, x)
    f = accurate(captured.outputs)
    rows = _unit_rows(captured, jnp.arange(math.prod(f.shape[1:])), posterior.dtype)
    covariance = posterior.output_covariance(rows).astype(f.dtype)
    variance = jnp.diagonal(covariance, axis1=1, axis2=2).reshape(f.shape)
    return f, jnp.maximum(variance, 0), covariance


def accurate(f: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Return outputs in float32 or better, for moments, roots and probabilities."""
    return f.astype(jnp.promote_types(f.dtype, jnp.float32))


def _unit_rows(captured, columns, dtype):
    return captured.pull_outputs(columns).astype(dtype)
