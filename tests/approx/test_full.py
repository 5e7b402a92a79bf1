"""The full posterior: the operator's own dense matrix, exact for every prior."""

import dataclasses

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

import laplace_kit as lk
from laplace_kit.approx.full import Full, FullStructure
from laplace_kit.approx.spec import Sizes, first_that_fits


def test_is_the_dense_curvature(x64):
    twins.assert_close(exact.fitted("full", "float64").structure.matrix, exact.curvature("full"))


def test_spectrum_of_a_singular_matrix_has_no_rounding_below_zero():
    structure = exact.fitted("full", "float32").structure
    values = structure.spectrum().values
    assert structure.spectrum().smallest == values[0] == 0  # 14 of 31 directions are determined
    twins.assert_close(values, np.linalg.eigvalsh(exact.curvature("full")), dtype="float32")


def test_spectrum_is_decomposed_once_and_never_leaks_a_tracer(x64):
    structure = FullStructure(jnp.diag(jnp.arange(1.0, 4.0)))
    traced = jax.jit(lambda s: s.spectrum().values)(structure)
    np.testing.assert_array_equal(traced, [1, 2, 3])
    assert structure.spectrum() is structure.spectrum()
    np.testing.assert_array_equal(structure.spectrum().values, [1, 2, 3])
    doubled = jax.tree.map(lambda a: 2 * a, structure)
    np.testing.assert_array_equal(doubled.spectrum().values, [2, 4, 6])


def test_a_matrix_of_wide_range_in_single_precision():
    """A weak prior under a strong curvature: the factor is exact where the matrix is diagonal."""
    curvature = np.zeros(31, np.float32)
    curvature[:5] = np.logspace(8, -8, 5)

    @jax.jit
    def variance(structure):
        return structure.posterior(jnp.full(31, 1e-6)).variance()

    expected = 1 / (curvature.astype(np.float64) + 1e-6)
    np.testing.assert_allclose(variance(FullStructure(jnp.diag(curvature))), expected, rtol=1e-5)


# --- its two forms --------------------------------------------------------------------------------

SIZES = Sizes(num_params=4000, itemsize=4, num_columns=1)


def with_rows(num_rows, num_params=4000, entries=100) -> Sizes:
    """Return sizes with so many examples of one column, whose rows hold so many entries."""
    counts = {"count_data": lambda: num_rows, "count_entries": lambda: entries}
    return dataclasses.replace(SIZES, num_params=num_params, **counts)


def test_dual_where_the_matrix_would_not_fit():
    sizes = with_rows(200, num_params=1_000_000, entries=2000)
    needed = Full("dual").bytes(sizes)
    assert needed == 4 * (4 * 200**2 + 2 * 200 * 2000 + 6 * 10**6)
    assert needed < Full("primal").bytes(sizes) / 1000
    assert Full("primal").bytes(sizes) == 4 * 3 * 10**12
    assert first_that_fits(Full().forms(sizes), sizes, needed) == Full("dual")
    assert first_that_fits(Full().forms(sizes), sizes, needed - 1) is None


@pytest.mark.parametrize(
    ("num_rows", "form"), [(100, "dual"), (10_000, "primal"), (None, "primal")]
)
def test_the_form_of_less_work_comes_first(num_rows, form):
    sizes = with_rows(num_rows)
    forms = list(Full().forms(sizes))
    assert forms[0] == Full(form)
    assert set(forms) == ({Full("primal")} if num_rows is None else {Full("primal"), Full("dual")})


def test_a_matrix_of_few_parameters_is_always_the_primal_one():
    """It costs little, and has smaller rounding errors."""
    for num_params, form in ((2000, "primal"), (2001, "dual")):
        assert next(Full().forms(with_rows(10, num_params))) == Full(form)


def test_of_few_parameters_examples_are_not_even_counted():
    def count():
        raise AssertionError("the data were read")

    sizes = dataclasses.replace(SIZES, num_params=100, count_data=count)
    assert next(Full().forms(sizes)) == Full("primal")
    assert list(Full("primal").forms(sizes)) == [Full("primal")]


def test_without_factors_in_the_outputs_there_is_no_dual_form():
    sizes = dataclasses.replace(with_rows(2), num_columns=None)
    assert list(Full().forms(sizes)) == [Full("primal")]
    assert not list(Full("dual").forms(sizes))


def test_at_most_so_many_rows():
    assert list(Full(max_rows=4000).forms(with_rows(5000))) == [Full("primal")]
    assert list(Full(max_rows=3999).forms(with_rows(100))) == [Full("dual")]
    assert not list(Full(max_rows=99).forms(with_rows(100)))
    assert not list(Full("dual", max_rows=99).forms(with_rows(None)))
    assert Full("dual").bytes(with_rows(None)) == np.inf  # more examples than fit, over a stream


def test_what_it_says_of_itself():
    assert Full("dual").remark(with_rows(200)) == "exact, by its dual matrix of 200 rows"
    assert Full(max_rows=50).remark(SIZES) == "would have more than 50 rows"
    with (
        exact.as_users_call(),
        pytest.raises(ValueError, match=r"form='dul', expected one of.*Did you mean 'dual'"),
    ):
        Full("dul")


def wide(params, x):
    return jnp.tanh(x @ params["hidden"]) @ params["out"]


def test_the_dual_form_over_a_stream_too():
    """Also if the matrix would not fit, as with the same data in memory."""
    rng = np.random.default_rng(0)
    shapes = {"hidden": (3, 500), "out": (500, 2)}
    params = {k: jnp.asarray(rng.normal(size=s) / 20, jnp.float32) for k, s in shapes.items()}
    x, y = rng.normal(size=(10, 3)).astype(np.float32), rng.integers(0, 2, 10)
    options = {"likelihood": "categorical", "structure": "full", "memory_limit": 10**7}
    stream, memory = (
        lk.fit(wide, params, data, **options) for data in (twins.batches(x, y, 4, 4, 2), (x, y))
    )
    assert stream.choice.spec == memory.choice.spec == Full("dual")
    assert "dual matrix of 20 rows" in stream.choice.because
    twins.assert_close(stream.predict(x).f_cov, memory.predict(x).f_cov, dtype="float32")
    with pytest.raises(ValueError, match=r"structure='full' for P=2500.*needs about 71\.5"):
        lk.fit(wide, params, (x, y), **options | {"structure": lk.Full("primal")})
