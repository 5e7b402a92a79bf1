"""Functions under `jax.set_mesh` of a mesh with explicit axes, next to one device."""

import pytest
import test_placement


@pytest.mark.slow
@pytest.mark.parametrize("where", ["spread", "host"])
def test_everything_works_under_an_explicit_mesh(where):
    test_placement.run(
        f"""
    x, y = problem(64)
    v = np.linspace(-1, 1, 96, dtype=np.float32)
    key = jax.random.key(0)

    def numbers(params, data):
        la = lk.fit(model, params, data, likelihood="categorical", structure="diagonal")
        J = lk.curv.JacobianOperator(model, params, data[0])
        functions = la.sample_functions(key, 3)
        predictive = la.predict(data[0])
        return jax.device_get(
            dict(
                push=J @ v,
                pull=J.T @ np.linspace(-1, 1, 192, dtype=np.float32),
                several=J.matmat(np.stack([v, 2 * v])),
                dense=J.to_dense(),
                draws=functions(data[0]),
                draw=functions[1](data[0]),
                joint=la.predict(data[0], joint=True).joint_cov,
                probs=predictive.probs,
                sampled=la.predict(data[0], method="sampled", key=key).probs,
                metrics=la.evaluate(data),
                precision=la.tune().prior_precision,
                updated=la.update(data).posterior.variance(),
                kernel=lk.curv.neural_tangent_kernel(model, params, data[0]),
            )
        )

    expected = numbers(params, (x, y))
    mesh = mesh_of("Explicit", data=8)
    data = (x, y)
    if "{where}" == "spread":
        data = jax.device_put(data, NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        found = numbers(params, data)
        lies = lk.fit(model, params, data, likelihood="categorical", structure="diagonal")
        assert lies.predict(data[0]).f_mean.sharding.device_set == set(jax.devices())
    for name, value in expected.items():
        try:
            close(*map(jax.tree.leaves, (found[name], value)), rtol=2e-5)
        except AssertionError as error:
            raise AssertionError(name) from error
        """
    )
