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
# # A tour of curvature
#
# The curvature of a loss says which directions in parameter space the data have decided, and which
# they leave open. It is a matrix of parameters by parameters, and there are four of them that go by
# similar names:
#
# | | formula | what it is |
# | --- | --- | --- |
# | Hessian | $\nabla^2_\theta \mathcal L$ | the second derivative of the loss |
# | GGN | $\sum_n J_n^\top L_n J_n$ | that of the linearised model; here also the Fisher matrix |
# | empirical Fisher | $\sum_n g_n g_n^\top$ | of the gradients of the loss |
# | Monte-Carlo Fisher | $\sum_n \hat g_n \hat g_n^\top$ | at labels that the model draws |
#
# A network small enough to draw them all shows when they agree and when not. After that the matrix
# is forgotten: spectrum, eigenvectors and linear systems come from products with vectors only, as
# they must for networks of any other size. Each claim is asserted in code.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

from laplace_kit import curv
from laplace_kit.curv import plots

# %% [markdown]
# ## Data and model
#
# Six hundred handwritten digits, reduced to 4 x 4 pixels, and a network with one hidden layer of
# eight units: 226 parameters. It is trained by L-BFGS, with weight decay, until it makes next to no
# errors.

# %%
digits = load_digits()
pixels = digits.images[:600].reshape(600, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(600, 16) / 16
x, y = jnp.asarray(pixels, jnp.float32), jnp.asarray(digits.target[:600])


def dense(key, num_in, num_out):
    kernel = jax.random.normal(key, (num_in, num_out)) / num_in**0.5
    return {"bias": jnp.zeros(num_out), "kernel": kernel}


def model_fn(params, x):
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]


def objective(params):
    logits = model_fn(params, x)
    nll = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).sum()
    return nll + 0.5 * 0.1 * optax.tree.norm(params, squared=True)


@jax.jit
def train(params):
    optimizer = optax.lbfgs()

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(objective)(params)
        updates, state = optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=objective
        )
        return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, (params, optimizer.init(params)), length=400)[0][0]


keys = jax.random.split(jax.random.key(0), 8)
initial = {"hidden": dense(keys[0], 16, 8), "out": dense(keys[1], 8, 10)}
trained = train(initial)

accuracy = float(jnp.mean(model_fn(trained, x).argmax(axis=1) == y))
print(f"objective {objective(initial):.0f} before training, {objective(trained):.0f} after")
print(f"accuracy on the training data {accuracy:.3f}")
assert accuracy > 0.97


# %% [markdown]
# ## Four matrices of one model
#
# The operators are made alike, from model, parameters, data and likelihood. `to_dense` forms the
# matrix, which only small models afford.
#
# In the pictures red entries are positive and blue ones negative; colours go with the square root,
# so that small entries show. Parameters run from the hidden layer to the output layer, and lines
# separate bias and kernel of each.


# %%
def operators(params):
    model = model_fn, params, (x, y), "categorical"
    return {
        "Hessian": curv.HessianOperator(*model),
        "GGN": curv.GGNOperator(*model),
        "empirical Fisher": curv.EmpiricalFisherOperator(*model),
        "Monte-Carlo Fisher": curv.MonteCarloFisherOperator(*model, key=keys[2]),
    }


def dense_forms(operators):
    return {name: np.asarray(operator.to_dense()) for name, operator in operators.items()}


before, after = operators(initial), operators(trained)
matrices = {"initial": dense_forms(before), "trained": dense_forms(after)}
ends = np.cumsum([jnp.size(leaf) for leaf in jax.tree.leaves(initial)])


def draw_matrix(ax, matrix, size):
    roots = np.sign(matrix) * np.sqrt(np.abs(matrix) / size)
    ax.imshow(roots, cmap="RdBu_r", vmin=-0.5, vmax=0.5, interpolation_stage="data")
    for end in ends[:-1]:
        ax.axhline(end - 0.5, color="black", linewidth=0.3)
        ax.axvline(end - 0.5, color="black", linewidth=0.3)
    ax.set(xticks=[], yticks=[])


figure, axes = plt.subplots(2, 4, figsize=(13, 6.8), layout="constrained")
for row, (state, forms) in zip(axes, matrices.items(), strict=True):
    size = np.abs(forms["GGN"]).max()
    for ax, (name, matrix) in zip(row, forms.items(), strict=True):
        draw_matrix(ax, matrix, size)
        ax.set_title(name if state == "initial" else "")
    row[0].set_ylabel(state)
