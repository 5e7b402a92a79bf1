"""Predictions over batches against those of all inputs at once."""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit.eval.batches import predict_batches, predict_over, split
from laplace_kit.eval.outputs import from_gaussian, from_samples, with_joint_covariance
from laplace_kit.likelihood import Categorical, Gaussian

X = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
NOISE = Gaussian(jnp.asarray([0.3, 0.7, 0.2]))


@jax.jit
def regression(x):
    options = {"link": "probit", "key": None, "num_samples": 2}
    return from_gaussian(NOISE, jnp.tanh(x), x**2, x[:, :, None] * x[:, None, :], **options)


@jax.jit
def classes(x):
    """Draws that are a row's own, with an `Uncertainty` inside the predictive."""
    return from_samples(Categorical(), x[:, None, :] * jnp.arange(1.0, 6.0)[:, None], True)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: twins.assert_close(a, b, dtype="float32"), found, expected)


class TensorLike:
    """An array-like that NumPy can read and JAX cannot."""

    def __init__(self, values):
        self.values, self.shape = values, values.shape

    def __array__(self, dtype=None, copy=None):
        return self.values


FORMS = {
    "inputs": lambda x, y: x,
    "pairs": lambda x, y: (x, y),
    "lists of one": lambda x, y: [x],
    "tensors": lambda x, y: [TensorLike(x), TensorLike(y)],
    "lists of numbers": lambda x, y: (x.tolist(), y.tolist()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("predict", [regression, classes])
def test_batches_of_any_form_give_what_all_inputs_give(form, predict):
    # The first size is that of the program: a larger batch is cut, a smaller one filled up.
    batches = twins.batches(X, np.arange(11), 4, 1, 6)
    one_shot = (FORMS[form](*batch) for batch in batches)
    assert_same(predict_over(predict, one_shot), predict(X))


def test_a_pytree_of_inputs():
    def predict(x):
        return regression(x["left"] + x["right"])

    x = {"left": X, "right": 2 * X}
    assert_same(predict_over(predict, split(x, 4)), predict(x))


def test_mappings_are_dictionaries():
    def predict(x):
        assert type(x) is type(x["more"]) is dict
        return regression(x["x"] + x["more"]["y"])

    x = collections.UserDict(x=X, more=types.MappingProxyType({"y": np.ones_like(X)}))
    for form in (x, (x, np.arange(11))):
        assert_same(predict_over(predict, [form]), regression(X + 1))
    assert [type(batch) for batch in split(x, 6)] == [dict, dict]


def test_labels_of_a_mapping_are_left_out():
    def predict(x):
        assert set(x) == {"x"}
        return regression(x["x"])

    batch = collections.UserDict(x=X, labels=np.arange(11))
    for form in (batch, dict(batch)):
        assert_same(predict_over(predict, [form]), regression(X))


def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    batches = [torch.tensor(X[:4]), torch.tensor(X[4:], requires_grad=True)]
    assert_same(predict_over(regression, batches), regression(X))
    half = predict_over(regression, [torch.tensor(X).bfloat16()])
    assert_same(half, regression(jnp.asarray(X, jnp.bfloat16)))


def test_one_program_for_all_sizes():
    predict_over(regression, split(X, 4))
    with twins.compilations() as names:
        predict_over(regression, [X[:4], X[4:5], X[5:11], X[:3]])
    assert names == []


def test_lazy_predictions_come_one_at_a_time():
    asked = []

    def batches():
        for low in (0, 4, 8):
            asked.append(low)
            yield X[low : low + 4]

    parts = predict_batches(regression, batches())
    assert asked == []
    first = next(parts)
    assert asked == [0]
    assert_same(first, regression(X[:4]))
    assert [len(part.f_mean) for part in parts] == [4, 3]


def test_split_makes_views():
    parts = split({"x": X}, 5)
    assert [len(part["x"]) for part in parts] == [5, 5, 1]
    assert all(np.shares_memory(part["x"], X) for part in parts)


def test_progress_is_a_bar_on_request(capsys):
    predict_over(regression, split(X, 4))
    assert capsys.readouterr().err == ""
    predict_over(regression, split(X, 4), progress=True)
    shown = capsys.readouterr().err
    assert "predictions:" in shown
    assert "0.00/12.0" in shown  # as if the last of the three batches had four inputs
    assert "examples/s" in shown
    predict_over(regression, (part for part in split(X, 4)), progress=True)  # without a length
    assert "4.00 examples [00:00" in capsys.readouterr().err


def test_what_is_no_stream_of_batches_is_refused():
    for inputs in (X, jnp.asarray(X), (X, np.arange(11)), {"x": X}, collections.UserDict(x=X)):
        with pytest.raises(TypeError, match="inputs in memory"):
            predict_over(regression, inputs)
    with pytest.raises(ValueError, match="no batch"):
        predict_over(regression, [])
    with pytest.raises(ValueError, match="a batch of 4 parts"):
        predict_over(regression, [(X, X, X, X)])
    with pytest.raises(ValueError, match="at least one"):
        predict_over(regression, [X[:0]])
    with pytest.raises(ValueError, match="batch_size=0, expected a whole number of inputs"):
        split(X, 0)


def test_joint_covariances_of_batches_are_refused():
    def predict(x):
        return with_joint_covariance(regression(x), jnp.zeros((len(x), 3, len(x), 3)))

    with pytest.raises(ValueError, match="joint covariances"):
        predict_over(predict, [X[:4], X[4:8]])
    shapes = [part.joint_cov.shape for part in predict_batches(predict, [X[:4], X[4:7]])]
    assert shapes == [(4, 3, 4, 3), (3, 3, 3, 3)]
