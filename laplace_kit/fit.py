"""From a trained model and its data to a posterior."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from laplace_kit import curv, tree
from laplace_kit.approx.choice import DEFAULT_RANK, KRONECKER, STRUCTURES, Sizes, choose_structure
from laplace_kit.approx.diagonal import fit_diagonal
from laplace_kit.approx.full import fit_full
from laplace_kit.approx.kronecker import fit_kronecker
from laplace_kit.approx.low_rank import fit_low_rank
from laplace_kit.approx.posterior import Structure, factorise
from laplace_kit.approx.prior import expand_precision
from laplace_kit.curv.coverage import of_objective
from laplace_kit.curv.kronecker import WEIGHT_SHARING, num_entries
from laplace_kit.curv.lanczos import check_rank
from laplace_kit.curv.layers import find_layers
from laplace_kit.curv.mode import examine_mode
from laplace_kit.curv.objective import restrict
from laplace_kit.curv.operator import CurvatureOperator, check_outputs
from laplace_kit.data import as_data, batch_spec, check_batch_size
from laplace_kit.errors import check_option
from laplace_kit.laplace import Laplace
from laplace_kit.likelihood import Likelihood, as_likelihood
from laplace_kit.tree import Subset, as_pytree_function

CURVATURES = ("ggn", "hessian", "empirical_fisher", "mc_fisher")


def fit(
    model_fn: Callable,
    params: PyTree,
    data: Any,
    *,
    likelihood: Likelihood | str,
    structure: Literal["auto", "full", "ekfac", "kron", "low_rank", "diagonal"] = "auto",
    curvature: Literal["ggn", "hessian", "empirical_fisher", "mc_fisher"] = "ggn",
    prior_precision: PyTree = 1.0,
    prior_mean: PyTree = None,
    subset: Subset = None,
    rank: int | None = None,
    weight_sharing: Literal["expand", "reduce"] = "expand",
    key: PRNGKeyArray | None = None,
    num_samples: int = 1,
    batch_size: int | None = None,
    memory_limit: int | None = None,
    progress: bool = False,
) -> Laplace:
    r"""Fit a Laplace posterior $\mathcal N(\theta^*, (H + d)^{-1})$ at trained parameters.

    Parameters
    ----------
    model_fn
        `(params, x) -> (N, *event)`, pure; see `laplace_kit.model` for modules.
    params
        The trained parameters, a pytree. Leaves that are not floating point are frozen.
    data
        The training data: `(x, y)` in memory, or a re-iterable of such pairs.
    likelihood
        A likelihood object, or `"gaussian"`, `"heteroscedastic_gaussian"`, `"categorical"`,
        `"bernoulli"`, `"poisson"`.
    structure
        Of the curvature: `"full"`; `"ekfac"` or `"kron"`, Kronecker-factored by layer (not of the
        Hessian); `"low_rank"`; `"diagonal"`; or `"auto"`, the first of these that fits the memory
        limit.
    curvature
        `"ggn"`, `"hessian"`, `"empirical_fisher"`, or `"mc_fisher"`, which needs a key.
    prior_precision
        $d > 0$: a scalar, a pytree prefix of the parameters, or one value per parameter.
    prior_mean
        $\theta_0$, in any of the same forms; `None` for zero.
    subset
        Which parameters are random: `None` for all, a predicate on the leaf's path, or a pytree
        prefix of booleans, per leaf or per element. The others are frozen.
    rank
        Of `"low_rank"`; 50, or P if that is less, by default.
    weight_sharing
        Of `"kron"` and `"ekfac"`, where an example uses a weight at several positions; see
        `laplace_kit.curv.kronecker_factors`.
    key
        For `"mc_fisher"`, and, if given, for the start vector of Lanczos.
    num_samples
        Of `"mc_fisher"`: labels drawn for each example. For models of very many outputs it is a
        cheap stand-in for the GGN, which it equals in expectation over labels.
    batch_size
        The number of examples held at a time; `None` chooses from the memory limit.
    memory_limit
        In bytes; `None` for a quarter of the device's memory.
    progress
        Show a bar: of stages in memory, of batches over a stream.

    Returns
    -------
    la
        A `Laplace`. Cost: one gradient, then for GGN and Fisher matrices with R columns in the
        output factor (`num_outputs`, or the number of samples) full $2 N R P^2$ operations,
        diagonal and Kronecker R backward passes (EKFAC twice), low rank about `3 rank + 20`
        products.

    Raises
    ------
    TypeError, ValueError
        For anything that cannot be right, before work is done: the message names what was found,
        what was expected and the remedy.

    References
    ----------
    MacKay (1992), A practical Bayesian framework for backpropagation networks. Daxberger et al.
    (2021), Laplace redux: effortless Bayesian deep learning.
    """
    check_option("curvature", curvature, CURVATURES)
    check_option("structure", structure, ("auto", *STRUCTURES))
    check_option("weight_sharing", weight_sharing, WEIGHT_SHARING)
    check_batch_size(batch_size)
    if curvature == "mc_fisher" and key is None:
        raise ValueError(
            "Found no key, expected one for curvature='mc_fisher', which draws labels; pass "
            "key=jax.random.key(0)."
        )
    data = as_data(data, progress=progress)
    objective, selection = restrict(model_fn, params, as_likelihood(likelihood), subset)
    free = objective.params
    num_params = tree.size(free)
    dtype = jnp.promote_types(tree.dtype(free), jnp.float32)
    rank = min(DEFAULT_RANK, num_params) if rank is None else check_rank(rank, num_params)
    precision = expand_precision(prior_precision, free, selection, dtype)
    mean = 0.0 if prior_mean is None else prior_mean
    mean = selection.broadcast(mean, free, name="prior_mean").astype(dtype)
    if tree.is_concrete(mean) and not np.isfinite(np.asarray(mean)).all():
        raise ValueError("Found a prior_mean that is not finite, expected finite numbers.")
    x, y = batch_spec(data)
    check_outputs(objective, x, y)
    sizes = Sizes(num_params, rank, num_entries(find_layers(objective, x)), dtype.itemsize)
    chosen = choose_structure(structure, curvature, sizes, memory_limit)

    with _stages(progress) as enter:
        enter("checking the mode")
        mode = examine_mode(objective, data, batch_size=batch_size, memory_limit=memory_limit)
        enter(f"fitting the {chosen} {curvature}")
        operator = _operator(objective, data, curvature, key, num_samples, batch_size, memory_limit)
        fitted = _structure(operator, chosen, rank, key, weight_sharing)
        enter("factorising the posterior")
        posterior, jitter = factorise(fitted, precision)
    return Laplace(
        model_fn=as_pytree_function(model_fn),
        mode=free,
        selection=selection,
        likelihood=objective.likelihood,
        structure=fitted,
        posterior=posterior,
        prior_precision=jax.tree.map(jnp.asarray, prior_precision),
        prior_mean=mean,
        log_likelihood=mode.log_likelihood,
        gradient=mode.gradient.astype(dtype),
        jitter=jitter,
        coverage=of_objective(objective, x),
        num_data=mode.num_data,
        batch_size=batch_size,
        memory_limit=memory_limit,
    )


@contextlib.contextmanager
def _stages(progress: bool) -> Iterator[Callable[[str], None]]:
    """Give a function that names the stage that begins, on a bar if that is wanted."""
    if not progress:
        yield lambda stage: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=3, leave=False, bar_format="{n_fmt}/{total_fmt} {desc} {elapsed}") as bar:

        def enter(stage: str) -> None:
            bar.update()
            bar.set_description_str(stage)

        yield enter


def _operator(
    objective, data, curvature, key, num_samples, batch_size, memory_limit
) -> CurvatureOperator:
    bound = (objective.model_fn, objective.params, data, objective.likelihood)
    if curvature == "mc_fisher":
        return curv.MonteCarloFisherOperator(
            *bound,
            key=key,
            num_samples=num_samples,
            batch_size=batch_size,
            memory_limit=memory_limit,
        )
    operators = {
        "ggn": curv.GGNOperator,
        "hessian": curv.HessianOperator,
        "empirical_fisher": curv.EmpiricalFisherOperator,
    }
    return operators[curvature](*bound, batch_size=batch_size, memory_limit=memory_limit)


def _structure(operator, chosen, rank, key, weight_sharing) -> Structure:
    if chosen == "full":
        return fit_full(operator)
    if chosen in KRONECKER:
        return fit_kronecker(operator, corrected=chosen == "ekfac", weight_sharing=weight_sharing)
    if chosen == "diagonal":
        return fit_diagonal(operator)
    return fit_low_rank(operator, rank, key=key)
