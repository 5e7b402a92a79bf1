r"""Likelihoods: what the model's outputs mean, and their curvature in the outputs.

Each likelihood is a frozen pytree whose methods speak of *one* example: outputs `f` of shape
`(*event,)` and a target `y`; callers `jax.vmap` over examples. With $\ell = -\log p(y \mid f)$,
a likelihood gives the Hessian $L = \nabla_f^2 \ell$ as a product and as an exact square root,
$L = S S^\top$, both in closed form. For an exponential family in its natural parameters $L$ does
not depend on $y$ and the generalised Gauss-Newton matrix is the Fisher matrix.
"""

import abc
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Num, PRNGKeyArray, PyTree

from laplace_kit.errors import check_option
from laplace_kit.tree import pytree_dataclass


class Likelihood(abc.ABC):
    r"""What every likelihood can do, for one example.

    `hessian_sqrt_mv` maps a vector `w` shaped like the outputs to $S w$; its columns are the images
    of the unit vectors.
    """

    @abc.abstractmethod
    def negative_log_prob(
        self, f: Float[Array, "*event"], y: Num[Array, "..."]
    ) -> Float[Array, ""]:
        r"""Return $-\log p(y \mid f)$ with its normaliser."""

    @abc.abstractmethod
    def hessian_mv(self, f, y, u: Float[Array, "*event"]) -> Float[Array, "*event"]:
        r"""Return $L u$ with $L = -\nabla_f^2 \log p(y \mid f)$."""

    @abc.abstractmethod
    def hessian_sqrt_mv(self, f, y, w: Float[Array, "*event"]) -> Float[Array, "*event"]:
        r"""Return $S w$ with $S S^\top = L$."""

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray, f: Float[Array, "*event"]) -> Num[Array, "..."]:
        r"""Draw $y \sim p(y \mid f)$."""

    @abc.abstractmethod
    def check_shapes(self, outputs: tuple[int, ...], targets: jax.ShapeDtypeStruct) -> None:
        """Raise where outputs `(N, *event)` and targets do not go together."""

    @abc.abstractmethod
    def is_valid(self, f: Float[Array, "*event"], y: Num[Array, "..."]) -> Bool[Array, ""]:
        """Tell whether the target's value is one that this likelihood can give."""

    @property
    @abc.abstractmethod
    def support(self) -> str:
        """The targets that are valid, in words, for messages."""

    def output_gradient(self, f, y) -> Float[Array, "*event"]:
        r"""Return $g = -\nabla_f \log p(y \mid f)$."""
        return jax.grad(self.negative_log_prob)(f, y)


@pytree_dataclass()
class Gaussian(Likelihood):
    r"""Regression: $-\log p = |y - f|^2 / (2 s^2) + (C/2) \log(2 \pi s^2)$.

    Parameters
    ----------
    noise_std
        The standard deviation $s > 0$ of the observation noise, in the units of `y`; a leaf, so it
        can be differentiated.

    Raises
    ------
    ValueError
        If `noise_std` is not positive and finite.
    """

    noise_std: Num[ArrayLike, ""] = 1.0

    def __post_init__(self):
        std = self.noise_std
        if not isinstance(std, jax.core.Tracer) and not (jnp.ndim(std) == 0 and 0 < std < math.inf):
            raise ValueError(
                f"Found noise_std={std}, expected one positive, finite number: the standard "
                "deviation of the observation noise in the units of the targets."
            )

    def negative_log_prob(self, f, y):
        variance = jnp.asarray(self.noise_std, f.dtype) ** 2
        return 0.5 * (jnp.sum((y - f) ** 2) / variance + f.size * jnp.log(2 * jnp.pi * variance))

    def hessian_mv(self, f, y, u):
        return u / jnp.asarray(self.noise_std, f.dtype) ** 2

    def hessian_sqrt_mv(self, f, y, w):
        return w / jnp.asarray(self.noise_std, f.dtype)

    def sample(self, key, f):
        return f + jnp.asarray(self.noise_std, f.dtype) * jax.random.normal(key, f.shape, f.dtype)

    def check_shapes(self, outputs, targets):
        _check_same_shape("Gaussian", outputs, targets)

    def is_valid(self, f, y):
        return jnp.isfinite(y).all()

    @property
    def support(self):
        return "finite numbers"


