"""Inputs to predict at: which number of rows they are filled up to, and what is refused."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from hypothesis import given
from hypothesis import strategies as st

from laplace_kit.eval.inputs import checked_inputs, filled_inputs, round_up


@given(st.integers(1, 100_000))
def test_rows_are_rounded_to_a_few_numbers_by_an_eighth_at_most(num):
    found = round_up(num)
    assert num <= found <= 1.125 * num
    assert round_up(found) == found
    assert bin(found)[2:].rstrip("0").count("") <= 5  # four leading bits


def test_few_rows_are_taken_as_they_are():
    assert [round_up(num) for num in (1, 7, 15, 16, 17, 250)] == [1, 7, 15, 16, 18, 256]


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray], ids=["host", "device"])
def test_filled_up_with_the_last_row(kind):
    x = {"a": kind(np.arange(34, dtype=np.float32).reshape(17, 2)), "b": kind(np.arange(17))}
    found, num = filled_inputs(x)
    assert num == 17
    for name, leaf in x.items():
        assert isinstance(found[name], jax.Array)
        np.testing.assert_array_equal(found[name], np.concatenate([leaf, leaf[-1:]]))


def test_many_rows_and_traced_ones_keep_their_number():
    x = np.zeros((4097, 1), np.float32)
    assert len(filled_inputs(x)[0]) == 4097
    assert jax.eval_shape(lambda x: filled_inputs(x)[0], x[:17]).shape == (17, 1)


@pytest.mark.parametrize("kind", [np.array, jnp.array], ids=["host", "device"])
def test_what_is_not_finite_is_named(kind):
    x = np.zeros((17, 2), np.float32)
    x[16, 1] = np.nan
    for read in (checked_inputs, filled_inputs):
        with pytest.raises(ValueError, match=r"not finite at 'a', first in row 16"):
            read({"a": kind(x), "b": kind(np.zeros(17))})


def test_lengths_that_differ_are_not_made_alike():
    with pytest.raises(ValueError, match="leading axes differ"):
        filled_inputs((np.zeros((17, 2)), np.zeros((18, 2))))
    for empty in (np.zeros((0, 2)), np.float32(1.0)):
        with pytest.raises(ValueError, match="expected"):
            filled_inputs(empty)


def test_another_number_of_rows_needs_no_new_pass():
    """Only what is cut off at the end is compiled anew."""
    la, rng = exact.fitted("diagonal", "float32"), np.random.default_rng(0)
    x = rng.normal(size=(40, 3)).astype(np.float32)
    whole = la.predict(x)
    la.predict(x[:33])
    with twins.compilations() as names:
        found = la.predict(x[:34])
        at_mode = la.predict_at_mode(x[:34])
        la.predict_at_mode(x[:35])
    assert sum("map_rows" in name for name in names) == 1  # that of the mode
    twins.assert_close(found.f_cov, whole.f_cov[:34])
    twins.assert_close(at_mode.f_mean, whole.f_mean[:34])
