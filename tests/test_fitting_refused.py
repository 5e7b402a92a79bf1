"""Every wrong turn of a fit is refused before work is done, with what was found and the remedy."""

import exact
import jax.numpy as jnp
import numpy as np
import pytest
import twins

import laplace_kit as lk

N = 7


def linear(params, x):
    return x @ params["weight"]


def refused(error, message, **changes):
    """Fit a small regression with something changed and expect an error that says so."""
    arguments = {"params": {"weight": jnp.ones((3, 1))}, "x": np.ones((N, 3), np.float32)}
    arguments |= {"y": np.zeros((N, 1), np.float32), "likelihood": "gaussian"} | changes
    params, x, y = (arguments.pop(name) for name in ("params", "x", "y"))
    data = arguments.pop("data", (x, y))
    with exact.as_users_call(), pytest.raises(error, match=message) as caught:
        lk.fit(linear, params, data, **arguments)
    return str(caught.value)


def test_targets_without_the_output_axis():
    message = (
        r"Gaussian: found targets of shape \(7,\) for outputs \(7, 1\), expected the same shape"
    )
    for y in (np.zeros(N), [0.0] * N):  # what reshapes each of them
        assert "np.asarray(y).reshape((7, 1))" in refused(ValueError, message, y=y)


def test_labels_out_of_range_name_the_example_and_the_batch():
    params = {"weight": jnp.ones((3, 2))}
    y, x = np.asarray([0, 1, 0, 1, 2, 0, 1]), np.ones((N, 3), np.float32)
    changes = {"params": params, "likelihood": "categorical"}
    message = r"targets out of range; expected integer labels from 0 to C - 1.*first at example 4 "
    refused(ValueError, message, y=y, **changes)
    message = r"targets out of range.*first at example 1 of batch 1"
    refused(ValueError, message, data=twins.batches(x, y, 3, 3, 1), **changes)


def test_numbers_that_are_not_finite():
    x, bad = np.ones((N, 3), np.float32), np.ones((N, 3), np.float32)
    bad[2, 1] = np.nan
    refused(ValueError, r"inputs that are not finite.*first at example 2.*clean or drop", x=bad)
    y = np.where(np.arange(N) == 5, np.inf, 0.0)[:, None]
    refused(ValueError, r"targets that are not finite.*first at example 5", y=y)
    params = {"weight": jnp.full((3, 1), jnp.nan)}
    refused(
        ValueError, r"3 values that are not finite in the parameters at 'weight'", params=params
    )
    params = {"weight": jnp.full((3, 1), 3e38)}
    refused(ValueError, r"model outputs that are not finite; expected finite", params=params, x=x)


def test_data_that_are_no_data():
    refused(
        ValueError,
        r"empty data \(shapes \(0, 3\), \(0, 1\)\)",
        x=np.ones((0, 3)),
        y=np.ones((0, 1)),
    )
    refused(ValueError, r"empty data: no batch came", data=[])
    one_shot = ((np.ones((2, 3)), np.ones((2, 1))) for _ in range(2))
    refused(TypeError, r"one-shot iterator \(generator\).*wrap it as list\(data\)", data=one_shot)


def test_weights_that_are_not_those_of_examples():
    x, y = np.ones((N, 3), np.float32), np.zeros((N, 1), np.float32)
    message = r"weights of shape \(7, 1\) for 7 examples, expected \(7,\).*\(\(x1, x2\), y\)"
    refused(ValueError, message, data=(x, y, y))
    refused(ValueError, message, weights=y)
    message = r"negative or not finite: first -1\.0 at example 0 \(7 in all\).*weight zero"
    refused(ValueError, message, weights=-np.ones(N))
    refused(ValueError, "weights that are all zero", weights=np.zeros(N))
    refused(
        TypeError, r"weights= next to a stream.*\(x, y, weights\)", data=[(x, y)], weights=[1] * N
    )


def test_labels_that_are_no_numbers():
    names = np.asarray(["cat", "dog", "eel"])[np.arange(N) % 3]
    changes = {"params": {"weight": jnp.ones((3, 3))}, "likelihood": "categorical"}
    for y in (names, names.astype(object), names.tolist()):
        refused(
            TypeError, r"targets of text.*such as cat.*np\.unique\(y, return_inv", y=y, **changes
        )
    _, y = np.unique(names, return_inverse=True)
    assert lk.fit(linear, changes["params"], (np.ones((N, 3)), y), likelihood="categorical")


