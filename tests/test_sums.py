"""Sums over examples, in memory and over streams, and maps over inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from hypothesis import given
from hypothesis import strategies as st

from laplace_kit import sums
from laplace_kit.data import Chunk, as_data
from laplace_kit.examples import gather
from laplace_kit.sums import map_over, sum_over


def arrays(num: int, dtype="float32") -> tuple:
    rng = np.random.default_rng(0)
    return rng.normal(size=(num, 3)).astype(dtype), rng.normal(size=num).astype(dtype)


X, Y = arrays(5)
WEIGHTS = np.asarray([0.5, 0, 2, 1, 3], np.float32)


def weighted_sums(factor, chunk: Chunk) -> dict:
    """Several sums, of which one tells the examples apart."""
    return {
        "count": chunk.weight.sum().astype(int),
        "first": factor * jnp.sum(chunk.weight[:, None] * chunk.x, axis=0),
        "mixed": jnp.einsum("n,n,ni->i", chunk.weight, jnp.sin(7 * chunk.y), chunk.x),
    }


def expected_sums(factor, x, y) -> dict:
    mixed = np.einsum("n,ni->i", np.sin(7 * y), x)
    return {"count": len(y), "first": factor * x.sum(axis=0), "mixed": mixed}


def assert_sums(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3])
def test_sums_are_weighted(batch_size):
    batches = [[X[:3], Y[:3], WEIGHTS[:3]], [X[3:], Y[3:], WEIGHTS[3:]]]
    for data in ((X, Y, WEIGHTS), batches):
        found = sum_over(weighted_sums, jnp.float32(2.0), as_data(data), batch_size)
        np.testing.assert_allclose(found["first"], 2 * WEIGHTS @ X, rtol=1e-6)
        mixed = np.einsum("n,n,ni->i", WEIGHTS, np.sin(7 * Y), X)
        np.testing.assert_allclose(found["mixed"], mixed, rtol=1e-5, atol=1e-6)


def test_other_weights_compile_nothing():
    for weights in (WEIGHTS, 2 * WEIGHTS[::-1]):
        with twins.compilations() as names:
            for data in ((X, Y, weights), [(X, Y, weights)]):
                sum_over(weighted_sums, jnp.float32(2.0), as_data(data), 2)
    assert names == []


@pytest.mark.parametrize("order", [1, -1])
def test_all_batches_have_weights_or_none(order):
    batches = [(X, Y, WEIGHTS), (X, Y)][::order]
    with pytest.raises(ValueError, match=r"with(out)? weights .* in every batch, or in none"):
        sum_over(weighted_sums, 1.0, as_data(batches), None)


# --- sums -----------------------------------------------------------------------------------------


@given(num=st.integers(1, 12), batch_size=st.integers(1, 14) | st.none())
def test_sum_in_memory(num, batch_size):
    x, y = arrays(num)
    found = sum_over(weighted_sums, jnp.float32(2.0), as_data((x, y)), batch_size)
    assert_sums(found, expected_sums(2.0, x, y))


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    batch_size=st.integers(1, 6) | st.none(),
)
def test_sum_over_a_stream(sizes, batch_size):
    x, y = arrays(sum(sizes))
    found = sum_over(
        weighted_sums, jnp.float32(2.0), as_data(twins.batches(x, y, *sizes)), batch_size
    )
    assert_sums(found, expected_sums(2.0, x, y))


def test_sum_over_a_loader_of_lists_again_and_again():
    x, y = arrays(7)
    stream = as_data(twins.Loader(x, y, 3))
    for _ in range(2):
        found = sum_over(weighted_sums, jnp.float32(2.0), stream, 2)
        assert_sums(found, expected_sums(2.0, x, y))


def test_sum_inside_jit_and_its_derivative():
    x, y = arrays(7)

    @jax.jit
    def total(factor, data):
        return sum_over(weighted_sums, factor, data, 3)["first"].sum()

    found = jax.grad(total)(2.0, as_data((x, y)))
    assert found == pytest.approx(x.sum(), rel=1e-5)


def test_a_stream_inside_jit_is_refused():
    stream = as_data(twins.Loader(*arrays(7), 3))
    with pytest.raises(TypeError, match=r"inside a JAX transformation \(jit.*tuple \(x, y\)"):
        jax.jit(lambda factor: sum_over(weighted_sums, factor, stream, None))(1.0)


def reciprocal(_, chunk):
    return jnp.sum(chunk.weight / chunk.x[:, 0])


@pytest.mark.parametrize("batch_size", [None, 2, 3])
def test_the_model_sees_examples_only(batch_size):
    x = np.asarray([[1.0], [2.0], [4.0], [8.0], [16.0]], np.float32)
    for data in ((x, x), twins.batches(x, x, 3, 2)):
        found = sum_over(reciprocal, (), as_data(data), batch_size)
        np.testing.assert_allclose(found, np.sum(1 / x), rtol=1e-6)


def sum_in_own_precision(_, chunk):
    return jnp.sum(chunk.x * chunk.weight.astype(chunk.x.dtype), dtype=chunk.x.dtype)


@pytest.mark.parametrize("form", ["in memory", "stream"])
def test_many_small_terms_are_not_lost_in_bfloat16(form):
    num = 2000
    x = jnp.full(num, 0.01, jnp.bfloat16)
    data = (x, x) if form == "in memory" else [(x[:1], x[:1])] * num
    found = sum_over(sum_in_own_precision, (), as_data(data), 1)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, num * float(x[0]), rtol=1e-5)
    lost = jax.lax.scan(lambda total, term: (total + term, None), jnp.bfloat16(0), x)[0]
    assert lost < 0.5 * found


def test_a_loader_may_fill_its_buffer_anew():
    class Reusing:
        def __init__(self, x, y, size):
            self.x, self.y, self.size = x, y, size

        def __iter__(self):
            x, y = (np.empty((self.size, *a.shape[1:]), a.dtype) for a in (self.x, self.y))
            for low in range(0, len(self.y), self.size):
                x[:], y[:] = self.x[low : low + self.size], self.y[low : low + self.size]
                yield x, y
                x[:], y[:] = np.nan, np.nan

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5000)).astype(np.float32), np.ones(40, np.float32)
    found = sum_over(weighted_sums, jnp.float32(1.0), as_data(Reusing(x, y, 4)), None)
    assert_sums(found, expected_sums(1.0, x, y))


# --- programs -------------------------------------------------------------------------------------


def test_new_values_do_not_recompile():
    x, y = arrays(7)
    sum_over(weighted_sums, jnp.float32(2.0), as_data((x, y)), 3)
    with twins.compilations() as names:
        sum_over(weighted_sums, jnp.float32(3.0), as_data((x + 1, y)), 3)
    assert names == []


def test_one_program_for_every_batch_of_a_stream():
    x, y = arrays(13)
    sum_over(weighted_sums, jnp.float32(2.0), as_data(twins.Loader(x[:6], y[:6], 3)), None)
    with twins.compilations() as names:
        stream = as_data(twins.batches(x, y, 3, 2, 1, 5, 2))
        found = sum_over(weighted_sums, jnp.float32(2.0), stream, None)
    assert names == []
    assert_sums(found, expected_sums(2.0, x, y))


def product(matrix, chunk):
    return jnp.einsum("n,ni,ij->j", chunk.weight, chunk.x, matrix)


def test_no_array_is_a_constant_of_the_programs():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(43, 37)), jnp.float32)
    matrix = jnp.asarray(rng.normal(size=(37, 41)), jnp.float32)
    chunk = Chunk(x, x, jnp.ones(43))
    in_memory = [
        sums._scan_sum.lower(product, matrix, as_data((x, x)), batch_size)
        for batch_size in (10, 43)
    ]
    steps = [
        sums._step.lower(product, matrix, chunk, jnp.zeros(41), 10),
    ]
    for lowered in (*in_memory, *steps):
        assert twins.constants(lowered.as_text()) == []


@pytest.mark.slow
def test_sharded_examples_give_the_same_sum():
    twins.run_on_eight_devices(
        """
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec
        from laplace_kit.data import as_data
        from laplace_kit.sums import map_over, sum_over
        from laplace_kit.examples import first_examples
        x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
        mesh = jax.make_mesh((8,), ("data",))
        spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        assert len(spread.devices()) == 8
        def total(_, chunk):
            return chunk.weight @ chunk.x
        def doubled(factor, x):
            return factor * x
        for batch_size in (None, 24, 7, 64):  # of 7, no device has a whole chunk
            found = sum_over(total, (), as_data((spread, spread)), batch_size)
            np.testing.assert_allclose(found, x.sum(axis=0), rtol=1e-5)
            found = map_over(doubled, 2.0, spread, batch_size or 64)
            np.testing.assert_array_equal(found, 2 * x)
            assert len(found.devices()) == 8
            assert found.addressable_shards[0].data.shape == (8, 3)
        some = first_examples(as_data((spread, spread)), 10).x
        np.testing.assert_array_equal(some, x[np.arange(10) * 64 // 10])
        weights = jax.device_put(np.arange(64.0) % 4, spread.sharding.update(spec=("data",)))
        weighed = as_data((spread, spread, weights))
        for batch_size in (None, 24, 7):
            found = sum_over(total, (), weighed, batch_size)
            np.testing.assert_allclose(found, np.arange(64) % 4 @ x, rtol=1e-5)
        assert np.all(first_examples(weighed, 48).weights > 0)
        """
    )


# --- bars -----------------------------------------------------------------------------------------


def test_progress_is_shown_on_request(capsys):
    x, y = arrays(6)
    sum_over(weighted_sums, 1.0, as_data(twins.Loader(x, y, 2)), None)
    assert capsys.readouterr().err == ""
    sum_over(weighted_sums, 1.0, as_data(twins.Loader(x, y, 2), progress=True), None)
    shown = capsys.readouterr().err
    assert "pass 1, weighted_sums:" in shown
    assert "0.00/6.00" in shown
    assert "examples/s" in shown


def test_passes_over_one_stream_are_numbered(capsys):
    stream = as_data(twins.Loader(*arrays(6), 2), progress=True)
    sum_over(weighted_sums, 1.0, stream, None)
    gather(stream)
    shown = capsys.readouterr().err
    assert shown.index("pass 1, weighted_sums:") < shown.index("pass 2, reading examples:")


# --- maps -----------------------------------------------------------------------------------------


def rowwise(factor, x):
    return {"y": factor * x["a"][:, None] ** 2, "z": x["b"].sum(axis=1)}


@given(num=st.integers(1, 12), batch_size=st.integers(1, 14))
def test_map_is_the_function_row_by_row(num, batch_size):
    rng = np.random.default_rng(num)
    x = {"a": jnp.asarray(rng.normal(size=num)), "b": jnp.asarray(rng.normal(size=(num, 2)))}
    found = map_over(rowwise, 3.0, x, batch_size)
    expected = rowwise(3.0, x)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)


def test_map_sees_chunks_of_the_given_size():
    sizes = []

    def recorded(_, x):
        sizes.append(len(x))
        return x

    map_over(recorded, (), jnp.arange(10.0), 4)
    assert set(sizes) == {4}


# --- passes that are refused ----------------------------------------------------------------------


def test_a_stream_that_ends_for_good_is_refused():
    class Source:
        """What makes new iterators that share one source, which a second pass alone can tell."""

        def __init__(self, items):
            self.items = iter(items)

        def __iter__(self):
            return (item for item in self.items)

    data = as_data(Source([arrays(3)]))
    with pytest.raises(TypeError, match=r"no batch in a pass.*expected the same.*list\(data\)"):
        sum_over(weighted_sums, 1.0, data, None)


def test_a_batch_unlike_the_first_is_refused():
    (x, y), (other, _) = arrays(4), arrays(4)
    batches = [(x, y), (other[:, :2], y)]
    message = r"shapes \(2,\), \(\), expected those of the first batch, \(3,\), \(\);"
    with pytest.raises(ValueError, match=message):
        sum_over(weighted_sums, 1.0, as_data(batches), None)
    with pytest.raises(ValueError, match=message):
        gather(batches)
