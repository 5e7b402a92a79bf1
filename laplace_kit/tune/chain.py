"""The usual sequence of tuning: noise, prior precision, then temperature."""

from typing import Any

from jaxtyping import PRNGKeyArray

from laplace_kit.approx.noise import GAUSSIANS, gaussian_of
from laplace_kit.curv.mode import labelled
from laplace_kit.errors import check_option, warn
from laplace_kit.eval.link import Link
from laplace_kit.likelihood import Gaussian, Likelihood
from laplace_kit.likelihood.masked import without_mask
from laplace_kit.tune.criteria import LOSSES, Loss
from laplace_kit.tune.folds import cross_validated
from laplace_kit.tune.marginal import evidence
from laplace_kit.tune.noise import with_noise_of_residuals
from laplace_kit.tune.posterior import PosteriorT
from laplace_kit.tune.tempering import check_examples
from laplace_kit.tune.tempering import temperature as tempered
from laplace_kit.tune.validation import held_out

METHODS = ("evidence", "validation", "cross_validation")
NOISES = ("keep", "residuals", "evidence")


def tuned(
    la: PosteriorT,
    *,
    method: str | None = None,
    data: Any = None,
    objective: str | Loss = "nll",
    per_leaf: bool = False,
    noise: str | None = None,
    temperature: bool | None = None,
    link: Link | None = None,
    num_folds: int = 5,
    bounds: tuple[float, float] = (1e-4, 1e6),
    key: PRNGKeyArray | None = None,
) -> PosteriorT:
    """Return the tuned posterior; see `Laplace.tune` for the arguments."""
    la = la.with_prediction(link=link)
    method = method or ("evidence" if data is None else "validation")
    _check(la, method, data, per_leaf, noise, temperature)
    if not callable(objective):
        check_option("objective", objective, LOSSES)
    noise = noise or ("residuals" if has_unknown_noise(la.likelihood) else "keep")
    if noise == "residuals":
        la = with_noise_of_residuals(la)  # its posterior is computed with the new prior below
    if method == "evidence":
        la = evidence(la, per_leaf=per_leaf, noise=noise == "evidence", bounds=bounds)
        return tempered(la) if _wants_temperature(la, temperature) else la
    if method == "cross_validation":
        return cross_validated(
            *(la, data),
            loss=objective,
            num_folds=num_folds,
            temperature=bool(temperature),
            bounds=bounds,
            key=key,
        )
    data = labelled(la.objective, data)  # read once: the data may allow only one pass
    la = held_out(la, data, loss=objective, bounds=bounds, key=key)
    return tempered(la, data, loss=objective, key=key) if temperature else la


def has_unknown_noise(likelihood: Likelihood) -> bool:
    """Return whether this is a Gaussian likelihood, masked or not, with noise to be estimated."""
    kind = without_mask(likelihood)
    return isinstance(kind, Gaussian) and not kind.known


def _wants_temperature(la: PosteriorT, asked: bool | None) -> bool:
    """Return whether to tune the temperature; by default if the expansion is not exact."""
    kind = without_mask(la.likelihood)
    wanted = not isinstance(kind, GAUSSIANS) if asked is None else asked
    if wanted and la.record.examples is None:
        warn(
            "Found no training examples in this posterior, which was loaded from a file: its "
            "temperature stays one. Tune before saving, or pass temperature=False."
        )
        return False
    return wanted


def _check(
    la: PosteriorT,
    method: str,
    data: Any,
    per_leaf: bool,
    noise: str | None,
    temperature: bool | None,
) -> None:
    """Raise a `ValueError` for incompatible options, before any work is done."""
    check_option("method", method, METHODS)
    check_option("noise", noise or "keep", NOISES)
    if (method == "evidence") != (data is None) or (per_leaf and method != "evidence"):
        raise ValueError(
            f"Found method={method!r} with data={'None' if data is None else 'given'} and "
            f"per_leaf={per_leaf}, expected method='validation' with held-out data and one "
            "precision for all, method='cross_validation' with the training data, or "
            "method='evidence' without data."
        )
    if noise in ("residuals", "evidence"):
        gaussian_of(la.likelihood)
    if noise == "evidence" and method != "evidence":
        raise ValueError(
            f"Found noise='evidence' with method={method!r}, expected method='evidence', which "
            "maximises over both; or pass noise='residuals'."
        )
    if method == "evidence" and temperature:
        check_examples(la)
