"""From a trained flax.nnx classifier to a calibration report, in ten lines.

Run `python examples/flax_nnx.py`; the report is in out/flax_nnx/index.html.
"""

import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import laplace_kit as lk


def load_data() -> list:
    """Return inputs and labels for training, validation and test."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    x_train, x_rest, y_train, y_rest = train_test_split(x, y, train_size=600, random_state=0)
    x_val, x_test, y_val, y_test = train_test_split(x_rest, y_rest, train_size=300, random_state=0)
    return [(x_train, y_train), (x_val, y_val), (x_test, y_test)]


def train(x, y, num_steps: int = 1000) -> nnx.Module:
    """Return a 64-16-10 network fitted by Adam: your training goes here."""
    rngs = nnx.Rngs(0)
    module = nnx.Sequential(nnx.Linear(64, 16, rngs=rngs), nnx.relu, nnx.Linear(16, 10, rngs=rngs))
    optimizer = nnx.Optimizer(module, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer, x, y):
        def loss(module):
            return optax.softmax_cross_entropy_with_integer_labels(module(x), y).mean()

        optimizer.update(module, nnx.grad(loss)(module))

    x, y = jnp.asarray(x), jnp.asarray(y)
    for _ in range(num_steps):
        step(module, optimizer, x, y)
    return module


data, validation, test = load_data()
module = train(*data)

# From the trained model to its report:
model_fn, params = lk.model.from_nnx(module)
la = lk.fit(model_fn, params, data, likelihood="categorical")
la = la.tune(data=validation)
report = la.report(test, "out/flax_nnx")

print(report)
print(f"report: {report.index}")
