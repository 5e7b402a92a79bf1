"""What a saved posterior is made of: the classes that a file may name, and the fields it holds."""

import dataclasses
from typing import TYPE_CHECKING, Any

from laplace_kit.approx.choice import Choice
from laplace_kit.approx.dense_block import DenseBlock
from laplace_kit.approx.diagonal import DiagonalPosterior, DiagonalStructure
from laplace_kit.approx.dual import DualPosterior, DualStructure
from laplace_kit.approx.eigenblock import Eigenblock, PosteriorBlock
from laplace_kit.approx.full import FullPosterior, FullStructure
from laplace_kit.approx.kronecker import KroneckerPosterior, KroneckerStructure
from laplace_kit.approx.low_rank import LowRankPosterior, LowRankStructure
from laplace_kit.curv.capture.blocks import FactoredRows, LookupRows
from laplace_kit.curv.capture.coverage import Coverage, LeafCoverage
from laplace_kit.curv.capture.layout import Layout, Move, Slot
from laplace_kit.curv.capture.rows import Rows
from laplace_kit.curv.design import Design
from laplace_kit.eval.predictive import Prediction
from laplace_kit.eval.tune import Tuning
from laplace_kit.likelihood import (
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Masked,
    MultivariateGaussian,
    Poisson,
    unmasked,
)
from laplace_kit.selection import Selection

if TYPE_CHECKING:
    from laplace_kit.laplace import Laplace

_LIKELIHOODS = (
    *(Gaussian, MultivariateGaussian, HeteroscedasticGaussian),
    *(Categorical, Bernoulli, Poisson, Masked),
)
CLASSES = {
    cls.__name__: cls
    for cls in (
        *_LIKELIHOODS,
        *(FullStructure, DualStructure, DiagonalStructure, LowRankStructure, KroneckerStructure),
        *(FullPosterior, DualPosterior, DiagonalPosterior, LowRankPosterior, KroneckerPosterior),
        *(Eigenblock, PosteriorBlock, DenseBlock, Layout, Slot, Move),
        *(Design, Rows, FactoredRows, LookupRows),
        *(Selection, Coverage, LeafCoverage, Choice, Prediction, Tuning),
    )
}
# Functions are not stored, and neither are data.
_LEFT_OUT = ("model_fn", "examples")


def stored_names(cls: type) -> set[str]:
    """Return the names of the fields of a class that a file holds."""
    return {field.name for field in dataclasses.fields(cls)} - set(_LEFT_OUT)


def fields(la: "Laplace") -> dict[str, Any]:
    """Return what a file holds of a posterior; a likelihood that is a function is `None`."""
    found = {name: getattr(la, name) for name in stored_names(type(la))}
    kind, _ = unmasked(la.likelihood, (None,))
    return found if type(kind) in _LIKELIHOODS else found | {"likelihood": None}
