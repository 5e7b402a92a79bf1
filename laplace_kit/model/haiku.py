"""The adapter of Haiku."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import PyTree

from laplace_kit.model.arguments import evaluation_arguments
from laplace_kit.model.pair import ModelAndParams


def from_haiku(
    transformed: Any,
    params: Mapping[str, PyTree],
    state: PyTree = None,
    *,
    arguments: Mapping[str, Any] | None = None,
) -> ModelAndParams:
    """Return a pure function of a Haiku transform, and its parameters.

    Parameters
    ----------
    transformed
        What `hk.transform` or `hk.transform_with_state` returns, also without its random key by
        `hk.without_apply_rng`; it is applied without a key, so that a random operation is an error.
    params
        The parameters after training.
    state
        For `hk.transform_with_state`, the state after training, such as moving averages. It is
        frozen; the state that a call returns is dropped.
    arguments
        Keyword arguments of the transformed function. By default the usual names of the mode are
        set to evaluation where its signature has them: `train`, `training`, `is_training` to
        `False`; `deterministic`, `use_running_average` to `True`.

    Returns
    -------
    model_fn
        `(params, x) -> outputs`, a pytree that holds the state.
    params
        As given.

    Raises
    ------
    TypeError
        If `transformed` is not a transform, or one with state is passed without its state or the
        other way round.
    """
    import haiku as hk

    if not isinstance(transformed, hk.Transformed | hk.TransformedWithState):
        raise TypeError(
            f"Found {type(transformed).__name__}, expected a haiku.Transformed or "
            "haiku.TransformedWithState; pass transformed = hk.transform(forward), where forward "
            "makes the modules and calls them."
        )
    has_state = isinstance(transformed, hk.TransformedWithState)
    if has_state != (state is not None):
        found = "a state" if state is not None else "no state"
        remedy = "from_haiku(transformed, params, state)" if has_state else "no state"
        raise TypeError(
            f"Found {found} for a haiku.{type(transformed).__name__}; pass {remedy}, where "
            "params, state = transformed.init(key, x) before training, or params alone if the "
            "transform is hk.transform(forward)."
        )
    call = _HaikuCall(transformed.apply, evaluation_arguments(transformed.apply, arguments))
    return jax.tree_util.Partial(call, state), params


class _HaikuCall:
    """A transform's function in evaluation mode, hashable so that programs are reused."""

    def __init__(self, apply: Callable, arguments: tuple[tuple[str, Any], ...]):
        self._key = (apply, arguments)

    def __call__(self, state, params, x):
        apply, arguments = self._key
        key = (None,) if "rng" in inspect.signature(apply).parameters else ()
        if state is None:
            return apply(params, *key, x, **dict(arguments))
        return apply(params, state, *key, x, **dict(arguments))[0]

    def __eq__(self, other):
        return isinstance(other, _HaikuCall) and self._key == other._key

    def __hash__(self):
        return hash(self._key)
