"""Adapters: from a trained module of flax.nnx, flax.linen or equinox to `(model_fn, params)`.

Only parameters become parameters. Batch statistics, random states and other arrays are frozen:
they ride along in `model_fn`, a `jax.tree_util.Partial`, as leaves and not as constants of the
compiled program. Modules are put in evaluation mode without being changed.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import PyTree

ModelAndParams = tuple[jax.tree_util.Partial, PyTree]


def from_nnx(module: Any) -> ModelAndParams:
    """Split a `flax.nnx` module into a pure function and its `nnx.Param` values.

    Parameters
    ----------
    module
        Called with a batch as its only argument. Dropout and BatchNorm are set to evaluation mode
        on a copy; running statistics and random states are frozen.

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

    # A copy: a module that counts or draws while it is called may not change what another trace
    # made, as a scan within `nnx.RNN` would.
    return nnx.merge(structure, nnx.State(params), frozen, copy=True)(x)


def from_linen(
    module: Any, variables: Mapping[str, PyTree], *, arguments: Mapping[str, Any] | None = None
) -> ModelAndParams:
    """Split a `flax.linen` module and its variables into a pure function and its parameters.

    Parameters
    ----------
    module
        The module; `module.apply` is called without random states and with nothing mutable.
    variables
        What `module.init` returned: the collection `"params"` becomes the parameters, every other
        one (such as `"batch_stats"`) is frozen.
    arguments
        Keyword arguments of `__call__`. By default the usual names of the mode are set to
        evaluation where the signature has them: `train`, `training`, `is_training` to `False`;
        `deterministic`, `use_running_average` to `True`.

    Raises
    ------
    ValueError
        If `variables` has no collection `"params"`.
    """
    if "params" not in variables:
        raise ValueError(
            f"Found variables with the collections {sorted(variables)}, expected one named "
            "'params'; pass what module.init returned, as {'params': params, ...}."
        )
    if arguments is None:
        signature = inspect.signature(type(module).__call__).parameters
        modes = {"train": False, "training": False, "is_training": False}
        modes |= {"deterministic": True, "use_running_average": True}
        arguments = {name: value for name, value in modes.items() if name in signature}
    frozen = {name: values for name, values in variables.items() if name != "params"}
    call = _LinenCall(module, tuple(sorted(arguments.items())))
    return jax.tree_util.Partial(call, frozen), variables["params"]


class _LinenCall:
    """`module.apply` in evaluation mode, hashable so that programs are reused."""

    def __init__(self, module: Any, arguments: tuple[tuple[str, Any], ...]):
        self._key = (module, arguments)

    def __call__(self, frozen, params, x):
        module, arguments = self._key
        return module.apply({**frozen, "params": params}, x, **dict(arguments))

    def __eq__(self, other):
        return isinstance(other, _LinenCall) and self._key == other._key

    def __hash__(self):
        return hash(self._key)


def from_equinox(module: Any) -> ModelAndParams:
    """Split an equinox module of single examples into a function of batches and its parameters.

    Parameters
    ----------
    module
        A callable `eqx.Module`; its inexact arrays are the parameters, all else is frozen. It is
        put in inference mode on a copy and vmapped over examples.

    Returns
    -------
    model_fn, params
        `params` is the module with `None` for everything that is not a parameter.
    """
    import equinox as eqx

    params, frozen = eqx.partition(eqx.nn.inference_mode(module), eqx.is_inexact_array)
    arrays, structure = eqx.partition(frozen, eqx.is_array)
    return jax.tree_util.Partial(_EquinoxCall(structure), arrays), params


class _EquinoxCall:
    """An equinox module called on single examples, its structure compared by value."""

    def __init__(self, structure: Any):
        leaves, treedef = jax.tree.flatten(structure)
        self._key = (tuple(leaves), treedef)

    def __call__(self, arrays, params, x):
        import equinox as eqx

        leaves, treedef = self._key
        module = eqx.combine(params, arrays, jax.tree.unflatten(treedef, leaves))
        return jax.vmap(module)(x)

    def __eq__(self, other):
        return isinstance(other, _EquinoxCall) and self._key == other._key

    def __hash__(self):
        return hash(self._key)


def batched(fn: Callable[[PyTree, PyTree], Any]) -> Callable[[PyTree, PyTree], Any]:
    """Turn a model of single examples `(params, x_n) -> (*event,)` into one of batches."""
    return jax.vmap(fn, in_axes=(None, 0))
