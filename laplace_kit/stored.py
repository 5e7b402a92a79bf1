"""What a file holds of a posterior: its fields, and the classes among them."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
from jaxtyping import PyTree

from laplace_kit.curv.capture.blocks import FactoredRows, LookupRows
from laplace_kit.curv.capture.coverage import Coverage, LeafCoverage
from laplace_kit.curv.capture.layout import Layout, Move, Slot
from laplace_kit.curv.capture.rows import Rows
from laplace_kit.curv.design import Design
from laplace_kit.eval.link import LinkFunction
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
from laplace_kit.portable import Node, check_like, from_portable, to_portable
from laplace_kit.selection import Selection
from laplace_kit.storage import is_storable, storable
from laplace_kit.tree import replace

if TYPE_CHECKING:
    from laplace_kit.laplace import Laplace

# Structures, posteriors and what they are asked for are registered where they are defined.
for _cls in (
    *(Gaussian, MultivariateGaussian, HeteroscedasticGaussian),
    *(Categorical, Bernoulli, Poisson, Masked),
    *(Layout, Slot, Move, Design, Rows, FactoredRows, LookupRows),
    *(Selection, Node, Coverage, LeafCoverage, Prediction, Tuning),
):
    storable(_cls.__name__)(_cls)
# Functions are not stored, and neither are data.
_LEFT_OUT = ("model_fn", "examples", "plan")


@storable("FunctionName")
@dataclasses.dataclass(frozen=True)
class FunctionName:
    """What a file holds in place of a function: its name, for the message."""

    name: str


def stored_names(cls: type) -> set[str]:
    """Return the names of the fields of a class that a file holds."""
    return {field.name for field in dataclasses.fields(cls)} - set(_LEFT_OUT)


def fields(la: "Laplace") -> dict[str, Any]:
    """Return what a file holds of a posterior.

    A likelihood that is a function, or of a class that is not registered, is `None`, and a link
    that is a function is its name.
    """
    found = {name: getattr(la, name) for name in stored_names(type(la))}
    kind, _ = unmasked(la.likelihood, (None,))
    likelihood = la.likelihood if is_storable(type(kind)) else None
    prediction = la.prediction
    if callable(prediction.link):
        name = getattr(prediction.link, "__name__", type(prediction.link).__name__)
        prediction = replace(prediction, link=FunctionName(name))
    changed = {"likelihood": likelihood, "prediction": prediction}
    return _map_params(to_portable, found) | changed


def restored(
    found: dict[str, Any], params: PyTree = None, link: LinkFunction | None = None
) -> dict[str, Any]:
    """Return the fields of a posterior from what a file holds of it.

    Parameters
    ----------
    found
        What `fields` returned.
    params
        Parameters like those of `fit`, where these are more than dictionaries, lists and tuples.
    link
        The function that was the link, if it was one.

    Raises
    ------
    ValueError
        If the parameters in the file need others like them and there are none, or differ; or if the
        link was a function, and there is none.
    """
    prediction = found["prediction"]
    if isinstance(prediction.link, FunctionName):
        if link is None:
            raise ValueError(
                f"Found a posterior whose link was the function {prediction.link.name!r}, expected "
                "that function, as functions are not stored; pass lk.load(path, model_fn, "
                f"link={prediction.link.name})."
            )
        found = found | {"prediction": replace(prediction, link=link)}
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
