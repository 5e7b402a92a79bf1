# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Inputs unlike any it was trained on
#
# A classifier that was shown five kinds of digits answers with one of the five whatever it is
# given: another digit, an image in negative, noise. Can it be told from the answer that it does not
# know? A score that is higher for such inputs makes a detector. Three are compared here:
#
# - one minus the largest probability of the network, which costs nothing,
# - the same of the posterior's predictive,
# - the *mutual information* of label and weights: the part of the uncertainty that is about the
#   weights, and not about images that are ambiguous by themselves.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import laplace_kit as lk
from laplace_kit.eval import metrics, plots

# %% [markdown]
# ## Data
#
# Digits 0 to 4 are known: 200 to train on, 150 for validation, 551 to test. Four sets that are not:
# the digits 5 to 9, the test digits with their pixels shuffled, and in negative, and noise.

# %%
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
images, labels = (images[order] / 16).astype(np.float32), labels[order]
known = labels < 5

x, x_val, x_test = np.split(images[known], [200, 350])
y, y_val, y_test = np.split(labels[known], [200, 350])
rng = np.random.default_rng(1)
foreign = {
    "other digits": images[~known][:300],
    "shuffled pixels": rng.permuted(x_test, axis=1),
    "negatives": 1 - x_test,
    "noise": rng.uniform(0, 1, x_test.shape).astype(np.float32),
}

figure, axes = plt.subplots(1, 5, figsize=(11, 2.6), layout="constrained")
for ax, (name, shown) in zip(axes, {"known digits": x_test, **foreign}.items(), strict=True):
    tiles = shown[:9].reshape(3, 3, 8, 8).swapaxes(1, 2).reshape(24, 24)
    ax.imshow(tiles, cmap="gray_r", vmin=0, vmax=1)
    for end in (7.5, 15.5):
        ax.axhline(end, color="0.6", linewidth=0.8)
        ax.axvline(end, color="0.6", linewidth=0.8)
    ax.set(title=name, xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Network
#
# One hidden layer of 32 units, trained with next to no weight decay.

# %%
weight_decay = 0.01


def model_fn(params, x):
    hidden = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"])
    return hidden @ params["last"]["kernel"] + params["last"]["bias"]


def random_layer(key, num_in, num_out):
    kernel = jax.random.normal(key, (num_in, num_out)) * (2 / num_in) ** 0.5
    return {"kernel": kernel, "bias": jnp.zeros(num_out)}


@jax.jit
def train(params, x, y):
    optimizer = optax.lbfgs()

    def objective(params):
        nll = optax.softmax_cross_entropy_with_integer_labels(model_fn(params, x), y).sum()
        return nll + 0.5 * weight_decay * optax.tree.norm(params, squared=True)

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(objective)(params)
        updates, state = optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=objective
        )
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=400)[0][0]


keys = jax.random.split(jax.random.key(0), 2)
initial = {"first": random_layer(keys[0], 64, 32), "last": random_layer(keys[1], 32, 5)}
params = train(initial, x, y)
accuracy = float(jnp.mean(model_fn(params, x_test).argmax(axis=1) == y_test))
print(f"accuracy on known digits: {accuracy:.3f}")
assert accuracy > 0.97

# %% [markdown]
# ## Scores
#
# The posterior has Kronecker factors for each layer; `tune` chooses prior precision and temperature
# by only the training data. `pred.uncertainty` splits the entropy of the label into the mean
# entropy, given the weights, and the mutual information.

# %%
la = lk.fit(
    model_fn,
    params,
    (x, y),
    likelihood="categorical",
    structure="kron",
    prior_precision=weight_decay,
).tune()


def scores(la, x):
    pred = la.predict(x)
    return {
        "network": metrics.max_probability_score(la.predict_at_mode(x).probs),
        "posterior": metrics.max_probability_score(pred.probs),
        "mutual information": pred.uncertainty(jax.random.key(1)).mutual_information,
    }


inside = scores(la, x_test)
outside = {name: scores(la, shown) for name, shown in foreign.items()}

# %% [markdown]
# The negatives are the hardest for the network: it is as sure of many as of digits that it knows.
# The mutual information sets nearly all of them apart.

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), sharey=True, layout="constrained")
for ax, name in zip(axes, inside, strict=True):
    plots.score_histograms(ax, inside[name], outside["negatives"][name])
    ax.set(xlabel=f"score: {name}")
    ax.label_outer()
plt.show()

# %% [markdown]
# In numbers, the area under the ROC curve: the probability that a foreign input scores higher than
# a known one. One half is chance, one is perfect.


# %%
def areas(inside, outside):
    return {name: float(metrics.auroc(inside[name], outside[name])) for name in inside}


def print_areas(areas):
    print(f"{'':16}" + "".join(f"{name:>20}" for name in inside))
    for where, row in areas.items():
        print(f"{where:16}" + "".join(f"{value:20.3f}" for value in row.values()))


found = {name: areas(inside, outside[name]) for name in foreign}
print_areas(found)
for row in found.values():
    assert row["posterior"] > row["network"] - 0.005
    assert row["mutual information"] > row["network"] - 0.005
    assert row["mutual information"] > 0.9
for name in ("shuffled pixels", "noise"):
    assert found[name]["mutual information"] > found[name]["network"] + 0.03
assert found["negatives"]["mutual information"] > found["negatives"]["network"] + 0.2

# %% [markdown]
# Where inputs are far from the data the posterior is much the better detector. Other digits are
# *near*: strokes like those that the network knows, in another order. There the posterior adds
# little, and no posterior over the weights of this network can know what it has no features for.

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.5, 4), sharey=True, layout="constrained")
for ax, where in zip(axes, ("other digits", "negatives"), strict=True):
    for number, name in enumerate(inside):
        curve = metrics.roc_curve(inside[name], outside[where][name])
        label = f"{name}, {found[where][name]:.3f}"
        rates = curve.false_positive_rate, curve.true_positive_rate
        plots.roc_curve(ax, *rates, label=label, series=number)
    ax.get_legend().remove()
    ax.legend(loc="lower right", title="area under the curve", fontsize=9)
    ax.set_title(where)
    ax.label_outer()
plt.show()

# %% [markdown]
# ## Which prior precision detects?
#
# Held-out data of the known kind are the safest judge of *probabilities*. They cannot judge what
# happens elsewhere: this network is hardly ever wrong on known digits, so they see little use for
# a posterior, shrink it, and the detector with it. The evidence asks how far the
# weights may move without contradicting the training data, which is the question here; its price is
# a lower confidence than the known digits deserve. Who wants both takes the scores from the one and
# the probabilities from the other.

# %%
by_validation = la.tune(data=(x_val, y_val))
choices = {"evidence": la, "validation": by_validation}
for name, posterior in choices.items():
    on_test = posterior.evaluate((x_test, y_test))
    print(
        f"{name:10} prior precision {posterior.prior_precision:8.2f}, on known digits nll "
        f"{on_test['nll']:.3f}, confidence {on_test['confidence']:.3f}"
    )

inside_by_validation = scores(by_validation, x_test)
found_by_validation = {
    name: areas(inside_by_validation, scores(by_validation, shown))
    for name, shown in foreign.items()
}
print("\nareas under the curve, prior precision by validation:")
print_areas(found_by_validation)

nll = {name: posterior.evaluate((x_test, y_test))["nll"] for name, posterior in choices.items()}
assert nll["validation"] < nll["evidence"]
assert by_validation.prior_precision > 100 * la.prior_precision
for name in ("shuffled pixels", "negatives", "noise"):
    assert found_by_validation[name]["posterior"] < found[name]["posterior"] - 0.02
