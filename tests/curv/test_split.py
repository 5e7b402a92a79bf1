"""Models cut where free parameters enter: features once, and a head that is the same model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from architectures import NUM, ZOO, gaussian

import laplace_kit as lk
from laplace_kit import tree
from laplace_kit.approx.subset import last_layer
from laplace_kit.curv.ggn import GGNOperator
from laplace_kit.curv.kronecker import kronecker_factors
from laplace_kit.curv.objective import chunk_loss, restrict
from laplace_kit.curv.split import split, with_features
from laplace_kit.data import Chunk, as_data
from laplace_kit.likelihood import Categorical, Gaussian
from laplace_kit.selection import Named

# The subset, and the shapes of one example's features, without axes of one.
LAST = {
    "contractions": [(2, 3), (3,)],
    "nnx_convnet": [(4, 2, 3)],
    "nnx_residual": [(4,)],
    "linen_module": [(3, 4)],
    "equinox_module": [(6,)],
}
MIDDLE = {
    "mlp": (("gain",), [(4,)]),
    "two_inputs": (("members/kernel",), [(2, 2), (3,)]),
    "lookups": (("deep", "shift"), [(2, 3), (3,), (3, 2), (3, 2), (3, 2)]),
    "stacks": (("convolved",), [(2,), (2,), (3,)]),
    "nnx_transformer": (("query", "out"), [(4, 2, 2), (4, 2, 2), (4, 4), (4, 4)]),
}


def restricted(name, subset):
    model = ZOO[name]()
    if subset is None:
        subset = last_layer(model.model_fn, model.params, model.x)
    return restrict(model.model_fn, model.params, Gaussian(0.5), subset)[0], model.x


@jax.jit
def outputs_and_gradient(objective, data):
    chunk = Chunk(data.x, data.y, jnp.ones(NUM))
    return objective.outputs(data.x), jax.grad(chunk_loss, 1)(objective, objective.params, chunk)


@jax.jit
def curvature(objective, data):
    """Return GGN diagonal and K-FAC factors."""
    ggn = GGNOperator(objective.model_fn, objective.params, data, objective.likelihood)
    return ggn.diagonal(), [(f.inputs, f.gradients) for f in kronecker_factors(ggn)]


def assert_same(objective, x, shapes, *functions):
    """Compare functions of a model and of its head on features with given shapes."""
    outputs = objective.planned(x).plan.outputs(x)
    data = as_data((x, gaussian(7)(*outputs.shape)))
    head, features = with_features(objective.planned(data.x).within(2), data)
    found = [tuple(n for n in phi.shape[1:] if n > 1) for phi in features.x]
    assert sorted(found) == shapes
    left, right = (
        [fn(*args) for fn in functions] for args in ((objective, data), (head, features))
    )
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        scale = max(np.abs(one).max(), 1.0)
        np.testing.assert_allclose(other / scale, one / scale, rtol=0, atol=1e-12)
    layers, of_head = objective.planned(x).plan.layers, head.planned(features.x).plan.layers
    assert [layer.layout for layer in layers.layers] == [layer.layout for layer in of_head.layers]
    assert layers.leaves == of_head.leaves


@pytest.mark.parametrize("name", LAST)
def test_the_last_layer_on_features_is_the_model(name, x64):
    functions = (outputs_and_gradient, curvature)[: 1 + (name == "nnx_convnet")]
    assert_same(*restricted(name, None), LAST[name], *functions)


@pytest.mark.slow
@pytest.mark.parametrize("name", MIDDLE)
def test_layers_in_the_middle_on_features_are_the_model(name, x64):
    names, shapes = MIDDLE[name]
    functions = (outputs_and_gradient, curvature)[: 1 + (name == "two_inputs")]
    assert_same(*restricted(name, Named(names)), shapes, *functions)


def test_entries_of_a_leaf_on_features_are_the_model(x64):
    objective, x = restricted("mlp", np.asarray([5, 21, 30]))
    assert_same(objective, x, [(4,)], outputs_and_gradient, curvature)


# --- what is cached -----------------------------------------------------------------------------


def test_nothing_that_no_input_enters_is_repeated_for_examples(x64):
    objective, x = restricted("low_rank_adapters", Named(("merged_a",)))
    features, head = split(objective.model_fn, objective.params, x)
    assert [phi.shape for phi in features(x)] == [(NUM, 1, 4)]
    assert sorted(leaf.shape for leaf in jax.tree.leaves(head)) == [(1, 3), (4, 3)]


def test_what_frozen_arrays_alone_determine_is_computed_once(x64):
    def model_fn(params, x):
        merged = jnp.sin(params["a"] @ params["b"])
        return jnp.tanh(x @ params["w"]) @ merged

    normal = gaussian(0)
    params = {"a": normal(4, 2), "b": normal(2, 3), "w": normal(5, 4)}
    objective, _ = restrict(model_fn, params, Gaussian(), Named(("w",)))
    _, head = split(objective.model_fn, objective.params, normal(NUM, 5))
    (merged,) = jax.tree.leaves(head)
    np.testing.assert_allclose(merged, np.sin(params["a"] @ params["b"]), rtol=1e-12)


def test_features_are_inputs_where_the_first_layer_is_free(x64):
    objective, x = restricted("mlp", Named(("w1",)))
    features, _ = split(objective.model_fn, objective.params, x)
    np.testing.assert_array_equal(np.squeeze(features(x)[0]), x)
    data = as_data((x, x))
    objective = objective.planned(x)
    assert with_features(objective, data) == (objective, data)


def test_streams_and_features_beyond_the_memory_limit_are_left_alone(x64):
    objective, x = restricted("mlp", Named(("w2",)))
    pair = (x, gaussian(7)(NUM, 3))
    for data, limit in ((as_data([pair]), None), (as_data(pair), NUM * 4 * 8 - 1)):
        planned = objective.planned(x)
        assert with_features(planned.within(2, limit), data)[1] is data
    assert with_features(planned.within(2, NUM * 4 * 8), data)[1] is not data


def test_a_model_that_ignores_its_free_parameters_or_its_inputs(x64):
    def constant(params, x):
        return jnp.zeros((len(x), 2)) + params["b"]

    def ignorant(params, x):
        return x @ params["w"]

    normal = gaussian(0)
    params, x = {"b": normal(2), "w": normal(3, 2)}, normal(NUM, 3)
    for model_fn in (constant, ignorant):
        objective, _ = restrict(model_fn, params, Gaussian(), Named(("b",)))
        features, head = split(objective.model_fn, objective.params, x)
        twins.assert_close(head(objective.params, features(x)), model_fn(params, x))


# --- programs -----------------------------------------------------------------------------------


def test_new_values_of_the_same_shapes_compile_nothing(x64):
    apply = jax.jit(lambda features, head, free, x: head(free, features(x)))

    model = ZOO["two_inputs"]()
    objective, _ = restrict(model.model_fn, model.params, Gaussian(), Named(("members/w",)))
    outputs = []
    for scale in (1.0, 1.5):
        free, frozen, x = jax.tree.map(
            lambda leaf: leaf * scale,  # noqa: B023
            (objective.params, objective.model_fn, model.x),
        )
        parts = split(frozen, free, x)
        with twins.compilations() as names:
            outputs.append(jax.block_until_ready(apply(*parts, free, x)))
        twins.assert_close(outputs[-1], frozen(free, x))
    assert names == []


def test_no_array_is_a_constant_of_the_programs(x64):
    objective, x = restricted("calls", Named(("doubled",)))
    features, head = split(objective.model_fn, objective.params, x)
    phi = features(x)
    program = jax.jit(lambda head, free, phi: head(free, phi)).lower(head, objective.params, phi)
    assert twins.constants(program.as_text()) == []


def test_splitting_works_while_tracing_and_is_differentiable_in_frozen_arrays(x64):
    def model_fn(params, x):
        return jnp.tanh(x @ params["trunk"]) @ params["head"]

    normal = gaussian(0)
    params, x = {"trunk": normal(3, 4), "head": normal(4, 2)}, normal(NUM, 3)

    def total(params, cut):
        objective, _ = restrict(model_fn, params, Gaussian(), Named(("head",)))
        if not cut:
            return jnp.sum(objective.outputs(x) ** 2)
        features, head = split(objective.model_fn, objective.params, x)
        return jnp.sum(head(objective.params, features(x)) ** 2)

    found, expected = (jax.jit(jax.grad(total), static_argnums=1)(params, cut) for cut in (1, 0))
    twins.assert_close(tree.ravel(found), tree.ravel(expected))


# --- features that are not finite -----------------------------------------------------------------

TOKENS = {
    "tokens": np.linspace(-1, 1, NUM * 4 * 2).reshape(NUM, 4, 2),
    "mask": np.arange(NUM * 4).reshape(NUM, 4) % 4 != 2,
}


def attention(params, x):
    """Attend to what a mask leaves; the scores' offset is frozen, and minus infinity elsewhere."""
    values = jnp.tanh(x["tokens"] @ params["embedding"])
    offset = jnp.where(x["mask"], params["slope"] * jnp.arange(4.0), -jnp.inf)
    weights = jax.nn.softmax(values @ params["query"] + offset, axis=1)
    return jnp.einsum("nt,ntd->nd", weights, values) @ params["head"]


