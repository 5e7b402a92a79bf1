"""What all operators share: vectors, data, transformations, programs, memory, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit import curv, memory
from laplace_kit.data import InMemory, as_data
from laplace_kit.tree import paths

KEY = jax.random.key(0)
KINDS = {
    "ggn": curv.GGNOperator,
    "hessian": curv.HessianOperator,
    "empirical": curv.EmpiricalFisherOperator,
    "monte_carlo": jax.tree_util.Partial(curv.MonteCarloFisherOperator, key=KEY),
}
kinds = pytest.mark.parametrize("kind", KINDS)
# One of each family, where the others differ in nothing that is tested.
families = pytest.mark.parametrize("kind", ["ggn", "hessian"])
deterministic = pytest.mark.parametrize("kind", ["ggn", "hessian", "empirical"])


def small(kind: str, **options):
    return KINDS[kind](*twins.problem("mlp", "float64").args, **options)


def apply(operator, v):
    return operator @ v


# --- vectors ------------------------------------------------------------------------------------


@families
def test_answers_come_in_the_form_of_the_question(kind, x64):
    problem = twins.problem("with_integers", "float64")
    operator = KINDS[kind](*problem.args)
    vs = problem.vectors(3)
    trees = [{**problem.params, "kernel": v[:6].reshape(2, 3), "power": v[6]} for v in vs]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    flat, several = operator @ vs[0], operator.matmat(vs)
    found, found_several = operator.mv(trees[0]), operator.matmat(stacked)
    twins.assert_close(several[0], flat)
    for tree, expected in ((found, flat), (found_several, several)):
        assert tree.keys() == problem.params.keys()
        assert tree["columns"].dtype == problem.params["columns"].dtype
        kernel = tree["kernel"].reshape(*expected.shape[:-1], 6)
        twins.assert_close(jnp.concatenate([kernel, tree["power"][..., None]], -1), expected)
        np.testing.assert_array_equal(tree["columns"], 0)
        np.testing.assert_array_equal(tree["step"], 0)


def test_numpy_vectors_are_vectors(x64):
    operator = small("ggn")
    v = np.linspace(-1, 1, operator.shape[0])
    twins.assert_close(operator @ v, twins.dense(twins.ggn, "mlp") @ v)


@pytest.mark.parametrize("v", [np.ones(5), np.ones((31, 1)), {"hidden": np.ones(3)}, [1.0] * 31])
def test_wrong_vectors_are_named(v):
    operator = curv.GGNOperator(*twins.problem("mlp").args)
    expected = r"Found as vector .* expected a flat array of shape \(31,\) or a pytree like"
    with pytest.raises(ValueError, match=expected):
        operator.mv(v)


@pytest.mark.parametrize("vs", [np.ones(31), np.ones((2, 30)), {}, 1.0])
def test_wrong_sets_of_vectors_are_named(vs):
    operator = curv.GGNOperator(*twins.problem("mlp").args)
    with pytest.raises(ValueError, match=r"Found as vector .*op\.matmat with a leading axis K"):
        operator.matmat(vs)


# --- data ---------------------------------------------------------------------------------------


@deterministic
def test_every_form_of_data_is_the_same_matrix(kind, x64):
    model_fn, params, (x, y), likelihood = twins.problem("mlp", "float64").args
    v = twins.problem("mlp", "float64").vectors(1)[0]
    expected = KINDS[kind](model_fn, params, (x, y), likelihood, scale=0.5) @ v
    forms = [
        (jax.tree.map(np.asarray, (x, y)), None),
        (InMemory(x, y), 3),
        (twins.batches(x, y, 3, 3, 1), None),
        (twins.batches(x, y, 3, 4), 5),  # a later batch larger than the first
        (twins.Loader(x, y, 4), 3),
        (as_data(twins.Loader(x, y, 3)), None),
    ]
    for data, batch_size in forms:
        options = {"batch_size": batch_size, "scale": 0.5}
        operator = KINDS[kind](model_fn, params, data, likelihood, **options)
        twins.assert_close(operator @ v, expected)


@families
def test_diagonal_and_dense_form_over_a_loader(kind, x64):
    model_fn, params, (x, y), likelihood = twins.problem("two_inputs", "float64").args
    data = twins.batches(x, y, 4, 2)
    operator = KINDS[kind](model_fn, params, data, likelihood, scale=3.0)
    definition = {"ggn": twins.ggn, "hessian": twins.hessian}[kind]
    expected = 3 * twins.dense(definition, "two_inputs")
    twins.assert_is(operator, expected, "float64", transform=lambda fn: fn)


@families
def test_a_model_that_overflows_at_zeros_never_sees_padding(kind, x64):
    def reciprocal(params, x):
        return jnp.tanh(params / x)

    x = jnp.asarray([[1.0], [2.0], [-3.0]])
    data = [(x[:2], x[:2]), (x[2:], x[2:])]
    params, v = jnp.asarray([0.5]), jnp.ones(1)
    whole = KINDS[kind](reciprocal, params, (x, x), "gaussian") @ v
    assert jnp.isfinite(whole).all()
    twins.assert_close(KINDS[kind](reciprocal, params, data, "gaussian") @ v, whole)


@pytest.mark.slow
@families
def test_half_precision_parameters(kind):
    problem = twins.problem("mlp")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), problem.params)
    data = problem.x.astype(jnp.bfloat16), problem.y
    operator = KINDS[kind](problem.model_fn, half, data, problem.likelihood, batch_size=2)
    v = problem.vectors(1)[0]
    matrix, diagonal, product, _ = jax.jit(twins.forms)(operator, v, v[None])
    assert matrix.dtype == diagonal.dtype == jnp.float32
    assert product.dtype == jnp.bfloat16
    expected = twins.dense({"ggn": twins.ggn, "hessian": twins.hessian}[kind], "mlp")
    twins.assert_close(matrix, expected, rtol=0.05)
    twins.assert_close(diagonal, np.diag(expected), rtol=0.05)
    twins.assert_close(product, expected @ v, rtol=0.05)


# --- transformations ------------------------------------------------------------------------------


@deterministic
def test_vmap_over_vectors_and_parameters(kind, x64):
    problem = twins.problem("mlp", "float64")
    vs = problem.vectors(3)

    def product(scale, v):
        params = jax.tree.map(lambda leaf: scale * leaf, problem.params)
        return KINDS[kind](problem.model_fn, params, (problem.x, problem.y), problem.likelihood) @ v

    scales = jnp.asarray([0.5, 1.0, 2.0])
    one, all_at_once = jax.jit(product), jax.jit(jax.vmap(product))
    expected = [one(scale, v) for scale, v in zip(scales, vs, strict=True)]
    twins.assert_close(all_at_once(scales, vs), jnp.stack(expected))


def test_derivative_in_the_scale(x64):
    v = jnp.linspace(-1, 1, 31)
    found = jax.jit(jax.grad(lambda scale: v @ small("ggn", scale=scale).mv(v)))(2.0)
    twins.assert_close(found, v @ twins.dense(twins.ggn, "mlp") @ v)


@kinds
def test_operators_are_pytrees(kind):
    problem = twins.problem("with_integers")
    operator = KINDS[kind](*problem.args)
    leaves, structure = jax.tree.flatten(operator)
    assert all(isinstance(leaf, jax.Array | float) for leaf in leaves)
    again = jax.tree.unflatten(structure, leaves)
    assert again.shape == operator.shape
    moved = jax.device_put(operator, jax.devices()[0])
    assert jax.tree.structure(moved) == structure


@pytest.mark.slow
def test_sharded_examples_give_the_same_product():
    twins.run_on_eight_devices(
        """
        import jax, numpy as np, twins
        from jax.sharding import NamedSharding, PartitionSpec
        from laplace_kit import curv
        problem = twins.problem("mlp")
        x, y = np.tile(problem.x, (16, 1)), np.tile(problem.y, 16)
        mesh = jax.make_mesh((8,), ("data",))
        spread = jax.device_put((x, y), NamedSharding(mesh, PartitionSpec("data")))
        assert len(spread[0].devices()) == 8
        params = jax.device_put(problem.params, NamedSharding(mesh, PartitionSpec()))
        v = problem.vectors(1)[0]
        for kind in (curv.GGNOperator, curv.HessianOperator, curv.EmpiricalFisherOperator):
            for batch_size in (None, 48, 37):
                options = dict(batch_size=batch_size)
                one = kind(problem.model_fn, problem.params, (x, y), "categorical", **options)
                many = kind(problem.model_fn, params, spread, "categorical", **options)
                twins.assert_close(many @ v, one @ v, dtype="float32")
                found = jax.jit(lambda operator, v: operator @ v)(many, v)
                twins.assert_close(found, one @ v, dtype="float32")
            twins.assert_close(many.diagonal(), one.diagonal(), dtype="float32")
            twins.assert_close(many.to_dense(), one.to_dense(), dtype="float32")
        """
    )


# --- programs -------------------------------------------------------------------------------------


def wide(params, x):
    return jnp.tanh(x @ params["kernel"] + params["bias"])


def wide_data(seed: int, num: int = 43) -> tuple:
    """Parameters and data of sizes that nothing else has."""
    rng = np.random.default_rng(seed)
    params = {"kernel": rng.normal(size=(37, 41)), "bias": rng.normal(size=41)}
    params = jax.tree.map(jnp.float32, params)
    return params, (jnp.float32(rng.normal(size=(num, 37))), jnp.asarray(rng.integers(0, 41, num)))


def wide_operator(kind: str, seed: int, **options):
    return KINDS[kind](wide, *wide_data(seed), "categorical", **options)


@pytest.mark.parametrize(("kind", "batch_size"), [*((kind, 10) for kind in KINDS), ("ggn", None)])
def test_new_values_do_not_recompile(kind, batch_size):
    product = jax.jit(apply)
    v = jnp.linspace(-1, 1, 37 * 41 + 41)
    operators = [wide_operator(kind, seed, batch_size=batch_size) for seed in (1, 2)]
    first = product(operators[0], v), operators[0].mv(v)
    with twins.compilations() as names:
        second = product(operators[1], v), operators[1].mv(v)
    assert names == []
    twins.assert_close(first[0], first[1], dtype="float32")
    twins.assert_close(second[0], second[1], dtype="float32")
    assert jnp.abs(first[0] - second[0]).max() > 1e-3


@kinds
def test_one_program_for_all_batches_of_all_loaders(kind):
    model_fn, params, (x, y), likelihood = twins.problem("mlp").args
    v = twins.problem("mlp").vectors(1)[0]

    def product(*sizes):
        data = twins.batches(*jax.tree.map(np.asarray, (x, y)), *sizes)
        return KINDS[kind](model_fn, params, data, likelihood) @ v

    product(3, 3, 1)
    with twins.compilations() as names:
        product(3, 2, 2)
        product(3, 1, 1, 1, 1)
        product(3, 4)
    assert names == []


@kinds
@pytest.mark.parametrize("batch_size", [None, 10])
def test_no_parameter_and_no_example_is_a_constant(kind, batch_size):
    operator = wide_operator(kind, 1, batch_size=batch_size)
    v = jnp.linspace(-1, 1, operator.shape[0])
    lowered = jax.jit(apply).lower(operator, v)
    assert twins.constants(lowered.as_text()) == []


def test_a_constant_would_be_seen():
    operator = wide_operator("ggn", 1)
    v = jnp.linspace(-1, 1, operator.shape[0])
    program = jax.jit(lambda v: operator @ v).lower(v).as_text()
    assert {"37x41xf32", "43x37xf32"} <= set(twins.constants(program))


# --- memory ---------------------------------------------------------------------------------------


METHODS = {
    "mv": lambda operator, vs: operator.mv(vs[0]),
    "matmat": lambda operator, vs: operator.matmat(vs),
    "diagonal": lambda operator, vs: operator.diagonal(),
    "dense": lambda operator, vs: operator.to_dense(),
}


def temporary_bytes(kind: str, method: str, sizes: tuple, **options) -> int:
    """Return what the compiled program holds besides its arguments and its result."""
    num, num_in, num_out = sizes
    params = {"kernel": jnp.ones((num_in, num_out)), "bias": jnp.zeros(num_out)}
    data = jnp.ones((num, num_in)), jnp.ones((num, num_out))
    operator = KINDS[kind](wide, params, data, "gaussian", **options)
    vs = jnp.ones((5, operator.shape[0]))
    compiled = jax.jit(METHODS[method]).lower(operator, vs).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("method", METHODS)
@families
def test_batch_size_bounds_the_memory(kind, method):
    few = temporary_bytes(kind, method, (30, 5, 4), batch_size=10)
    many = temporary_bytes(kind, method, (3000, 5, 4), batch_size=10)
    at_once = temporary_bytes(kind, method, (3000, 5, 4), batch_size=3000)
    steps = 3000 // 10 * 4  # the chunks' numbers
    assert many <= 1.1 * few + steps
    assert at_once > 20 * many


@pytest.mark.parametrize("method", ["mv", "matmat"])
@families
def test_products_hold_no_more_for_more_data(kind, method, monkeypatch):
    monkeypatch.setattr(memory, "_RECYCLED", 2**20)
    some, many = (temporary_bytes(kind, method, (num, 9, 20)) for num in (3000, 12_000))
    at_once = temporary_bytes(kind, method, (3000, 9, 20), batch_size=3000)
    assert many <= 1.1 * some < 0.5 * at_once


@pytest.mark.parametrize("method", METHODS)
@families
def test_memory_limit_bounds_the_memory(kind, method):
    limit = {"mv": 2**18, "diagonal": 2**19}.get(method, 2**20)
    sizes = (3000, 9, 20)
    fixed = temporary_bytes(kind, method, sizes, batch_size=1)
    assert temporary_bytes(kind, method, sizes, memory_limit=limit) <= limit + fixed
    assert temporary_bytes(kind, method, sizes, memory_limit=2**34) > 1.5 * limit + fixed


# --- messages -------------------------------------------------------------------------------------


def test_targets_that_would_broadcast_are_refused():
    x = jnp.ones((5, 2))
    with pytest.raises(ValueError, match=r"targets of shape \(5,\) for outputs \(5, 1\).*reshape"):
        curv.GGNOperator(
            lambda params, x: x @ params, jnp.ones((2, 1)), (x, jnp.ones(5)), "gaussian"
        )


def test_a_model_of_single_examples_is_recognised():
    def single(params, x):
        return params @ x.sum(axis=0)

    with pytest.raises(ValueError, match=r"shape \(3,\) for 2 examples.*lk\.model\.batched"):
        curv.GGNOperator(single, jnp.ones((3, 2)), (jnp.ones((5, 2)), jnp.ones(5)), "gaussian")


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_must_be_positive(batch_size):
    problem = twins.problem("mlp")
    with pytest.raises(ValueError, match=f"batch_size={batch_size}, expected a positive number"):
        curv.GGNOperator(*problem.args, batch_size=batch_size)


def test_an_unknown_likelihood_is_told_the_nearest():
    problem = twins.problem("mlp")
    with pytest.raises(ValueError, match="Did you mean 'categorical'"):
        curv.GGNOperator(*problem.args[:3], "catagorical")


def test_a_misspelt_argument_is_refused():
    with pytest.raises(TypeError, match="batchsize"):
        curv.GGNOperator(*twins.problem("mlp").args, batchsize=3)


def test_parameters_without_floating_leaves_are_refused():
    problem = twins.problem("mlp")
    with pytest.raises(ValueError, match="no free floating-point parameter"):
        curv.GGNOperator(lambda params, x: x, {"n": jnp.arange(3)}, *problem.args[2:])


def test_a_loader_inside_jit_is_refused():
    problem = twins.problem("mlp")
    data = twins.Loader(problem.x, problem.y, 3)
    operator = curv.GGNOperator(problem.model_fn, problem.params, data, problem.likelihood)
    with pytest.raises(TypeError, match=r"stream of batches inside a JAX transformation.*\(x, y\)"):
        jax.jit(apply)(operator, problem.vectors(1)[0])


@pytest.mark.parametrize("operator", [curv.GGNOperator, curv.HessianOperator])
def test_values_of_data_in_memory_are_looked_at(operator):
    def model_fn(params, x):
        return x @ params["w"]

    params, x = {"w": jnp.ones((2, 3))}, np.ones((5, 2), np.float32)
    labels = np.array([0, 1, 2, 3, 0])
    with pytest.raises(
        ValueError, match=r"out of range; expected integer labels.*example 3 .*drop"
    ):
        operator(model_fn, params, (x, labels), "categorical")
    x[4, 1] = np.nan
    with pytest.raises(ValueError, match=r"inputs that are not finite; expected.*example 4 .*drop"):
        operator(model_fn, params, (x, labels.clip(0, 2)), "categorical")
    with pytest.raises(ValueError, match=r"outputs of dtype int.*expected floating.*argmax"):
        operator(lambda p, x: jnp.argmax(x @ p["w"], axis=-1), params, (x, labels), "gaussian")


# --- every operator on every main model -----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", twins.MAIN)
def test_all_operators_and_what_derives_from_them_in_single_precision(name):
    """In float64 the files of blocks, submatrices and linearisations do the same, one by one."""
    problem = twins.problem(name)
    operators, vs = twins.operators(problem), problem.vectors(2)
    last = paths(problem.params)[-1]
    sizes = [leaf.size for leaf in jax.tree.leaves(problem.params)]
    number = np.repeat(np.arange(len(sizes)), sizes)

    @jax.jit
    def forms(operators, vs):
        return {
            kind: (
                op.matmat(vs),
                curv.linearized(op).matmat(vs),
                curv.block_diagonal(op, "leaf").matmat(vs),
                curv.submatrix(op, lambda path: path == last).matmat(vs[:, -sizes[-1] :]),
                op.diagonal(),
                op.to_dense(),
            )
            for kind, op in operators.items()
        }

    found, matrices = forms(operators, vs), twins.matrices(operators, name)
    for kind, matrix in matrices.items():
        blocks = matrix * (number[:, None] == number)
        corner = matrix[-sizes[-1] :, -sizes[-1] :]
        part = vs[:, -sizes[-1] :] @ corner
        expected = (vs @ matrix, vs @ matrix, vs @ blocks, part, np.diag(matrix), matrix)
        for got, wanted in zip(found[kind], expected, strict=True):
            twins.assert_close(got, wanted, dtype="float32")
