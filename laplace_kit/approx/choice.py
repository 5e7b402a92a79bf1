"""Which structure fits the memory limit, and what each needs."""

from typing import NamedTuple

from laplace_kit import memory

# Richest first.
STRUCTURES = ("full", "ekfac", "kron", "low_rank", "diagonal")
KRONECKER = ("ekfac", "kron")
DEFAULT_RANK = 50


class Sizes(NamedTuple):
    """Numbers of values: parameters, rank, entries of all Kronecker factors; and bytes of each."""

    num_params: int
    rank: int
    kronecker_entries: int
    itemsize: int


def structure_bytes(structure: str, sizes: Sizes) -> int:
    """Estimate the peak memory of fitting a structure and making its posterior, in bytes.

    Full: the matrix, one chunk's contribution and a Cholesky factor. Low rank: the Krylov basis of
    `2 rank + 10` vectors, the eigenvectors and their images. Kronecker: the factors, one chunk's
    contribution, eigenvectors and work of the decomposition. Diagonal: a handful of vectors.
    """
    num, kronecker = sizes.num_params, 4 * sizes.kronecker_entries + 6 * sizes.num_params
    num_values = {
        "full": 3 * num**2,
        "ekfac": kronecker,
        "kron": kronecker,
        "low_rank": (5 * sizes.rank + 10) * num,
        "diagonal": 6 * num,
    }
    return num_values[structure] * sizes.itemsize


def choose_structure(structure: str, curvature: str, sizes: Sizes, memory_limit: int | None) -> str:
    """Return the structure to fit: the named one if it fits, or for `"auto"` the richest that does.

    Raises
    ------
    ValueError
        If the curvature has no such structure, or the structure exceeds the memory limit: the
        message holds the estimate and what would fit.
    """
    if structure in KRONECKER and curvature == "hessian":
        raise ValueError(
            f"Found structure={structure!r} with curvature='hessian', expected 'ggn', "
            "'empirical_fisher' or 'mc_fisher', whose layers have Kronecker factors; the Hessian "
            "comes as structure='full', 'low_rank' or 'diagonal'."
        )
    limit = memory.budget(memory_limit)
    fitting = [
        name
        for name in STRUCTURES
        if structure_bytes(name, sizes) <= limit
        and not (name in KRONECKER and curvature == "hessian")
    ]
    if structure == "auto" and fitting:
        return fitting[0]
    if structure in fitting:
        return structure
    smallest = "diagonal" if structure == "auto" else structure
    needed = memory.readable(structure_bytes(smallest, sizes))
    remedy = " or ".join(f"structure={name!r}" for name in fitting)
    raise ValueError(
        f"Found structure={structure!r} for P={sizes.num_params} parameters, which needs about "
        f"{needed}, expected at most the memory limit of {memory.readable(limit)}; "
        + (f"what would fit: {remedy}. Or " if remedy else "")
        + "raise memory_limit=, or select fewer parameters with subset=."
    )
