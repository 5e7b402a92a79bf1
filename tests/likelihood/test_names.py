"""Likelihoods by their names, and from losses."""

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
        ("negative_binomial", lk.NegativeBinomial),
        ("student_t", lk.StudentT),
    ],
)
def test_names_become_likelihoods(name, kind):
    assert isinstance(lk.as_likelihood(name), kind)


def test_what_is_a_likelihood_stays_as_it_is():
    ours = lk.Masked(lk.Gaussian(0.3))
    assert lk.as_likelihood(ours) is ours


def test_a_function_is_a_loss():
    found = lk.as_likelihood(twins.log_cosh_loss)
    assert isinstance(found, lk.FromLoss)
    assert found.loss is twins.log_cosh_loss


def test_other_names_and_things_are_refused():
    with pytest.raises(ValueError, match=r"likelihood='bernouli'.* Did you mean 'bernoulli'"):
        lk.as_likelihood("bernouli")
    with pytest.raises(TypeError, match=r"likelihood the object 3, expected .*or a loss \(f, y\)"):
        lk.as_likelihood(3)
    with pytest.raises(TypeError, match=r"the class Poisson, expected .*lk\.Categorical\(\)"):
        lk.as_likelihood(lk.Poisson)
    with pytest.raises(TypeError, match=r"found loss\(f\), expected a function \(f, y\)"):
        lk.as_likelihood(lambda f: f)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("classification", "categorical"),
        ("softmax", "categorical"),
        ("cross-entropy", "categorical"),
        ("binary", "bernoulli"),
        ("sigmoid", "bernoulli"),
        ("regression", "gaussian"),
        ("MSE", "gaussian"),
        ("counts", "poisson"),
        ("heteroscedastic", "heteroscedastic_gaussian"),
    ],
)
def test_other_words_for_a_likelihood_name_it(word, name):
    with pytest.raises(ValueError, match=rf"likelihood='{word}', .* Did you mean '{name}'"):
        lk.as_likelihood(word)
