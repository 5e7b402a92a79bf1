"""Files of arrays plus versioned JSON, never pickle: what is loaded is data, not code.

A file is a NumPy `.npz` archive whose entry `header` is a JSON text that describes a tree of
dictionaries, lists, tuples and dataclasses; its leaves are numbers, strings and the archive's other
entries. Only the classes that the caller names are ever built.
"""

import dataclasses
import functools
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

FORMAT, VERSION = "laplace_kit", 1
_MISSING = dataclasses.MISSING

_ZIP_MAGIC = b"PK\x03\x04"
# By the identity of what is stored, its name and its values: what appears twice is stored once.
_Arrays = dict[int, tuple[str, np.ndarray]]
# What reading a damaged archive may raise; `RuntimeError` stands for entries that seem encrypted,
# compressed by unknown methods, or nested without end.
_DAMAGE = (
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error),
    *(ValueError, KeyError, TypeError, RuntimeError),
)


def write(path: str | os.PathLike, value: PyTree, classes: Mapping[str, type]) -> None:
    """Write a tree to a file, whole or not at all.

    Parameters
    ----------
    path
        Where to; an existing file is replaced.
    value
        Nested dictionaries (string or integer keys), lists, tuples, arrays, numbers, strings,
        `None` and dataclasses of `classes`.
    classes
        By the name under which they are stored.

    Raises
    ------
    TypeError
        If the tree holds anything else.
    """
    arrays: _Arrays = {}
    names = {cls: name for name, cls in classes.items()}
    tree = _encode(value, names, arrays)
    header = {"format": FORMAT, "version": VERSION, "tree": tree}
    path = Path(path)
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    unfinished = path.with_name(path.name + ".part")
    try:
        with unfinished.open("wb") as file:
            np.savez(file, header=text, **dict(arrays.values()))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: str | os.PathLike, classes: Mapping[str, type]) -> PyTree:
    """Read a tree that `write` wrote.

    Parameters
    ----------
    path
        The file.
    classes
        The dataclasses that may be built, by name.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, foreign, or of a later version.
    """
    with Path(path).open("rb") as file:
        try:
            return _read(file, classes)
        except _DAMAGE as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(
                f"Found {os.fspath(path)!r}, which cannot be read as a file of laplace_kit "
                f"({reason}); expected one written by la.save(path), of version {VERSION} or "
                "earlier: it is damaged, or something else. Save it again."
            ) from error


def _read(file: BinaryIO, classes: Mapping[str, type]) -> PyTree:
    if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
        raise ValueError("it is no archive of arrays")
    file.seek(0)
    with np.load(file, allow_pickle=False) as archive:
        header = json.loads(archive["header"].tobytes())
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']!r}")
        if header["version"] > VERSION:
            raise ValueError(f"its version is {header['version']}, newer than {VERSION}")

        @functools.cache  # what was one array is one again
        def load(name: str, dtype: str) -> Array:
            array, kind = archive[name], jnp.dtype(dtype)
            return jnp.asarray(array if array.dtype == kind else array.view(kind))

        return _decode(header["tree"], classes, load)


def _encode(value: Any, names: Mapping[type, str], arrays: _Arrays) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _encode_array(value, arrays)
    if type(value) in names:
        fields = {
            field.name: _encode(getattr(value, field.name), names, arrays)
            for field in dataclasses.fields(value)
        }
        return {"kind": "object", "class": names[type(value)], "fields": fields}
    if type(value) is dict and all(isinstance(key, str | int) for key in value):
        items = [[key, _encode(child, names, arrays)] for key, child in value.items()]
        return {"kind": "dict", "items": items}
    if type(value) in (list, tuple):
        children = [_encode(child, names, arrays) for child in value]
        return {"kind": type(value).__name__, "children": children}
    raise TypeError(
        f"Found {type(value).__name__} in what is to be saved, expected dictionaries with keys "
        "that are strings or integers, lists, tuples, arrays and numbers; replace it by these."
    )


def _encode_array(value, arrays):
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        words = np.asarray(jax.random.key_data(value))
        name, _ = arrays.setdefault(id(value), (f"array{len(arrays)}", words))
        return {"kind": "key", "name": name, "implementation": str(jax.random.key_impl(value))}
    array = np.asarray(value)
    if array.dtype.kind == "V":  # bfloat16 and its like, which NumPy's format does not know
        array = array.view(f"u{array.dtype.itemsize}")
    name, _ = arrays.setdefault(id(value), (f"array{len(arrays)}", array))
    return {"kind": "array", "name": name, "dtype": str(value.dtype)}


def _decode(node: Any, classes: Mapping[str, type], load: Callable[[str, str], Array]) -> Any:
    if not isinstance(node, dict):
        return node
    kind = node["kind"]
    if kind == "array":
        return load(node["name"], node["dtype"])
    if kind == "key":
        return jax.random.wrap_key_data(load(node["name"], "uint32"), impl=node["implementation"])
    if kind == "dict":
        return {key: _decode(child, classes, load) for key, child in node["items"]}
    if kind in ("list", "tuple"):
        children = [_decode(child, classes, load) for child in node["children"]]
        return children if kind == "list" else tuple(children)
    cls = classes[node["class"]]
    obj = object.__new__(cls)  # the fields were validated before they were saved
    known = {field.name: field.default for field in dataclasses.fields(cls)}
    absent = {name: known[name] for name in known.keys() - node["fields"].keys()}
    if node["fields"].keys() - known.keys() or dataclasses.MISSING in absent.values():
        raise ValueError(f"{node['class']} has the fields {sorted(node['fields'])}")
    for name, child in node["fields"].items():
        object.__setattr__(obj, name, _decode(child, classes, load))
    for name, default in absent.items():  # fields that are younger than the file
        object.__setattr__(obj, name, default)
    return obj
