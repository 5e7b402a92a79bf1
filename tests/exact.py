"""Exact Bayesian answers for tests: linear regression in closed form, and dense Gaussians.

Written in NumPy and SciPy from the textbook: nothing of the library is compared with itself.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import twins
from scipy.stats import multivariate_normal

import laplace_kit as lk

# Of these three, the curvature may be indefinite.
ANY_CURVATURE = ("full", "diagonal", "low_rank")
KINDS = (*ANY_CURVATURE, "kron", "ekfac")
RANK = 6  # of "low_rank": fewer than the 14 directions that the data of `twins.mlp` determine


@contextlib.contextmanager
def as_users_call() -> Iterator[None]:
    """Call without type checks, which refuse a wrong option before the library can speak."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


# --- posteriors of a small network ----------------------------------------------------------------


@functools.cache
def fitted(kind: str, dtype: str, prior_precision: float = 1.0) -> lk.Laplace:
    """Return the posterior of `twins.problem("mlp")`; use it inside `twins.precision(dtype)`."""
    problem = twins.problem("mlp", dtype)
    data = (problem.x, problem.y)
    rank = RANK if kind == "low_rank" else None
    return lk.fit(
        problem.model_fn,
        problem.params,
        data,
        likelihood="categorical",
        structure=kind,
        prior_precision=prior_precision,
        rank=rank,
    )


@functools.cache
def curvature(kind: str) -> np.ndarray:
    """Return the dense matrix that a structure claims to be."""
    ggn = twins.dense(twins.ggn, "mlp")
    if kind == "full":
        return ggn
    if kind == "diagonal":
        return np.diag(np.diag(ggn))
    if kind in ("kron", "ekfac"):
        return kronecker(kind)
    values, vectors = np.linalg.eigh(ggn)
    leading = vectors[:, -RANK:]
    return (leading * values[-RANK:]) @ leading.T


def kronecker(kind: str) -> np.ndarray:
    """Return the K-FAC or EKFAC matrix of `twins.mlp`, from its dense Jacobian.

    Each layer's bias has the gradients in the layer's outputs for its Jacobian.
    """
    with twins.precision("float64"):
        problem = twins.problem("mlp", "float64")
        x = np.asarray(problem.x)
        probs = np.asarray(jax.nn.softmax(twins.mlp(problem.params, problem.x)))
        hidden = problem.params["hidden"][0]
        inputs = (x, np.tanh(x @ hidden["kernel"] + hidden["bias"]))
    jac, ggn = twins.dense(twins.jacobian, "mlp"), twins.dense(twins.ggn, "mlp")
    roots = [np.diag(np.sqrt(p)) - np.outer(p, np.sqrt(p)) for p in probs]
    matrix = np.zeros_like(ggn)
    # Flat order: bias and kernel of the hidden layer, bias and kernel of the last one.
    for a, bias, kernel in zip(inputs, (0, 16), (4, 19), strict=True):
        out = kernel - bias
        a = np.append(a, np.ones((len(a), 1)), axis=1)
        g = np.einsum("ncr,nco->nro", roots, jac[..., bias:kernel])
        left, right = a.T @ a / len(a), np.einsum("nro,nrp->op", g, g)
        places = np.r_[kernel : kernel + (a.shape[1] - 1) * out, bias:kernel]
        block = np.kron(left, right)
        if kind == "ekfac":
            basis = np.kron(np.linalg.eigh(left)[1], np.linalg.eigh(right)[1])
            moments = np.diag(basis.T @ ggn[np.ix_(places, places)] @ basis)
            block = (basis * moments) @ basis.T
        matrix[np.ix_(places, places)] = block
    return matrix


def covariance(kind: str, precision: np.ndarray) -> np.ndarray:
    return np.linalg.inv(curvature(kind) + np.diag(precision))


def log_det(matrix: np.ndarray) -> float:
    sign, value = np.linalg.slogdet(matrix)
    assert sign == 1
    return value


def evidence(log_likelihood, matrix, precision, deviation) -> float:
    """Return the Laplace evidence from its definition; `precision` `(P,)`."""
    prior = 0.5 * (np.log(precision).sum() - np.sum(precision * deviation**2))
    return log_likelihood + prior - 0.5 * log_det(matrix + np.diag(precision))


# --- Bayesian linear regression -------------------------------------------------------------------


def linear(params, x):
    """Several outputs, linear in the parameters, with a feature that is not."""
    return jnp.tanh(x) @ params["weight"] + params["bias"]


@dataclasses.dataclass(frozen=True)
class Regression:
    """Data of a linear regression and the exact answers to it.

    The flat parameters are the bias `(C,)` and then the weight `(F, C)`.
    """

    x: np.ndarray
    y: np.ndarray
    noise_std: float

    @property
    def num_params(self) -> int:
        return (self.x.shape[1] + 1) * self.y.shape[1]

    def design(self, x: np.ndarray) -> np.ndarray:
        """Return the matrix of the linear map from parameters to outputs, `(N C, P)`."""
        eye = np.eye(self.y.shape[1])
        return np.concatenate([np.hstack([eye, np.kron(row, eye)]) for row in np.tanh(x)[:, None]])

    def curvature(self) -> np.ndarray:
        design = self.design(self.x)
        return design.T @ design / self.noise_std**2

    def posterior(self, precision, mean) -> tuple[np.ndarray, np.ndarray]:
        """Return the exact mean `(P,)` and covariance under N(mean, diag(precision)^-1)."""
        cov = np.linalg.inv(self.curvature() + np.diag(precision))
        pull = self.design(self.x).T @ self.y.ravel() / self.noise_std**2 + precision * mean
        return cov @ pull, cov

    def log_evidence(self, precision, mean) -> float:
        """Return log N(y; X m, s^2 I + X D^-1 X^T), with nothing integrated approximately."""
        design = self.design(self.x)
        cov = self.noise_std**2 * np.eye(len(design)) + (design / precision) @ design.T
        return multivariate_normal.logpdf(self.y.ravel(), design @ mean, cov)

    def unravel(self, theta: np.ndarray) -> dict:
        outputs = self.y.shape[1]
        weight = twins.array(theta[outputs:].reshape(-1, outputs))
        return {"bias": twins.array(theta[:outputs]), "weight": weight}

    def fit(self, precision, mean, **options) -> lk.Laplace:
        """Return the Laplace approximation at the exact mode: it is the exact posterior."""
        mode, _ = self.posterior(precision, mean)
        return lk.fit(
            linear,
            self.unravel(mode),
            (twins.array(self.x), twins.array(self.y)),
            likelihood=lk.Gaussian(self.noise_std),
            prior_precision=twins.array(precision),
            prior_mean=twins.array(mean),
            **options,
        )


def regression(num: int = 11, outputs: int = 2) -> Regression:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(num, 3))
    y = np.tanh(x) @ rng.normal(size=(3, outputs)) + 0.3 * rng.normal(size=(num, outputs))
    return Regression(x, y, noise_std=0.3)


def priors(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Return prior precisions and means, one for each of `num` parameters."""
    rng = np.random.default_rng(6)
    return np.exp(rng.normal(size=num)), rng.normal(size=num)
