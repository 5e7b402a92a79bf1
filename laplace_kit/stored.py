"""The fields of a posterior that a file holds, and the classes of their values."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import Partial
from jaxtyping import PyTree

from laplace_kit.approx.posterior import Posterior
from laplace_kit.approx.prior import Prior
from laplace_kit.approx.update import Expansion
from laplace_kit.curv.capture.blocks import FactoredRows, LookupRows
from laplace_kit.curv.capture.coverage import Coverage, LeafCoverage
from laplace_kit.curv.capture.layout import Layout, Move, Slot, Slots
from laplace_kit.curv.capture.rows import Rows
from laplace_kit.curv.design import Design
from laplace_kit.curv.trained_model import TrainedModel
from laplace_kit.eval.link import LinkFunction
from laplace_kit.eval.predictive import Prediction
from laplace_kit.likelihood import Likelihood
from laplace_kit.likelihood.masked import without_mask
from laplace_kit.likelihood.names import BUILT_IN
from laplace_kit.placement import placement_of
from laplace_kit.portable import Node, check_like, from_portable, to_portable
from laplace_kit.record import Record
from laplace_kit.selection import Selection
from laplace_kit.storage import is_storable, storable
from laplace_kit.tree import replace
from laplace_kit.tune.result import Tuning

# Structures, posteriors and specs are registered where they are defined.
for _cls in (
    *BUILT_IN,
    *(Layout, Slot, Slots, Move, Rows, FactoredRows, LookupRows),
    *(Selection, Node, Coverage, Prediction, Tuning),
):
    storable(_cls.__name__)(_cls)


def _design_parts(design: Design) -> dict[str, Any]:
    """Return what a file holds: not where rows lie, as other devices may read it."""
    return {"rows": design.rows, "memory_limit": design.memory_limit}


def _read_design(parts: dict[str, Any]) -> Design:
    return Design(**parts, placement=placement_of(parts["rows"]))


storable("Design", write=_design_parts, read=_read_design)(Design)


def _read_leaf_coverage(parts: dict[str, Any]) -> LeafCoverage:
    """Read a `LeafCoverage`, whose method is called `road` in files of version 1."""
    return LeafCoverage(**{{"road": "method"}.get(name, name): parts[name] for name in parts})


storable("LeafCoverage", read=_read_leaf_coverage)(LeafCoverage)
NAMES = frozenset(
    (
        *("mode", "selection", "likelihood", "structure", "log_likelihood", "gradient", "num_data"),
        *("prior_mean", "prior_precision", "temperature", "posterior", "prediction"),
        *("choice", "coverage", "jitter", "tuning"),
    )
)
# Earlier files store whether the noise is known in a separate field.
_KNOWS_NOISE = "knows_noise"
_NUM_ENTRIES = "num_entries"  # only for masked targets


@storable("FunctionName")
@dataclasses.dataclass(frozen=True)
class FunctionName:
    """A placeholder for a function in a file: its name, for the error message."""

    name: str


def is_posterior(found: Any) -> bool:
    """Return whether a file's content is a posterior."""
    return isinstance(found, dict) and set(found) - {_KNOWS_NOISE, _NUM_ENTRIES} == NAMES


def fields(
    model: TrainedModel,
    likelihood: Likelihood,
    expansion: Expansion,
    prior: Prior,
    posterior: Posterior,
    prediction: Prediction,
    record: Record,
) -> dict[str, Any]:
    """Return the fields of a posterior that are stored, by `NAMES`.

    A likelihood that is a function, or of a class that is not registered, is stored as `None`, and
    a link that is a function by its name. Data are not stored.
    """
    if callable(prediction.link):
        prediction = replace(prediction, link=FunctionName(_name_of(prediction.link)))
    found = {
        "mode": model.mode,
        "selection": model.selection,
        "likelihood": likelihood if is_storable(type(without_mask(likelihood))) else None,
        "structure": expansion.structure,
        "log_likelihood": expansion.log_likelihood,
        "gradient": expansion.gradient,
        "num_data": expansion.num_data,
        "prior_mean": prior.mean,
        "prior_precision": prior.precision,
        "temperature": prior.temperature,
        "posterior": posterior,
        "prediction": prediction,
        "choice": record.choice,
        "coverage": record.coverage,
        "jitter": record.jitter,
        "tuning": record.tuning,
    }
    if expansion.num_entries is not None:
        found[_NUM_ENTRIES] = expansion.num_entries
    return _map_params(to_portable, found)


def _name_of(fn: Callable) -> str:
    """Return the name of a function, also of one whose arguments are bound."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return getattr(fn, "__name__", type(fn).__name__)


def parts(found: dict[str, Any], model_fn: Partial) -> dict[str, Any]:
    """Return the parts of a posterior, by the names of `Laplace`, from its restored fields."""
    sums = found["log_likelihood"], found["gradient"], found["structure"], found["num_data"]
    record = Record(found["choice"], found["coverage"], found["jitter"], found["tuning"])
    return {
        "model": TrainedModel(model_fn, found["mode"], found["selection"]),
        "likelihood": found["likelihood"],
        "expansion": Expansion(*sums, found.get(_NUM_ENTRIES)),
        "prior": Prior(found["prior_mean"], found["prior_precision"], found["temperature"]),
        "posterior": found["posterior"],
        "prediction": found["prediction"],
        "record": record,
    }


def restored(
    found: dict[str, Any], params: PyTree = None, link: LinkFunction | None = None
) -> dict[str, Any]:
    """Return the fields of a posterior from the content of its file.

    Parameters
    ----------
    found
        The result of `fields`.
    params
        Parameters like those of `fit`, where these are more than dictionaries, lists and tuples.
    link
        The link function, if the link was a function.

    Raises
    ------
    ValueError
        If `params` are needed and missing, or differ from the parameters in the file; or if the
        link was a function, and `link` is missing.
    """
    prediction = found["prediction"]
    if isinstance(prediction.link, FunctionName):
        if link is None:
            raise ValueError(
                f"Found a posterior whose link was the function {prediction.link.name!r}, expected "
                "that function, with the arguments that were bound, as functions are not stored; "
                f"pass lk.load(path, model_fn, link={prediction.link.name})."
            )
        found = found | {"prediction": replace(prediction, link=link)}
    whole = _map_params(lambda stored: from_portable(stored, params), found)
    if not whole.pop(_KNOWS_NOISE, True):
        whole["likelihood"] = replace(whole["likelihood"], known=False)
    if params is not None:
        check_like(jax.eval_shape(whole["selection"].insert, whole["mode"]), params)
    return whole


def _map_params(fn: Callable[[PyTree], PyTree], found: dict[str, Any]) -> dict[str, Any]:
    """Apply `fn` to every pytree that is like the parameters or a prefix of them."""
    selection, tuning = found["selection"], found["tuning"]
    return found | {
        "mode": fn(found["mode"]),
        "prior_precision": fn(found["prior_precision"]),
        "selection": replace(selection, frozen=fn(selection.frozen), indices=fn(selection.indices)),
        "tuning": tuning and replace(tuning, prior_precision=fn(tuning.prior_precision)),
    }
