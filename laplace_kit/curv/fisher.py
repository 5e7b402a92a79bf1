r"""Fisher matrices from gradients: the empirical one, and the Monte-Carlo one with sampled labels.

Both have the Gauss-Newton form $\sum_n J_n^\top S_n S_n^\top J_n$: the columns of $S_n$ are
gradients of the loss in the outputs, at the observed label or at labels drawn from the model.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num, PRNGKeyArray, PyTree

from laplace_kit.curv.fingerprint import fingerprint
from laplace_kit.curv.ggn import GaussNewtonOperator
from laplace_kit.curv.operator import STATIC, unchecked
from laplace_kit.curv.spec import CurvatureSpec
from laplace_kit.data import as_data
from laplace_kit.errors import check_count
from laplace_kit.storage import storable
from laplace_kit.tree import pytree_dataclass


def _apply_factor(factor: Float[Array, "B R *event"], u: Float[Array, "B *event"]):
    """Return $S_n S_n^T u_n$ for every example."""
    flat = factor.reshape(*factor.shape[:2], -1)
    inner = jnp.einsum("brc,bc->br", flat, u.reshape(len(u), -1))
    return jnp.einsum("brc,br->bc", flat, inner).reshape(u.shape)


@pytree_dataclass(static=STATIC)
class EmpiricalFisherOperator(GaussNewtonOperator):
    r"""The empirical Fisher matrix $\sum_n g_n g_n^\top$, with $g_n$ the gradient of example n.

    Parameters
    ----------
    model_fn, params, data, likelihood, batch_size, scale, memory_limit
        As for `GGNOperator`.

    Raises
    ------
    TypeError, ValueError
        If data, outputs, targets and likelihood are inconsistent.

    References
    ----------
    Kunstner, Balles and Hennig (2019), Limitations of the empirical Fisher approximation.
    """

    def num_columns(self, event):
        return 1

    def output_factor(self, f, chunk, columns):
        gradients = jax.vmap(self.likelihood.output_gradient)(f, chunk.y)
        return gradients[:, None].at[:, columns].get(mode="fill", fill_value=0)

    def output_mv(self, f, chunk, u):
        return _apply_factor(self.output_factor(f, chunk, jnp.arange(1)), u)


@storable("EmpiricalFisher")
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EmpiricalFisher(CurvatureSpec):
    """The empirical Fisher matrix as `curvature=`; `"empirical_fisher"` for short."""

    noise_power = 2

    @property
    def name(self):
        return "empirical_fisher"

    def operator(self, objective, data):
        return unchecked(EmpiricalFisherOperator, objective, data, {})

    def num_columns(self, event):
        return 1


@pytree_dataclass(static=(*STATIC, "num_samples"))
class MonteCarloFisherOperator(GaussNewtonOperator):
    r"""The Fisher matrix with sampled labels, $\frac1M \sum_n \sum_m g_{nm} g_{nm}^\top$.

    $g_{nm}$ is the gradient of example n at a label $\hat y_{nm} \sim p(y \mid f(x_n))$. Its
    expectation over labels is the Fisher matrix, the GGN for an exponential family in natural
    parameters. The labels depend only on the key and on the values of the example, its target
    included, and not on its position in the data or in a chunk: an operator is one fixed matrix,
    even over a loader that shuffles. Examples with equal inputs and targets get the same labels:
    the expectation does not change, but their draws count as one, so that data with few distinct
    examples need more labels for each. Where the observed label is missing, so is the drawn one.

    Parameters
    ----------
    model_fn, params, data, likelihood, batch_size, scale, memory_limit
        As for `GGNOperator`.
    key
        Random key for the labels.
    num_samples
        M, the number of labels for each example.

    Raises
    ------
    TypeError, ValueError
        If data, outputs, targets and likelihood are inconsistent, or `num_samples` is not
        positive.

    References
    ----------
    Martens and Grosse (2015), Optimizing neural networks with Kronecker-factored approximate
    curvature.
    """

    key: PRNGKeyArray = dataclasses.field(kw_only=True)
    num_samples: int = dataclasses.field(default=1, kw_only=True)

    def __post_init__(self, batch_size, memory_limit):
        check_count("num_samples", self.num_samples, "labels to draw for each example")
        super().__post_init__(batch_size, memory_limit)

    def num_columns(self, event):
        return self.num_samples

    def output_factor(self, f, chunk, columns):
        prints = chunk.prints
        if prints is None:
            prints = jax.vmap(fingerprint)((chunk.x, chunk.y))

        def one(f_n, y_n, print_n):
            def draw(key):
                return self.likelihood.sampled_gradient(key, f_n, y_n)

            keys = jax.random.split(jax.random.fold_in(self.key, print_n), self.num_samples)
            return jax.vmap(draw)(keys.at[columns].get(mode="clip"))

        drawn = jax.vmap(one)(f, chunk.y, prints)
        factor = jnp.where((columns < self.num_samples).reshape(-1, *(1,) * (f.ndim - 1)), drawn, 0)
        return factor / jnp.sqrt(jnp.asarray(self.num_samples, f.dtype))

    def output_mv(self, f, chunk, u):
        return _apply_factor(self.output_factor(f, chunk, jnp.arange(self.num_samples)), u)


@storable("MonteCarloFisher")
@partial(jax.tree_util.register_dataclass, data_fields=("key",), meta_fields=("num_samples",))
@dataclasses.dataclass(frozen=True)
class MonteCarloFisher(CurvatureSpec):
    """The Fisher matrix with sampled labels as `curvature=`; `"mc_fisher"` for short.

    Parameters
    ----------
    key
        For the labels, which depend on it and on the values of each example. `None` only in
        posteriors from files that do not hold it.
    num_samples
        The number of labels for each example. For models of very many outputs a few are a cheap
        stand-in for the GGN, which the matrix equals in expectation over labels.

    Raises
    ------
    ValueError
        If `num_samples` is not positive.
    """

    key: PRNGKeyArray | None = dataclasses.field(repr=False)
    num_samples: int = 1

    def __post_init__(self):
        check_count("num_samples", self.num_samples, "labels to draw for each example")

    @property
    def name(self):
        return "mc_fisher"

    def operator(self, objective, data):
        check_has_key(self.key)
        own = {"key": self.key, "num_samples": self.num_samples}
        return unchecked(MonteCarloFisherOperator, objective, data, own)

    def num_columns(self, event):
        return self.num_samples

    def with_key(self, key):
        return dataclasses.replace(self, key=key)


def check_has_key(key: PRNGKeyArray | None) -> None:
    """Raise a `ValueError` where there is no key to draw labels by."""
    if key is None:
        raise ValueError(
            "Found no key, expected one for curvature='mc_fisher', which draws labels; pass "
            "key=jax.random.key(0), or curvature=lk.MonteCarloFisher(jax.random.key(0))."
        )


def empirical_fisher_mv(
    model_fn,
    params: PyTree,
    batch: tuple,
    v: PyTree,
    likelihood,
    *,
    scale: Num[ArrayLike, ""] | None = 1.0,
) -> PyTree:
    """Return the product of one batch's empirical Fisher matrix with `v`; see `ggn_mv`."""
    data = as_data(tuple(batch))
    return EmpiricalFisherOperator(
        model_fn, params, data, likelihood, scale=scale, batch_size=data.num_examples
    ).mv(v)


def mc_fisher_mv(
    model_fn,
    params: PyTree,
    batch: tuple,
    v: PyTree,
    likelihood,
    *,
    key: PRNGKeyArray,
    num_samples: int = 1,
    scale: Num[ArrayLike, ""] | None = 1.0,
) -> PyTree:
    """Return the product of one batch's Monte-Carlo Fisher matrix with `v`; see `ggn_mv`.

    The same `key` gives the same labels and so the same matrix.
    """
    data = as_data(tuple(batch))
    return MonteCarloFisherOperator(
        model_fn,
        params,
        data,
        likelihood,
        key=key,
        num_samples=num_samples,
        scale=scale,
        batch_size=data.num_examples,
    ).mv(v)
