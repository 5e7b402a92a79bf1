"""Statistics of layers against the blocks of the dense matrix, and flax modules in one line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree

import laplace_kit as lk
from laplace_kit.curv.finite_difference import finite_difference_hvp
from laplace_kit.curv.statistics import LayerStatistics, layer_statistics

KEY = jax.random.key(0)
# In flat order: the hidden layer's bias and kernel, then those of the outputs.
LAYERS = {"hidden/0/kernel": slice(0, 16), "out/kernel": slice(16, 31)}
LEAVES = {
    "hidden/0/bias": slice(0, 4),
    "hidden/0/kernel": slice(4, 16),
    "out/bias": slice(16, 19),
    "out/kernel": slice(19, 31),
}


def assert_describes(found, blocks, matrix, rtol=1e-10):
    parts = [matrix[rows, rows] for rows in blocks.values()]
    assert found.names == tuple(blocks)
    assert found.num_parameters == tuple(map(len, parts))
    twins.assert_close(found.trace, [np.trace(part) for part in parts], rtol=rtol)
    twins.assert_close(found.mean_diagonal, [np.diag(part).mean() for part in parts], rtol=rtol)
    largest = [np.linalg.eigvalsh(part)[-1] for part in parts]
    twins.assert_close(found.largest_eigenvalue, largest, rtol=rtol)
    assert (found.residual <= rtol * max(largest)).all()


@pytest.mark.parametrize(
    ("operator", "definition"),
    [(lk.curv.GGNOperator, twins.ggn), (lk.curv.HessianOperator, twins.hessian)],
)
def test_statistics_are_those_of_the_dense_blocks(operator, definition, x64):
    problem = twins.problem("mlp", "float64")
    matrix = twins.dense(definition, "mlp")
    op = operator(*problem.args)
    assert_describes(layer_statistics(op, key=KEY), LAYERS, matrix)
    assert_describes(layer_statistics(op, key=KEY, by="leaf"), LEAVES, matrix)


@pytest.mark.slow
def test_over_a_stream_and_in_groups_by_name(x64):
    problem = twins.problem("mlp", "float64")
    data = twins.batches(problem.x, problem.y, 4, 3)
    op = lk.curv.GGNOperator(problem.model_fn, problem.params, data, problem.likelihood)
    found = layer_statistics(op, key=KEY, by={"body": "hidden", "head": "out"})
    blocks = dict(zip(("body", "head"), LAYERS.values(), strict=True))
    assert_describes(found, blocks, twins.dense(twins.ggn, "mlp"))


def test_single_precision():
    problem = twins.problem("mlp", "float32")
    found = layer_statistics(lk.curv.GGNOperator(*problem.args), key=KEY)
    assert_describes(found, LAYERS, twins.dense(twins.ggn, "mlp"), rtol=1e-4)


def test_of_what_is_composed(x64):
    op = 2.0 * lk.curv.GGNOperator(*twins.problem("mlp", "float64").args) + 0.5
    matrix = 2 * twins.dense(twins.ggn, "mlp") + 0.5 * np.eye(31)
    assert_describes(layer_statistics(op, key=KEY), LAYERS, matrix)


def test_few_steps_say_how_far_they_came(x64):
    problem = twins.problem("mlp", "float64")
    op = lk.curv.GGNOperator(*problem.args)
    found = layer_statistics(op, key=KEY, num_steps=4, memory_limit=1)  # a block at a time
    matrix = twins.dense(twins.ggn, "mlp")
    for rows, value, residual in zip(
        LAYERS.values(), found.largest_eigenvalue, found.residual, strict=True
    ):
        values = np.linalg.eigvalsh(matrix[rows, rows])
        assert 0 < residual < 0.2 * values[-1]
        assert value < values[-1]
        assert np.abs(values - value).min() <= residual


def test_a_known_diagonal_is_not_computed_and_nothing_compiles_twice(x64):
    problem = twins.problem("mlp", "float64")
    diagonal = np.arange(31.0)
    layer_statistics(lk.curv.HessianOperator(*problem.args), key=KEY, diagonal=diagonal)
    moved = jax.tree.map(lambda leaf: leaf + 0.1, problem.params)
    op = lk.curv.HessianOperator(
        problem.model_fn, moved, (problem.x, problem.y), problem.likelihood
    )
    key = jax.random.key(1)
    with twins.compilations() as compiled:
        found = layer_statistics(op, key=key, diagonal=diagonal)
    assert compiled == []
    twins.assert_close(found.trace, [diagonal[:16].sum(), diagonal[16:].sum()])


def test_zero_curvature_has_zero_eigenvalues():
    data = jnp.zeros((3, 2)), jnp.zeros((3, 2))
    op = lk.curv.GGNOperator(
        lambda params, x: x @ params["w"], {"w": jnp.ones((2, 2))}, data, "gaussian"
    )
    found = layer_statistics(op, key=KEY)
    np.testing.assert_array_equal([found.trace, found.largest_eigenvalue, found.residual], 0)


def test_the_table_is_markdown_with_aligned_columns():
    found = LayerStatistics(
        ("body", "out/kernel"),
        (12_000, 4),
        jnp.asarray([24.0, 8]),
        jnp.asarray([0.5, 3e-5]),
        jnp.zeros(2),
    )
    assert str(found).splitlines() == [
        "| layer      | parameters | trace | mean diagonal | largest eigenvalue | residual |",
        "| ---------- | ---------: | ----: | ------------: | -----------------: | -------: |",
        "| body       |     12,000 |    24 |         0.002 |                0.5 |        0 |",
        "| out/kernel |          4 |     8 |             2 |              3e-05 |        0 |",
    ]
    columns = found.to_dict()
    assert columns["layer"] == ["body", "out/kernel"]
    assert columns["parameters"] == [12_000, 4]
    assert columns["mean diagonal"] == pytest.approx([0.002, 2.0])


def test_wrong_arguments_are_refused():
    op = lk.curv.GGNOperator(*twins.problem("mlp").args)
    with pytest.raises(ValueError, match="Found num_steps=0, expected a whole number of products"):
        layer_statistics(op, key=KEY, num_steps=0)
    with pytest.raises(ValueError, match=r"Found a diagonal of shape \(30,\), expected \(31,\)"):
        layer_statistics(op, key=KEY, diagonal=np.ones(30))


# --- from a flax module and a loss to curvature ---------------------------------------------------


def squared_error(f, y):
    return jnp.sum((f - y) ** 2)


@functools.cache
def nnx_module():
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self):
            self.hidden = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
            self.out = nnx.Linear(3, 1, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.out(jnp.tanh(self.hidden(x)))

    return Network()


def from_nnx():
    return lk.model.from_nnx(nnx_module())


def from_linen():
    from flax import linen

    module = linen.Sequential([linen.Dense(3), jnp.tanh, linen.Dense(1)])
    return lk.model.from_linen(module, module.init(KEY, jnp.ones((1, 2))))


@pytest.mark.slow
@pytest.mark.parametrize("from_module", [from_nnx, from_linen])
def test_a_flax_module_and_a_loss_have_curvature_in_one_line(from_module):
    rng = np.random.default_rng(0)
    x, y, v = (jnp.asarray(rng.normal(size=s), "float32") for s in ((6, 2), (6, 1), 13))
    model, data = from_module(), (x, y)

    hessian = lk.curv.HessianOperator(*model, data, lk.FromLoss(squared_error))
    ggn = lk.curv.GGNOperator(*model, data, squared_error)

    flat, unravel = ravel_pytree(model[1])

    def outputs(theta):
        return model[0](unravel(theta), x)

    def loss(theta):
        return squared_error(outputs(theta), y)

    @jax.jit
    def found_and_expected(hessian, ggn):
        found = hessian @ v, hessian.diagonal(), ggn @ v, ggn.trace()
        dense, rows = jax.hessian(loss)(flat), jax.jacobian(outputs)(flat)[:, 0]
        gauss_newton = 2 * rows.T @ rows
        expected = dense @ v, jnp.diag(dense), gauss_newton @ v, jnp.trace(gauss_newton)
        return found, expected, finite_difference_hvp(loss, flat, v)

    found, expected, difference = found_and_expected(hessian, ggn)
    for part, its_definition in zip(found, expected, strict=True):
        twins.assert_close(part, its_definition, dtype="float32")
    twins.assert_close(difference, expected[0], dtype="float32")
    statistics = layer_statistics(ggn, key=KEY)
    assert statistics.num_parameters == (9, 4)
    twins.assert_close(statistics.trace.sum(), expected[-1], dtype="float32")
