"""Dense matrices by rows over eight devices, next to those of one device."""

import pytest
import test_placement


@pytest.mark.slow
def test_rows_are_those_of_the_dense_matrix():
    """With weights used at several positions, lookups, a scale, weights and drawn labels."""
    test_placement.run(
        """
    from laplace_kit.curv.dense_rows import dense_rows

    params = {
        "table": rng.normal(size=(5, 4)),
        "mix": rng.normal(size=(4, 3)),
        "bias": rng.normal(size=3),
        "out": rng.normal(size=(3, 2)),
    }

    def model(params, x):
        hidden = jnp.tanh(params["table"][x] @ params["mix"] + params["bias"])
        return hidden.mean(axis=1) @ params["out"]

    x, y = rng.integers(0, 5, (21, 6)), rng.integers(0, 2, 21)
    data = lk.data.shard(x, y, mesh_of("Auto", data=8))
    key = dict(key=jax.random.key(0))
    with jax.enable_x64(True):
        for kind, options in ((lk.curv.GGNOperator, {}), (lk.curv.MonteCarloFisherOperator, key)):
            options |= dict(batch_size=2, scale=1.5)
            one, many = (kind(model, params, d, "categorical", **options) for d in ((x, y), data))
            rows, num = dense_rows(many), one.shape[0]
            assert num == 41 and rows.shape == (48, 48)
            assert rows.sharding.shard_shape(rows.shape) == (6, 48)
            close([rows[:num, :num]], [one.to_dense()], 1e-10)
            assert not rows[num:].any() and not rows[:, num:].any()
        """
    )
