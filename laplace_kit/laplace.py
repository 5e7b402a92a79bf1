"""The posterior as an object: predict, tune, sample, evaluate, report and save, all delegated."""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from laplace_kit import card, storage, stored, tree, tuning
from laplace_kit.approx.choice import Choice
from laplace_kit.approx.diagnostics import Diagnostics, diagnose
from laplace_kit.approx.posterior import Posterior, Structure, factorise
from laplace_kit.approx.prior import deviation, expand_precision, structure_for
from laplace_kit.continual import update
from laplace_kit.curv.capture.coverage import Coverage
from laplace_kit.curv.objective import Objective, of_free_params
from laplace_kit.curv.plan import Plan
from laplace_kit.eval import functions, predictive
from laplace_kit.eval.batches import predict_over
from laplace_kit.eval.link import Link
from laplace_kit.eval.predictive import CovarianceForm, Method, Prediction, Predictive
from laplace_kit.eval.tune import Tuning
from laplace_kit.likelihood import Likelihood
from laplace_kit.selection import Selection
from laplace_kit.tree import pytree_dataclass

if TYPE_CHECKING:
    from laplace_kit.eval.report import Report
    from laplace_kit.eval.report.compare import Compared


@pytree_dataclass(static=("coverage", "prediction", "num_data", "knows_noise", "plan"))
class Laplace:
    r"""A Gaussian over a model's parameters, $\mathcal N(\theta^*, T (H + d)^{-1})$; made by `fit`.

    A frozen pytree: `with_prior`, `tune` and `update` return new objects. `mode` holds the free
    parameters, `structure` the curvature $H$ free of the prior, `posterior` the zero-mean Gaussian
    about the mode, `temperature` T (one, unless it was tuned); `log_likelihood` and `gradient` are
    sums over the training data at the mode, some of which are kept as `examples`. `coverage` lists
    how layer capture treats each parameter, `choice` what `fit` chose and why, `prediction` how
    `predict` does it, and `tuning` the way to the prior precision. `plan` is what is known of the
    model, `None` in a posterior from a file.
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
    temperature: Float[Array, ""]
    examples: tuple[PyTree, PyTree] | None
    tuning: Tuning | None
    coverage: Coverage
    choice: Choice
    prediction: Prediction
    num_data: int
    knows_noise: bool
    plan: Plan | None

    @property
    def params(self) -> PyTree:
        """The parameters at the mode, free and frozen, as they were given to `fit`."""
        return self.selection.insert(self.mode)

    @property
    def objective(self) -> Objective:
        """The model as a function of its free parameters, and the likelihood."""
        model_fn = of_free_params(self.model_fn, self.selection)
        return Objective(model_fn, self.mode, self.likelihood, self.plan, self.choice.limits)

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
        changed = jax.tree.map(jnp.asarray, prior_precision)
        return tree.replace(self, prior_precision=changed, tuning=None).refactorised()

    def with_temperature(self, temperature: float | Float[Array, ""]) -> "Laplace":
        r"""Return the posterior $\mathcal N(\theta^*, T (H + d)^{-1})$; the evidence knows no T.

        Parameters
        ----------
        temperature
            T > 0; below one, a cold posterior.
        """
        if tree.is_concrete(temperature) and not 0 < float(temperature) < float("inf"):
            raise ValueError(
                f"Found temperature={float(temperature)}, expected a positive, finite number."
            )
        changed = jnp.asarray(temperature, self.posterior.dtype)
        return tree.replace(self, temperature=changed).refactorised()

    def with_noise(self, noise_std: ArrayLike) -> "Laplace":
        """Return the posterior for another noise of a Gaussian likelihood, without a pass.

        Parameters
        ----------
        noise_std
            The standard deviation: as many values as the likelihood has, all in one proportion to
            those it has, as every sum over the data scales with that.

        Raises
        ------
        TypeError, ValueError
            If the likelihood is not Gaussian, or the noise is not positive and in proportion.
        """
        return tuning.with_noise(self, noise_std)

    def with_prediction(
        self,
        *,
        method: Method = "linearized",
        link: Link | None = None,
        covariance: CovarianceForm = "auto",
        num_samples: int | None = None,
    ) -> "Laplace":
        """Return the posterior with other defaults of `predict`, which `tune` judges by too.

        Parameters
        ----------
        method, link, covariance, num_samples
            As in `laplace_kit.eval.predictive.predict`; a link of `None` is left to `tune`.
        """
        return tree.replace(self, prediction=Prediction(method, link, covariance, num_samples))

    def update(self, data: Any, *, key: PRNGKeyArray | None = None) -> "Laplace":
        """Return the posterior of the old data and new ones; see `laplace_kit.continual.update`.

        Parameters
        ----------
        data
            The new data: `(x, y)` in memory, or a re-iterable of such pairs.
        key
            For the curvature `"mc_fisher"`.
        """
        return update(self, data, key=key)

    def log_marginal_likelihood(
        self, prior_precision: PyTree = None, *, noise_std: ArrayLike | None = None
    ) -> Float[Array, ""]:
        """Return the evidence at the mode in nats, differentiable in prior precision and noise.

        Parameters
        ----------
        prior_precision
            As in `with_prior`; `None` for the posterior's own.
        noise_std
            As in `with_noise`; `None` for the likelihood's own.

        Returns
        -------
        evidence
            See `laplace_kit.approx.evidence.log_evidence`.

        Raises
        ------
        TypeError, ValueError
            If either has another form or is not positive, or there is no noise.
        """
        return tuning.log_marginal_likelihood(self, prior_precision, noise_std)

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
        """Return the posterior with a prior precision that the evidence, or labelled data, choose.

        Parameters
        ----------
        method
            `"evidence"` maximises the marginal likelihood of the training data; `"validation"`
            minimises the loss of held-out data under the very predictive that `predict` will make,
            `"cross_validation"` that of folds of the training data, each predicted without itself
            by the linearised model. `None`: validation if data are given, else the evidence.
        data
            Of `"validation"`: `(x, y)` that were neither trained on nor are used for testing, or a
            re-iterable of such pairs. Of `"cross_validation"`: the training data.
        objective
            Of both: `"nll"`, `"ece"`, `"brier"`, `"crps"`, or a function of a `Predictive` and
            targets that returns a number, smaller being better.
        per_leaf
            Of the evidence: one precision for every leaf instead of one for all parameters.
        noise
            Of a Gaussian likelihood: `"residuals"` takes the noise of greatest likelihood at the
            mode, before the prior is tuned; `"evidence"` maximises over both together, which is
            known to mislead where the mode is that of another noise; `"keep"` neither. `None`:
            residuals where `fit` was given `"gaussian"` by name and so knows no noise, else keep.
        temperature
            Whether to tune the posterior's temperature too: by the variational bound of the
            evidence, or by the loss of the held-out data or of the folds. `None`: with the
            evidence, except for Gaussian likelihoods, whose evidence is exact.
        link
            The link that `predict` takes from here on; `None` leaves it as it is or, where none has
            been named, takes that of `"probit"` and the mean-field ones under which held-out data
            of several classes are predicted best.
        num_folds
            Of `"cross_validation"`.
        bounds
            The smallest and the largest precision to consider.
        key
            For predictives that draw samples.

        Raises
        ------
        TypeError, ValueError
            If an option is unknown or does not go with the method, or the objective has no optimum
            within the bounds, as the evidence where the curvature is indefinite.

        Warns
        -----
        UserWarning
            If the best precision lies at a bound, or the evidence is flat.
        """
        request = tuning.Request(
            method, objective, per_leaf, noise, temperature, link, num_folds, bounds, key
        )
        return tuning.tune(self, request, data)

    # --- draws and predictions ---

    def sample(self, key: PRNGKeyArray, num_samples: int) -> PyTree:
        """Return parameters drawn from the posterior, like `params` with a leading axis.

        Parameters
        ----------
        key
            For the draws.
        num_samples
            How many, K: every leaf has the shape `(K, *leaf.shape)`.

        Raises
        ------
        ValueError
            If `num_samples` is not positive.
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
        """Return the predictive distribution at inputs; see `laplace_kit.eval.predictive.predict`.

        Parameters
        ----------
        x
            Inputs with a leading axis N.
        method, link, covariance, num_samples, key, joint
            As there; `None` for what `self.prediction` says.
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
            Of inputs, or of pairs `(x, y)` of which x is taken; iterated once.
        key
            Where `self.prediction` draws samples.
        progress
            Show a bar.
        """
        return predict_over(partial(self.predict, key=key), batches, progress=progress)

    def sample_functions(
        self, key: PRNGKeyArray, num_samples: int, *, method: Method = "linearized"
    ) -> functions.FunctionSamples:
        """Return functions drawn from the posterior, to be evaluated anywhere, again and again.

        Parameters
        ----------
        key, num_samples, method
            As in `laplace_kit.eval.functions.sample_functions`: `samples(x)` is `(K, N, *event)`,
            `samples[k]` one function, differentiable in `x`.
        """
        return functions.sample_functions(
            self.objective, self.posterior, key, num_samples, method=method
        )

    # --- quality ---

    def evaluate(self, data: Any, *, key: PRNGKeyArray | None = None) -> dict[str, float]:
        """Return the metrics of the default predictive on labelled data.

        Parameters
        ----------
        data
            `(x, y)` in memory, or an iterable of such pairs: one pass is made.
        key
            Where `self.prediction` draws samples.

        Returns
        -------
        metrics
            By name; see `laplace_kit.eval.evaluate.evaluate`.
        """
        from laplace_kit import quality

        return quality.evaluate(self, data, key)

    def report(
        self,
        data: Any,
        directory: str | os.PathLike,
        *,
        compare: "Mapping[str, Compared] | None" = None,
        shifted: Mapping[str, Any] | None = None,
        ood: PyTree = None,
        title: str = "Calibration report",
        key: PRNGKeyArray | None = None,
    ) -> "Report":
        """Compare with the mode alone on labelled data and write a page of metrics and pictures.

        Parameters
        ----------
        data
            The test set: `(x, y)`, or an iterable of such pairs.
        directory
            Where `index.html`, `metrics.json`, `predictions.npz` and the plots go.
        compare
            Other predictions on the test set, or other posteriors, by name.
        shifted, ood
            Of classification: labelled sets by name, and unlabelled inputs, one set or by name.
        title
            The heading of the page.
        key
            Where `self.prediction` draws samples.

        Returns
        -------
        report
            The numbers and the files; see `laplace_kit.eval.report.compare.compare_report`.
        """
        from laplace_kit import quality

        return quality.report(self, data, directory, compare, shifted, ood, title, key)

    def predict_at_mode(self, x: PyTree) -> Predictive:
        """Return the predictive of the mode alone, without weight uncertainty: the MAP's."""
        return predictive.predict_at_mode(
            self.objective,
            x,
        )

    def diagnostics(self) -> Diagnostics:
        """Return how far this posterior can be trusted; costs the spectrum and the variances."""
        return diagnose(
            self.structure,
            self.posterior,
            gradient=self.gradient,
            precision=self.expand(self.prior_precision),
            deviation=self.deviation,
            jitter=self.jitter,
            temperature=self.temperature,
        )

    def card(self) -> dict[str, str]:
        """Return the posterior's facts in words, by name: what the report and `print` show."""
        return card.facts(self)

    def __str__(self) -> str:
        """Return the card as lines of text, warnings last."""
        return card.as_text(self)

    def save(self, path: str | os.PathLike) -> None:
        """Write everything but functions and data to one file of arrays and JSON; `load` reads it.

        Parameters
        ----------
        path
            The file; replaced if it exists. Parameters that are more than dictionaries, lists and
            tuples, such as equinox modules, are stored by their paths: `load` wants others like
            them.
        """
        storage.write(path, stored.fields(self))

    # --- shared parts ---

    @property
    def deviation(self) -> Float[Array, " P"]:
        r"""The mode less the prior mean, $\theta^* - \theta_0$, flat."""
        return deviation(self.mode, self.prior_mean)

    def expand(self, prior_precision: PyTree) -> Float[Array, " P"]:
        """Return one prior precision for each free parameter, from any form that `fit` takes."""
        return expand_precision(prior_precision, self.mode, self.selection, self.posterior.dtype)

    def refactorised(self) -> "Laplace":
        """Return the same with the posterior that its structure, prior and temperature make."""
        precision = self.expand(self.prior_precision)
        structure = structure_for(self.structure, self.prior_precision, precision)
        posterior, jitter = factorise(structure, precision, self.temperature)
        return tree.replace(self, posterior=posterior, jitter=jitter)
