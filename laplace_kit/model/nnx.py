"""The adapter of `flax.nnx`."""

from collections.abc import Mapping
from typing import Any

import jax

from laplace_kit.model.arguments import evaluation_arguments
from laplace_kit.model.pair import ModelAndParams


def from_nnx(
    module: Any, wrt: Any = None, *, arguments: Mapping[str, Any] | None = None
) -> ModelAndParams:
    """Split a `flax.nnx` module into a pure function and its parameters.

    Parameters
    ----------
    module
        A module called with a batch. A copy of it is set to evaluation mode (dropout, batch norm).
    wrt
        Which variables are parameters: a type such as `nnx.LoRAParam`, or any filter of nnx, as
        for `nnx.Optimizer(..., wrt=...)`; `None` for `nnx.Param`, with its subtypes. All other
        variables are frozen: the base of adapters, running statistics, random states.
    arguments
        Keyword arguments of the module's call. By default the usual names of the mode are set to
        evaluation where its signature has them: `train`, `training`, `is_training` to `False`;
        `deterministic`, `use_running_average` to `True`.

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
    ValueError
        If `wrt` selects no variable.
    """
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise TypeError(
            f"Found {type(module).__name__}, expected a flax.nnx.Module; for flax.linen use "
            "from_linen(module, variables), for equinox from_equinox(module)."
        )
    wrt = nnx.Param if wrt is None else wrt
    evaluated = nnx.clone(module)
    evaluated.eval()
    structure, params, frozen = nnx.split(evaluated, wrt, ...)
    if not jax.tree.leaves(params):
        kinds = {type(variable).__name__ for _, variable in nnx.iter_graph(evaluated)
                 if isinstance(variable, nnx.Variable)}  # fmt: skip
        raise ValueError(
            f"Found no variable in the {type(module).__name__} that wrt={_shown(wrt)} selects, "
            f"expected at least one; its variables are of the types {sorted(kinds)}."
        )
    call = _NnxCall(evaluation_arguments(type(module).__call__, arguments))
    return jax.tree_util.Partial(call, structure, frozen), nnx.to_pure_dict(params)


def _shown(wrt: Any) -> str:
    return getattr(wrt, "__name__", repr(wrt))


class _NnxCall:
    """A module put together and called, hashable so that programs are reused."""

    def __init__(self, arguments: tuple[tuple[str, Any], ...]):
        self._arguments = arguments

    def __call__(self, structure, frozen, params, x):
        from flax import nnx

        # A copy: a module that changes its state when called, such as `nnx.RNN` with its scan, must
        # not change arrays of another trace.
        module = nnx.merge(structure, nnx.State(params), frozen, copy=True)
        return module(x, **dict(self._arguments))

    def __eq__(self, other):
        return isinstance(other, _NnxCall) and self._arguments == other._arguments

    def __hash__(self):
        return hash((_NnxCall, self._arguments))
