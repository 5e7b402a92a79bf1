r"""The temperature of a posterior, by the variational bound of the evidence.

A Laplace posterior represents the likelihood at the mode to second order. Where labels are fitted
with confidence that curvature vanishes, although the likelihood is not flat: it tolerates growing
logits but not shrinking ones, and a symmetric Gaussian as wide as the curvature allows is uncertain
about the training data themselves. The family $q_T = \mathcal N(\theta^*, T (H + d)^{-1})$ is
therefore scored on the training data without expanding the likelihood,

$$\mathrm{ELBO}(T) = \mathbb E_{q_T}[\log p(y \mid f)] - \mathrm{KL}(q_T \,\|\, \mathcal N(\theta_0,
    (c\, d)^{-1})),$$

under the linearised model and with the scale c of the prior at its optimum. With a Gaussian
likelihood, whose expansion is exact, $T = 1$ is the maximum where the prior precision maximises
the evidence.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from laplace_kit.approx.posterior import Posterior, Spectrum
from laplace_kit.eval.monte_carlo import covariance_root
from laplace_kit.eval.outputs import Predictive
from laplace_kit.host import fetch
from laplace_kit.likelihood import Likelihood
from laplace_kit.tree import pytree_dataclass

_BOUNDS = (1e-6, 1.0)
_GRID_POINTS = 33
NODES = 16  # and their negatives
# Only the diagonals of larger covariances are used, as a root is cubic in the outputs.
_LARGEST_COVARIANCE = 64


@pytree_dataclass()
class PriorTerms:
    r"""The terms of the KL divergence from the prior.

    They are P, $\operatorname{tr} d \Sigma$, and $\Delta^\top d\, \Delta$ with $\Delta$ the mode
    minus the prior mean.
    """

    num_params: Float[Array, ""]
    spread: Float[Array, ""]
    deviation: Float[Array, ""]

    def log_bound(self, temperature: Float[Array, ""]) -> Float[Array, ""]:
        r"""Return $-\mathrm{KL}(q_T)$ at the best scale of the prior, up to a constant."""
        pull = temperature * self.spread + self.deviation
        return 0.5 * self.num_params * (jnp.log(temperature) - jnp.log(pull))


@jax.jit
def prior_terms(
    posterior: Posterior, precision: Float[Array, " P"], deviation: Float[Array, " P"]
) -> PriorTerms:
    """Return the terms of the divergence from a prior; precision and deviation are flat.

    Cost: that of `posterior.variance()`.
    """
    return PriorTerms(
        jnp.asarray(posterior.size, precision.dtype),
        jnp.sum(precision * posterior.variance()),
        jnp.sum(precision * deviation**2),
    )


@jax.jit
def isotropic_prior_terms(
    spectrum: Spectrum, delta: Float[Array, ""], deviation: Float[Array, " P"]
) -> PriorTerms:
    r"""Return the same for $d = \delta I$, in $O(P)$ from the eigenvalues of $H$."""
    return PriorTerms(
        jnp.asarray(spectrum.size, deviation.dtype),
        spectrum.undetermined_parameters(delta),
        delta * jnp.vdot(deviation, deviation, precision="highest"),
    )


def variational_temperature(
    likelihood: Likelihood,
    predictive: Predictive,
    y: PyTree,
    prior: PriorTerms,
    num_data: int | float | Array,
    weights: Float[Array, " N"] | None = None,
    *,
    key: PRNGKeyArray | None = None,
) -> Float[Array, ""]:
    r"""Return the temperature T that maximises the variational bound of the evidence.

    Parameters
    ----------
    likelihood
        The likelihood of the outputs.
    predictive
        Moments of the linearised outputs at training inputs, under the posterior of $T = 1$.
    y
        Their targets.
    prior
        The terms of the divergence from the prior.
    num_data
        The number of training examples, or the sum of their weights; those of `y` represent all.
    weights
        The weights of the examples of `y`, if the training data have weights.
    key
        Draws other nodes for the expectation, to check how much they matter; `None` for the fixed
        nodes.

    Returns
    -------
    temperature
        Within $10^{-6}$ and one. The expectation is an average over 32 nodes for each example, 16
        and their negatives, the same for every T, so that the bound is a smooth function of it and
        odd moments vanish. By default this is a deterministic rule: its nodes are a fixed table of
        normal numbers, NumPy's PCG64 from seed 0, read row by row for each node, example and
        output. Cost: 66 evaluations of the likelihood at the nodes, which are held at once;
        covariances over up to 64 outputs are used in full, larger ones by their diagonals.

    References
    ----------
    Opper and Archambeau (2009), The variational Gaussian approximation revisited. Wenzel et al.
    (2020), How good is the Bayes posterior in deep neural networks really?
    """
    f = predictive.f_mean
    # NumPy draws these at once, where XLA would compile for seconds.
    seed = 0 if key is None else fetch(jax.random.key_data(key)).tolist()
    shape = (NODES, len(f), math.prod(f.shape[1:]))
    half = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return _best_temperature(likelihood, predictive, y, prior, num_data, weights, half)


def temperature_by_draws(
    likelihood: Likelihood,
    f_mean: Float[Array, "N *event"],
    draws: Float[Array, "K N *event"],
    y: PyTree,
    prior: PriorTerms,
    num_data: int | float | Array,
    weights: Float[Array, " N"] | None = None,
) -> Float[Array, ""]:
    r"""Return the same temperature with draws of the linearised function as nodes.

    Parameters
    ----------
    likelihood, y, prior, num_data, weights
        As for `variational_temperature`.
    f_mean, draws
        The outputs at the mode at the training inputs, and at draws of the weights from the
        posterior of $T = 1$, the same draws for all inputs.

    Returns
    -------
    temperature
        Cost: 66 evaluations of the likelihood at the draws and their reflections.
    """
    return _best_by_draws(likelihood, f_mean, draws, y, prior, num_data, weights)


@jax.jit
def _best_by_draws(likelihood, f_mean, draws, y, prior, num_data, weights):
    dtype = jnp.promote_types(f_mean.dtype, jnp.float32)
    f = f_mean.astype(dtype)
    half = draws.astype(dtype) - f
    spread = jnp.concatenate([half, -half])
    return _best_temperature_for(likelihood, f, spread, y, prior, num_data, weights)


@jax.jit
def _best_temperature(likelihood, predictive, y, prior, num_data, weights, half):
    dtype = jnp.promote_types(predictive.f_mean.dtype, jnp.float32)
    f = predictive.f_mean.astype(dtype)
    nodes = jnp.concatenate([half, -half]).astype(dtype)
    if predictive.f_cov is not None and nodes.shape[-1] <= _LARGEST_COVARIANCE:
        root = covariance_root(predictive.f_cov.astype(dtype))
        spread = jnp.einsum("ncd,knd->knc", root, nodes, precision="highest")
    else:
        variance = predictive.f_var.astype(dtype).reshape(len(f), -1)
        spread = nodes * jnp.sqrt(jnp.maximum(variance, 0))
    spread = spread.reshape(len(nodes), *f.shape)
    return _best_temperature_for(likelihood, f, spread, y, prior, num_data, weights)


def _best_temperature_for(likelihood, f, spread, y, prior, num_data, weights):
    dtype = f.dtype
    weights = jnp.ones(len(f), dtype) if weights is None else weights.astype(dtype)
    shares = num_data / jnp.sum(weights) * weights

    def bound(log_temperature: Float[Array, ""]) -> Float[Array, ""]:
        temperature = jnp.exp(log_temperature)
        moved = f + jnp.sqrt(temperature) * spread
        losses = jax.vmap(jax.vmap(likelihood.negative_log_prob), (0, None))(moved, y)
        return prior.log_bound(temperature) - jnp.sum(shares * losses) / len(spread)

    low, high = math.log(_BOUNDS[0]), math.log(_BOUNDS[1])
    width = (high - low) / 2
    steps = np.linspace(-1, 1, _GRID_POINTS)
    # A grid, and a finer one between the neighbours of its best point: one loop over both, whose
    # body is compiled once.
    offsets = np.concatenate([width * steps, width * 2 / (_GRID_POINTS - 1) * steps])
    is_finer = np.arange(2 * _GRID_POINTS) == _GRID_POINTS

    def look(found, at):
        centre, best, largest = found
        offset, is_next = at
        centre = jnp.where(is_next, best, centre)
        point = jnp.clip(centre + offset, low, high)
        value = bound(point)
        better = value > largest
        return (centre, jnp.where(better, point, best), jnp.where(better, value, largest)), None

    middle = jnp.asarray((low + high) / 2, dtype)
    start = (middle, middle, jnp.asarray(-jnp.inf, dtype))
    (_, best, _), _ = jax.lax.scan(look, start, (offsets.astype(dtype), is_finer))
    return jnp.exp(best)
