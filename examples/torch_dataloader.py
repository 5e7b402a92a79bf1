"""A torch DataLoader as the data: nothing but batches is ever in memory.

Run `pip install torch`, then `python examples/torch_dataloader.py`. Any `Dataset` will do, as will
any other object that yields pairs (inputs, targets) each time it is iterated.
"""

import jax
import jax.numpy as jnp
import optax
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset, random_split

import laplace_kit as lk


class Digits(Dataset):
    """Handwritten digits, one at a time, as a torch data set would read them from disk."""

    def __init__(self):
        self.images, self.labels = load_digits(return_X_y=True)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return torch.tensor(self.images[index] / 16, dtype=torch.float32), self.labels[index]


def model_fn(params, x):
    """Return the logits of a network with one hidden layer, (N, 10)."""
    hidden = jax.nn.relu(x @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


parts = random_split(Digits(), [0.6, 0.2, 0.2], torch.Generator().manual_seed(0))
train_set, validation_set, test_set = parts
shuffled = DataLoader(train_set, batch_size=128, shuffle=True, drop_last=True)

initialiser, keys = jax.nn.initializers.he_normal(), jax.random.split(jax.random.key(0))
params = {"w1": initialiser(keys[0], (64, 32)), "w2": initialiser(keys[1], (32, 10))}
params |= {"b1": jnp.zeros(32), "b2": jnp.zeros(10)}
optimizer = optax.adam(1e-2)


@jax.jit
def step(params, state, x, y):
    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(model_fn(params, x), y).mean()

    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state


state = optimizer.init(params)
for _ in range(100):
    for x, y in shuffled:
        params, state = step(params, state, x.numpy(), y.numpy())

# Each pass takes all examples once, so neither shuffled nor with the last batch dropped.
train_loader, validation_loader, test_loader = (DataLoader(part, batch_size=256) for part in parts)
la = lk.fit(model_fn, params, train_loader, likelihood="categorical", structure="kron")
la = la.tune(data=validation_loader)
print(la)
print({name: round(value, 3) for name, value in la.evaluate(test_loader).items()})
