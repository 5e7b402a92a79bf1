"""A trained model puts its free and its frozen parameters together."""

import jax
import jax.numpy as jnp
import numpy as np

from laplace_kit.curv.trained_model import TrainedModel
from laplace_kit.likelihood import Poisson
from laplace_kit.memory import Limits
from laplace_kit.selection import select
from laplace_kit.tree import as_pytree_function


def model_fn(params, x):
    return x @ params["weight"] + params["bias"]


def test_the_model_of_the_free_parameters_is_that_of_all():
    rng = np.random.default_rng(0)
    params = {"weight": jnp.asarray(rng.normal(size=(3, 2))), "bias": jnp.ones(2)}
    x = jnp.asarray(rng.normal(size=(4, 3)))
    for subset in (None, lambda path: path == "bias", np.array([1, 4])):
        free, selection = select(params, subset)
        model = TrainedModel(as_pytree_function(model_fn), free, selection)
        jax.tree.map(np.testing.assert_array_equal, model.params, params)
        objective = model.objective(Poisson(), Limits(2))
        np.testing.assert_allclose(objective.outputs(x), model_fn(params, x), rtol=1e-6)
        assert objective.params is free
        assert objective.limits == Limits(2)
