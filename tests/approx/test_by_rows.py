"""The full posterior by rows over eight devices, next to one device with the whole matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_placement

import laplace_kit as lk
from laplace_kit.approx.by_rows import RowsPosterior, RowsStructure
from laplace_kit.approx.spec import Sizes

SETTING = """
    from laplace_kit.approx.by_rows import RowsStructure
    params |= {"shift": rng.normal(size=3).astype(np.float32)}  # P = 99, and Q = 104
    P_, Q = 99, 104

    def shifted(params, x):
        return model(params, x) + params["shift"]

    def pair(kind, num, dtype=np.float32):
        x, y = problem(num)
        p, x = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, x))
        options = dict(likelihood="categorical", batch_size=1)
        data = lk.data.shard(x, y, mesh_of(kind, data=8))
        one = lk.fit(shifted, p, (x, y), structure=lk.Full("primal"), **options)
        many = lk.fit(shifted, p, data, structure=lk.Full("by_rows"), **options)
        assert many.choice.form == "by_rows", many.choice
        return one, many, (x, data[0])

    def check(one, many, inputs, rtol):
        num = len(inputs[0])
        close([many.structure.matrix[:P_, :P_]], [one.structure.matrix], rtol)
        close([many.structure.mv(v := jnp.linspace(-1, 1, P_))], [one.structure.mv(v)], rtol)
        for of in (
            lambda la: la.posterior.variance(),
            lambda la: la.posterior.covariance(),
            lambda la: la.posterior.sample(jax.random.key(0), 5),
            lambda la: la.log_marginal_likelihood(),
            lambda la: la.structure.spectrum().values,
            lambda la: jax.grad(la.structure.log_det)(jnp.linspace(0.5, 2.0, P_)),
        ):
            close([of(many)], [of(one)], rtol)
        expected = one.predict(inputs[0])
        for x in inputs:  # those on one device, and those that are spread
            found = many.predict(x)
            for name in ("f_mean", "f_var", "f_cov", "probs"):
                values = np.asarray(getattr(found, name))[:num]
                close([values], [getattr(expected, name)], rtol)
        variance = many.predict(inputs[1], covariance="diagonal").f_var
        close([np.asarray(variance)[:num]], [expected.f_var], rtol)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_eight_devices_have_the_posterior_of_one(kind):
    test_placement.run(
        SETTING
        + f"""
    one, many, inputs = pair("{kind}", 21)
    for array in (many.structure.matrix, many.posterior.cholesky):
        assert array.sharding.shard_shape(array.shape) == (Q // 8, Q)
    num = len(inputs[0])
    if "{kind}" == "Explicit":  # whose arrays name what is asked for
        close([many.posterior.variance()], [one.posterior.variance()], 1e-5)
        close([np.asarray(many.predict(inputs[1]).f_cov)[:num]], [one.predict(inputs[0]).f_cov])
        close([many.tune().prior_precision], [one.tune().prior_precision])
    else:
        close([many.posterior.variance()], [one.posterior.variance()], 1e-5)
        with jax.enable_x64(True):
            check(*pair("Auto", 21, np.float64), 1e-10)
        """
    )


@pytest.mark.slow
def test_no_device_holds_or_works_on_more_than_its_share():
    test_placement.run(
        SETTING
        + """
    x, y = problem(64)
    data = lk.data.shard(x, y, mesh_of("Auto", data=8))
    programs = device_work.Programs(folder.name)
    options = dict(likelihood="categorical", batch_size=1)
    largest = []
    for examples, form in (((x, y), "primal"), (data, "by_rows")):
        programs.new()
        la = lk.fit(shifted, params, examples, structure=lk.Full(form), **options)
        jax.block_until_ready(la.predict(examples[0]).f_var)
        la.tune()
        texts = programs.new()
        largest.append(max(map(device_work.largest_array, texts)))
    assert largest[0] >= P_ ** 2
    assert largest[1] <= Q * Q // 8, largest
    rows = la.structure.matrix
    assert rows.nbytes // 8 == rows.addressable_shards[0].data.nbytes

    # The sum over examples takes 2 N P^2 / 8 operations on each device, next to 2 N P^2 on one.
    from laplace_kit.curv.dense_rows import dense_rows
    programs.new()
    operator = lk.curv.GGNOperator(shifted, params, data, "categorical", batch_size=2)
    matrix = dense_rows(operator)
    work = sum(map(device_work.num_operations, programs.new()))
    assert work < 1.1 * 2 * 64 * Q * Q / 8 + 64 * 1500, (work, 2 * 64 * Q * Q / 8)
        """
    )


