"""Conversion of users' data to arrays: NumPy, torch, pandas, lists and mappings of those.

No library besides NumPy and JAX is imported: others are recognised by their objects' attributes.
"""

from collections.abc import Callable, Mapping
from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from laplace_kit.host import fetch_array

_NUMBERS = (Number, np.bool_)


def as_array(values: Any, name: str = "values") -> Array:
    """Return array-likes as a JAX array with its own memory.

    They are copied, as a loader may refill its buffer while the device still reads it;
    `device_put` compiles no program for each shape, unlike `jnp.asarray`.

    Parameters
    ----------
    values, name
        As in `read_array`, with the same errors.
    """
    values = read_array(values, name)
    return values if isinstance(values, jax.Array) else jax.device_put(values.copy())


def read_array(values: Any, name: str = "values") -> np.ndarray | Array:
    """Return array-likes as an array: JAX's own on its device, all others on the host.

    Parameters
    ----------
    values
        An array, a number, a torch tensor on any device, a DataFrame or Series, or nested lists.
    name
        What the values are, in the plural, for messages.

    Returns
    -------
    array
        In its own dtype, including float64, and bfloat16 for bfloat16 tensors.

    Raises
    ------
    TypeError
        If they are text, categories, dates, objects or sparse.
    ValueError
        If rows of a list differ in length, or entries of a masked array are missing.
    """
    if isinstance(values, jax.Array):
        return values
    if _is_sparse(values):
        raise TypeError(
            f"Found {name} as a sparse {type(values).__name__} of shape {tuple(values.shape)}, "
            "expected a dense array; call its .toarray(), .todense() or .to_dense(), batch by "
            "batch if all do not fit."
        )
    if np.ma.isMaskedArray(values) and np.ma.count_masked(values):
        raise ValueError(
            f"Found {name} as a masked array with {np.ma.count_masked(values)} entries missing, "
            "expected all of them; for targets pass (y.filled(0), ~np.ma.getmaskarray(y)) to "
            "lk.Masked(likelihood)."
        )
    try:
        array = _from_torch(values) if hasattr(type(values), "detach") else np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Found {name} of type {type(values).__name__}, which NumPy refuses ({error}), "
            "expected an array; make one, with rows of one length, by np.stack or np.asarray."
        ) from error
    if array.dtype == object and all(isinstance(entry, _NUMBERS) for entry in array.flat):
        array = np.array(array.tolist())  # such as a DataFrame of floats and booleans
    if not jax.dtypes.issubdtype(array.dtype, np.number) and array.dtype != bool:
        raise TypeError(_not_numbers(values, array, name))
    return array


def as_arrays(values: PyTree, name: str = "values") -> PyTree:
    """Return the leaves of a pytree by `as_array`, where a list of numbers is one leaf.

    Parameters
    ----------
    values
        Nested mappings, tuples and lists of values that `read_array` takes. A mapping that is not a
        pytree, such as a `UserDict` (a tokenizer's `BatchEncoding`), becomes a dictionary.
    name
        What the values are, for messages.
    """
    return map_arrays(lambda leaf: as_array(leaf, name), values)


def read_arrays(values: PyTree, name: str = "values") -> PyTree:
    """Return the leaves of a pytree by `read_array`, where a list of numbers is one leaf."""
    return map_arrays(lambda leaf: read_array(leaf, name), values)


def on_host(values: PyTree, name: str = "values") -> PyTree:
    """Return the leaves of a pytree as NumPy arrays, read as `as_arrays` reads them."""
    return map_arrays(lambda leaf: fetch_array(read_array(leaf, name)), values)


def map_arrays(fn: Callable[[Any], Any], values: PyTree) -> PyTree:
    """Apply a function to the leaves of a pytree, where a list of numbers is one leaf.

    Parameters
    ----------
    fn, values
        A function of what `as_arrays` takes, and a pytree of it; a mapping that is not a pytree
        becomes a dictionary.
    """

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Mapping):
            return {key: map_arrays(fn, value) for key, value in leaf.items()}
        return fn(leaf)

    return jax.tree.map(convert, values, is_leaf=lambda v: is_list_of_numbers(v) or _is_sparse(v))


def as_pair(item: Any) -> Any:
    """Return a mapping with labels, as those of Hugging Face, as `(x, y)`; other data unchanged.

    Parameters
    ----------
    item
        Data in memory, or a batch. In a mapping, `"labels"` is y, and x is what else it holds.
    """
    if not isinstance(item, Mapping) or "labels" not in item:
        return item
    return {key: value for key, value in item.items() if key != "labels"}, item["labels"]


