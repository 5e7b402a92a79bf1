"""Models that mix examples or draw random numbers are refused; sound ones never are."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

import laplace_kit as lk
from laplace_kit.independence import check_independence
from laplace_kit.memory import Limits

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3)).astype(np.float32)
Y = RNG.normal(size=(12, 1)).astype(np.float32)
PARAMS = {
    "kernel": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32),
    "head": jnp.asarray(RNG.normal(size=(4, 1)), jnp.float32),
}
MIXED = "outputs for an example depend on the rest of its batch"


def network(params, x):
    return jnp.tanh(x @ params["kernel"]) @ params["head"]


# --- refused --------------------------------------------------------------------------------------


def normalised(params, x):
    """Normalise by mean and variance of the batch, as BatchNorm does in training."""
    h = x @ params["kernel"]
    h = (h - h.mean(axis=0)) / jnp.sqrt(h.var(axis=0) + 1e-5)
    return jnp.tanh(h) @ params["head"] + 5.0


def centred_a_little(params, x):
    f = network(params, x)
    return f - 0.01 * f.mean(axis=0)


def softmax_over_the_batch(params, x):
    return jax.nn.softmax(network(params, x), axis=0)


def divided_by_the_number(params, x):
    return network(params, x) / len(x)


def with_dropout(params, x):
    h = jnp.tanh(x @ params["kernel"])
    return (h * jax.random.bernoulli(jax.random.key(0), 0.5, h.shape)) @ params["head"]


def undefined_alone(params, x):
    return network(params, x) / jnp.std(x, axis=0, ddof=1)[:1]


@pytest.mark.parametrize(
    "model_fn",
    [
        normalised,
        centred_a_little,
        softmax_over_the_batch,
        divided_by_the_number,
        with_dropout,
        undefined_alone,
    ],
)
def test_models_that_mix_examples(model_fn):
    with pytest.raises(ValueError, match=MIXED) as error:
        check_independence(model_fn, PARAMS, X)
    assert "Put BatchNorm and dropout in evaluation mode" in str(error.value)


def drawn_while_traced(params, x):
    return network(params, x) + np.random.normal()  # noqa: NPY002


def drawn_while_called(params, x):
    def draw():
        return np.float32(np.random.normal())  # noqa: NPY002

    spec = jax.ShapeDtypeStruct((), jnp.float32)
    return network(params, x) + jax.pure_callback(draw, spec, vmap_method="sequential")


@pytest.mark.parametrize("model_fn", [drawn_while_traced, drawn_while_called])
def test_models_that_are_not_deterministic(model_fn):
    with pytest.raises(ValueError, match=r"not deterministic: .*draw random numbers outside of it"):
        check_independence(model_fn, PARAMS, X)


def test_the_numbers_in_the_message_are_those_of_the_model():
    few = X[np.arange(4) * 12 // 4]
    together = np.asarray(normalised(PARAMS, few), np.float64)
    alone = np.full((4, 1), 5.0)  # each less its own mean is zero
    with pytest.raises(ValueError, match=MIXED) as error:
        check_independence(normalised, PARAMS, X)
    assert f"differ by {np.abs(together - alone).max():.3g} from" in str(error.value)
    assert f"as large as {np.abs(together).max():.3g};" in str(error.value)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dense(1)(jnp.tanh(x))


def test_fit_refuses_batch_norm_in_training_mode_however_data_come():
    variables = Linen().init(jax.random.key(0), X, train=False)
    params, statistics = variables["params"], variables["batch_stats"]

    def model_fn(params, x, train=True):
        variables = {"params": params, "batch_stats": statistics}
        return Linen().apply(variables, x, train=train, mutable=["batch_stats"])[0]

    options = {"likelihood": "gaussian", "structure": "diagonal"}
    for data in ((X, Y), twins.batches(X, Y, 5, 5, 2)):
        with pytest.raises(ValueError, match=MIXED):
            lk.fit(model_fn, params, data, **options)
    with pytest.raises(ValueError, match=MIXED):  # features of one example each hide it from a head
        lk.fit(model_fn, params, (X, Y), subset=lambda path: "Dense_1" in path, **options)
    with pytest.raises(ValueError, match=MIXED):
        lk.train_with_evidence(
            model_fn, params, (X, Y), num_epochs=1, key=jax.random.key(0), **options
        )
    evaluated, _ = lk.model.from_linen(Linen(), variables)
    la = lk.fit(evaluated, params, (X, Y), **options)
    np.testing.assert_allclose(
        la.predict(X).f_mean, model_fn(params, X, train=False), rtol=1e-5, atol=1e-6
    )


# --- sound ----------------------------------------------------------------------------------------


def in_half_precision(params, x):
    params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, x))
    h = x @ params["kernel"]
    for _ in range(20):
        h = jnp.tanh(1.5 * h @ params["kernel"].T @ params["kernel"])
    return (h @ params["head"]).astype(jnp.float32)


def with_cancellation(params, x):
    """Its outputs are small differences of large numbers, and rounded accordingly."""
    return (1e5 * x) @ params["kernel"] @ params["head"] - 1e5 * (
        x @ (params["kernel"] @ params["head"])
    )


def with_a_jump(params, x):
    return jnp.round(1e6 * network(params, x)) % 2


def attention(params, x):
    scores = jnp.einsum("ni,nj->nij", x, x)
    return (jax.nn.softmax(scores, axis=-1) @ params["kernel"]).sum(axis=1) @ params["head"]


def unused(params, x):
    return jnp.zeros((len(x), 1))


@pytest.mark.parametrize(
    "model_fn", [network, in_half_precision, with_cancellation, with_a_jump, attention, unused]
)
def test_sound_models_pass(model_fn):
    check_independence(model_fn, PARAMS, X)


def test_wide_layers_in_both_precisions(x64):
    for dtype in ("float32", "float64"):
        kernel = jnp.asarray(np.random.default_rng(1).normal(size=(2000, 300)), dtype)
        x = jnp.asarray(np.random.default_rng(2).normal(size=(5, 2000)), dtype)
        check_independence(lambda w, x: jnp.tanh(x @ w) @ w.T, kernel, x)
        with pytest.raises(ValueError, match=MIXED):
            check_independence(lambda w, x: (x - x.mean(0)) @ w, kernel, x)


def test_inputs_of_any_kind():
    def model_fn(params, x):
        return params["table"][x["tokens"]].sum(axis=1) * x["age"][:, None]

    params = {"table": jnp.asarray(RNG.normal(size=(10, 4)), jnp.float32)}
    x = {"tokens": RNG.integers(0, 10, (7, 5)), "age": np.arange(7, dtype=np.float32)}
    check_independence(model_fn, params, x)
    with pytest.raises(ValueError, match=MIXED):
        check_independence(lambda p, x: model_fn(p, x) + x["age"].max(), params, x)


# --- what cannot, or need not, be compared --------------------------------------------------------


def test_one_example_at_a_time_is_never_mixed():
    check_independence(normalised, PARAMS, X[:1])
    check_independence(normalised, PARAMS, X, Limits(1))
    with pytest.raises(ValueError, match="from those among 2 examples"):
        check_independence(normalised, PARAMS, X, Limits(2))


def test_values_that_are_traced_are_not_looked_at():
    @jax.jit
    def traced(params, x):
        check_independence(normalised, params, x)
        check_independence(normalised, PARAMS, X)
        check_independence(lambda params, x: normalised(params, x) + offset(x), PARAMS, X)
        return x

    def offset(x):
        return x[:, :1]

    np.testing.assert_array_equal(traced(PARAMS, X), X)


def test_a_model_that_closes_over_traced_values_is_not_looked_at():
    @jax.grad
    def slope(scale):
        check_independence(lambda params, x: scale * normalised(params, x), PARAMS, X)
        return scale**2

    assert slope(1.5) == 3.0


def test_one_program_for_all_values_of_one_shape():
    def run(shift):
        moved = jax.tree.map(lambda leaf: leaf + shift, PARAMS)
        check_independence(network, moved, X + np.float32(shift))

    run(0.0)
    with twins.compilations() as programs:
        run(1.0)
    assert [name for name in programs if "add" not in name] == []
