"""A principal submatrix is the dense matrix in these rows and columns, at its own cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit import curv, tree
from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.linearization import LinearizedOperator, linearized
from laplace_kit.curv.principal import submatrix

# The parameters of the small network in flat order: hidden bias and kernel, output bias and kernel.
NUMBERS = np.asarray([20, 3, 17, 30, 0])


def small(kind, **options):
    return kind(*twins.problem("mlp", "float64").args, **options)


def part(matrix: np.ndarray, numbers) -> np.ndarray:
    numbers = np.sort(numbers)
    return np.asarray(matrix)[np.ix_(numbers, numbers)]


def by_element():
    """Return a mask of the output layer's bias and of some entries of the hidden kernel."""
    kernel = np.arange(12).reshape(3, 4) % 5 == 0
    return {
        "hidden": [{"kernel": kernel, "bias": False}],
        "out": {"kernel": False, "bias": True},
    }


ELEMENTS = np.asarray([4, 9, 14, 16, 17, 18])  # the numbers of those entries


def test_in_chunks(x64):
    found = submatrix(small(curv.HessianOperator, batch_size=3), by_element())
    expected = part(twins.dense(twins.hessian, "mlp"), ELEMENTS)
    twins.assert_close(found.matmat(jnp.eye(6)), expected)


@pytest.mark.parametrize("name", twins.MAIN)
def test_every_kind_of_operator_in_whole_leaves_and_in_entries(name, x64):
    """Every form of subset becomes a mask; of leaves that are partly free, more is asked."""
    problem = twins.problem(name, "float64")
    leaves, structure = jax.tree.flatten(problem.params)
    num, last = sum(leaf.size for leaf in leaves), tree.paths(problem.params)[-1]
    entries = np.arange(num) % 3 == 1
    cuts = np.split(entries, np.cumsum([leaf.size for leaf in leaves])[:-1])
    masks = [cut.reshape(leaf.shape) for cut, leaf in zip(cuts, leaves, strict=True)]
    is_first = [True] + [False] * (len(leaves) - 1)
    numbers = np.random.default_rng(0).permutation(num)[:5]
    subsets = {
        "path": (lambda path: path == last, np.arange(num - leaves[-1].size, num)),
        "leaves": (jax.tree.unflatten(structure, is_first), np.arange(leaves[0].size)),
        "elements": (jax.tree.unflatten(structure, masks), np.flatnonzero(entries)),
        "numbers": (numbers, numbers),
        "booleans": (entries, np.flatnonzero(entries)),
    }
    forms = {
        "ggn": ("path", "elements"),
        "hessian": ("leaves", "numbers"),
        "empirical_fisher": ("path", "booleans"),
        "mc_fisher": ("leaves", "elements"),
    }
    operators, v = twins.operators(problem), problem.vectors(1)[0]

    @jax.jit
    def products(operators, v):
        return {
            (kind, word): submatrix(operators[kind], subsets[word][0]) @ v[: len(subsets[word][1])]
            for kind, words in forms.items()
            for word in words
        }

    found, matrices = products(operators, v), twins.matrices(operators, name)
    for (kind, word), product in found.items():
        places = subsets[word][1]
        twins.assert_close(product, part(matrices[kind], places) @ v[: len(places)])


def test_in_single_precision():
    operator = curv.GGNOperator(*twins.problem("mlp").args)
    found = submatrix(operator, NUMBERS)
    twins.assert_is(found, part(twins.dense(twins.ggn, "mlp"), NUMBERS), "float32")


def test_over_a_stream(x64):
    model_fn, params, (x, y), likelihood = twins.problem("mlp", "float64").args
    operator = curv.GGNOperator(model_fn, params, twins.batches(x, y, 4, 3), likelihood)
    vs = np.linspace(-1, 1, 10).reshape(2, 5)
    products = submatrix(operator, NUMBERS).matmat(vs)
    twins.assert_close(products, vs @ part(twins.dense(twins.ggn, "mlp"), NUMBERS))


def test_vectors_are_like_the_free_parameters(x64):
    problem = twins.problem("with_integers", "float64")
    found = submatrix(curv.GGNOperator(*problem.args), lambda path: path == "kernel")
    flat = np.linspace(-1, 1, 6)
    v = {"columns": None, "kernel": flat.reshape(2, 3), "power": None, "step": None}
    product = found @ v
    assert product.keys() == v.keys()
    assert product["power"] is None
    twins.assert_close(product["kernel"].ravel(), found @ flat)


