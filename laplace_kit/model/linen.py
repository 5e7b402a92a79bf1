"""The adapter of `flax.linen`."""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import PyTree

from laplace_kit.model.arguments import evaluation_arguments
from laplace_kit.model.pair import ModelAndParams


def from_linen(
    module: Any, variables: Mapping[str, PyTree], *, arguments: Mapping[str, Any] | None = None
) -> ModelAndParams:
    """Split a `flax.linen` module and its variables into a pure function and its parameters.

    Parameters
    ----------
    module
        The module; `module.apply` is called without random states and with nothing mutable.
    variables
        The result of `module.init`: the collection `"params"` becomes the parameters, every other
        one (such as `"batch_stats"`) is frozen.
    arguments
        Keyword arguments of `__call__`. By default the usual names of the mode are set to
        evaluation where the signature has them: `train`, `training`, `is_training` to `False`;
        `deterministic`, `use_running_average` to `True`.

    Raises
    ------
    TypeError, ValueError
        If `module` is not a `flax.linen.Module`, or `variables` has no collection `"params"`.
    """
    from flax import linen

    if not isinstance(module, linen.Module):
        raise TypeError(
            f"Found {type(module).__name__}, expected a flax.linen.Module; for flax.nnx use "
            "from_nnx(module), for equinox from_equinox(module)."
        )
    if "params" not in variables:
        raise ValueError(
            f"Found variables with the collections {sorted(variables)}, expected one named "
            "'params'; pass what module.init returned, as {'params': params, ...}."
        )
    frozen = {name: values for name, values in variables.items() if name != "params"}
    call = _LinenCall(module, evaluation_arguments(type(module).__call__, arguments))
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
