"""Which structure fits the memory limit, and what each needs."""

from laplace_kit import memory
from laplace_kit.errors import check_option

STRUCTURES = ("full", "diagonal", "low_rank")
DEFAULT_RANK = 50


def structure_bytes(structure: str, num_params: int, rank: int, itemsize: int) -> int:
    """Estimate the peak memory of fitting a structure and making its posterior, in bytes.

    Full: the matrix, one chunk's contribution and a Cholesky factor. Low rank: the Krylov basis of
    `2 rank + 10` vectors, the eigenvectors and their images. Diagonal: a handful of vectors.
    """
    num_values = {
        "full": 3 * num_params**2,
        "low_rank": (5 * rank + 10) * num_params,
        "diagonal": 6 * num_params,
    }
    return num_values[structure] * itemsize


def choose_structure(
    structure: str, num_params: int, rank: int, itemsize: int, memory_limit: int | None
) -> str:
    """Return the structure to fit: the named one if it fits, or for `"auto"` the richest that does.

    Raises
    ------
    ValueError
        If the name is unknown, or the structure exceeds the memory limit: the message holds the
        estimate and what would fit.
    """
    check_option("structure", structure, ("auto", *STRUCTURES))
    limit = memory.budget(memory_limit)
    fitting = [
        name
        for name in ("full", "low_rank", "diagonal")
        if structure_bytes(name, num_params, rank, itemsize) <= limit
    ]
    if structure == "auto" and fitting:
        return fitting[0]
    if structure in fitting:
        return structure
    smallest = "diagonal" if structure == "auto" else structure
    needed = memory.readable(structure_bytes(smallest, num_params, rank, itemsize))
    remedy = " or ".join(f"structure={name!r}" for name in fitting)
    raise ValueError(
        f"Found structure={structure!r} for P={num_params} parameters, which needs about {needed}, "
        f"expected at most the memory limit of {memory.readable(limit)}; "
        + (f"what would fit: {remedy}. Or " if remedy else "")
        + "raise memory_limit=, or select fewer parameters with subset=."
    )
