"""The adapter of Keras 3 on JAX."""

import inspect
import sys
from collections import Counter
from typing import Any

import jax
from jaxtyping import PyTree

from laplace_kit.host import fetch_array
from laplace_kit.model.pair import ModelAndParams
from laplace_kit.tree import paths


def from_keras(model: Any) -> ModelAndParams:
    """Split a Keras model into a pure function, in inference mode, and its trainable variables.

    Parameters
    ----------
    model
        A built `keras.Model` or `keras.Layer` of Keras 3 with `KERAS_BACKEND=jax`: sequential,
        functional or subclassed. Its last layer returns logits, or the mean of a regression, as
        likelihoods expect. The model itself is not changed.

    Returns
    -------
    model_fn
        `(params, x) -> outputs`, a pytree that holds all other variables, such as moving averages
        and those with `trainable=False`, as they are now. `model` is called, so that it must stay
        as it is, apart from the values of its variables.
    params
        Nested dictionaries of arrays, by the paths of the trainable variables without the model's
        own name: `{"dense": {"kernel": ..., "bias": ...}}`.

    Raises
    ------
    TypeError
        If `model` is not of Keras 3, or when it is called, if the names of its variables are not
        those of the parameters.
    ValueError
        If Keras runs on another backend, the model is not built, it has no trainable variable or
        several of the same path, or it ends in a softmax or sigmoid.
    """
    # A model of Keras has imported it; another import could load a backend that nobody uses.
    keras = sys.modules.get("keras")
    if not hasattr(keras, "Layer") or not isinstance(model, keras.Layer):
        raise TypeError(
            f"Found {type(model).__name__}, expected a keras.Model or keras.Layer of Keras 3; "
            "models of tf.keras are loaded again by keras.models.load_model, with "
            "KERAS_BACKEND=jax."
        )
    if keras.backend.backend() != "jax":
        raise ValueError(
            f"Found Keras on the backend {keras.backend.backend()!r}, expected 'jax', whose models "
            "are functions that JAX differentiates; set os.environ['KERAS_BACKEND'] = 'jax' before "
            "keras is first imported, and load the model there, keras.models.load_model(file): "
            "files do not depend on the backend."
        )
    if not model.built:
        raise ValueError(
            f"Found a {type(model).__name__} without weights, expected one that is built and "
            "trained; call it on a batch first, model(x[:1])."
        )
    _check_outputs(keras, model)
    # Copies, as `fit`, `evaluate` and `predict` of Keras donate the arrays of its variables.
    variables = {_path(model, of): _copied(of.value) for of in model.trainable_variables}
    _check_paths(model, list(variables))
    frozen = [_copied(of.value) for of in model.non_trainable_variables]
    return jax.tree_util.Partial(_KerasCall(model, tuple(variables)), frozen), _nested(variables)


class _KerasCall:
    """A model called without side effects; equal to another call of the same object."""

    def __init__(self, model: Any, names: tuple[str, ...]):
        self.model = model
        self.names = names
        # A `call` without this argument refuses it; its layers are in inference mode by default.
        takes_training = "training" in inspect.signature(model.call).parameters
        self._arguments = {"training": False} if takes_training else {}

    def __call__(self, frozen: list, params: PyTree, x: PyTree) -> Any:
        values = dict(zip(paths(params), jax.tree.leaves(params), strict=True))
        if values.keys() != set(self.names):
            raise TypeError(
                f"Found parameters with the paths {sorted(values)}, expected those of the Keras "
                f"model, {sorted(self.names)}; Keras numbers layers in the order in which a "
                "process makes them: name the layers, or call keras.utils.clear_session() before "
                "the model is built."
            )
        trainable = [values[name] for name in self.names]
        return self.model.stateless_call(trainable, frozen, x, **self._arguments)[0]

    def __eq__(self, other):
        if not isinstance(other, _KerasCall):
            return False
        return self.model is other.model and self.names == other.names

    def __hash__(self):
        return hash((id(self.model), self.names))


def _copied(value: jax.Array) -> jax.Array:
    """Return a copy, without the program that JAX would compile for each shape."""
    return jax.device_put(fetch_array(value).copy(), value.sharding)


def _path(model: Any, variable: Any) -> str:
    return variable.path.removeprefix(f"{model.name}/")


def _nested(variables: dict[str, Any]) -> dict[str, Any]:
    """Return nested dictionaries of values whose keys are paths."""
    tree = {}
    for path, value in variables.items():
        *groups, last = path.split("/")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return tree


def _check_paths(model: Any, names: list[str]) -> None:
    """Raise a `ValueError` unless each trainable variable has a path of its own."""
    if not names:
        raise ValueError(
            f"Found no trainable variable in the {type(model).__name__}, expected at least one; "
            "set layer.trainable = True for the layers whose weights are to be random."
        )
    counts = Counter(_path(model, variable) for variable in model.trainable_variables)
    inner = {name for name in names if any(other.startswith(f"{name}/") for other in names)}
    shared = sorted(inner | {name for name, count in counts.items() if count > 1})
    if shared:
        raise ValueError(
            f"Found several trainable variables at the paths {shared}, expected one at each; give "
            "every layer a name of its own, keras.layers.Dense(..., name='head')."
        )


def _check_outputs(keras: Any, model: Any) -> None:
    """Raise a `ValueError` if the last layer, where it is known, returns probabilities."""
    found = [
        (layer, name)
        for layer in _last_layers(keras, model)
        for name in ("softmax", "log_softmax", "sigmoid")
        if getattr(layer, "activation", None) is getattr(keras.activations, name)
        or (name == "softmax" and isinstance(layer, keras.layers.Softmax))
    ]
    for layer, name in found:
        raise ValueError(
            f"Found a model that ends in a {name}, by the layer {layer.name!r}, expected logits, "
            "the numbers before it, as lk.Categorical() and lk.Bernoulli() take; set "
            "activation=None for this layer and from_logits=True for the loss, which keeps the "
            f"weights, or after training model.get_layer({layer.name!r}).activation = "
            "keras.activations.linear. A regression onto numbers between zero and one may keep it "
            "as a function, activation=lambda z: keras.ops.sigmoid(z)."
        )


def _last_layers(keras: Any, model: Any) -> list[Any]:
    """Return the layers whose results a sequential or functional model returns."""
    if isinstance(model, keras.Sequential):
        return _last_layers(keras, model.layers[-1])
    if isinstance(model, keras.Model) and hasattr(model, "outputs"):
        made = [getattr(out, "_keras_history", None) for out in model.outputs or ()]
        ends = [one.operation for one in made if one is not None]
        return [last for end in ends for last in _last_layers(keras, end)]
    return [model]
