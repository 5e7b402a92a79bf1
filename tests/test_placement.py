"""Data sharded over eight simulated devices, each of which does an eighth of the work."""

import jax
import numpy as np
import pytest
import twins
from jax.sharding import NamedSharding, PartitionSpec

from laplace_kit.data import as_data
from laplace_kit.placement import placement_of

PREAMBLE = """
    import os, tempfile
    folder = tempfile.TemporaryDirectory()
    os.environ["XLA_FLAGS"] += f" --xla_dump_to={folder.name} --xla_dump_hlo_as_text"
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    import jax, jax.numpy as jnp, numpy as np
    import device_work, laplace_kit as lk
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

    rng = np.random.default_rng(0)
    params = {
        "hidden": rng.normal(size=(8, 8)).astype(np.float32),
        "bias": rng.normal(size=8).astype(np.float32),
        "out": rng.normal(size=(8, 3)).astype(np.float32) / 2,
    }

    def model(params, x):
        return jnp.tanh(x @ params["hidden"] + params["bias"]) @ params["out"]

    def problem(num):
        return rng.normal(size=(num, 8)).astype(np.float32), rng.integers(0, 3, num)

    def mesh_of(kind, **sizes):
        types = (AxisType[kind],) * len(sizes)
        return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types)

    def close(found, expected, rtol=1e-4):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())

    def posterior(model, params, data, structure, **options):
        options |= {"rank": 4} if structure == "low_rank" else {}
        la = lk.fit(model, params, data, likelihood="categorical", structure=structure, **options)
        predictive = la.predict(data[0])
        assert predictive.probs.sharding.device_set == data[0].sharding.device_set
        return la.posterior.variance(), la.log_marginal_likelihood(), predictive.f_var
"""


def run(code: str) -> None:
    twins.run_on_eight_devices(PREAMBLE + code)


def test_arrays_on_one_device_have_no_placement():
    mesh = jax.make_mesh((1,), ("data",))
    x = jax.device_put(np.ones((4, 2)), NamedSharding(mesh, PartitionSpec("data")))
    assert placement_of(x) is None
    assert as_data((x, x)).placement is None
    assert placement_of((np.ones(3), 1.0, jax.numpy.ones(3))) is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("structure", ["full", "kron", "ekfac", "diagonal", "low_rank"])
