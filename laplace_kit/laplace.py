"""The posterior as an object: predict, tune, sample, evaluate, report and save, all delegated."""

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from laplace_kit import card as cards
from laplace_kit import continual, directories, storage, stored, tree
from laplace_kit.approx.diagnostics import Diagnostics, diagnose
from laplace_kit.approx.evidence import log_evidence_of
from laplace_kit.approx.noise import noise_factor, with_known_noise
from laplace_kit.approx.posterior import Posterior
from laplace_kit.approx.prior import Prior, check_temperature, expand_precision
from laplace_kit.approx.update import Expansion
from laplace_kit.checkpoint import Checkpoint
from laplace_kit.curv.objective import Objective
from laplace_kit.curv.trained_model import TrainedModel
from laplace_kit.errors import check_option
from laplace_kit.eval import functions, predictive
from laplace_kit.eval.batches import predict_over
from laplace_kit.eval.link import Link
from laplace_kit.eval.predictive import CovarianceForm, Method, Prediction, Predictive
from laplace_kit.likelihood import Likelihood
from laplace_kit.record import Record
from laplace_kit.tree import pytree_dataclass
from laplace_kit.tune.noise import scaled

if TYPE_CHECKING:
    from laplace_kit.eval.attribution import Influence, Measure
    from laplace_kit.eval.leaving_out import LeaveOneOut, SuspiciousLabels
    from laplace_kit.eval.report import Report
    from laplace_kit.eval.report.compare import Compared


def _part(path: str, doc: str) -> property:
    """Return a property that reads an attribute of a part."""
    return property(operator.attrgetter(path), doc=doc)


