"""A check that a model is deterministic and treats each example independently of its batch.

Posteriors and predictions call the model with batches of any size. If outputs depend on the rest of
the batch, each of these calls is to a different model.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from laplace_kit import tree
from laplace_kit.data import InMemory
from laplace_kit.examples import first_examples
from laplace_kit.host import fetch
from laplace_kit.memory import DEFAULT_LIMITS, Limits
from laplace_kit.placement import in_parts
from laplace_kit.tree import as_pytree_function

_NUM_EXAMPLES = 4
# Rounding depends on the batch size, and an example at a jump of the model amplifies it. A change
# of this share of the largest output, for half of the examples, is more than rounding.
_TOO_LARGE = 0.1


def check_independence(
    model_fn: Callable, params: PyTree, x: PyTree, limits: Limits = DEFAULT_LIMITS
) -> None:
    """Compare the outputs of a few examples in one batch with those of each example by itself.

    Where these differ by more than rounding in the dtype of the outputs, the model is called twice
    with the same batch, and by the same program with a batch that repeats the worst example: there
    a sound model differs only by rounding, whatever precision it computes in.

    Parameters
    ----------
    model_fn
        `(params, x) -> (N, *event)`.
    params
        Its parameters.
    x
        Inputs with a leading axis, whose outputs are finite. Nothing is checked inside JAX
        transformations, where values are unknown, or with a single example.
    limits
        The number of examples that may be held at a time.

    Raises
    ------
    ValueError
        If outputs depend on the other examples of the batch, on their number or position, or differ
        between two calls. Cost: one program, the model for a few examples.
    """
    num = min(_NUM_EXAMPLES, len(jax.tree.leaves(x)[0]), limits.batch_size or _NUM_EXAMPLES)
    model_fn = as_pytree_function(model_fn)
    if num < 2 or not tree.is_concrete((model_fn, params, x)):
        return
    with jax.default_matmul_precision("highest"):  # lower precision would hide differences
        distance, scale = _compare(model_fn, params, x, num)
        if not tree.is_concrete((distance, scale)):  # under a transformation of something else
            return
        tolerance = float(jnp.finfo(scale.dtype).eps) ** 0.5 * float(scale)
        if not float(distance) <= tolerance:
            few = first_examples(InMemory(x, ()), num).x
            _explain(model_fn, params, few, tolerance, float(scale))


@partial(jax.jit, static_argnames="num")
def _compare(model_fn, params, x, num) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the largest difference between outputs one by one and in a batch, and the largest."""
    few = first_examples(InMemory(x, ()), num).x

    def compare(model, few):
        model_fn, params = model
        together = model_fn(params, few)
        alone = jax.vmap(lambda x_n: _alone(model_fn, params, x_n))(few)
        return jnp.max(jnp.abs(together - alone)), jnp.max(jnp.abs(together))

    return in_parts(compare, None, (model_fn, params), few, summed=True)


def _alone(model_fn, params, x_n) -> Float[Array, "*event"]:
    return model_fn(params, jax.tree.map(lambda leaf: leaf[None], x_n))[0]


def _explain(model_fn, params, few: PyTree, tolerance: float, scale: float) -> None:
    """Raise a `ValueError` that names the cause of the difference, unless it is rounding."""
    # Two functions are traced separately: numbers drawn while tracing are drawn again.
    first, second = (
        jax.jit(lambda *model, x: in_parts(lambda m, x: m[0](m[1], x), None, model, x, summed=True))
        for _ in range(2)
    )
    together = first(model_fn, params, x=few)
    change = float(jnp.max(_row_distances(together, second(model_fn, params, x=few))))
    if change > tolerance:
        raise ValueError(
            f"Found a model that is not deterministic: outputs as large as {scale:.3g} of the same "
            f"inputs differ by {change:.3g}, expected a function of parameters and inputs only; "
            "switch off dropout and noise, and draw random numbers outside of it."
        )
    rows = [jax.tree.map(lambda leaf, n=n: leaf[n : n + 1], few) for n in range(len(together))]
    alone = jnp.concatenate([first(model_fn, params, x=row) for row in rows])
    distances = fetch(_row_distances(together, alone))
    worst = int(np.argmax(distances))
    repeated = jax.tree.map(lambda leaf: leaf[np.full(len(leaf), worst)], few)
    moved = float(_row_distances(together, first(model_fn, params, x=repeated))[worst])
    if moved > tolerance or np.median(distances) > _TOO_LARGE * scale:
        raise ValueError(
            "Found a model whose outputs for an example depend on the rest of its batch: alone "
            f"they differ by {distances.max():.3g} from those among {len(together)} examples, "
            f"which are as large as {scale:.3g}; expected each example to be treated by itself, "
            "with the same outputs in every batch. Put BatchNorm and dropout in evaluation mode, "
            "as lk.model.from_nnx, from_linen and from_equinox do, and let no mean, norm, softmax "
            "or random mask run over the leading axis."
        )


def _row_distances(first: Array, second: Array) -> Float[Array, " B"]:
    """Return the largest difference in each row, infinite where something is not finite."""
    gap = jnp.abs(first - second).astype(jnp.float32).reshape(len(first), -1)
    return jnp.max(jnp.nan_to_num(gap, nan=jnp.inf, posinf=jnp.inf), axis=1)
