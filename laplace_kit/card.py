"""The summary card of a posterior: its facts in words, and what to beware of."""

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from laplace_kit import tree
from laplace_kit.likelihood import unmasked

if TYPE_CHECKING:
    from laplace_kit.eval.report import PosteriorCard
    from laplace_kit.laplace import Laplace

# A Gaussian's own draws are the root of the number of its directions away from its mean.
_FAR_FROM_MODE = 0.25
_LARGEST_CONDITION = 1e7
_LISTED = 4  # frozen leaves by name


def facts(la: "Laplace") -> dict[str, str]:
    """Return the facts of a posterior by name, in words; costs its diagnostics."""
    found = la.diagnostics()
    kind, _ = unmasked(la.likelihood, (None,))
    card = {
        "likelihood": type(kind).__name__ + (", masked" if kind is not la.likelihood else ""),
        "structure": la.structure.name,
        "chosen because": la.choice.because,
        "parameters": f"{tree.size(la.mode):,} of {_num_params(la):,}, {la.choice.subset}",
        "frozen": _frozen(la),
        "layer capture": la.coverage.summary(),
        "training examples": f"{la.num_data:,}",
        "prior precision": _range(la.expand(la.prior_precision)),
        "noise standard deviation": _noise(kind),
        "temperature": f"{float(la.temperature):.4g}",
        "log marginal likelihood": f"{float(la.log_marginal_likelihood()):.2f} nats",
        "effective parameters": f"{float(found.effective_parameters):.1f}",
        "gradient norm at the mode": f"{float(found.gradient_norm):.3g}",
        "distance from this prior's mode": f"{float(found.mode_distance):.3g} standard deviations",
        "smallest eigenvalue": f"{float(found.smallest_eigenvalue):.3g}",
        "condition number": f"{float(found.condition_number):.3g}",
        "largest relative residual": f"{float(found.largest_residual):.2g}",
        "jitter": f"{float(found.jitter):.2g} of the diagonal",
    }
    card = {name: text for name, text in card.items() if text}
    beware = warnings(la)
    return card | ({"beware": "; ".join(beware)} if beware else {})


def for_report(la: "Laplace") -> "PosteriorCard":
    """Return the facts, each parameter with its own prior precision, and the warnings apart."""
    from laplace_kit.eval.report import PosteriorCard

    precision = tree.unravel(la.expand(la.prior_precision), la.mode)
    layers = tuple(
        (leaf.path, str(leaf.shape), leaf.kind, leaf.method, _range(of_leaf))
        for leaf, of_leaf in zip(la.coverage, jax.tree.leaves(precision), strict=True)
    )
    columns = ("parameter", "shape", "kind", "method", "prior precision")
    stated = {name: text for name, text in facts(la).items() if name != "beware"}
    return PosteriorCard(stated, columns, layers, tuple(warnings(la)))


def warnings(la: "Laplace") -> list[str]:
    """Return what to beware of, each with a remedy; empty where nothing was found."""
    found, said = la.diagnostics(), []
    typical = math.sqrt(max(float(found.effective_parameters), 0))
    if float(found.mode_distance) > max(_FAR_FROM_MODE * typical, 1):
        said.append(
            "these parameters are not the mode of this prior: the evidence and error bars belong "
            "to a point that further training would leave; train with this prior as weight decay"
        )
    if la.tuning is not None and bool(np.any(la.tuning.at_bound)):
        said.append("the prior precision was tuned to a bound; widen bounds=, or set it yourself")
    if la.tuning is not None and bool(la.tuning.flat):
        said.append(
            "the objective hardly depends on the prior precision; set it from what you know"
        )
    if float(found.condition_number) > _LARGEST_CONDITION and tree.dtype(la.mode) != "float64":
        said.append("the posterior precision is ill-conditioned for this dtype; use float64")
    if float(found.jitter) > 0:
        said.append(
            "the posterior precision had to be raised to be factorised in this dtype; use float64 "
            "parameters, or a larger prior precision"
        )
    return said


def as_text(la: "Laplace") -> str:
    """Return the card as lines of text."""
    card = facts(la)
    width = max(map(len, card))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in card.items())


def _num_params(la: "Laplace") -> int:
    leaves = jax.tree.leaves(jax.eval_shape(lambda: la.params))
    return tree.size([leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)])


def _frozen(la: "Laplace") -> str:
    """Return how many leaves are frozen, wholly or in part, and the first of them."""
    frozen, indices = la.selection.frozen, la.selection.indices
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
    low, high = float(values.min()), float(values.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _noise(likelihood) -> str:
    if not hasattr(likelihood, "noise_std"):
        return ""
    return _range(np.atleast_1d(np.asarray(likelihood.noise_std)))
