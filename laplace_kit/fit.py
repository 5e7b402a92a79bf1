"""From a trained model and its data to a posterior."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from laplace_kit import storage, stored, tree
from laplace_kit.approx.choice import (
    DEFAULT_RANK,
    STRUCTURES,
    Choice,
    Chosen,
    Sizes,
    choose_structure,
)
from laplace_kit.approx.named import (
    CURVATURE_HINTS,
    CURVATURES,
    STRUCTURE_HINTS,
    named_operator,
    named_structure,
)
from laplace_kit.approx.posterior import factorise
from laplace_kit.approx.prior import Prior, expand_precision
from laplace_kit.approx.subset import last_layer
from laplace_kit.approx.update import Expansion
from laplace_kit.curv import design
from laplace_kit.curv.capture.coverage import coverage_of
from laplace_kit.curv.kronecker import WEIGHT_SHARING, num_entries
from laplace_kit.curv.matrix_free.ritz import check_rank
from laplace_kit.curv.mode import check_inputs, examine_mode
from laplace_kit.curv.objective import Objective, restrict
from laplace_kit.curv.operator import check_outputs
from laplace_kit.curv.split import with_features
from laplace_kit.curv.trained_model import TrainedModel
from laplace_kit.data import NUM_EXAMPLES, Data, InMemory, as_data, batch_spec, with_weights
from laplace_kit.errors import check_option
from laplace_kit.eval.predictive import Prediction
from laplace_kit.examples import first_examples
from laplace_kit.independence import check_independence
from laplace_kit.laplace import Laplace
from laplace_kit.likelihood import Likelihood, as_likelihood
from laplace_kit.memory import Limits
from laplace_kit.record import Record
from laplace_kit.selection import Selection, Subset, can_vary, select
from laplace_kit.tree import as_pytree_function


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
    weights: Any = None,
    batch_size: int | None = None,
    memory_limit: int | None = None,
    progress: bool = False,
) -> Laplace:
    r"""Fit a Laplace posterior $\mathcal N(\theta^*, (H + d)^{-1})$ at trained parameters.

    Parameters
    ----------
    model_fn
        `(params, x) -> (N, *event)`, pure, and each example by itself: BatchNorm and dropout in
        evaluation mode; see `laplace_kit.model` for modules.
    params
        The trained parameters, a pytree. Leaves that are not floating point are frozen.
    data
        The training data: `(x, y)` or `(x, y, weights)` in memory, or a re-iterable of such.
    likelihood
        A likelihood object, or `"gaussian"`, `"heteroscedastic_gaussian"`, `"categorical"`,
        `"bernoulli"`, `"poisson"`.
    structure
        Of the curvature: `"full"`; `"ekfac"` or `"kron"`, Kronecker-factored by layer (not of the
        Hessian); `"low_rank"`; `"diagonal"`; or `"auto"`, the first of these that fits the memory
        limit, of the last layer where neither of the first three fits all parameters; `la.choice`
        says what and why.
    curvature
        `"ggn"`, `"hessian"`, `"empirical_fisher"`, or `"mc_fisher"`, which needs a key.
    prior_precision
        $d > 0$: a scalar, a pytree prefix of the parameters, or one value per parameter.
    prior_mean
        $\theta_0$, in any of the same forms; `None` for zero.
    subset
        Which parameters are random: `None` for all, `"last_layer"`, a predicate on the leaf's path,
        a pytree prefix of booleans, per leaf or per element, or indices into the flat parameters;
        see `laplace_kit.approx.subset`. The others are frozen, and what depends on them alone is
        computed once.
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
    weights
        How often each example counts, `(N,)`: finite numbers of at least zero. A weight k is k
        copies of the example in every sum, a weight of zero its absence, and `la.num_data` the
        total. Over a stream weights come in the batches, `(x, y, weights)`.
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
    check_option("curvature", curvature, CURVATURES, CURVATURE_HINTS)
    check_option("structure", structure, ("auto", *STRUCTURES), STRUCTURE_HINTS)
    check_option("weight_sharing", weight_sharing, WEIGHT_SHARING)
    limits = Limits(batch_size, memory_limit)
    if curvature == "mc_fisher" and key is None:
        raise ValueError(
            "Found no key, expected one for curvature='mc_fisher', which draws labels; pass "
            "key=jax.random.key(0)."
        )
    model_fn = as_pytree_function(model_fn)
    data = with_weights(as_data(data, progress=progress), weights)
    of_outputs = as_likelihood(likelihood)
    ask = _Asked(structure, curvature, rank, num_samples, limits)
    prior, num_asked = None, None
    if not _is_last_layer(subset):  # wrong options are refused before the model is traced
        free, selection = select(params, subset)
        num_asked = tree.size(free)
        prior = _prior(prior_precision, prior_mean, free, selection)
        if rank is not None:
            check_rank(rank, num_asked)
    plan = _plan(model_fn, params, of_outputs, subset, data, ask)
    objective, selection, sizes = plan.objective, plan.selection, plan.sizes
    free = objective.params
    if num_asked != sizes.num_params:  # the last layer, which "auto" takes by itself, too
        prior = _prior(prior_precision, prior_mean, free, selection)
    precision, mean = prior
    dtype = precision.dtype

    with _stages(progress) as enter:
        enter("checking the mode")
        cached, features = with_features(objective, data)
        if features is not data:
            check_inputs(data.x)  # which may leave no trace in the features
        mode = examine_mode(cached, features)
        examples = first_examples(data, NUM_EXAMPLES)
        check_independence(model_fn, params, examples.x, limits)
        chosen = plan.chosen
        if not isinstance(data, InMemory):  # only now the examples are counted
            sizes = _with_rows(sizes, mode.num_examples, objective, ask)
            chosen = choose_structure(structure, curvature, sizes, limits.budget)
        choice = Choice(
            structure=chosen.structure,
            form=chosen.form,
            curvature=curvature,
            subset=plan.subset,
            rank=sizes.rank,
            weight_sharing=weight_sharing,
            num_samples=num_samples,
            batch_size=batch_size,
            memory_limit=memory_limit,
            event=objective.plan.output.shape,
            because=chosen.because + plan.why,
        )
        enter(f"fitting the {choice.structure} {curvature}")
        fitted = named_structure(named_operator(cached, features, choice, key), choice, key)
        enter("factorising the posterior")
        posterior, jitter = factorise(fitted, precision)
    given = jax.tree.map(jnp.asarray, prior_precision)
    gradient, coverage = mode.gradient.astype(dtype), coverage_of(objective.plan.layers)
    return Laplace(
        model=TrainedModel(model_fn, free, selection, objective.plan),
        likelihood=of_outputs,
        expansion=Expansion(mode.log_likelihood, gradient, fitted, mode.num_data),
        prior=Prior(mean, given, temperature=jnp.ones((), dtype)),
        posterior=posterior,
        prediction=Prediction(),
        record=Record(choice, coverage, jitter, examples=examples),
    )


