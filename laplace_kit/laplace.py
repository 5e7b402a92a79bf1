"""The posterior as an object: predict, tune, sample, evaluate, report and save, all delegated."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from laplace_kit import storage, tree
from laplace_kit.approx.diagnostics import Diagnostics, diagnose
from laplace_kit.approx.diagonal import DiagonalPosterior, DiagonalStructure
from laplace_kit.approx.evidence import log_evidence, log_evidence_isotropic
from laplace_kit.approx.full import FullPosterior, FullStructure
from laplace_kit.approx.kronecker import (
    Eigenblock,
    KroneckerPosterior,
    KroneckerStructure,
    PosteriorBlock,
)
from laplace_kit.approx.low_rank import LowRankPosterior, LowRankStructure
from laplace_kit.approx.posterior import Posterior, Structure, factorise
from laplace_kit.approx.prior import expand_precision
from laplace_kit.curv.coverage import Coverage, LeafCoverage
from laplace_kit.curv.layout import Layout, Move, Slot
from laplace_kit.curv.mode import check_values
from laplace_kit.curv.objective import Objective, of_free_params
from laplace_kit.data import gather
from laplace_kit.errors import check_option
from laplace_kit.eval import predictive
from laplace_kit.eval.compare import compare_report, named_sets
from laplace_kit.eval.evaluate import evaluate, negative_log_likelihood
from laplace_kit.eval.page import Report
from laplace_kit.eval.predictive import Predictive
from laplace_kit.eval.tune import tune_evidence, tune_validation
from laplace_kit.likelihood import (
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    Poisson,
    check_targets,
)
from laplace_kit.tree import Selection, as_pytree_function, pytree_dataclass


@pytree_dataclass(static=("coverage", "num_data", "batch_size", "memory_limit"))
class Laplace:
    r"""A Gaussian over a model's parameters, $\mathcal N(\theta^*, (H + d)^{-1})$; made by `fit`.

    A frozen pytree: `with_prior` and `tune` return new objects. `mode` holds the free parameters,
    `structure` the curvature $H$ free of the prior, `posterior` the zero-mean Gaussian about the
    mode; `log_likelihood` and `gradient` are sums over the training data at the mode; `coverage`
    lists how layer capture treats each parameter.
    """

    model_fn: jax.tree_util.Partial
    mode: PyTree
    selection: Selection
    likelihood: Likelihood
    structure: Structure
    posterior: Posterior
    prior_precision: PyTree
    prior_mean: Float[Array, " P"]
    log_likelihood: Float[Array, ""]
    gradient: Float[Array, " P"]
    jitter: Float[Array, ""]
    coverage: Coverage
    num_data: int
    batch_size: int | None
    memory_limit: int | None

    @property
    def params(self) -> PyTree:
        """The parameters at the mode, free and frozen, as they were given to `fit`."""
        return self.selection.insert(self.mode)

    @property
    def objective(self) -> Objective:
        """The model as a function of its free parameters, and the likelihood."""
        return of_free_params(self.model_fn, self.mode, self.selection, self.likelihood)

    # --- the prior ---

    def with_prior(self, prior_precision: PyTree) -> "Laplace":
        """Return the posterior for another prior precision, without a pass over the data.

        Parameters
        ----------
        prior_precision
            Positive: a scalar, a pytree prefix of the parameters, or one value per parameter.

        Raises
        ------
        ValueError
            If it has another form, is not positive, or leaves the posterior precision indefinite.
        """
        precision = self._expand(prior_precision)
        posterior, jitter = factorise(self.structure, precision)
        return tree.replace(
            self,
            posterior=posterior,
            jitter=jitter,
            prior_precision=jax.tree.map(jnp.asarray, prior_precision),
        )

    def log_marginal_likelihood(self, prior_precision: PyTree = None) -> Float[Array, ""]:
        """Return the evidence at the mode in nats, differentiable in the prior precision.

        Parameters
        ----------
        prior_precision
            As in `with_prior`; `None` for the posterior's own.

        Returns
        -------
        evidence
            See `laplace_kit.approx.evidence.log_evidence`.

        Raises
        ------
        ValueError
            If the prior precision has another form or is not positive.
        """
        if prior_precision is None:
            prior_precision = self.prior_precision
        precision, deviation = self._expand(prior_precision), self._deviation
        if tree.is_scalar(prior_precision):  # the spectrum does, and does not mind small values
            delta = jnp.asarray(prior_precision, precision.dtype) + self.jitter
            return log_evidence_isotropic(
                self.log_likelihood, self.structure.spectrum(), delta, jnp.sum(deviation**2)
            )
        return log_evidence(self.log_likelihood, self.structure, precision + self.jitter, deviation)

    def tune(
        self,
        *,
        method: Literal["evidence", "validation"] = "evidence",
        data: Any = None,
        link: Literal["probit", "bridge", "mean_field_1", "mean_field_2"] = "probit",
        per_leaf: bool = False,
        bounds: tuple[float, float] = (1e-4, 1e6),
    ) -> "Laplace":
        """Return the posterior with a prior precision that evidence or held-out data choose.

        Parameters
        ----------
        method
            `"evidence"` maximises the marginal likelihood of the training data;
            `"validation"` minimises the negative log-likelihood of `data` under the linearised
            predictive. Evidence needs no data set aside, and trusts model and mode; held-out data
            are the safer judge where networks fit their training data almost perfectly.
        data
            Of `"validation"`: `(x, y)` that were neither trained on nor are used for testing, or
            a re-iterable of such pairs.
        link
            Of `"validation"`: the link that `predict` will be called with.
        per_leaf
            Of `"evidence"`: one precision for every leaf instead of one for all parameters.
        bounds
            The smallest and the largest precision to consider.

        Raises
        ------
        ValueError
            If an option is unknown or does not go with the method, or the objective has no optimum
            within the bounds, as the evidence where the curvature is indefinite.

        Warns
        -----
        UserWarning
            If the best precision lies at a bound.
        """
        check_option("method", method, ("evidence", "validation"))
        if (method == "validation") != (data is not None) or (per_leaf and method != "evidence"):
            raise ValueError(
                f"Found method={method!r} with data={'None' if data is None else 'given'} and "
                f"per_leaf={per_leaf}, expected method='validation' with held-out data and one "
                "precision for all, or method='evidence' without data."
            )
        if method == "evidence":
            tuning = tune_evidence(
                self.structure, self._deviation, self.mode, per_leaf=per_leaf, bounds=bounds
            )
            return self.with_prior(tuning.prior_precision)
        x, y = self._labelled(data)

        def held_out_loss(prior_precision: float) -> float:
            predicted = self.with_prior(prior_precision).predict(x, link=link)
            return float(negative_log_likelihood(self.likelihood, predicted, y))

        return self.with_prior(tune_validation(held_out_loss, bounds=bounds).prior_precision)

    # --- draws and predictions ---

    def sample(self, key: PRNGKeyArray, num_samples: int) -> PyTree:
        """Return parameters drawn from the posterior, like `params` with a leading axis.

        Parameters
        ----------
        key
            For the draws.
        num_samples
            How many, K: every leaf has the shape `(K, *leaf.shape)`.
        """
        centre = tree.ravel(self.mode).astype(self.posterior.dtype)
        draws = tree.unravel(centre + self.posterior.sample(key, num_samples), self.mode)
        return jax.vmap(self.selection.insert)(draws)

    def predict(
        self,
        x: PyTree,
        *,
        method: Literal["linearized", "sampled"] = "linearized",
        link: Literal["probit", "bridge", "mean_field_1", "mean_field_2", "monte_carlo"] = "probit",
        covariance: Literal["auto", "full", "diagonal"] = "auto",
        key: PRNGKeyArray | None = None,
        num_samples: int | None = None,
        batch_size: int | None = None,
    ) -> Predictive:
        """Return the predictive distribution at inputs; see `laplace_kit.eval.predictive.predict`.

        Parameters
        ----------
        x
            Inputs with a leading axis N.
        method, link, covariance, key, num_samples
            As there.
        batch_size
            The number of inputs held at a time; by default that of `fit`.
        """
        return predictive.predict(
            self.objective,
            self.posterior,
            x,
            method=method,
            link=link,
            covariance=covariance,
            key=key,
            num_samples=num_samples,
            batch_size=batch_size or self.batch_size,
            memory_limit=self.memory_limit,
        )

    # --- quality ---

    def evaluate(self, data: Any) -> dict[str, float]:
        """Return the metrics of the default predictive on labelled data.

        Parameters
        ----------
        data
            `(x, y)` in memory, or a re-iterable of such pairs.

        Returns
        -------
        metrics
            By name; see `laplace_kit.eval.evaluate.evaluate`.
        """
        x, y = self._labelled(data)
        return evaluate(self.likelihood, self.predict(x), y)

    def report(
        self,
        data: Any,
        directory: str | os.PathLike,
        *,
        shifted: Mapping[str, Any] | None = None,
        ood: PyTree = None,
        title: str = "Calibration report",
    ) -> Report:
        """Compare with the mode alone on labelled data and write a page of metrics and pictures.

        Parameters
        ----------
        data
            The test set: `(x, y)`, or a re-iterable of such pairs.
        directory
            Where `index.html`, `metrics.json` and the plots go; made if it is missing.
        shifted
            Further labelled sets by name, such as `{"rotated": (x, y)}` (classification).
        ood
            Out-of-distribution inputs (classification): one set, or several by name.
        title
            The heading of the page.

        Returns
        -------
        report
            The numbers and the files; `print(report)` is the table.

        Raises
        ------
        TypeError, ValueError
            If targets and outputs do not go together, or the directory cannot be written.
        """
        x, y = self._labelled(data)
        predictors = {"map": self.predict_at_mode, "laplace": self.predict}
        return compare_report(
            predictors,
            self.likelihood,
            x,
            y,
            directory,
            shifted={name: self._labelled(value) for name, value in (shifted or {}).items()},
            ood=named_sets(ood, x),
            title=title,
            card=self.card(),
        )

    def predict_at_mode(self, x: PyTree) -> Predictive:
        """Return the predictive of the mode alone, without weight uncertainty: the MAP's."""
        return predictive.predict_at_mode(
            self.objective, x, batch_size=self.batch_size, memory_limit=self.memory_limit
        )

    def diagnostics(self) -> Diagnostics:
        """Return how far this posterior can be trusted; costs the spectrum and the variances."""
        return diagnose(
            self.structure,
            self.posterior,
            gradient=self.gradient,
            precision=self._expand(self.prior_precision),
            deviation=self._deviation,
            jitter=self.jitter,
        )

    def card(self) -> dict[str, str]:
        """Return the posterior's facts in words, by name: what the report and `print` show."""
        found = self.diagnostics()
        precision = self._expand(self.prior_precision)
        low, high = float(precision.min()), float(precision.max())
        return {
            "likelihood": type(self.likelihood).__name__,
            "structure": self.structure.name,
            "parameters": f"{tree.size(self.mode):,} of {tree.size(self.params):,}",
            "layer capture": self.coverage.summary(),
            "training examples": f"{self.num_data:,}",
            "prior precision": f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}",
            "log marginal likelihood": f"{float(self.log_marginal_likelihood()):.2f} nats",
            "effective parameters": f"{float(found.effective_parameters):.1f}",
            "gradient norm at the mode": f"{float(found.gradient_norm):.3g}",
            "smallest eigenvalue": f"{float(found.smallest_eigenvalue):.3g}",
            "largest relative residual": f"{float(found.largest_residual):.2g}",
            "jitter": f"{float(found.jitter):.2g}",
        }

    def __str__(self) -> str:
        """Return the card as lines of text."""
        width = max(map(len, self.card()))
        return "\n".join(f"{name:<{width}}  {text}" for name, text in self.card().items())

    def save(self, path: str | os.PathLike) -> None:
        """Write everything but the model to one file of arrays and JSON; `load` reads it.

        Parameters
        ----------
        path
            The file; replaced if it exists.

        Raises
        ------
        TypeError
            If the parameters are not nested dictionaries, lists and tuples of arrays.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["model_fn"]
        if type(self.likelihood) not in _STORED.values():  # a function of the user's, as the model
            fields["likelihood"] = None
        storage.write(path, fields, _STORED)

    # --- shared parts ---

    @property
    def _deviation(self) -> Float[Array, " P"]:
        return tree.ravel(self.mode).astype(self.prior_mean.dtype) - self.prior_mean

    def _expand(self, prior_precision: PyTree) -> Float[Array, " P"]:
        return expand_precision(prior_precision, self.mode, self.selection, self.posterior.dtype)

    def _labelled(self, data: Any) -> tuple[PyTree, PyTree]:
        x, y = gather(data)
        outputs = self.objective.output_spec(x)
        check_targets(self.likelihood, outputs, y)
        check_values(self.likelihood, outputs, x, y)
        return x, y


_STORED = {
    cls.__name__: cls
    for cls in (
        Selection,
        *(Gaussian, HeteroscedasticGaussian, Categorical, Bernoulli, Poisson),
        *(FullStructure, DiagonalStructure, LowRankStructure, KroneckerStructure),
        *(FullPosterior, DiagonalPosterior, LowRankPosterior, KroneckerPosterior),
        *(Eigenblock, PosteriorBlock, Layout, Slot, Move),
        *(Coverage, LeafCoverage),
    )
}


def load(
    path: str | os.PathLike, model_fn: Callable, *, likelihood: Likelihood | None = None
) -> Laplace:
    """Read a posterior that `Laplace.save` wrote.

    Parameters
    ----------
    path
        The file.
    model_fn
        The same function that was given to `fit`: functions are not stored.
    likelihood
        Needed where it was `FromLoss`, which is a function too; otherwise it is in the file.

    Returns
    -------
    la
        A `Laplace` with the arrays that were saved.

    Raises
    ------
    OSError
        If the file cannot be opened, as where there is none (`FileNotFoundError`).
    ValueError
        If the file is damaged, foreign or of a later version, or lacks a likelihood.
    """
    fields = storage.read(path, _STORED)
    names = {f.name for f in dataclasses.fields(Laplace)} - {"model_fn"}
    if not isinstance(fields, dict) or set(fields) != names:
        raise ValueError(
            f"Found {os.fspath(path)!r}, which holds something other than a posterior; expected a "
            "file written by la.save(path)."
        )
    fields["likelihood"] = likelihood or fields["likelihood"]
    if fields["likelihood"] is None:
        raise ValueError(
            f"Found no likelihood in {os.fspath(path)!r}, expected one: it was a function, which "
            "is not stored; pass lk.load(path, model_fn, likelihood=lk.FromLoss(loss))."
        )
    return Laplace(model_fn=as_pytree_function(model_fn), **fields)