@pytree_dataclass(static=("prediction",))
class Laplace:
    r"""A Gaussian over a model's parameters, $\mathcal N(\theta^*, T (H + d)^{-1})$; made by `fit`.

    A frozen pytree of a few parts: `with_prior`, `tune` and `update` return new objects. `model`
    holds the parameters at the mode, free and frozen; `likelihood` is the distribution of targets
    given outputs; `expansion` is the second-order expansion of the training data's log-likelihood
    at the mode, with the curvature $H$, without the prior; `prior` has the mean, the precision $d$
    and the temperature $T$; `posterior` is the zero-mean Gaussian of deviations from the mode.
    `prediction` holds the defaults of `predict`, `record` what `fit` and `tune` chose, and why.
    """

    model: TrainedModel
    likelihood: Likelihood
    expansion: Expansion
    prior: Prior
    posterior: Posterior
    prediction: Prediction
    record: Record

    @property
    def objective(self) -> Objective:
        """The model as a function of its free parameters, and the likelihood."""
        limits = self.choice.limits.shared_by(self.mode, self.expansion)
        return self.model.objective(self.likelihood, limits)

    params = _part("model.params", "All parameters at the mode, as they were given to `fit`.")
    model_fn = _part("model.model_fn", "The model, a function of all parameters and inputs.")
    mode = _part("model.mode", "The free parameters at the mode.")
    selection = _part("model.selection", "Which parameters are free, and the values of the others.")
    structure = _part("expansion.structure", "The curvature $H$, without the prior.")
    log_likelihood = _part("expansion.log_likelihood", "Log-likelihood of the data at the mode.")
    gradient = _part("expansion.gradient", "Gradient of the summed loss at the mode, `(P,)`.")
    num_data = _part("expansion.num_data", "The number of training examples, or total weight.")
    prior_precision = _part("prior.precision", "The prior precision, in the form it was given.")
    prior_mean = property(lambda la: la.prior.flat_mean(la.mode), doc="The prior mean, `(P,)`.")
    temperature = _part("prior.temperature", "The factor of the covariance; one, unless tuned.")
    choice = _part("record.choice", "What `fit` chose, and why.")
    coverage = _part("record.coverage", "How layer capture treats each parameter.")
    jitter = _part("record.jitter", "The share by which the precision's diagonal was raised.")
    tuning = _part("record.tuning", "How the prior precision was tuned; `None` if set by hand.")
    examples = _part("record.examples", "Some of the training data; `None` if loaded from a file.")

    @property
    def deviation(self) -> Float[Array, " P"]:
        r"""The mode minus the prior mean, $\theta^* - \theta_0$, flat."""
        return self.prior.deviation(self.model)

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
        prior = tree.replace(self.prior, precision=jax.tree.map(jnp.asarray, prior_precision))
        record = tree.replace(self.record, tuning=None)
        return tree.replace(self, prior=prior, record=record).refactorised()

    def with_temperature(self, temperature: float | Float[Array, ""]) -> "Laplace":
        r"""Return the posterior $\mathcal N(\theta^*, T (H + d)^{-1})$, with the same evidence.

        Parameters
        ----------
        temperature
            T > 0; below one, a cold posterior.
        """
        check_temperature(temperature)
        changed = jnp.asarray(temperature, self.prior.mean.dtype)
        prior = tree.replace(self.prior, temperature=changed)
        return tree.replace(self, prior=prior).refactorised()

    def with_noise(self, noise_std: ArrayLike) -> "Laplace":
        """Return the posterior for a known noise of a Gaussian likelihood, without a pass.

        Parameters
        ----------
        noise_std
            The standard deviation: a scalar, or of the shape of the likelihood's, and proportional
            to it, so that every sum over the data is only rescaled.

        Raises
        ------
        TypeError, ValueError
            If the likelihood is not Gaussian, or the noise is not positive and proportional.
        """
        la = scaled(self, noise_factor(self.likelihood, noise_std))
        return tree.replace(la, likelihood=with_known_noise(la.likelihood)).refactorised()

    def with_prediction(
        self,
        *,
        method: Method | Literal["auto"] | None = None,
        link: Link | Literal["auto"] | None = None,
        covariance: CovarianceForm | None = None,
        num_samples: int | Literal["auto"] | None = None,
    ) -> "Laplace":
        """Return the posterior with other defaults of `predict`, which `tune` uses too.

        Parameters
        ----------
        method, link, covariance, num_samples
            As in `laplace_kit.eval.predict`; `None` keeps the present value. `"auto"`
            restores the value of `fit`: linearised; a link that `tune` may choose, `"probit"` until
            then; the covariance that fits the memory; the method's own number of samples.
        """
        changed = predictive.changed(self.prediction, method, link, covariance, num_samples)
        return tree.replace(self, prediction=changed)

    def update(
        self,
        data: Any,
        *,
        key: PRNGKeyArray | None = None,
        checkpoint: Checkpoint | str | os.PathLike | None = None,
    ) -> "Laplace":
        """Return the posterior of the old data and new ones; see `laplace_kit.approx.updated`.

        Parameters
        ----------
        data, key
            The new data, as `fit` takes them, and a key for the curvature `"mc_fisher"`.
        checkpoint
            As in `fit`: where a stream saves its sums.
        """
        old = self.objective, self.expansion, self.prior.vector(self.model), self.record
        mode, expansion, record = continual.updated_by(data, *old, key=key, checkpoint=checkpoint)
        model = tree.replace(self.model, mode=mode)
        return tree.replace(self, model=model, expansion=expansion, record=record).refactorised()

    def log_marginal_likelihood(
        self, prior_precision: PyTree = None, *, noise_std: ArrayLike | None = None
    ) -> Float[Array, ""]:
        """Return the evidence at the mode in nats, differentiable; see `approx.log_evidence`.

        Parameters
        ----------
        prior_precision, noise_std
            As in `with_prior` and `with_noise`; `None` for the posterior's own.

        Raises
        ------
        TypeError, ValueError
            If either has another form or is not positive, or there is no noise.
        """
        given = self.prior.precision if prior_precision is None else prior_precision
        la = self if noise_std is None else scaled(self, noise_factor(self.likelihood, noise_std))
        parts = la.log_likelihood, la.structure, given, self.expand(given)
        return log_evidence_of(*parts, self.deviation, la.jitter)

    def tune(
        self,
        *,
        method: Literal["evidence", "validation", "cross_validation"] | None = None,
        data: Any = None,
        objective: Literal["nll", "ece", "brier", "crps"] | Callable = "nll",
        per_leaf: bool = False,
        noise: Literal["keep", "residuals", "evidence"] | None = None,
        temperature: bool | None = None,
        link: Link | None = None,
        num_folds: int = 5,
        bounds: tuple[float, float] = (1e-4, 1e6),
        key: PRNGKeyArray | None = None,
    ) -> "Laplace":
        """Return the posterior with the prior precision chosen by the evidence or labelled data.

        The usual sequence of the functions of `laplace_kit.tune`: first the noise if it is unknown,
        then the prior precision, and then the temperature.

        Parameters
        ----------
        method
            `"evidence"` maximises the marginal likelihood of the training data; `"validation"`
            minimises the loss of held-out data under the predictive that `predict` returns,
            `"cross_validation"` the loss of folds of the training data, each predicted by the
            linearised model without it. `None`: validation if data are given, else the evidence.
        data, objective
            Held-out data, or for `"cross_validation"` the training data, and their loss: `"nll"`,
            `"ece"`, `"brier"`, `"crps"`, or a function of a `Predictive` and targets.
        per_leaf
            One precision for every leaf instead of one for all parameters; only by the evidence.
        noise
            For a Gaussian likelihood: `"residuals"` takes the noise of greatest likelihood at the
            mode, before the prior is tuned; `"evidence"` maximises over noise and prior together;
            `"keep"` keeps it. `None`: residuals if it is unknown, as in `lk.Gaussian()`, else keep.
        temperature
            Whether to tune the temperature too: by the variational bound of the evidence, or by the
            loss of the held-out data or of the folds. `None`: with the evidence, except for
            Gaussian likelihoods, whose evidence is exact.
        link, num_folds, bounds, key
            The link of later predictions, `None` for the present one or, if none was chosen, the
            best on held-out data; the number of folds; the smallest and the largest precision to
            consider; a key for predictives that draw samples.

        Raises
        ------
        TypeError, ValueError
            If an option is unknown or incompatible with the method, or the objective has no optimum
            within the bounds, such as the evidence where the curvature is indefinite.

        Warns
        -----
        UserWarning
            If the best precision or temperature lies at a bound, or the evidence is flat.
        """
        from laplace_kit.tune.chain import tuned

        return tuned(
            self,
            method=method,
            data=data,
            objective=objective,
            per_leaf=per_leaf,
            noise=noise,
            temperature=temperature,
            link=link,
            num_folds=num_folds,
            bounds=bounds,
            key=key,
        )

    # --- draws and predictions ---

    def sample(self, key: PRNGKeyArray, num_samples: int) -> PyTree:
        """Return parameters drawn from the posterior, like `params` with a leading axis.

        Parameters
        ----------
        key, num_samples
            For the draws, and how many, K > 0: every leaf has the shape `(K, *leaf.shape)`.
        """
        centre = tree.ravel(self.mode).astype(self.posterior.dtype)
        draws = tree.unravel(centre + self.posterior.sample(key, num_samples), self.mode)
        return jax.vmap(self.selection.insert)(draws)

    def predict(
        self,
        x: PyTree,
        *,
        method: Method | None = None,
        link: Link | None = None,
        covariance: CovarianceForm | None = None,
        key: PRNGKeyArray | None = None,
        num_samples: int | None = None,
        joint: bool = False,
        batch_size: int | None = None,
    ) -> Predictive:
        """Return the predictive distribution at inputs; see `laplace_kit.eval.predict`.

        Parameters
        ----------
        x
            Inputs with a leading axis N.
        method, link, covariance, num_samples, key, joint
            As there; `None` for the defaults in `self.prediction`.
        batch_size
            The number of inputs held at a time; by default that of `fit`.
        """
        default = self.prediction
        return predictive.predict(
            self.objective.within(batch_size),
            self.posterior,
            x,
            method=method or default.method,
            link=link or default.named_link,
            covariance=covariance or default.covariance,
            key=key,
            num_samples=default.num_samples if num_samples is None else num_samples,
            joint=joint,
        )

    def predict_over(
        self, batches: Iterable[Any], *, key: PRNGKeyArray | None = None, progress: bool = False
    ) -> Predictive:
        """Return the predictive, as `with_prediction` sets it, at the inputs of a loader.

        Parameters
        ----------
        batches
            Inputs, or pairs `(x, y)` whose y is ignored; iterated once.
        key, progress
            A key for predictions that draw samples; whether to show a progress bar.
        """
        return predict_over(partial(self.predict, key=key), batches, progress=progress)

    def sample_functions(
        self, key: PRNGKeyArray, num_samples: int, *, method: Method = "linearized"
    ) -> functions.FunctionSamples:
        """Return functions drawn from the posterior, to be evaluated at any inputs.

        Parameters
        ----------
        key, num_samples, method
            As in `laplace_kit.eval.sample_functions`: `samples(x)` is `(K, N, *event)`,
            `samples[k]` one function, differentiable in `x`.
        """
        parts = self.objective, self.posterior
        return functions.sample_functions(*parts, key, num_samples, method=method)

    # --- quality ---

    def evaluate(self, data: Any, *, key: PRNGKeyArray | None = None) -> dict[str, float]:
        """Return the metrics of the default predictive on labelled data, by name.

        Parameters
        ----------
        data, key
            `(x, y)` or `(x, y, weights)` in memory, or an iterable of such, over which one pass is
            made; for predictions that draw samples.
        """
        from laplace_kit import quality

        return quality.evaluate(self.objective, partial(self.predict, key=key), data)

    def report(
        self,
        data: Any,
        directory: str | os.PathLike,
        *,
        compare: "Mapping[str, Compared] | None" = None,
        shifted: Mapping[str, Any] | None = None,
        ood: PyTree = None,
        groups: Any = None,
        class_names: Sequence[str] | None = None,
        feature_names: Sequence[str] | None = None,
        target_name: str | Sequence[str] | None = None,
        target_unit: str | None = None,
        title: str = "Calibration report",
        data_name: str = "",
        date: date | str | None = None,
        costs: tuple[float, float] = (1.0, 1.0),
        picture_format: Literal["png", "svg"] = "png",
        key: PRNGKeyArray | None = None,
        seed: int = 0,
    ) -> "Report":
        """Compare with the MAP predictive on labelled data; write a page of metrics and plots.

        Parameters
        ----------
        data, directory
            The test set, `(x, y)`, `(x, y, weights)` or an iterable of such; and where
            `index.html`, `report.md`, `metrics.json`, `predictions.npz` and the plots go.
        compare, shifted, ood, groups
            By name: other predictions or posteriors, labelled sets, unlabelled inputs (or one set),
            the groups of the examples (or one array).
        key
            For a predictive that draws samples. All else is as in
            `laplace_kit.eval.report.classification_report` and `regression_report`.
        """
        from laplace_kit import quality

        predictors = {"map": self.predict_at_mode, "laplace": partial(self.predict, key=key)}
        names = quality.named(class_names, feature_names, target_name, target_unit)
        look = quality.Look(title, data_name, date, picture_format, costs)
        card = cards.report_card(self._card(), self.model, self.prior, self.coverage)
        page = quality.Others(compare, shifted, ood, groups), names, card, look, seed
        return quality.report(self.objective, predictors, data, directory, *page)

    # --- training examples ---

    def influence(
        self,
        query: Any,
        train: Any,
        *,
        measure: "Measure" = "loss",
        method: Literal["posterior", "solve"] = "posterior",
        top: int | None = None,
        by: Literal["example", "layer"] = "example",
        batch_size: int | None = None,
    ) -> "Influence":
        r"""Return how measures of queries would change without each training example.

        To first order, $g_q^\top (H + d)^{-1} g_n$, at a temperature of one; see
        `laplace_kit.eval.Influence`.

        Parameters
        ----------
        query, train, measure, top, by
            As in `laplace_kit.eval.influence`; `train` are the data that `fit` was given.
        method
            `"posterior"` takes H from the posterior's structure; `"solve"` is exact, by conjugate
            gradients preconditioned with the posterior.
        batch_size
            The number of examples held at a time; by default that of `fit`.
        """
        from laplace_kit.eval import attribution

        check_option("method", method, ("posterior", "solve"))
        la, objective = self._at_one(), self.objective.within(batch_size)
        apply = partial(attribution.posterior_covariance, la.posterior)
        if method == "solve":
            parts = la.choice.curvature_spec, la.posterior, la.prior.vector(la.model)
            apply = attribution.exact_covariance(objective, *parts, train)
        return attribution.influence(
            objective, apply, query, train, measure=measure, top=top, by=by, num_data=la.num_data
        )

    def leave_one_out(self, train: Any, *, batch_size: int | None = None) -> "LeaveOneOut":
        """Return predictions of the training examples, each without itself.

        See `laplace_kit.eval.leave_one_out`; at a temperature of one.

        Parameters
        ----------
        train
            The data that `fit` was given.
        batch_size
            The number of examples held at a time; by default that of `fit`.
        """
        from laplace_kit.eval.leaving_out import leave_one_out

        link = self.prediction.named_link
        link = "probit" if link == "monte_carlo" else link
        parts = self.objective.within(batch_size), self._at_one().posterior
        return leave_one_out(*parts, train, link=link, num_data=self.num_data)

    def suspicious_labels(self, train: Any, *, batch_size: int | None = None) -> "SuspiciousLabels":
        """Return scores of the training labels by their self-influence; wrong ones come first.

        Parameters
        ----------
        train, batch_size
            As in `leave_one_out`.
        """
        from laplace_kit.eval.leaving_out import suspicious_labels

        return suspicious_labels(self.leave_one_out(train, batch_size=batch_size))

    def _at_one(self) -> "Laplace":
        return self if float(self.prior.temperature) == 1 else self.with_temperature(1.0)

    def predict_at_mode(self, x: PyTree) -> Predictive:
        """Return the MAP predictive, at the mode and without weight uncertainty."""
        return predictive.predict_at_mode(self.objective, x)

    def diagnostics(self) -> Diagnostics:
        """Return diagnostics of the posterior; costs its spectrum and variances."""
        return diagnose(
            self.structure,
            self.posterior,
            gradient=self.gradient,
            precision=self.prior.vector(self.model),
            deviation=self.deviation,
            jitter=self.jitter,
            temperature=self.temperature,
        )

    def card(self) -> dict[str, str]:
        """Return the card: facts and warnings in words, by name, as in the report and `print`."""
        return self._card().as_dict()

    __repr__, _repr_html_ = cards.line, cards.html

    def __str__(self) -> str:
        """Return the card as lines of text, warnings last."""
        return self._card().as_text()

    def _card(self) -> cards.Card:
        parts = self.model, self.likelihood, self.expansion, self.prior, self.record
        return cards.make_card(*parts, self.diagnostics(), self.log_marginal_likelihood())

    def save(self, path: str | os.PathLike, *, sharded: bool = False) -> None:
        """Write everything except functions and data to a file; read it with `load`.

        Parameters
        ----------
        path
            Replaced if it exists. Parameters that are more than dictionaries, lists and tuples,
            such as equinox modules, are stored by path: `load` needs similar `params`.
        sharded
            Write a directory, by orbax, to which each process adds its parts of the arrays.
        """
        (directories if sharded else storage).write(path, stored.fields(**vars(self)))

    def expand(self, prior_precision: PyTree) -> Float[Array, " P"]:
        """Return one prior precision per free parameter, from any form that `fit` takes."""
        return expand_precision(prior_precision, self.mode, self.selection, self.prior.mean.dtype)

    def refactorised(self) -> "Laplace":
        """Return the same with its posterior recomputed from structure, prior and temperature."""
        posterior, jitter = self.prior.posterior(self.structure, self.model)
        record = tree.replace(self.record, jitter=jitter)
        return tree.replace(self, posterior=posterior, record=record)
