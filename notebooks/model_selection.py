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
# # How wide a network, and with which prior?
#
# Sixty noisy points of a curve, and no idea how flexible a network they deserve. Training error
# cannot tell: it falls with every unit that is added. The *evidence* can. It is computed from the
# training data only and answers for width, prior and noise together:
#
# 1. train networks of different widths, each with the prior and the noise that maximise its
#    evidence,
# 2. take the width of the largest evidence,
# 3. see on test data, which nothing was chosen by, whether that was wise.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import laplace_kit as lk
from laplace_kit.eval.plots import predictive_band

# %% [markdown]
# ## Data
#
# $y = \sin(3x + 1) + 0.4 x + \epsilon$ with noise of standard deviation 0.25. The truth is known
# here, so that there is a best possible test score: that of the true curve with the true noise.

# %%
noise_std = 0.25


def truth(x):
    return jnp.sin(3.0 * x + 1.0) + 0.4 * x


def draw(key, num):
    key_x, key_noise = jax.random.split(key)
    x = jax.random.uniform(key_x, (num, 1), minval=-2.0, maxval=2.0)
    return x, truth(x) + noise_std * jax.random.normal(key_noise, x.shape)


x, y = draw(jax.random.key(0), 60)
x_test, y_test = draw(jax.random.key(1), 2000)


def test_nll(mean, std):
    return float(-jnp.mean(jax.scipy.stats.norm.logpdf(y_test, mean, std)))


best_possible = test_nll(truth(x_test), noise_std)
print(f"negative log-likelihood of the truth on test data: {best_possible:.3f}")

# %% [markdown]
# ## Models
#
# One hidden layer of 1 to 64 units.

# %%
widths = [1, 2, 4, 8, 64]


def model_fn(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def random_params(key, width):
    keys = jax.random.split(key, 3)
    return {
        "w1": 2.0 * jax.random.normal(keys[0], (1, width)),
        "b1": 2.0 * jax.random.normal(keys[1], (width,)),
        "w2": jax.random.normal(keys[2], (width, 1)) / width**0.5,
        "b2": jnp.zeros(1),
    }


# %% [markdown]
# ## Training by the evidence
#
# The evidence of a model $\mathcal M$ is the probability that it gave to the data before it had
# seen them,
#
# $$
# p(\mathcal D \mid \mathcal M) = \int p(\mathcal D \mid \theta)\, p(\theta \mid \delta)\, d\theta,
# \qquad \log p(\mathcal D \mid \mathcal M) \approx
# \underbrace{\log p(\mathcal D \mid \theta^*)}_{\text{fit}}
# \; \underbrace{- \tfrac12 \delta \lVert \theta^* \rVert^2
# - \tfrac12 \log \bigl\lvert I + H / \delta \bigr\rvert}_{\text{Occam factor}} .
# $$
#
# A model that can explain anything has spread its probability over all the data sets there might
# have been, and has little left for this one: that is the Occam factor. A model that can explain
# too little pays in the fit. No preference for what is simple was put in; it follows from
# probabilities that sum to one.
#
# `train_with_evidence` trains the weights and, every 20 epochs, sets prior precision $\delta$ and
# noise to the maximum of the evidence. Training gets stuck in local optima, so each width starts
# from three points, and the network of the largest evidence is kept.

# %%
optimizer = optax.lbfgs()


def train(width, seed):
    training = lk.train_with_evidence(
        model_fn,
        random_params(jax.random.key(seed), width),
        (x, y),
        likelihood="gaussian",
        prior_precision=0.1,
        num_epochs=400,
        refit_every=20,
        optimizer=optimizer,
        key=jax.random.key(seed),
    )
    return training.la


def evidence(la):
    return float(la.log_marginal_likelihood())


posteriors = {}
for width in widths:
    posteriors[width] = max((train(width, seed) for seed in range(3)), key=evidence)
    la = posteriors[width]
    print(
        f"{width:2} units: log evidence {evidence(la):7.2f}, prior precision "
        f"{la.prior_precision:.2f}, noise {la.likelihood.noise_std:.3f}, effective parameters "
        f"{la.diagnostics().effective_parameters:4.1f} of {3 * width + 1}"
    )


# %% [markdown]
# For comparison, the same networks as they are often trained: by least squares, without a prior, to
# the end. Their noise is that of the residuals.


# %%
def least_squares(params):
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-2, 20_000))

    def loss(params):
        return jnp.mean((model_fn(params, x) - y) ** 2)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    params = jax.lax.scan(step, (params, optimizer.init(params)), length=20_000)[0][0]
    return params, jnp.sqrt(loss(params))


