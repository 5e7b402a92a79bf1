"""The adapter of `flax.nnx`."""

from typing import Any

import jax

from laplace_kit.model.pair import ModelAndParams


def from_nnx(module: Any) -> ModelAndParams:
    """Split a `flax.nnx` module into a pure function and its `nnx.Param` values.

    Parameters
    ----------
    module
        A module called with a batch as its only argument. A copy of it is set to evaluation mode
        (dropout, batch norm); running statistics and random states are frozen.

    Returns
    -------
    model_fn
        `(params, x) -> outputs`, a pytree that holds the frozen state.
    params
        Nested dictionaries of arrays, keyed as the module's attributes.

    Raises
    ------
    TypeError
        If `module` is not a `flax.nnx.Module`.
    """
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise TypeError(
            f"Found {type(module).__name__}, expected a flax.nnx.Module; for flax.linen use "
            "from_linen(module, variables), for equinox from_equinox(module)."
        )
    evaluated = nnx.clone(module)
    evaluated.eval()
    structure, params, frozen = nnx.split(evaluated, nnx.Param, ...)
    return jax.tree_util.Partial(_call_nnx, structure, frozen), nnx.to_pure_dict(params)


def _call_nnx(structure, frozen, params, x):
    from flax import nnx

    # A copy: a module that changes its state when called, such as `nnx.RNN` with its scan, must not
    # change arrays of another trace.
    return nnx.merge(structure, nnx.State(params), frozen, copy=True)(x)
