"""A layer multiplied out is the Gaussian of its dense precision, whatever form its rows have."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from scipy.linalg import block_diag

from laplace_kit.approx.dense_block import dense_precision
from laplace_kit.curv.capture.blocks import FactoredRows, HeadRows, LookupRows
from laplace_kit.curv.capture.layout import Layout, Move, Slot

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape))


def layout_of(groups, width, out, *, bias):
    """Return the layout of a layer whose bias lies before its weight."""
    start = groups * out if bias else 0
    rows = width - 1 if bias else width
    weight = Slot(start, (groups * rows * out,), (Move("reshape", (groups, rows, out)),))
    first = Slot(0, (groups * out,), (Move("reshape", (groups, 1, out)),)) if bias else None
    return Layout(weight, first, (groups, width, out))


# By name: the layer, and how many sets of parameters its curvature does not couple.
LAYERS = {
    "one_position": (layout_of(1, 4, 3, bias=True), 1),
    "positions": (layout_of(1, 4, 3, bias=True), 1),
    "groups": (layout_of(2, 3, 2, bias=True), 2),
    "table": (layout_of(1, 5, 3, bias=False), 5),
    "head": (layout_of(1, 4, 3, bias=True), 1),
}


def rows_of(name, num):
    layout, _ = LAYERS[name]
    groups, width, out = layout.shape
    if name == "table":
        indices = jnp.asarray(RNG.integers(0, 5, (num, 3)))
        return LookupRows(indices, normal(num, 2, 3, out), layout)
    if name == "head":
        return HeadRows(normal(num, 1, 1, width), jnp.asarray([2, 0]), normal(2), None, layout)
    positions = 1 if name == "one_position" else 3
    inputs, gradients = normal(num, positions, groups, width), (num, 2, positions, groups, out)
    return FactoredRows(inputs, normal(*gradients), layout)


@partial(jax.jit, static_argnames="layout")
def facts(curvature, prior, rows, other, layout):
    precision = dense_precision(curvature, prior, layout)
    block = precision.posterior()
    eye = jnp.eye(layout.size).reshape(*layout.shape, -1)
    return (
        sum(precision.log_det_terms()),
        block.variance(),
        block.scale_mv(eye),
        block.scale_rmv(eye),
        block.output_covariance(rows),
        block.output_variance(rows),
        block.cross_covariance(rows, other),
    )


def spd(num, size):
    roots = RNG.normal(size=(num, size, size))
    return roots @ np.swapaxes(roots, 1, 2)


@pytest.mark.accelerator
@pytest.mark.parametrize("name", LAYERS)
def test_all_it_does_is_that_of_the_dense_matrix(name, x64):
    layout, num = LAYERS[name]
    size = layout.size
    curvature, prior = spd(num, size // num), np.exp(RNG.normal(size=size))
    rows, other = rows_of(name, 4), rows_of(name, 3)
    log_det, variance, root, transposed, *moments = facts(
        jnp.asarray(curvature), jnp.asarray(prior), rows, other, layout
    )
    order = np.asarray(layout.to_matrix(jnp.arange(float(size))), int).ravel()
    matrix = block_diag(*curvature) + np.diag(prior[order])
    cov = np.linalg.inv(matrix)
    twins.assert_close(log_det, np.linalg.slogdet(matrix)[1])
    twins.assert_close(variance, np.diag(cov).reshape(layout.shape))
    root = np.asarray(root).reshape(size, size)
    twins.assert_close(root @ root.T, cov)
    twins.assert_close(np.reshape(transposed, (size, size)), root.T)

    left, right = (np.reshape(part.to_dense(), (-1, 2, size)) for part in (rows, other))
    expected = np.einsum("brp,pq,bsq->brs", left, cov, left)
    twins.assert_close(moments[0], expected)
    twins.assert_close(moments[1], np.einsum("brr->br", expected))
    twins.assert_close(moments[2], np.einsum("brp,pq,dsq->brds", left, cov, right))


def test_derivatives_in_the_prior_are_variances(x64):
    layout, _ = LAYERS["groups"]
    curvature, prior = jnp.asarray(spd(2, 6)), jnp.asarray(np.exp(RNG.normal(size=12)))

    def log_det(prior):
        return sum(dense_precision(curvature, prior, layout).log_det_terms())

    variance = dense_precision(curvature, prior, layout).posterior().variance()
    gradient = jax.jit(jax.grad(log_det))(prior)
    twins.assert_close(layout.to_matrix(gradient), variance)


def test_jitter_raises_the_diagonal_by_a_share(x64):
    layout, _ = LAYERS["groups"]
    curvature, prior = jnp.asarray(spd(2, 6)), jnp.full(12, 0.5)
    raised = curvature * (1 + 0.1 * jnp.eye(6))
    found = dense_precision(curvature, prior, layout, jitter=0.1)
    twins.assert_close(found.factor, dense_precision(raised, prior, layout).factor)


def test_an_indefinite_precision_gives_nan(x64):
    layout, _ = LAYERS["head"]
    precision = dense_precision(-jnp.eye(12)[None], jnp.full(12, 0.5), layout)
    assert np.isnan(sum(precision.log_det_terms()))
    assert np.isnan(precision.posterior().variance()).any()
