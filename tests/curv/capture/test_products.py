"""Products in canonical form: inputs times matrices are what the model's own operation gives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from hypothesis import given
from hypothesis import strategies as st

from laplace_kit.curv.capture.layout import Slot
from laplace_kit.curv.capture.products import Convolution, Lookup, MatrixProduct, read_product
from laplace_kit.curv.capture.uses import find_uses, flatten_program
from laplace_kit.program import evaluate


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def read(fn, w, x):
    """Return the product in which `fn(w, x)` uses its weight, and its program."""
    program = flatten_program(jax.tree_util.Partial(fn), w, x)
    ((use,),) = find_uses(program)
    return read_product(program, use), program


def assert_canonical(fn, w, x):
    """Check that the canonical product of inputs and matrices has the operation's outputs."""
    with jax.enable_x64(True):
        product, program = read(fn, w, x)
        slot = Slot(0, w.shape, product.moves)

        @jax.jit
        def both(w, x):
            values = evaluate(program, [], [w], [x])
            a = product.inputs(values(product.input_value))
            if isinstance(product, Lookup):
                a = jax.nn.one_hot(a, product.shape[1])[:, None]
            z = values(program.steps[product.step].results[0])
            return product.outputs(z), jnp.einsum("tgi,gio->tgo", a, slot.read(jnp.ravel(w)))

        outputs, multiplied = both(w, x)
        assert slot.read(jnp.ravel(w)).shape == product.shape
        assert outputs.size == jax.eval_shape(fn, w, x).size
        twins.assert_close(multiplied, outputs)
        return product


# --- matrix products ----------------------------------------------------------------------------


@st.composite
def dot_generals(draw):
    """Draw the sizes and the order of batch, contracted and free axes of both operands."""
    sizes = st.lists(st.sampled_from((2, 3, 1)), max_size=2)
    batch, contracted, free, out = (draw(sizes) for _ in range(4))
    operands, numbers = [], []
    for own in (free, out):
        axes = draw(st.permutations(range(len(batch) + len(contracted) + len(own))))
        every = [*batch, *contracted, *own]
        operands.append(tuple(every[axis] for axis in axes))
        places = [axes.index(axis) for axis in range(len(batch) + len(contracted))]
        numbers.append((tuple(places[len(batch) :]), tuple(places[: len(batch)])))
    (left, left_batch), (right, right_batch) = numbers
    dims = ((left, right), (left_batch, right_batch))
    if draw(st.booleans()):
        dims, operands = tuple(pair[::-1] for pair in dims), operands[::-1]
        return dims, *operands, True
    return dims, *operands, False


@given(drawn=dot_generals())
def test_any_matrix_product_is_one_of_inputs_and_matrices(drawn):
    dims, left, right, weight_first = drawn
    shapes = (left, right) if weight_first else (right, left)

    def fn(w, x):
        return jax.lax.dot_general(*((w, x) if weight_first else (x, w)), dims)

    product = assert_canonical(fn, normal(0, *shapes[0]), normal(1, *shapes[1]))
    assert isinstance(product, MatrixProduct)
    groups = np.prod([left[axis] for axis in dims[1][0]], dtype=int)
    width = np.prod([left[axis] for axis in dims[0][0]], dtype=int)
    assert product.shape == (groups, width, normal(0, *shapes[0]).size // (groups * width))


@pytest.mark.parametrize(
    ("fn", "weight", "shape"),
    [
        (lambda w, x: x @ w, (4, 5), (1, 4, 5)),
        (lambda w, x: x @ w.T, (5, 4), (1, 4, 5)),
        (lambda w, x: x @ w[::-1], (4, 5), (1, 4, 5)),
        (lambda w, x: x @ w.reshape(4, 3), (2, 6), (1, 4, 3)),
        (lambda w, x: x @ jnp.reshape(w, (4, 3), order="F"), (2, 6), (1, 4, 3)),
        (lambda w, x: x @ w, (4,), (1, 4, 1)),
        (lambda w, x: jnp.einsum("nti,ihd->nhtd", x, w), (4, 2, 3), (1, 4, 6)),
        (lambda w, x: jnp.einsum("nti,ihd->nhtd", x, w.swapaxes(0, 1)), (2, 4, 3), (1, 4, 6)),
        (lambda w, x: jnp.einsum("nti,ito->nto", x, w), (4, 3, 2), (3, 4, 2)),
        (lambda w, x: jnp.einsum("nti,iot->nto", x, w), (4, 2, 3), (3, 4, 2)),
        (lambda w, x: jnp.einsum("nti,ti->n", x, w), (3, 4), (1, 12, 1)),
        (lambda w, x: jnp.einsum("nti,o->ntio", x, w), (5,), (1, 1, 5)),
    ],
)
def test_forms_in_which_models_write_them(fn, weight, shape):
    product = assert_canonical(fn, normal(0, *weight), normal(1, 2, 3, 4))
    assert product.shape == shape


# --- convolutions -------------------------------------------------------------------------------


@st.composite
def convolutions(draw):
    """Draw arguments of a convolution in one to three dimensions, in any order of axes."""
    often, seldom = st.sampled_from((2, 1)), st.sampled_from((1, 2))
    num = draw(st.sampled_from((2, 1, 3)))
    numbers = [draw(st.tuples(st.integers(2, 4), often, often, seldom, seldom)) for _ in range(num)]
    space, window, strides, holes, dilation = zip(*numbers, strict=True)
    padding = []
    for size, k, hole, spread in zip(space, window, holes, dilation, strict=True):
        low, missing = draw(st.integers(-1, 2)), (k - 1) * spread - (size - 1) * hole
        padding.append((low, max(draw(st.integers(-1, 1)), missing - low)))
    groups, inner, out = draw(seldom), draw(often), draw(often)
    letters = "XYZ"[:num]
    specs = [draw(st.permutations(names + letters)) for names in ("NC", "OI", "NC")]
    sizes = dict(zip(letters, space, strict=True)) | {"N": 2, "C": groups * inner}
    x = tuple(sizes[name] for name in specs[0])
    sizes = dict(zip(letters, window, strict=True)) | {"O": groups * out, "I": inner}
    w = tuple(sizes[name] for name in specs[1])
    options = {
        "window_strides": strides,
        "padding": padding,
        "lhs_dilation": holes,
        "rhs_dilation": dilation,
        "dimension_numbers": tuple(map("".join, specs)),
        "feature_group_count": groups,
    }
    return options, w, x


@given(drawn=convolutions())
def test_any_convolution_is_a_product_of_patches_and_matrices(drawn):
    options, w, x = drawn

    def fn(w, x):
        return jax.lax.conv_general_dilated(x, w, **options)

    product = assert_canonical(fn, normal(0, *w), normal(1, *x))
    assert isinstance(product, Convolution)
    assert product.shape[0] == options["feature_group_count"]


@pytest.mark.parametrize(("kernel", "flipped"), [((3, 2, 2, 4), False), ((3, 2, 4, 2), True)])
def test_a_transposed_convolution_is_one_with_holes_in_its_input(kernel, flipped):
    def fn(w, x):
        return jax.lax.conv_transpose(x, w, (2, 1), "SAME", transpose_kernel=flipped)

    product = assert_canonical(fn, normal(0, *kernel), normal(1, 2, 3, 3, 2))
    assert isinstance(product, Convolution)
    assert product.shape == (1, 12, 4)


def test_patches_keep_every_digit():
    """Gathering patches by a convolution would round them on hardware with reduced precision."""

    def fn(w, x):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "VALID")

    x = jnp.asarray(normal(0, 1, 1, 3, 3), jnp.float32)
    product, _ = read(fn, jnp.ones((1, 1, 2, 2)), x)
    patches = np.stack(
        [x[0, 0, i : i + 2, j : j + 2] for i, j in itertools.product(range(2), repeat=2)]
    )
    np.testing.assert_array_equal(product.inputs(x)[:, 0], patches.reshape(4, 4))