@pytree_dataclass()
class HeteroscedasticGaussian(Likelihood):
    r"""Regression with noise that depends on the input: outputs hold means and log-precisions.

    For outputs $f = (m, s)$ `(..., 2 C)`, the C means first, and targets `(..., C)`,

    $$-\log p(y \mid f) = \tfrac12 \sum e^{s} (y - m)^2 - s + \log 2 \pi.$$

    Its Hessian is indefinite, so that $L$ is the expected one, over $y \sim p(y \mid f)$:
    $\mathrm{diag}(e^{s}, \tfrac12)$. The GGN is then the Fisher matrix, as for the others.

    References
    ----------
    Immer et al. (2023), Effective Bayesian heteroscedastic regression with deep neural networks.
    """

    def negative_log_prob(self, f, y):
        mean, log_precision = _halves(f)
        squares = jnp.exp(log_precision) * (y - mean) ** 2
        return 0.5 * jnp.sum(squares - log_precision + math.log(2 * math.pi))

    def hessian_mv(self, f, y, u):
        return self._expected(f) * u

    def hessian_sqrt_mv(self, f, y, w):
        return jnp.sqrt(self._expected(f)) * w

    def sample(self, key, f):
        mean, log_precision = _halves(f)
        return mean + jnp.exp(-log_precision / 2) * jax.random.normal(key, mean.shape, f.dtype)

    def check_shapes(self, outputs, targets):
        expected = (*outputs[:-1], outputs[-1] // 2)
        if len(outputs) < 2 or outputs[-1] % 2 or targets.shape != expected:
            raise ValueError(
                f"HeteroscedasticGaussian: found outputs of shape {outputs} and targets of shape "
                f"{targets.shape}, expected outputs (N, 2 C), the C means before the C "
                "log-precisions, and targets (N, C); return both from the model and reshape the "
                "targets."
            )

    def is_valid(self, f, y):
        return jnp.isfinite(y).all()

    @property
    def support(self):
        return "finite numbers"

    def _expected(self, f):
        _, log_precision = _halves(f)
        return jnp.concatenate([jnp.exp(log_precision), jnp.full_like(log_precision, 0.5)], axis=-1)


def _halves(f: Float[Array, "*event"]) -> tuple[Array, Array]:
    mean, log_precision = jnp.split(f, 2, axis=-1)
    return mean, log_precision


@pytree_dataclass()
class Categorical(Likelihood):
    r"""Classification with logits `f` `(..., C)`, $p = \mathrm{softmax}(f)$.

    The Hessian's root is $S = \mathrm{diag}(\sqrt p) - p \sqrt p^\top$.
    Targets are integer labels `(...)`, or one-hot or soft labels `(..., C)` that sum to one.
    """

    def negative_log_prob(self, f, y):
        log_p = jax.nn.log_softmax(f)
        if jnp.shape(y) == f.shape:
            return -jnp.sum(y * log_p)
        return -jnp.take_along_axis(log_p, y[..., None], axis=-1).sum()

    def hessian_mv(self, f, y, u):
        p = jax.nn.softmax(f)
        return p * u - p * jnp.sum(p * u, axis=-1, keepdims=True)

    def hessian_sqrt_mv(self, f, y, w):
        root = jnp.exp(0.5 * jax.nn.log_softmax(f))
        return root * w - root**2 * jnp.sum(root * w, axis=-1, keepdims=True)

    def sample(self, key, f):
        return jax.random.categorical(key, f)

    def check_shapes(self, outputs, targets):
        if len(outputs) < 2 or outputs[-1] < 2:
            raise ValueError(
                f"Categorical: found outputs of shape {outputs}, expected (N, C) with a class axis "
                "of at least two at the end; for one logit per label use lk.Bernoulli()."
            )
        if targets.shape == outputs:
            return
        if targets.shape != outputs[:-1]:
            raise ValueError(
                f"Categorical: found targets of shape {targets.shape} for outputs {outputs}, "
                f"expected integer labels {outputs[:-1]} or one-hot or soft labels {outputs}; "
                "squeeze or reshape the targets."
            )
        if not jnp.issubdtype(targets.dtype, jnp.integer):
            raise ValueError(
                f"Categorical: found labels of dtype {targets.dtype}, expected integers from 0 to "
                f"{outputs[-1] - 1}; convert them with y.astype(int)."
            )

    def is_valid(self, f, y):
        if jnp.shape(y) == f.shape:
            return jnp.logical_and((y >= 0).all(), (jnp.abs(y.sum(-1) - 1) < 1e-3).all())
        return jnp.logical_and((y >= 0).all(), (y < f.shape[-1]).all())

    @property
    def support(self):
        return "integer labels from 0 to C - 1, or rows of C probabilities that sum to one"


@pytree_dataclass()
class Bernoulli(Likelihood):
    r"""Binary labels in [0, 1], one logit each: $p = \sigma(f)$, $L = \mathrm{diag}(p (1 - p))$."""

    def negative_log_prob(self, f, y):
        return jnp.sum(jax.nn.softplus(f) - y * f)

    def hessian_mv(self, f, y, u):
        return jax.nn.sigmoid(f) * jax.nn.sigmoid(-f) * u

    def hessian_sqrt_mv(self, f, y, w):
        return jnp.exp(-0.5 * (jax.nn.softplus(f) + jax.nn.softplus(-f))) * w

    def sample(self, key, f):
        return jax.random.bernoulli(key, jax.nn.sigmoid(f)).astype(f.dtype)

    def check_shapes(self, outputs, targets):
        _check_same_shape("Bernoulli", outputs, targets)

    def is_valid(self, f, y):
        return jnp.logical_and(y >= 0, y <= 1).all()

    @property
    def support(self):
        return "0 or 1, or probabilities in between"


@pytree_dataclass()
class Poisson(Likelihood):
    r"""Counts with log-rate `f`: $-\log p = e^f - y f + \log y!$, $L = \mathrm{diag}(e^f)$."""

    def negative_log_prob(self, f, y):
        return jnp.sum(jnp.exp(f) - y * f + jax.lax.lgamma(jnp.asarray(y, f.dtype) + 1))

    def hessian_mv(self, f, y, u):
        return jnp.exp(f) * u

    def hessian_sqrt_mv(self, f, y, w):
        return jnp.exp(0.5 * f) * w

    def sample(self, key, f):
        return jax.random.poisson(key, jnp.exp(f)).astype(f.dtype)

    def check_shapes(self, outputs, targets):
        _check_same_shape("Poisson", outputs, targets)

    def is_valid(self, f, y):
        return jnp.logical_and(y >= 0, y == jnp.floor(y)).all()

    @property
    def support(self):
        return "counts 0, 1, 2, ..."


@pytree_dataclass(static=("loss", "sampler"))
class FromLoss(Likelihood):
    r"""A likelihood from any twice-differentiable loss: $-\log p(y \mid f) = \mathrm{loss}(f, y)$.

    Parameters
    ----------
    loss
        `(f, y) -> scalar` for one example (vmapped over examples), taken to hold its normaliser.
        It must be convex in `f` where a square root of its Hessian is asked for (diagonals, full
        and sampled curvature): the root of an indefinite Hessian is NaN, never a clipped one.
    sampler
        `(key, f) -> y` for one example; only the Monte-Carlo Fisher needs it.
    """

    loss: Callable
    sampler: Callable | None = None

    def negative_log_prob(self, f, y):
        return jnp.asarray(self.loss(f, y))

    def hessian_mv(self, f, y, u):
        return jax.jvp(lambda z: self.output_gradient(z, y), (f,), (u,))[1]

    def hessian_sqrt_mv(self, f, y, w):
        flat, shape = jnp.ravel(f), f.shape
        hessian = jax.hessian(lambda z: self.negative_log_prob(z.reshape(shape), y))(flat)
        values, vectors = jnp.linalg.eigh(hessian)
        # Curvature of a confident prediction is a small difference of numbers near one.
        rounding = flat.size * jnp.finfo(f.dtype).eps * jnp.maximum(jnp.abs(values).max(), 1)
        roots = jnp.sqrt(jnp.where(values < -rounding, values, jnp.maximum(values, 0)))
        with jax.default_matmul_precision("highest"):
            return (vectors @ (roots * (vectors.T @ jnp.ravel(w)))).reshape(shape)

    def sample(self, key, f):
        if self.sampler is None:
            raise TypeError(
                "FromLoss: found no sampler, expected one for sampled labels; pass "
                "FromLoss(loss, sampler=lambda key, f: ...) or use curvature='ggn'."
            )
        return self.sampler(key, f)

    def check_shapes(self, outputs, targets):
        if not targets.shape or targets.shape[0] != outputs[0]:
            raise ValueError(
                f"FromLoss: found targets of shape {targets.shape} for outputs {outputs}, expected "
                f"{outputs[0]} targets on the leading axis."
            )

    def is_valid(self, f, y):
        return jnp.isfinite(self.negative_log_prob(f, y))

    @property
    def support(self):
        return "targets for which the loss is finite"


def _check_same_shape(name: str, outputs: tuple[int, ...], targets: jax.ShapeDtypeStruct) -> None:
    if targets.shape != outputs:
        raise ValueError(
            f"{name}: found targets of shape {targets.shape} for outputs {outputs}, expected the "
            f"same shape; reshape the targets, for example y.reshape({outputs}), so that nothing "
            "is broadcast by accident."
        )


_BY_NAME = {
    "gaussian": Gaussian,
    "heteroscedastic_gaussian": HeteroscedasticGaussian,
    "categorical": Categorical,
    "bernoulli": Bernoulli,
    "poisson": Poisson,
}


def as_likelihood(likelihood: object) -> Likelihood:
    """Return the likelihood object for a name such as `"categorical"`, or the object itself.

    Raises
    ------
    ValueError
        If the name is unknown (the nearest known one is named).
    TypeError
        If it is neither a name nor a `Likelihood`.
    """
    if isinstance(likelihood, str):
        return _BY_NAME[check_option("likelihood", likelihood, _BY_NAME)]()
    if isinstance(likelihood, Likelihood):
        return likelihood
    raise TypeError(
        f"Found likelihood of type {type(likelihood).__name__}, expected an object such as "
        f"lk.Categorical() or one of {', '.join(map(repr, _BY_NAME))}; wrap a loss function as "
        "lk.FromLoss(loss)."
    )


def check_targets(likelihood: Likelihood, outputs: PyTree, targets: PyTree) -> None:
    """Raise a `ValueError` where the shapes of outputs and targets do not go together."""
    if not hasattr(outputs, "shape") or not outputs.shape:
        raise ValueError(
            f"Found model outputs {jax.tree.map(jnp.shape, outputs)}, expected one array with a "
            "leading axis of examples, (N, *event); return a single array from model_fn."
        )
    if not hasattr(targets, "shape"):
        if isinstance(likelihood, FromLoss):
            return
        raise ValueError(
            f"Found targets of type {type(targets).__name__}, expected one array; select the array "
            "of targets, or write the loss of several as lk.FromLoss(loss)."
        )
    spec = jax.ShapeDtypeStruct(targets.shape, targets.dtype)
    likelihood.check_shapes(tuple(outputs.shape), spec)
