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
# # How sure is a classifier, and where?
#
# A trained classifier draws a boundary between the classes, and away from it becomes sure of
# itself: in all directions, and the more the further it gets from any data it has seen. A posterior
# over its weights keeps the boundary and takes back the confidence that the data do not support.
#
# 1. train a network on two interleaved moons,
# 2. lay four posteriors of different structure around the same weights,
# 3. compare maps of their confidence, the way it goes far from the data, and what it is worth on
#    test data.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.colors import ListedColormap
from sklearn.datasets import make_moons

import laplace_kit as lk

# %% [markdown]
# ## Data and model
#
# Two classes that overlap a little. Validation data will choose the prior precision; test data are
# only ever predicted. The network has two hidden layers and one output, the logit of class 1, which
# the likelihood `"bernoulli"` turns into a probability.


# %%
def moons(num, seed):
    x, y = make_moons(num, noise=0.25, random_state=seed)
    return jnp.asarray(x, jnp.float32), jnp.asarray(y)


x, y = moons(200, seed=0)
validation = moons(200, seed=2)
x_test, y_test = moons(2000, seed=1)


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def model_fn(params, x):
    hidden = jax.nn.relu(dense(params["first"], x))
    hidden = jax.nn.relu(dense(params["second"], hidden))
    return dense(params["last"], hidden)[:, 0]


def random_layer(key, num_in, num_out):
    kernel = jax.random.normal(key, (num_in, num_out)) * (2 / num_in) ** 0.5
    return {"kernel": kernel, "bias": jnp.zeros(num_out)}


keys = jax.random.split(jax.random.key(0), 3)
initial = {
    "first": random_layer(keys[0], 2, 20),
    "second": random_layer(keys[1], 20, 20),
    "last": random_layer(keys[2], 20, 1),
}

# %% [markdown]
# L-BFGS minimises the negative log-likelihood plus weight decay, which is the prior precision in
# other words: a weak one here, as is usual.

# %%
weight_decay = 0.1


def objective(params):
    nll = optax.sigmoid_binary_cross_entropy(model_fn(params, x), y).sum()
    return nll + 0.5 * weight_decay * optax.tree.norm(params, squared=True)


@jax.jit
def train(params):
    optimizer = optax.lbfgs()

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(objective)(params)
        updates, state = optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=objective
        )
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=1500)[0][0]


params = train(initial)
accuracy = float(jnp.mean((model_fn(params, x_test) > 0) == y_test))
print(f"accuracy on test data: {accuracy:.3f}")
assert accuracy > 0.9

# %% [markdown]
# ## Five maps
#
# The network alone, and four posteriors around it: no correlations (diagonal), Kronecker
# factors of each layer, all correlations (full), and all correlations of the last layer alone, with
# the others frozen. Each has the weight decay of training for its prior precision.
#
# Colours are probabilities of class 1, whose examples are the triangles. The solid line is the
# boundary, the dashed lines are where a prediction is 90% sure.

# %%
choices = {
    "diagonal": {"structure": "diagonal"},
    "Kronecker": {"structure": "kron"},
    "full": {"structure": "full"},
    "last layer": {"structure": "full", "subset": "last_layer"},
}
fitted = {
    name: lk.fit(
        model_fn, params, (x, y), likelihood="bernoulli", prior_precision=weight_decay, **choice
    )
    for name, choice in choices.items()
}

side = jnp.linspace(-2.5, 3.5, 91), jnp.linspace(-2.5, 3.0, 83)
plane = jnp.stack(jnp.meshgrid(*side), axis=-1)
at_mode = fitted["full"].predict_at_mode
purple_to_orange = ListedColormap(plt.get_cmap("PuOr_r")(np.linspace(0.15, 0.85, 256)))


def draw_maps(posteriors):
    predictors = {"network alone": at_mode} | {
        name: posterior.predict for name, posterior in posteriors.items()
    }
    figure, axes = plt.subplots(
        1, 5, figsize=(14, 3.2), sharex=True, sharey=True, layout="constrained"
    )
    for ax, (name, predict) in zip(axes, predictors.items(), strict=True):
        probs = predict(plane.reshape(-1, 2)).probs.reshape(plane.shape[:2])
        image = ax.pcolormesh(*side, probs, cmap=purple_to_orange, vmin=0, vmax=1, rasterized=True)
        ax.contour(*side, probs, [0.1, 0.5, 0.9], colors="black", linestyles=("--", "-", "--"))
        for label, marker, color in ((0, "o", "white"), (1, "^", "black")):
            points = x[y == label].T
            ax.scatter(*points, 11, color, marker=marker, edgecolors="black", linewidths=0.4)
        ax.set(title=name, xlabel="$x_1$", aspect="equal")
    axes[0].set_ylabel("$x_2$")
    figure.colorbar(image, ax=axes, label="probability of class 1", shrink=0.85)
    plt.show()


draw_maps(fitted)

# %% [markdown]
# The boundary is the same in all five maps: the linearised predictive widens the distribution of
# the logit around the value that the network gives, and with two classes that moves no probability
# across one half. What differs is how sure they are.

