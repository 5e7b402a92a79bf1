"""What a saved posterior is made of: everything but functions and data, bit by bit."""

import functools
import zipfile
from io import BytesIO
from pathlib import Path

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

import laplace_kit as lk
from laplace_kit import stored
from laplace_kit.approx.posterior import Posterior, Structure
from laplace_kit.approx.spec import StructureSpec
from laplace_kit.curv.spec import CurvatureSpec
from laplace_kit.eval.predictive import Prediction
from laplace_kit.likelihood import Factorized, Likelihood, MultivariateGaussian
from laplace_kit.storage import is_storable, storable
from laplace_kit.tree import pytree_dataclass, replace

N = 6
FILES = Path(__file__).parent / "files"


def linear(params, x):
    return x @ params["weight"] + params["bias"]


def parameters(num_outputs=2):
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(3, num_outputs)), rng.normal(size=num_outputs)
    return {"weight": jnp.asarray(weight, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}


def data(kind="classes", num_outputs=2):
    rng = np.random.default_rng(2)
    x, real = rng.normal(size=(N, 3)), rng.normal(size=(N, num_outputs))
    y = {
        "real": real.astype(np.float32),
        "classes": rng.integers(0, num_outputs, N),
        "binary": (real > 0).astype(np.float32),
        "counts": rng.poisson(2, real.shape).astype(np.float32),
    }[kind]
    return x.astype(np.float32), y


def again(la, path, model_fn=linear, **options) -> lk.Laplace:
    la.save(path / "la.npz")
    return lk.load(path / "la.npz", model_fn, **options)


def assert_same(loaded, la):
    """Compare all fields but the examples, which are not stored; what is static, by equality."""
    assert loaded.examples is None
    model, record = replace(la.model, plan=None), replace(la.record, examples=None)
    expected = replace(la, model=model, record=record)
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(expected), strict=True):
        assert jnp.asarray(a).dtype == jnp.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


# --- structures -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "ekfac", "kron", "low_rank", "diagonal"])
def test_structures(kind, tmp_path):
    la = exact.fitted(kind, "float32")
    loaded, x = again(la, tmp_path, twins.mlp), twins.problem("mlp").x
    assert_same(loaded, la)
    found, expected = (la.with_prior(2.0).predict(x) for la in (loaded, la))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_dual_form_of_the_full_structure(tmp_path):
    """The design matrix of a lookup and a product has rows of both kinds."""

    def model(params, x):
        return jnp.tanh(params["table"][x]) @ params["head"]

    rng = np.random.default_rng(0)
    table, head = rng.normal(size=(300, 4)), rng.normal(size=(4, 2))
    params = {"table": jnp.asarray(table, jnp.float32), "head": jnp.asarray(head, jnp.float32)}
    x, y = rng.integers(0, 300, N), rng.integers(0, 2, N)
    la = lk.fit(model, params, (x, y), likelihood="categorical", memory_limit=10**6)
    assert la.choice.form == "dual"
    loaded = again(la, tmp_path, model)
    assert_same(loaded, la)
    jax.tree.map(np.testing.assert_array_equal, loaded.predict(x), la.predict(x))
    evidence = loaded.log_marginal_likelihood(0.3)
    np.testing.assert_array_equal(evidence, la.log_marginal_likelihood(0.3))


# --- likelihoods ----------------------------------------------------------------------------------

