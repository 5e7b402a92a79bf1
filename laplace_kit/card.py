"""The summary card of a posterior: its facts in words, and warnings."""

import math
from html import escape
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from laplace_kit import tree
from laplace_kit.approx.diagnostics import Diagnostics
from laplace_kit.approx.posterior import Structure
from laplace_kit.approx.prior import Prior
from laplace_kit.approx.update import Expansion
from laplace_kit.curv.capture.coverage import Coverage
from laplace_kit.curv.trained_model import TrainedModel
from laplace_kit.host import extremes, fetch_array
from laplace_kit.likelihood import Likelihood
from laplace_kit.likelihood.masked import without_mask
from laplace_kit.record import Record
from laplace_kit.selection import Selection
from laplace_kit.tune.result import Tuning

if TYPE_CHECKING:
    from laplace_kit.eval.report import PosteriorCard

# A draw from a Gaussian in k dimensions is about sqrt(k) standard deviations from the mean.
_FAR_FROM_MODE = 0.25
# A shift of predictions by their posterior standard deviation is what the weights' own uncertainty
# makes of them anyway; shifted by half of it, 90% intervals keep 86%.
_LARGE_SHIFT = 0.5
_LARGEST_CONDITION = 1e7
_LISTED = 4  # frozen leaves by name


class Card(NamedTuple):
    """Facts in words by their names; warnings, each with a remedy; and notes.

    A warning is about what changes predictions or their error bars; a note is good to know, and
    usual after ordinary training.
    """

    facts: dict[str, str]
    warnings: list[str]
    notes: list[str]

    def as_dict(self) -> dict[str, str]:
        """Return the facts and, where there are any, one text of all `notes` and `warnings`."""
        said = {"notes": self.notes, "warnings": self.warnings}
        return self.facts | {level: "; ".join(texts) for level, texts in said.items() if texts}

    def as_text(self) -> str:
        """Return the card as lines of text."""
        whole = self.as_dict()
        width = max(map(len, whole))
        return "\n".join(f"{name:<{width}}  {text}" for name, text in whole.items())


@runtime_checkable
class Shown(Protocol):
    """What is shown of a posterior: its parts, and its card."""

    structure: Structure
    mode: PyTree
    likelihood: Likelihood

    def card(self) -> dict[str, str]:
        """Return facts, notes and warnings."""
        ...


def line(la: Shown) -> str:
    """Return a posterior in one line, without a computation."""
    structure, likelihood = la.structure.name, type(la.likelihood).__name__
    return f"Laplace({structure}, {tree.size(la.mode):,} parameters, {likelihood})"


def html(la: Shown) -> str:
    """Return the card of a posterior as an HTML table, warnings first; costs what `print` does."""
    card = la.card()
    levels = {level: card.pop(level) for level in ("warnings", "notes") if level in card}
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th>"
        f"<td style='text-align:left'>{escape(text)}</td></tr>"
        for name, text in {**levels, **card}.items()
    )
    return f"<p>{escape(line(la))}</p><table><tbody>{rows}</tbody></table>"


def report_card(
    card: Card, model: TrainedModel, prior: Prior, coverage: Coverage
) -> "PosteriorCard":
    """Return the card with a table of the parameter leaves and their prior precisions."""
    from laplace_kit.eval.report import PosteriorCard

    precision = tree.unravel(prior.vector(model), model.mode)
    layers = tuple(
        (leaf.path, str(leaf.shape), leaf.kind, leaf.method, _range(values))
        for leaf, values in zip(coverage, jax.tree.leaves(precision), strict=True)
    )
    columns = ("parameter", "shape", "kind", "method", "prior precision")
    return PosteriorCard(card.facts, columns, layers, tuple(card.warnings), tuple(card.notes))


def make_card(
    model: TrainedModel,
    likelihood: Likelihood,
    expansion: Expansion,
    prior: Prior,
    record: Record,
    diagnostics: Diagnostics,
    log_evidence: Float[Array, ""],
) -> Card:
    """Return the card of a posterior from its parts, its diagnostics and its evidence."""
    kind = without_mask(likelihood)
    facts = {
        "likelihood": type(kind).__name__ + (", masked" if kind is not likelihood else ""),
        "structure": expansion.structure.name,
        "chosen because": record.choice.because,
        "parameters": f"{tree.size(model.mode):,} of {_num_params(model):,}, "
        f"{record.choice.subset}",
        "frozen": _frozen(model.selection),
        "layer capture": record.coverage.summary(),
        "training examples": _count(expansion.num_data),
        "prior precision": _range(prior.vector(model)),
        "noise standard deviation": _noise(kind),
        "temperature": f"{float(prior.temperature):.4g}",
        "log marginal likelihood": f"{float(log_evidence):.2f} nats",
        "effective parameters": f"{float(diagnostics.effective_parameters):.1f}",
        "gradient norm at the mode": f"{float(diagnostics.gradient_norm):.3g}",
        "distance from this prior's mode": f"{float(diagnostics.mode_distance):.3g} "
        f"standard deviations; of predictions {float(diagnostics.prediction_shift):.2g}",
        "smallest eigenvalue": f"{float(diagnostics.smallest_eigenvalue):.3g}",
        "condition number": f"{float(diagnostics.condition_number):.3g}",
        "largest relative residual": f"{float(diagnostics.largest_residual):.2g}",
        "jitter": f"{float(diagnostics.jitter):.2g} of the diagonal",
    }
    facts = {name: text for name, text in facts.items() if text}
    warnings = card_warnings(diagnostics, record.tuning, tree.dtype(model.mode))
    return Card(facts, warnings, card_notes(diagnostics))


