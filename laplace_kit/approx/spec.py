"""The base class of `structure=`: an object that estimates memory and fits a structure.

`Full`, `Kronecker`, `LowRank` and `Diagonal` are defined next to their structures, and `Auto`,
which chooses among them, in `choice.py`.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable
from functools import cached_property

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from laplace_kit import tree
from laplace_kit.approx.posterior import Structure
from laplace_kit.curv import design
from laplace_kit.curv.ggn import GaussNewtonOperator
from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.objective import Objective
from laplace_kit.curv.operator import CurvatureOperator
from laplace_kit.curv.sides import Side, num_entries, sides
from laplace_kit.data import Data, InMemory, read_batches
from laplace_kit.memory import DEFAULT_LIMITS, readable
from laplace_kit.placement import num_parts


@dataclasses.dataclass(frozen=True, eq=False)
class Sizes:
    """The sizes of model and data that determine a structure's memory.

    `num_params` is P, in leaves of `leaf_sizes` free parameters each, and `itemsize` the bytes of a
    number. `kronecker_entries` is the number of entries of all Kronecker factors, and
    `kronecker_sides` are those of them that may be matrices. `num_columns` is the number of columns
    of the curvature's factor in the outputs of one example, `None` if there
    is no such factor. `num_data` and `design_entries` are computed on first use, by `count_data`
    and `count_entries`: `num_data`, N, is `None` if it is unknown or so large that a matrix with
    that many rows exceeds the memory limit; `design_entries` is the number of entries of one
    example's rows in factors. `for_columns` returns the sizes for another number of columns;
    `num_parts` is the number of devices over which examples are spread.
    """

    num_params: int
    itemsize: int
    kronecker_entries: int = 0
    num_columns: int | None = None
    leaf_sizes: tuple[int, ...] = ()
    count_data: Callable[[], int | None] | None = None
    count_entries: Callable[[], int] | None = None
    kronecker_sides: tuple[Side, ...] = ()
    for_columns: Callable[[int], "Sizes"] | None = None
    num_parts: int = 1

    @cached_property
    def num_data(self) -> int | None:
        """The number of examples, N."""
        return None if None in (self.num_columns, self.count_data) else self.count_data()

    @cached_property
    def design_entries(self) -> int | None:
        """The number of entries of one example's rows in factors."""
        return None if None in (self.num_columns, self.count_entries) else self.count_entries()

    @property
    def can_spread(self) -> bool:
        """Whether a dense matrix can be spread over devices by its rows."""
        return self.num_parts > 1 and self.num_columns is not None

    @property
    def num_rows(self) -> int | None:
        """M, the number of rows of the design matrix: one for each example and column."""
        return None if self.num_data is None else self.num_data * self.num_columns


def sizes_of(objective: Objective, data: Data, num_columns: int | None) -> Sizes:
    """Return the sizes of a planned model, its data and its curvature."""
    itemsize = jnp.promote_types(tree.dtype(objective.params), jnp.float32).itemsize

    def count_data() -> int | None:
        most = objective.limits.budget // itemsize
        return _count(data, int(most**0.5) // max(num_columns, 1))

    return Sizes(
        num_params=tree.size(objective.params),
        itemsize=itemsize,
        kronecker_entries=num_entries(objective.plan.layers),
        num_columns=num_columns,
        kronecker_sides=sides(objective.plan.layers),
        leaf_sizes=tuple(map(jnp.size, jax.tree.leaves(objective.params))),
        count_data=count_data,
        count_entries=lambda: design.num_entries(objective, num_columns),
        for_columns=lambda num: sizes_of(objective, data, num),
        num_parts=num_parts(data.placement),
    )


def _count(data: Data, most: int) -> int | None:
    """Count the examples; over a stream only as far as `most`, and `None` where there are more."""
    if isinstance(data, InMemory):
        return data.num_examples
    total = 0
    for batch in read_batches(data, "counting examples"):
        total += batch.num_examples
        if total > most:
            return None
    return total


class StructureSpec(abc.ABC):
    """A structure for `fit`, with its options: the base class.

    A subclass is a frozen dataclass whose options are numbers, strings, tuples and the like, so
    that it can be compared and hashed: it is part of the compiled program.
    """

    @property
    def name(self) -> str:
        """The name in messages and in `la.choice`."""
        return type(self).__name__

    def forms(self, sizes: Sizes) -> Iterable["StructureSpec"]:
        """Return the forms with all options settled, the best first.

        The first that fits the memory limit is fitted. The result is empty if the curvature has no
        such structure.
        """
        return (self,)

    def rich_forms(self, sizes: Sizes) -> Iterable["StructureSpec"]:
        """Return the forms that count as rich where `Auto` compares structures: all, by default."""
        return self.forms(sizes)

    def remedy(self, sizes: Sizes, limit: int) -> str:
        """Return the option with which it would fit a limit in bytes, as code; `""` for none."""
        return ""

    def remark(self, sizes: Sizes) -> str:
        """Return a remark for the reason of the choice, `""` for none."""
        return ""

    @abc.abstractmethod
    def bytes(self, sizes: Sizes) -> int | float:
        """Estimate the peak memory of fitting the structure and making its posterior, in bytes."""

    @abc.abstractmethod
    def fit(self, operator: SelfAdjointOperator, key: PRNGKeyArray | None = None) -> Structure:
        """Return the structure, fitted to a curvature operator.

        Parameters
        ----------
        operator
            The curvature $H$ of the summed loss, `(P, P)`.
        key
            The key of `lk.fit`, `None` if there was none.
        """


def first_that_fits(
    forms: Iterable[StructureSpec], sizes: Sizes, limit: int
) -> StructureSpec | None:
    """Return the first form whose estimate is within a limit in bytes, or `None`."""
    return next((form for form in forms if form.bytes(sizes) <= limit), None)


def settled(spec: StructureSpec, operator: SelfAdjointOperator) -> StructureSpec:
    """Return the first form of a structure that fits the memory limit of an operator.

    Raises
    ------
    ValueError
        If the operator has no such structure, or every form exceeds the memory limit.
    """
    itemsize = jnp.promote_types(operator.dtype, jnp.float32).itemsize
    sizes, limits = Sizes(operator.shape[0], itemsize), DEFAULT_LIMITS  # composed of others
    if isinstance(operator, CurvatureOperator):
        event, limits = operator.plan.output.shape, operator.limits
        is_gauss_newton = isinstance(operator, GaussNewtonOperator)
        columns = operator.num_columns(event) if is_gauss_newton else None
        sizes = sizes_of(operator.objective, operator.data, columns)
    found = first_that_fits(spec.forms(sizes), sizes, limits.budget)
    if found is None:
        raise ValueError(
            f"Found {spec} for a {type(operator).__name__} of shape {operator.shape}, expected a "
            "structure that it has and that fits the memory limit of "
            f"{readable(limits.budget)}; raise memory_limit=, or use another structure."
        )
    return found
