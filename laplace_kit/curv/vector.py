"""Vectors in two forms, a pytree like the parameters or a flat array, and back."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from laplace_kit import tree


def read_vectors(
    v: PyTree, params: PyTree, free: PyTree, leading: tuple[int, ...]
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """Read vectors in either form as pytrees of free parameters.

    Parameters
    ----------
    v
        Flat `(*leading, P)`, or a pytree like `params` whose leaves have the `leading` axes.
    params, free
        All parameters, and those of them that are floating point (others `None`).
    leading
        `()` for one vector, `(K,)` for several.

    Returns
    -------
    vectors
        A pytree like `free` with the leading axes.
    restore
        Returns results shaped like `vectors` in the form of `v`, zero where a leaf is frozen.

    Raises
    ------
    ValueError
        If `v` has neither form.
    """
    num = tree.size(free)
    if isinstance(v, jax.Array | np.ndarray) and v.shape == (*leading, num):
        flat = jnp.asarray(v, tree.dtype(free))
        return tree.unravel(flat, free), lambda out: tree.ravel(out, num_leading=len(leading))

    given, structure = jax.tree.flatten(v)
    leaves = jax.tree.leaves(params)
    shapes = [jnp.shape(leaf) for leaf in given]
    expected = [(*leading, *jnp.shape(leaf)) for leaf in leaves]
    if structure != jax.tree.structure(params) or shapes != expected:
        found = f"an array of shape {v.shape}" if hasattr(v, "shape") else f"{structure}, {shapes}"
        raise ValueError(
            f"Found as vector {found}, expected a flat array of shape {(*leading, num)} or a "
            f"pytree like the parameters, {jax.tree.structure(params)} with the shapes {expected}; "
            "one vector goes to op.mv, several go to op.matmat with a leading axis K."
        )
    floating = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]
    kept = [
        jnp.asarray(part, jnp.result_type(leaf)) if is_free else None
        for part, leaf, is_free in zip(given, leaves, floating, strict=True)
    ]

    def fill(leaf, part):
        frozen = part is None
        return jnp.zeros((*leading, *jnp.shape(leaf)), jnp.result_type(leaf)) if frozen else part

    return jax.tree.unflatten(structure, kept), lambda out: jax.tree.map(fill, params, out)