def card_warnings(diagnostics: Diagnostics, tuning: Tuning | None, dtype: jnp.dtype) -> list[str]:
    """Return the warnings about a posterior, each with a remedy; empty if there are none.

    Parameters
    ----------
    diagnostics
        The diagnostics of the posterior.
    tuning
        How its prior precision was tuned, if it was.
    dtype
        The dtype of the free parameters.
    """
    said = []
    if is_far_from_mode(diagnostics) and _shifts_predictions(diagnostics):
        said.append(
            "these parameters are not the mode of this prior: a Newton step towards it changes "
            f"predictions by {float(diagnostics.prediction_shift):.2g} of their posterior standard "
            "deviations, so that the evidence and error bars belong to a point that further "
            "training would leave; train with this prior as weight decay"
        )
    if tuning is not None and bool(np.any(tuning.at_bound)):
        said.append("the prior precision was tuned to a bound; widen bounds=, or set it yourself")
    if tuning is not None and bool(tuning.flat):
        said.append(
            "the objective hardly depends on the prior precision; set it from what you know"
        )
    if float(diagnostics.condition_number) > _LARGEST_CONDITION and dtype != "float64":
        said.append("the posterior precision is ill-conditioned for this dtype; use float64")
    if float(diagnostics.jitter) > 0:
        said.append(
            "the posterior precision had to be raised to be factorised in this dtype; use float64 "
            "parameters, or a larger prior precision"
        )
    return said


def card_notes(diagnostics: Diagnostics) -> list[str]:
    """Return what is good to know about a posterior, but changes its predictions little.

    Parameters
    ----------
    diagnostics
        The diagnostics of the posterior.
    """
    if not is_far_from_mode(diagnostics) or _shifts_predictions(diagnostics):
        return []
    return [
        "these parameters are not the mode of this prior, as usual after training without it as "
        "weight decay; a Newton step towards it changes predictions by "
        f"{float(diagnostics.prediction_shift):.2g} of their posterior standard deviations"
    ]


def is_far_from_mode(diagnostics: Diagnostics) -> bool:
    """Return whether the parameters are far from the mode of their prior, by its own spread."""
    typical = math.sqrt(max(float(diagnostics.effective_parameters), 0))
    return float(diagnostics.mode_distance) > max(_FAR_FROM_MODE * typical, 1)


def _shifts_predictions(diagnostics: Diagnostics) -> bool:
    # NaN counts as a shift.
    return not float(diagnostics.prediction_shift) <= _LARGE_SHIFT


def _count(num_data: int | float) -> str:
    return f"{num_data:,}" if isinstance(num_data, int) else f"{num_data:,.7g}, by their weights"


def _num_params(model: TrainedModel) -> int:
    leaves = jax.tree.leaves(jax.eval_shape(lambda: model.params))
    return tree.size([leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)])


def _frozen(selection: Selection) -> str:
    """Return the number of leaves that are frozen, wholly or in part, and the first few names."""
    frozen, indices = selection.frozen, selection.indices
    num_free = {
        path: len(index)
        for path, index in zip(tree.paths(indices), jax.tree.leaves(indices), strict=True)
    }
    listed = []
    for path, leaf in zip(tree.paths(frozen), jax.tree.leaves(frozen), strict=True):
        size = tree.size(leaf)
        what = f"{size - num_free[path]:,} of {size:,} entries" if path in num_free else leaf.dtype
        listed.append(f"{path} ({what})")
    if not listed:
        return ""
    more = [f"{len(listed) - _LISTED:,} more"] if len(listed) > _LISTED else []
    leaves = "leaf" if len(listed) == 1 else "leaves"
    return f"{len(listed):,} {leaves}: " + ", ".join(listed[:_LISTED] + more)


def _range(values) -> str:
    low, high = extremes(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _noise(likelihood) -> str:
    if not hasattr(likelihood, "noise_std"):
        return ""
    return _range(np.atleast_1d(fetch_array(likelihood.noise_std)))
