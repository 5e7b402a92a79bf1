"""Keras models give a pure function and their trainable variables, and stay as they were."""

import os
import sys

import jax
import numpy as np
import pytest
import twins
from adapters import X, Y, is_fitted, is_pure_and_frozen

import laplace_kit as lk
from laplace_kit.model import from_keras

RNG = np.random.default_rng(1)
IMAGES = RNG.normal(size=(6, 6, 6, 2)).astype(np.float32)
SEQUENCES = RNG.normal(size=(6, 5, 4)).astype(np.float32)


@pytest.fixture
def keras():
    """Keras on JAX, which numbers layers from the start."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    return keras


def normalised(keras):
    """Return a network with moving averages, which have moved, and random states."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, activation="tanh"),
            layers.BatchNormalization(momentum=0.5),
            layers.Dropout(0.5),
            layers.Dense(2),
        ]
    )
    model(X + 1, training=True)
    return model


def convolution(keras):
    layers = keras.layers
    parts = [layers.Conv2D(3, 3, activation="relu"), layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((6, 6, 2)), *parts, layers.Dense(2)])


def recurrent(keras):
    return keras.Sequential([keras.Input((5, 4)), keras.layers.LSTM(3), keras.layers.Dense(2)])


def attention(keras):
    layers = keras.layers
    x = keras.Input((5, 4))
    h = layers.MultiHeadAttention(2, 3)(x, x)
    h = layers.EinsumDense("abc,cd->abd", output_shape=(None, 3), bias_axes="d")(h)
    return keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling1D()(h)))


def subclassed(keras):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden = keras.layers.Dense(4, activation="gelu")
            self.dropout = keras.layers.Dropout(0.5)
            self.head = keras.layers.Dense(2)

        def call(self, x):  # without an argument for the mode
            return self.head(self.dropout(self.hidden(x)))

    model = Net()
    model(X)
    return model


MODELS = [
    (normalised, X),
    (convolution, IMAGES),
    (recurrent, SEQUENCES),
    (attention, SEQUENCES),
    (subclassed, X),
]


@pytest.mark.parametrize(("build", "x"), MODELS)
def test_keras_outputs_in_inference_mode(keras, build, x):
    model = build(keras)
    before = [np.asarray(variable.value) for variable in model.variables]
    expected = model(x, training=False)
    model_fn, params = from_keras(model)
    for call in (model_fn, jax.jit(lambda params, x: model_fn(params, x))):
        np.testing.assert_allclose(call(params, x), expected, rtol=1e-5, atol=1e-6)
    assert len(jax.tree.leaves(params)) == len(model.trainable_variables)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.value, value)


def test_keras_has_no_array_as_a_constant(keras):
    model = normalised(keras)
    model_fn, params = from_keras(model)
    is_pure_and_frozen(model_fn, params, model(X, training=False))


def test_keras_parameters_are_the_trainable_variables_by_path(keras):
    model = normalised(keras)
    model.layers[0].trainable = False
    model_fn, params = from_keras(model)
    assert lk.tree.paths(params) == (
        "batch_normalization/beta",
        "batch_normalization/gamma",
        "dense_1/bias",
        "dense_1/kernel",
    )
    np.testing.assert_array_equal(params["dense_1"]["kernel"], model.layers[-1].kernel.value)
    np.testing.assert_allclose(model_fn(params, X), model(X, training=False), atol=1e-6)


def test_keras_is_fitted_saved_and_loaded_with_the_model_built_again(keras, tmp_path):
    model_fn, params = from_keras(normalised(keras))
    la = is_fitted(model_fn, params)
    la.save(tmp_path / "la.npz")
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    again, _ = from_keras(normalised(keras))
    loaded = lk.load(tmp_path / "la.npz", again)
    np.testing.assert_allclose(loaded.predict(X).f_cov, la.predict(X).f_cov, rtol=1e-4)


def test_keras_names_parameters_of_another_numbering(keras):
    _, params = from_keras(normalised(keras))
    model_fn, _ = from_keras(normalised(keras))  # layers dense_2, dense_3
    with pytest.raises(TypeError, match=r"paths \['batch_norm.*expected .*dense_2.*clear_session"):
        model_fn(params, X)


