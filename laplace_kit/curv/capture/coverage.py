"""Coverage: the kind of each parameter, and the method that computes its Jacobian rows."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from jaxtyping import PyTree

from laplace_kit.curv.capture.layers import Layers
from laplace_kit.curv.capture.products import Lookup
from laplace_kit.curv.objective import restrict

METHODS = {
    "factors": "inputs and output gradients of a product, never multiplied out over examples",
    "lookup": "indices into a table and output gradients",
    "exact rows": "per-example Jacobians of this parameter, in chunks",
}


@dataclasses.dataclass(frozen=True)
class LeafCoverage:
    """How layer capture treats one parameter.

    `kind` is how it enters the model, such as `"dense"` or `"bias"`; `method` is how its Jacobian
    rows are computed: `"factors"`, `"lookup"` or `"exact rows"`; `partner` is the path of the
    weight that a bias shares a layer with, or `None`. `diagonal` names the sides of its layer whose
    Kronecker factor is too wide to be a matrix: `"inputs"`, `"outputs"`, both or neither.
    """

    path: str
    shape: tuple[int, ...]
    kind: str
    method: str
    partner: str | None
    diagonal: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How layer capture treats each parameter, in flat order; `print` shows a table."""

    leaves: tuple[LeafCoverage, ...]

    def __iter__(self) -> Iterator[LeafCoverage]:
        return iter(self.leaves)

    def __len__(self) -> int:
        return len(self.leaves)

    def __getitem__(self, path: str) -> LeafCoverage:
        """Return the entry of the parameter at a path."""
        for leaf in self.leaves:
            if leaf.path == path:
                return leaf
        raise KeyError(f"Found no parameter {path!r} among {[leaf.path for leaf in self.leaves]}.")

    def summary(self) -> str:
        """Return the number of parameters for each method, as text."""
        sizes = dict.fromkeys(METHODS, 0)
        for leaf in self.leaves:
            sizes[leaf.method] += math.prod(leaf.shape)
        return ", ".join(f"{size:,} by {method}" for method, size in sizes.items() if size)

    def __str__(self) -> str:
        """Return a table, one line for each parameter."""
        rows = [("parameter", "shape", "kind", "method", "with", "diagonal factors")]
        rows += [
            (leaf.path, str(leaf.shape), leaf.kind, leaf.method, leaf.partner or "", sides)
            for leaf in self.leaves
            for sides in [", ".join(leaf.diagonal)]
        ]
        if not any(leaf.diagonal for leaf in self.leaves):
            rows = [row[:-1] for row in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in lines)


def coverage(model_fn: Callable, params: PyTree, x: Any) -> Coverage:
    """Return how layer capture treats each parameter of a model.

    Parameters
    ----------
    model_fn
        `(params, x) -> (N, *event)`, pure.
    params
        A pytree; leaves that are not floating point are frozen and not listed.
    x
        Inputs with a leading axis, or their `jax.ShapeDtypeStruct`s: values are not read.

    Returns
    -------
    coverage
        One entry for each floating-point leaf. Cost: one trace of the model for one example.
    """
    return coverage_of(restrict(model_fn, params)[0].planned(x).plan.layers)


def coverage_of(found: Layers, max_width: int | None = None) -> Coverage:
    """Return the coverage of layers that have been found.

    Parameters
    ----------
    found
        The layers.
    max_width
        The widest Kronecker factor that is a matrix, where there are factors; `None` for any.
    """
    numbers = range(len(found.leaves))
    return Coverage(tuple(_leaf(found, number, max_width) for number in numbers))


def _leaf(found: Layers, number: int, max_width: int | None) -> LeafCoverage:
    leaf = found.leaves[number]
    product = found.layers[leaf.layer].product
    method = "exact rows" if product is None else "factors"
    if isinstance(product, Lookup):
        method = "lookup"
    partner = None if leaf.weight == leaf.path else leaf.weight
    _, *widths = found.layers[leaf.layer].layout.shape
    sides = zip(("inputs", "outputs"), widths, strict=True)
    wide = tuple(side for side, width in sides if max_width is not None and width > max_width)
    return LeafCoverage(leaf.path, leaf.shape, leaf.kind, method, partner, wide)
