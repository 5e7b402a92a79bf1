"""Selection of the random parameters by path, by mask or by index; the others are frozen.

Leaves that are not floating point, or empty, are always frozen: they belong to the model, never to
a vector of the library. Complex leaves must be frozen, by leaving them out of `subset`.
"""

import dataclasses
import fnmatch
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Num, PyTree

from laplace_kit import tree
from laplace_kit.arrays import as_array
from laplace_kit.host import fetch_array
from laplace_kit.tree import paths, pytree_dataclass

# None for all; a predicate on the leaf's path; booleans or indices of parameters, as in `select`.
Subset = None | Callable[[str], bool] | PyTree


@pytree_dataclass()
class Selection:
    """The free entries of a parameter tree, and the values of the frozen ones.

    `frozen` is shaped like the parameters, with `None` where a whole leaf is free; `indices` has an
    index array where only some entries of a leaf are free, and `None` elsewhere.
    """

    frozen: PyTree
    indices: PyTree

    def insert(self, free: PyTree) -> PyTree:
        """Return all parameters, from free values and the frozen ones; differentiable."""

        def put(value, frozen, index):
            if value is None:
                return frozen
            if index is None:
                return value
            return jnp.ravel(frozen).at[index].set(value).reshape(jnp.shape(frozen))

        return jax.tree.map(put, free, self.frozen, self.indices, is_leaf=lambda v: v is None)

    def take(self, full: PyTree) -> PyTree:
        """Return the free entries of a pytree like all the parameters.

        A scalar in place of an array stands for all entries of its leaf and stays one.
        """

        def pick(frozen, index, value):
            if frozen is None:
                return value
            if index is None:
                return None
            return jnp.ravel(value)[index] if jnp.ndim(value) else value

        return jax.tree.map(pick, self.frozen, self.indices, full, is_leaf=lambda v: v is None)

    def broadcast(self, values: PyTree, free: PyTree, *, name: str) -> Float[Array, " P"]:
        """Expand values to one per free parameter, from a prefix of all or of the free ones."""
        one = jax.tree_util.treedef_is_leaf(jax.tree.structure(values))
        if not (one or not jax.tree.leaves(self.frozen) or _is_prefix(values, free)):
            full = jax.eval_shape(self.insert, free)  # only shapes: frozen leaves may be large
            values = self.take(tree.values_per_leaf(values, full, name=name))
        return tree.broadcast(values, free, name=name)


def _is_prefix(values: PyTree, like: PyTree) -> bool:
    try:
        full = jax.tree.broadcast(values, like)
    except ValueError:
        return False
    pairs = zip(jax.tree.leaves(full), jax.tree.leaves(like), strict=True)
    return all(jnp.shape(value) in ((), jnp.shape(leaf)) for value, leaf in pairs)


@dataclasses.dataclass(frozen=True)
class Named:
    """A predicate that is true for paths with one of these names among their components.

    A name of several components, such as `"layers/0"`, matches consecutive ones, with dots in the
    place of slashes too, as torch writes them. In a name, `*` stands for any characters of a
    component. `select` refuses a name that no path has.
    """

    names: tuple[str, ...]

    def __call__(self, path: str) -> bool:
        return any(_has_name(path, name) for name in self.names)


def _has_name(path: str, name: str) -> bool:
    parts, wanted = _components(path), _components(name)
    return any(
        all(map(_matches, parts[start:], wanted)) for start in range(len(parts) - len(wanted) + 1)
    )


def _components(path: str) -> list[str]:
    return path.replace(".", "/").split("/")


def _matches(component: str, name: str) -> bool:
    return fnmatch.fnmatchcase(component, name) if "*" in name else component == name


