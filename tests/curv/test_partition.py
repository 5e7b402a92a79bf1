"""A block-diagonal operator is the dense matrix with zeros outside of its blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from exact import as_users_call

from laplace_kit import curv, tree
from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.linearization import linearized
from laplace_kit.curv.partition import BlockDiagonalOperator, block_diagonal
from laplace_kit.curv.principal import submatrix

# The small network's leaves in flat order, and their layers.
LEAVES = {"hidden/0/bias": 4, "hidden/0/kernel": 12, "out/bias": 3, "out/kernel": 12}
LAYERS = {"hidden/0/kernel": 16, "out/kernel": 15}


def small(kind=curv.GGNOperator, **options):
    return kind(*twins.problem("mlp", "float64").args, **options)


def masked(matrix: np.ndarray, sizes) -> np.ndarray:
    """Set to zero what is outside of blocks of these sizes."""
    number = np.repeat(np.arange(len(sizes)), list(sizes))
    return np.asarray(matrix) * (number[:, None] == number)


@pytest.mark.parametrize("name", twins.MAIN)
def test_every_kind_by_leaf_by_layer_and_by_name(name, x64):
    problem = twins.problem(name, "float64")
    first, *others = tree.paths(problem.params)
    sizes = [leaf.size for leaf in jax.tree.leaves(problem.params)]
    by = {
        "leaf": ("leaf", sizes),
        "layer": ("layer", LAYERS.values() if name == "mlp" else sizes),
        "name": ({"first": first, "others": others}, (sizes[0], sum(sizes[1:]))),
    }
    operators, vs = twins.operators(problem), problem.vectors(2)
    if name != "mlp":  # each layer is a leaf
        del by["leaf"]
        words = ("leaf", "layer")
        assert len({block_diagonal(operators["ggn"], word).groups for word in words}) == 1

    @jax.jit
    def products(operators, vs):
        return {
            kind: {word: block_diagonal(op, groups).matmat(vs) for word, (groups, _) in by.items()}
            for kind, op in operators.items()
        }

    found, matrices = products(operators, vs), twins.matrices(operators, name)
    for kind, matrix in matrices.items():
        for word, (_, sizes) in by.items():
            twins.assert_close(found[kind][word], vs @ masked(matrix, sizes))


def test_in_single_precision():
    whole = curv.GGNOperator(*twins.problem("mlp").args, scale=2.0)
    operator = block_diagonal(whole, "layer")
    assert operator.blocks == tuple(LAYERS)
    assert block_diagonal(whole, "leaf").blocks == tuple(LEAVES)
    assert operator.is_positive_semidefinite
    expected = 2 * masked(twins.dense(twins.ggn, "mlp"), LAYERS.values())
    twins.assert_is(operator, expected, "float32")


def test_in_chunks(x64):
    operator = block_diagonal(small(curv.HessianOperator, batch_size=3), "layer")
    expected = masked(twins.dense(twins.hessian, "mlp"), LAYERS.values())
    twins.assert_close(operator.matmat(jnp.eye(31)), expected)


def test_named_groups_need_not_be_contiguous(x64):
    by = {"kernels": lambda path: path.endswith("kernel"), "biases": "bias"}
    operator = block_diagonal(small(), by)
    assert operator.blocks == ("biases", "kernels")
    is_kernel = np.repeat([False, True, False, True], list(LEAVES.values()))
    matrix = twins.dense(twins.ggn, "mlp")
    twins.assert_close(operator.to_dense(), matrix * (is_kernel[:, None] == is_kernel))
    kernels = np.flatnonzero(is_kernel)
    np.testing.assert_array_equal(operator.numbers("kernels"), kernels)
    v = np.linspace(-1, 1, 31)
    block = matrix[np.ix_(kernels, kernels)]
    twins.assert_close((operator @ v)[kernels], block @ v[kernels])
    twins.assert_close(operator.block("kernels") @ v[kernels], block @ v[kernels])

    by = {"kernels": ["hidden/0/kernel", "out/kernel"], "biases": ("bias",)}
    assert block_diagonal(small(), by).groups == operator.groups


def test_leaves_that_are_in_no_layer_stay_by_themselves():
    problem = twins.problem("with_integers")
    operator = block_diagonal(curv.GGNOperator(*problem.args), "layer")
    assert operator.blocks == ("kernel", "power")
    v = {**problem.params, "kernel": jnp.ones((2, 3)), "power": jnp.ones(())}
    product = operator @ v
    assert product.keys() == v.keys()
    np.testing.assert_array_equal(product["columns"], 0)
    expected = masked(twins.dense(twins.ggn, "with_integers"), (6, 1)) @ np.ones(7)
    found = jnp.append(product["kernel"], product["power"])
    twins.assert_close(found, expected, dtype="float32")


class Counted(twins.Loader):
    """A loader that counts how often it is iterated."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


