"""A known term in the outputs: counts with an exposure are sums of counts for one unit of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

import laplace_kit as lk
from laplace_kit.model import batched, with_offset

RNG = np.random.default_rng(0)
X, EXPOSURE = RNG.normal(size=(8, 2)), np.asarray([1, 2, 5, 1, 3, 2, 4, 6])
COPIES = np.repeat(np.arange(8), EXPOSURE)
UNITS = RNG.poisson(np.exp(0.5 * X[COPIES, :1])).astype(float)  # counts of one unit each
COUNTS = np.stack([UNITS[row == COPIES].sum(axis=0) for row in range(8)])
OFFSET = np.log(EXPOSURE)[:, None]
PARAMS = {
    "hidden": {"kernel": RNG.normal(size=(2, 3)), "bias": np.zeros(3)},
    "out": {"kernel": RNG.normal(size=(3, 1)), "bias": np.zeros(1)},
}


def rate(params, x):
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]


def fit(model_fn, data, **options) -> lk.Laplace:
    return lk.fit(model_fn, PARAMS, data, likelihood="poisson", **options)


@pytest.mark.parametrize("options", [{"structure": "full"}, {"subset": "last_layer"}], ids=str)
def test_totals_with_an_exposure_say_what_the_counts_of_its_units_say(options, x64):
    totals = fit(with_offset(rate), ((X, OFFSET), COUNTS), **options)
    units = fit(rate, (X[COPIES], UNITS), **options)
    twins.assert_close(totals.gradient, units.gradient, rtol=1e-10)
    twins.assert_close(totals.posterior.covariance(), units.posterior.covariance(), rtol=1e-9)
    # how the units share their total does not depend on the rate, nor on the prior
    evidences = [
        la.log_marginal_likelihood(2.0) - la.log_marginal_likelihood(0.5) for la in (totals, units)
    ]
    assert float(evidences[0]) == pytest.approx(float(evidences[1]), abs=1e-9)


def test_layers_are_found_as_without_an_offset():
    found = fit(with_offset(rate), ((X, OFFSET), COUNTS), structure="kron")
    assert found.coverage == fit(rate, (X, COUNTS), structure="kron").coverage


def test_predictions_are_of_counts_with_their_exposure(x64):
    la = fit(with_offset(rate), ((X, OFFSET), COUNTS), structure="full")
    with_exposure, of_units = (la.predict((X, offset)) for offset in (OFFSET, 0 * OFFSET))
    twins.assert_close(with_exposure.mean, EXPOSURE[:, None] * of_units.mean, rtol=1e-12)
    expected = EXPOSURE[:, None] ** 2 * of_units.epistemic_var
    twins.assert_close(with_exposure.epistemic_var, expected, rtol=1e-12)
    # the noise of a Poisson count is its mean
    twins.assert_close(with_exposure.noise_var, with_exposure.mean, rtol=1e-12)


def test_other_offsets_and_arrays_of_the_model_compile_nothing():
    def scaled(scale, params, x):
        return scale * rate(params, x)

    for scale in (1.0, 2.0):
        model_fn = with_offset(jax.tree_util.Partial(scaled, np.float32(scale)))
        with twins.compilations() as names:
            la = fit(model_fn, ((X, scale * OFFSET), COUNTS), structure="diagonal")
            la.predict((X, scale * OFFSET))
    assert names == []


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match=r"offset of shape \(8,\) for outputs \(8, 1\)"):
        with_offset(rate)(PARAMS, (X, OFFSET[:, 0]))
    with pytest.raises(TypeError, match=r"inputs of type ndarray.*data \(\(x, offset\), y\)"):
        with_offset(rate)(PARAMS, X)
    with pytest.raises(TypeError, match=r"cannot be called as model_fn\(params, x\)"):
        with_offset(lambda x: x)


# --- single examples ------------------------------------------------------------------------------


def test_batched():
    def single(params, x):
        assert x["a"].ndim == 1
        return jnp.tanh(x["a"] @ params)

    params = jnp.ones((2, 3))
    found = batched(single)(params, {"a": X})
    np.testing.assert_allclose(found, np.tanh(X @ np.ones((2, 3))), rtol=1e-6)
