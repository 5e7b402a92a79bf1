"""Files of arrays plus versioned JSON, never pickle: what is loaded is data, not code.

A file is a NumPy `.npz` archive whose entry `header` is a JSON text that describes a tree of
dictionaries, lists, tuples and objects; its leaves are numbers, strings and the archive's other
entries. A file names the class of an object by the name under which `storable` registered it, and
only registered classes are ever built: no name from a file is imported.
"""

import contextlib
import dataclasses
import functools
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from laplace_kit.host import by_first, fetch_array, spans_processes

FORMAT, VERSION = "laplace_kit", 2

_ZIP_MAGIC = b"PK\x03\x04"
_T = TypeVar("_T")
# From an array's `id` to its name, what is stored of it, and the array itself, which keeps the `id`
# from being reused: an array that appears twice is stored once.
_Arrays = dict[int, tuple[str, Array | np.ndarray, Any]]
# Errors that reading a damaged archive may raise; `RuntimeError` where entries seem encrypted,
# compressed by unknown methods, or nested without end.
_DAMAGE = (
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error),
    *(ValueError, KeyError, TypeError, RuntimeError),
)


class _Stored(NamedTuple):
    """A registered class: its name in files, and its conversions to and from parts."""

    cls: type
    name: str
    write: Callable[[Any], dict[str, Any]]
    read: Callable[[dict[str, Any]], Any]


_BY_NAME: dict[str, _Stored] = {}
_BY_CLASS: dict[type, _Stored] = {}


def storable(
    name: str,
    *,
    write: Callable[[Any], dict[str, Any]] | None = None,
    read: Callable[[dict[str, Any]], Any] | None = None,
) -> Callable[[type[_T]], type[_T]]:
    """Register a class for files: `Laplace.save` then writes its objects and `load` builds them.

    Decorate the class where it is defined. A file holds the name, so that the module of the class
    must have been imported before the file is read.

    Parameters
    ----------
    name
        The name in files, `"project.Class"` by convention; keep it when the class is renamed.
    write
        From an object to a dictionary of its parts: arrays, numbers, strings, nested dictionaries,
        lists, tuples and objects of other registered classes. `None`: the fields of the dataclass.
    read
        From such a dictionary, with JAX arrays, to the object; give it together with `write`.
        `None`: the fields are set as they are, without `__init__`.

    Returns
    -------
    decorator
        Returns the class that it is given.

    Raises
    ------
    TypeError
        If the class is not a dataclass, and `write` or `read` is missing.
    ValueError
        If another class has this name.
    """

    def register(cls: type[_T]) -> type[_T]:
        if (write is None or read is None) and not dataclasses.is_dataclass(cls):
            raise TypeError(
                f"Found {cls.__name__}, which is not a dataclass, expected one, or both `write` "
                "and `read` for its parts; put @storable above the decorator of the dataclass."
            )
        known = _BY_NAME.get(name)
        if known is not None and _origin(known.cls) != _origin(cls):
            raise ValueError(
                f"Found the name {name!r}, under which {'.'.join(_origin(known.cls))} is stored, "
                f"expected another name for {'.'.join(_origin(cls))}; put your project in front, "
                f"as in 'my_project.{cls.__name__}'."
            )
        entry = _Stored(cls, name, write or _fields, read or partial(_from_fields, cls))
        _BY_NAME[name] = _BY_CLASS[cls] = entry
        return cls

    return register


def is_storable(cls: type) -> bool:
    """Return whether objects of a class can be part of a file."""
    return cls in _BY_CLASS


def _origin(cls: type) -> tuple[str, str]:
    """Return where a class is defined, the same when a cell or a module runs again."""
    return cls.__module__, cls.__qualname__


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _from_fields(cls: type, parts: dict[str, Any]) -> Any:
    known = {field.name: field.default for field in dataclasses.fields(cls)}
    absent = {name: known[name] for name in known.keys() - parts.keys()}
    if parts.keys() - known.keys() or dataclasses.MISSING in absent.values():
        raise ValueError(f"{cls.__name__} has the fields {sorted(parts)}")
    value = object.__new__(cls)  # the fields were validated before they were saved
    for name, part in (parts | absent).items():  # fields newer than the file get their defaults
        object.__setattr__(value, name, part)
    return value


def write(path: str | os.PathLike, value: PyTree) -> None:
    """Write a tree to a file atomically; process 0 does it for all, if the arrays are shared.

    Parameters
    ----------
    path
        The file; an existing one is replaced.
    value
        Nested dictionaries (string or integer keys), lists, tuples, arrays, numbers, strings,
        `None` and objects of classes that `storable` has registered.

    Raises
    ------
    TypeError
        If the tree holds anything else.
    OSError
        If the file cannot be written, in every process.
    """
    header, arrays = encoded(value)
    entries = {"header": header} | {name: _entry(array) for name, array in arrays.items()}
    by_first(partial(_write, Path(path), entries), shared=spans_processes([*arrays.values()]))


