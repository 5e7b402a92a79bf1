"""Parameters as pytrees and as flat vectors: ravel, prefix broadcast, selection by path or mask.

A *vector* of the library is a pytree like the parameters, or a flat `(P,)` array that holds the
floating-point leaves in `jax.flatten_util.ravel_pytree` order. Leaves that are not floating point
are frozen: they belong to the model, never to the vector.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True)
def pytree_dataclass(*, static: tuple[str, ...] = ()) -> Callable[[type[_T]], type[_T]]:
    """Make a class a frozen dataclass and a pytree whose `static` fields are structure.

    Unlike `jax.tree_util.register_dataclass`, rebuilding from leaves bypasses `__init__`, so that
    validation and conversion in `__post_init__` run when a user constructs the object and not
    inside every transformation.

    Parameters
    ----------
    static
        Names of the fields that are hashable structure; every other field holds leaves.
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
    """Wrap a function as a pytree; a `jax.tree_util.Partial` keeps its arrays as leaves."""
    if not callable(fn):
        raise TypeError(
            f"Found a model of type {type(fn).__name__}, expected a function (params, x) -> "
            "outputs; for modules see laplace_kit.model."
        )
    return fn if isinstance(fn, jax.tree_util.Partial) else jax.tree_util.Partial(fn)


def is_concrete(tree: PyTree) -> bool:
    """Tell whether no leaf is a tracer, so that values can be looked at."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def is_scalar(tree: PyTree) -> bool:
    """Tell whether this is one number, not a pytree or an array of several."""
    return jax.tree_util.treedef_is_leaf(jax.tree.structure(tree)) and jnp.ndim(tree) == 0


def paths(tree: PyTree) -> tuple[str, ...]:
    """Return the path of every leaf, as in `"layers/0/kernel"`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)


# --- the flat form ---------------------------------------------------------------------------


def size(tree: PyTree) -> int:
    """Count the entries of all leaves."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def dtype(tree: PyTree) -> jnp.dtype:
    """Return the dtype of the flat form: the leaves' common one."""
    return jnp.result_type(*jax.tree.leaves(tree))


@partial(jax.jit, static_argnames="num_leading", inline=True)
def ravel(tree: PyTree, *, num_leading: int = 0) -> Float[Array, "*batch P"]:
    """Concatenate all leaves, after `num_leading` axes in common, to vectors of a common dtype."""
    common = dtype(tree)
    flat = [
        jnp.reshape(leaf, (*jnp.shape(leaf)[:num_leading], -1)).astype(common)
        for leaf in jax.tree.leaves(tree)
    ]
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=-1)


def unravel(flat: Float[Array, "*batch P"], like: PyTree) -> PyTree:
    """Cut the last axis of `flat` into leaves shaped and typed as those of `like`.

    Parameters
    ----------
    flat
        One vector `(P,)`, or several with leading axes `(..., P)`, which the leaves keep.
    like
        The pytree whose structure, shapes and dtypes are wanted.
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
    """Expand a scalar, a pytree prefix or a vector to one value per parameter, `(P,)`.

    In the parameters' dtype, or float32 where that is less precise.

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
            return jnp.full(num, values)
        if values.shape == (num,) or [values.shape] == [
            jnp.shape(a) for a in jax.tree.leaves(like)
        ]:
            return jnp.ravel(values)
        raise ValueError(
            f"Found `{name}` of shape {values.shape}, expected {_KINDS} of shape ({num},); "
            "repeat the values to parameter length or pass one per leaf."
        )
    return ravel(_fill(values, like, name))


_KINDS = (
    "a scalar, a pytree prefix of the parameters (one value per leaf or group), a pytree like the "
    "parameters, or a flat array"
)


def _fill(values: PyTree, like: PyTree, name: str) -> PyTree:
    """Expand a pytree prefix to arrays of the leaves' shapes."""
    try:
        full = jax.tree.broadcast(values, like)
    except ValueError as error:
        raise ValueError(
            f"Found `{name}` with the structure {jax.tree.structure(values)}, expected {_KINDS}; "
            f"the parameters' leaves are {', '.join(paths(like))}."
        ) from error
    common = jnp.promote_types(dtype(like), jnp.float32)

    def fill(path, value, leaf):
        value = jnp.asarray(value, common)
        if value.shape not in ((), jnp.shape(leaf)):
            raise ValueError(
                f"Found `{name}` at {jax.tree_util.keystr(path)} of shape {value.shape}, expected "
                f"() or {jnp.shape(leaf)}, the leaf's; reshape it or pass a scalar."
            )
        return jnp.broadcast_to(value, jnp.shape(leaf))

    return jax.tree_util.tree_map_with_path(fill, full, like)


# --- selection ----------------------------------------------------------------------------------