plain = {width: least_squares(random_params(jax.random.key(0), width)) for width in widths}

# %% [markdown]
# ## The choice
#
# The evidence on the left is what there is to choose by; the test score on the right is what a
# choice is worth.

# %%
laplace = {
    "train": [float(jnp.mean((posteriors[w].predict_at_mode(x).mean - y) ** 2)) for w in widths],
    "test": [posteriors[w].evaluate((x_test, y_test))["nll"] for w in widths],
}
squares = {
    "train": [float(std**2) for _, std in plain.values()],
    "test": [test_nll(model_fn(params, x_test), std) for params, std in plain.values()],
}
evidences = [evidence(posteriors[width]) for width in widths]
chosen = max(widths, key=lambda width: evidence(posteriors[width]))

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
left.plot(widths, evidences, "o-")
left.set(title="log evidence (nats)")
for ax, name in ((middle, "train"), (right, "test")):
    ax.plot(widths, laplace[name], "o-", label="by evidence")
    ax.plot(widths, squares[name], "s--", label="least squares")
middle.axhline(noise_std**2, color="0.5", linestyle=":", label="the truth")
middle.set(title="training error (mean square)", ylim=(0, None))
right.axhline(best_possible, color="0.5", linestyle=":", label="the truth")
right.set(title="test negative log-likelihood (nats)")
for ax in (left, middle, right):
    ax.set_xscale("log", base=2)
    ax.set(xlabel="hidden units", xticks=widths, xticklabels=widths)
    ax.axvline(chosen, color="0.9", linewidth=10, zorder=0)
right.legend()
plt.show()

# %% [markdown]
# - One or two units cannot follow the curve: the fit is bad, and the evidence says so by dozens of
#   nats.
# - From four units on the fit is as good as the noise allows. More units are not used: the prior
#   keeps the number of effective parameters at about ten, whatever the width, and the evidence
#   falls slowly. A tuned prior makes the width matter less, which is welcome: the test score hardly
#   depends on it any more.
# - Least squares, without a prior, goes on into the noise: its training error falls with every
#   unit, and on test data the widest network is much too sure of itself.

# %%
for row in zip(widths, evidences, laplace["test"], squares["test"], strict=True):
    print("{:2} units: log evidence {:7.2f}, test {:.3f}, least squares {:.3f}".format(*row))

score = dict(zip(widths, laplace["test"], strict=True))
plain_score = dict(zip(widths, squares["test"], strict=True))
assert chosen in (4, 8)
assert evidence(posteriors[chosen]) > evidence(posteriors[2]) + 10  # nats
assert score[chosen] < score[1] - 0.3
assert score[chosen] < score[2] - 0.3
assert score[chosen] < min(laplace["test"]) + 0.02  # as good as the best in hindsight
assert score[chosen] < best_possible + 0.15
assert score[chosen] < plain_score[64] - 0.1
assert squares["train"][-1] < squares["train"][2]
gamma = [float(posteriors[width].diagnostics().effective_parameters) for width in widths[2:]]
assert max(gamma) < 1.3 * min(gamma)

# %% [markdown]
# ## Fit and Occam factor
#
# The two parts of the evidence. What a wider network gains in fit it pays for, and from some point
# on more than that.

# %%
fit = [float(posteriors[width].log_likelihood) for width in widths]
occam = [total - part for total, part in zip(evidences, fit, strict=True)]

figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
ax.plot(widths, fit, "o-", label="fit")
ax.plot(widths, occam, "s-", label="Occam factor")
ax.plot(widths, evidences, "k^-", label="log evidence")
ax.set_xscale("log", base=2)
ax.set(xlabel="hidden units", ylabel="nats", xticks=widths, xticklabels=widths)
ax.legend()
plt.show()

# %% [markdown]
# ## The prior
#
# Now the other way round: the widest network, trained with one prior precision after another as
# weight decay, and the noise that was found. A weak prior lets 64 units run after the noise, a
# strong one forbids the curve. The evidence has its maximum in between, close to where predictions
# are best. On the weak side the posterior protects itself by uncertainty, and a wrong choice costs
# little; on the strong side nothing helps.

# %%
widest = posteriors[64]
std = widest.likelihood.noise_std


@jax.jit
def maximum_a_posteriori(params, prior_precision):
    def loss(params):
        misfit = jnp.sum((model_fn(params, x) - y) ** 2) / std**2
        penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return 0.5 * (misfit + prior_precision * penalty)

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=loss
        )
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=500)[0][0]


def with_prior(prior_precision):
    params = maximum_a_posteriori(widest.params, prior_precision)
    return lk.fit(
        model_fn,
        params,
        (x, y),
        likelihood=lk.Gaussian(std),
        prior_precision=prior_precision,
    )


precisions = 10.0 ** jnp.linspace(-5, 1, 13)
trained = [with_prior(precision) for precision in precisions]
evidence_by_prior = [evidence(la) for la in trained]
test_by_prior = [la.evaluate((x_test, y_test))["nll"] for la in trained]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
left.semilogx(precisions, evidence_by_prior, "o-")
left.set(title="log evidence (nats)")
right.semilogx(precisions, test_by_prior, "o-")
right.axhline(best_possible, color="0.5", linestyle=":")
right.set(title="test negative log-likelihood (nats)", ylim=(0, 0.6))
for ax in (left, right):
    ax.axvline(float(widest.prior_precision), color="0.5", linestyle="--")
    ax.set(xlabel="prior precision")
plt.show()

# %%
best = precisions[jnp.argmax(jnp.array(evidence_by_prior))]
print(f"largest evidence at {best:.2g}; training by the evidence: {widest.prior_precision:.2g}")
print(f"test: weakest prior {test_by_prior[0]:.3f}, chosen {score[64]:.3f}, strongest", end=" ")
print(f"{test_by_prior[-1]:.3f}")
assert 1 / 4 < best / widest.prior_precision < 4
assert score[64] < min(test_by_prior) + 0.05
assert test_by_prior[0] > score[64] + 0.02
assert test_by_prior[-1] > score[64] + 0.5

# %% [markdown]
# ## What it looks like
#
# Two units, the chosen width, and sixty-four units without a prior. Points are the training data,
# the dotted line is the truth. The darker band is what the weights leave open, the lighter one adds
# the noise.

# %%
grid = jnp.linspace(-2.6, 2.6, 201)[:, None]
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True, layout="constrained")
for ax, width in zip(axes, (2, chosen), strict=False):
    pred = posteriors[width].predict(grid)
    stds = (jnp.sqrt(pred.var[:, 0]), jnp.sqrt(pred.epistemic_var[:, 0]))
    predictive_band(ax, grid[:, 0], pred.mean[:, 0], *stds, x_observed=x[:, 0], y_observed=y[:, 0])
    ax.set_title(f"{width} units, by evidence")
params, plain_std = plain[64]
mean, stds = model_fn(params, grid)[:, 0], jnp.full(len(grid), plain_std)
predictive_band(axes[2], grid[:, 0], mean, stds, x_observed=x[:, 0], y_observed=y[:, 0])
axes[2].set_title("64 units, least squares")
for ax in axes:
    ax.plot(grid[:, 0], truth(grid)[:, 0], "k:", linewidth=1)
    ax.set_ylim(-3, 3)
    ax.get_legend().remove()
plt.show()
