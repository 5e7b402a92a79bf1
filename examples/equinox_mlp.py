"""An equinox classifier of wines, and how sure it is where an instrument fails.

Run `python examples/equinox_mlp.py`. An equinox module takes one example; `from_equinox` makes a
function of batches of it.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split

import laplace_kit as lk

x, y = load_wine(return_X_y=True)
x = (x - x.mean(0)) / x.std(0)
x, x_test, y, y_test = map(jnp.asarray, train_test_split(x, y, test_size=60, random_state=0))

module = eqx.nn.MLP(13, 3, width_size=32, depth=1, activation=jnp.tanh, key=jax.random.key(0))
optimizer = optax.adam(1e-2)


@eqx.filter_jit
def step(module, state):
    @eqx.filter_grad
    def gradient(module):
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(module)(x), y).mean()

    updates, state = optimizer.update(gradient(module), state)
    return eqx.apply_updates(module, updates), state


state = optimizer.init(eqx.filter(module, eqx.is_inexact_array))
for _ in range(500):
    module, state = step(module, state)

model_fn, params = lk.model.from_equinox(module)
la = lk.fit(model_fn, params, (x, y), likelihood="categorical").tune()

broken = x_test.at[:, 0].add(10.0)  # a faulty instrument reads the alcohol
for name, inputs in {"test set": x_test, "with a faulty instrument": broken}.items():
    for method, predict in {"network": la.predict_at_mode, "posterior": la.predict}.items():
        confidence = predict(inputs).probs.max(axis=1).mean()
        print(f"{name}: the {method} is {confidence:.0%} sure on average")
print({name: round(value, 3) for name, value in la.evaluate((x_test, y_test)).items()})
