"""What is passed for a model: a function of parameters and inputs that returns one array."""

import inspect
from typing import Any

import jax

# How to turn a module into a function, by package and name of a base class.
_REMEDIES = {
    ("flax.nnx", "Module"): "pass what model_fn, params = lk.model.from_nnx(module) gives",
    ("flax.linen", "Module"): (
        "pass what model_fn, params = lk.model.from_linen(module, variables) gives"
    ),
    ("equinox", "Module"): "pass what model_fn, params = lk.model.from_equinox(module) gives",
    ("haiku", "Transformed"): (
        "pass what model_fn, params = lk.model.from_haiku(transformed, params) gives"
    ),
    ("haiku", "TransformedWithState"): (
        "pass what model_fn, params = lk.model.from_haiku(transformed, params, state) gives"
    ),
    ("keras", "Layer"): "pass what model_fn, params = lk.model.from_keras(model) gives",
    ("torch", "Module"): "pass what model_fn, params = lk.model.from_torch(module) gives",
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
