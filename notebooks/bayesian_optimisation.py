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
# # Bayesian optimisation by functions drawn from the posterior
#
# Somewhere in a square a quantity has its maximum, and every measurement of it is expensive: an
# experiment, a training run. A network fitted to the first few measurements has a maximum of its
# own, but to measure there and nowhere else is to trust the network where it has seen nothing.
#
# Thompson sampling needs no rule for when to explore: draw a function from the posterior, and
# measure where *this function* is largest. Where the posterior is narrow, all functions have their
# maximum at the same place; where it is wide, some of them hope. `la.sample_functions` draws whole
# functions, which can be evaluated anywhere and as often as one likes.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import laplace_kit as lk

# %% [markdown]
# ## The unknown function
#
# Branin's function on a logarithmic scale, turned over: three maxima of the same height, narrow
# ones, among gentle slopes. Measurements have noise of standard deviation 0.05.

# %%
noise_std = 0.05


def truth(x):
    a, b = 7.5 * x[:, :1] + 2.5, 7.5 * x[:, 1:] + 7.5
    valley = b - 5.1 / (4 * jnp.pi**2) * a**2 + 5 / jnp.pi * a - 6
    return -jnp.log(valley**2 + 10 * (1 - 1 / (8 * jnp.pi)) * jnp.cos(a) + 10)


def measure(key, x):
    return truth(x) + noise_std * jax.random.normal(key, (len(x), 1))


side = jnp.linspace(-1, 1, 61)
square = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
best = float(truth(square).max())

# %% [markdown]
# ## Network and posterior
#
# Two hidden layers of twenty units, trained again by L-BFGS after each round. The measurements are
# padded to one length with a weight of zero, so that training compiles once.

# %%
prior_precision, most = 1.0, 40


def model_fn(params, x):
    hidden = jnp.tanh(4 * x @ params["w1"] + params["b1"])
    hidden = jnp.tanh(hidden @ params["w2"] + params["b2"])
    return hidden @ params["w3"] + params["b3"]


keys = jax.random.split(jax.random.key(5), 5)
initial = {
    "w1": jax.random.normal(keys[0], (2, 20)) / 2**0.5,
    "b1": jax.random.normal(keys[1], (20,)),
    "w2": jax.random.normal(keys[2], (20, 20)) / 20**0.5,
    "b2": 0.5 * jax.random.normal(keys[3], (20,)),
    "w3": jax.random.normal(keys[4], (20, 1)) / 20**0.5,
    "b3": jnp.zeros(1),
}


@jax.jit
def train(params, x, y, weight):
    optimizer = optax.lbfgs()

    def negative_log_posterior(params):
        misfit = jnp.sum(weight * (model_fn(params, x) - y) ** 2) / noise_std**2
        return 0.5 * (misfit + prior_precision * optax.tree.norm(params, squared=True))

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(negative_log_posterior)(params)
        updates, state = optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=negative_log_posterior
        )
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=300)[0][0]


def posterior(x, y):
    missing = ((0, most - len(x)), (0, 0))
    weight = jnp.pad(jnp.ones((len(x), 1)), missing)
    params = train(initial, jnp.pad(x, missing), jnp.pad(y, missing), weight)
    return lk.fit(
        model_fn,
        params,
        (x, y),
        likelihood=lk.Gaussian(noise_std),
        structure="full",
        prior_precision=prior_precision,
    )


# %% [markdown]
# ## After eight measurements
#
# The first eight are taken at random. Below are the truth, what the network makes of it, how sure
# the posterior is, and four functions drawn from it, each with its maximum.

# %%
key_place, key_noise, key_functions = jax.random.split(jax.random.key(0), 3)
x = jax.random.uniform(key_place, (8, 2), minval=-1, maxval=1)
la = posterior(x, measure(key_noise, x))
pred = la.predict(square)
std = jnp.sqrt(pred.epistemic_var)
functions = la.sample_functions(key_functions, 4)
values = functions(square)
scale = {"vmin": float(truth(square).min()), "vmax": best, "cmap": "viridis"}


def draw_map(ax, name, values, **colors):
    image = ax.pcolormesh(side, side, values.reshape(61, 61), rasterized=True, **colors)
    ax.plot(*x.T, "o", color="white", markeredgecolor="black", markersize=5)
    ax.set(title=name, xlabel="$x_1$", aspect="equal")
    return image


figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True, layout="constrained")
draw_map(axes[0], "truth", truth(square), **scale)
image = draw_map(axes[1], "network", pred.mean, **scale)
figure.colorbar(image, ax=axes[:2], label="value")
image = draw_map(axes[2], "posterior", std, vmin=0, cmap="cividis")
figure.colorbar(image, ax=axes[2], label="standard deviation")
axes[0].set_ylabel("$x_2$")

figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), sharey=True, layout="constrained")
for number, ax in enumerate(axes):
    image = draw_map(ax, f"function {number + 1}", values[number], **scale)
    maximum = square[values[number].argmax()]
    ax.plot(*maximum, "*", color="white", markeredgecolor="black", markersize=15, clip_on=False)
axes[0].set_ylabel("$x_2$")
figure.colorbar(image, ax=axes, label="value", extend="both")
plt.show()

# %% [markdown]
# The functions go through the measurements, as far as noise lets them, and differ elsewhere: each
# proposes another place. Close to a measurement the posterior is sure, and the spread of many
# functions is what the closed form says.

# %%
many = la.sample_functions(key_functions, 500)(square)
print(f"standard deviation at the measurements {jnp.sqrt(la.predict(x).epistemic_var).mean():.3f},")
print(f"on average over the square {std.mean():.2f}")
assert jnp.sqrt(la.predict(x).epistemic_var).max() < 0.2 * std.mean()
assert jnp.abs(many.std(axis=0) / std - 1).mean() < 0.05

# %% [markdown]
# ## Three strategies
#
# Eight rounds of four measurements each. *Thompson* measures at the maxima of four functions;
# *greedy* believes the network and measures four times at its maximum; *random* measures anywhere.
# What counts is the regret: how far the best place that was measured falls short of the best there
# is. Chance plays a part, so all three start six times, from the same first measurements.


# %%
def thompson(key, x, y):
    functions = posterior(x, y).sample_functions(key, 4)
    return square[functions(square)[..., 0].argmax(axis=1)]


def greedy(key, x, y):
    mean = posterior(x, y).predict_at_mode(square).mean[:, 0]
    return jnp.repeat(square[mean.argmax()][None], 4, axis=0)


def at_random(key, x, y):
    return jax.random.choice(key, square, (4,))


def optimise(propose, seed, num_rounds=8):
    key_start, *keys = jax.random.split(jax.random.key(seed), num_rounds + 1)
    key_place, key_noise = jax.random.split(key_start)
    x = jax.random.uniform(key_place, (8, 2), minval=-1, maxval=1)
    y = measure(key_noise, x)
    regret = [best - float(truth(x).max())]
    for key in keys:
        key_propose, key_noise = jax.random.split(key)
        proposed = propose(key_propose, x, y)
        x = jnp.concatenate([x, proposed])
        y = jnp.concatenate([y, measure(key_noise, proposed)])
        regret.append(best - float(truth(x).max()))
    return x, regret


strategies = {"Thompson": thompson, "greedy": greedy, "random": at_random}
runs = {
    name: [optimise(propose, seed) for seed in range(6)] for name, propose in strategies.items()
}
regrets = {name: np.array([regret for _, regret in run]) for name, run in runs.items()}

# %%
styles = {"Thompson": ("#0072B2", "-"), "greedy": ("#D55E00", "--"), "random": ("#767676", ":")}
figure, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
measurements = 8 + 4 * np.arange(9)
for name, regret in regrets.items():
    color, line = styles[name]
    ax.plot(measurements, regret.T, line, color=color, linewidth=0.6, alpha=0.5)
    ax.plot(measurements, regret.mean(axis=0), line, color=color, linewidth=2.5, label=name)
ax.set(xlabel="measurements", ylabel="regret", ylim=(0, None))
ax.legend()
plt.show()

for name, regret in regrets.items():
    print(f"{name:9} mean regret after {measurements[-1]} measurements: {regret[:, -1].mean():.2f}")
final = {name: regret[:, -1].mean() for name, regret in regrets.items()}
assert final["Thompson"] < 0.75 * min(final["greedy"], final["random"])

# %% [markdown]
# Where they measured, in the run in which Thompson sampling was of middling luck; the darker the
# mark, the later. Greedy goes where the network promises most, four times over, and learns little.
# Thompson sampling looks around first, and then stays where it has found something.

# %%
middling = np.argsort(regrets["Thompson"][:, -1])[3]
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout="constrained")
for ax, (name, run) in zip(axes, runs.items(), strict=True):
    x, regret = run[middling]
    ax.contour(side, side, truth(square).reshape(61, 61), 12, colors="0.7", linewidths=0.8)
    ax.plot(*x[:8].T, "o", color="white", markeredgecolor="black", markersize=5)
    rounds = np.repeat(np.arange(1, 9), 4)
    image = ax.scatter(*x[8:].T, 40, rounds, cmap="cividis_r", zorder=3, clip_on=False)
    ax.set(title=f"{name}: regret {regret[-1]:.2f}", xlabel="$x_1$", aspect="equal")
axes[0].set_ylabel("$x_2$")
figure.colorbar(image, ax=axes, label="round")
plt.show()
