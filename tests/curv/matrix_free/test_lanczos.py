"""Leading eigenpairs against the dense decomposition, for spectra that Lanczos finds hard."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_placement
import twins
from matrices import Diagonal, rotated, rotation

from laplace_kit import curv
from laplace_kit.curv.linearization import LinearizedOperator
from laplace_kit.curv.matrix_free import lanczos as module
from laplace_kit.curv.matrix_free.lanczos import leading_eigenpairs, tridiagonalize
from laplace_kit.likelihood import FromLoss
from laplace_kit.memory import Limits
from laplace_kit.tree import replace

P, RANK = 40, 8  # the Krylov space, 2 * 8 + 10, stays below P: nothing is decomposed densely

SPECTRA = {
    "decaying": 10.0 ** -np.linspace(0, 6, P),
    "triples": np.repeat(np.linspace(3, 1, 14), 3)[:P],
    "identity": np.ones(P),
    "clusters": np.concatenate([5 + 1e-6 * np.arange(4), 2 + 1e-9 * np.arange(4), np.ones(32)]),
    "rank_five": np.where(np.arange(P) < 5, np.arange(P, 0, -1), 0.0),
    "one_twelvefold": np.where(np.arange(P) < 12, 2.0, 0.0),
    "zero": np.zeros(P),
    "indefinite": np.concatenate([4 * 0.8 ** np.arange(12), -np.linspace(0.001, 0.1, 27), [-6]]),
    "mostly_negative": np.concatenate([[3.0, 1.0], -np.linspace(1, 2, P - 2)]),
}


def linear(params, x):
    return x @ params


def weighted_square(f, y):
    return 0.5 * jnp.sum(y * f**2)


def operator_of(spectrum, dtype="float64", *, batches: tuple[int, ...] = ()):
    """Return the curvature of linear outputs under a quadratic loss: R^T diag(spectrum) R."""
    x, y = jnp.asarray(rotation(P), dtype), jnp.asarray(spectrum, dtype)[:, None]
    data = twins.batches(x, y, *batches) if batches else (x, y)
    params = jnp.zeros((P, 1), dtype)
    kind = curv.HessianOperator if spectrum.min() < 0 else curv.GGNOperator
    return kind(linear, params, data, FromLoss(weighted_square))


def check(found, operator, spectrum, *, rtol=1e-7, rank=RANK):
    """Check eigenpairs against the matrix itself."""
    pairs, smallest = found
    matrix = np.asarray(operator.to_dense(), np.float64)
    size = max(np.abs(spectrum).max(), 1e-30)
    values, vectors, residuals = (
        np.asarray(a, np.float64) for a in (pairs.values, pairs.vectors, pairs.residuals)
    )
    expected = np.sort(spectrum)[::-1][: len(values)]
    np.testing.assert_allclose(values, expected, atol=rtol * size)
    if len(values) < rank:  # whatever is left out is not positive
        assert np.sort(spectrum)[::-1][len(values)] <= rtol * size
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(values)), atol=rtol * 10)
    actual = np.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(residuals, actual, atol=rtol * size)
    assert min(spectrum.min(), 0) <= smallest + rtol * size
    assert smallest <= values[-1]
    assert pairs.num_products >= len(values)


@pytest.mark.accelerator
@pytest.mark.parametrize("name", SPECTRA)
def test_equals_the_dense_decomposition(name, x64):
    for scale in (1e-8, 1.0, 1e8):
        spectrum = scale * SPECTRA[name]
        operator = rotated(spectrum)
        pairs, smallest = leading_eigenpairs(operator, RANK)
        check((pairs, smallest), operator, spectrum)
        assert pairs.converged.all()


@pytest.mark.parametrize("name", ["triples", pytest.param("indefinite", marks=pytest.mark.slow)])
def test_over_a_stream_with_a_ragged_last_batch(name, x64):
    spectrum = SPECTRA[name]
    operator = operator_of(spectrum, batches=(15, 15, 10))
    check(leading_eigenpairs(operator, RANK), operator, spectrum)


@pytest.mark.parametrize("in_memory", [True, False])
def test_little_negative_curvature(in_memory, x64):
    """Next to a norm a thousand times as large, its sign is not missed."""
    spectrum = np.concatenate([4 * 0.8 ** np.arange(12), np.linspace(0, 0.1, 27), [-4e-3]])
    operator = rotated(spectrum, in_memory=in_memory)
    found = leading_eigenpairs(operator, RANK)
    check(found, operator, spectrum)
    assert found[1] == pytest.approx(-4e-3, rel=0.1)


def test_what_has_not_converged_says_so(x64):
    """An evenly spaced spectrum is the slowest: each value is still within its residual."""
    spectrum = np.linspace(4, 1, P)
    operator = rotated(spectrum)
    pairs, smallest = leading_eigenpairs(operator, RANK)
    check((pairs, smallest), operator, spectrum, rtol=1e-5)
    error = np.abs(np.asarray(pairs.values)[:, None] - spectrum).min(axis=1)
    assert np.all(error <= pairs.residuals + 1e-12)
    assert np.all(pairs.values <= spectrum[:RANK] + 1e-12)  # as Ritz values are
    np.testing.assert_array_equal(pairs.converged, pairs.residuals <= 4 * 2**-26)


def test_negative_curvature_is_met(x64):
    """The smallest Ritz value need not be exact, but its sign must not be missed."""
    _, smallest = leading_eigenpairs(rotated(SPECTRA["indefinite"]), RANK)
    assert smallest == pytest.approx(-6, rel=2e-2)
    _, smallest = leading_eigenpairs(rotated(SPECTRA["mostly_negative"]), RANK)
    assert -2 - 1e-9 <= smallest < -1.9


def test_without_positive_eigenvalues(x64):
    """One pair comes back, the closest to one that was met, within its residual."""
    spectrum = -np.linspace(1, 2, P)
    pairs, smallest = leading_eigenpairs(rotated(spectrum), RANK)
    assert len(pairs.values) == 1
    assert np.abs(pairs.values - spectrum).min() <= pairs.residuals
    assert -2 - 1e-9 <= smallest < -1.9


def test_many_copies_of_an_eigenvalue(x64):
    """An eigenvalue with more copies than runs, as for an untrained network with many classes."""
    spectrum = np.repeat([3.0, 0.0], [25, 45])
    operator = rotated(spectrum)
    check(leading_eigenpairs(operator, 25), operator, spectrum, rank=25)


def test_many_parameters_in_single_precision():
    """Their roundings do not add up to what would hide eigenvalues."""
    spectrum = np.zeros(400_000, "float32")
    spectrum[[5, 70, 123_456]] = 1.0, 0.03, 0.01  # in float32, as many roundings are 0.05
    pairs, _ = leading_eigenpairs(Diagonal(jnp.asarray(spectrum)), 3)
    np.testing.assert_allclose(pairs.values, [1, 0.03, 0.01], rtol=1e-4)
    assert pairs.converged.all()


def test_a_key_chooses_the_start_and_not_the_answer(x64):
    spectrum = SPECTRA["decaying"]
    operator = rotated(spectrum)
    keys = [jax.random.key(i) for i in (0, 1, 0)]
    first, second, again = (leading_eigenpairs(operator, RANK, key=key) for key in keys)
    assert not np.array_equal(first[0].vectors, second[0].vectors)
    for found in (first, second):
        check(found, operator, spectrum)
    np.testing.assert_array_equal(first[0].vectors, again[0].vectors)


@pytest.mark.parametrize("rank", [20, P])
def test_large_ranks_are_decomposed_densely(rank, x64):
    spectrum = SPECTRA["indefinite"]
    pairs, smallest = leading_eigenpairs(rotated(spectrum), rank)
    assert pairs.values.shape == (rank,)
    assert pairs.num_products == P
    np.testing.assert_allclose(pairs.values, np.sort(spectrum)[::-1][:rank], atol=1e-12)
    np.testing.assert_allclose(smallest, -6)


@pytest.mark.parametrize("name", ["decaying", "triples", "rank_five"])
def test_single_precision(name):
    operator = rotated(SPECTRA[name], "float32")
    found = leading_eigenpairs(operator, RANK)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float32", "bool"}
    check(found, operator, SPECTRA[name], rtol=2e-5)


@pytest.mark.parametrize("in_memory", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_half_precision_parameters_give_single_precision_pairs(in_memory):
    spectrum = SPECTRA["rank_five"]
    pairs, _ = leading_eigenpairs(rotated(spectrum, "bfloat16", in_memory=in_memory), RANK)
    assert pairs.values.dtype == pairs.vectors.dtype == "float32"
    np.testing.assert_allclose(pairs.values[:5], spectrum[:5], rtol=2e-2)


def test_every_product_reads_one_linearisation(monkeypatch):
    """New values of the same shapes do not recompile."""
    seen = []

    def spy(operator, *args):
        seen.append(operator)
        return tridiagonalize(operator, *args)

    monkeypatch.setattr(module, "tridiagonalize", spy)
    leading_eigenpairs(operator_of(SPECTRA["triples"], "float32"), RANK)
    assert len(seen) > 1
    assert isinstance(seen[0], LinearizedOperator)
    assert all(operator is seen[0] for operator in seen)
    with twins.compilations() as names:
        leading_eigenpairs(operator_of(2 * SPECTRA["triples"], "float32"), RANK)
    assert not names


@pytest.mark.slow
def test_where_no_linearisation_fits_the_memory_limit(x64):
    spectrum = SPECTRA["decaying"]
    operator = operator_of(spectrum)
    check(leading_eigenpairs(replace(operator, limits=Limits(memory=1)), RANK), operator, spectrum)


def test_of_a_sum_of_operators(x64):
    spectrum = SPECTRA["indefinite"]
    operator = rotated(np.abs(spectrum)) - rotated(np.abs(spectrum) - spectrum)
    check(leading_eigenpairs(operator, RANK), operator, spectrum)


@pytest.mark.parametrize("rank", [0, -1, P + 1])
def test_impossible_rank(rank):
    with pytest.raises(ValueError, match=rf"rank={rank}, expected a number from 1 to P=40.*lower"):
        leading_eigenpairs(rotated(np.ones(P), "float32"), rank)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "num_out"), [("Auto", 3), ("Auto", 4), ("Explicit", 3)])
def test_the_basis_is_spread_along_the_parameters(kind, num_out):
    """Where devices divide P = 96; between programs P = 105 is whole on each."""
    test_placement.run(
        f"""
    if {num_out} == 4:
        params["out"] = rng.normal(size=(8, 4)).astype(np.float32)
        params["scale"] = np.ones(1, np.float32)

    def scaled(params, x):
        return model(params, x) * params.get("scale", 1.0)

    x, y = problem(64)
    rows = NamedSharding(mesh_of("{kind}", data=8), P("data"))
    options = dict(likelihood="categorical", structure="low_rank", rank=12, batch_size=8)
    with jax.enable_x64(True):
        p, x = jax.tree.map(lambda leaf: leaf.astype(np.float64), (params, x))
        data = jax.device_put((x, y), rows)
        one = lk.fit(scaled, p, (x, y), **options)
        programs = device_work.Programs(folder.name)
        programs.new()
        many = lk.fit(scaled, p, data, **options)
        texts = programs.new()
        num = sum(leaf.size for leaf in jax.tree.leaves(p))
        close([many.structure.values], [one.structure.values], 1e-10)
        close([many.posterior.variance()], [one.posterior.variance()], 1e-8)
        close([many.log_marginal_likelihood()], [one.log_marginal_likelihood()], 1e-10)
        close([np.asarray(many.predict(data[0]).f_cov)], [one.predict(x).f_cov], 1e-8)
    if "{kind}" == "Auto" and num % 8 == 0:
        for array in (many.structure.vectors, many.posterior.rows):
            assert array.sharding.shard_shape(array.shape) == (12, num // 8)
    # Runs of 34 products: rows of a run, and of the 12 kept, in their eighth.
    runs = (text for text in texts if text.startswith("HloModule jit__tridiagonalize"))
    run = max(map(device_work.largest_array, runs))
    assert num % 8 or run < 34 * num / 2, run
        """
    )


@pytest.mark.slow
def test_over_a_stream_of_batches_on_several_devices():
    test_placement.run(
        """
    x, y = problem(64)
    options = dict(likelihood="categorical", structure="low_rank", rank=4)
    one = lk.fit(model, params, (x, y), **options)
    for kind in ("Auto", "Explicit"):
        rows = NamedSharding(mesh_of(kind, data=8), P("data"))
        batches = [jax.device_put((x[i : i + 32], y[i : i + 32]), rows) for i in (0, 32)]
        many = lk.fit(model, params, batches, **options)
        close([many.structure.values], [one.structure.values])
        close([many.posterior.variance()], [one.posterior.variance()])
        """
    )
