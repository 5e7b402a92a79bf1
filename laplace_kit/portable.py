"""Parameters of any kind of pytree in a file: the names of their parts, never their classes.

Dictionaries, lists and tuples are stored as they are. Any other node, such as a module of equinox,
a `NamedTuple` or a `FrozenDict`, becomes a `Node` that names its children. What is loaded gets its
classes from a pytree that the caller has: a file names none that would have to be imported.
"""

import dataclasses
from itertools import zip_longest
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from laplace_kit import tree


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of a pytree that is no dictionary, list or tuple: its class in words, its children."""

    kind: str
    children: dict[str, Any]


def to_portable(params: PyTree) -> PyTree:
    """Return the same pytree with a `Node` for every node that files do not know.

    Parameters
    ----------
    params
        A pytree of arrays, with `None` anywhere.
    """
    children, structure = _children(params)
    # The structure of a node without children, such as an identity of equinox, looks like a leaf's.
    if params is None or (jax.tree_util.treedef_is_leaf(structure) and structure.num_leaves):
        return params
    portable = [to_portable(child) for _, child in children]
    if _is_plain(params):
        return jax.tree.unflatten(structure, portable)
    names = (name for name, _ in children)
    return Node(type(params).__name__, dict(zip(names, portable, strict=True)))


def from_portable(stored: PyTree, like: PyTree = None) -> PyTree:
    """Return the pytree that `to_portable` was given, or one of the classes of another.

    Parameters
    ----------
    stored
        What was read from a file: parameters, or a prefix of them.
    like
        A pytree whose nodes have the same names; its leaves are not read. `None` where there is no
        `Node` to make whole.

    Raises
    ------
    ValueError
        If there is a `Node` and nothing like it, or a name that differs: the first one is named.
    """
    if like is not None:
        return _from_portable(stored, like, "")
    nodes = [leaf for leaf in jax.tree.leaves(stored) if isinstance(leaf, Node)]
    if nodes:
        raise ValueError(
            f"Found parameters of the class {nodes[0].kind} in the file, expected `params` like "
            "them: classes other than dictionaries, lists and tuples are not stored. Pass "
            "lk.load(path, model_fn, params=params) with parameters such as those given to lk.fit, "
            "or the whole module; only their structure and shapes are read."
        )
    return stored


def check_like(params: PyTree, like: PyTree) -> None:
    """Raise a `ValueError` that names the first path where parameters are not like others.

    Parameters
    ----------
    params
        A pytree of arrays or of their shapes.
    like
        A pytree with leaves of the same paths and shapes. It may have further ones that are never
        parameters, such as the functions and integers of a whole module.
    """
    found = dict(_shapes(params))
    leaves = zip(_shapes(like), jax.tree.leaves(like), strict=True)
    expected = {
        path: shape for (path, shape), leaf in leaves if path in found or _is_floating(leaf)
    }
    for path in (*expected, *found):
        if found.get(path) != expected.get(path):
            raise _differs(path, found.get(path, "nothing"), expected.get(path, "nothing"))


def _from_portable(stored: PyTree, like: PyTree, path: str) -> PyTree:
    if not isinstance(stored, Node | dict | list | tuple):
        return stored
    found = stored.children if isinstance(stored, Node) else dict(_children(stored)[0])
    children, structure = _children(like)
    for name, expected in zip_longest(found, dict(children)):
        if name != expected:
            raise _differs(_join(path, name or expected), name or "nothing", expected or "nothing")
    parts = zip(found.values(), children, strict=True)
    restored = [_from_portable(part, child, _join(path, name)) for part, (name, child) in parts]
    return jax.tree.unflatten(structure, restored)


def _children(node: PyTree) -> tuple[list[tuple[str, Any]], jax.tree_util.PyTreeDef]:
    """Return the children of a node by name, and the structure that puts them together again."""
    items, structure = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda v: v is not node)
    return [(jax.tree_util.keystr(key, simple=True), child) for key, child in items], structure


def _is_plain(node: PyTree) -> bool:
    """Return whether files know this node as it is."""
    if type(node) is dict:
        return all(isinstance(key, str | int) for key in node)
    return type(node) in (list, tuple)


def _shapes(params: PyTree) -> list[tuple[str, tuple[int, ...]]]:
    shapes = [tuple(getattr(leaf, "shape", ())) for leaf in jax.tree.leaves(params)]
    return list(zip(tree.paths(params), shapes, strict=True))


def _is_floating(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _differs(path: str, found: Any, expected: Any) -> ValueError:
    return ValueError(
        f"Found parameters in the file that differ from `params` first at {path!r}: found {found}, "
        f"expected {expected}; pass parameters of the same structure and shapes as those that were "
        "given to lk.fit."
    )