@pytree_dataclass()
class Selection:
    """Which entries of a parameter tree are free, and the values of those that are not.

    `frozen` is shaped like the parameters, with `None` where a whole leaf is free; `indices` has an
    index array where only some entries of a leaf are free, and `None` elsewhere.
    """

    frozen: PyTree
    indices: PyTree

    def insert(self, free: PyTree) -> PyTree:
        """Put free values into the frozen ones: the inverse of selecting; differentiable."""

        def put(value, frozen, index):
            if value is None:
                return frozen
            if index is None:
                return value
            return jnp.ravel(frozen).at[index].set(value).reshape(jnp.shape(frozen))

        return jax.tree.map(put, free, self.frozen, self.indices, is_leaf=lambda v: v is None)

    def take(self, full: PyTree) -> PyTree:
        """Return the free entries of a pytree like all the parameters."""

        def pick(frozen, index, value):
            if frozen is None:
                return value
            return None if index is None else jnp.ravel(value)[index]

        return jax.tree.map(pick, self.frozen, self.indices, full, is_leaf=lambda v: v is None)

    def broadcast(self, values: PyTree, free: PyTree, *, name: str) -> Float[Array, " P"]:
        """Expand values to one per free parameter, from a prefix of all or of the free ones."""
        one = jax.tree_util.treedef_is_leaf(jax.tree.structure(values))
        if one or not jax.tree.leaves(self.frozen) or _is_prefix(values, free):
            return broadcast(values, free, name=name)
        return ravel(self.take(_fill(values, self.insert(free), name)))


def _is_prefix(values: PyTree, like: PyTree) -> bool:
    try:
        full = jax.tree.broadcast(values, like)
    except ValueError:
        return False
    pairs = zip(jax.tree.leaves(full), jax.tree.leaves(like), strict=True)
    return all(jnp.shape(value) in ((), jnp.shape(leaf)) for value, leaf in pairs)


Subset = None | Callable[[str], bool] | PyTree


def select(params: PyTree, subset: Subset = None) -> tuple[PyTree, Selection]:
    """Split parameters into the free part and the rest.

    Parameters
    ----------
    params
        A pytree of arrays. Leaves that are not floating point, or empty, are always frozen.
    subset
        `None` (all), a predicate on the leaf's path such as `lambda path: "head" in path`, or a
        pytree prefix of booleans: one per leaf or group, or an array of the leaf's shape.

    Returns
    -------
    free
        `params` with `None` for frozen leaves and `(k,)` arrays for partly free ones.
    selection
        What puts them back, by `selection.insert(free)`.

    Raises
    ------
    TypeError, ValueError
        If `subset` is none of these, or selects nothing.
    """
    leaves, structure = jax.tree.flatten(params)
    masks = _leaf_masks(params, subset)
    free, frozen, indices = [], [], []
    for leaf, mask in zip(leaves, masks, strict=True):
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and jnp.size(leaf) > 0
        mask = np.logical_and(mask, floating)
        leaf = jnp.asarray(leaf)
        if mask.all() and floating:
            parts = (leaf, None, None)
        elif not mask.any():
            parts = (None, leaf, None)
        else:
            index = jnp.asarray(np.flatnonzero(mask))
            parts = (jnp.ravel(leaf)[index], leaf, index)
        for part, place in zip(parts, (free, frozen, indices), strict=True):
            place.append(part)
    if not any(part is not None for part in free):
        listed = ", ".join(paths(params)) or "none"
        raise ValueError(
            "Found no free floating-point parameter, expected at least one: the parameters' "
            f"leaves are {listed}; pass parameters with floating-point leaves, and a `subset` "
            "that selects some of them."
        )
    return jax.tree.unflatten(structure, free), Selection(
        jax.tree.unflatten(structure, frozen), jax.tree.unflatten(structure, indices)
    )


def _leaf_masks(params: PyTree, subset: Subset) -> list[np.ndarray]:
    leaves = jax.tree.leaves(params)
    if subset is None:
        return [np.asarray(True)] * len(leaves)
    if isinstance(subset, str):
        raise ValueError(
            f"Found subset={subset!r}, expected None, a predicate on the leaf's path or a pytree "
            f"of booleans; to choose by name pass lambda path: {subset!r} in path. The parameters' "
            f"leaves are {', '.join(paths(params))}."
        )
    if callable(subset):
        return [np.asarray(bool(subset(path))) for path in paths(params)]
    try:
        full = jax.tree.leaves(jax.tree.broadcast(subset, params))
    except ValueError as error:
        raise ValueError(
            f"`subset` has the structure {jax.tree.structure(subset)}, expected a pytree prefix of "
            f"the parameters, whose leaves are {', '.join(paths(params))}; or pass a predicate on "
            "the leaf's path."
        ) from error
    masks = []
    for path, mask, leaf in zip(paths(params), full, leaves, strict=True):
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape not in ((), jnp.shape(leaf)):
            raise ValueError(
                f"`subset` at {path!r} is {mask.dtype} of shape {mask.shape}, expected booleans "
                f"of shape () or {jnp.shape(leaf)}, the leaf's."
            )
        masks.append(mask)
    return masks


def as_array(values: ArrayLike | Any) -> Array:
    """Turn array-likes, torch tensors among them, into a JAX array with memory of its own.

    A loader may fill its buffer anew while the device still reads, hence the copy; `device_put`
    needs no program for each shape as `jnp.asarray` does.
    """
    if isinstance(values, jax.Array):
        return values
    return jax.device_put(np.asarray(values).copy())
