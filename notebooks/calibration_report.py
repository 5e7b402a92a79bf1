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
# # Reading a calibration report
#
# Of all predictions made with a confidence of 80%, four in five should be right. A classifier for
# which that holds at every level is *calibrated*, and its probabilities can be acted upon.
# `la.report` measures how far that is so, for a network and for its Laplace posterior, and writes a
# page. This is a walk through one: what each number and picture says, and where it comes from.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

import laplace_kit as lk
from laplace_kit.eval import metrics, plots

# %% [markdown]
# ## A network that is too sure of itself
#
# Handwritten digits, few of them, and 2000 steps of Adam without weight decay: a recipe for
# over-confidence, picked for the purpose.

# %%
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
images, labels = (images[order] / 16).astype(np.float32), labels[order]
x, x_val, x_test = np.split(images, [600, 900])
y, y_val, y_test = np.split(labels, [600, 900])


def model_fn(params, x):
    hidden = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"])
    return hidden @ params["last"]["kernel"] + params["last"]["bias"]


def random_layer(key, num_in, num_out):
    kernel = jax.random.normal(key, (num_in, num_out)) * (2 / num_in) ** 0.5
    return {"kernel": kernel, "bias": jnp.zeros(num_out)}


@jax.jit
def train(params, x, y):
    optimizer = optax.adam(1e-2)

    def objective(params):
        return optax.softmax_cross_entropy_with_integer_labels(model_fn(params, x), y).mean()

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(objective)(params), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=2000)[0][0]


keys = jax.random.split(jax.random.key(0), 2)
initial = {"first": random_layer(keys[0], 64, 16), "last": random_layer(keys[1], 16, 10)}
params = train(initial, x, y)

# %% [markdown]
# ## The report
#
# Validation data choose the prior precision. The report is on data that played no part in anything:
# test digits, the same turned by 15 degrees, and shuffled pixels, which are no digits.

# %%
la = lk.fit(model_fn, params, (x, y), likelihood="categorical", structure="kron")
la = la.tune(data=(x_val, y_val))


def turned(images, degrees):
    square = images.reshape(-1, 8, 8)
    turned = rotate(square, degrees, axes=(1, 2), reshape=False, order=1, mode="grid-constant")
    return turned.reshape(-1, 64)


x_turned = turned(x_test, 15)
shuffled = np.random.default_rng(1).permuted(x_test, axis=1)
report = la.report(
    (x_test, y_test),
    "calibration_report",
    shifted={"turned": (x_turned, y_test)},
    ood={"shuffled": shuffled},
    title="Handwritten digits",
)
print(report.index)
print(report)

# %% [markdown]
# The page opens in any browser and needs nothing else: pictures are inlined. Next to it lie the
# pictures as files, the numbers as `metrics.json`, and the predictions themselves.
#
# ## The verdict
#
# It begins with a verdict in words. What is called significant is so beyond the chance of the draw
# of this test set.

# %%
for sentence in report.verdict:
    print("-", sentence)

# %% [markdown]
# ## Confidence and accuracy
#
# The mean confidence is what a classifier claims, the accuracy is what it keeps. The network claims
# more than it keeps. The posterior is right as often, or nearly, and claims less: here a little
# less than it could, as caution costs less than an error that one was sure of.

# %%
network, posterior = report.metrics["map"], report.metrics["laplace"]
for name, numbers in {"network": network, "posterior": posterior}.items():
    print(f"{name:9} claims {numbers['confidence']:.1%}, keeps {numbers['accuracy']:.1%}")
gap = network["confidence"] - network["accuracy"]
gap_posterior = posterior["confidence"] - posterior["accuracy"]
assert gap > 0.01
assert abs(gap_posterior) < gap
assert abs(network["accuracy"] - posterior["accuracy"]) < 0.01

# %% [markdown]
# ## The reliability diagram
#
# The same, level by level. Predictions are sorted into bins by their confidence; the bar is the
# accuracy in the bin, the hatched part the gap to the mean confidence there. Whiskers are what
# chance allows: of a calibrated classifier 95% of the bars end inside them. Below it, how many
# predictions a bin has, on a logarithmic scale: nearly all are in the last one, and a long hatched
# bar made of three predictions says little.

# %%
probs = {"network": la.predict_at_mode(x_test).probs, "posterior": la.predict(x_test).probs}
figure, axes = plt.subplots(
    2, 2, figsize=(9, 5.5), sharex=True, sharey="row", height_ratios=(3, 1), layout="constrained"
)
for column, (name, values) in zip(axes.T, probs.items(), strict=True):
    plots.reliability_diagram(column[0], values, y_test)
    plots.bin_counts(column[1], values, y_test)
    column[0].set(xlabel="")
    column[1].set(xlabel=f"confidence of the {name}")
    for ax in column:
        ax.label_outer()
plt.show()

# %% [markdown]
# The *expected calibration error* (ECE) is the mean length of the hatched bars, weighted by the
# counts. It is small where most predictions are easy, and depends on the bins; with 15 of them:


# %%
def expected_calibration_error(probs):
    bins = metrics.reliability_bins(probs, y_test, 15)
    gaps = np.abs(np.asarray(bins.accuracy) - np.asarray(bins.confidence))
    return float(np.sum(np.asarray(bins.counts) * gaps) / len(y_test))


