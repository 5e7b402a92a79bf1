"""Heads: which layers are recognised, and agreement with the rows of any other layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree

import laplace_kit as lk
from laplace_kit import curv
from laplace_kit.curv.capture.blocks import FactoredRows, HeadRows
from laplace_kit.curv.capture.capture import capture, jacobian
from laplace_kit.curv.capture.heads import find_head, sole_head
from laplace_kit.curv.kronecker import second_moments
from laplace_kit.curv.objective import restrict
from laplace_kit.likelihood import FromLoss, Gaussian

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(5, 2, 3)).astype("float32"))
PARAMS = {
    "kernel": jnp.asarray(RNG.normal(size=(3, 4)).astype("float32")),
    "bias": jnp.asarray(RNG.normal(size=4).astype("float32")),
}
TEMPERATURES = jnp.asarray([[0.5, -2.0], [4.0, 3.0]], "float32")


def dense(params, x):
    return jnp.tanh(x[:, 0]) @ params["kernel"] + params["bias"]


def rearranged(params, x):
    """Moves, signs and factors: of Python, of arrays, and from the frozen parameters."""
    z = (-dense(params, x)).reshape(-1, 2, 2).transpose(0, 2, 1)[:, ::-1]
    return 3.0 - (1.5 * z / TEMPERATURES.astype(z.dtype) + x.sum(axis=(1, 2))[:, None, None]) / 7


def sequence(params, x):
    return (jnp.tanh(x) @ params["kernel"] + params["bias"]).transpose(0, 2, 1)


def convolution(params, x):
    kernel = params["kernel"].reshape(1, 3, 4)
    numbers = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(x, kernel, (1,), "VALID", dimension_numbers=numbers) * 2


def held(params, x):
    """Behind operations that leave values as they are, some of which return lists."""
    params = jax.lax.optimization_barrier(params)
    z, _ = jax.lax.optimization_barrier((dense(params, x).T, x))
    return jax.device_put(2 * z, jax.devices()[0]).T.astype(x.dtype)


def poisson_like(f, y):
    return jnp.sum(jnp.exp(f) - y * f)


HEADS = {
    "dense": dense,
    "rearranged": rearranged,
    "sequence": sequence,
    "conv": convolution,
    "held": held,
}


def generic(model_fn):
    """Return the same function, so written that no layer is a head."""

    def same(params, x):
        f = model_fn(params, x)
        return f + 0 * jnp.sin(f)

    return same


def in_double():
    return jax.tree.map(lambda leaf: leaf.astype("float64"), (PARAMS, X))


def objective_of(model_fn, params, subset=None):
    return restrict(model_fn, params, Gaussian(), subset)[0]


def head_of(model_fn, x=X, params=PARAMS):
    found = objective_of(model_fn, params).planned(x).plan.layers
    product = next(layer.product for layer in found.layers if layer.product is not None)
    return find_head(found.program, product)


# --- which layers are heads ---------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_moves_added_terms_and_constant_factors_leave_a_head(name):
    head = head_of(HEADS[name])
    assert head.num_positions == (2 if name in ("sequence", "conv") else 1)
    assert head_of(generic(HEADS[name])) is None


NO_HEADS = {
    "activation": lambda p, x: jnp.tanh(dense(p, x)),
    "factor_of_the_input": lambda p, x: dense(p, x) * x[:, 0, :1],
    "factor_of_parameters": lambda p, x: dense(p, x) * p["bias"].sum(),
    "denominator": lambda p, x: 1 / dense(p, x),
    "used_twice": lambda p, x: (lambda z: z + z[:, ::-1])(dense(p, x)),
    "squared": lambda p, x: jnp.square(dense(p, x)),
    "summed": lambda p, x: dense(p, x).sum(axis=1),
    "repeated": lambda p, x: jnp.broadcast_to(dense(p, x)[:, None], (len(x), 2, 4)),
    "cut": lambda p, x: dense(p, x)[:, :3],
    "second_layer": lambda p, x: dense(p, x) @ jnp.ones((4, 2)),
    "several_groups": lambda p, x: jnp.einsum(
        "ngi,gio->ngo", x[:, 0, :, None], p["kernel"].reshape(3, 1, 4)
    ),
}


@pytest.mark.parametrize("name", NO_HEADS)
def test_anything_else_does_not(name):
    assert head_of(NO_HEADS[name]) is None


def test_a_head_is_sole_where_nothing_else_is_free_and_it_has_one_position():
    def network(params, x):
        return dense(params["out"], jnp.tanh(x @ params["first"]))

    params = {"first": jnp.eye(3), "out": PARAMS}
    whole = objective_of(network, params).planned(X).plan.layers
    last = objective_of(network, params, lambda path: "out" in path).planned(X).plan.layers
    assert [find_head(whole.program, layer.product) is None for layer in whole.layers] == [
        True,
        False,
    ]
    assert sole_head(whole) is None
    assert sole_head(last) is not None
    assert sole_head(objective_of(sequence, PARAMS).planned(X).plan.layers) is None


# --- rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_rows_of_outputs_are_the_jacobian(name, x64):
    params, x = in_double()
    if name == "conv":
        params = {"kernel": params["kernel"]}
    objective = objective_of(HEADS[name], params)
    columns = jnp.asarray([3, 0, 2, 100])  # the last one is no output

    @jax.jit
    def found(objective, x, columns):
        captured = capture(objective, x)
        (block,) = captured.pull_outputs(columns).blocks
        assert isinstance(block, HeadRows)
        return captured.pull_outputs(columns).to_dense(), jacobian(objective, x)[1].to_dense()

    rows, jac = found(objective, x, columns)
    twins.assert_close(rows[:, :3], jac[:, columns[:3]])
    assert not rows[:, 3].any()


def test_layers_before_the_head_have_rows_as_ever(x64):
    params, x = in_double()

    def network(params, x):
        return rearranged(params["out"], jnp.tanh(x @ params["first"]))

    objective = objective_of(
        network, {"first": jnp.asarray(RNG.normal(size=(3, 3))), "out": params}
    )

    @jax.jit
    def found(objective, x):
        rows = capture(objective, x).pull_outputs(jnp.arange(4))
        assert [type(block) for block in rows.blocks] == [FactoredRows, HeadRows]
        return rows.to_dense(), jacobian(objective, x)[1].to_dense()

    twins.assert_close(*found(objective, x))


# --- sums over the data -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "likelihood"), [("dense", "categorical"), ("rearranged", "poisson")]
)
def test_sums_over_rows_are_those_of_any_layer(name, likelihood, x64):
    params, x = in_double()
    event = HEADS[name](params, x).shape[1:]
    labels = event[:-1] if likelihood == "categorical" else event
    y = jnp.asarray(np.random.default_rng(1).integers(0, 2, (5, *labels)))
    left, right = (np.linalg.qr(RNG.normal(size=(n, n)))[0][None] for n in (4, 4))
    bases = ((jnp.asarray(left), jnp.asarray(right)),)
    results = []
    for model_fn in (HEADS[name], generic(HEADS[name])):
        operator = curv.GGNOperator(model_fn, params, (x, y), likelihood, batch_size=2, scale=1.3)
        assert operator.has_closed_head == (model_fn is HEADS[name])
        factors = curv.kronecker_factors(operator)
        results.append((operator.diagonal(), factors, second_moments(operator, bases)))
    for found, expected in zip(*map(jax.tree.leaves, results), strict=True):
        twins.assert_close(found, expected)


def test_many_columns_come_some_at_a_time(x64):
    _, x = in_double()
    params = {"kernel": jnp.asarray(RNG.normal(size=(3, 21))), "bias": jnp.zeros(21)}
    y = jnp.arange(5)
    operators = [
        curv.GGNOperator(model_fn, params, (x, y), "categorical")
        for model_fn in (dense, generic(dense))
    ]
    (found,), (expected,) = map(curv.kronecker_factors, operators)
    twins.assert_close(found.gradients, expected.gradients)


@pytest.mark.parametrize("likelihood", ["categorical", "poisson", FromLoss(poisson_like)])
def test_the_diagonal_of_a_head_is_that_of_the_matrix(likelihood, x64):
    params, x = in_double()
    labels = jnp.asarray([3, 0, 1, 2, 0])
    y = labels if likelihood == "categorical" else jax.nn.one_hot(labels, 4)
    for weights in (None, jnp.asarray([1.0, 0.0, 2.5, 1.0, 0.5])):
        operator = curv.GGNOperator(
            lambda p, x: -2 * dense(p, x)[:, ::-1], params, (x, y, weights), likelihood, scale=1.3
        )
        assert operator.has_closed_head
        twins.assert_close(operator.diagonal(), np.diagonal(operator.to_dense()))


def test_the_diagonal_of_many_classes_holds_no_matrix_of_pairs_of_classes():
    """The unit vectors of 4,000 classes are 61 MiB, the weights of this head 47 KiB."""
    num_classes, num = 4000, 8
    params = {"kernel": jnp.zeros((3, num_classes)), "bias": jnp.zeros(num_classes)}
    data = (jnp.zeros((num, 2, 3)), jnp.zeros(num, int))
    for operator in (
        curv.GGNOperator(dense, params, data, "categorical"),
        curv.MonteCarloFisherOperator(dense, params, data, "categorical", key=jax.random.key(0)),
    ):
        diagonal = jax.jit(lambda operator: operator.diagonal()).lower(operator).compile()
        assert diagonal.memory_analysis().temp_size_in_bytes < 16e6


def test_fewer_columns_than_outputs_go_the_other_road(x64):
    params, x = in_double()
    data = (x, jnp.asarray([0, 1, 2, 3, 0]))
    assert not curv.EmpiricalFisherOperator(dense, params, data, "categorical").has_closed_head


def test_a_loss_without_a_root_is_not_a_number(x64):
    params, x = in_double()

    def concave(f, y):
        return -jnp.sum((f - y) ** 2)

    operator = curv.GGNOperator(dense, params, (x, jnp.zeros((5, 4))), FromLoss(concave))
    assert operator.has_closed_head
    assert np.isnan(operator.diagonal()).all()


def test_a_head_holds_no_gradients_of_examples(x64):
    """For 300 outputs and 20 features, gradients of 50 examples would be 4,500,000 numbers."""
    num, out = 50, 300

    params = {"kernel": jnp.zeros((3, out)), "bias": jnp.zeros(out)}
    objective = objective_of(dense, params)

    def squares(objective, x, scale, basis):
        rows = capture(objective, x).pull_outputs(jnp.arange(out)).blocks[0]
        turned = rows.rotate(None, basis)
        return rows.squares(scale), turned.squares(scale), turned.squares_along(scale, scale[:, 0])

    shapes = ((num, 2, 3), (1, 4, out), (1, out, out))
    arguments = (jax.ShapeDtypeStruct(shape, jnp.float64) for shape in shapes)
    program = jax.make_jaxpr(squares)(objective, *arguments)
    sizes = [variable.aval.size for step in program.eqns for variable in step.outvars]
    assert max(sizes) <= out**2


# --- values that are written to references --------------------------------------------------------


def into_a_reference(params, x):
    total = jax.new_ref(jnp.zeros((len(x), 2)))
    total[...] += jnp.tanh(x @ params["in"]) @ params["out"]
    return total[...]


def over_a_loop(params, x):
    total = jax.new_ref(jnp.zeros((len(x), 3)))

    def step(_, part):
        total[...] += part @ params["in"]
        return None, None

    jax.lax.scan(step, None, jnp.stack([x, x**2]))
    return jnp.tanh(total[...]) @ params["out"]


@pytest.mark.parametrize(
    ("model_fn", "plain"),
    [
        (into_a_reference, lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]),
        (over_a_loop, lambda p, x: jnp.tanh((x + x**2) @ p["in"]) @ p["out"]),
    ],
)
def test_products_that_are_written_to_a_reference_are_exact(model_fn, plain, x64):
    rng = np.random.default_rng(0)
    params = {"in": rng.normal(size=(4, 3)), "out": rng.normal(size=(3, 2))}
    params = jax.tree.map(jnp.asarray, params)
    data = jnp.asarray(rng.normal(size=(6, 4))), jnp.asarray(rng.integers(0, 2, 6))
    found = curv.GGNOperator(model_fn, params, data, "categorical").to_dense()
    flat, unravel = ravel_pytree(params)
    jacobian = jax.jacobian(lambda t: plain(unravel(t), data[0]))(flat)
    probs = np.asarray(jax.nn.softmax(plain(params, data[0])))
    hessian = np.einsum("nc,cd->ncd", probs, np.eye(2)) - np.einsum("nc,nd->ncd", probs, probs)
    expected = np.einsum("ncp,ncd,ndq->pq", jacobian, hessian, jacobian)
    twins.assert_close(found, expected)
    la = lk.fit(
        model_fn,
        params,
        data,
        likelihood="categorical",
        structure="full",
        subset=lk.approx.layers("out"),
    )
    places = slice(12, None)
    cov = np.linalg.inv(expected[places, places] + np.eye(6))
    twins.assert_close(la.posterior.covariance(), cov)
