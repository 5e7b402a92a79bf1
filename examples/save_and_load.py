"""Save a posterior and load it elsewhere: arrays and JSON, no pickle, no training data.

Run `python examples/save_and_load.py`. The file does not hold the model function, which is code:
`load` asks for it.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import laplace_kit as lk


def model_fn(params, x):
    """Return the outputs of a network with one hidden layer, (N, 1)."""
    hidden = jnp.tanh(x @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def train(params, x, y, num_steps: int = 2000):
    """Return the parameters of least squared error that Adam finds."""
    optimizer = optax.adam(1e-2)

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(lambda params: jnp.mean((model_fn(params, x) - y) ** 2))(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=num_steps)[0][0]


keys = jax.random.split(jax.random.key(0), 4)
x = jax.random.uniform(keys[0], (100, 1), minval=-1.0, maxval=1.0)
y = jnp.sin(3.0 * x) + 0.1 * jax.random.normal(keys[1], x.shape)
initial = {
    "w1": 2.0 * jax.random.normal(keys[2], (1, 20)),
    "b1": jnp.linspace(-2.0, 2.0, 20),
    "w2": 0.2 * jax.random.normal(keys[3], (20, 1)),
    "b2": jnp.zeros(1),
}
la = lk.fit(model_fn, jax.jit(train)(initial, x, y), (x, y), likelihood="gaussian").tune()

# Where it was trained:
path = Path("out/save_and_load.laplace")
path.parent.mkdir(exist_ok=True)
la.save(path)

# Where it is used:
restored = lk.load(path, model_fn)
x_new = jnp.array([[-0.5], [0.5], [2.0]])
pred = restored.predict(x_new)
for place, mean, var in zip(x_new[:, 0], pred.mean[:, 0], pred.var[:, 0], strict=True):
    print(f"x = {place:4.1f}: {mean:5.2f} ± {var**0.5:.2f}")
print(f"{path}: {path.stat().st_size:,} bytes")

# The prior can still be changed, as the curvature is in the file; the data are not needed.
stiffer = restored.with_prior(10.0 * restored.prior_precision)
print(f"log evidence {restored.log_marginal_likelihood():.2f}", end=", ")
print(f"with ten times the prior precision {stiffer.log_marginal_likelihood():.2f}")