def select(params: PyTree, subset: Subset = None) -> tuple[PyTree, Selection]:
    """Split parameters into the free part and the rest.

    Parameters
    ----------
    params
        A pytree of arrays. Leaves that are not floating point, or empty, are always frozen; complex
        ones must be left out of `subset`.
    subset
        `None` (all); a predicate on the leaf's path such as `lambda path: "head" in path`; a pytree
        prefix of booleans, one per leaf or group, or an array of the leaf's shape; or one flat
        array over the floating-point leaves in `ravel_pytree` order: booleans `(P,)`, or the
        indices of the selected parameters, from 0 to P - 1, `(k,)`, in any order.

    Returns
    -------
    free
        `params` with `None` for frozen leaves and `(k,)` arrays for partly free ones, whose entries
        keep their order.
    selection
        The rest; `selection.insert(free)` returns all parameters.

    Raises
    ------
    TypeError, ValueError
        If `subset` is none of these, selects a parameter twice or one that does not exist, or
        selects nothing or complex numbers; if a leaf is not an array of numbers.
    """
    _check_arrays(params)
    leaves, structure = jax.tree.flatten(params)
    masks = _leaf_masks(params, subset)
    _check_real(params, masks)
    free, frozen, indices = [], [], []
    for leaf, mask in zip(leaves, masks, strict=True):
        mask = np.logical_and(mask, can_vary(leaf))
        leaf = as_array(leaf, "parameters")
        if not mask.any():
            parts = (None, leaf, None)
        elif mask.all():
            parts = (leaf, None, None)
        else:
            index = as_array(np.flatnonzero(mask))
            parts = (_entries(leaf, index), leaf, index)
        for part, place in zip(parts, (free, frozen, indices), strict=True):
            place.append(part)
    if not any(part is not None for part in free):
        raise ValueError(
            "Found no free floating-point parameter, expected at least one: the parameters' "
            f"leaves are {_listed(params)}; pass parameters with floating-point leaves, and a "
            "`subset` that selects some of them."
        )
    return jax.tree.unflatten(structure, free), Selection(
        jax.tree.unflatten(structure, frozen), jax.tree.unflatten(structure, indices)
    )


@jax.jit
def _entries(leaf: Num[Array, "..."], index: Int[Array, " k"]) -> Num[Array, " k"]:
    return jnp.ravel(leaf)[index]


def varying(params: PyTree) -> PyTree:
    """Return the mask of all leaves that may be free."""
    return jax.tree.map(can_vary, params)


def can_vary(leaf: ArrayLike) -> bool:
    """Return whether a leaf may be free: floating point, and not empty."""
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating)) and jnp.size(leaf) > 0


def _check_arrays(params: PyTree) -> None:
    for path, leaf in zip(paths(params), jax.tree.leaves(params), strict=True):
        dtype = getattr(leaf, "dtype", None)
        no_number = isinstance(dtype, np.dtype) and dtype.kind in "OSUMm"
        if no_number or (dtype is None and not isinstance(leaf, complex | float | int)):
            raise TypeError(
                f"Found a leaf of type {type(leaf).__name__} at {path!r} in the parameters, "
                "expected arrays of numbers; leave everything else to the model, as "
                "lk.model.from_equinox(module) does, or "
                "params, rest = equinox.partition(module, equinox.is_inexact_array)."
            )


def _check_real(params: PyTree, masks: list[np.ndarray]) -> None:
    leaves = jax.tree.leaves(params)
    for path, leaf, mask in zip(paths(params), leaves, masks, strict=True):
        is_complex = jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating)
        if is_complex and jnp.size(leaf) and mask.any():
            raise TypeError(
                f"Found {jnp.result_type(leaf)} parameters at {path!r} of shape "
                f"{jnp.shape(leaf)}, expected real ones; pass their real and imaginary parts as "
                "two leaves and join these within the model, jax.lax.complex(params['real'], "
                "params['imag']), or freeze them, as with subset=lambda path: "
                f"path != {path!r}."
            )


def _leaf_masks(params: PyTree, subset: Subset) -> list[np.ndarray]:
    """Return for every leaf a boolean, or booleans of the leaf's shape."""
    if subset is None:
        return [np.array(True)] * len(jax.tree.leaves(params))
    if isinstance(subset, str):
        raise ValueError(
            f"Found subset={subset!r}, expected None, a predicate on the leaf's path, a pytree "
            "of booleans or an array of indices; to choose by name pass "
            f"lambda path: {subset!r} in path. The parameters' leaves are {_listed(params)}."
        )
    if callable(subset) and not _is_mask(subset):
        return _masks_by_path(params, subset)
    if _is_flat(params, subset):
        return _masks_by_index(params, fetch_array(subset))
    return _masks_by_prefix(params, subset)


