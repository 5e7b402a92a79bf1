"""The sides of Kronecker-factored layers, and the form of each factor by its width.

A layer has one factor for its inputs and one for its outputs. A factor is a matrix, or its diagonal
plus a low rank, or its diagonal alone.
"""

import math
from typing import Literal, NamedTuple

from laplace_kit.curv.capture.layers import Layer, Layers
from laplace_kit.curv.capture.products import Lookup

Form = Literal["full", "low_rank", "diagonal"]

# A parameter that enters no product has a block of its own; a larger one only its diagonal.
LARGEST_EXACT_BLOCK = 1024


class Widths(NamedTuple):
    """The largest width of a factor that is a matrix, and the rank of wider ones; hashable.

    `max_width` is `None` for any width; `rank` is `None` for wider factors that are diagonal.
    """

    max_width: int | None = None
    rank: int | None = None

    def exceeded_by(self, width: int | float) -> bool:
        """Return whether a factor is too wide to be a matrix."""
        return self.max_width is not None and width > self.max_width


class Side(NamedTuple):
    """One side of layers: how many factors there are, and the width of each.

    `partner` is the width of the layer's other side where that one is of low rank in place of this
    one if both are wide; infinite where this side is never of low rank.
    """

    num: int
    width: int
    partner: int | float = 0

    def form(self, widths: Widths) -> Form:
        """Return the form of the factors."""
        if not widths.exceeded_by(self.width):
            return "full"
        if widths.rank is None or self.partner == math.inf or widths.exceeded_by(self.partner):
            return "diagonal"
        return "low_rank"

    def num_entries(self, widths: Widths) -> int:
        """Return the number of entries of the factors, or of the sketches they are made from."""
        form = self.form(widths)
        if form == "low_rank":
            return self.num * self.width * (sketch_size(widths.rank, self.width) + 1)
        return self.num * self.width * (self.width if form == "full" else 1)


def sketch_size(rank: int, width: int) -> int:
    """Return the number of vectors by which a factor is multiplied to find its leading ones."""
    return min(2 * rank, width)


def sides(layers: Layers) -> tuple[Side, ...]:
    """Return the sides of all layers that may have matrices as factors."""
    return tuple(side for layer in layers.layers for side, may in _sides(layer) if may)


def forms(layer: Layer, widths: Widths) -> tuple[Form, Form]:
    """Return the forms of a layer's factors, that of the inputs and that of the outputs.

    One side is of low rank at most, the inputs if both are wide, so that a prior precision can be
    added exactly. Outputs of a layer with a bias are none, as a bias may have a precision of its
    own; those of a lookup are none, as each row of the table may.
    """
    left, right = (side.form(widths) if may else "diagonal" for side, may in _sides(layer))
    return left, right


def num_entries(layers: Layers, widths: Widths = Widths()) -> int:  # noqa: B008
    """Return the number of entries of the factors of all layers."""
    return sum(
        side.num_entries(widths if may else Widths(0))
        for layer in layers.layers
        for side, may in _sides(layer)
    )


def _sides(layer: Layer) -> tuple[tuple[Side, bool], tuple[Side, bool]]:
    """Return both sides, each with whether its factors may be matrices."""
    groups, width, out = layer.layout.shape
    is_lookup = isinstance(layer.product, Lookup)
    lone = layer.product is None and out > LARGEST_EXACT_BLOCK
    partner = math.inf if is_lookup or layer.layout.bias is not None else width
    return (Side(groups, width), not is_lookup), (Side(groups, out, partner), not lone)