def attention_params():
    rng = np.random.default_rng(0)
    shapes = {"embedding": (2, 3), "slope": (), "query": (3,), "head": (3, 2)}
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def free(path):
    return path in ("query", "head")


@pytest.mark.parametrize("structure", ["full", "kron", "diagonal"])
def test_a_mask_of_minus_infinity_is_no_fault(structure, x64):
    params, data = attention_params(), (TOKENS, np.arange(NUM) % 2)
    objective, _ = restrict(attention, params, Categorical(), free)
    _, features = with_features(objective.planned(data[0]), as_data(data))
    assert features.has_features
    assert any(np.isneginf(leaf).any() for leaf in features.x)
    options = {"likelihood": "categorical", "structure": structure, "subset": free}
    cached = lk.fit(attention, params, data, **options)
    streamed = lk.fit(attention, params, [data], **options)  # of which nothing is cached
    twins.assert_close(cached.log_likelihood, streamed.log_likelihood)
    twins.assert_close(cached.log_marginal_likelihood(), streamed.log_marginal_likelihood())
    twins.assert_close(cached.predict(TOKENS).f_cov, streamed.predict(TOKENS).f_cov)


def test_labels_are_drawn_for_the_examples_that_features_were_made_of(x64):
    """So that the Monte Carlo Fisher matrix is the same with features and without."""
    options = {"likelihood": "categorical", "structure": "full", "subset": free}
    options |= {"curvature": "mc_fisher", "key": jax.random.key(0)}
    params, data = attention_params(), (TOKENS, np.arange(NUM) % 2)
    cached, streamed = (lk.fit(attention, params, of, **options) for of in (data, [data]))
    twins.assert_close(cached.structure.matrix, streamed.structure.matrix)


def fit_bounded(tokens, fn):
    def model_fn(params, x):
        return attention(params, {"tokens": fn(x["tokens"]), "mask": x["mask"]})

    data = {**TOKENS, "tokens": tokens}, np.arange(NUM) % 2
    return lk.fit(model_fn, attention_params(), data, likelihood="categorical", subset=free)


def test_inputs_are_the_user_s_and_finite_also_where_features_hide_it():
    tokens = TOKENS["tokens"].astype(np.float32)
    tokens[1, 2, 0] = np.inf
    with pytest.raises(
        ValueError, match=r"inputs that are not finite; expected.*first at example 1"
    ):
        fit_bounded(tokens, jnp.tanh)


def test_features_are_no_nan():
    tokens = TOKENS["tokens"].astype(np.float32)
    tokens[1, 2, 0] = 0
    with pytest.raises(ValueError, match=r"features that are NaN.*frozen.*first at example 1 "):
        fit_bounded(tokens, lambda x: x / x)