def test_targets_of_which_some_are_missing():
    y = np.where(np.arange(N) == 5, np.nan, 0.0)[:, None]
    refused(ValueError, r"not finite.*\(y, mask\) for lk\.Masked\(likelihood\).*example 5", y=y)
    data = (np.ones((N, 3), np.float32), (y, np.isfinite(y)))
    params, masked = {"weight": jnp.ones((3, 1))}, lk.Masked(lk.Gaussian())
    la = lk.fit(linear, params, data, likelihood=masked)
    filled = lk.fit(linear, params, (data[0], (np.nan_to_num(y), data[1][1])), likelihood=masked)
    np.testing.assert_array_equal(la.gradient, filled.gradient)
    np.testing.assert_array_equal(la.gradient, np.full(3, 3.0 * (N - 1)))
    assert float(la.log_marginal_likelihood()) == float(filled.log_marginal_likelihood())
    assert la.evaluate(data) == filled.evaluate(data)
    assert la.evaluate(data)["rmse"] == 3.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"structure": "diagnal"},
            r"structure='diagnal', expected one of.*Did you mean 'diagonal'",
        ),
        ({"structure": "kfac"}, r"K-FAC is 'kron', and 'ekfac' the same"),
        ({"structure": "last_layer"}, r"pass subset='last_layer'"),
        ({"likelihood": "classification"}, r"Did you mean 'categorical', for outputs \(N, C\)"),
        ({"curvature": "gnn"}, r"curvature='gnn', expected one of.*Did you mean 'ggn'"),
        ({"likelihood": "gausian"}, r"likelihood='gausian', expected.*Did you mean 'gaussian'"),
        ({"curvature": "mc_fisher"}, r"no key, expected one.*pass key=jax\.random\.key\(0\)"),
        ({"subset": "weights"}, r"subset='weights', expected None, a predicate.*leaves are weight"),
        ({"subset": lambda path: False}, r"no free floating-point parameter.*leaves are weight"),
        ({"subset": {"bias": True}}, r"`subset` has the structure.*whose leaves are weight"),
        ({"prior_precision": 0.0}, r"prior_precision with values from 0 to 0, expected positive"),
        ({"prior_precision": {"weight": -1.0}}, r"values from -1 to -1, expected positive"),
        ({"prior_precision": np.ones(2)}, r"`prior_precision` of shape \(2,\), expected a scalar"),
        ({"prior_mean": {"bias": 0.0}}, r"`prior_mean` with the structure.*leaves are weight"),
        ({"rank": 0}, r"rank=0, expected a whole number of eigenpairs, at least 1"),
        ({"rank": 4, "structure": "low_rank"}, r"rank=4, expected a number from 1 to P=3"),
        ({"structure": lk.LowRank(4)}, r"rank=4, expected a number from 1 to P=3"),
        ({"structure": lk.LowRank(2), "rank": 3}, r"rank=3 with structure=LowRank.*leave the arg"),
        ({"structure": lk.Full("dual"), "curvature": "hessian"}, r"which has no such structure"),
        ({"curvature": lk.GGN(), "num_samples": 2}, r"num_samples=2 with curvature=GGN\(\)"),
        ({"batch_size": 0}, r"batch_size=0, expected a positive number"),
        ({"memory_limit": -1}, r"memory_limit=-1, expected a positive number of bytes"),
        ({"params": {"weight": jnp.ones((3, 1), int)}}, r"no free floating-point parameter"),
    ],
)
def test_options_that_cannot_be_right(changes, message):
    refused(ValueError, message, **changes)


def test_a_misspelt_keyword_is_refused_by_python_itself():
    with pytest.raises(TypeError, match="struture"):
        lk.fit(*twins.problem("mlp").args[:3], likelihood="categorical", struture="full")


def test_a_model_of_single_examples():
    with pytest.raises(ValueError, match=r"expected a leading axis.*lk\.model\.batched\(fn\)"):
        lk.fit(
            lambda params, x: jnp.sum(x * params),
            jnp.ones(3),
            (np.ones((N, 3), np.float32), np.zeros((N, 1), np.float32)),
            likelihood="gaussian",
        )


def test_a_model_of_several_outputs():
    """Refused with the way to choose one, or to join them, whatever is asked for."""
    params = {"kernel": jnp.ones((3, 4)), "mean": jnp.ones((4, 1)), "scale": jnp.ones((4, 1))}
    x, y = np.ones((N, 3), np.float32), np.zeros((N, 1), np.float32)

    def heads(params, x):
        h = jnp.tanh(x @ params["kernel"])
        return h @ params["mean"], -jnp.exp(h @ params["scale"])

    models = {
        "[0]": heads,
        "['mean']": lambda params, x: {"mean": heads(params, x)[0]},
        "[0]['a']": lambda params, x: [{"a": part} for part in heads(params, x)],
    }
    for first, model_fn in models.items():
        for subset in (None, "last_layer"):
            with exact.as_users_call(), pytest.raises(ValueError, match="model outputs") as error:
                lk.fit(model_fn, params, (x, y), likelihood="gaussian", subset=subset)
            assert f"lambda params, x: model_fn(params, x){first}," in str(error.value)
            assert "jnp.concatenate([...], axis=-1)" in str(error.value)
    with exact.as_users_call(), pytest.raises(ValueError, match="outputs None, expected one array"):
        lk.fit(lambda params, x: None, params, (x, y), likelihood="gaussian")

    def joined(params, x):
        return jnp.concatenate(heads(params, x), axis=-1)

    la = lk.fit(joined, params, (x, y), likelihood="heteroscedastic_gaussian", subset="last_layer")
    assert la.card()["parameters"] == "8 of 20, the last layer"


def test_nothing_is_computed_before_the_options_are_checked():
    def untouched(params, x):
        raise AssertionError("the model was called")

    for changes in ({"structure": "diagnal"}, {"rank": 0}, {"prior_precision": -1.0}):
        options = {"likelihood": "gaussian"} | changes
        with exact.as_users_call(), pytest.raises(ValueError, match="Found"):
            lk.fit(untouched, jnp.ones(3), (np.ones((N, 3)), np.ones((N, 1))), **options)