def encoded(value: PyTree) -> tuple[np.ndarray, dict[str, Array | np.ndarray]]:
    """Return a tree as a text, in bytes, and arrays by the names that it refers to.

    Raises
    ------
    TypeError
        If the tree holds anything that `write` does not know.
    """
    arrays: _Arrays = {}
    tree = _encode(value, arrays)
    header = {"format": FORMAT, "version": VERSION, "tree": tree}
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    return text, {name: array for name, array, _ in arrays.values()}


def _entry(array: Array | np.ndarray) -> np.ndarray:
    """Return an array on the host, as unsigned integers if NumPy's format does not support it."""
    values = fetch_array(array)
    return values.view(f"u{values.dtype.itemsize}") if values.dtype.kind == "V" else values


def _write(path: Path, entries: dict[str, np.ndarray]) -> None:
    unfinished = path.with_name(f"{path.name}.part{jax.process_index() or ''}")
    try:
        with unfinished.open("wb") as file:
            np.savez(file, **entries)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: str | os.PathLike) -> PyTree:
    """Read a tree that `write` wrote.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, not from laplace_kit, or of a later version, or holds an object of a
        class that is not registered.
    """
    with Path(path).open("rb") as file, refusing_damage(path):
        return _read(file)


@contextlib.contextmanager
def refusing_damage(path: str | os.PathLike) -> Iterator[None]:
    """Raise a `ValueError` that names the file for any fault in its content."""
    try:
        yield
    except _UnknownClass as error:
        raise ValueError(
            f"Found an object of the class {error.name!r} in {os.fspath(path)!r}, which no "
            "class is registered for, expected one of this package or of your own; import "
            f"the module that defines it with @lk.storable({error.name!r}), then load again."
        ) from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"Found {os.fspath(path)!r}, which cannot be read as a file of laplace_kit "
            f"({reason}); expected one written by la.save(path), of version {VERSION} or "
            "earlier: it is damaged, or something else. Save it again."
        ) from error


class _UnknownClass(Exception):
    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


def _read(file: BinaryIO) -> PyTree:
    if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
        raise ValueError("it is not an archive of arrays")
    file.seek(0)
    with np.load(file, allow_pickle=False) as archive:

        def load(name: str, dtype: str) -> Array:
            array, kind = archive[name], jnp.dtype(dtype)
            return jnp.asarray(array if array.dtype == kind else array.view(kind))

        return decoded(archive["header"], load)


def decoded(text: np.ndarray, load: Callable[[str, str], Array]) -> PyTree:
    """Return the tree from its text; `load` reads an array by its name and its dtype."""
    header = json.loads(text.tobytes())
    if header["format"] != FORMAT:
        raise ValueError(f"its format is {header['format']!r}")
    if header["version"] > VERSION:
        raise ValueError(f"its version is {header['version']}, newer than {VERSION}")
    return _decode(header["tree"], functools.cache(load))  # what was shared is shared again


def _encode(value: Any, arrays: _Arrays) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _encode_array(value, arrays)
    if type(value) in _BY_CLASS:
        stored = _BY_CLASS[type(value)]
        parts = {name: _encode(part, arrays) for name, part in stored.write(value).items()}
        return {"kind": "object", "class": stored.name, "fields": parts}
    if type(value) is dict and all(isinstance(key, str | int) for key in value):
        items = [[key, _encode(child, arrays)] for key, child in value.items()]
        return {"kind": "dict", "items": items}
    if type(value) in (list, tuple):
        children = [_encode(child, arrays) for child in value]
        return {"kind": type(value).__name__, "children": children}
    raise TypeError(
        f"Found {type(value).__name__} in the object to save, expected dictionaries with keys "
        "that are strings or integers, lists, tuples, arrays, numbers, and objects of registered "
        "classes; replace it by these, or register a class of your own with @lk.storable(name)."
    )


def _encode_array(value, arrays):
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        words = jax.random.key_data(value)
        name, _, _ = arrays.setdefault(id(value), (f"array{len(arrays)}", words, value))
        return {"kind": "key", "name": name, "implementation": str(jax.random.key_impl(value))}
    name, _, _ = arrays.setdefault(id(value), (f"array{len(arrays)}", value, value))
    return {"kind": "array", "name": name, "dtype": str(value.dtype)}


def _decode(node: Any, load: Callable[[str, str], Array]) -> Any:
    if not isinstance(node, dict):
        return node
    kind = node["kind"]
    if kind == "array":
        return load(node["name"], node["dtype"])
    if kind == "key":
        return jax.random.wrap_key_data(load(node["name"], "uint32"), impl=node["implementation"])
    if kind == "dict":
        return {key: _decode(child, load) for key, child in node["items"]}
    if kind in ("list", "tuple"):
        children = [_decode(child, load) for child in node["children"]]
        return children if kind == "list" else tuple(children)
    if node["class"] not in _BY_NAME:
        raise _UnknownClass(node["class"])
    parts = {name: _decode(child, load) for name, child in node["fields"].items()}
    return _BY_NAME[node["class"]].read(parts)
