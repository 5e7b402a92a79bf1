r"""Moments of the linearised outputs, $f(x) \sim \mathcal N(f(x; \theta^*), J \Sigma J^\top)$.

Exact variances take a backward pass for each output of an input, unless layers share the gradients
of their inputs. Outputs over all positions and a vocabulary, of which a sequence has tens of
thousands, are instead estimated from draws of the linearised function, a forward pass each.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from laplace_kit import tree
from laplace_kit.approx.posterior import Posterior
from laplace_kit.chunks import chunk_of_map
from laplace_kit.curv.capture.capture import capture
from laplace_kit.curv.capture.cost import check_fits, choose_held, projections, rows_cost
from laplace_kit.curv.objective import Objective
from laplace_kit.derivatives import linearize
from laplace_kit.sums import map_over

# The most outputs of an input whose moments take a pass through the model each, by default.
MOST_PASSES = 1024
# Draws that share a pass.
_DRAWS_AT_A_TIME = 8


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
        return map_over(
            _full_moments, (objective, posterior), x, size, together=posterior.is_spread
        )
    work = partial(projections, num_vectors=posterior.num_projections)
    cost = rows_cost(objective, work, for_outputs=True)
    held = choose_held(cost, objective.plan.num_outputs, objective.limits)
    variances, args = _Variances(held.num_directions), (objective, posterior)
    return map_over(variances, args, x, held.batch_size, together=posterior.is_spread)


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


def takes_many_passes(objective: Objective) -> bool:
    """Return whether exact moments of an input take more than 1024 passes through the model."""
    plan = objective.plan
    if plan.num_outputs <= MOST_PASSES:
        return False
    return rows_cost(objective, for_outputs=True).direction >= plan.example_bytes


def estimated_moments(
    objective: Objective, posterior: Posterior, x: PyTree, key: PRNGKeyArray, num_samples: int
) -> tuple[Float[Array, "N *event"], Float[Array, "N *event"], None]:
    r"""Return the mean of the linearised outputs, and their variances from draws.

    $\frac1K \sum_k (J \delta_k)^2$ for draws $\delta_k \sim \mathcal N(0, \Sigma)$, the same for
    all inputs: unbiased, with a relative standard error of $\sqrt{2 / K}$ for each output.

    Parameters
    ----------
    objective, posterior, x
        As for `linearized_moments`.
    key, num_samples
        For the draws, K.

    Returns
    -------
    f_mean, f_var, None
        In float32 or better. Cost: one forward pass and K of its tangents, whatever the number of
        outputs, and K draws for each chunk of inputs, so that they need not be held.
    """
    num = min(num_samples, _DRAWS_AT_A_TIME)
    starts = jax.random.split(key, -(-num_samples // num))
    drawn = _Drawn(num, num_samples)
    args = objective.planned(x), posterior, starts
    size = chunk_of_map(drawn, args, x, objective.limits)
    return map_over(drawn, args, x, size, together=posterior.is_spread)


class _Drawn(NamedTuple):
    """Moments by draws, some at a time; hashable, to be compiled once."""

    at_a_time: int
    num_samples: int

    def __call__(self, args, x):
        objective, posterior, keys = args
        f, push_forward, _ = linearize(lambda free: objective.model_fn(free, x), objective.params)

        def add_draws(total, key_and_first):
            key, first = key_and_first
            draws = posterior.sample(key, self.at_a_time)
            moved = jax.vmap(lambda one: push_forward(tree.unravel(one, objective.params)))(draws)
            is_wanted = first + jnp.arange(self.at_a_time) < self.num_samples
            squares = jnp.einsum("k...,k...,k->...", *[accurate(moved)] * 2, is_wanted)
            return total + squares, None

        firsts = self.at_a_time * jnp.arange(len(keys))
        f = accurate(f)
        total, _ = jax.lax.scan(add_draws, jnp.zeros_like(f), (keys, firsts))
        return f, total / self.num_samples, None


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