# %%
decisions = at_mode(x_test).probs > 0.5
for posterior in fitted.values():
    assert np.array_equal(posterior.predict(x_test).probs > 0.5, decisions)


# %% [markdown]
# But that is too much of a good thing. With the prior of training, three of the four doubt what
# they should know: their confidence on test data is far below their accuracy.
#
# ## A prior precision for each
#
# Weight decay serves to find good weights, not to say how far they may be off, and what is right
# for one structure is wrong for another: without correlations, weights vary independently that in
# truth vary only together. So let held-out data choose a prior precision for each, under the same
# predictive.

# %%
tuned = {name: posterior.tune(data=validation) for name, posterior in fitted.items()}
for name, posterior in tuned.items():
    print(f"{name:12} prior precision {posterior.prior_precision:.2g}")
draw_maps(tuned)

# %% [markdown]
# Now all are about as sure as they are right. Among the data they hardly differ from one another.
#
# The network alone pays for its certainty: some of its test errors are made with a probability of
# one to within a millionth, and it is the log-likelihood that shows it.


# %%
def scores(predictive):
    probs = np.asarray(predictive.probs, float)
    confidence = np.maximum(probs, 1 - probs)
    likelihood = np.where(np.asarray(y_test) == 1, probs, 1 - probs)
    return {
        "accuracy": np.mean((probs > 0.5) == y_test),
        "confidence": confidence.mean(),
        "nll": -np.log(np.maximum(likelihood, 1e-6)).mean(),
    }


table = {"network alone": scores(at_mode(x_test))}
table |= {f"{name}, weight decay": scores(la.predict(x_test)) for name, la in fitted.items()}
table |= {f"{name}, tuned": scores(la.predict(x_test)) for name, la in tuned.items()}
print(f"{'':26}{'accuracy':>11}{'confidence':>12}{'nll':>8}")
for name, row in table.items():
    print("{:26}{accuracy:11.3f}{confidence:12.3f}{nll:8.3f}".format(name, **row))

network = table["network alone"]
assert network["confidence"] > network["accuracy"] + 0.03
probs_of_errors = at_mode(x_test).probs[decisions != y_test]
assert jnp.maximum(probs_of_errors, 1 - probs_of_errors).max() > 1 - 1e-6
for name in choices:
    before, after = table[f"{name}, weight decay"], table[f"{name}, tuned"]
    assert abs(after["confidence"] - after["accuracy"]) < 0.03
    assert after["nll"] < network["nll"] - 0.03
    assert after["nll"] < before["nll"] + 0.005
for name in ("diagonal", "Kronecker", "full"):
    before = table[f"{name}, weight decay"]
    assert before["confidence"] < before["accuracy"] - 0.05

# %% [markdown]
# ## Far away
#
# Walk away from the data in all directions. A network of rectified linear units is linear far out,
# so its logit grows with the distance and its confidence goes to one, whatever is out there (Hein
# et al. 2019). The standard deviation of the logit under a posterior grows with the distance too,
# and their ratio, which decides the probability, stays bounded (Kristiadi et al. 2020). It does not
# go back to one half: a posterior over weights bounds the confidence far away, it does not abolish
# it.

# %%
angle = jnp.linspace(0, 2 * jnp.pi, 65)[:-1]
ring = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
centre = x.mean(axis=0)
distances = np.geomspace(1, 300, 24)


def confidence_at(predict, distance):
    probs = predict(centre + distance * ring).probs
    return float(jnp.maximum(probs, 1 - probs).mean())


styles = {"diagonal": ":", "Kronecker": "-.", "full": "-", "last layer": "--"}
colors = {"diagonal": "#CC79A7", "Kronecker": "#009E73", "full": "#0072B2", "last layer": "#D55E00"}
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True, layout="constrained")
for ax, (title, posteriors) in zip(
    axes, {"weight decay": fitted, "tuned on validation data": tuned}.items(), strict=True
):
    curve = [confidence_at(at_mode, distance) for distance in distances]
    ax.semilogx(distances, curve, color="black", label="network alone")
    for name, posterior in posteriors.items():
        curve = [confidence_at(posterior.predict, distance) for distance in distances]
        ax.semilogx(distances, curve, styles[name], color=colors[name], label=name)
    ax.set(title=title, xlabel="distance from the centre", ylim=(0.5, 1.02))
axes[0].set_ylabel("mean confidence")
axes[1].legend(loc="lower right")
plt.show()

# %%
far = {name: confidence_at(posterior.predict, 300.0) for name, posterior in tuned.items()}
print("confidence at a distance of 300:", {name: round(value, 3) for name, value in far.items()})
assert confidence_at(at_mode, 300.0) > 0.999
for name, posterior in tuned.items():
    assert far[name] < 0.98
    assert abs(far[name] - confidence_at(posterior.predict, 100.0)) < 0.01  # it has converged
    assert confidence_at(fitted[name].predict, 300.0) < 0.98
