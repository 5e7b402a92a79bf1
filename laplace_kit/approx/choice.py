"""Which structure fits the memory limit, and what each needs.

The full curvature has two forms. The primal one is the matrix itself, of P rows; the dual one has a
kernel of M rows, one for each column of the curvature's factor of each example, and the design
matrix in factors. Both are exact. Where both fit, the one with less work is taken.
"""

import dataclasses
import math
from typing import NamedTuple

from laplace_kit.memory import Limits, readable

# Richest first.
STRUCTURES = ("full", "ekfac", "kron", "low_rank", "diagonal")
KRONECKER = ("ekfac", "kron")
DEFAULT_RANK = 50

# On two cores, all eigenvalues of a matrix with so many rows take five seconds, and of one twice as
# large forty: "auto" takes the full structure up to here, whoever asks for it also beyond.
_ROWS_WORTH_WAITING = 5000


# With so few parameters the matrix itself costs next to nothing, and rounding harms it less.
_ALWAYS_PRIMAL = 2000


@dataclasses.dataclass(frozen=True)
class Choice:
    """What `fit` chose, and why.

    `structure` is one of `STRUCTURES`; `form` `"primal"` or `"dual"` for the full one; `subset`
    says in words which parameters are random; `rank` and `weight_sharing` belong to the structures
    that have them, `num_samples` to `curvature="mc_fisher"`. `batch_size` and `memory_limit` are
    `None` where they follow from the device's memory. `event` is the shape of one example's
    outputs. `because` is the reason, in words.
    """

    structure: str
    form: str | None
    curvature: str
    subset: str
    rank: int
    weight_sharing: str
    num_samples: int
    batch_size: int | None
    memory_limit: int | None
    event: tuple[int, ...]
    because: str

    @property
    def limits(self) -> Limits:
        """What bounds the memory."""
        return Limits(self.batch_size, self.memory_limit)

    @property
    def num_outputs(self) -> int:
        """The number of one example's outputs."""
        return math.prod(self.event)


class Sizes(NamedTuple):
    """Numbers of values: parameters, rank, entries of all Kronecker factors; and bytes of each.

    For the dual form besides M, the number of examples times that of the factor's columns, and the
    entries of the design matrix's factors, examples times `laplace_kit.curv.design.num_entries`;
    `None` for the Hessian, which has no such form, or where they are not known.
    """

    num_params: int
    rank: int
    kronecker_entries: int
    itemsize: int
    num_rows: int | None = None
    design_entries: int | None = None


def structure_bytes(structure: str, sizes: Sizes) -> int:
    """Estimate the peak memory of fitting a structure and making its posterior, in bytes.

    Full: the matrix, one chunk's contribution and a Cholesky factor; `"dual"`, its other form:
    the kernel, one layer's part with a rearrangement, a Cholesky factor, and the design matrix with
    the chunks it is joined from. Low rank: the Krylov basis of `2 rank + 10` vectors, the
    eigenvectors and their images. Kronecker: the factors, one chunk's contribution, eigenvectors
    and work of the decomposition. Diagonal: a handful of vectors.
    """
    num, kronecker = sizes.num_params, 4 * sizes.kronecker_entries + 6 * sizes.num_params
    num_values = {
        "full": 3 * num**2,
        "dual": 4 * (sizes.num_rows or 0) ** 2 + 2 * (sizes.design_entries or 0) + 6 * num,
        "ekfac": kronecker,
        "kron": kronecker,
        "low_rank": (5 * sizes.rank + 10) * num,
        "diagonal": 6 * num,
    }
    return num_values[structure] * sizes.itemsize


class Chosen(NamedTuple):
    """A structure, its form if it is full, and the reason in words."""

    structure: str
    form: str | None
    because: str


def choose_structure(structure: str, curvature: str, sizes: Sizes, limit: int) -> Chosen:
    """Return the structure to fit: the named one if it fits, or for `"auto"` the richest that does.

    For the full structure its form is `"primal"` or `"dual"`: of those that fit, the one of less
    work. For `"auto"` its matrix, of P or of M rows, may have at most 5,000 of them. The memory
    limit is in bytes.

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
    forms = _forms_of_full(curvature, sizes)
    full = [form for form in forms if structure_bytes(form, sizes) <= limit]
    quick = [form for form in full if forms[form] <= _ROWS_WORTH_WAITING]
    others = [
        name
        for name in STRUCTURES[1:]
        if structure_bytes(name, sizes) <= limit
        and not (name in KRONECKER and curvature == "hessian")
    ]
    if structure == "auto" and (quick or others or full):
        return _described((quick + others + full)[0], forms, sizes, limit)
    if structure == "full" and full:
        return _asked(full[0], forms)
    if structure in others:
        return _asked(structure, forms)
    smallest = {"auto": "diagonal", "full": min(forms, key=lambda f: structure_bytes(f, sizes))}
    needed = readable(structure_bytes(smallest.get(structure, structure), sizes))
    fitting = ["full"] * bool(full) + others
    remedy = " or ".join(f"structure={name!r}" for name in fitting)
    raise ValueError(
        f"Found structure={structure!r} for P={sizes.num_params} parameters, which needs about "
        f"{needed}, expected at most the memory limit of {readable(limit)}; "
        + (f"what would fit: {remedy}. Or " if remedy else "")
        + "raise memory_limit=, or select fewer parameters with subset=."
    )


def _asked(name: str, forms: dict[str, int]) -> Chosen:
    if name not in forms:
        return Chosen(name, None, "it was asked for")
    form = "dual" if name == "dual" else "primal"
    return Chosen("full", form, f"it was asked for; its {form} form takes {forms[name]:,} rows")


def _described(name: str, forms: dict[str, int], sizes: Sizes, limit: int) -> Chosen:
    """Say why `"auto"` came to a structure."""
    needed = readable(structure_bytes(name, sizes))
    takes = f"takes about {needed} of {readable(limit)}"
    if name in forms:
        form = "dual" if name == "dual" else "primal"
        because = f"exact, and its {form} matrix of {forms[name]:,} rows {takes}"
        return Chosen("full", form, because)
    rows = min(forms.values())
    because = f"the richest that {takes}, a full matrix having {rows:,} rows"
    return Chosen(name, None, because)


def _forms_of_full(curvature: str, sizes: Sizes) -> dict[str, int]:
    """Return the forms of the full structure and their matrices' rows, that of less work first."""
    num, rows, entries = sizes.num_params, sizes.num_rows, sizes.design_entries
    if curvature == "hessian" or rows is None or entries is None:
        return {"full": num}
    primal, dual = rows * num**2 + num**3, rows * entries + rows**3
    primal = 0 if num <= _ALWAYS_PRIMAL else primal
    forms = {"full": num, "dual": rows}
    return forms if primal <= dual else dict(reversed(forms.items()))
