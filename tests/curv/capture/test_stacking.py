"""Many layers of one shape as one: the same values, and programs that do not grow with layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree

import laplace_kit as lk
from laplace_kit import curv
from laplace_kit.curv import plan
from laplace_kit.curv.capture import stacking
from laplace_kit.curv.capture.capture import jacobian
from laplace_kit.curv.objective import restrict
from laplace_kit.likelihood import Categorical

NUM = stacking.LAYERS_WORTH_STACKING


def adapted(params, x):
    """Residual layers: a weight with a bias, and a pair of adapters, all in the same order."""
    for layer in params["layers"]:
        x = x + jnp.tanh(x @ layer["w"] + layer["b"] + (x @ layer["down"]) @ layer["up"])
    return x @ params["head"]


def problem(num=NUM, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w": (3, 3), "b": (3,), "down": (3, 2), "up": (2, 3)}
    layers = [{k: 0.4 * rng.normal(size=s) for k, s in shapes.items()} for _ in range(num)]
    params = {"layers": layers, "head": rng.normal(size=(3, 4))}
    params = jax.tree.map(jnp.asarray, params)
    return params, jnp.asarray(rng.normal(size=(7, 3))), jnp.asarray(rng.integers(0, 4, 7))


def layers_of(params, x):
    return restrict(adapted, params, Categorical())[0].planned(x).plan.layers


@pytest.fixture
def one_by_one(monkeypatch):
    """Layers as if there were too few to be one."""
    monkeypatch.setattr(stacking, "LAYERS_WORTH_STACKING", 1000)
    plan._cached_layers.cache_clear()
    plan._make_plan.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    forget()


def forget():
    plan._cached_layers.cache_clear()
    plan._make_plan.cache_clear()
    jax.clear_caches()


def test_layers_of_one_shape_are_one_and_a_head_stays(x64):
    params, x, _ = problem()
    found = layers_of(params, x)
    assert sorted(layer.layout.shape for layer in found.layers) == [
        (1, 3, 4),
        (NUM, 2, 3),
        (NUM, 3, 2),
        (NUM, 4, 3),
    ]
    fewer, x, _ = problem(NUM - 1)
    assert len(layers_of(fewer, x).layers) == 1 + 3 * (NUM - 1)
    named = curv.coverage(adapted, params, x)
    assert named["layers/5/b"].partner == "layers/5/w"
    assert named["layers/5/down"].partner is None


def test_layers_used_at_other_numbers_of_positions_stay_apart(x64):
    def model(params, x):
        for i, w in enumerate(params):
            x = jnp.tanh(x @ w)
            x = x[:, :4] if i == NUM - 1 else x
        return x.sum(axis=1)

    params = [jnp.asarray(np.random.default_rng(i).normal(size=(3, 3))) for i in range(NUM + 2)]
    found = restrict(model, params, Categorical())[0].planned(jnp.ones((2, 8, 3))).plan.layers
    assert [layer.layout.shape[0] for layer in found.layers] == [NUM, 1, 1]


def test_large_layers_stay_apart(x64, monkeypatch):
    monkeypatch.setattr(stacking, "MOST_ENTRIES", 11)
    num = NUM + 1  # which no other test has planned
    params, x, _ = problem(num)
    sizes = [layer.layout.shape[0] for layer in layers_of(params, x).layers]
    assert sorted(sizes) == [1] * (num + 1) + [num, num]


def test_rows_are_the_jacobian(x64):
    params, x, _ = problem()
    flat, unravel = ravel_pytree(params)
    dense = jax.jit(jax.jacobian(lambda t: adapted(unravel(t), x)))(flat)
    _, rows = jax.jit(jacobian)(restrict(adapted, params, Categorical())[0], x)
    twins.assert_close(rows.to_dense(), dense.reshape(len(x), 4, -1))
    twins.assert_close(rows.split().to_dense(), rows.to_dense())
    assert len(rows.split().blocks) == 1 + 3 * NUM


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kron", "ekfac", "full", "diagonal", "low_rank"])
def test_a_posterior_is_that_of_layers_one_by_one(name, one_by_one, x64):
    params, x, y = problem()
    results = []
    precision = jax.tree.map(lambda leaf: 0.5 + leaf.size / 10, params)
    for undo in (False, True):
        if undo:
            one_by_one.undo()
            forget()
        la = lk.fit(adapted, params, (x, y), likelihood="categorical", structure=name)
        la = la.with_prior(precision)
        draws = la.sample(jax.random.key(0), 2) if name == "diagonal" else 0.0
        results.append(
            (la.predict(x).f_cov, la.log_marginal_likelihood(), la.posterior.variance(), draws)
        )
    for found, expected in zip(*map(jax.tree.leaves, results), strict=True):
        twins.assert_close(found, expected, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kron", "full"])
def test_files_with_layers_one_by_one_serve_a_model_in_which_they_are_one(
    name, one_by_one, tmp_path, x64
):
    params, x, y = problem()
    la = lk.fit(adapted, params, (x, y), likelihood="categorical", structure=name)
    expected = la.predict(x).f_cov, la.update((x, y)).predict(x).f_cov
    la.save(tmp_path / "la.npz")
    one_by_one.undo()
    forget()
    again = lk.load(tmp_path / "la.npz", adapted)
    twins.assert_close(again.predict(x).f_cov, expected[0])
    twins.assert_close(again.update((x, y)).predict(x).f_cov, expected[1], rtol=1e-7)
    # And a file of today's.
    now = lk.fit(adapted, params, (x, y), likelihood="categorical", structure=name)
    now.save(tmp_path / "now.npz")
    twins.assert_close(lk.load(tmp_path / "now.npz", adapted).predict(x).f_cov, expected[0])


def test_programs_of_posteriors_do_not_grow_with_the_number_of_layers():
    lengths = []
    for num in (NUM, 3 * NUM):
        params, x, _ = jax.tree.map(jnp.float32, problem(num))
        objective, _ = restrict(adapted, params, Categorical())
        _, rows = jax.eval_shape(jacobian, objective.planned(x), x)
        layouts = rows.layouts
        flat = jax.ShapeDtypeStruct((sum(layout.size for layout in layouts),), "float32")

        def there_and_back(flat, layouts=layouts):
            matrices = [layout.to_matrix(flat) for layout in layouts]
            return curv.capture.layout.to_flat(layouts, matrices)

        lengths.append(len(jax.jit(there_and_back).lower(flat).as_text().splitlines()))
    assert lengths[0] == lengths[1]