plt.show()

# %% [markdown]
# - **Hessian and GGN** differ by $\sum_n \sum_c \frac{\partial \mathcal L}{\partial f_{nc}}
#   \nabla^2 f_{nc}$: the curvature of the model, weighted by how wrong it is. At the start all
#   predictions are wrong, and the two differ by half of the norm, most of it between the layers.
#   After training the residuals are small, and so is the difference.
# - **The Monte-Carlo Fisher** has the GGN for its mean, at any parameters. With one label for each
#   example it is noisy, and the noise falls with the square root of the number of labels.
# - **The empirical Fisher** has the right scale at the start, where to the model the labels are as
#   good as random. After training it counts an example only so far as it is *not* fitted, and loses
#   most of the trace.


# %%
def distance(matrix, reference):
    return np.linalg.norm(matrix - reference) / np.linalg.norm(reference)


distances = {
    state: {name: distance(matrix, forms["GGN"]) for name, matrix in forms.items()}
    for state, forms in matrices.items()
}
traces = {
    state: {name: np.trace(matrix) for name, matrix in forms.items()}
    for state, forms in matrices.items()
}
print(f"{'':18}  {'distance from the GGN':>22}  {'trace':>16}")
for name in before:
    values = [table[state][name] for table in (distances, traces) for state in matrices]
    print("{:18}  {:11.2f}{:11.2f}  {:8.0f}{:8.0f}".format(name, *values))

assert distances["initial"]["Hessian"] > 0.4
assert distances["trained"]["Hessian"] < 0.1
assert traces["trained"]["empirical Fisher"] < 0.5 * traces["trained"]["GGN"]
assert traces["initial"]["empirical Fisher"] > 0.7 * traces["initial"]["GGN"]

num_labels = (1, 4, 16, 64, 256)
errors = []
for num in num_labels:
    fisher = curv.MonteCarloFisherOperator(
        model_fn, trained, (x, y), "categorical", key=keys[3], num_samples=num
    )
    errors.append(distance(np.asarray(fisher.to_dense()), matrices["trained"]["GGN"]))
print("distance of the Monte-Carlo Fisher, by labels:", *(f"{error:.3f}" for error in errors))
assert errors[-1] < errors[0] / 5  # a sixteenth, on average

# %% [markdown]
# ## Their spectra
#
# Eigenvalues by size, crosses where negative. Two facts about classifiers show already here:
#
# - A few large eigenvalues stand out. With $C$ classes the initial GGN has about $C - 1$ of them:
#   the logits of a class rise and fall together, and adding a number to all logits changes nothing.
# - The Hessian at the start has large negative eigenvalues, hence no Gaussian has it for a
#   precision. After training next to nothing negative is left: at a minimum of loss plus weight
#   decay, nothing below minus the weight decay.

# %%
spectra = {
    state: {name: np.linalg.eigvalsh(matrix) for name, matrix in forms.items()}
    for state, forms in matrices.items()
}
styles = {"Hessian": "#000000", "GGN": "#0072B2"}
styles |= {"empirical Fisher": "#D55E00", "Monte-Carlo Fisher": "#009E73"}

figure, axes = plt.subplots(1, 2, figsize=(12, 3.6), sharey=True, layout="constrained")
for ax, (state, spectrum) in zip(axes, spectra.items(), strict=True):
    for name, values in spectrum.items():
        sizes = values[np.argsort(-np.abs(values))]
        places = np.arange(1, len(sizes) + 1)
        color, positive = styles[name], sizes > 0
        ax.semilogy(places[positive], sizes[positive], "o", color=color, markersize=3, label=name)
        if name == "Hessian":
            ax.semilogy(places[~positive], -sizes[~positive], "x", color=color, markersize=4)
    ax.set(title=state, xlabel="number", ylim=(1e-3, 3e3))
axes[0].set_ylabel("absolute eigenvalue")
axes[0].legend()
plt.show()

# %%
leading = spectra["initial"]["GGN"][::-1]
print("GGN, initial:", *(f"{value:.0f}" for value in leading[:12]))
gaps = leading[:15] / leading[1:16]
assert np.argmax(gaps[4:]) + 5 == 9  # of 10 classes

