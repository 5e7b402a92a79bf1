"""Models made of functions: of single examples, or with an offset."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from laplace_kit.model.checks import check_model, check_one_output


def batched(fn: Callable[[PyTree, PyTree], Any]) -> Callable[[PyTree, PyTree], Any]:
    """Return a model of batches from one of single examples `(params, x_n) -> (*event,)`."""
    return jax.vmap(fn, in_axes=(None, 0))


def with_offset(model_fn: Callable[[PyTree, PyTree], Any]) -> jax.tree_util.Partial:
    r"""Add a known term to a model's outputs, $f(\theta, (x, o)) = f(\theta, x) + o$.

    For counts with an exposure E (a time, an area or a population at risk) the log-rate is
    $f(\theta, x) + \log E$: the offset is `log(E)`, and the model's own output the log-rate for
    unit exposure.

    Parameters
    ----------
    model_fn
        `(params, x) -> (N, *event)`; a `jax.tree_util.Partial` keeps its arrays as leaves.

    Returns
    -------
    model_fn
        `(params, (x, offset)) -> (N, *event)`, with `offset` of the outputs' shape. New inputs have
        an offset too, so that predictions, intervals and metrics are for counts with that exposure;
        an offset of zero gives rates for unit exposure.

    Raises
    ------
    TypeError
        If `model_fn` is not a function of parameters and inputs. When the new model is called, if
        its inputs are not a pair.
    ValueError
        When it is called, if the shapes of offset and outputs differ.
    """
    if not isinstance(model_fn, jax.tree_util.Partial):
        check_model(model_fn)
        model_fn = jax.tree_util.Partial(model_fn)
    return jax.tree_util.Partial(_add_offset, model_fn)


def _add_offset(model_fn, params, inputs):
    if not isinstance(inputs, tuple | list) or len(inputs) != 2:
        raise TypeError(
            f"Found inputs of type {type(inputs).__name__} for a model with an offset, expected a "
            "pair (x, offset), which makes data ((x, offset), y)."
        )
    x, offset = inputs
    outputs = model_fn(params, x)
    check_one_output(outputs)
    if jnp.shape(offset) != outputs.shape:
        raise ValueError(
            f"Found an offset of shape {jnp.shape(offset)} for outputs {outputs.shape}, expected "
            "the same shape, so that nothing is broadcast by accident; reshape it, for example "
            "offset[:, None]."
        )
    return outputs + jnp.asarray(offset, outputs.dtype)
