r"""The summed negative log-likelihood, $\mathcal L(\theta) = \sum_n -\log p(y_n \mid f(x_n))$."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from laplace_kit.curv.entries import call_with_entries
from laplace_kit.curv.plan import Plan, make_plan
from laplace_kit.data import Chunk
from laplace_kit.likelihood import Likelihood
from laplace_kit.likelihood.base import check_targets
from laplace_kit.memory import DEFAULT_LIMITS, Limits
from laplace_kit.selection import Selection, Subset, select
from laplace_kit.tree import as_pytree_function, pytree_dataclass, replace


@pytree_dataclass(static=("plan", "limits"))
class Objective:
    """A model as a function of its free parameters only, and the likelihood of its outputs.

    `model_fn` is a `jax.tree_util.Partial`, so that frozen arrays are leaves and not constants. The
    likelihood is `None` where it plays no part. `plan` is the traced model, `None` until the shapes
    of inputs are known; `limits` bound the memory of every computation with the objective.
    """

    model_fn: Partial
    params: PyTree
    likelihood: Likelihood | None = None
    plan: Plan | None = None
    limits: Limits = DEFAULT_LIMITS

    def outputs(self, x: PyTree) -> Float[Array, "B *event"]:
        """Return the model's outputs at its own parameters."""
        return self.model_fn(self.params, x)

    def planned(self, x: PyTree) -> "Objective":
        """Return the objective with the plan for inputs, or shapes of inputs, with a leading axis.

        Raises
        ------
        ValueError
            If the model refuses them.
        """
        limits = self.limits.shared_by(x)
        if self.plan is not None and self.plan.suits(x):
            return self if limits is self.limits else replace(self, limits=limits)
        return replace(self, plan=make_plan(self.model_fn, self.params, x), limits=limits)

    def with_model(self, model_fn: Partial) -> "Objective":
        """Return the objective of another model with the same parameters, not planned yet."""
        return replace(self, model_fn=model_fn, plan=None)

    def within(self, batch_size: int | None = None, memory: int | None = None) -> "Objective":
        """Return the objective with other limits of memory, examples and bytes, where given."""
        limits = self.limits
        batch_size = limits.batch_size if batch_size is None else batch_size
        memory = limits.memory if memory is None else memory  # zero is refused, and no default
        return replace(self, limits=Limits(batch_size, memory, limits.device))


def restrict(
    model_fn: Callable,
    params: PyTree,
    likelihood: Likelihood | None = None,
    subset: Subset = None,
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[Objective, Selection]:
    """Return the objective as a function of the parameters that `subset` selects.

    Parameters
    ----------
    model_fn
        `(params, x) -> (N, *event)`.
    params, subset
        As in `laplace_kit.selection.select`; leaves that are not floating point are frozen.
    likelihood
        The distribution of the targets given the outputs; `None` where it plays no part.
    limits
        Bounds of the memory.
    """
    free, selection = select(params, subset)
    model_fn = restricted_model(model_fn, selection)
    return Objective(model_fn, free, likelihood, limits=limits), selection


def restricted_model(model_fn: Callable, selection: Selection) -> Partial:
    """Return the model as a function of the free parameters of a selection."""
    model_fn = as_pytree_function(model_fn)
    if jax.tree.leaves(selection):
        return Partial(_with_frozen, model_fn, selection)
    return model_fn


def _with_frozen(model_fn, selection, free, x):
    if jax.tree.leaves(selection.indices):
        return call_with_entries(model_fn, selection, free, x)
    return model_fn(selection.insert(free), x)


def example_losses(likelihood: Likelihood, f: Float[Array, "B *event"], y: PyTree):
    """Return the negative log-likelihood of every example, `(B,)`.

    Raises
    ------
    ValueError
        If the targets of this batch do not suit its outputs.
    """
    check_targets(likelihood, f, y)
    return jax.vmap(likelihood.negative_log_prob)(f, y)


def chunk_loss(objective: Objective, params: PyTree, chunk: Chunk) -> Float[Array, ""]:
    """Return the weighted sum of one chunk's losses, computed in float32 or better."""
    return loss_of_outputs(objective.likelihood, objective.model_fn(params, chunk.x), chunk)


def loss_of_outputs(
    likelihood: Likelihood, f: Float[Array, "B *event"], chunk: Chunk
) -> Float[Array, ""]:
    """Return the weighted sum of one chunk's losses, given its outputs."""
    f = f.astype(jnp.promote_types(f.dtype, jnp.float32))
    losses = example_losses(likelihood, f, chunk.y)
    return jnp.vdot(chunk.weight.astype(losses.dtype), losses)


def per_example(values: Float[Array, "B ..."], weight: Float[Array, " B"]) -> Float[Array, "B ..."]:
    """Multiply values by weights along their leading axis, keeping their dtype."""
    return values * weight.astype(values.dtype).reshape(-1, *(1,) * (values.ndim - 1))


def per_example_factor(
    factor: Float[Array, "B ..."], weight: Float[Array, " B"]
) -> Float[Array, "B ..."]:
    r"""Weigh $S_n$ by the roots of weights, so that $S_n S_n^\top$ has the weights themselves."""
    wide = jnp.promote_types(factor.dtype, jnp.float32)
    return per_example(factor, jnp.sqrt(weight.astype(wide)))
