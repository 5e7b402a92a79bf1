"""Sums that lose nothing to the size of their total, in float16 and beside a large term."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laplace_kit.eval.metrics import sums

NUM = 100_000
LARGE = 2.0**24  # one more is the same float32


@pytest.mark.parametrize("num_groups", [1, 15, 1000])
def test_groups_are_counted_past_what_a_counter_can_hold(num_groups):
    # One by one a float16 counts to 2048.
    groups = jnp.arange(40_000) % min(num_groups, 4)
    found = jax.jit(sums.in_groups, static_argnums=2)(
        jnp.ones(40_000, jnp.float16), groups, num_groups
    )
    np.testing.assert_allclose(found, np.bincount(groups, minlength=num_groups), rtol=1e-3)


def test_a_large_term_hides_those_of_its_own_block_alone():
    values = jnp.ones((NUM, 2), jnp.float32).at[0].set(LARGE)
    total = np.asarray(jax.jit(sums.over_examples)(values), "float64")
    np.testing.assert_allclose(total - LARGE, NUM, rtol=0.01)
    groups = jnp.zeros(NUM, int)
    (of_group,) = jax.jit(sums.in_groups, static_argnums=2)(values[:, 0], groups, 1)
    np.testing.assert_allclose(float(of_group) - LARGE, NUM, rtol=0.01)


@pytest.mark.parametrize("num", [1, 511, 512, 513, 512**2 + 7])
def test_nothing_is_left_out_whatever_the_number(num):
    values, groups = jnp.arange(num) % 7, jnp.arange(num) % 3
    assert int(sums.over_examples(values)) == int(np.sum(np.arange(num) % 7))
    found = sums.in_groups(values, groups, 4)
    expected = np.bincount(groups, np.asarray(values), minlength=4)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == values.dtype
