"""Coverage: the kind of each parameter, and the method that computes its Jacobian rows."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from jaxtyping import PyTree

from laplace_kit.curv.capture.layers import Layers, Leaf
from laplace_kit.curv.capture.products import Lookup
from laplace_kit.curv.objective import restrict
from laplace_kit.curv.sides import Widths, forms

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
    weight that a bias shares a layer with, or `None`. Where the Kronecker factor of a side
    of its layer, `"inputs"` or `"outputs"`, is too wide to be a matrix, `diagonal` names the sides
    whose factor is its diagonal, and `low_rank` that whose factor is of low rank besides.
    """

    path: str
    shape: tuple[int, ...]
    kind: str
    method: str
    partner: str | None
    diagonal: tuple[str, ...] = ()
    low_rank: tuple[str, ...] = ()


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
        columns = {
            "parameter": [leaf.path for leaf in self.leaves],
            "shape": [str(leaf.shape) for leaf in self.leaves],
            "kind": [leaf.kind for leaf in self.leaves],
            "method": [leaf.method for leaf in self.leaves],
            "with": [leaf.partner or "" for leaf in self.leaves],
        }
        wide = {
            "low-rank factors": [", ".join(leaf.low_rank) for leaf in self.leaves],
            "diagonal factors": [", ".join(leaf.diagonal) for leaf in self.leaves],
        }
        columns |= {title: texts for title, texts in wide.items() if any(texts)}
        rows = [tuple(columns), *zip(*columns.values(), strict=True)]
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


def coverage_of(found: Layers, widths: Widths = Widths()) -> Coverage:  # noqa: B008
    """Return the coverage of layers that have been found.

    Parameters
    ----------
    found
        The layers.
    widths
        The widest Kronecker factor that is a matrix, and the rank of wider ones, where there are
        factors.
    """
    return Coverage(tuple(_leaf(found, leaf, widths) for leaf in found.leaves))


def _leaf(found: Layers, leaf: Leaf, widths: Widths) -> LeafCoverage:
    layer = found.layers[leaf.layer]
    method = "exact rows" if layer.product is None else "factors"
    if isinstance(layer.product, Lookup):
        method = "lookup"
    partner = None if leaf.weight == leaf.path else leaf.weight
    sides = list(
        zip(("inputs", "outputs"), forms(layer, widths), layer.layout.shape[1:], strict=True)
    )
    diagonal, low_rank = (
        tuple(side for side, form, width in sides if form == kind and widths.exceeded_by(width))
        for kind in ("diagonal", "low_rank")
    )
    return LeafCoverage(leaf.path, leaf.shape, leaf.kind, method, partner, diagonal, low_rank)