def _is_mask(subset: PyTree) -> bool:
    """Return whether all leaves are booleans, also of a callable pytree such as a module."""
    leaves = jax.tree.leaves(subset)
    return bool(leaves) and all(
        isinstance(leaf, bool | np.bool_) or np.dtype(bool) == getattr(leaf, "dtype", None)
        for leaf in leaves
    )


def _masks_by_path(params: PyTree, predicate: Callable[[str], bool]) -> list[np.ndarray]:
    if isinstance(predicate, Named):
        unknown = [
            name
            for name in predicate.names
            if not any(_has_name(path, name) for path in paths(params))
        ]
        if unknown:
            raise ValueError(
                f"Found the layer names {unknown} in no path, expected components of the paths "
                f"of the parameters' leaves, which are {_listed(params)}; correct the names."
            )
    return [np.array(bool(predicate(path))) for path in paths(params)]


def _is_flat(params: PyTree, subset: PyTree) -> bool:
    """Return whether this is one array over all parameters: indices, or booleans `(P,)`."""
    if not isinstance(subset, Array | np.ndarray) or subset.ndim != 1:
        return False
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    return subset.dtype != bool or set(shapes) != {subset.shape} or len(shapes) == 1


def _masks_by_index(params: PyTree, subset: np.ndarray) -> list[np.ndarray]:
    leaves = jax.tree.leaves(params)
    sizes = [jnp.size(leaf) if can_vary(leaf) else 0 for leaf in leaves]
    num = sum(sizes)
    if subset.dtype == bool:
        if len(subset) != num:
            raise ValueError(
                f"Found booleans of shape ({len(subset)},) as `subset`, expected ({num},), one for "
                "each floating-point parameter in flat order; or a pytree prefix of booleans."
            )
        flat = subset
    else:
        _check_indices(subset, num)
        flat = np.zeros(num, bool)
        flat[subset] = True
    starts = np.cumsum([0, *sizes])
    return [
        flat[start : start + size].reshape(jnp.shape(leaf)) if size else np.array(False)
        for leaf, start, size in zip(leaves, starts, sizes, strict=False)
    ]


def _check_indices(numbers: np.ndarray, num_params: int) -> None:
    expected = (
        f"expected the numbers of different parameters, whole and from 0 to {num_params - 1}, in "
        "the flat order of the floating-point leaves"
    )
    if not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(
            f"Found a `subset` of {numbers.dtype} numbers, {expected}; or booleans ({num_params},)."
        )
    outside = numbers[(numbers < 0) | (numbers >= num_params)]
    if len(outside):
        raise ValueError(
            f"Found {outside[0]} in `subset` ({len(outside)} such numbers in all), {expected}; "
            "count from the start, and without leaves of integers."
        )
    unique, counts = np.unique(numbers, return_counts=True)
    if len(unique) < len(numbers):
        raise ValueError(
            f"Found {unique[counts > 1][0]} more than once in `subset` "
            f"({len(numbers) - len(unique)} repetitions in all), {expected}; pass np.unique of it."
        )


def _masks_by_prefix(params: PyTree, subset: PyTree) -> list[np.ndarray]:
    try:
        full = jax.tree.leaves(jax.tree.broadcast(subset, params))
    except ValueError as error:
        raise ValueError(
            f"`subset` has the structure {jax.tree.structure(subset)}, expected a pytree prefix of "
            f"the parameters, whose leaves are {_listed(params)}; or pass a predicate on "
            "the leaf's path, or an array of indices."
        ) from error
    masks = []
    for path, mask, leaf in zip(paths(params), full, jax.tree.leaves(params), strict=True):
        mask = fetch_array(mask)
        if mask.dtype != bool or mask.shape not in ((), jnp.shape(leaf)):
            raise ValueError(
                f"`subset` at {path!r} is {mask.dtype} of shape {mask.shape}, expected booleans "
                f"of shape () or {jnp.shape(leaf)}, the leaf's; indices come as one array over "
                "all parameters."
            )
        masks.append(mask)
    return masks


def _listed(params: PyTree) -> str:
    return ", ".join(paths(params)) or "none"
