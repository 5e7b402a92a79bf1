"""Operators and structures by their names: what `fit` is asked for becomes objects."""

from jaxtyping import PRNGKeyArray

from laplace_kit import curv
from laplace_kit.approx.choice import KRONECKER, Choice
from laplace_kit.approx.diagonal import fit_diagonal
from laplace_kit.approx.dual import fit_dual
from laplace_kit.approx.full import fit_full
from laplace_kit.approx.kronecker import fit_kronecker
from laplace_kit.approx.low_rank import fit_low_rank
from laplace_kit.approx.posterior import Structure
from laplace_kit.curv.objective import Objective
from laplace_kit.curv.operator import CurvatureOperator, unchecked
from laplace_kit.data import Data

CURVATURES = ("ggn", "hessian", "empirical_fisher", "mc_fisher")

_KRONECKER = "K-FAC is 'kron', and 'ekfac' the same with a diagonal that is exact in its basis."
_SUBSET = "Which parameters are random is another choice: pass subset='last_layer', for example."
_CURVATURE = "That is a curvature: pass it as curvature=, with any structure."
_FISHER = (
    "The Fisher matrix of most likelihoods equals the GGN, 'ggn'; 'mc_fisher' draws its labels, "
    "'empirical_fisher' takes those of the data."
)
# What other libraries and papers call them; see `laplace_kit.errors.check_option`.
STRUCTURE_HINTS = {
    **dict.fromkeys(("kfac", "k_fac", "kronecker", "kronecker_factored", "kflr"), _KRONECKER),
    **dict.fromkeys(("last_layer", "lastlayer", "ll", "subnetwork", "subnet", "all"), _SUBSET),
    **dict.fromkeys((*CURVATURES, "fisher"), _CURVATURE),
    **dict.fromkeys(("dense", "exact", "gp", "functional"), "Did you mean 'full'?"),
    **dict.fromkeys(("lowrank", "lanczos", "eigen"), "Did you mean 'low_rank'?"),
}
CURVATURE_HINTS = {
    **dict.fromkeys(("gauss_newton", "generalized_gauss_newton", "gn"), "Did you mean 'ggn'?"),
    **dict.fromkeys(("fisher", "ef", "natural"), _FISHER),
    **dict.fromkeys(
        ("kfac", "kron", "ekfac", "full", "diagonal", "diag", "low_rank"),
        "That is a structure: pass it as structure=, with any curvature.",
    ),
}


def named_operator(
    objective: Objective, data: Data, choice: Choice, key: PRNGKeyArray | None
) -> CurvatureOperator:
    """Return the curvature operator that was chosen, bound to a model and data.

    Parameters
    ----------
    objective, data
        The model at its mode, planned, with its likelihood, and the data to sum over, which have
        been checked.
    choice
        Names the curvature.
    key
        For `"mc_fisher"`.
    """
    if choice.curvature == "mc_fisher":
        own = {"key": key, "num_samples": choice.num_samples}
        return unchecked(curv.MonteCarloFisherOperator, objective, data, own)
    operators = {
        "ggn": curv.GGNOperator,
        "hessian": curv.HessianOperator,
        "empirical_fisher": curv.EmpiricalFisherOperator,
    }
    return unchecked(operators[choice.curvature], objective, data, {})


def named_structure(
    operator: CurvatureOperator, choice: Choice, key: PRNGKeyArray | None
) -> Structure:
    """Return the structure that was chosen, fitted to an operator.

    Parameters
    ----------
    operator
        The curvature.
    choice
        Names the structure and its form, its rank or its weight sharing.
    key
        For the start vector of Lanczos; by default a fixed one.
    """
    if choice.structure == "full":
        return fit_dual(operator) if choice.form == "dual" else fit_full(operator)
    if choice.structure in KRONECKER:
        corrected = choice.structure == "ekfac"
        return fit_kronecker(operator, corrected=corrected, weight_sharing=choice.weight_sharing)
    if choice.structure == "diagonal":
        return fit_diagonal(operator)
    return fit_low_rank(operator, choice.rank, key=key)
