"""Eigenvectors of the Kronecker factors of all layers, dealt out to the devices of a mesh."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from laplace_kit.curv.eigenbasis import eigenbasis
from laplace_kit.placement import Placement, automatic, by_rows, everywhere, rounded_up

Basis = tuple[Float[Array, "_ _"], Float[Array, "_ _ _"] | None]


def eigenbases(
    factors: Sequence[Float[Array, "_ _ *_"]], placement: Placement | None
) -> list[Basis]:
    """Return `eigenbasis` of every factor.

    Parameters
    ----------
    factors
        Those of all layers, on every device.
    placement
        Devices that share the work: each decomposes as many of the matrices of one width as any
        other, up to one, and sends the results to all. `None` for one device, or where every one
        has work enough.

    Returns
    -------
    bases
        On every device, in the order of the factors.
    """
    if placement is None:
        return [eigenbasis(factor) for factor in factors]
    bases: dict[int, Basis] = {}
    by_width: dict[tuple, list[int]] = {}
    for number, factor in enumerate(factors):
        key = factor.shape[1:], factor.dtype
        by_width.setdefault(key, []).append(number)
    for numbers in by_width.values():
        alike = [factors[number] for number in numbers]
        bases.update(zip(numbers, _dealt_out(alike, placement), strict=True))
    return [bases[number] for number in range(len(factors))]


def _dealt_out(factors: list[Array], placement: Placement) -> list[Basis]:
    """Return the bases of matrices of one width."""
    sizes = [len(factor) for factor in factors]
    if factors[0].ndim == 2 or factors[0].shape[-1] == 1 or sum(sizes) == 1:
        return [eigenbasis(factor) for factor in factors]
    values, vectors = automatic(partial(_all_of, placement), factors)
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [
        (values[start : start + size], vectors[start : start + size])
        for start, size in zip(starts, sizes, strict=True)
    ]


def _all_of(
    placement: Placement, factors: list[Array]
) -> tuple[Float[Array, "G n"], Float[Array, "G n n"]]:
    every = jnp.concatenate(factors)
    missing = rounded_up(len(every), placement) - len(every)
    padded = by_rows(jnp.pad(every, ((0, missing), (0, 0), (0, 0))), placement)
    bases = by_rows(eigenbasis(padded), placement)
    return jax.tree.map(lambda of: of[: len(every)], everywhere(bases, placement))