def load(
    path: str | os.PathLike,
    model_fn: Callable,
    *,
    params: PyTree = None,
    likelihood: Likelihood | None = None,
) -> Laplace:
    """Read a posterior that `Laplace.save` wrote.

    Parameters
    ----------
    path
        The file.
    model_fn
        The same function that was given to `fit`: functions are not stored.
    params
        Parameters like those that were given to `fit`: their structure and shapes are checked, and
        their values are not read. Needed where they are more than dictionaries, lists and tuples,
        such as modules of equinox, `NamedTuple`s or a `FrozenDict`, as no class is stored; the
        whole module will do, too.
    likelihood
        Needed where it was `FromLoss`, which is a function too; otherwise it is in the file.

    Returns
    -------
    la
        A `Laplace` with the arrays that were saved; training examples are not among them.

    Raises
    ------
    OSError
        If the file cannot be opened, as where there is none (`FileNotFoundError`).
    ValueError
        If the file is damaged, foreign or of a later version, lacks a likelihood, or holds other
        parameters than `params`.
    """
    fields = storage.read(path, stored.CLASSES)
    if not stored.is_posterior(fields):
        raise ValueError(
            f"Found {os.fspath(path)!r}, which holds something other than a posterior; expected a "
            "file written by la.save(path)."
        )
    fields = stored.restored(fields, params)
    fields["likelihood"] = likelihood or fields["likelihood"]
    if fields["likelihood"] is None:
        raise ValueError(
            f"Found no likelihood in {os.fspath(path)!r}, expected one: it was a function, which "
            "is not stored; pass lk.load(path, model_fn, likelihood=lk.FromLoss(loss))."
        )
    return Laplace(**stored.parts(fields, as_pytree_function(model_fn)))


