"""Probes are the same however they are cut into blocks; moments are those of all of them."""

import jax
import jax.numpy as jnp
import matfree.stochtrace
import numpy as np
import pytest
import twins
from matrices import rotated

from laplace_kit.curv.matrix_free.probing import draw, monte_carlo, over_probes
from laplace_kit.memory import Limits

KEY = jax.random.key(0)
TRACE = matfree.stochtrace.monte_carlo_trace()
DIAGONAL = matfree.stochtrace.monte_carlo_diagonal()


@pytest.mark.parametrize("probes", ["signs", "normal", "sphere", "sparse_signs"])
def test_probes_have_unit_covariance(probes, x64):
    operator = rotated(np.ones(4))
    found = draw(operator, KEY, jnp.arange(20_000), probes)
    assert found.dtype == "float64"
    np.testing.assert_allclose(found.mean(0), 0, atol=0.04)
    np.testing.assert_allclose(found.T @ found / len(found), np.eye(4), atol=0.05)
    if probes == "sparse_signs":
        np.testing.assert_allclose(np.unique(found), [-np.sqrt(3), 0, np.sqrt(3)])


@pytest.mark.parametrize("in_memory", [True, False])
def test_moments_over_ragged_blocks(in_memory, x64, monkeypatch):
    """Seven probes in blocks of three: the two too many weigh nothing, but are paid for."""
    operator = rotated(np.linspace(-1, 2, 5), in_memory=in_memory)
    probes = np.asarray(draw(operator, KEY, jnp.arange(7), "normal"))
    samples = probes * (probes @ np.asarray(operator.dense))
    monkeypatch.setattr(Limits, "chunk_size", lambda *_: 3)
    options = {"key": KEY, "num_samples": 7, "probes": "normal"}
    found = monte_carlo(DIAGONAL, operator, **options)
    twins.assert_close(found.value, samples.mean(0))
    twins.assert_close(found.standard_error, samples.std(0, ddof=1) / np.sqrt(7))
    assert found.num_products == 9
    each = over_probes(TRACE, operator, **options)
    twins.assert_close(each, samples.sum(1))


def test_compiled_loop_equals_the_host_loop(x64, monkeypatch):
    operator = rotated(np.linspace(-1, 2, 5))
    monkeypatch.setattr(Limits, "chunk_size", lambda *_: 2)

    def run(operator, key):
        options = {"key": key, "num_samples": 5, "probes": "signs"}
        moments = monte_carlo(DIAGONAL, operator, **options)
        return moments.value, moments.standard_error, over_probes(TRACE, operator, **options)

    jitted = jax.jit(run)
    for found, expected in zip(jitted(operator, KEY), run(operator, KEY), strict=True):
        twins.assert_close(found, expected)
    other = jax.random.key(1)
    with twins.compilations() as programs:
        jitted(operator, other)
    assert not programs


def test_no_standard_error_of_one_sample():
    with pytest.raises(ValueError, match=r"num_samples=1, expected 2 or more.*raise it"):
        monte_carlo(TRACE, rotated(np.ones(3), "float32"), key=KEY, num_samples=1, probes="signs")
