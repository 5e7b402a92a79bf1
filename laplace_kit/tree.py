"""Parameters as pytrees and as flat vectors: paths, the flat order, prefix broadcast.

A *vector* of the library is a pytree like the parameters, or a flat `(P,)` array that holds the
floating-point leaves in `jax.flatten_util.ravel_pytree` order.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from laplace_kit.model.checks import check_model
from laplace_kit.placement import automatic

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True)
def pytree_dataclass(*, static: tuple[str, ...] = ()) -> Callable[[type[_T]], type[_T]]:
    """Return a class decorator for frozen dataclasses that are pytrees, with `static` fields.

    Unlike `jax.tree_util.register_dataclass`, rebuilding from leaves bypasses `__init__`, so that
    validation and conversion in `__post_init__` run when a user constructs the object and not
    inside every transformation.

    Parameters
    ----------
    static
        Names of the fields that are hashable structure; all other fields hold leaves.
    """

    def register(cls: type[_T]) -> type[_T]:
        cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
        names = tuple(field.name for field in dataclasses.fields(cls))
        leaves = tuple(name for name in names if name not in static)

        def flatten_with_keys(obj):
            children = [(jax.tree_util.GetAttrKey(n), getattr(obj, n)) for n in leaves]
            return children, tuple(getattr(obj, n) for n in static)

        def flatten(obj):
            return [getattr(obj, n) for n in leaves], tuple(getattr(obj, n) for n in static)

        def unflatten(structure, children):
            obj = object.__new__(cls)
            for name, value in zip(leaves + static, (*children, *structure), strict=True):
                object.__setattr__(obj, name, value)
            return obj

        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
        return cls

    return register


def replace(obj: _T, **changes: Any) -> _T:
    """Return a frozen dataclass with other field values, without the checks of construction."""
    copy = object.__new__(type(obj))
    for field in dataclasses.fields(obj):
        object.__setattr__(copy, field.name, changes.pop(field.name, getattr(obj, field.name)))
    if changes:
        raise TypeError(f"Found no fields {sorted(changes)} in {type(obj).__name__}.")
    return copy


def as_pytree_function(fn: Callable) -> jax.tree_util.Partial:
    """Wrap a function as a pytree; a `jax.tree_util.Partial` keeps its arrays as leaves.

    Raises
    ------
    TypeError
        If it is not a function of `(params, x)`; see `laplace_kit.model.checks.check_model`.
    """
    if isinstance(fn, jax.tree_util.Partial):
        return fn
    check_model(fn)
    return jax.tree_util.Partial(fn)


def is_concrete(tree: PyTree) -> bool:
    """Return whether no leaf is a tracer, so that values can be read."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def is_scalar(tree: PyTree) -> bool:
    """Return whether this is one number, and not a pytree or an array of several."""
    return jax.tree_util.treedef_is_leaf(jax.tree.structure(tree)) and jnp.ndim(tree) == 0


def paths(tree: PyTree) -> tuple[str, ...]:
    """Return the path of every leaf, as in `"layers/0/kernel"`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)


# --- shared leaves ---------------------------------------------------------------------------


def without_shared_leaves(value: PyTree, owner: PyTree) -> jax.tree_util.Partial:
    """Return `value` minus the leaves it shares with `owner`, as a function that puts them back.

    `jit` copies what it returns, even arguments; leaves that are not returned are not copied.

    Parameters
    ----------
    value
        A pytree, made from `owner`.
    owner
        The pytree whose leaves need not be kept twice; the function is called with it.
    """
    leaves, structure = jax.tree.flatten(value)
    places = {id(leaf): place for place, leaf in enumerate(jax.tree.leaves(owner))}
    sources = tuple(places.get(id(leaf)) for leaf in leaves)
    own = [leaf for leaf, place in zip(leaves, sources, strict=True) if place is None]
    return jax.tree_util.Partial(_WithSharedLeaves(structure, sources), own)


class _WithSharedLeaves(NamedTuple):
    """The structure of a pytree, and for each leaf the index of the owner's leaf, or `None`."""

    structure: jax.tree_util.PyTreeDef
    sources: tuple[int | None, ...]

    def __call__(self, own, owner):
        given, rest = jax.tree.leaves(owner), iter(own)
        leaves = [next(rest) if place is None else given[place] for place in self.sources]
        return jax.tree.unflatten(self.structure, leaves)


# --- the flat form ---------------------------------------------------------------------------


def size(tree: PyTree) -> int:
    """Return the number of entries of all leaves."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: PyTree) -> int:
    """Return the bytes of all leaves together."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def dtype(tree: PyTree) -> jnp.dtype:
    """Return the dtype of the flat form: the leaves' common one."""
    return jnp.result_type(*jax.tree.leaves(tree))