# --- what to fit ----------------------------------------------------------------------------------


def _prior(precision: PyTree, mean: PyTree, free: PyTree, selection: Selection):
    """Return prior precision and mean of each free parameter."""
    dtype = jnp.promote_types(tree.dtype(free), jnp.float32)
    precision = expand_precision(precision, free, selection, dtype)
    mean = 0.0 if mean is None else mean
    mean = selection.broadcast(mean, free, name="prior_mean").astype(dtype)
    if tree.is_concrete(mean) and not np.isfinite(np.asarray(mean)).all():
        raise ValueError("Found a prior_mean that is not finite, expected finite numbers.")
    return precision, mean


class _Asked(NamedTuple):
    """The options that decide on the structure."""

    structure: str
    curvature: str
    rank: int | None
    num_samples: int
    limits: Limits


class _Plan(NamedTuple):
    """The model as a function of the parameters chosen, and the structure that fits them.

    `subset` says in words which they are, `why` the reason for them if nobody asked for these.
    """

    objective: Objective
    selection: Selection
    subset: str
    sizes: Sizes
    chosen: Chosen
    why: str = ""


def _plan(model_fn, params, likelihood, subset, data: Data, ask: _Asked) -> _Plan:
    """Choose subset and structure: for `"auto"` the last layer where no richer one fits all."""
    x, y = batch_spec(data)
    words = "a subset"
    if _is_last_layer(subset):
        subset, words = last_layer(model_fn, params, x), "the last layer"
    objective, selection = restrict(model_fn, params, likelihood, subset, ask.limits)
    objective = objective.planned(x)
    if tree.size(objective.params) == sum(map(jnp.size, filter(can_vary, jax.tree.leaves(params)))):
        words = "all of them"
    check_outputs(objective, x, y)
    sizes = _sizes(objective, ask)
    if isinstance(data, InMemory):
        sizes = _with_rows(sizes, data.num_examples, objective, ask)
    chosen = choose_structure(ask.structure, ask.curvature, sizes, ask.limits.budget)
    poor = chosen.structure in ("low_rank", "diagonal") and ask.curvature != "hessian"
    if ask.structure == "auto" and subset is None and poor:
        try:
            mask = last_layer(model_fn, params, x)
        except ValueError:  # there is none, and all parameters it is
            return _Plan(objective, selection, words, sizes, chosen)
        last = _plan(model_fn, params, likelihood, mask, data, ask)
        if last.chosen.structure not in ("low_rank", "diagonal"):
            why = f"; of all {sizes.num_params:,} parameters only {chosen.structure} fits"
            return last._replace(subset="the last layer", why=why)
    return _Plan(objective, selection, words, sizes, chosen)


def _is_last_layer(subset: Subset) -> bool:
    return isinstance(subset, str) and subset == "last_layer"


def _sizes(objective: Objective, ask: _Asked) -> Sizes:
    num_params = tree.size(objective.params)
    rank = min(DEFAULT_RANK, num_params) if ask.rank is None else check_rank(ask.rank, num_params)
    itemsize = jnp.promote_types(tree.dtype(objective.params), jnp.float32).itemsize
    return Sizes(num_params, rank, num_entries(objective.plan.layers), itemsize)


def _with_rows(sizes: Sizes, num_data: int, objective: Objective, ask: _Asked) -> Sizes:
    """Add what the dual form of the full structure takes; the Hessian has none."""
    columns = {
        "ggn": objective.plan.num_outputs,
        "empirical_fisher": 1,
        "mc_fisher": ask.num_samples,
    }.get(ask.curvature)
    if columns is None or ask.structure not in ("auto", "full"):
        return sizes
    entries = num_data * design.num_entries(objective, columns)
    return sizes._replace(num_rows=num_data * columns, design_entries=entries)


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