# --- lookups ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "table", "shape"),
    [
        (lambda w, x: w[x], (4, 3), (1, 4, 3)),
        (lambda w, x: jnp.take(w, x, axis=0), (4, 3), (1, 4, 3)),
        (lambda w, x: jnp.take(w, x - 4, axis=0), (4, 3), (1, 4, 3)),
        (lambda w, x: jnp.take(w, x + 2, axis=0, mode="clip"), (4, 3), (1, 4, 3)),
        (lambda w, x: jnp.take(w, x - 9, axis=0, mode="clip"), (4, 3), (1, 4, 3)),
        (lambda w, x: w.at[x + 2].get(mode="fill", fill_value=0), (4, 3), (1, 4, 3)),
        (lambda w, x: w.T[x], (3, 4), (1, 4, 3)),
        (lambda w, x: w.reshape(4, 3)[x], (2, 6), (1, 4, 3)),
        (lambda w, x: w[x], (4, 2, 3), (1, 4, 6)),
        (lambda w, x: w[x], (4,), (1, 4, 1)),
        (lambda w, x: w[x[:, 0]], (4, 3), (1, 4, 3)),
        (lambda w, x: jax.vmap(lambda i: w[i])(x), (4, 3), (1, 4, 3)),
    ],
)
def test_a_lookup_is_a_product_with_unit_vectors(fn, table, shape):
    product = assert_canonical(fn, normal(0, *table), jnp.asarray([[0, 3, 1], [1, 1, 2]]))
    assert isinstance(product, Lookup)
    assert product.shape == shape


def test_indices_out_of_range_are_clipped_or_none():
    indices = jnp.asarray([-5, -1, 0, 3, 4, 9])
    clipped, _ = read(lambda w, x: jnp.take(w, x, axis=0, mode="clip"), jnp.ones((4, 2)), indices)
    dropped, _ = read(lambda w, x: jnp.take(w, x, axis=0), jnp.ones((4, 2)), indices)
    np.testing.assert_array_equal(clipped.inputs(indices[:, None]), [0, 0, 0, 3, 3, 3])
    np.testing.assert_array_equal(dropped.inputs(indices[:, None]), [4, 4, 0, 3, 4, 4])


# --- what is none of these ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "weight"),
    [
        (lambda w, x: x * w, (4, 4)),
        (lambda w, x: w.T, (4, 4)),
        (lambda w, x: x @ jnp.broadcast_to(w, (2, 4, 3)), (4, 3)),
        (lambda w, x: x @ (2 * w), (4, 4)),
        (lambda w, x: jax.lax.conv_general_dilated(w, x[:, None], (1,), "SAME"), (2, 1, 4)),
        (
            lambda w, x: jax.lax.conv_general_dilated(
                x[:, None], w, (1,), "SAME", batch_group_count=2
            ),
            (2, 1, 2),
        ),
        (lambda w, x: w[:, x[0].astype(int)], (2, 4)),
        (lambda w, x: w[x[0].astype(int), x[1].astype(int)], (2, 4)),
        (lambda w, x: jax.lax.dynamic_slice(w, (x.astype(int)[0, 0], 0), (2, 3)), (4, 3)),
    ],
)
def test_other_uses_are_no_products(fn, weight):
    product, _ = read(fn, jnp.ones(weight), jnp.ones((4, 4)))
    assert product is None