lowest = {state: spectrum["Hessian"][0] for state, spectrum in spectra.items()}
print(f"lowest eigenvalue of the Hessian: {lowest['initial']:.0f} initially,", end=" ")
print(f"{lowest['trained']:.2f} trained, {spectra['trained']['Hessian'][-1]:.0f} the largest")
assert lowest["initial"] < -0.1 * spectra["initial"]["Hessian"][-1]
assert lowest["trained"] > -1e-3 * spectra["trained"]["Hessian"][-1]
for state in spectra:
    rounding = 1e-5 * spectra[state]["GGN"][-1]
    assert spectra[state]["GGN"][0] > -rounding

# %% [markdown]
# ## Blocks by layer
#
# Most posteriors and preconditioners keep only the blocks of single layers. `block_diagonal` is
# that matrix as an operator, and the squared Frobenius norm of the difference, estimated from
# products, shows how much is lost. Finer blocks lose more: those of single leaves separate a bias
# from its kernel, and the diagonal separates everything.

# %%
ggn = after["GGN"]
by_layer = curv.block_diagonal(ggn, by="layer")
by_leaf = curv.block_diagonal(ggn, by="leaf")
full = matrices["trained"]["GGN"]
blocks = {"GGN": full, "by layer": by_layer.to_dense(), "by leaf": by_leaf.to_dense()}
blocks["diagonal"] = np.diag(ggn.diagonal())

figure, axes = plt.subplots(1, 4, figsize=(13, 3.6), layout="constrained")
for ax, (name, matrix) in zip(axes, blocks.items(), strict=True):
    draw_matrix(ax, np.asarray(matrix), np.abs(full).max())
    kept = np.sum(np.asarray(matrix) ** 2) / np.sum(full**2)
    ax.set_title(f"{name}: {kept:.0%} of the norm")
plt.show()

# %%
lost = curv.estimate_frobenius_norm_squared(ggn - by_layer, key=keys[4], num_samples=64)
exact = np.sum((full - np.asarray(blocks["by layer"])) ** 2)
print(f"squared norm between the layers: {exact:.3g}, estimated", end=" ")
print(f"{lost.value:.3g} with a standard error of {lost.standard_error:.2g}")
assert abs(lost.value - exact) < 4 * lost.standard_error

statistics = curv.layer_statistics(ggn, key=keys[4])
for name, value in zip(statistics.names, statistics.largest_eigenvalue, strict=True):
    block = by_layer.block(name).to_dense()
    assert np.isclose(value, np.linalg.eigvalsh(block)[-1], rtol=1e-3)
print(statistics)

# %% [markdown]
# ## The spectrum without the matrix
#
# From here on the Hessian is only multiplied by vectors. Lanczos from a random vector is a Gauss
# quadrature of the spectrum, and a few of them average to its density: a bulk of the undecided
# directions close to zero, and single outliers. Compare with the exact eigenvalues, which a network
# of millions would not give.

# %%
hessian = after["Hessian"]
density = curv.spectral_density(hessian, key=keys[5], num_samples=8, num_steps=64)
exact_values = spectra["trained"]["Hessian"]
grid, width = np.asarray(density.grid), float(density.width)
bumps = np.exp(-0.5 * ((grid[:, None] - exact_values) / width) ** 2)
exact_density = bumps.mean(axis=1) / (width * np.sqrt(2 * np.pi))

figure, ax = plt.subplots(figsize=(9, 3.2), layout="constrained")
plots.spectral_density(ax, density)
ax.plot(grid, exact_density, "--", color="#D55E00", linewidth=1)
ax.plot(exact_values, np.full(len(exact_values), 1.6e-6), "|", color="black", markersize=9)
drawn = ax.lines[::2] + ax.lines[3:]
ax.legend(drawn, ("quadrature", "exact", "eigenvalues"), loc="upper right")
plt.show()

# %%
step = grid[1] - grid[0]
integral = np.sum(density.density) * step
print(f"{density.num_products} products; the density integrates to {integral:.4f}")
off_by = np.sum(np.abs(np.asarray(density.density) - exact_density)) * step
print(f"share of the eigenvalues in the wrong place: {off_by / 2:.3f}")
assert off_by / 2 < 0.05

# %% [markdown]
# The outliers themselves, with their directions, are a matter of few products: `eigenpairs` stops
# where the residuals are within the tolerance, and within the residual of each value there is an
# eigenvalue.

# %%
top = curv.eigenpairs(hessian, 12, key=keys[5])
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
plots.eigenvalue_bars(ax, top)
print(f"{top.num_products} products, largest residual {top.residuals.max():.2g}")
assert np.allclose(top.values, exact_values[::-1][:12], rtol=1e-3)
assert top.converged.all()
plt.show()