LIKELIHOODS = {
    "gaussian": (lk.Gaussian(0.3), "real"),
    "gaussian_per_output": (lk.Gaussian(np.array([0.3, 2.0], np.float32)), "real"),
    "multivariate": (MultivariateGaussian(jnp.array([[1.0, 0.4], [0.4, 2.0]])), "real"),
    "categorical": (lk.Categorical(), "classes"),
    "class_weights": (lk.Categorical(np.array([0.3, 2.0], np.float32)), "classes"),
    "bernoulli": (lk.Bernoulli(), "binary"),
    "poisson": (lk.Poisson(), "counts"),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods(name, tmp_path):
    likelihood, kind = LIKELIHOODS[name]
    la = lk.fit(linear, parameters(), data(kind), likelihood=likelihood, structure="diagonal")
    loaded = again(la, tmp_path)
    assert type(loaded.likelihood) is type(likelihood)
    assert_same(loaded, la)


def test_masked_likelihoods(tmp_path):
    x, y = data("real")
    mask = np.arange(2 * N).reshape(N, 2) % 3 > 0
    likelihood = lk.Masked(lk.Gaussian(np.array([0.3, 2.0], np.float32)))
    la = lk.fit(linear, parameters(), (x, (y, mask)), likelihood=likelihood, structure="diagonal")
    loaded = again(la, tmp_path)
    np.testing.assert_array_equal(loaded.likelihood.likelihood.noise_std, np.float32([0.3, 2.0]))
    assert_same(loaded, la)


def test_heteroscedastic_outputs(tmp_path):
    x, y = data("real")
    likelihood = lk.HeteroscedasticGaussian()

    def model(params, x):
        f = linear(params, x)
        return jnp.concatenate([f, -jnp.exp(0.1 * f)], axis=-1)

    la = lk.fit(model, parameters(), (x, y), likelihood=likelihood, structure="diagonal")
    assert_same(again(la, tmp_path, model), la)


def test_a_likelihood_that_is_a_function_is_left_out(tmp_path):
    likelihood = lk.FromLoss(twins.gaussian_loss)
    la = lk.fit(linear, parameters(), data("real"), likelihood=likelihood, structure="diagonal")
    assert stored.fields(**vars(la))["likelihood"] is None
    with pytest.raises(ValueError, match=r"Found no likelihood in .*, expected one.*lk\.storable"):
        again(la, tmp_path)
    assert_same(again(la, tmp_path, likelihood=likelihood), la)


@storable("tests.Scaled")
@pytree_dataclass(static=("scale",))
class Scaled(lk.Likelihood):
    """A Gaussian's loss, many times."""

    scale: float

    def negative_log_prob(self, f, y):
        return 0.5 * self.scale * jnp.sum((f - y) ** 2)

    def hessian_mv(self, f, y, u):
        return self.scale * u

    def hessian_sqrt_mv(self, f, y, w):
        return self.scale**0.5 * w

    def sample(self, key, f):
        return f + jax.random.normal(key, f.shape, f.dtype) / self.scale**0.5

    def check_shapes(self, outputs, targets):
        assert outputs == targets.shape

    def is_valid(self, f, y):
        return jnp.isfinite(y).all()

    @property
    def support(self):
        return "finite numbers"


def test_a_likelihood_of_ones_own_that_is_registered(tmp_path):
    la = lk.fit(linear, parameters(), data("real"), likelihood=Scaled(4.0), structure="diagonal")
    loaded = again(la, tmp_path)
    assert loaded.likelihood.scale == 4.0
    assert_same(loaded, la)


# --- links ----------------------------------------------------------------------------------------


def softmax_of_mean(mean, covariance):
    return jax.nn.softmax(mean)


def test_a_link_that_is_a_function_is_given_again(tmp_path):
    la = lk.fit(linear, parameters(), data(), likelihood="categorical", structure="diagonal")
    la = la.with_prediction(link=softmax_of_mean, covariance="diagonal")
    with pytest.raises(ValueError, match="whose link was the function 'softmax_of_mean', expected"):
        again(la, tmp_path)
    loaded = again(la, tmp_path, link=softmax_of_mean)
    assert_same(loaded, la)
    assert loaded.prediction == la.prediction
    np.testing.assert_array_equal(loaded.predict(data()[0]).probs, la.predict(data()[0]).probs)


def test_a_link_with_bound_arguments_has_the_name_of_its_function(tmp_path):
    link = functools.partial(functools.partial(softmax_of_mean), covariance=None)
    la = lk.fit(linear, parameters(), data(), likelihood="categorical", structure="diagonal")
    with pytest.raises(ValueError, match="link=softmax_of_mean"):
        again(la.with_prediction(link=link), tmp_path)


# --- what was done to it --------------------------------------------------------------------------


@pytest.mark.slow
def test_tuning_temperature_choice_and_prediction_come_back(tmp_path):
    la = lk.fit(linear, parameters(), data(), likelihood="categorical", batch_size=4)
    la = la.tune(bounds=(1e-6, 1e6)).with_prediction(link="mean_field_1", covariance="diagonal")
    assert 0 < la.temperature < 1
    loaded = again(la, tmp_path)
    assert_same(loaded, la)
    assert loaded.prediction == Prediction(link="mean_field_1", covariance="diagonal")
    assert loaded.choice == la.choice
    assert loaded.choice.batch_size == 4
    assert loaded.tuning.method == "evidence"
    assert loaded.tuning.temperature == loaded.temperature == la.temperature
    np.testing.assert_array_equal(loaded.tuning.visited, la.tuning.visited)
    assert loaded.card() == la.card()


def test_one_precision_for_each_leaf(tmp_path):
    la = lk.fit(linear, parameters(), data("real"), likelihood="gaussian", structure="diagonal")
    la = la.tune(per_leaf=True, bounds=(1e-8, 1e8))
    loaded = again(la, tmp_path)
    assert_same(loaded, la)
    assert set(loaded.tuning.prior_precision) == {"weight", "bias"}
    assert not loaded.likelihood.known


def test_subsets(tmp_path):
    x, y = data()
    subsets = ("last_layer", np.array([0, 5]), {"weight": True, "bias": np.array([True, False])})
    for subset in subsets:
        la = lk.fit(linear, parameters(), (x, y), likelihood="categorical", subset=subset)
        loaded = again(la, tmp_path)
        assert_same(loaded, la)
        jax.tree.map(np.testing.assert_array_equal, loaded.params, parameters())


def test_what_was_loaded_goes_on_working(tmp_path):
    """Everything but what needs the training examples."""
    (x, y), (_, other) = data(), data("binary")
    la = lk.fit(linear, parameters(), (x, y), likelihood="categorical", structure="full")
    loaded = again(la, tmp_path)
    updated, expected = (posterior.update((x, 1 - y)) for posterior in (loaded, la))
    np.testing.assert_array_equal(updated.structure.matrix, expected.structure.matrix)
    validated = {"data": (x, other[:, 0].astype(int)), "bounds": (1e-6, 1e6)}
    tuned, expected = (posterior.tune(**validated) for posterior in (loaded, la))
    np.testing.assert_array_equal(tuned.prior_precision, expected.prior_precision)
    np.testing.assert_array_equal(tuned.temperature, 1)
    with pytest.raises(ValueError, match="no training examples in this posterior, which was load"):
        loaded.tune(temperature=True, bounds=(1e-6, 1e6))


# --- files of version 1, which named a structure and a curvature with all options flat ----------

VERSION_1 = {  # what they predict for the first class of `data()`, with the link "mean_field_2"
    "auto": (
        lk.Full("primal"),
        lk.GGN(),
        [0.1486208, 0.8308024, 0.5887849, 0.6197298, 0.1890908, 0.4061920],
    ),
    "ekfac": (
        lk.Kronecker(weight_sharing="reduce"),
        lk.GGN(),
        [0.1424400, 0.8573284, 0.5857361, 0.6130719, 0.1825576, 0.4106767],
    ),
    "diagonal_hessian": (
        lk.Diagonal(),
        lk.Hessian(),
        [0.1515227, 0.8266333, 0.5794956, 0.6049979, 0.1818766, 0.4148105],
    ),
    "low_rank_mc_fisher": (
        lk.LowRank(3),
        lk.MonteCarloFisher(None, 2),
        [0.1672040, 0.7875267, 0.5830727, 0.6108172, 0.2097026, 0.4108789],
    ),
}


@pytest.mark.parametrize("name", VERSION_1)
def test_files_of_version_1(name, tmp_path):
    spec, curvature, expected = VERSION_1[name]
    la, (x, y) = lk.load(FILES / f"version_1_{name}.npz", linear), data()
    assert (la.choice.spec, la.choice.curvature_spec) == (spec, curvature)
    assert la.choice.batch_size == (4 if name == "auto" else None)
    probs = la.predict(x, link="mean_field_2").probs
    np.testing.assert_allclose(probs[:, 0], expected, rtol=1e-5)
    assert_same(again(la, tmp_path), la)
    if name == "low_rank_mc_fisher":
        with pytest.raises(ValueError, match="no key, expected one for curvature='mc_fisher'"):
            la.update((x, y))
        la.update((x, y), key=jax.random.key(0))


# --- what a file holds ----------------------------------------------------------------------------


def test_no_training_example_is_written(tmp_path):
    la = lk.fit(linear, parameters(), data(), likelihood="categorical", structure="diagonal")
    la.save(tmp_path / "la.npz")
    x, y = data()
    with zipfile.ZipFile(tmp_path / "la.npz") as file:
        contents = [np.load(BytesIO(file.read(name))) for name in file.namelist()]
    assert not any(array.shape in (x.shape, y.shape) for array in contents)
    assert la.examples[0].shape == x.shape
    assert set(stored.fields(**vars(la))) == stored.NAMES
    assert not {"examples", "model_fn"} & stored.NAMES


def subclasses(cls: type) -> set[type]:
    """Return the concrete ones that the package has."""
    below = set().union(*(subclasses(child) for child in cls.__subclasses__()))
    ours = cls.__module__.startswith("laplace_kit") and not cls.__abstractmethods__
    return below | {cls} if ours else below


def test_every_structure_posterior_and_likelihood_may_be_stored():
    expected = subclasses(Structure) | subclasses(Posterior) | subclasses(Likelihood)
    assert len(expected) > 15
    expected |= subclasses(StructureSpec) | subclasses(CurvatureSpec)
    missing = {cls for cls in expected if not is_storable(cls)} - {lk.FromLoss, Factorized}
    assert not missing


# --- files of earlier versions --------------------------------------------------------------------

FILES = Path(__file__).parent / "files"


@pytest.mark.parametrize("known", [False, True])
def test_a_regression_that_an_earlier_version_saved(known):
    """Its file says apart from the likelihood whether `fit` was given the noise."""
    name, std, evidence = (
        ("gaussian_given", 0.3, -247.91693) if known else ("gaussian_by_name", 1.0, -41.224029)
    )
    la = lk.load(FILES / f"{name}.npz", linear)
    assert la.likelihood.known == known
    assert la.likelihood.noise_std == std
    assert float(la.log_marginal_likelihood()) == pytest.approx(evidence, rel=1e-5)
    tuned = la.tune(bounds=(1e-8, 1e8))
    if known:
        assert tuned.likelihood.noise_std == std
    else:
        assert float(tuned.likelihood.noise_std) == pytest.approx(1.8704488, rel=1e-5)
        assert float(tuned.prior_precision) == pytest.approx(1.0593551, rel=1e-3)


def test_a_tuned_classifier_that_an_earlier_version_saved():
    la = lk.load(FILES / "categorical_tuned.npz", linear)
    assert float(la.temperature) == pytest.approx(0.9474635)
    assert float(la.tuning.temperature) == float(la.temperature)
    assert la.prediction == Prediction(link="mean_field_1", covariance="diagonal")
    assert la.num_data == N
    assert float(la.log_marginal_likelihood()) == pytest.approx(-4.3721599, rel=1e-5)
    expected = [[0.1421246, 0.8578755], [0.7325185, 0.2674813]]
    np.testing.assert_allclose(la.predict(data()[0][:2]).probs, expected, rtol=1e-4)
    assert la.card()["parameters"] == "6 of 8, a subset"