def test_keras_model_trained_further_reuses_every_program(keras):
    model = normalised(keras)

    def run():
        la = lk.fit(*from_keras(model), (X, Y), likelihood="categorical", structure="diagonal")
        return la.predict(X).probs

    first = run()
    for variable in model.variables[:-2]:
        if "float" in variable.dtype:
            variable.assign(variable.value * 1.5)
    with twins.compilations() as programs:
        second = run()
    assert programs == []
    assert not np.allclose(first, second)


@pytest.mark.slow
@pytest.mark.parametrize(("build", "x"), MODELS)
@pytest.mark.parametrize("structure", ["kron", "ekfac", "diagonal"])
def test_keras_models_are_fitted_tuned_and_predict(keras, build, x, structure):
    model_fn, params = from_keras(build(keras))
    la = lk.fit(model_fn, params, (x, Y), likelihood="categorical", structure=structure)
    dense = lk.fit(model_fn, params, (x, Y), likelihood="categorical", structure="full")
    twins.assert_close(la.log_likelihood, dense.log_likelihood, dtype="float32")
    probs = la.tune().predict(x).probs
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-5)
    if structure == "diagonal":
        diagonal = np.diagonal(np.asarray(dense.structure.matrix))
        twins.assert_close(1 / la.posterior.variance() - 1, diagonal, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("build", "x"), MODELS)
def test_keras_last_layer_is_found(keras, build, x):
    model = build(keras)
    model_fn, params = from_keras(model)
    la = lk.fit(
        model_fn, params, (x, Y), likelihood="categorical", subset="last_layer", structure="full"
    )
    assert la.posterior.size == model.layers[-1].count_params()
    assert la.predict(x).probs.shape == (6, 2)


def test_keras_refuses_another_backend(keras, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    with pytest.raises(ValueError, match=r"backend 'tensorflow', expected 'jax'.*KERAS_BACKEND"):
        from_keras(normalised(keras))


@pytest.mark.parametrize(
    ("end", "layer"),
    [
        (lambda keras: keras.layers.Dense(2, activation="softmax"), "dense"),
        (lambda keras: keras.layers.Softmax(), "softmax"),
        (lambda keras: keras.layers.Activation("log_softmax"), "activation"),
        (lambda keras: keras.Sequential([keras.layers.Dense(2, activation="softmax")]), "dense"),
        (lambda keras: keras.layers.Dense(1, activation="sigmoid"), "dense"),
    ],
)
@pytest.mark.parametrize("is_functional", [False, True])
def test_keras_refuses_probabilities(keras, end, layer, is_functional):
    x, last = keras.Input((3,)), end(keras)
    model = keras.Model(x, last(x)) if is_functional else keras.Sequential([x, last])
    model(X)
    with pytest.raises(
        ValueError, match=rf"(softmax|sigmoid), by the layer '{layer}', expected logits"
    ):
        from_keras(model)


def test_keras_activation_is_taken_away_after_training(keras):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])
    probs = model(X)
    model.get_layer("dense").activation = keras.activations.linear
    model_fn, params = from_keras(model)
    np.testing.assert_allclose(jax.nn.softmax(model_fn(params, X)), probs, rtol=1e-5)


def test_keras_refuses_models_without_weights_or_names(keras):
    dense = keras.layers.Dense
    with pytest.raises(ValueError, match=r"Sequential without weights.*model\(x\[:1\]\)"):
        from_keras(keras.Sequential([dense(2)]))
    frozen = normalised(keras)
    frozen.trainable = False
    with pytest.raises(ValueError, match=r"no trainable variable in the Sequential"):
        from_keras(frozen)

    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = dense(3, name="same"), dense(2, name="same")

        def call(self, x, training=False):
            return self.two(self.one(x))

    model = Twice()
    model(X)
    with pytest.raises(ValueError, match=r"paths \['same/bias', 'same/kernel'\].*name='head'"):
        from_keras(model)


def test_keras_refuses_other_models(monkeypatch):
    with pytest.raises(TypeError, match=r"Found function, expected a keras\.Model"):
        from_keras(lambda x: x)
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    with pytest.raises(TypeError, match=r"Found dict, expected a keras\.Model"):
        from_keras({})


@pytest.mark.slow
def test_keras_trains_on_without_taking_the_arrays_away(keras):
    model = normalised(keras)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model_fn, params = from_keras(model)
    expected = np.asarray(model_fn(params, X))
    model.fit(X, Y, epochs=1, verbose=0)  # donates the arrays of the variables
    model.predict(X, verbose=0)
    np.testing.assert_array_equal(model_fn(params, X), expected)
