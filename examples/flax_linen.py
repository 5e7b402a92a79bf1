"""A flax.linen network with BatchNorm and dropout: error bars for regression.

Run `python examples/flax_linen.py`. The running statistics of BatchNorm and the dropout are frozen
in evaluation mode; the posterior is over the trained parameters.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

import laplace_kit as lk


class Network(nn.Module):
    """10 inputs, 32 hidden units, one output."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(32)(x))
        x = nn.Dropout(0.1, deterministic=not train)(nn.tanh(x))
        return nn.Dense(1)(x)


x, y = load_diabetes(return_X_y=True)
x, y = (x / x.std(0)).astype(np.float32), ((y - y.mean()) / y.std())[:, None].astype(np.float32)
x, x_test, y, y_test = map(jnp.asarray, train_test_split(x, y, test_size=100, random_state=0))

module = Network()
variables = module.init(jax.random.key(0), x)
optimizer = optax.adamw(1e-2, weight_decay=1e-2)


@jax.jit
def step(variables, state, key):
    def loss(params):
        f, updated = module.apply(
            {**variables, "params": params},
            x,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return jnp.mean((f - y) ** 2), updated["batch_stats"]

    gradient, statistics = jax.grad(loss, has_aux=True)(variables["params"])
    updates, state = optimizer.update(gradient, state, variables["params"])
    params = optax.apply_updates(variables["params"], updates)
    return {"params": params, "batch_stats": statistics}, state


state = optimizer.init(variables["params"])
for key in jax.random.split(jax.random.key(1), 300):
    variables, state = step(variables, state, key)

model_fn, params = lk.model.from_linen(module, variables)
la = lk.fit(model_fn, params, (x, y), likelihood="gaussian").tune()

pred = la.predict(x_test)
print("observed  predicted  of which epistemic")
for observed, mean, var, epistemic in zip(
    y_test[:5, 0], pred.mean[:5, 0], pred.var[:5, 0], pred.epistemic_var[:5, 0], strict=True
):
    print(f"{observed:8.2f}  {mean:5.2f} ± {var**0.5:.2f}  {epistemic**0.5:.2f}")
print({name: round(value, 3) for name, value in la.evaluate((x_test, y_test)).items()})
