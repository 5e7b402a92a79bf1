r"""Functions drawn from the posterior, which can be evaluated repeatedly at any inputs.

A draw of weights $\theta_k$ defines a function of $x$, by the model's linearisation at the mode or
by the model itself. Its values at any inputs have the joint covariance of the predictive.
"""

import operator
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from laplace_kit import tree
from laplace_kit.approx.posterior import Posterior
from laplace_kit.chunks import chunk_of_map
from laplace_kit.curv.objective import Objective
from laplace_kit.data import as_data
from laplace_kit.derivatives import linearize
from laplace_kit.errors import check_count, check_option
from laplace_kit.memory import readable
from laplace_kit.placement import in_automatic_context
from laplace_kit.sums import map_over
from laplace_kit.tree import pytree_dataclass, replace

METHODS = ("linearized", "sampled")


@pytree_dataclass(static=("method",))
class FunctionSample:
    r"""One function drawn from the posterior; `displacement` `(P,)` is $\theta_k - \theta^*$.

    A pytree and a function of arrays: it may be jitted, mapped and differentiated in `x`.
    """

    objective: Objective
    displacement: Float[Array, " P"]
    method: Literal["linearized", "sampled"]

    def __call__(self, x: PyTree) -> Float[Array, "N *event"]:
        """Return the values at inputs with a leading axis N.

        Parameters
        ----------
        x
            Inputs of the model.

        Returns
        -------
        values
            Cost: one forward pass; linearised, one more for its tangent.
        """
        x = as_data((x, ())).x
        return in_automatic_context(_values_of_one, self, x)


@pytree_dataclass(static=("method",))
class FunctionSamples:
    r"""Functions drawn from the posterior, made by `sample_functions`.

    `displacements` `(K, P)` are the $\theta_k - \theta^*$ of all draws, which are held: K times the
    memory of the parameters. `samples(x)` evaluates all functions, `samples[k]` is one of them, and
    iteration goes through them. The number k may be traced: `jax.vmap(lambda k, x: samples[k](x))`
    gives each function inputs of its own.
    """

    objective: Objective
    displacements: Float[Array, "K P"]
    method: Literal["linearized", "sampled"]

    def __call__(self, x: PyTree) -> Float[Array, "K N *event"]:
        """Return the values of all functions at inputs with a leading axis N.

        Parameters
        ----------
        x
            Inputs of the model.

        Returns
        -------
        values
            Cost: K forward passes, and linearised one more that they share. Memory: K times the
            activations of the inputs held at a time, whose number follows from the memory limit.
        """
        x = as_data((x, ())).x
        return jnp.moveaxis(in_automatic_context(_values_of_all, self, x), 1, 0)

    def __len__(self) -> int:
        return len(self.displacements)

    def __getitem__(self, k: int | Int[Array, ""]) -> FunctionSample:
        """Return the function number k; a traced number is clipped to the last."""
        if tree.is_concrete(k):
            k = operator.index(k)
            if not -len(self) <= k < len(self):
                raise IndexError(
                    f"Found function number {k}, expected one from 0 to {len(self) - 1}; draw more "
                    "with num_samples=."
                )
        return FunctionSample(self.objective, self.displacements[k], self.method)

    def __iter__(self) -> Iterator[FunctionSample]:
        return (self[k] for k in range(len(self)))


def _values_of_one(sample: FunctionSample, x: PyTree) -> Float[Array, "N *event"]:
    return _one(replace(sample, objective=sample.objective.planned(x)), x)


def _values_of_all(samples: FunctionSamples, x: PyTree) -> Float[Array, "N K *event"]:
    planned = replace(samples, objective=samples.objective.planned(x))
    size = chunk_of_map(_all, planned, x, samples.objective.limits)
    return map_over(_all, planned, x, size)


def sample_functions(
    objective: Objective,
    posterior: Posterior,
    key: PRNGKeyArray,
    num_samples: int,
    *,
    method: Literal["linearized", "sampled"] = "linearized",
) -> FunctionSamples:
    r"""Draw functions from the posterior that can be evaluated and differentiated at any inputs.

    With $\theta_k \sim \mathcal N(\theta^*, \Sigma)$, once and for all inputs,

    $$f_k(x) = f(x; \theta^*) + J(x)\, (\theta_k - \theta^*) \quad \text{or} \quad
    f_k(x) = f(x; \theta_k)$$

    The linearised functions are draws from the Gaussian process whose moments `joint_moments`
    returns.

    Parameters
    ----------
    objective, posterior
        The model at its mode, whose limits bound the memory, and the Gaussian over its free
        parameters.
    key
        For the draws of weights.
    num_samples
        The number of functions, K.
    method
        `"linearized"`: the model's linearisation at the mode, by forward-mode differentiation (no
        Jacobian is formed); or `"sampled"`, the model at other weights.

    Returns
    -------
    samples
        A `FunctionSamples`. Cost: K draws; memory: K parameter vectors, `(K, P)`.

    Raises
    ------
    ValueError
        If the method is unknown, `num_samples` is not positive, or the vectors exceed the memory
        limit.

    Examples
    --------
    Thompson sampling: the best of a set of candidates according to one draw.

    >>> f = sample_functions(objective, posterior, key, 1)[0]  # doctest: +SKIP
    >>> chosen = jnp.argmax(f(candidates)[:, 0])  # doctest: +SKIP

    References
    ----------
    Immer, Korzepa and Bauer (2021), Improving predictions of Bayesian neural nets via local
    linearization. Wilson et al. (2020), Efficiently sampling functions from Gaussian process
    posteriors.
    """
    check_option("method", method, METHODS)
    check_count("num_samples", num_samples, "functions")
    needed, limit = num_samples * posterior.size * posterior.dtype.itemsize, objective.limits.budget
    if needed > limit:
        raise ValueError(
            f"Found num_samples={num_samples} vectors of {posterior.size} parameters, which take "
            f"{readable(needed)}, expected at most the memory limit of {readable(limit)}; draw "
            "fewer functions, or raise memory_limit=."
        )
    displacements = posterior.sample(key, num_samples)
    return FunctionSamples(objective, displacements, method)


@jax.jit
def _one(sample, x):
    objective, params = sample.objective, sample.objective.params
    if sample.method == "sampled":
        mode = tree.ravel(params).astype(sample.displacement.dtype)
        return objective.model_fn(tree.unravel(mode + sample.displacement, params), x)
    tangent = tree.unravel(sample.displacement, params)
    f, push_forward, _ = linearize(lambda free: objective.model_fn(free, x), params)
    return f + push_forward(tangent)


def _all(samples, x):
    """Return the values of all functions, `(N, K, *event)`."""

    def one(displacement):
        return _one(FunctionSample(samples.objective, displacement, samples.method), x)

    return jax.vmap(one, out_axes=1)(samples.displacements)
