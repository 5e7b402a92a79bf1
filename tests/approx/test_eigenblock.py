"""One layer in its eigenbasis: its dense matrix, the priors it knows, and their derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from scipy.linalg import block_diag

from laplace_kit.approx.eigenblock import Eigenblock
from laplace_kit.curv.capture.layout import Layout, Move, Slot, to_flat
from laplace_kit.tree import replace

RNG = np.random.default_rng(0)


def orthogonal(groups, n):
    return jnp.asarray(np.linalg.qr(RNG.normal(size=(groups, n, n)))[0])


def block_of(name):
    """Return a layer of 4 inputs, the last for a bias where there is one, and 3 outputs."""
    groups, out = (2 if name == "groups" else 1), (1 if name == "one_output" else 3)
    rows = 3 if name in ("bias", "groups") else 4
    weight = Slot(0, (groups, rows, out))
    bias = Slot(groups * rows * out, (groups, out), (Move("reshape", (groups, 1, out)),))
    layout = Layout(weight, bias if rows == 3 else None, (groups, 4, out))
    left = None if name in ("table", "diagonal") else orthogonal(groups, 4)
    right = None if name in ("one_output", "diagonal") else orthogonal(groups, 3)
    return Eigenblock(left, right, jnp.asarray(RNG.uniform(size=layout.shape)), layout)


KINDS = ("bias", "groups", "table", "one_output")


def dense(block) -> np.ndarray:
    """Return the curvature over flat parameters, from the bases."""
    groups, width, out = block.layout.shape
    left = [np.eye(width)] * groups if block.left is None else block.left
    right = [np.eye(out)] * groups if block.right is None else block.right
    basis = block_diag(*(np.kron(a, b) for a, b in zip(left, right, strict=True)))
    return in_flat_order(block, (basis * np.asarray(block.values).ravel()) @ basis.T)


def in_flat_order(block, matrix) -> np.ndarray:
    places = block.layout.to_matrix(jnp.arange(float(block.layout.size)))
    order = np.asarray(places, int).ravel()
    flat = np.zeros_like(matrix)
    flat[np.ix_(order, order)] = matrix
    return flat


def shared_prior(block):
    """Return precisions that go with the eigenbasis: the bias's, and a table's rows', differ."""
    matrix = np.full(block.layout.shape, 0.7)
    matrix *= np.arange(1, len(matrix) + 1)[:, None, None]
    if block.layout.bias is not None:
        matrix[:, -1] *= 4
    if block.left is None:
        matrix *= np.arange(1, 5)[:, None]
    return to_flat([block.layout], [jnp.asarray(matrix)])


@pytest.mark.parametrize("name", KINDS)
def test_multiplied_out_it_is_the_same_matrix(name, x64):
    block = block_of(name)
    matrices = jax.jit(Eigenblock.to_dense)(block)
    assert len(matrices) == {"groups": 2, "table": 4}.get(name, 1)
    twins.assert_close(in_flat_order(block, block_diag(*matrices)), dense(block))


@partial(jax.jit, static_argnames="every")
def log_det_and_derivatives(block, prior, every):
    """Return log|H + d|, its derivatives in the prior and the eigenvalues, and the variances."""

    def log_det(prior, values):
        changed = replace(block, values=values)
        return sum(changed.plus(prior, every_derivative=every).log_det_terms())

    value, derivatives = jax.value_and_grad(log_det, (0, 1))(prior, block.values)
    return value, *derivatives, block.plus(prior).posterior().variance()


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_log_determinant_with_derivatives_in_every_entry(name, x64):
    block = block_of(name)
    prior = shared_prior(block)
    precision = dense(block) + np.diag(prior)
    expected = np.diag(np.linalg.inv(precision))
    value, gradient, of_values, variance = log_det_and_derivatives(block, prior, every=True)
    twins.assert_close(value, np.linalg.slogdet(precision)[1])
    twins.assert_close(gradient, expected)
    twins.assert_close(variance, block.layout.to_matrix(jnp.asarray(expected)))
    # As cheaply, the sum over entries that share a precision.
    value_too, cheaper, of_values_too, _ = log_det_and_derivatives(block, prior, every=False)
    assert value == value_too
    twins.assert_close(cheaper.sum(), expected.sum())
    twins.assert_close(of_values, of_values_too)
    # A difference within the layer that is less than any rounding is one.
    other = np.array(prior)
    assert block.represents(other)
    other[1] = np.nextafter(other[1], 9)
    assert not block.represents(other)
    for every in (True, False):
        value, *_, variance = log_det_and_derivatives(block, jnp.asarray(other), every)
        assert np.isnan(value)
        # Of all parameters that the curvature couples with the one that differs.
        coupled = dense(block)[1] != 0
        flat = to_flat([block.layout], [variance])
        assert np.isnan(flat)[coupled].all()


def test_a_curvature_that_is_diagonal_goes_with_every_prior(x64):
    block = block_of("diagonal")
    assert block.is_diagonal
    prior = jnp.asarray(RNG.uniform(size=12))
    assert block.represents(np.asarray(prior))
    expected = 1 / (block.values + prior.reshape(block.layout.shape))
    twins.assert_close(block.plus(prior).posterior().variance(), expected)


@pytest.mark.parametrize(
    ("shape", "coupled", "expected"),
    [
        ((1, 71, 70), True, True),
        ((1, 72, 70), True, False),
        ((8, 44, 40), True, True),
        ((9, 44, 40), True, False),
        ((1, 6000, 64), False, True),  # a table: the rows of different words are not coupled
        ((1, 7000, 64), False, False),
    ],
)
def test_layers_of_five_thousand_parameters_can_be_dense(shape, coupled, expected):
    block = block_of("no_bias" if coupled else "table")
    of_shape = replace(block, layout=Layout(Slot(0, shape), None, shape))
    assert of_shape.can_be_dense == expected