# %% [markdown]
# ## Linear systems
#
# A posterior covariance times a vector is a linear system, $(G + \delta I)\, x = v$, and conjugate
# gradients solve it by products. How many it takes depends on the spread of the eigenvalues; a
# preconditioner, a cheap approximation to the inverse, narrows it.
#
# K-FAC approximates the block of each layer by a Kronecker product and is a good one. The diagonal
# costs about the same and helps little here: parameters of a layer are far from independent, and to
# rescale them does not change that.

# %%
damping = 0.01
v = jax.random.normal(keys[6], (ggn.shape[0],))
preconditioners = {
    "none": None,
    "diagonal": curv.diagonal_preconditioner(ggn, damping=damping),
    "Kronecker": curv.kronecker_preconditioner(ggn, damping=damping),
}
solutions = {
    name: curv.solve(ggn, v, damping=damping, preconditioner=preconditioner, tolerance=1e-3)
    for name, preconditioner in preconditioners.items()
}


def residuals(preconditioner, steps):
    @jax.jit  # inside of which a solve that is stopped early does not warn
    def residual(max_iterations):
        solution = curv.solve(
            ggn,
            v,
            damping=damping,
            preconditioner=preconditioner,
            max_iterations=max_iterations,
            tolerance=1e-3,
        )
        return solution.residual

    return [float(residual(num)) for num in steps]


steps = np.unique(np.geomspace(1, 500, 40).astype(int))
figure, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
for (name, preconditioner), line in zip(preconditioners.items(), ("-", ":", "--"), strict=True):
    ax.loglog(steps, residuals(preconditioner, steps), line, label=name)
ax.axhline(1e-3, color="0.5", linewidth=0.8)
ax.set(xlabel="products", ylabel="relative residual")
ax.legend(title="preconditioner")
plt.show()

# %%
iterations = {name: int(solution.iterations) for name, solution in solutions.items()}
print("products until the residual is 1e-3:", iterations)
assert all(solution.converged for solution in solutions.values())
assert iterations["Kronecker"] < 0.6 * iterations["none"]

damped = full.astype(float) + damping * np.eye(len(full))
error = distance(solutions["Kronecker"].x, np.linalg.solve(damped, np.asarray(v, float)))
print(f"relative error of the solution: {error:.2g}")
assert error < 0.01

# %% [markdown]
# ## The loss, seen from above
#
# In the plane of the two leading eigenvectors the loss is steepest; along two random directions, of
# the same length, hardly anything happens. (This is the loss without the weight decay: its minimum
# is a little off the cross, where training ended.) The dashed parabola on the left is what a
# Laplace approximation takes the loss for: good near the mode, and further out the better the less
# the model bends.

# %%
steps_along = jnp.linspace(-0.6, 0.6, 31)
first, second = top.vectors[:2]
model = model_fn, trained, (x, y), "categorical"
random = jax.random.normal(keys[7], (2, len(first)))
random = random / jnp.linalg.norm(random, axis=1, keepdims=True)

along_first = curv.loss_along(*model, first[None], steps_along)
leading_plane = curv.loss_along(*model, top.vectors[:2], steps_along)
random_plane = curv.loss_along(*model, random, steps_along)

figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
plots.loss_curve(axes[0], along_first, curvature=first @ (hessian @ first))
axes[0].set_title("along the first eigenvector")
plots.loss_surface(axes[1], leading_plane)
axes[1].set_title("two leading eigenvectors")
plots.loss_surface(axes[2], random_plane)
axes[2].set_title("two random directions")
plt.show()


# %%
def rise(landscape):
    return float(landscape.losses.max() - landscape.losses.min())


print(f"rise of the loss: {rise(leading_plane):.0f} along eigenvectors,", end=" ")
print(f"{rise(random_plane):.1f} along random directions")
assert rise(leading_plane) > 10 * rise(random_plane)

step = 0.04  # the grid's
middle = len(steps_along) // 2
losses = along_first.losses[middle - 1 : middle + 2]
second_difference = float(losses[0] - 2 * losses[1] + losses[2]) / step**2
print(f"curvature from the losses {second_difference:.0f}, from the eigenvalue {top.values[0]:.0f}")
assert np.isclose(second_difference, top.values[0], rtol=0.1)

# %% [markdown]
# All of this scales: the products cost about one to two gradients each, whatever the number of
# parameters, and data that do not fit in memory come as a stream of batches. The page on curvature
# in the documentation has each operator and estimator with formula, cost and three lines of code.
