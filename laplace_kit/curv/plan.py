"""The plan of a model: all that follows from its structure and the shapes of its inputs.

A plan holds no arrays. It is static and compared by what it was made from, so that programs
compiled for one model serve the next of the same shapes.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, PyTreeDef
from jaxtyping import ArrayLike, PyTree

from laplace_kit import tree
from laplace_kit.curv.capture.layers import Layers, find_layers
from laplace_kit.curv.capture.stacking import stacked
from laplace_kit.memory import apply_model, intermediate_bytes
from laplace_kit.model.checks import check_one_output
from laplace_kit.placement import shapes as _unplaced


class _Shapes(NamedTuple):
    """A pytree by its structure and the shapes of its leaves: hashable."""

    structure: PyTreeDef
    specs: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def of(cls, values: PyTree) -> "_Shapes":
        """Return the structure, shapes and dtypes of a pytree of arrays."""
        leaves, structure = jax.tree.flatten(values)
        return cls(structure, tuple(map(_spec, leaves)))

    @property
    def tree(self) -> PyTree:
        """The pytree of shapes."""
        return jax.tree.unflatten(self.structure, self.specs)


class _Key(NamedTuple):
    """The key of a plan: shapes of the model and its parameters and of an input, JAX's settings."""

    model: _Shapes
    one: _Shapes
    settings: tuple


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A model at inputs of given shapes, traced without arithmetic.

    `output` is the shape and dtype of one example's outputs; `example_bytes` bounds the bytes of
    all intermediate values that one more example adds to a forward pass.
    """

    key: _Key
    output: jax.ShapeDtypeStruct
    example_bytes: int
    holds_tracers: bool  # whether the model closes over tracers, inside a transformation
    code: int  # the hash, which every call of a compiled function needs

    def suits(self, x: PyTree) -> bool:
        """Return whether this is the plan for inputs, or shapes of inputs, with a leading axis."""
        return self.key[1:] == (_Shapes.of(_resized(x, 1)), _settings())

    @property
    def one(self) -> PyTree:
        """The shapes of an input with a leading axis of length one."""
        return self.key.one.tree

    @property
    def num_outputs(self) -> int:
        """The number of one example's outputs."""
        return self.output.size

    def outputs(self, x: PyTree) -> jax.ShapeDtypeStruct:
        """Return shape and dtype of the outputs, `(N, *event)`, for N inputs."""
        num = jax.tree.leaves(x)[0].shape[0]
        return jax.ShapeDtypeStruct((num, *self.output.shape), self.output.dtype)

    @property
    def layers(self) -> Layers:
        """The model's program for one example, its layers, and how each leaf enters them."""
        return _find_layers(self) if self.holds_tracers else _cached_layers(self)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Plan) and self.key == other.key)

    def __hash__(self) -> int:
        return self.code


def make_plan(model_fn: Partial, params: PyTree, x: PyTree) -> Plan:
    """Trace a model for one and for two examples.

    Parameters
    ----------
    model_fn
        `(params, x) -> (N, *event)`; as a pytree, the arrays that it holds are frozen.
    params, x
        Arrays or their shapes: values are not read; the leading axis of `x` is replaced.

    Raises
    ------
    ValueError
        If the model refuses the inputs, or its outputs are not one array with a leading axis; if
        `x` is a single example, such as `x[0]`, the message says so.
    """
    try:
        key = _Key(_Shapes.of((model_fn, params)), _Shapes.of(_resized(x, 1)), _settings())
        plan = _make_plan(key)
    except ValueError:
        _refuse_single_example(model_fn, params, x)
        raise
    if plan.holds_tracers:  # which may not outlive the transformation
        _make_plan.cache_clear()
    return plan


@functools.lru_cache(maxsize=64)
def _make_plan(key: _Key) -> Plan:
    """Return the plan of a key, cached by structure, shapes and settings as in `jax.jit`."""
    (model_fn, params), one = key.model.tree, key.one.tree
    # A function made here, so that JAX keeps no trace in which the model closes over tracers.
    trace = jax.make_jaxpr(lambda *args: apply_model(*args), return_shape=True)
    pair, outputs_of_pair = trace(model_fn, params, _resized(one, 2))
    single, outputs = trace(model_fn, params, one)
    for num, found in ((2, outputs_of_pair), (1, outputs)):
        if hasattr(found, "shape") and found.shape[:1] != (num,):
            raise ValueError(
                f"Found outputs of shape {found.shape} for {num} examples, expected a leading "
                f"axis of {num}; a model of single examples becomes one of batches by "
                "lk.model.batched(fn)."
            )
    check_one_output(outputs)
    output = jax.ShapeDtypeStruct(outputs.shape[1:], outputs.dtype)
    own = sum(leaf.dtype.itemsize * leaf.size for leaf in jax.tree.leaves(one))
    added = intermediate_bytes(pair.jaxpr) - intermediate_bytes(single.jaxpr)
    holds_tracers = not tree.is_concrete(single.consts)
    return Plan(key, output, max(added, 0) + own, holds_tracers, hash(key))


def _find_layers(plan: Plan) -> Layers:
    return stacked(find_layers(*plan.key.model.tree, plan.one))


_cached_layers = functools.lru_cache(maxsize=64)(_find_layers)


def _refuse_single_example(model_fn: Partial, params: PyTree, x: PyTree) -> None:
    """Raise a `ValueError` if the model accepts a batch of inputs of which `x` is a single one."""
    several = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), x)
    try:
        outputs = jax.eval_shape(apply_model, *_unplaced((model_fn, params)), several)
    except ValueError:  # `apply_model` turns the model's own errors into this
        return
    if hasattr(outputs, "shape") and outputs.shape[:1] == (2,):
        shapes = ", ".join(str(leaf.shape) for leaf in jax.tree.leaves(x))
        raise ValueError(
            f"Found inputs of shape {shapes}, of a single example, expected a leading axis of "
            "examples; pass x[None], or x[:1] instead of x[0]."
        )


def _resized(x: PyTree, num: int) -> PyTree:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((num, *a.shape[1:]), a.dtype), x)


def _settings() -> tuple:
    """Return the settings of JAX that a model's program depends on."""
    return jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision


def _spec(array: ArrayLike | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    weak_type = getattr(array, "weak_type", False)
    return jax.ShapeDtypeStruct(jnp.shape(array), jnp.result_type(array), weak_type=weak_type)