@pytest.mark.slow
def test_updates_streams_files_and_the_choice():
    test_placement.run(
        SETTING
        + """
    import tempfile
    mesh = mesh_of("Auto", data=8)
    (x, y), (x2, y2) = problem(21), problem(13)
    data, new = lk.data.shard(x, y, mesh), lk.data.shard(x2, y2, mesh)
    options = dict(likelihood="categorical", batch_size=2)
    one = lk.fit(shifted, params, (x, y), structure=lk.Full("primal"), **options)
    # The whole matrix in three copies does not fit, and an eighth of five does.
    options |= dict(memory_limit=2 * 99**2 * 4)
    many = lk.fit(shifted, params, data, structure="full", **options)
    assert many.choice.form == "by_rows"
    assert "spread over 8 device(s)" in many.choice.because, many.choice.because
    found = many.update(new)
    assert isinstance(found.structure, RowsStructure)
    close([found.posterior.variance()], [one.update((x2, y2)).posterior.variance()])
    path = tempfile.mkdtemp() + "/la.npz"
    many.save(path)
    loaded = lk.load(path, shifted)
    assert loaded.structure.placement is None
    assert loaded.structure.matrix.shape == (P_, P_)
    close([loaded.posterior.variance()], [one.posterior.variance()])
    close([loaded.predict(x).f_cov], [one.predict(x).f_cov])
    close([loaded.update((x2, y2)).posterior.variance()], [found.posterior.variance()])
    try:
        many.update((x2, y2))
    except ValueError as error:
        assert "devices over which their rows are spread" in str(error), error
    else:
        raise AssertionError("not refused")

    rows = NamedSharding(mesh, P("data"))
    batches = [jax.device_put((x[i : i + 8], y[i : i + 8]), rows) for i in (0, 8)]
    stream = lk.fit(shifted, params, batches, structure=lk.Full("by_rows"), **options)
    assert stream.structure.matrix.sharding.shard_shape((Q, Q)) == (Q // 8, Q)
    expected = lk.fit(shifted, params, (x[:16], y[:16]), structure="full", likelihood="categorical")
    close([stream.posterior.variance()], [expected.posterior.variance()])
        """
    )


def test_the_planner_counts_what_all_devices_have():
    one, eight = (Sizes(1000, 4, num_columns=3, num_parts=num) for num in (1, 8))
    assert [form.form for form in lk.Full("primal").forms(one)] == ["primal"]
    assert [form.form for form in lk.Full("primal").forms(eight)] == ["primal", "by_rows"]
    assert list(lk.Full("by_rows").forms(one)) == [lk.Full("by_rows")]
    assert lk.Full("by_rows").bytes(eight) == 5 * 1000**2 * 4 // 8 < lk.Full("primal").bytes(eight)
    hessian = Sizes(1000, 4, num_columns=None, num_parts=8)
    assert [form.form for form in lk.Full().forms(hessian)] == ["primal"]


def test_only_factors_in_the_outputs_make_rows():
    params, x, y = jnp.ones((2, 2)), np.ones((3, 2), np.float32), np.array([0, 1, 1])
    operator = lk.curv.HessianOperator(lambda p, x: x @ p, params, (x, y), "categorical")
    with pytest.raises(TypeError, match="Found a HessianOperator for a matrix by rows, expected"):
        lk.Full("by_rows").fit(operator)


def test_on_one_device_it_is_the_full_posterior():
    matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    structure = RowsStructure(matrix, 2, None)
    posterior = structure.posterior(jnp.ones(2))
    assert isinstance(posterior, RowsPosterior)
    assert not posterior.is_spread
    np.testing.assert_allclose(posterior.covariance(), np.linalg.inv(matrix + np.eye(2)), rtol=1e-5)
    np.testing.assert_allclose(structure.scaled(2.0).mv(jnp.ones(2)), [6, 8], rtol=1e-6)
    assert structure.spectrum().values.shape == (2,)
    jax.tree.map(np.asarray, posterior)