for (name, values), reported in zip(probs.items(), (network, posterior), strict=True):
    by_hand = expected_calibration_error(values)
    print(f"{name:9} ECE {reported['ece']:.4f}, by hand {by_hand:.4f}")
    assert np.isclose(by_hand, reported["ece"], atol=1e-5)

# %% [markdown]
# ## Negative log-likelihood and Brier score
#
# Calibration is not all: a classifier that always answers with the base rates is calibrated, and
# useless. *Proper scores* reward both calibration and knowledge, and nothing but the truth is best
# for them. The negative log-likelihood (NLL) is the surprise at the right label, which a single
# certain error makes large; the Brier score is the squared distance to the right answer, at most 2
# for each example. If there is one number to choose by, take one of these.

# %%
for name, numbers in {"network": network, "posterior": posterior}.items():
    print(f"{name:9} NLL {numbers['nll']:.3f}, Brier score {numbers['brier']:.4f}")
assert posterior["nll"] < network["nll"]

of_labels = np.asarray(probs["posterior"])[np.arange(len(y_test)), y_test]
assert np.isclose(-np.mean(np.log(of_labels)), posterior["nll"], rtol=1e-3)
onehot = np.eye(10)[y_test]
squared = np.sum((np.asarray(probs["posterior"]) - onehot) ** 2, axis=1)
assert np.isclose(squared.mean(), posterior["brier"], rtol=1e-3)

# %% [markdown]
# Every number comes with a 95% interval, by bootstrap: the test set resampled a thousand times. Two
# predictors are compared on the *same* resamples, since what is hard for one is mostly hard for the
# other. The intervals of the two overlap, and still their difference may be beyond chance.

# %%
bootstrap = report.metrics["bootstrap"]["test"]
for name in ("map", "laplace"):
    low, high = bootstrap["intervals"][name]["nll"]
    print(f"{name:8} NLL {report.metrics[name]['nll']:.3f}, 95% interval {low:.3f} to {high:.3f}")
difference, low, high = bootstrap["differences"]["laplace"]["nll"]
print(f"difference {difference:.3f}, 95% interval {low:.3f} to {high:.3f}")
assert bootstrap["intervals"]["laplace"]["nll"][1] > bootstrap["intervals"]["map"]["nll"][0]
assert np.isclose(difference, posterior["nll"] - network["nll"], atol=1e-4)
assert high < 0

# %% [markdown]
# ## Answering only when sure
#
# Suppose that the least confident predictions are handed to a human. The risk-coverage curve shows
# the error rate among the rest, by how many are kept; the area under it (AURC) sums it up. It knows
# only the *order* of the confidences, which a posterior changes less than their size. On the right
# the same digits are turned by 15 degrees and errors are many; mind the scale.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for ax, shown, title in zip(
    axes, (x_test, x_turned), ("test set", "turned by 15 degrees"), strict=True
):
    predictors = {"network": la.predict_at_mode, "posterior": la.predict}
    for number, (name, predict) in enumerate(predictors.items()):
        curve = metrics.risk_coverage_curve(predict(shown).probs, y_test)
        plots.risk_coverage_curve(ax, curve.coverage, curve.risk, label=name, series=number)
    ax.set(xlabel=f"coverage, {title}")
plt.show()
assert metrics.aurc(predict(x_test).probs, y_test) < 1 - posterior["accuracy"]

# %% [markdown]
# ## Away from the test set
#
# Calibration on test data promises nothing about other data. Digits turned by 15 degrees are still
# digits: accuracy falls, and confidence ought to fall with it. It does so too little for both, and
# for the network even less.
#
# Shuffled pixels have no right label, so only a score of their strangeness can be judged: the area
# under the ROC curve (AUROC) is the chance that such an input has a smaller largest probability
# than a test digit. Here the posterior is no better at it, and the report says so: the prior
# precision was chosen from digits only. The notebook on out-of-distribution detection has more.

# %%
on_turned, on_shuffled = report.metrics["shifted"]["turned"], report.metrics["ood"]["shuffled"]
for name in ("map", "laplace"):
    numbers, auroc = on_turned[name], on_shuffled[name]["auroc"]
    print(
        f"{name:8} turned: claims {numbers['confidence']:.1%}, keeps {numbers['accuracy']:.1%}, "
        f"NLL {numbers['nll']:.2f}; shuffled: AUROC {auroc:.3f}"
    )
for numbers in on_turned.values():
    assert numbers["confidence"] > numbers["accuracy"] + 0.05
assert on_turned["laplace"]["confidence"] < on_turned["map"]["confidence"]
assert on_turned["laplace"]["nll"] < on_turned["map"]["nll"]
assert abs(on_shuffled["laplace"]["auroc"] - on_shuffled["map"]["auroc"]) < 0.05

# %% [markdown]
# ## The posterior's card
#
# The page ends with the posterior's card, the same as `print(la)`. Read its warnings first. Here
# they say that these weights were trained without the prior that was chosen afterwards: do not rely
# on the evidence of such a posterior, but on the test above.

# %%
print(la)
assert "not the mode of this prior" in la.card()["warnings"]