def common_length(x: PyTree, y: PyTree) -> int:
    """Return the number of examples, after checking that all arrays have as many."""
    leaves = jax.tree.leaves((x, y))
    shapes = listed([leaf.shape for leaf in leaves])
    if not jax.tree.leaves(x) or any(leaf.ndim == 0 for leaf in leaves):
        raise ValueError(
            f"Found data with the shapes {shapes or '()'}, expected arrays with a leading axis of "
            "examples; add one with x[None]."
        )
    if len({leaf.shape[0] for leaf in leaves}) > 1:
        is_rows = isinstance(x, list) and len(x) == leaves[-1].shape[0]
        remedy = "; turn a list of examples into one array, np.stack(x)" if is_rows else ""
        raise ValueError(
            f"Found data whose leading axes differ ({shapes}), expected the same number of "
            f"examples in every array of x and y{remedy}."
        )
    if leaves[0].shape[0] == 0:
        raise ValueError(
            f"Found empty data (shapes {shapes}), expected at least one example; check how the "
            "data were selected."
        )
    return leaves[0].shape[0]


def listed(shapes: list[tuple[int, ...]]) -> str:
    """Return the first few shapes as text."""
    return ", ".join(map(str, shapes[:6])) + (", ..." if len(shapes) > 6 else "")


def is_list_of_numbers(values: Any) -> bool:
    """Return whether this is a list, or nested lists, of numbers or text and not of arrays."""
    if not isinstance(values, list):
        return False
    while isinstance(values, list) and values:
        values = values[0]
    return isinstance(values, (*_NUMBERS, str, bytes))


def _from_torch(tensor: Any) -> np.ndarray:
    """Return a tensor's values: detached, from any device, also in dtypes that NumPy lacks."""
    name = str(tensor.dtype).rpartition(".")[2]
    if name == "bfloat16" or name.startswith("float8"):  # float32 represents these exactly
        return np.asarray(tensor.detach().float().cpu()).astype(jnp.dtype(name))
    return np.asarray(tensor.detach().cpu())


def _is_sparse(values: Any) -> bool:
    """Return whether this is a sparse matrix of SciPy or of JAX, or a sparse tensor of torch."""
    if hasattr(type(values), "detach"):
        return "sparse" in str(values.layout)
    return hasattr(type(values), "todense")


# --- values that are not numbers ------------------------------------------------------------------

_TEXT = (
    "number labels by y = np.unique(y, return_inverse=True)[1], and encode or leave out other text"
)


def _not_numbers(values: Any, array: np.ndarray, name: str) -> str:
    """Return the message about an array that holds something other than numbers."""
    if hasattr(type(values), "columns"):
        return (
            f"Found {name} as a {type(values).__name__} with the columns "
            f"{_columns_without_numbers(values)}, expected numbers in every column; encode these, "
            "or leave them out."
        )
    if str(getattr(values, "dtype", "")) == "category":
        codes = "y.cat.codes" if hasattr(values, "cat") else "y.codes"
        return f"Found {name} as categories, expected numbers; pass their codes, {codes}."
    if array.dtype.kind in "US":
        example = f", such as {array.flat[0]!s:.20}" if array.size else ""
        return f"Found {name} of text (dtype {array.dtype}{example}), expected numbers; {_TEXT}."
    if array.dtype.kind in "Mm":
        return (
            f"Found {name} of dates or times (dtype {array.dtype}), expected numbers; convert "
            "them, for example to seconds: (t - t.min()) / np.timedelta64(1, 's')."
        )
    others = [entry for entry in array.flat if not isinstance(entry, _NUMBERS)] or [*array.flat]
    if isinstance(others[0], str):
        return f"Found {name} of text (such as {others[0]!s:.20}), expected numbers; {_TEXT}."
    return (
        f"Found {name} as objects (dtype {array.dtype}, the first a {type(others[0]).__name__}), "
        "expected numbers; convert them, and drop or fill in what is missing."
    )


def _columns_without_numbers(frame: Any) -> str:
    """Return the names and dtypes of a DataFrame's columns that hold no numbers."""
    pairs = zip(frame.columns, map(str, frame.dtypes), strict=True)
    numeric = ("int", "uint", "float", "bool")
    return ", ".join(
        f"{column!r} ({dtype})" for column, dtype in pairs if not dtype.lower().startswith(numeric)
    )
