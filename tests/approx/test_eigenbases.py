"""Factors dealt out to eight devices, next to NumPy's eigenvectors."""

import jax.numpy as jnp
import numpy as np
import pytest
import test_placement

from laplace_kit.approx.eigenbases import eigenbases


@pytest.mark.slow
def test_each_device_decomposes_its_share_of_the_layers():
    test_placement.run(
        r"""
    from laplace_kit.approx.eigenbases import eigenbases
    from laplace_kit.placement import Placement
    import re
    jax.config.update("jax_enable_x64", True)

    def factors():
        for num, width in ((1, 6), (9, 6), (1, 6), (1, 4), (2, 5), (3, 1)):
            root = rng.normal(size=(num, width, width))
            yield root @ root.mT
        yield rng.uniform(size=(2, 7))  # a diagonal

    every = list(factors())
    for kind in ("Auto", "Explicit"):
        mesh = mesh_of(kind, data=8)
        place = Placement(mesh_of("Auto", data=8), ("data",))
        spread = jax.device_put(every, NamedSharding(mesh, P()))
        programs = device_work.Programs(folder.name)
        programs.new()
        found = jax.jit(lambda of: eigenbases(of, place))(spread)
        for (values, vectors), factor in zip(found, every, strict=True):
            if vectors is None:
                np.testing.assert_array_equal(values, factor.reshape(values.shape))
                continue
            close([values], [np.linalg.eigvalsh(factor)], 1e-10)
            close([vectors * values[:, None] @ vectors.mT], [factor], 1e-10)
        # Two each of the eleven of width 6, one each of width 5, and the lone one by all.
        text = "\n".join(programs.new())
        results = re.findall(r"= .(f64.[0-9,]+.)\S* .*custom-call.%", text)
        assert sorted(results) == ["f64[1,4,4]", "f64[1,5,5]", "f64[2,6,6]"], results
        """
    )


def test_on_one_device_each_factor_is_decomposed_by_itself():
    diagonal, full = jnp.ones((2, 3)), jnp.eye(3)[None] * 2
    (values, vectors), (of_full, basis) = eigenbases([diagonal, full], None)
    assert vectors is None
    np.testing.assert_array_equal(values, diagonal)
    np.testing.assert_allclose(of_full, [[2, 2, 2]], rtol=1e-6)
    np.testing.assert_allclose(basis @ basis.mT, jnp.eye(3)[None], atol=1e-6)
