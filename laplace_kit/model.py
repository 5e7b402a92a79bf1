"""Adapters: from a trained module of flax.nnx, flax.linen or equinox to `(model_fn, params)`.

Only the module's parameters become `params`. Batch statistics, random states and other arrays are
frozen: they are leaves of `model_fn`, a `jax.tree_util.Partial`, and not constants of the compiled
program. Modules are put in evaluation mode without being changed.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

__all__ = ["ModelAndParams", "batched", "from_equinox", "from_linen", "from_nnx", "with_offset"]

ModelAndParams = tuple[jax.tree_util.Partial, PyTree]

# How to turn a module into a function, by package and name of a base class.
_REMEDIES = {
    ("flax.nnx", "Module"): "pass what model_fn, params = lk.model.from_nnx(module) gives",
    ("flax.linen", "Module"): (
        "pass what model_fn, params = lk.model.from_linen(module, variables) gives"
    ),
    ("equinox", "Module"): "pass what model_fn, params = lk.model.from_equinox(module) gives",
    ("haiku", "Transformed"): "pass lambda params, x: transformed.apply(params, None, x)",
    ("keras", "Layer"): (
        "with Keras on JAX pass lambda params, x: model.stateless_call(params, rest, x)[0], where "
        "params are the values of model.trainable_variables, and rest those of the others"
    ),
    ("torch", "Module"): "a torch module has to be rewritten as a JAX function of its weights",
}


def check_model(model_fn: Any) -> None:
    """Raise a `TypeError` if `model_fn` is not a function of parameters and a batch of inputs.

    Parameters
    ----------
    model_fn
        The argument of `fit`. For a module of a neural-network library, the message names the
        adapter that turns it into a function.
    """
    module = _library_module(model_fn)
    if module or not callable(model_fn):
        raise TypeError(
            f"Found a model of type {type(model_fn).__name__}, expected a function (params, x) -> "
            f"outputs; {module or 'for modules see laplace_kit.model'}."
        )
    try:
        signature = inspect.signature(model_fn)
    except ValueError:  # some callables written in C have none
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise TypeError(
            f"Found a model with the arguments {signature}, which cannot be called as "
            f"model_fn(params, x) ({error}); expected a function of parameters and a batch of "
            "inputs: close over everything else, as in "
            "lambda params, x: model(params, x, train=False)."
        ) from error


def _library_module(model: Any) -> str:
    """Return how to turn a module of a known library into a function, `""` for anything else."""
    for cls in type(model).__mro__:
        for (package, name), remedy in _REMEDIES.items():
            if cls.__name__ == name and f"{cls.__module__}.".startswith(f"{package}."):
                # Functions that equinox wraps are modules too, but without arrays of their own.
                wrapped = package == "equinox" and not _holds_arrays(model)
                return "" if wrapped else remedy
    return ""


def _holds_arrays(model: Any) -> bool:
    return any(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(model))


def check_one_output(outputs: Any) -> None:
    """Raise a `ValueError` if a model's outputs, or their shapes, are not one `(N, *event)`."""
    if getattr(outputs, "shape", ()):
        return
    leaves, _ = jax.tree_util.tree_flatten_with_path(outputs)
    remedy = "return a single array from model_fn"
    if leaves and leaves[0][0]:
        one = jax.tree_util.keystr(leaves[0][0])
        remedy = (
            f"choose one, as in lambda params, x: model_fn(params, x){one}, or join those that the "
            "likelihood takes, such as mean and scale, with jnp.concatenate([...], axis=-1)"
        )
    shapes = jax.tree.map(lambda leaf: tuple(getattr(leaf, "shape", ())), outputs)
    raise ValueError(
        f"Found model outputs {shapes}, expected one array with a leading axis of examples, "
        f"(N, *event); {remedy}."
    )


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


def from_equinox(module: Any, state: Any = None) -> ModelAndParams:
    """Split an equinox module of single examples into a function of batches and its parameters.

    Parameters
    ----------
    module
        A callable `eqx.Module`; its inexact arrays are the parameters, all else is frozen. A copy
        is put in inference mode and vmapped over examples.
    state
        The `eqx.nn.State` of a stateful module, such as one with BatchNorm, after training. The
        module is called as `module(x, state)`, and the state that it returns is dropped.

    Returns
    -------
    model_fn, params
        `params` is the module with `None` for everything that is not a parameter.

    Raises
    ------
    TypeError
        If `module` is not an `eqx.Module` that can be called, or a stateful one is passed without
        its state.
    """
    import equinox as eqx

    if not isinstance(module, eqx.Module) or not callable(module):
        raise TypeError(
            f"Found {type(module).__name__}, expected an equinox.Module that can be called; a "
            "stateful one also takes its state, from_equinox(model, state); for flax.nnx use "
            "from_nnx(module), for flax.linen from_linen(module, variables)."
        )

    def is_index(node):
        return isinstance(node, eqx.nn.StateIndex)

    stateful = any(map(is_index, jax.tree.leaves(module, is_leaf=is_index)))
    if (stateful and state is None) or not isinstance(state, eqx.nn.State | None):
        raise TypeError(
            f"Found {'no state' if state is None else type(state).__name__} for the module "
            f"{type(module).__name__}, expected the equinox.nn.State that it is called with, as "
            "training left it; pass from_equinox(model, state), where model, state = "
            "equinox.nn.make_with_state(Model)(...)."
        )
    params, frozen = eqx.partition(eqx.nn.inference_mode(module), eqx.is_inexact_array)
    arrays, structure = eqx.partition((frozen, state), eqx.is_array)
    return jax.tree_util.Partial(_EquinoxCall(structure), arrays), params


class _EquinoxCall:
    """An equinox module called on single examples, its structure compared by value."""

    def __init__(self, structure: Any):
        leaves, treedef = jax.tree.flatten(structure)
        self._key = (tuple(leaves), treedef)

    def __call__(self, arrays, params, x):
        import equinox as eqx

        leaves, treedef = self._key
        frozen, state = eqx.combine(arrays, jax.tree.unflatten(treedef, leaves))
        module = eqx.combine(params, frozen)

        def single(x_n):
            return module(x_n) if state is None else module(x_n, state)[0]

        return jax.vmap(single)(x)

    def __eq__(self, other):
        return isinstance(other, _EquinoxCall) and self._key == other._key

    def __hash__(self):
        return hash(self._key)


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
