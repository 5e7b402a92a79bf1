"""Transforms of Haiku give a pure function and the parameters that they were given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from adapters import X, Y, is_fitted, is_pure_and_frozen

import laplace_kit as lk
from laplace_kit.model import from_haiku


@pytest.fixture
def hk():
    return pytest.importorskip("haiku")


def normalised(hk):
    """Return a transform with moving averages and dropout, and what it is applied to."""

    def forward(x, is_training):
        x = hk.nets.MLP([4], activate_final=True)(x)
        x = hk.BatchNorm(True, True, 0.5)(x, is_training)
        x = hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x
        return hk.Linear(2)(x)

    transformed = hk.transform_with_state(forward)
    key = jax.random.key(0)
    params, state = transformed.init(key, X, True)
    _, state = transformed.apply(params, state, key, X + 1, True)
    return transformed, params, state


def test_haiku_in_evaluation_mode_with_its_state(hk, tmp_path):
    transformed, params, state = normalised(hk)
    model_fn, same = from_haiku(transformed, params, state)
    assert same is params
    is_pure_and_frozen(model_fn, params, transformed.apply(params, state, None, X, False)[0])
    la = is_fitted(model_fn, params)
    la.save(tmp_path / "la.npz")
    again = lk.load(tmp_path / "la.npz", model_fn)
    np.testing.assert_array_equal(again.predict(X).f_cov, la.predict(X).f_cov)
    head = lk.fit(
        model_fn, params, (X, Y), likelihood="categorical", subset=lk.approx.layers("linear")
    )
    assert head.posterior.size == 4 * 2 + 2


def test_haiku_with_other_values_reuses_every_program(hk):
    transformed, params, state = normalised(hk)

    def run(params):
        la = lk.fit(*from_haiku(transformed, params, state), (X, Y), likelihood="categorical",
                    structure="diagonal")  # fmt: skip
        return la.predict(X).probs

    first = run(params)
    moved = jax.tree.map(lambda leaf: np.asarray(leaf) * np.float32(1.5), params)
    with twins.compilations() as programs:
        second = run(jax.device_put(moved))
    assert programs == []
    assert not np.allclose(first, second)


@pytest.mark.parametrize("has_key", [True, False])
@pytest.mark.parametrize("has_state", [True, False])
def test_haiku_transforms_of_every_signature(hk, has_key, has_state):
    def forward(x):
        return hk.Linear(2)(x)

    transformed = (hk.transform_with_state if has_state else hk.transform)(forward)
    transformed = transformed if has_key else hk.without_apply_rng(transformed)
    made = transformed.init(jax.random.key(0), X)
    model_fn, params = from_haiku(transformed, *(made if has_state else (made,)))
    expected = X @ np.asarray(params["linear"]["w"]) + np.asarray(params["linear"]["b"])
    np.testing.assert_allclose(model_fn(params, X), expected, rtol=1e-5)


def test_haiku_arguments_replace_those_of_evaluation(hk):
    transformed = hk.transform(lambda x, scale, is_training: scale * hk.Linear(2)(x) + is_training)
    params = transformed.init(jax.random.key(0), X, 1.0, False)
    model_fn, _ = from_haiku(transformed, params, arguments={"scale": 3.0, "is_training": True})
    expected = transformed.apply(params, None, X, 3.0, True)
    np.testing.assert_array_equal(model_fn(params, X), expected)


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["kron", "full"])
def test_haiku_attention_is_fitted_tuned_and_predicts(hk, structure):
    def forward(x):
        attend = hk.MultiHeadAttention(2, 3, w_init=hk.initializers.VarianceScaling(), name="att")
        return hk.Linear(2)(attend(x, x, x).mean(axis=1))

    x = np.random.default_rng(1).normal(size=(6, 5, 4)).astype(np.float32)
    transformed = hk.transform(forward)
    params = transformed.init(jax.random.key(0), x)
    model_fn, params = from_haiku(transformed, params)
    la = lk.fit(model_fn, params, (x, Y), likelihood="categorical", structure=structure)
    predictive = la.tune().predict(x)
    np.testing.assert_allclose(predictive.f_mean, transformed.apply(params, None, x), rtol=1e-4)
    assert jnp.all(predictive.f_var > 0)


def test_haiku_refuses_what_is_no_transform_or_lacks_its_state(hk):
    transformed, params, state = normalised(hk)
    with pytest.raises(TypeError, match=r"Found function, expected a haiku\.Transformed"):
        from_haiku(transformed.apply, params)
    with pytest.raises(TypeError, match=r"no state for a haiku\.TransformedWithState; pass from_h"):
        from_haiku(transformed, params)
    plain = hk.transform(lambda x: hk.Linear(2)(x))
    with pytest.raises(TypeError, match=r"a state for a haiku\.Transformed; pass no state"):
        from_haiku(plain, plain.init(jax.random.key(0), X), state)
