r"""The summed negative log-likelihood, $\mathcal L(\theta) = \sum_n -\log p(y_n \mid f(x_n))$."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from laplace_kit.curv.entries import call_with_entries
from laplace_kit.data import Chunk
from laplace_kit.likelihood import Likelihood, check_targets
from laplace_kit.memory import apply_model
from laplace_kit.selection import Selection, Subset, select
from laplace_kit.tree import as_pytree_function, pytree_dataclass


@pytree_dataclass()
class Objective:
    """A model as a function of its free parameters only, and the likelihood of its outputs.

    `model_fn` is a `jax.tree_util.Partial`, so that frozen arrays are leaves and not constants.
    """

    model_fn: jax.tree_util.Partial
    params: PyTree
    likelihood: Likelihood

    def outputs(self, x: PyTree) -> Float[Array, "B *event"]:
        """Return the model's outputs at its own parameters."""
        return self.model_fn(self.params, x)

    def output_spec(self, x: PyTree) -> jax.ShapeDtypeStruct:
        """Return the outputs' shape and dtype; nothing is computed.

        Raises
        ------
        ValueError
            If the model refuses the inputs or its outputs lack their leading axis, as of a single
            example, `x[0]`.
        """
        rows = jax.tree.leaves(x)
        num = rows[0].shape[0]
        try:
            outputs = apply_model.eval_shape(self.model_fn, self.params, x)
        except ValueError:
            self._refuse_single_example(x)
            raise
        has_rows = not hasattr(outputs, "shape") or outputs.shape[:1] == (num,)
        # Where outputs are as many as features, an example looks like a batch of numbers.
        if not has_rows or (any(leaf.ndim == 1 for leaf in rows) and not self._takes(x, 1)):
            self._refuse_single_example(x)
        if not has_rows:
            raise ValueError(
                f"Found outputs of shape {outputs.shape} for {num} examples, expected a leading "
                f"axis of {num}; a model of single examples becomes one of batches by "
                "lk.model.batched(fn)."
            )
        return outputs

    def _refuse_single_example(self, x: PyTree) -> None:
        of_several = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), x
        )
        if self._takes(of_several, 2):
            shapes = ", ".join(str(leaf.shape) for leaf in jax.tree.leaves(x))
            raise ValueError(
                f"Found inputs of shape {shapes}, of a single example, expected a leading axis of "
                "examples; pass x[None], or x[:1] instead of x[0]."
            )

    def _takes(self, x: PyTree, num: int) -> bool:
        """Return whether so many inputs of the same shapes have one row of outputs for each."""
        spec = jax.tree.map(  # in dtypes that JAX has, whatever those of the host are
            lambda leaf: jax.ShapeDtypeStruct((num, *leaf.shape[1:]), leaf.dtype),
            jax.eval_shape(lambda leaves: leaves, x),
        )
        try:
            outputs = apply_model.eval_shape(self.model_fn, self.params, spec)
        except ValueError:  # which is what `apply_model` makes of the model's own
            return False
        return not hasattr(outputs, "shape") or outputs.shape[:1] == (num,)


def restrict(
    model_fn: Callable, params: PyTree, likelihood: Likelihood, subset: Subset = None
) -> tuple[Objective, Selection]:
    """Return the objective as a function of the parameters that `subset` selects.

    Parameters
    ----------
    model_fn
        `(params, x) -> (N, *event)`.
    params, subset
        As in `laplace_kit.selection.select`; leaves that are not floating point are frozen.
    likelihood
        Of the outputs.
    """
    free, selection = select(params, subset)
    return of_free_params(model_fn, free, selection, likelihood), selection


def of_free_params(
    model_fn: Callable, free: PyTree, selection: Selection, likelihood: Likelihood
) -> Objective:
    """Return the objective for a selection that was made before; see `restrict`."""
    model_fn = as_pytree_function(model_fn)
    if jax.tree.leaves(selection):
        model_fn = jax.tree_util.Partial(_with_frozen, model_fn, selection)
    return Objective(model_fn, free, likelihood)


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
    """Return the weighted sum of one chunk's losses, of outputs in float32 or better."""
    f = objective.model_fn(params, chunk.x)
    f = f.astype(jnp.promote_types(f.dtype, jnp.float32))
    losses = example_losses(objective.likelihood, f, chunk.y)
    return jnp.vdot(chunk.weight.astype(losses.dtype), losses)


def per_example(values: Float[Array, "B ..."], weight: Float[Array, " B"]) -> Float[Array, "B ..."]:
    """Weigh values along their leading axis, keeping their dtype."""
    return values * weight.astype(values.dtype).reshape(-1, *(1,) * (values.ndim - 1))