def test_of_a_submatrix(x64):
    found = submatrix(submatrix(small(curv.GGNOperator), NUMBERS), np.asarray([4, 1]))
    expected = part(twins.dense(twins.ggn, "mlp"), np.sort(NUMBERS)[[1, 4]])
    twins.assert_close(found.to_dense(), expected)


def test_of_what_is_composed(x64):
    damping = jnp.linspace(1, 2, 31)
    operator = 3.0 * small(curv.GGNOperator) - small(curv.HessianOperator) + damping
    matrix = 3 * twins.dense(twins.ggn, "mlp") - twins.dense(twins.hessian, "mlp")
    expected = part(matrix + np.diag(damping), NUMBERS)
    twins.assert_is(submatrix(operator, NUMBERS), expected, "float64")


def test_of_what_is_linearized(x64):
    found = submatrix(linearized(small(curv.GGNOperator)), NUMBERS)
    assert isinstance(found, LinearizedOperator)
    expected = part(twins.dense(twins.ggn, "mlp"), NUMBERS)
    twins.assert_close(found.matmat(jnp.eye(5)), expected)


def test_damping_in_every_form(x64):
    operator, subset = small(curv.GGNOperator), by_element()
    matrix = submatrix(operator, subset).to_dense()
    per_leaf = {"hidden": 0.1, "out": {"kernel": 0.2, "bias": 0.3}}
    for damping, vector in ((0.5, np.full(31, 0.5)), (per_leaf, np.repeat([0.1, 0.3], [16, 15]))):
        found = submatrix(operator + damping, subset)
        twins.assert_close(found.to_dense(), matrix + np.diag(vector[ELEMENTS]))


# --- cost -----------------------------------------------------------------------------------------


def deep(params, x):
    for kernel in params["body"]:
        x = jnp.tanh(x @ kernel)
    return x @ params["head"]


def deep_operator(seed: int):
    rng = np.random.default_rng(seed)
    params = {"body": rng.normal(size=(3, 50, 50)) / 7, "head": rng.normal(size=(50, 2))}
    x, y = rng.normal(size=(20, 50)), rng.normal(size=(20, 2))
    return curv.GGNOperator(deep, *jax.tree.map(jnp.float32, (params, (x, y))), "gaussian")


def apply(operator, v):
    return operator @ v


def test_what_is_frozen_is_computed_once():
    operator, v = deep_operator(0), jnp.ones(100)
    found = submatrix(operator, lambda path: path == "head")

    def operations(operator, v):
        return jax.jit(apply).lower(operator, v).compile().cost_analysis()["flops"]

    assert operations(found, v) < operations(operator, jnp.ones(operator.shape[0])) / 20
    assert found.plan.example_bytes < operator.plan.example_bytes
    body = jax.tree.leaves(operator.params)[0].shape
    assert body not in list(map(jnp.shape, jax.tree.leaves(found)))


def test_new_values_do_not_recompile():
    @jax.jit
    def product(operator, v):
        return submatrix(operator, np.asarray([3, 7505, 7599])) @ v

    operators = deep_operator(1), deep_operator(2)
    v = jnp.ones(3)
    first, inside = (
        submatrix(operators[0], np.asarray([3, 7505, 7599])) @ v,
        product(operators[0], v),
    )
    with twins.compilations() as names:
        second = product(operators[1], v)
        outside = submatrix(operators[1], np.asarray([3, 7505, 7599])) @ v
    assert names == []
    twins.assert_close(inside, first, dtype="float32")
    twins.assert_close(second, outside, dtype="float32")
    assert jnp.abs(first - second).max() > 1e-3


# --- messages -------------------------------------------------------------------------------------


def test_other_operators_are_refused():
    class Other(SelfAdjointOperator):
        shape = dtype = in_memory = mv = matmat = diagonal = to_dense = None

    with pytest.raises(TypeError, match=r"type Other, expected a curvature .*submatrix\.register"):
        submatrix(Other(), NUMBERS)


def test_nothing_selected_is_refused():
    operator = curv.GGNOperator(*twins.problem("mlp").args)
    with pytest.raises(ValueError, match="no free floating-point parameter"):
        submatrix(operator, lambda path: False)
