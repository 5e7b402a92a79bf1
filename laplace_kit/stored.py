"""What a saved posterior is made of: the classes that a file may name, and the fields it holds."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
from jaxtyping import PyTree

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
from laplace_kit.likelihood import BUILT_IN, without_mask
from laplace_kit.portable import Node, check_like, from_portable, to_portable
from laplace_kit.selection import Selection
from laplace_kit.tree import replace

if TYPE_CHECKING:
    from laplace_kit.laplace import Laplace

CLASSES = {
    cls.__name__: cls
    for cls in (
        *BUILT_IN,
        *(FullStructure, DualStructure, DiagonalStructure, LowRankStructure, KroneckerStructure),
        *(FullPosterior, DualPosterior, DiagonalPosterior, LowRankPosterior, KroneckerPosterior),
        *(Eigenblock, PosteriorBlock, DenseBlock, Layout, Slot, Move),
        *(Design, Rows, FactoredRows, LookupRows),
        *(Selection, Node, Coverage, LeafCoverage, Choice, Prediction, Tuning),
    )
}
# Functions are not stored, and neither are data.
_LEFT_OUT = ("model_fn", "examples", "plan")


def stored_names(cls: type) -> set[str]:
    """Return the names of the fields of a class that a file holds."""
    return {field.name for field in dataclasses.fields(cls)} - set(_LEFT_OUT)


def fields(la: "Laplace") -> dict[str, Any]:
    """Return what a file holds of a posterior; a likelihood that is a function is `None`."""
    found = {name: getattr(la, name) for name in stored_names(type(la))}
    likelihood = la.likelihood if type(without_mask(la.likelihood)) in BUILT_IN else None
    return _map_params(to_portable, found) | {"likelihood": likelihood}


def restored(found: dict[str, Any], params: PyTree = None) -> dict[str, Any]:
    """Return the fields of a posterior from what a file holds of it.

    Parameters
    ----------
    found
        What `fields` returned.
    params
        Parameters like those of `fit`, where these are more than dictionaries, lists and tuples.

    Raises
    ------
    ValueError
        If the parameters in the file need others like them and there are none, or differ.
    """
    whole = _map_params(lambda stored: from_portable(stored, params), found)
    if params is not None:
        check_like(jax.eval_shape(whole["selection"].insert, whole["mode"]), params)
    return whole


def _map_params(fn: Callable[[PyTree], PyTree], found: dict[str, Any]) -> dict[str, Any]:
    """Replace every pytree that is like the parameters, or a prefix of them."""
    selection, tuning = found["selection"], found["tuning"]
    return found | {
        "mode": fn(found["mode"]),
        "prior_precision": fn(found["prior_precision"]),
        "selection": replace(selection, frozen=fn(selection.frozen), indices=fn(selection.indices)),
        "tuning": tuning and replace(tuning, prior_precision=fn(tuning.prior_precision)),
    }
