"""Likelihoods by their names."""

import pytest
import twins

from laplace_kit import likelihood as lk


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gaussian", lk.Gaussian),
        ("heteroscedastic_gaussian", lk.HeteroscedasticGaussian),
        ("categorical", lk.Categorical),
        ("bernoulli", lk.Bernoulli),
        ("poisson", lk.Poisson),
    ],
)
def test_names_become_likelihoods(name, kind):
    assert isinstance(lk.as_likelihood(name), kind)


def test_what_is_a_likelihood_stays_as_it_is():
    ours = lk.Masked(lk.Gaussian(0.3))
    assert lk.as_likelihood(ours) is ours


def test_other_names_and_things_are_refused():
    with pytest.raises(ValueError, match=r"likelihood='bernouli'.* Did you mean 'bernoulli'"):
        lk.as_likelihood("bernouli")
    with pytest.raises(TypeError, match=r"likelihood of type function.*lk\.FromLoss\(loss\)"):
        lk.as_likelihood(twins.log_cosh_loss)
