"""The choice of a structure: the one asked for if it fits the memory limit, or the richest."""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
from jaxtyping import PRNGKeyArray

from laplace_kit import tree
from laplace_kit.approx.diagonal import Diagonal
from laplace_kit.approx.full import Full
from laplace_kit.approx.kronecker import Kronecker
from laplace_kit.approx.low_rank import LowRank
from laplace_kit.approx.posterior import Structure
from laplace_kit.approx.spec import Sizes, StructureSpec, first_that_fits, settled
from laplace_kit.curv.fisher import EmpiricalFisher, MonteCarloFisher
from laplace_kit.curv.ggn import GGN, GaussNewtonOperator
from laplace_kit.curv.hessian import Hessian
from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.objective import Objective
from laplace_kit.curv.sides import Widths
from laplace_kit.curv.spec import CurvatureSpec
from laplace_kit.data import Data
from laplace_kit.memory import Limits, readable
from laplace_kit.storage import storable

# On two cores, all eigenvalues of a matrix of this many rows take five seconds; twice the rows,
# forty. `Auto` takes the full structure only up to this size; `Full` itself has no such limit.
_ROWS_WORTH_WAITING = 5000
# With as many outputs, drawn labels are a stand-in for the GGN that is worth naming.
_MANY_COLUMNS = 100


@storable("Auto")
@dataclasses.dataclass(frozen=True)
class Auto(StructureSpec):
    """The richest structure that fits the memory limit as `structure=`; `"auto"` for short.

    Parameters
    ----------
    candidates
        The structures to try, the richest first. The default is the full one where its matrix has
        at most 5,000 rows, then EKFAC.
    otherwise
        The structures to try where none of the candidates fits. Before them, `fit` tries the
        candidates on the last layer only, unless `subset` is given or the curvature has no factors
        in the outputs, such as the Hessian.
    """

    candidates: tuple[StructureSpec, ...] = (Full(max_rows=_ROWS_WORTH_WAITING), Kronecker())
    otherwise: tuple[StructureSpec, ...] = (LowRank(), Diagonal())

    @property
    def name(self):
        return "auto"

    def forms(self, sizes):
        rich = (spec.rich_forms(sizes) for spec in self.candidates)
        return itertools.chain(*rich, *(spec.forms(sizes) for spec in self.otherwise))

    def bytes(self, sizes):
        return min((form.bytes(sizes) for form in self.forms(sizes)), default=math.inf)

    def fit(self, operator, key=None):
        return settled(self, operator).fit(operator, key)


def has_candidate(spec: Auto, sizes: Sizes, limit: int) -> bool:
    """Return whether one of the candidates fits a limit in bytes."""
    forms = dataclasses.replace(spec, otherwise=()).forms(sizes)
    return first_that_fits(forms, sizes, limit) is not None


class Chosen(NamedTuple):
    """A structure with all options settled, and the reason in words."""

    spec: StructureSpec
    because: str


def choose_structure(
    spec: StructureSpec, curvature: CurvatureSpec, sizes: Sizes, limit: int
) -> Chosen:
    """Return the first form of a structure that fits the memory limit, in bytes.

    Raises
    ------
    ValueError
        If the curvature has no such structure, or it exceeds the memory limit: the message holds
        the estimate and what would fit.
    """
    found = first_that_fits(spec.forms(sizes), sizes, limit)
    if found is None:
        _refuse(spec, curvature, sizes, limit)
    remark = found.remark(sizes)
    if not isinstance(spec, Auto):
        return Chosen(found, f"it was asked for; {remark}" if remark else "it was asked for")
    needed = f"at about {readable(found.bytes(sizes))} of {readable(limit)}"
    because = f"{remark or 'the richest that fits'}, {needed}"
    richest = spec.candidates[0]
    if found.name != richest.name:
        first = next(iter(richest.forms(sizes)), None)
        if first is not None:
            because += f"; {richest.name} would need about {readable(first.bytes(sizes))}"
        elif richest.remark(sizes):
            because += f"; {richest.name} {richest.remark(sizes)}"
    return Chosen(found, because)


def _refuse(spec: StructureSpec, curvature: CurvatureSpec, sizes: Sizes, limit: int) -> None:
    remedy = " or ".join(_remedies(spec, curvature, sizes, limit))
    own = list(spec.forms(sizes))
    if not own:
        raise ValueError(
            f"Found structure={spec.name!r} with curvature={curvature.name!r}, which has no such "
            "structure, expected 'ggn', 'empirical_fisher' or 'mc_fisher', which have factors in "
            "the outputs" + (f"; this curvature comes as {remedy}." if remedy else ".")
        )
    needed = min(form.bytes(sizes) for form in own)
    raise ValueError(
        f"Found structure={spec.name!r} for P={sizes.num_params} parameters, which needs "
        + (f"about {readable(needed)}" if math.isfinite(needed) else "more than can be counted")
        + f", expected at most the memory limit of {readable(limit)}; "
        + (f"these would fit: {remedy}. Or " if remedy else "")
        + "raise memory_limit=, or select fewer parameters with subset=."
    )


