"""The continuous ranked probability score against closed forms and sums over all counts."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import laplace_kit as lk
from laplace_kit.targets import NumberTargets, Outputs
from laplace_kit.targets.crps import crps
from laplace_kit.tree import pytree_dataclass

pytestmark = pytest.mark.usefixtures("x64")


def certain(f):
    f = jnp.asarray(f)[:, None]
    return Outputs(f, jnp.zeros_like(f))


def score(targets, y):
    low, high = targets.quantile(jnp.array([0.05, 0.95]))
    y = jnp.asarray(y)[:, None]
    return np.asarray(crps(targets, y, low.astype(float), high.astype(float)))[:, 0]


@pytest.mark.parametrize("rate", [0.3, 4.0, 60.0, 5e3, 1e6])
def test_counts_against_the_sum_over_all_counts(rate):
    deviation = np.sqrt(rate)
    y = np.array([0.0, np.floor(rate), np.floor(rate + 3 * deviation)])
    found = score(lk.Poisson().targets(certain(np.full(3, np.log(rate)))), y)
    counts = np.arange(max(rate - 12 * deviation - 20, 0) // 1, rate + 12 * deviation + 20)
    cdf = stats.poisson(rate).cdf(counts)
    expected = [np.square(cdf - (counts >= k)).sum() + max(counts[0] - k, 0) for k in y]
    # Up to 16 counts in each piece are summed, and of more that many.
    np.testing.assert_allclose(found, expected, rtol=1e-10 if rate < 10 else 2e-3)


def test_overdispersed_counts_with_uncertain_rates():
    """Counts from the tails of a log-normal rate, against the sum of a mixture over quadrature."""
    outputs = Outputs(jnp.full((3, 1), 1.0), jnp.full((3, 1), 0.5))
    y = np.array([0.0, 3.0, 40.0])
    found = score(lk.NegativeBinomial(dispersion=0.5).targets(outputs), y)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    mean = np.exp(1 + np.sqrt(0.5) * nodes)
    counts = np.arange(5000)[:, None]
    cdf = stats.nbinom(2.0, 2 / (2 + mean)).cdf(counts) @ weights / weights.sum()
    expected = [np.square(cdf - (counts[:, 0] >= k)).sum() for k in y]
    np.testing.assert_allclose(found, expected, rtol=3e-3)


@pytest.mark.parametrize("nu", [1.0, 3.0, 50.0])
def test_heavy_tails_against_quadrature(nu):
    y = np.array([0.0, 1.7, -30.0])
    found = score(lk.StudentT(scale=0.7, degrees_of_freedom=nu).targets(certain([0.1] * 3)), y)
    of = stats.t(nu, 0.1, 0.7)
    expected = []
    for k in y:
        # In two finite parts each, and the tails by substitution.
        ends = sorted([k, 0.1])
        below = lambda z: of.cdf(z) ** 2  # noqa: E731
        above = lambda z: of.sf(z) ** 2  # noqa: E731
        parts = [
            integrate.quad(below, -np.inf, min(k, ends[0]), limit=200)[0],
            integrate.quad(below if k > 0.1 else above, *ends, limit=200)[0],
            integrate.quad(above, max(k, ends[1]), np.inf, limit=200)[0],
        ]
        expected.append(sum(parts))
    np.testing.assert_allclose(found, expected, rtol=1e-5 if nu > 1 else 2e-3)


@pytree_dataclass()
class Exponential(NumberTargets):
    """Waiting times with known rates, as a user may write them."""

    outputs: Outputs

    @property
    def mean(self):
        """The mean."""
        return jnp.exp(self.outputs.mean)

    @property
    def aleatoric_var(self):
        """The variance."""
        return jnp.exp(2 * self.outputs.mean)

    @property
    def epistemic_var(self):
        """None."""
        return jnp.zeros_like(self.mean)

    def log_prob(self, y):
        return -self.outputs.mean - y / self.mean

    def cdf(self, y):
        return jnp.where(y < 0, 0, -jnp.expm1(-y / self.mean))

    def quantile(self, q):
        return self.mean * -jnp.log1p(-q[..., None, None])

    def sample(self, key, num_samples):
        raise NotImplementedError


def test_a_distribution_of_a_user_on_half_of_the_line():
    y, mean = np.array([0.0, 0.4, 2.0, 9.0]), 1.5
    found = score(Exponential(certain(np.full(4, np.log(mean)))), y)
    # The closed form of Jordan, Krueger and Lerch (2019).
    expected = mean * (y / mean - 2 * stats.expon(scale=mean).cdf(y) + 0.5)
    np.testing.assert_allclose(found, expected, rtol=3e-5)