@partial(jax.jit, static_argnames="num_leading", inline=True)
def ravel(tree: PyTree, *, num_leading: int = 0) -> Float[Array, "*batch P"]:
    """Return all leaves, after `num_leading` common axes, concatenated to flat vectors."""
    return automatic(partial(_concatenated, num_leading), tree)


def _concatenated(num_leading: int, tree: PyTree) -> Array:
    common, leaves = dtype(tree), jax.tree.leaves(tree)
    shapes = [jnp.shape(leaf) for leaf in leaves]
    flat = [
        jnp.reshape(leaf, (*s[:num_leading], math.prod(s[num_leading:]))).astype(common)
        for leaf, s in zip(leaves, shapes, strict=True)
    ]
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=-1)


def unravel(flat: Float[Array, "*batch P"], like: PyTree) -> PyTree:
    """Return a pytree with the structure, shapes and dtypes of `like` from flat vectors.

    Parameters
    ----------
    flat
        One vector `(P,)`, or several with leading axes `(..., P)`, which the leaves keep.
    like
        A pytree of arrays.
    """
    leaves, structure = jax.tree.flatten(like)
    kinds = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    return jax.tree.unflatten(structure, _cut(flat, kinds))


@partial(jax.jit, static_argnames="kinds", inline=True)
def _cut(flat: Float[Array, "*batch P"], kinds: tuple) -> list[Array]:
    pieces, start = [], 0
    for shape, dtype in kinds:
        stop = start + math.prod(shape)
        pieces.append(flat[..., start:stop].reshape(flat.shape[:-1] + shape).astype(dtype))
        start = stop
    return pieces


# --- one value per tree, leaf or parameter -----------------------------------------------------


def broadcast(values: PyTree, like: PyTree, *, name: str) -> Float[Array, " P"]:
    """Return one value per parameter, `(P,)`, from a scalar, a pytree prefix or a vector.

    The dtype is the parameters', or float32 if that is less precise.

    Parameters
    ----------
    values
        A scalar, one value per leaf or group (a pytree prefix of `like`), one per parameter (a
        pytree like `like`), or a flat `(P,)` array.
    like
        The parameters.
    name
        The argument's name, for the message.

    Raises
    ------
    ValueError
        If `values` is none of these.
    """
    num, common = size(like), jnp.promote_types(dtype(like), jnp.float32)
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(values)):
        values = jnp.asarray(values, common)
        if values.shape == ():
            return _repeated(values, num)
        if values.shape == (num,) or [values.shape] == [
            jnp.shape(a) for a in jax.tree.leaves(like)
        ]:
            return jnp.ravel(values)
        raise ValueError(
            f"Found `{name}` of shape {values.shape}, expected {_KINDS} of shape ({num},); "
            "repeat the values to parameter length or pass one per leaf."
        )
    per_leaf = values_per_leaf(values, like, name=name)
    return _repeated_by_leaf(per_leaf, tuple(jnp.shape(leaf) for leaf in jax.tree.leaves(like)))


@partial(jax.jit, static_argnames="num")
def _repeated(value, num):
    return jnp.full(num, value)


@partial(jax.jit, static_argnames="shapes")
def _repeated_by_leaf(values, shapes):
    values = jax.tree.leaves(values)
    return ravel([jnp.broadcast_to(v, shape) for v, shape in zip(values, shapes, strict=True)])


_KINDS = (
    "a scalar, a pytree prefix of the parameters (one value per leaf or group), a pytree like the "
    "parameters, or a flat array"
)


def values_per_leaf(values: PyTree, like: PyTree, *, name: str) -> PyTree:
    """Return a pytree prefix repeated for every leaf, as values of shape `()` or the leaf's."""
    try:
        full = jax.tree.broadcast(values, like)
    except ValueError as error:
        raise ValueError(
            f"Found `{name}` with the structure {jax.tree.structure(values)}, expected {_KINDS}; "
            f"the parameters' leaves are {', '.join(paths(like))}."
        ) from error
    common = jnp.promote_types(dtype(like), jnp.float32)

    def convert(path, value, leaf):
        value = jnp.asarray(value, common)
        if value.shape not in ((), jnp.shape(leaf)):
            raise ValueError(
                f"Found `{name}` at {jax.tree_util.keystr(path)} of shape {value.shape}, expected "
                f"() or {jnp.shape(leaf)}, the leaf's; reshape it or pass a scalar."
            )
        return value

    return jax.tree_util.tree_map_with_path(convert, full, like)
