"""A small network and its data, for checks that one process makes as several do."""

import jax
import jax.numpy as jnp
import numpy as np
from processes import Place

import laplace_kit as lk
from laplace_kit.host import fetch

N, NUM_INPUTS, NUM_CLASSES = 24, 3, 3


def model_fn(params, x):
    """Return the outputs of a network with one hidden layer."""
    hidden = jnp.tanh(x @ params["a"]["w"] + params["a"]["b"])
    return hidden @ params["b"]["w"] + params["b"]["b"]


def params(num_hidden=4):
    rng = np.random.default_rng(0)
    shapes = [(NUM_INPUTS, num_hidden), (num_hidden, NUM_CLASSES)]
    made = [
        {"w": rng.normal(size=s).astype(np.float32), "b": np.zeros(s[1], np.float32)}
        for s in shapes
    ]
    return dict(zip("ab", made, strict=True))


def num(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def data(kind="categorical"):
    """Return inputs, and targets that the model itself might have made."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(N, NUM_INPUTS)).astype(np.float32)
    outputs = np.asarray(model_fn(params(), x))
    if kind == "categorical":
        return x, np.argmax(outputs + rng.gumbel(size=outputs.shape), axis=1).astype(np.int32)
    return x, (outputs + 0.5 * rng.normal(size=outputs.shape)).astype(np.float32)


def rows(place: Place, kind="categorical"):
    return tuple(place.rows(part) for part in data(kind))


def fitted(place: Place, structure="diagonal", likelihood="categorical", **options):
    data = rows(place, "gaussian" if isinstance(likelihood, lk.Gaussian) else "categorical")
    return lk.fit(
        model_fn,
        place.whole_tree(params()),
        data,
        likelihood=likelihood,
        structure=structure,
        **options,
    )


def numbers(la, x) -> dict[str, np.ndarray]:
    predictive = la.predict(x)
    return fetch(
        {
            "evidence": la.log_marginal_likelihood(),
            "num_data": la.num_data,
            "variance": la.posterior.variance(),
            "mean": predictive.f_mean,
            "var": predictive.f_var,
        }
    )
