"""From a trained model and its data to a posterior."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree

from laplace_kit import directories, storage, stored, tree
from laplace_kit.approx.choice import (
    Auto,
    Choice,
    Chosen,
    choose_structure,
    fit_chosen,
    has_candidate,
)
from laplace_kit.approx.names import (
    CurvatureName,
    StructureName,
    as_curvature,
    as_structure,
)
from laplace_kit.approx.prior import Prior, compact_precision, expand_mean
from laplace_kit.approx.spec import Sizes, StructureSpec, sizes_of
from laplace_kit.approx.subset import last_layer
from laplace_kit.approx.update import Expansion
from laplace_kit.bars import stages
from laplace_kit.checkpoint import Checkpoint, claim
from laplace_kit.curv.capture.coverage import coverage_of
from laplace_kit.curv.matrix_free.ritz import check_rank
from laplace_kit.curv.mode import check_inputs, examine_mode
from laplace_kit.curv.objective import Objective, restrict
from laplace_kit.curv.operator import check_outputs
from laplace_kit.curv.spec import CurvatureSpec
from laplace_kit.curv.split import with_features
from laplace_kit.curv.trained_model import TrainedModel
from laplace_kit.data import (
    NUM_EXAMPLES,
    Data,
    as_data,
    batch_spec,
    forget,
    is_shared,
    with_checkpoint,
    with_weights,
)
from laplace_kit.eval.link import LinkFunction
from laplace_kit.eval.predictive import Prediction
from laplace_kit.examples import first_examples
from laplace_kit.host import check_same
from laplace_kit.independence import check_independence
from laplace_kit.job import job_of
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
    structure: StructureName | StructureSpec = "auto",
    curvature: CurvatureName | CurvatureSpec = "ggn",
    prior_precision: PyTree = 1.0,
    prior_mean: PyTree = None,
    subset: Subset = None,
    rank: int | None = None,
    weight_sharing: Literal["expand", "reduce"] | None = None,
    key: PRNGKeyArray | None = None,
    num_samples: int | None = None,
    weights: Any = None,
    batch_size: int | None = None,
    memory_limit: int | None = None,
    checkpoint: Checkpoint | str | os.PathLike | None = None,
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
        A likelihood object, a loss `(f, y)` of one example, or `"gaussian"`,
        `"heteroscedastic_gaussian"`, `"student_t"`, `"categorical"`, `"bernoulli"`, `"poisson"`,
        `"negative_binomial"`.
    structure
        How the curvature is approximated, by name or as an object with options: `"full"` or
        `lk.Full()`; `"ekfac"` or `"kron"`, Kronecker-factored by layer (not for the Hessian), or
        `lk.Kronecker()`; `"low_rank"` or `lk.LowRank()`; `"diagonal"` or `lk.Diagonal()`; an object
        of a `StructureSpec` of your own. `"auto"` or `lk.Auto()` takes the richest that fits the
        memory limit, falling back to the last layer if neither full nor EKFAC fits all parameters;
        `la.choice` holds the choice and the reason.
    curvature
        `"ggn"` or `lk.GGN()`, `"hessian"` or `lk.Hessian()`, `"empirical_fisher"` or
        `lk.EmpiricalFisher()`, `"mc_fisher"` or `lk.MonteCarloFisher(key)`, or an object of a
        `CurvatureSpec` of your own.
    prior_precision
        $d > 0$: a scalar, a pytree prefix of the parameters, or one value per parameter.
    prior_mean
        $\theta_0$, in any of the same forms; `None` for zero.
    subset
        Which parameters are random: `None` for all, `"last_layer"`, a predicate on the leaf's path,
        a pytree prefix of booleans, per leaf or per element, or indices into the flat parameters;
        `laplace_kit.approx` has rules. The others are frozen, and values that depend only on them
        are computed once.
    rank
        Only for `"low_rank"`, also where `"auto"` takes it; 50 by default, or P if smaller.
    weight_sharing
        Only for `"kron"` and `"ekfac"`; see `lk.Kronecker`.
    key
        For `"mc_fisher"`, and, if given, for structures that draw: the start vector of Lanczos.
    num_samples
        Only for `"mc_fisher"`; see `lk.MonteCarloFisher`.
    weights
        How often each example counts, `(N,)`: finite numbers of at least zero. An example of weight
        k counts as k copies in every sum, one of weight zero is left out, and `la.num_data` is the
        total. Over a stream weights come in the batches, `(x, y, weights)`.
    batch_size
        The number of examples held at a time; `None` chooses from the memory limit.
    memory_limit
        In bytes; `None` for a quarter of the device's memory.
    checkpoint
        A directory, for a stream: there every pass saves its sums and its place in the loader once
        a minute, and the same call goes on after a kill, with the same result to the bit. The files
        are removed at the end. `lk.Checkpoint` has the interval.
    progress
        Show a progress bar: the stages, and each pass over a stream with its examples a second.

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
        For invalid arguments, before any work is done: the message names the value found, the value
        expected and the remedy.

    References
    ----------
    MacKay (1992), A practical Bayesian framework for backpropagation networks. Daxberger et al.
    (2021), Laplace redux: effortless Bayesian deep learning.
    """
    asked = as_structure(structure, rank=rank, weight_sharing=weight_sharing)
    kind = as_curvature(curvature, key=key, num_samples=num_samples)
    model_fn = as_pytree_function(model_fn)
    data = with_weights(as_data(data, progress=progress), weights)
    if checkpoint is not None:
        data = with_checkpoint(data, checkpoint)
    shared = is_shared(data)
    check_same("parameters or data", (params, data), shared=shared)
    limits = Limits(batch_size, memory_limit).shared_by(params, data, shared=shared)
    observed_by = as_likelihood(likelihood)
    dtype, num_asked = None, None
    if not _is_last_layer(subset):  # wrong options are refused before the model is traced
        free, selection = select(params, subset)
        num_asked = tree.size(free)
        dtype = _check_prior(prior_precision, prior_mean, free, selection)
        if rank is not None:
            check_rank(rank, num_asked)
    model = _Model(model_fn, params, observed_by, data, limits)
    plan = _plan(model, subset, asked, kind)
    objective, selection = plan.objective, plan.selection
    free = objective.params
    if num_asked != tree.size(free):  # the last layer, which "auto" takes by itself, too
        dtype = _check_prior(prior_precision, prior_mean, free, selection)

    with stages(progress, 3) as enter:
        enter("checking the mode")
        examples = first_examples(data, NUM_EXAMPLES)
        if checkpoint is not None:
            asked = {"structure": plan.chosen.spec, "curvature": kind, "key": key}
            own = {"params": params, "indices": selection.indices, "examples": examples}
            claim(data.checkpoint, job_of(objective, data, **own, **asked))
        cached, features = with_features(objective, data)
        if features is not data:
            check_inputs(data.x)  # invalid inputs may leave no trace in the features
        mode = examine_mode(cached, features)
        check_independence(model_fn, params, examples.x, limits)
        choice = Choice(
            spec=plan.chosen.spec,
            curvature_spec=kind,
            subset=plan.subset,
            batch_size=batch_size,
            memory_limit=memory_limit,
            event=objective.plan.output.shape,
            because=plan.chosen.because + plan.why,
        )
        enter(f"fitting the {choice.structure} {choice.curvature}")
        fitted = fit_chosen(choice, cached, features, key)
        enter("factorising the posterior")
        trained = TrainedModel(model_fn, free, selection, objective.plan)
        mean = expand_mean(prior_mean, free, selection, dtype)
        given = jax.tree.map(jnp.asarray, prior_precision)
        prior = Prior(mean, given, temperature=jnp.ones((), dtype))
        posterior, jitter = prior.posterior(fitted, trained)
    forget(data)  # a checkpoint has served
    gradient = mode.gradient.astype(dtype)
    coverage = coverage_of(objective.plan.layers, choice.widths)
    return Laplace(
        model=trained,
        likelihood=observed_by,
        expansion=Expansion(mode.log_likelihood, gradient, fitted, mode.num_data, mode.num_entries),
        prior=prior,
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
    link: LinkFunction | None = None,
    mesh: Mesh | None = None,
) -> Laplace:
    """Read a posterior that `Laplace.save` wrote.

    Parameters
    ----------
    path
        The file, or the directory of `la.save(path, sharded=True)`.
    model_fn
        The same function that was given to `fit`: functions are not stored.
    params
        Parameters like those that were given to `fit`: their structure and shapes are checked, and
        their values are not read. Needed if they are more than dictionaries, lists and tuples, such
        as modules of equinox, `NamedTuple`s or a `FrozenDict`, as classes are not stored; the whole
        module can be passed as well.
    likelihood
        Needed if it was `FromLoss`, which holds a function, or of a class of your own that is not
        registered by `lk.storable`; otherwise it is in the file.
    link
        Needed if `with_prediction` was given a function as the link; otherwise it is in the file.
    mesh
        For a directory: devices over which arrays are spread along the axes, by their names, along
        which they were when they were saved; `None` for one device. The number of devices may
        differ.

    Returns
    -------
    la
        A `Laplace` with the saved arrays; training examples are not among them.

    Raises
    ------
    OSError
        If the file cannot be opened; `FileNotFoundError` if there is none.
    ValueError
        If the file is damaged, not from laplace_kit or of a later version, lacks a likelihood or a
        link, holds other parameters than `params`, or an object of a class that is not registered:
        import the module that defines a structure of your own before its file is read. If there is
        a mesh for a file.
    """
    is_directory = Path(path).is_dir()
    if mesh is not None and not is_directory:
        raise ValueError(
            f"Found mesh= for {os.fspath(path)!r}, which is a file, expected a directory written "
            "by la.save(path, sharded=True); leave it out, and spread what is loaded by "
            "jax.device_put(la, sharding)."
        )
    found = directories.read(path, mesh) if is_directory else storage.read(path)
    if not stored.is_posterior(found):
        raise ValueError(
            f"Found {os.fspath(path)!r}, which holds something other than a posterior; expected a "
            "file written by la.save(path)."
        )
    fields = stored.restored(found, params, link)
    fields["likelihood"] = likelihood or fields["likelihood"]
    if fields["likelihood"] is None:
        raise ValueError(
            f"Found no likelihood in {os.fspath(path)!r}, expected one: functions are not stored, "
            "nor are classes that are not registered by lk.storable; pass the likelihood that was "
            "given to fit, lk.load(path, model_fn, likelihood=lk.FromLoss(loss))."
        )
    return Laplace(**stored.parts(fields, as_pytree_function(model_fn)))