def test_a_product_is_one_pass_over_a_stream(x64):
    problem = twins.problem("mlp", "float64")
    data = Counted(problem.x, problem.y, 4)
    operator = curv.GGNOperator(problem.model_fn, problem.params, data, problem.likelihood)
    blocks = block_diagonal(operator, "layer")
    vs = problem.vectors(2)
    data.passes = 0
    products = blocks.matmat(vs)
    assert data.passes == 1
    twins.assert_close(products, vs @ masked(twins.dense(twins.ggn, "mlp"), LAYERS.values()))
    blocks = block_diagonal(operator + 0.5, "layer")  # of what is composed, too
    data.passes = 0
    twins.assert_close(blocks.matmat(vs), products + 0.5 * vs)
    assert data.passes == 1


def test_of_what_is_composed(x64):
    damping = {"hidden": 0.1, "out": {"kernel": 0.2, "bias": 0.3}}
    operator = block_diagonal(3.0 * small() - small(curv.HessianOperator) + damping, "layer")
    matrix = 3 * twins.dense(twins.ggn, "mlp") - twins.dense(twins.hessian, "mlp")
    vector = np.repeat([0.1, 0.3, 0.2], [16, 3, 12])
    expected = masked(matrix + np.diag(vector), LAYERS.values())
    twins.assert_is(operator, expected, "float64")


def test_of_what_is_linearized(x64):
    operator = block_diagonal(linearized(small()), "layer")
    expected = masked(twins.dense(twins.ggn, "mlp"), LAYERS.values())
    twins.assert_close(operator.matmat(jnp.eye(31)), expected)
    again = linearized(block_diagonal(small(), "layer"))
    twins.assert_close(again @ np.ones(31), expected.sum(axis=1))


def test_a_submatrix_keeps_the_blocks(x64):
    operator, numbers = block_diagonal(small(), "leaf"), np.asarray([1, 5, 17, 18, 30])
    found = submatrix(operator, numbers)
    assert found.blocks == tuple(LEAVES)
    whole = masked(twins.dense(twins.ggn, "mlp"), LEAVES.values())
    twins.assert_close(found.matmat(jnp.eye(5)), whole[np.ix_(numbers, numbers)])
    out = submatrix(operator, lambda path: path.startswith("out"))
    assert isinstance(out, BlockDiagonalOperator)
    assert (out.blocks, out.groups) == (("out/bias", "out/kernel"), (0, 1))


def test_new_values_do_not_recompile():
    model_fn, params, data, likelihood = twins.problem("mlp").args
    v = jnp.ones(31)

    def product(factor):
        scaled = jax.tree.map(lambda leaf: factor * leaf, params)
        return block_diagonal(curv.GGNOperator(model_fn, scaled, data, likelihood), "layer") @ v

    first = product(1.0)
    with twins.compilations() as names:
        second = product(1.5)
    assert names == []
    assert jnp.abs(first - second).max() > 1e-3


# --- messages -------------------------------------------------------------------------------------


def test_unknown_words_and_blocks_are_told_the_nearest():
    operator = curv.GGNOperator(*twins.problem("mlp").args)
    with as_users_call(), pytest.raises(ValueError, match="Did you mean 'layer'"):
        block_diagonal(operator, "layers")
    with pytest.raises(ValueError, match="Did you mean 'out/kernel'"):
        block_diagonal(operator, "layer").block("out/kernels")


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ({"body": "hidden"}, r"'out/bias' in the groups \[\] of \['body'\], expected every leaf"),
        ({"all": lambda path: True, "head": "out"}, r"'out/bias' in the groups \['all', 'head'\]"),
        ({"all": lambda path: True, "none": "tail"}, r"no leaf in the groups \['none'\].*hidden/0"),
    ],
)
def test_groups_that_are_no_partition_are_refused(by, message):
    with pytest.raises(ValueError, match=message):
        block_diagonal(curv.GGNOperator(*twins.problem("mlp").args), by)


def test_layers_need_a_model():
    class Other(SelfAdjointOperator):
        params = {"w": jnp.ones(3)}  # noqa: RUF012
        shape = dtype = in_memory = mv = matmat = diagonal = to_dense = None

    with pytest.raises(ValueError, match=r"type Other without a model.*by=\"leaf\""):
        block_diagonal(Other(), "layer")
    assert block_diagonal(Other()).blocks == ("w",)


@pytest.mark.parametrize("v", [np.ones(30), np.ones((2, 31))])
def test_wrong_vectors_are_named(v):
    operator = block_diagonal(curv.GGNOperator(*twins.problem("mlp").args))
    with pytest.raises(ValueError, match="Found as vector"):
        operator.mv(v)