def test_each_device_does_an_eighth_of_a_fit_and_of_predictions(kind, structure):
    """Over four chunks a device; parameters are sharded over the same axis where it is explicit."""
    run(
        f"""
    x, y = problem(4096)
    mesh = mesh_of("{kind}", data=8)
    data = jax.device_put((x, y), NamedSharding(mesh, P("data")))
    axis = "data" if "{kind}" == "Explicit" else None
    spread = jax.device_put(params, NamedSharding(mesh, P(axis)))
    programs, found, work, gathers = device_work.Programs(folder.name), [], [], []
    for p, examples in ((params, jax.device_put((x, y))), (spread, data)):
        found.append(posterior(model, p, examples, "{structure}", batch_size=128))
        texts = programs.new()
        work.append(sum(map(device_work.num_operations, texts)))
        gathers.append(max(map(device_work.largest_gather, texts)))
    # Eigenvalues of zero round to N epsilon, next to a prior precision of one.
    close(found[1], found[0], rtol=2 * 4096 * np.finfo(np.float32).eps)
    assert 0.9 * work[0] / 8 < work[1] < 1.1 * work[0] / 8, work
    # Vectors of P entries and eigenvectors are gathered, and no chunk of 8 x 128 examples.
    assert gathers[1] <= 512 < 8 * 128 * 8, gathers
        """
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_a_product_is_two_chunks_a_device_and_one_sum_over_devices(kind):
    run(
        f"""
    x, y = problem(1024)
    mesh = mesh_of("{kind}", data=4, model=2)
    whole = jax.device_put((x, y), NamedSharding(mesh, P("data")))
    several = jax.device_put(params["out"], NamedSharding(mesh, P("model")))
    operators = [
        lk.curv.GGNOperator(model, p, data, "categorical", batch_size=32)
        for p, data in ((params, (x, y)), (params | {{"out": several}}, whole))
    ]
    v = np.linspace(-1, 1, operators[0].shape[0], dtype=np.float32)
    programs, found, texts = device_work.Programs(folder.name), [], []
    for operator in operators:
        programs.new()
        found.append([operator @ v])
        texts.append(programs.new())
    close(*found)
    one, many = (sum(map(device_work.num_operations, text)) for text in texts)
    gathered = max(map(device_work.largest_gather, texts[1]))
    assert many < 1.1 * one / 4, (many, one)
    assert gathered <= 64, gathered
        """
    )


@pytest.mark.slow
def test_models_may_say_where_their_values_lie():
    """Constraints that name the axis of the data, weights resharded where they are used."""
    run(
        """
    x, y = problem(64)
    expected = posterior(model, params, jax.device_put((x, y)), "kron", batch_size=2)

    def by(kind, spec):
        return NamedSharding(meshes[kind], spec)

    meshes = {kind: mesh_of(kind, data=4, model=2) for kind in ("Auto", "Explicit")}
    constrain = jax.lax.with_sharding_constraint

    def constrained(params, x):
        params = constrain(params, by("Auto", P()))
        hidden = constrain(x @ params["hidden"], by("Auto", P("data", "model")))
        return constrain(jnp.tanh(hidden + params["bias"]) @ params["out"], by("Auto", P("data")))

    def resharded(params, x):
        return model(jax.sharding.reshard(params, by("Explicit", P())), x)

    def mapped(params, x):
        product = jax.shard_map(
            lambda h, w: jax.lax.psum(h @ w, "model"),
            mesh=meshes["Auto"],
            in_specs=(P(None, "model"), P("model")),
            out_specs=P(),
            axis_names={"model"},
            check_vma=False,
        )
        return product(jnp.tanh(x @ params["hidden"] + params["bias"]), params["out"])

    for kind, fn in (("Auto", constrained), ("Explicit", resharded)):
        data = jax.device_put((x, y), by(kind, P("data")))
        spread = jax.device_put(params, by(kind, P("data")))
        close(posterior(fn, spread, data, "kron", batch_size=2), expected)
    data = jax.device_put((x, y), by("Auto", P("data")))
    one, many = (
        lk.fit(fn, params, d, likelihood="categorical", structure="diagonal", batch_size=2)
        for fn, d in ((model, (x, y)), (mapped, data))
    )
    close([many.posterior.variance()], [one.posterior.variance()])
        """
    )


@pytest.mark.slow
def test_parameters_on_another_device_are_refused_with_the_remedy():
    run(
        """
    x, y = problem(16)
    data = lk.data.shard(x, y, mesh_of("Auto", data=8))
    elsewhere = jax.device_put(params, jax.devices()[1])
    for make in (
        lambda: lk.fit(model, elsewhere, data, likelihood="categorical"),
        lambda: lk.curv.GGNOperator(model, elsewhere, data, "categorical"),
        lambda: lk.curv.JacobianOperator(model, elsewhere, data[0]),
    ):
        try:
            make()
        except ValueError as error:
            assert str(error).startswith("Found parameters on cpu:1 and examples on 8 devices")
            assert "jax.device_put(params" in str(error)
        else:
            raise AssertionError("not refused")
        """
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_loaders_may_yield_sharded_batches(kind):
    run(
        f"""
    x, y = problem(96)
    rows = NamedSharding(mesh_of("{kind}", data=8), P("data"))
    batches = [jax.device_put((x[i : i + 32], y[i : i + 32]), rows) for i in (0, 32, 64)]
    options = dict(likelihood="categorical", structure="kron", batch_size=2)
    one, many = (lk.fit(model, params, data, **options) for data in ((x, y), batches))
    close([many.posterior.variance()], [one.posterior.variance()])
        """
    )