# --- plan of the fit ------------------------------------------------------------------------------


def _check_prior(precision: PyTree, mean: PyTree, free: PyTree, selection: Selection) -> jnp.dtype:
    """Return the dtype of the prior, once its precision and mean are known to be right."""
    dtype = jnp.promote_types(tree.dtype(free), jnp.float32)
    compact_precision(precision, free, selection, dtype)
    expand_mean(mean, free, selection, dtype)
    return dtype


class _Model(NamedTuple):
    """Model, data and limits as they were given to `fit`."""

    model_fn: Callable
    params: PyTree
    likelihood: Likelihood
    data: Data
    limits: Limits


class _Plan(NamedTuple):
    """The model as a function of the chosen parameters, and the structure to fit.

    `subset` describes the chosen parameters in words; `why` is the reason if `Auto` chose them.
    """

    objective: Objective
    selection: Selection
    subset: str
    chosen: Chosen
    why: str = ""


def _plan(model: _Model, subset: Subset, asked: StructureSpec, curvature: CurvatureSpec) -> _Plan:
    """Choose subset and structure: `Auto` takes the last layer if no rich structure fits all."""
    x, _ = batch_spec(model.data)
    words, limit = "a subset", model.limits.budget
    if _is_last_layer(subset):
        subset, words = last_layer(model.model_fn, model.params, x), "the last layer"
    objective, selection, sizes = _sized(model, subset, curvature)
    if sizes.num_params == sum(map(jnp.size, filter(can_vary, jax.tree.leaves(model.params)))):
        words = "all of them"
    chosen = choose_structure(asked, curvature, sizes, limit)
    plan = _Plan(objective, selection, words, chosen)
    may_be_last = isinstance(asked, Auto) and subset is None and sizes.num_columns is not None
    if not may_be_last or has_candidate(asked, sizes, limit):
        return plan
    try:
        mask = last_layer(model.model_fn, model.params, x)
    except ValueError:  # the model has no last layer: keep all parameters
        return plan
    objective, selection, fewer = _sized(model, mask, curvature)
    rich = dataclasses.replace(asked, otherwise=())
    if not has_candidate(rich, fewer, limit):
        return plan
    why = f"; of all {sizes.num_params:,} parameters only {chosen.spec.name} fits"
    chosen = choose_structure(rich, curvature, fewer, limit)
    return _Plan(objective, selection, "the last layer", chosen, why)


def _is_last_layer(subset: Subset) -> bool:
    return isinstance(subset, str) and subset == "last_layer"


def _sized(
    model: _Model, subset: Subset, curvature: CurvatureSpec
) -> tuple[Objective, Selection, Sizes]:
    """Return the planned model of a subset, and the sizes on which its structure depends."""
    x, y = batch_spec(model.data)
    objective, selection = restrict(
        model.model_fn, model.params, model.likelihood, subset, model.limits
    )
    objective = objective.planned(x)
    check_outputs(objective, x, y)
    columns = curvature.num_columns(objective.plan.output.shape)
    return objective, selection, sizes_of(objective, model.data, columns)