def _remedies(
    spec: StructureSpec, curvature: CurvatureSpec, sizes: Sizes, limit: int
) -> Iterable[str]:
    """Yield what would fit: an option of the structure, other structures, another curvature."""
    if own := spec.remedy(sizes, limit):
        yield own
    for other in (Full(), Kronecker(), LowRank(), Diagonal()):
        if first_that_fits(other.forms(sizes), sizes, limit) is not None:
            yield f"structure={other.name!r}"
        elif other.name != spec.name and (option := other.remedy(sizes, limit)):
            yield f"structure={other.name!r} with {option}"
    has_many = isinstance(curvature, GGN) and sizes.num_columns >= _MANY_COLUMNS
    one = sizes.for_columns(1) if has_many and sizes.for_columns else None
    if one is not None and first_that_fits(spec.forms(one), one, limit):
        yield f"curvature='mc_fisher', with 1 column in place of {sizes.num_columns:,}"


# --- the choice -----------------------------------------------------------------------------------


def _from_parts(parts: dict[str, Any]) -> "Choice":
    """Read a choice from a file; in version 1 it held names and flat options."""
    if "spec" in parts:
        return Choice(**parts)
    form, corrected = parts["form"], parts["structure"] == "ekfac"
    kronecker = Kronecker(corrected, parts["weight_sharing"])
    specs = {
        "full": Full(form or "primal"),
        "ekfac": kronecker,
        "kron": kronecker,
        "low_rank": LowRank(parts["rank"]),
        "diagonal": Diagonal(),
    }
    curvatures = {
        "ggn": GGN(),
        "hessian": Hessian(),
        "empirical_fisher": EmpiricalFisher(),
        "mc_fisher": MonteCarloFisher(None, parts["num_samples"]),  # its key was not stored
    }
    kept = ("subset", "batch_size", "memory_limit", "event", "because")
    return Choice(
        spec=specs[parts["structure"]],
        curvature_spec=curvatures[parts["curvature"]],
        **{name: parts[name] for name in kept},
    )


@storable("Choice", read=_from_parts)
@partial(
    jax.tree_util.register_dataclass,
    data_fields=("curvature_spec",),
    meta_fields=("spec", "subset", "batch_size", "memory_limit", "event", "because"),
)
@dataclasses.dataclass(frozen=True)
class Choice:
    """The structure, curvature and subset that `fit` chose, and why.

    `spec` is the structure and `curvature_spec` the curvature, with all options settled; `subset`
    describes the random parameters in words. `batch_size` and `memory_limit` are `None` where they
    follow from the device's memory. `event` is the shape of one example's outputs. `because` is the
    reason for the structure, in words.
    """

    spec: StructureSpec
    curvature_spec: CurvatureSpec
    subset: str
    batch_size: int | None
    memory_limit: int | None
    event: tuple[int, ...]
    because: str

    @property
    def structure(self) -> str:
        """The structure's name, such as `"ekfac"`."""
        return self.spec.name

    @property
    def form(self) -> str | None:
        """`"primal"`, `"by_rows"` or `"dual"` for the full structure, otherwise `None`."""
        return self.spec.form if isinstance(self.spec, Full) else None

    @property
    def widths(self) -> Widths:
        """The widest Kronecker factor that is a matrix, and the rank of wider ones."""
        return self.spec.widths if isinstance(self.spec, Kronecker) else Widths()

    @property
    def curvature(self) -> str:
        """The curvature's name, such as `"ggn"`."""
        return self.curvature_spec.name

    @property
    def limits(self) -> Limits:
        """The limits on memory."""
        return Limits(self.batch_size, self.memory_limit)

    @property
    def num_outputs(self) -> int:
        """The number of one example's outputs."""
        return math.prod(self.event)


def with_key(choice: Choice, key: PRNGKeyArray | None) -> Choice:
    """Return the choice with another key of the curvature, where it has one; `None` keeps it."""
    if key is None:
        return choice
    return dataclasses.replace(choice, curvature_spec=choice.curvature_spec.with_key(key))


def fit_chosen(
    choice: Choice, objective: Objective, data: Data, key: PRNGKeyArray | None = None
) -> Structure:
    """Return the chosen structure, fitted to the chosen curvature of some data.

    Parameters
    ----------
    choice
        The structure and the curvature.
    objective, data
        The model at its mode, planned, with its likelihood, and the data to sum over, which have
        been checked.
    key
        For the structure; the curvature has its own.

    Raises
    ------
    TypeError, ValueError
        If the curvature makes no operator, or one of another shape.
    """
    return choice.spec.fit(operator_of(choice.curvature_spec, objective, data), key)


def operator_of(curvature: CurvatureSpec, objective: Objective, data: Data) -> SelfAdjointOperator:
    """Return the operator of a curvature, checked.

    Raises
    ------
    TypeError, ValueError
        If it is not an operator, not a `GaussNewtonOperator` although the curvature has
        `num_columns`, or not of shape `(P, P)`.
    """
    operator, num = curvature.operator(objective, data), tree.size(objective.params)
    has_factors = curvature.num_columns(objective.plan.output.shape) is not None
    expected = GaussNewtonOperator if has_factors else SelfAdjointOperator
    if not isinstance(operator, expected):
        raise TypeError(
            f"Found curvature={curvature.name!r}, which made a {type(operator).__name__}, expected "
            f"a {expected.__name__}; return an operator of laplace_kit.curv"
            + (", or None from num_columns." if has_factors else ".")
        )
    if operator.shape != (num, num):
        raise ValueError(
            f"Found curvature={curvature.name!r}, which made an operator of shape "
            f"{operator.shape}, expected {(num, num)}, that of the free parameters; build it from "
            "objective.model_fn and objective.params."
        )
    return operator
